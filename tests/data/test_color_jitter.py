"""Batched colour jitter against torchvision's functions, one image at a time."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from benchmark.data import transforms
from benchmark.data.color_jitter import adjust_hue, color_jitter
from benchmark.recipe.schema import Augment

HEIGHT, WIDTH = 48, 64


def scenes(sizes: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """uint8 (3, h, w) images with smooth colours, noise, highlights and shadows."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for height, width in sizes.tolist():
        coarse = torch.randn(1, 3, 5, 5, generator=generator) * 80 + 128
        smooth = interpolate(coarse, (height, width), mode="bicubic")[0]
        noise = torch.randn(3, height, width, generator=generator) * 6
        images.append((smooth + noise).clamp(0, 255).to(torch.uint8))
    return images


def batch(count: int = 16, seed: int = 0) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Images of various sizes, and the same as color_jitter wants them, each with its own draws."""
    rng = np.random.default_rng(seed)
    sizes = torch.tensor(rng.integers((24, 32), (HEIGHT + 1, WIDTH + 1), (count, 2)))
    images = scenes(sizes, seed)
    return images, {
        "pixel_values": torch.stack([F.pad(i, [0, 0, WIDTH - i.shape[2], HEIGHT - i.shape[1]]) for i in images]),
        "thumbnails": torch.stack([transforms.thumbnail(image) for image in images]),
        "jitter": torch.tensor(np.stack([transforms.draw_jitter(rng, Augment()) for _ in range(count)])),
        "sizes": sizes,
    }


def torchvision_jitter(image: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    brightness, contrast, saturation, hue, contrast_first = factors.tolist()
    image = F.adjust_brightness(image, brightness)
    if contrast_first:
        image = F.adjust_contrast(image, contrast)
    image = F.adjust_saturation(image, saturation)
    if hue:
        image = F.adjust_hue(image, hue)
    return image if contrast_first else F.adjust_contrast(image, contrast)


def test_within_two_levels_of_torchvision():
    images, arguments = batch(128)
    for image, factors in zip(images, arguments["jitter"], strict=True):
        size = torch.tensor([image.shape[1:]])
        ours = color_jitter(image[None], image[None], factors[None], size)  # the whole image as its own thumbnail
        assert ours.dtype == torch.uint8
        assert (ours[0].int() - torchvision_jitter(image, factors).int()).abs().max() <= 2, factors


def test_thumbnails_serve_as_well_as_whole_images():
    images, arguments = batch(128)
    moved = 0.0
    for image, factors, ours in zip(images, arguments["jitter"], color_jitter(**arguments), strict=True):
        height, width = image.shape[1:]
        expected = torchvision_jitter(image, factors).int()
        error = (ours[:, :height, :width].int() - expected).abs()
        # Where a mean that is off by a fraction of a level moves a truncation, the steps that follow may widen it.
        assert (error <= 2).float().mean() > 0.999 and error.max() <= 4, factors
        moved += (expected - image.int()).abs().float().mean().item() / len(images)
    assert moved > 5  # or the comparison says nothing


def test_padding_comes_back_as_zero():
    images, arguments = batch(32)
    for image, jittered in zip(images, color_jitter(**arguments), strict=True):
        assert not jittered[:, image.shape[1] :].any() and not jittered[:, :, image.shape[2] :].any()


def test_contrast_takes_the_mean_of_the_whole_image():
    (image,) = scenes(torch.tensor([[HEIGHT, WIDTH]]))
    image[:, :, : WIDTH // 2] //= 4
    jitter = torch.tensor([[1.0, 0.5, 1.0, 0.0, 1.0]])
    half = image[None, :, :, : WIDTH // 2]
    ours = color_jitter(half, transforms.thumbnail(image)[None], jitter, torch.tensor([half.shape[-2:]]))
    expected = F.adjust_contrast(image, 0.5)[None, :, :, : WIDTH // 2]
    assert (ours.int() - expected.int()).abs().max() <= 1
    assert (ours.int() - F.adjust_contrast(half, 0.5).int()).abs().min() > 10


def test_contrast_takes_its_mean_after_the_colour_steps_before_it():
    (image,) = scenes(torch.tensor([[HEIGHT, WIDTH]]))
    image[:2] //= 4  # blue, and a third of a turn makes it red, of twice the grey
    for contrast_first in (0.0, 1.0):
        factors = torch.tensor([1.1, 0.5, 1.3, 1 / 3, contrast_first])
        ours = color_jitter(image[None], image[None], factors[None], torch.tensor([image.shape[1:]]))[0]
        assert (ours.int() - torchvision_jitter(image, factors).int()).abs().max() <= 2


def test_neutral_factors_change_nothing():
    images, arguments = batch()
    for contrast_first in (0.0, 1.0):
        arguments["jitter"] = torch.tensor([1.0, 1.0, 1.0, 0.0, contrast_first]).repeat(len(images), 1)
        assert torch.equal(color_jitter(**arguments), arguments["pixel_values"])


@pytest.mark.parametrize("turn", [-0.5, -0.05, 0.013, 0.05, 0.4])
def test_hue_within_one_level_of_torchvision_on_all_colours(turn):
    level = torch.cat([torch.arange(0, 256, 5), torch.tensor([1, 254])])
    colours = torch.cartesian_prod(level, level, level).T[None, :, :, None]  # (1, 3, colours, 1)
    ours = adjust_hue(colours.float(), torch.tensor(turn).view(1, 1, 1, 1))
    expected = F.adjust_hue(colours.to(torch.uint8), turn)
    assert (ours - expected.float()).abs().max() <= 1


def test_an_image_comes_out_the_same_in_every_batch():
    _, arguments = batch(7)
    together = color_jitter(**arguments)
    for split in (1, 2, 3):
        chunks = zip(*(value.split(split) for value in arguments.values()), strict=True)
        assert torch.equal(torch.cat([color_jitter(*chunk) for chunk in chunks]), together)


def test_no_value_reaches_the_host():
    _, arguments = batch(2)
    without_values = {key: value.to("meta") for key, value in arguments.items()}
    assert color_jitter(**without_values).shape == (2, 3, HEIGHT, WIDTH)


def test_traces_into_one_graph():
    _, arguments = batch(4)
    traced = torch.compile(color_jitter, fullgraph=True, backend="eager")
    assert torch.equal(traced(**arguments), color_jitter(**arguments))


@pytest.mark.gpu
def test_runs_on_the_device_without_synchronising():
    _, arguments = batch(16)
    expected = color_jitter(**arguments)
    arguments = {key: value.cuda() for key, value in arguments.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        jittered = color_jitter(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (jittered.cpu().int() - expected.int()).abs().max() <= 1
