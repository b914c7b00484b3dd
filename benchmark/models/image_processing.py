"""Images of any size in, label maps of the same size out, through the windows that evaluation uses."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .configuration import SegmentationConfig
from .modeling import window_logits
from .sizes import cover_size
from .windows import label_map, normalize, resize_to_cover, rgb_tensor, split_windows, window_origins


class SegmentationImageProcessor(BaseImageProcessor):
    """Cuts images into normalised crop-sized windows and merges the model's output on them into label maps.

    Args:
        crop_size: height and width of a window, the model's own.
        image_mean, image_std: three floats each, for pixels in [0, 1]; the encoder's own.
        head: the name of the model's head, which says how its outputs become class logits; processors of older versions
            lack it.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        crop_size: Sequence[int] = (512, 512),
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        head: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.crop_size = list(crop_size)
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.head = head

    def preprocess(self, images, return_tensors: str | None = "pt") -> BatchFeature:
        """Windows of images, PIL or uint8 arrays, as pixel_values (all windows, 3, height, width), float32.

        What EXIF says of an image's rotation is not looked at; a pipeline turns the image before it comes here.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        windows = [
            split_windows(resize_to_cover(rgb_tensor(image), self.crop_size), self.crop_size) for image in images
        ]
        pixel_values = normalize(torch.cat(windows), self.image_mean, self.image_std)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Label maps, int64 (H, W) each, from the model's outputs on the windows of images of `target_sizes` (H, W).

        Without `target_sizes`, a map of the crop's size for each window.
        """
        outputs = {name: output for name, output in outputs.items() if isinstance(output, Tensor) and output.ndim > 0}
        total = len(next(iter(outputs.values())))
        if target_sizes is None:
            height, width = self.crop_size
            target_sizes = [(height, width)] * total
        counts = [len(window_origins(cover_size(size, self.crop_size), self.crop_size)) for size in target_sizes]
        if sum(counts) != total:
            raise ValueError(f"images of {target_sizes} have {sum(counts)} windows, but the outputs are of {total}.")
        maps, start = [], 0
        for count, size in zip(counts, target_sizes, strict=True):
            windows = {name: output[start : start + count] for name, output in outputs.items()}
            maps.append(label_map(window_logits(windows, self.crop_size, self.head), tuple(size)).long())
            start += count
        return maps


def processor(config: SegmentationConfig) -> SegmentationImageProcessor:
    """The image processor of a model of this configuration."""
    return SegmentationImageProcessor(config.crop_size, config.image_mean, config.image_std, config.head)


SegmentationImageProcessor.register_for_auto_class("AutoImageProcessor")
