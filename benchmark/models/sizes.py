"""How many windows an image has: arithmetic of its size and the crop's, for which nothing large is imported."""

import math
from collections.abc import Sequence

MAX_WINDOWS = 64  # of one image; their logits for 150 classes at 512x512 take 10 GB


def cover_size(size: Sequence[int], crop_size: Sequence[int]) -> tuple[int, int]:
    """Height and width at which an image of `size` just covers the crop, its aspect ratio kept."""
    factor = max(crop / length for crop, length in zip(crop_size, size, strict=True))
    return round(size[0] * factor), round(size[1] * factor)


def num_windows(size: Sequence[int], crop_size: Sequence[int]) -> int:
    """How many windows an image of `size` has."""
    cover = cover_size(size, crop_size)
    return math.prod(math.ceil(length / crop) for length, crop in zip(cover, crop_size, strict=True))
