"""Bilinear upsampling, some rows at a time: what a map of full size would hold is made where it is needed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mix(NamedTuple):
    """For each pixel along one axis the two tokens that it lies between, and the share of the second: (n,) each."""

    first: Tensor
    second: Tensor
    share: Tensor


def bilinear_mix(tokens: int, pixels: int, device: torch.device | str = "cpu") -> Mix:
    """The mix of F.interpolate(mode="bilinear", align_corners=False) along an axis."""
    centers = torch.arange(pixels, dtype=torch.float32, device=device) + 0.5
    place = (centers * (tokens / pixels) - 0.5).clamp(min=0)
    first = place.long().clamp(max=tokens - 1)
    return Mix(first, (first + 1).clamp(max=tokens - 1), place - first)


def bands(tokens: int, pixels: int, most: int, rows: slice = slice(None)) -> list[tuple[int, int, int, int]]:
    """Runs of at most `most` pixels between the same two tokens: (first pixel, end, first token, second token).

    Args:
        rows: the pixels to divide, of `pixels` in all; its step is 1.
    """
    mix, (start, stop, _) = bilinear_mix(tokens, pixels), rows.indices(pixels)
    pairs = list(zip(mix.first.tolist(), mix.second.tolist(), strict=True))
    found = []
    for pixel in range(start + 1, stop + 1):
        if pixel == stop or pairs[pixel] != pairs[start] or pixel - start == most:
            found.append((start, pixel, *pairs[start]))
            start = pixel
    return found


@torch.no_grad()
def upsampled_rows(source: Callable[[slice], Tensor], height: int, size: Sequence[int], rows: slice) -> Tensor:
    """Rows `rows` of F.interpolate(maps, size, mode="bilinear"), from the few rows of `maps` that they need.

    Args:
        source: makes the rows of a slice of `maps`, (B, C, rows, w), of float type.
        height: how many rows `maps` has.
        size: height and width of the whole result.
        rows: the slice of the result's rows to make; it is not empty and its step is 1.

    Returns:
        (B, C, rows, size[1]), of the source's type, channels last, without gradient.
    """
    runs = bands(height, size[0], size[0], rows)
    (start, _, top, _), (_, stop, _, bottom) = runs[0], runs[-1]
    # Channels last: on a CPU the kernels are vectorised over the channels then, and take a fifth of the time.
    maps = source(slice(top, bottom + 1)).contiguous(memory_format=torch.channels_last)
    wide = F.interpolate(maps, (bottom + 1 - top, size[1]), mode="bilinear")  # the rows stay as they are
    share = bilinear_mix(height, size[0], wide.device).share[:, None]
    shape = (*wide.shape[:2], stop - start, size[1])
    result = torch.empty(shape, dtype=wide.dtype, device=wide.device, memory_format=torch.channels_last)
    for begin, end, first, second in runs:
        pair = wide[:, :, first - top, None], wide[:, :, second - top, None]
        torch.lerp(*pair, share[begin:end], out=result[:, :, begin - start : end - start])
    return result


def upsample(maps: Tensor, size: Sequence[int], rows: slice | None = None) -> Tensor:
    """Maps (B, C, h, w) in fp32, upsampled bilinearly to (B, C, *size); with `rows` only those, without gradient."""
    maps = maps.float()
    if rows is None:
        return F.interpolate(maps.contiguous(), tuple(size), mode="bilinear")
    return upsampled_rows(lambda some: maps[:, :, some], maps.shape[2], size, rows)
