"""`python -m benchmark throughput train`: steps of the training loop on synthetic images.

The steps are the loop's own: jitter and normalisation on the device, forward, backward, accumulation, optimizer. Only
the images are made up, the same ones in every step, so that nothing waits for a disk or a worker.
"""

import itertools
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from benchmark.assembly import build_model, start_accelerator
from benchmark.preemption import MARKER, Preemption
from benchmark.recipe import Output, Recipe
from benchmark.results import describe_machine
from benchmark.training import Run
from benchmark.transforms import THUMBNAIL_SIZE, draw_jitter
from data_scripts import PreparedDataset, class_names

WARM_UP_STEPS = 3  # for compilation, the optimizer's state and the allocator
CLASSES_PER_IMAGE = 9  # about what a crop of ADE20K holds; the Mask2Former loss grows with it


def measure(recipe: Recipe, steps: int) -> dict[str, float | int | str]:
    """Train the recipe's model, from random weights, for `steps` steps after a warm-up.

    Returns images_per_second (over all processes), seconds_per_step, steps, global_batch_size, and of this process
    peak_memory_bytes (allocated on the GPU since its start, without one the process's resident set) and device.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(
            recipe,
            model=replace(recipe.model, pretrained=False, checkpoint=None),
            train=replace(recipe.train, steps=WARM_UP_STEPS + steps),
            output=Output(dir=folder),  # no tracker but the default, no upload
        )
        accelerator = start_accelerator(recipe)
        classes = class_names(recipe.data.train, asdict(recipe.data.custom))
        dataset = PreparedDataset(
            recipe.data.train, splits={}, classes=classes, colors=(), fingerprint={"digest": ""}, report={}, folder=""
        )
        preemption = Preemption(accelerator, Path(folder) / MARKER)
        run = Run(recipe, accelerator, Path(folder), {dataset.name: dataset}, build_model(recipe, dataset), preemption)
        forwards = accelerator.num_processes * accelerator.gradient_accumulation_steps  # in one step
        micro = recipe.train.global_batch_size // forwards
        seconds = _time_steps(run, synthetic_batch(micro, recipe.data.crop, len(classes)), steps)
        run.reporter.close()
        accelerator.end_training()
    machine = describe_machine(accelerator)
    return {
        "images_per_second": steps * recipe.train.global_batch_size / seconds,
        "seconds_per_step": seconds / steps,
        "steps": steps,
        "global_batch_size": int(recipe.train.global_batch_size),
        **{key: machine[key] for key in ("peak_memory_bytes", "world_size", "device")},
    }


def _time_steps(run: Run, batch: dict[str, Tensor], steps: int) -> float:
    """The seconds that `steps` steps take after the warm-up; the device is waited for at the ends alone."""
    device = run.accelerator.device
    if device.type == "cuda":  # as the loader does
        batch = {key: value.pin_memory() for key, value in batch.items()}
    batches = itertools.repeat(batch)
    run.model.train()
    for step in range(1, WARM_UP_STEPS + steps + 1):
        if step == WARM_UP_STEPS + 1:
            start = _now(device)
        run._step(step, batches)
    return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def synthetic_batch(batch_size: int, crop_size: tuple[int, int], num_classes: int) -> dict[str, Tensor]:
    """A batch as the training loader makes it: noise, under labels of 8 x 8 fields of `CLASSES_PER_IMAGE` classes."""
    rng = np.random.default_rng(0)
    samples = []
    for position in range(batch_size):
        classes = rng.permutation(num_classes)[:CLASSES_PER_IMAGE]
        fields = rng.permutation(np.resize(classes, 64)).reshape(1, 1, 8, 8).astype(np.float32)
        samples.append(
            {
                "pixel_values": torch.from_numpy(rng.integers(0, 256, (3, *crop_size), np.uint8)),
                "labels": F.interpolate(torch.from_numpy(fields), crop_size)[0, 0].to(torch.uint8),
                "positions": position,
                "jitter": torch.from_numpy(draw_jitter(rng)),
                "thumbnails": torch.from_numpy(rng.integers(0, 256, (3, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)),
                "sizes": torch.tensor(crop_size),
            }
        )
    return default_collate(samples)
