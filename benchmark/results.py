"""What a run folder says of itself: whose it is, and what was measured in the end."""

import json
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator

from benchmark.checkpoint import write_atomically
from benchmark.errors import UserError
from benchmark.evaluation import Evaluation

RECIPE, RESULTS, CONFUSION = "recipe.yaml", "results.json", "confusion.npz"
VERSIONS = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "numpy", "pillow")


def check_run_folder(folder: Path, identity: dict[str, Any], *, resume: str) -> dict[str, Any] | None:
    """The results of a run that is finished, None for one to start or continue.

    Args:
        identity: the recipe's keys that make the experiment, by dotted name.
        resume: "auto" continues a run of the same identity, "never" asks for an empty folder.

    Raises:
        UserError: the folder is not this run's.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another output.dir.")
    # A hidden file is what a kill or a full disk left of the first one that was written.
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return None
    if resume == "never":
        raise UserError(
            f"{folder} is not empty: name another output.dir, remove the folder, or go on with --resume auto."
        )
    if not (folder / RECIPE).exists():
        raise UserError(f"{folder} holds something that is not a run: name another output.dir.")
    if difference := recipe_difference(folder / RECIPE, identity):
        raise UserError(
            f"{folder} holds a run of another recipe ({difference}): name another output.dir or remove the folder."
        )
    if (folder / RESULTS).exists():
        return json.loads((folder / RESULTS).read_text())
    return None


def recipe_difference(file: Path, identity: dict[str, Any]) -> str | None:
    """The first key in which a run's recipe.yaml differs from `identity`, in words; None where it does not."""
    try:
        recipe = yaml.safe_load(file.read_text())
        there = {key: _value(recipe, key.split(".")) for key in identity}
    except (yaml.YAMLError, ValueError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged: put it back, or remove the run.") from None
    differing = [key for key, value in identity.items() if there[key] != value]
    return f"{differing[0]} is {there[differing[0]]} there and {identity[differing[0]]} here" if differing else None


def _value(tree: dict[str, Any], path: list[str]) -> Any:
    for key in path:
        tree = tree.get(key, {})
    return tree


def summarize(evaluations: dict[str, Evaluation], fingerprints: dict[str, dict]) -> dict[str, Any]:
    """The scores of the first validation dataset, and those of each under `datasets`."""
    datasets = {name: {**e.scores, "fingerprint": fingerprints[name]} for name, e in evaluations.items()}
    return {**next(iter(evaluations.values())).scores, "datasets": datasets}


def describe_experiment(identity: dict[str, Any], protocol: str, setting: str) -> dict[str, Any]:
    """What was run, by the keys under which results are compared."""
    return {
        "seed": identity["seed"],
        "encoder": identity["model.encoder"],
        "head": identity["model.head"],
        "dataset": identity["data.train"],
        "setting": setting,
        "protocol": protocol,
        "global_batch_size": identity["train.global_batch_size"],
    }


def describe_machine(accelerator: Accelerator) -> dict[str, Any]:
    """Where it ran and with what."""
    device = accelerator.device
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        name, peak = (
            platform.processor() or platform.machine(),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        )
    return {
        "world_size": accelerator.num_processes,
        "device": f"{device.type} ({name})",
        "peak_memory_bytes": peak,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in VERSIONS}},
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results.json, whole or not at all."""
    write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())


def write_confusions(path: Path, evaluations: dict[str, Evaluation]) -> None:
    """Write confusion.npz: for each validation dataset an int64 (n, 4) of image, label, prediction, pixels."""
    np.savez_compressed(path, **{name: evaluation.confusions for name, evaluation in evaluations.items()})
