"""`python -m benchmark throughput train`: steps of the training loop on synthetic images.

The steps are the loop's own: jitter and normalisation on the device, forward, backward, accumulation, optimizer. Only
the images are synthetic, the same ones in every step, so that nothing waits for a disk or a worker.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import default_collate

from benchmark.data.loaders import copied_ahead
from benchmark.data.transforms import THUMBNAIL_SIZE, draw_jitter
from benchmark.recipe.schema import Augment, Recipe
from benchmark.reporting.results import describe_machine
from benchmark.throughput.arithmetic import Arithmetic, count
from benchmark.throughput.timing import matrix_product, now, peak_memory, power, time_in_turns
from benchmark.training.build import build_step, untrained_model
from benchmark.training.launch import start_processes
from benchmark.training.lora import add_adapters
from benchmark.training.memory import plan_steps
from benchmark.training.step import Step

WARM_UP_STEPS = 3  # for compilation, the optimizer's state and the allocator
SPLIT_STEPS = 3
PARTS = ("jitter", "forward", "loss", "backward", "optimizer")  # the first with the copy to the device
CLASSES_PER_IMAGE = 9  # about what a crop of ADE20K holds; the Mask2Former loss grows with it


def measure(recipe: Recipe, steps: int, profile: str | None = None) -> dict[str, Any]:
    """Train the recipe's model, from random weights, for `steps` steps after a warm-up, in turns with a matrix product.

    Args:
        profile: where to write a trace of two more steps, for chrome://tracing or Perfetto.

    Returns:
        Medians of a step and what follows from them: images_per_second (over all processes), seconds_per_step,
        cpu_seconds_per_step, spread (between quartiles, as a share of the median), tflops (of a process: the
        floating-point operations of a step's products, over its seconds), matrix_tflops (of the product),
        matrix_share, hours (of the recipe's training, without evaluations), kilowatt_hours (of them, on one GPU; None
        where it does not tell), split (seconds of a step by `PARTS`, measured in `SPLIT_STEPS` steps that wait for the
        device after each part), memory_split (the most bytes that tensors took in each part; None on a CPU); steps,
        global_batch_size; attention (the kernels); and of this process peak_memory_bytes (allocated on the GPU since
        its start, without one the process's resident set) and device.
    """
    hours = recipe.train.steps / 3600
    recipe = replace(
        recipe,
        train=replace(recipe.train, steps=1 + WARM_UP_STEPS + steps + SPLIT_STEPS + 2),
        optim=replace(recipe.optim, warmup_steps=0),  # which may be more than these few
    )
    accelerator = start_processes(recipe)
    device = accelerator.device
    numbers = itertools.count(1)
    of_an_image = _count_an_image(recipe, accelerator)
    flops = of_an_image.flops * recipe.train.global_batch_size // accelerator.num_processes
    step, batches = _build(recipe, accelerator)
    for _ in range(WARM_UP_STEPS):
        step(next(numbers), batches)
    product, operations = matrix_product(device, recipe.train.precision)
    timings = time_in_turns({"step": lambda: step(next(numbers), batches), "matrix": product}, steps, device)
    machine = describe_machine(accelerator)
    split, memory, watts = _split(step, batches, numbers)
    if profile and accelerator.is_main_process:
        with torch.profiler.profile() as trace:
            step(next(numbers), batches), step(next(numbers), batches)
        trace.export_chrome_trace(profile)
    accelerator.end_training()
    seconds, rate = timings["step"].seconds, operations / timings["matrix"].seconds
    return {
        "images_per_second": recipe.train.global_batch_size / seconds,
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": timings["step"].cpu_seconds,
        "spread": timings["step"].spread,
        "tflops": flops / seconds / 1e12,
        "matrix_tflops": rate / 1e12,
        "matrix_share": flops / seconds / rate,
        "hours": hours * seconds,
        "kilowatt_hours": hours * seconds * watts / 1000 if watts else None,
        "split": split,
        "memory_split": memory,
        "attention": of_an_image.attention,
        "steps": steps,
        "global_batch_size": int(recipe.train.global_batch_size),
        **{key: machine[key] for key in ("peak_memory_bytes", "world_size", "device")},
    }


def _count_an_image(recipe: Recipe, accelerator: Accelerator) -> Arithmetic:
    """The arithmetic of a step, for each image; it leaves no memory taken."""
    # What is compiled or captured is not counted.
    single = {"global_batch_size": accelerator.num_processes, "micro_batch_size": 1}
    settings = replace(recipe.train, compile=False, cuda_graph=False, **single)
    step, batches = _build(replace(recipe, train=settings), accelerator)
    arithmetic = count(partial(step, 1, batches))
    del step, batches
    accelerator.free_memory()
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    return arithmetic


def _build(recipe: Recipe, accelerator: Accelerator) -> tuple[Step, Iterator[dict[str, Tensor]]]:
    """The recipe's step with random weights, and its batches: the same one again and again."""
    torch.manual_seed(recipe.seed)
    model = untrained_model(recipe)
    if recipe.model.lora_rank:
        add_adapters(model.encoder, recipe.model.lora_rank)
    if recipe.train.compile:
        model.compile_blocks()
    model.train().to(accelerator.device)
    plan = plan_steps(recipe.train.global_batch_size, recipe.train.micro_batch_size, model, accelerator)
    step = build_step(recipe, model, plan, accelerator)
    batch = synthetic_batch(plan.micro_batch_size, recipe.data.crop, model.config.num_labels)
    if accelerator.device.type == "cuda":  # as the loader does
        batch = {key: value.pin_memory() for key, value in batch.items()}
    return step, copied_ahead(itertools.repeat(batch), accelerator.device)


def _split(
    step: Step, batches: Iterator[dict[str, Tensor]], numbers: Iterator[int]
) -> tuple[dict[str, float], dict[str, int] | None, float | None]:
    """By `PARTS` the seconds of a step, which are the mean of a few steps, and the most bytes in use; and the watts."""
    device, head, backward = step.accelerator.device, step.unwrapped_model().head, step.accelerator.backward
    spent, most = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
    peak_memory(device)
    last, watts = now(device), []

    def mark(part: str) -> None:
        nonlocal last
        spent[part] += now(device) - last
        most[part] = max(most[part], peak_memory(device) or 0)
        last = now(device)

    def marked(function: Callable, before: str | None = None, after: str | None = None) -> Callable:
        def call(*args, **kwargs):
            if before:
                mark(before)
            result = function(*args, **kwargs)
            if after:
                mark(after)
            return result

        return call

    hooks = [
        step.model.register_forward_pre_hook(lambda *_: mark("jitter")),
        step.model.register_forward_hook(lambda *_: mark("loss")),
    ]
    with (
        patch.object(head, "loss", marked(head.loss, before="forward")),
        patch.object(step.accelerator, "backward", marked(backward, after="backward")),
    ):
        for _ in range(SPLIT_STEPS):
            step(next(numbers), batches)
            mark("optimizer")
            watts.append(power(device))
    for hook in hooks:
        hook.remove()
    told = [draw for draw in watts if draw is not None]
    split = {part: seconds / SPLIT_STEPS for part, seconds in spent.items()}
    return split, most if all(most.values()) else None, sum(told) / len(told) if told else None


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
