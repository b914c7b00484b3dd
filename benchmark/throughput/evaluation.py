"""`python -m benchmark throughput eval`: label maps and their counts for all metrics, beside bare forward passes."""

from contextlib import nullcontext
from typing import Any

import torch

from benchmark.evaluation.inference import predict_logits
from benchmark.evaluation.loop import EVALUATORS, count_image
from benchmark.models.windows import normalize, resize_to_cover, split_windows
from benchmark.recipe.schema import Recipe
from benchmark.reporting.results import describe_machine
from benchmark.throughput.timing import time_in_turns
from benchmark.training.build import untrained_model
from benchmark.training.launch import start_processes


def measure(recipe: Recipe, rounds: int) -> dict[str, Any]:
    """Evaluate noise of twice the crop's height and four times its width, two windows an image, with random weights.

    Returns, for one image, seconds and cpu_seconds (medians), spread (between quartiles, as a share of the median),
    forward_seconds (of the bare forward passes), over_forward (seconds over these), and images_per_second; image_size,
    classes, and of this process peak_memory_bytes and device.
    """
    accelerator = start_processes(recipe)
    device = accelerator.device
    torch.manual_seed(recipe.seed)
    model = untrained_model(recipe).eval().to(device)
    config, classes = model.config, list(model.config.id2label.values())
    if recipe.train.compile:
        model.compile_blocks()
    crop = recipe.data.crop
    size = (2 * crop[0], 4 * crop[1])
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    reference = torch.randint(0, len(classes), size, dtype=torch.uint8, device=device)
    image = resize_to_cover(pixels, crop)
    windows = split_windows(image, crop)
    count = max(1, recipe.train.eval_batch_size // len(windows))  # images in one forward pass
    inputs = normalize(windows.to(device), config.image_mean, config.image_std).repeat(count, 1, 1, 1)
    evaluators = [evaluator(classes) for evaluator in EVALUATORS.values()]
    autocast = accelerator.autocast if recipe.train.precision != "fp32" else nullcontext

    @torch.no_grad()
    def forward() -> None:
        with autocast():
            model(pixel_values=inputs)

    def evaluate() -> None:
        images = [(None, image)] * count
        for _, logits in predict_logits(model, images, batch_size=len(inputs), device=device, autocast=autocast):
            count_image(evaluators, logits, reference)

    time_in_turns({"forward": forward, "evaluate": evaluate}, 1, device)  # to warm up
    timings = time_in_turns({"forward": forward, "evaluate": evaluate}, rounds, device)
    machine = describe_machine(accelerator)
    whole, bare = timings["evaluate"], timings["forward"]
    return {
        "images_per_second": count / whole.seconds,
        "seconds": whole.seconds / count,
        "cpu_seconds": whole.cpu_seconds / count,
        "spread": whole.spread,
        "forward_seconds": bare.seconds / count,
        "over_forward": whole.seconds / bare.seconds,
        "image_size": f"{size[0]}x{size[1]}",
        "classes": len(classes),
        **{key: machine[key] for key in ("peak_memory_bytes", "device")},
    }
