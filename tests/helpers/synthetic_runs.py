"""Run folders that look trained: random confusion counts, and results, recipe and curve that belong to them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmark.evaluation.boundary_iou import BoundaryIoU
from benchmark.evaluation.mean_iou import scores as measure
from benchmark.recipe.identity import protocol
from benchmark.recipe.parser import load_recipe
from benchmark.reporting.manifest import seal

COMMIT = "0" * 40


def write_run(
    folder: Path,
    files: Sequence[str],
    flags: Sequence[str],
    skill: float,
    images: int = 20,
    classes: Sequence[str] = ("sky", "ground", "circle"),
    digest: str = "content-synthetic",
    hours: float = 1.0,
    device: str = "cuda (synthetic)",
    stray: int | None = None,
    **results_too,
) -> dict:
    """Write a synthetic run of the recipe that `files` and `flags` give, right on a share `skill` of its pixels.

    Images are as hard for every run of a dataset; a seed adds some noise. With `stray` the last class has no label, and
    so many pixels are taken for it; `results_too` are added to the results. Returns the results.
    """
    recipe = load_recipe([str(file) for file in files], [*flags, "--output.dir", str(folder)])
    random = np.random.default_rng([recipe.seed, *map(ord, str(folder))])
    labelled = len(classes) - (stray is not None)
    difficulty = np.random.default_rng(0).uniform(-0.1, 0.1, (images, labelled))
    right = np.clip(skill + difficulty + random.normal(0, 0.01, difficulty.shape), 0.01, 0.99)
    pixels = np.rint(1000 * right).astype(np.int64).ravel()
    image, label = (index.ravel() for index in np.indices(right.shape))
    others = np.stack([image, label, (label + 1) % labelled, 1000 - pixels], axis=1)
    counts = np.concatenate([np.stack([image, label, label, pixels], axis=1), others])
    if stray:
        counts = np.concatenate([counts, [[0, 0, labelled, stray]]])
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, tuple(counts[:, 1:3].T), counts[:, 3])
    scores = measure(torch.from_numpy(confusion), classes)
    # Of each class half of the pixels are near a boundary; as many of these are right as of the others.
    boundary = np.stack([np.stack([right, 2 - right]) * 500], axis=2).astype(np.int64)[:, :, 0]
    boundary = np.pad(boundary, [(0, 0), (0, 0), (0, len(classes) - labelled)])
    scores |= BoundaryIoU(classes).score(torch.from_numpy(boundary.sum(axis=1)))
    places = np.indices(boundary.shape).reshape(3, -1)[[1, 0, 2]]
    boundaries = np.concatenate([places, boundary.reshape(1, -1)]).T
    name, fingerprint = recipe.data.val[0], {"counts": {"train": images, "validation": images}, "digest": digest}
    results = {
        **scores,
        "datasets": {name: {**scores, "fingerprint": fingerprint}},
        "seed": int(recipe.seed),
        "encoder": recipe.model.encoder,
        "head": recipe.model.head,
        "dataset": recipe.data.train,
        "setting": recipe.output.setting,
        "protocol": protocol(recipe),
        "global_batch_size": int(recipe.train.global_batch_size),
        "world_size": 1,
        "device": device,
        "peak_memory_bytes": 2**33,
        "versions": {"benchmark": "0.1.0", "commit": COMMIT, "modified": False},
        "dataset_fingerprint": fingerprint,
        "step": int(recipe.train.steps),
        "parameters": 10**8,
        "trainable_parameters": 10**8,
        "train_seconds": 3600 * hours,
        "eval_seconds": 1.0,
        "images_per_second": 100.0,
        "window_gflops": 200.0,
    } | results_too
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    np.savez_compressed(folder / "confusion.npz", **{name: counts, f"{name}/boundary_iou": boundaries})
    curve = [{"step": s, "val/mean_iou": results["mean_iou"] * s / recipe.train.steps} for s in (recipe.train.steps,)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    (folder / "results.json").write_text(json.dumps(seal(results)))
    return results
