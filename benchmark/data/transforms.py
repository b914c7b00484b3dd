"""Geometry on the CPU: image and annotation bytes in, one uint8 training crop out, drawn by (seed, position).

The order is the protocol's (Kerssies et al., arXiv 2404.12172): colour jitter, flip, scale, pad, crop. The jitter's
factors are drawn here and applied on the device (`benchmark.data.color_jitter`), and the crop is chosen on the label
map alone, so that an image is decoded and resized once.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as F

from benchmark.models.windows import IGNORE_INDEX, rgb_tensor
from benchmark.recipe.schema import Augment
from data_scripts.images import nearest_source

THUMBNAIL_SIZE = 64
# Brightness, contrast and saturation are factors around 1, hue is a turn of the colour circle around 0.
JITTER_NEUTRAL = np.array([1.0, 1.0, 1.0, 0.0])


class DecodeError(ValueError):
    """Bytes that are no image; the caller knows which row they came from."""


@dataclass(frozen=True)
class Geometry:
    """Where a crop lies: the image is flipped or not, resized to `scaled` (height, width), and cut from (top, left)."""

    flip: bool
    scaled: tuple[int, int]
    top: int
    left: int


def training_sample(
    image: bytes, annotation: bytes, *, crop_size: tuple[int, int], seed: int, position: int, augment: Augment
) -> dict:
    """One augmented sample, a pure function of its bytes, the crop size (height, width) and (seed, position).

    Returns pixel_values uint8 (3, h, w), padded with 0; labels uint8 (h, w), padded with IGNORE_INDEX; positions, an
    int; jitter float32 (5,), see `draw_jitter`; thumbnails uint8 (3, THUMBNAIL_SIZE, THUMBNAIL_SIZE), see `thumbnail`;
    sizes int64 (2,), height and width of the part of the crop that is not padding. Raises DecodeError.
    """
    rng = np.random.default_rng([seed, position])
    jitter = draw_jitter(rng, augment)
    geometry, labels = choose_crop(decode_annotation(annotation).numpy(), crop_size, rng, augment)
    pixels = decode_image(image)
    pixel_values, size = crop_image(pixels, geometry, crop_size)
    return {
        "pixel_values": pixel_values,
        "labels": torch.from_numpy(labels),
        "positions": position,
        "jitter": torch.from_numpy(jitter),
        "thumbnails": thumbnail(pixels),
        "sizes": torch.tensor(size),
    }


def draw_jitter(rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """float32 (5,): brightness, contrast, saturation, hue, and 1 where contrast precedes saturation and hue, else 0.

    Each operation is applied with `augment.jitter_probability`; one that is not has its neutral value: 1, and 0 for
    hue.
    """
    applied = rng.random(4) < augment.jitter_probability
    contrast_first = rng.random() < 0.5
    strength = np.array([augment.brightness, augment.contrast, augment.saturation, augment.hue])
    factors = rng.uniform(JITTER_NEUTRAL - strength, JITTER_NEUTRAL + strength)
    return np.append(np.where(applied, factors, JITTER_NEUTRAL), contrast_first).astype(np.float32)


def draw_scaled_size(
    height: int, width: int, crop_size: tuple[int, int], rng: np.random.Generator, augment: Augment
) -> tuple[int, int]:
    """The image's new size: just inside the crop, times a factor uniform in the recipe's scales, rounded down."""
    ratio = min(crop_size[0] / height, crop_size[1] / width) * rng.uniform(augment.min_scale, augment.max_scale)
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def draw_corner(scaled: tuple[int, int], crop_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of the crop, uniform over where it fits into the image once that is padded up to the crop."""
    top, left = (int(rng.integers(max(0, length - crop) + 1)) for length, crop in zip(scaled, crop_size, strict=True))
    return top, left


def choose_crop(
    label: np.ndarray, crop_size: tuple[int, int], rng: np.random.Generator, augment: Augment
) -> tuple[Geometry, np.ndarray]:
    """Draw where to crop `label`, uint8 (H, W), and crop it, again and again until a labelled pixel is inside.

    First only the corner is drawn again, up to `augment.max_redraws` times; then the scale, as often; then the last
    crop is taken.
    """
    flip = bool(rng.random() < augment.flip_probability)
    for _ in range(1 + augment.max_redraws):
        scaled = draw_scaled_size(*label.shape, crop_size, rng, augment)
        for _ in range(1 + augment.max_redraws):
            geometry = Geometry(flip, scaled, *draw_corner(scaled, crop_size, rng))
            crop = crop_label(label, geometry, crop_size)
            if (crop != IGNORE_INDEX).any():
                return geometry, crop
    return geometry, crop


def crop_label(label: np.ndarray, geometry: Geometry, crop_size: tuple[int, int]) -> np.ndarray:
    """Flip, resize by torch's `nearest`, pad and crop `label`, uint8 (H, W), reading only the crop's pixels."""
    rows = nearest_source(label.shape[0], geometry.scaled[0])[geometry.top :][: crop_size[0]]
    columns = nearest_source(label.shape[1], geometry.scaled[1])[geometry.left :][: crop_size[1]]
    if geometry.flip:
        columns = label.shape[1] - 1 - columns
    crop = np.full(crop_size, IGNORE_INDEX, dtype=np.uint8)
    crop[: len(rows), : len(columns)] = label.take(rows, axis=0).take(columns, axis=1)
    return crop


def crop_image(
    image: torch.Tensor, geometry: Geometry, crop_size: tuple[int, int]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """uint8 (3, h, w) of `image` (3, H, W), resized with antialiasing and padded with 0; and the unpadded part's size.

    The window is mirrored after the resize, which differs from mirroring the image before it by one level at most.
    """
    height, width = (min(scaled, crop) for scaled, crop in zip(geometry.scaled, crop_size, strict=True))
    left = geometry.scaled[1] - width - geometry.left if geometry.flip else geometry.left
    resized = F.resize(image, geometry.scaled, antialias=True)
    window = resized[:, geometry.top : geometry.top + height, left : left + width]
    crop = image.new_zeros((3, *crop_size))
    crop[:, :height, :width] = window.flip(-1) if geometry.flip else window
    return crop, (height, width)


def thumbnail(image: torch.Tensor) -> torch.Tensor:
    """uint8 (3, THUMBNAIL_SIZE, THUMBNAIL_SIZE) of the whole `image` (3, H, W), for the mean that contrast needs.

    Passed through the same colour steps, its mean grey stayed within 0.4 levels of the image's own on street scenes.
    """
    return F.resize(image, [THUMBNAIL_SIZE, THUMBNAIL_SIZE], antialias=True).contiguous()


def decode_image(encoded: bytes) -> torch.Tensor:
    """uint8 (3, H, W) RGB of an image of any colour mode, as PIL decodes and converts it; EXIF rotates nothing.

    PIL turns a TIFF by its orientation, so that a dataset's builder refuses those that have one. Strides
    are those of channels-last, the layout that torchvision resizes fast. Raises DecodeError.
    """
    return _decode(encoded, "RGB")


def decode_annotation(encoded: bytes) -> torch.Tensor:
    """uint8 (H, W) train ids, IGNORE_INDEX for none, of a lossless 8-bit single-channel image. Raises DecodeError."""
    return _decode(encoded, "L")[0]


def _decode(encoded: bytes, mode: str) -> torch.Tensor:
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.format in ("JPEG", "PNG") and image.mode == mode:
            # Without a conversion torchvision's decoder gives PIL's pixels in two thirds of the time.
            pixels = torchvision.io.decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
            if pixels.dtype == torch.uint8 and len(pixels) == len(mode):
                return pixels
        return rgb_tensor(image) if mode == "RGB" else F.pil_to_tensor(image)
    except Exception as error:  # whatever the decoder raises, and decoders raise much
        raise DecodeError(str(error)) from error
