"""`python -m benchmark throughput train`: steps of the training loop on synthetic images.

The steps are the loop's own: jitter and normalisation on the device, forward, backward, accumulation, optimizer. Only
the images are synthetic, the same ones in every step, so that nothing waits for a disk or a worker.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from benchmark.data.transforms import THUMBNAIL_SIZE, draw_jitter
from benchmark.models.modeling import SegmentationModel
from benchmark.recipe.schema import Augment, Recipe
from benchmark.reporting.results import describe_machine
from benchmark.training.build import build_step, model_config
from benchmark.training.launch import start_processes
from benchmark.training.lora import add_adapters
from benchmark.training.memory import plan_steps
from benchmark.training.step import Step
from data_scripts.preparation import class_names

WARM_UP_STEPS = 3  # for compilation, the optimizer's state and the allocator
CLASSES_PER_IMAGE = 9  # about what a crop of ADE20K holds; the Mask2Former loss grows with it


def measure(recipe: Recipe, steps: int) -> dict[str, float | int | str]:
    """Train the recipe's model, from random weights, for `steps` steps after a warm-up.

    Returns images_per_second (over all processes), seconds_per_step, steps, global_batch_size, and of this process
    peak_memory_bytes (allocated on the GPU since its start, without one the process's resident set) and device.
    """
    recipe = replace(recipe, train=replace(recipe.train, steps=WARM_UP_STEPS + steps))
    accelerator = start_processes(recipe)
    classes = class_names(recipe.data.train, asdict(recipe.data.custom))
    torch.manual_seed(recipe.seed)
    model = SegmentationModel(model_config(recipe, classes, None))
    if recipe.model.lora_rank:
        add_adapters(model.encoder, recipe.model.lora_rank)
    model.train().to(accelerator.device)
    if recipe.train.compile:
        model.compile_blocks()
    plan = plan_steps(recipe.train.global_batch_size, recipe.train.micro_batch_size, model, accelerator)
    step = build_step(recipe, model, plan, accelerator)
    batch = synthetic_batch(plan.micro_batch_size, recipe.data.crop, len(classes))
    if accelerator.device.type == "cuda":  # as the loader does
        batch = {key: value.pin_memory() for key, value in batch.items()}
    seconds = _time_steps(step, itertools.repeat(batch), steps)
    accelerator.end_training()
    machine = describe_machine(accelerator)
    return {
        "images_per_second": steps * recipe.train.global_batch_size / seconds,
        "seconds_per_step": seconds / steps,
        "steps": steps,
        "global_batch_size": int(recipe.train.global_batch_size),
        **{key: machine[key] for key in ("peak_memory_bytes", "world_size", "device")},
    }


def _time_steps(step: Step, batches: Iterator[dict[str, Tensor]], steps: int) -> float:
    """The seconds that `steps` steps take after the warm-up; the device is waited for only before and after them."""
    device = step.accelerator.device
    for number in range(1, WARM_UP_STEPS + 1):
        step(number, batches)
    start = _now(device)
    for number in range(WARM_UP_STEPS + 1, WARM_UP_STEPS + steps + 1):
        step(number, batches)
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
                "jitter": torch.from_numpy(draw_jitter(rng, Augment())),
                "thumbnails": torch.from_numpy(rng.integers(0, 256, (3, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)),
                "sizes": torch.tensor(crop_size),
            }
        )
    return default_collate(samples)
