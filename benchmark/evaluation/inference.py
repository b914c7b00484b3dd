"""The one loop over windows, which evaluation and `predict` share: images of any size in, windows' logits out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmark.models import modeling
from benchmark.models.errors import ModelError
from benchmark.models.sizes import num_windows
from benchmark.models.windows import (
    WindowLogits,
    label_map,
    normalize,
    resize_to_cover,
    rgb_tensor,
    split_windows,
)

Key = TypeVar("Key")


class Pending(NamedTuple):
    """An image whose windows' logits are not complete yet."""

    key: Any
    num_windows: int


@torch.no_grad()
def predict_logits(
    model: modeling.SegmentationModel,
    images: Iterable[tuple[Key, Tensor]],
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    any_process: Callable[[bool], bool] | None = None,
) -> Iterator[tuple[Key, WindowLogits]]:
    """Run the windows of many images through the model in batches of one fixed size.

    The last batch is padded with zeros: with every batch of the same shape, an image's logits do not depend on which
    images it shares its batch with, and a compiled model is compiled once.

    Args:
        model: unwrapped, in eval mode, on `device`; its configuration says the crop and the normalisation.
        images: pairs of a key and a uint8 image (3, H, W) that covers the crop.
        batch_size: windows in one forward pass.
        autocast: makes the context of a forward pass.
        any_process: of several processes: called before each forward pass with whether this process has windows
            left; it returns whether any process has. The processes then make equally many forward passes, which
            sharded models need. It may end the loop by an exception.

    Yields:
        Each key, in order, with the logits of its windows. They hold the model's outputs, at token resolution.
    """
    config, images = model.config, iter(images)
    crop = tuple(config.crop_size)
    pending: list[Pending] = []
    windows: list[Tensor] = []  # of pending images, not forwarded yet
    outputs: list[dict[str, Tensor]] = []  # of pending images' windows
    while True:
        while len(windows) < batch_size and (image := next(images, None)):
            key, pixels = image
            parts = split_windows(pixels, crop)
            pending.append(Pending(key, len(parts)))
            windows.extend(parts)
        working = bool(windows)
        if any_process is not None:
            working = any_process(working)
        if not working:
            return

        batch, windows = windows[:batch_size], windows[batch_size:]
        padding = torch.zeros(batch_size - len(batch), 3, *crop, dtype=torch.uint8)
        pixels = torch.cat([*(window[None] for window in batch), padding]).to(device, non_blocking=True)
        with autocast():
            found = model(pixel_values=normalize(pixels, config.image_mean, config.image_std))
        tensors = {name: output for name, output in found.items() if isinstance(output, Tensor)}
        outputs.extend({name: output[i] for name, output in tensors.items()} for i in range(len(batch)))

        while pending and pending[0].num_windows <= len(outputs):
            key, count = pending.pop(0)
            own, outputs = outputs[:count], outputs[count:]
            found = {name: torch.stack([output[name] for output in own]) for name in own[0]}
            yield key, modeling.window_logits(found, crop, config.head)


def label_image(model: modeling.SegmentationModel, image: Image.Image | np.ndarray) -> np.ndarray:
    """The label map, uint8 (H, W), that evaluation would score for one image, in fp32.

    Args:
        model: in eval mode, on any device.
        image: a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4); what EXIF says of its rotation is not used.

    Raises:
        ModelError: the model is in train mode, or the image has more than 8 bits a channel or is too long and narrow.
    """
    if model.training:
        raise ModelError("The model is in train mode, which would give other labels: call model.eval() first.")
    pixels = rgb_tensor(image)
    size, crop_size = tuple(pixels.shape[1:]), model.config.crop_size
    batch_size = num_windows(size, crop_size)
    images = [(size, resize_to_cover(pixels, crop_size))]
    found = predict_logits(model, images, batch_size=batch_size, device=model.device, autocast=nullcontext)
    return label_map(next(found)[1], size).cpu().numpy()
