"""What `pipeline("image-segmentation")` makes of a model: images of any size, their windows batched."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from transformers import ImageSegmentationPipeline
from transformers.pipelines.base import ChunkPipeline

from .windows import check_depth


class SegmentationPipeline(ChunkPipeline, ImageSegmentationPipeline):
    """transformers' pipeline, of which `batch_size` counts windows: those of several images share a forward pass.

    transformers' own batches whole images, whose outputs it could not tell apart where an image has several windows.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # transformers has put classes in place of their names, with which the configuration could not be saved.
        self.model.config.custom_pipelines = type(self.model.config)().custom_pipelines

    def preprocess(self, image: Any, **kwargs) -> Iterator[dict[str, Any]]:
        """The windows of an image: pixel_values (1, 3, crop height, crop width) each.

        Raises:
            ModelError: a file or a PIL image has more than 8 bits a channel, which transformers would cut.
        """
        if isinstance(image, Image.Image):
            check_depth(image)
        elif isinstance(image, str) and os.path.isfile(image):
            with Image.open(image) as opened:
                check_depth(opened)
        inputs = super().preprocess(image, **kwargs)
        windows = inputs["pixel_values"].split(1)
        for number, window in enumerate(windows, start=1):
            size = inputs["target_size"][0]
            yield {"pixel_values": window, "target_size": size, "is_last": number == len(windows)}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = self.model(pixel_values=model_inputs.pop("pixel_values"))
        return {**{key: value for key, value in outputs.items() if torch.is_tensor(value)}, **model_inputs}

    def postprocess(self, model_outputs: list[dict[str, Any]], **kwargs) -> list[dict[str, Any]]:
        """As transformers' own, of the outputs of all windows of an image: a label and a mask for each class in it."""
        sizes = [outputs.pop("target_size") for outputs in model_outputs]
        merged = {key: torch.cat([outputs[key] for outputs in model_outputs]) for key in model_outputs[0]}
        return super().postprocess({**merged, "target_size": sizes[:1]}, **kwargs)
