"""What heads have in common that predict a class and a mask for each of some queries, and its way to class logits.

Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021 (arXiv 2107.06278),
section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from .head import Head
from .mask2former_loss import Mask2FormerPredictions, mask2former_loss
from .upsampling import upsample


@dataclass
class Mask2FormerOutput(Mask2FormerForUniversalSegmentationOutput):
    """transformers' output, with the parts of the loss."""

    loss_parts: dict[str, Tensor] | None = None


class MaskHead(Head):
    """A head whose forward returns `Mask2FormerPredictions` and whose loss is Mask2Former's.

    Args:
        loss_options: num_points and the weights and ratios of `mask2former_loss`.
    """

    main_output = "class_queries_logits"
    class_layer_name = "class_layer"

    def __init__(self, **loss_options: float):
        super().__init__()
        self.loss_options = loss_options

    def loss(
        self, predictions: Mask2FormerPredictions, labels: Tensor, positions: Tensor | None, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image (B,) and its parts "class", "mask" and "dice"; see `mask2former_loss`."""
        return mask2former_loss(predictions, labels, positions, seed=seed, **self.loss_options)

    def outputs(
        self, predictions: Mask2FormerPredictions, loss: Tensor | None, parts: dict[str, Tensor], auxiliary: bool
    ) -> Mask2FormerOutput:
        """The last layer's logits and, where `auxiliary` asks for them, those of the layers before it."""
        layers = enumerate(predictions.class_logits[:-1]) if auxiliary else ()
        others = [
            {"class_queries_logits": class_logits, "masks_queries_logits": predictions.mask_logits(layer)}
            for layer, class_logits in layers
        ]
        return Mask2FormerOutput(
            loss=loss,
            class_queries_logits=predictions.class_logits[-1],
            masks_queries_logits=predictions.mask_logits(),
            auxiliary_logits=others or None,
            loss_parts=parts or None,
        )

    @staticmethod
    def semantic_logits(outputs, size: Sequence[int], rows: slice | None = None) -> Tensor:
        """Class logits (B, C, *size), fp32; with `rows` only those rows, without gradient."""
        # Image by image, because all queries' masks of an image take memory.
        images = zip(outputs["class_queries_logits"].split(1), outputs["masks_queries_logits"].split(1), strict=True)
        return torch.cat([semantic_logits(classes, masks, tuple(size), rows) for classes, masks in images])


def semantic_logits(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], rows: slice | None = None
) -> Tensor:
    """Fold queries into logits per class: sum over queries of mask probability x class probability, in fp32.

    Args:
        class_logits: (B, Q, num_labels + 1); the last class, "no object", is dropped after the softmax.
        mask_logits: (B, Q, h, w); upsampled bilinearly to `size` before the sigmoid.
        size: (height, width).
        rows: the rows of the result to make, without gradient; None: all of them.

    Returns: (B, num_labels, *size), fp32, in [0, Q].
    """
    with torch.autocast(class_logits.device.type, enabled=False):
        classes = class_logits.float().softmax(-1)[..., :-1]
        masks = upsample(mask_logits, size, rows).sigmoid()
        return torch.einsum("bqhw,bqc->bhwc", masks, classes).permute(0, 3, 1, 2)
