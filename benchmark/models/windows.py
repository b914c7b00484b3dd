"""From an image of any size to crop-sized windows and back to its label map.

Evaluation, prediction and the image processor all go through these functions, so that they give the same label map.
The rules are those of Kerssies et al., "How to Benchmark Vision Foundation Models for Semantic Segmentation?" (arXiv
2404.12172), section on evaluation.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import ModelError

IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of PIL: 8 bits a channel, or fewer
IGNORE_INDEX = 255  # in label maps: no label
MAX_WINDOWS = 64  # of one image; their logits for 150 classes at 512x512 take 10 GB
STRIP_ELEMENTS = 2**23  # logits that are upsampled at once


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
    if image.mode not in IMAGE_MODES:
        raise ModelError(
            f"An image of mode {image.mode} has more than 8 bits a channel, whose range is not known: convert it to 8 "
            "bits a channel."
        )
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def cover_size(size: Sequence[int], crop_size: Sequence[int]) -> tuple[int, int]:
    """Height and width at which an image of `size` just covers the crop, its aspect ratio kept."""
    factor = max(crop / length for crop, length in zip(crop_size, size, strict=True))
    return round(size[0] * factor), round(size[1] * factor)


def num_windows(size: Sequence[int], crop_size: Sequence[int]) -> int:
    """How many windows an image of `size` has."""
    cover = cover_size(size, crop_size)
    return math.prod(math.ceil(length / crop) for length, crop in zip(cover, crop_size, strict=True))


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


def merge_windows(windows: Tensor, size: Sequence[int]) -> Tensor:
    """Average windows (n, C, crop height, crop width) into one map (C, H, W) of `size`, in fp32 where they overlap."""
    height, width = windows.shape[-2:]
    total = windows.new_zeros((windows.shape[1], *size), dtype=torch.float32)
    count = windows.new_zeros(tuple(size), dtype=torch.float32)
    for window, (y, x) in zip(windows, window_origins(size, (height, width)), strict=True):
        total[:, y : y + height, x : x + width] += window
        count[y : y + height, x : x + width] += 1
    return total / count


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale pixels (..., 3, H, W) from [0, 255] to [0, 1] and normalise them with `mean` and `std`; fp32."""
    mean_, std_ = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (mean, std))
    return (image.float() / 255 - mean_) / std_


def merged_logits(window_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (C, H, W), fp32, of an image of `size` from its windows' logits (n, C, crop height, crop width)."""
    logits = merge_windows(window_logits, cover_size(size, window_logits.shape[-2:]))
    return F.interpolate(logits[None], tuple(size), mode="bilinear")[0]


def upsampled_argmax(logits: Tensor, size: Sequence[int], rows_at_once: int) -> Tensor:
    """Resize logits (C, h, w) to `size` (bilinear, no antialias) and take the argmax: uint8 (H, W).

    It works by strips of `rows_at_once` rows, so that the memory it needs does not grow with the image's height.
    """
    (_, h, _), (height, width) = logits.shape, size
    # The source coordinates of bilinear resizing with aligned borders, as in torch's
    # `interpolate(align_corners=False)`.
    source = ((torch.arange(height, device=logits.device) + 0.5) * (h / height) - 0.5).clamp(min=0)
    above = source.long().clamp(max=h - 1)
    below = (above + 1).clamp(max=h - 1)
    weight = (source - above)[:, None]
    strips = []
    for rows in torch.arange(height, device=logits.device).split(rows_at_once):
        strip = torch.lerp(logits[:, above[rows]], logits[:, below[rows]], weight[rows])
        strip = F.interpolate(strip[None], (len(rows), width), mode="bilinear")[0]
        strips.append(strip.argmax(dim=0).to(torch.uint8))
    return torch.cat(strips)


def label_map(window_logits: Tensor, size: Sequence[int]) -> Tensor:
    """The label map, uint8 (H, W), of an image of `size` from its windows' logits (n, C, crop height, crop width)."""
    cover = cover_size(size, window_logits.shape[-2:])
    logits = merge_windows(window_logits, cover)
    return upsampled_argmax(logits, size, rows_at_once=max(1, STRIP_ELEMENTS // (len(logits) * size[1])))
