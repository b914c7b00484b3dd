"""From an image of any size to crop-sized windows and back to its label map.

Evaluation, prediction and the image processor all go through these functions, so that they give the same label map.
The rules are those of Kerssies et al., "How to Benchmark Vision Foundation Models for Semantic Segmentation?" (arXiv
2404.12172), section on evaluation.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import ModelError
from .sizes import MAX_WINDOWS, cover_size, num_windows
from .upsampling import upsampled_rows

IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of PIL: 8 bits a channel, or fewer
IGNORE_INDEX = 255  # in label maps: no label
# Logits of a band that are made at once: what a CPU's cache holds, and what keeps a GPU busy.
CPU_ELEMENTS, GPU_ELEMENTS = 2**22, 2**26


def rgb_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """A PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4), as a uint8 RGB tensor (3, H, W) of its pixels.

    The one way from an image to pixels, for training, evaluation, prediction and the image processor alike.

    Raises:
        ModelError: it has more than 8 bits a channel. Their range is not known, and cutting it would change the image.
    """
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise ModelError(
                f"An image of {array.dtype} values has no known range: scale it to 0..255 and convert it to uint8."
            )
        image = Image.fromarray(array)
    check_depth(image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def check_depth(image: Image.Image) -> None:
    """Raise ModelError where an image has more than 8 bits a channel.

    PIL opens 16-bit RGB as mode RGB and keeps 8 bits of it. What it is going to read tells, until it has been read.
    """
    tiles = [tile[3] for tile in getattr(image, "tile", ())]
    deep = any(";16" in str(tile) for tile in tiles)
    if image.format == "PPM":
        deep = any(type(tile) is tuple and tile[1] > 255 for tile in tiles)  # a mode and the largest value
    if image.format in ("JPEG2000", "AVIF") and tiles:
        place = image.fp.tell()
        image.fp.seek(0)
        deep = _is_deep_jpeg2000(image.fp.read()) if image.format == "JPEG2000" else _is_deep_avif(image.fp.read())
        image.fp.seek(place)
    if image.mode not in IMAGE_MODES or deep:
        raise ModelError(
            f"An image of mode {image.mode} has more than 8 bits a channel, whose range is not known: convert it to 8 "
            "bits a channel."
        )


def _is_deep_avif(data: bytes) -> bool:
    """AV1-ISOBMFF, 2.3: the second bit of the third byte in a picture's av1C box says 10 or 12 bits."""
    header = data.partition(b"mdat")[0]
    boxes = (header if b"av1C" in header else data).split(b"av1C")[1:]
    return any(box[2] & 0x40 for box in boxes if len(box) > 2)


def _is_deep_jpeg2000(data: bytes) -> bool:
    """ITU-T T.800, A.5.1: after the marker SIZ and 36 bytes, the number of channels and 3 bytes for each."""
    _, _, size = data.partition(b"\xff\x4f\xff\x51")
    end = 38 + 3 * int.from_bytes(size[36:38], "big")
    return any((bits & 127) >= 8 for bits in size[38:end:3])  # of a channel, less 1


def resize_to_cover(image: Tensor, crop_size: Sequence[int]) -> Tensor:
    """Resize a uint8 image (3, H, W) so that it just covers the crop: antialiased, bilinear, rounded back to uint8.

    Raises:
        ModelError: the image is so long and narrow that its windows would not fit into memory.
    """
    size = cover_size(image.shape[-2:], crop_size)
    if num_windows(image.shape[-2:], crop_size) > MAX_WINDOWS:
        height, width = image.shape[-2:]
        raise ModelError(f"An image of {width}x{height} pixels is too long and narrow: cut it into pieces.")
    if tuple(image.shape[-2:]) == size:
        return image
    # The channels-last view takes PyTorch's fast uint8 kernel; the pixels are the same.
    image = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(image, size, mode="bilinear", antialias=True)[0].contiguous()


def window_starts(length: int, crop: int) -> list[int]:
    """Starts of the fewest windows of `crop` that cover `length` at equal strides."""
    count = math.ceil(length / crop)
    return [j * (length - crop) // max(count - 1, 1) for j in range(count)]


def window_origins(size: Sequence[int], crop_size: Sequence[int]) -> list[tuple[int, int]]:
    """Top left corners (y, x) of the windows that cover an image of `size`, row by row."""
    rows, columns = (window_starts(length, crop) for length, crop in zip(size, crop_size, strict=True))
    return [(y, x) for y in rows for x in columns]


def split_windows(image: Tensor, crop_size: Sequence[int]) -> Tensor:
    """Cut an image (3, H, W) that covers the crop into its windows (n, 3, crop height, crop width)."""
    height, width = crop_size
    origins = window_origins(image.shape[-2:], crop_size)
    return torch.stack([image[:, y : y + height, x : x + width] for y, x in origins])


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale pixels (..., 3, H, W) from [0, 255] to [0, 1] and normalise them with `mean` and `std`; fp32."""
    # Filled one by one, because a copy from the host would wait for all that a GPU has to do.
    mean_, std_ = (
        torch.stack([torch.full((1, 1), value, device=image.device) for value in values]) for values in (mean, std)
    )
    return (image.float() / 255 - mean_) / std_


class WindowLogits(NamedTuple):
    """The logits of an image's windows, row by row of windows, made only where they are asked for.

    Attributes:
        crop_size: height and width of a window.
        rows: from a slice of the windows and a slice of their rows to logits (windows, C, rows, crop width), fp32.
    """

    crop_size: tuple[int, int]
    rows: Callable[[slice, slice], Tensor]


def merged_rows(logits: WindowLogits, size: Sequence[int], rows: slice) -> Tensor:
    """Rows of the average of overlapping windows that cover an image of `size`: (1, C, rows, width), fp32."""
    (height, width), (start, stop, _) = logits.crop_size, rows.indices(size[0])
    tops, lefts = (window_starts(length, crop) for length, crop in zip(size, logits.crop_size, strict=True))
    total = count = torch.zeros(())
    for row, top in enumerate(tops):
        first, last = max(start, top), min(stop, top + height)
        if first >= last:
            continue
        windows = slice(row * len(lefts), (row + 1) * len(lefts))
        parts = logits.rows(windows, slice(first - top, last - top))
        if total.ndim == 0:
            total = parts.new_zeros(1, stop - start, size[1], parts.shape[1]).permute(0, 3, 1, 2)  # channels last
            count = parts.new_zeros(stop - start, size[1])
        for part, left in zip(parts, lefts, strict=True):
            total[0, :, first - start : last - start, left : left + width] += part
            count[first - start : last - start, left : left + width] += 1
    return total.div_(count)


@torch.no_grad()
def merged_logits(logits: WindowLogits, size: Sequence[int]) -> Tensor:
    """Logits (C, H, W), fp32, of an image of `size` from its windows' logits."""
    cover = cover_size(size, logits.crop_size)
    return F.interpolate(merged_rows(logits, cover, slice(None)), tuple(size), mode="bilinear")[0]


@torch.no_grad()
def label_map(logits: WindowLogits, size: Sequence[int]) -> Tensor:
    """The label map, uint8 (H, W), of an image of `size` from its windows' logits: the argmax of `merged_logits`.

    It works by bands of rows: logits of all classes are never held at the windows' or the image's full size.
    """
    cover = cover_size(size, logits.crop_size)
    merged = partial(merged_rows, logits, cover)
    first = merged(slice(0, 1))
    elements = CPU_ELEMENTS if first.device.type == "cpu" else GPU_ELEMENTS
    step = max(1, elements // (first.shape[1] * size[1]))
    found = torch.empty(tuple(size), dtype=torch.uint8, device=first.device)
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        found[rows] = argmax_(upsampled_rows(merged, cover[0], size, rows)[0])
    return found


def argmax_(logits: Tensor) -> Tensor:
    """The first class of the highest logit, uint8 (H, W), of logits (C, H, W), fp32, which are overwritten.

    Where a logit is NaN the result is 255, which is no class: a metric refuses it.
    """
    # Two maxima are vectorised on a CPU, and take half of the time of torch's argmax.
    order = torch.arange(IGNORE_INDEX, IGNORE_INDEX - len(logits), -1, dtype=logits.dtype, device=logits.device)
    return (IGNORE_INDEX - logits.eq_(logits.amax(dim=0)).mul_(order[:, None, None]).amax(dim=0)).to(torch.uint8)
