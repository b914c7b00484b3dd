"""Intersection over union of what lies near boundaries: sensitive to contour errors, not to large areas."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.evaluation.evaluator import Evaluator
from benchmark.evaluation.mean_iou import confusion_matrix
from benchmark.models.windows import IGNORE_INDEX

SHARE = 0.02  # the width of the band beside a boundary, in diagonals of the image


class BoundaryIoU(Evaluator):
    """Boundary IoU of each class and their mean; the counts are (intersection or union, class) in pixels.

    Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021, equation 2, with
    intersections and unions summed over images, as for mIoU. A pixel is in the band of its class where its window of
    2 d + 1 pixels holds another label or reaches beyond the image; d is 2 % of the diagonal. Ignored pixels have a
    label of their own, in the prediction, too: a prediction that is right wherever there is a label scores 1.
    """

    description: ClassVar[str] = "Intersection over union of label maps within 2 % of the diagonal of a boundary."

    @property
    def shape(self) -> tuple[int, int]:
        return 2, len(self.classes)

    def count(self, prediction: Tensor, reference: Tensor, logits: Tensor | None = None) -> Tensor:
        confusion_matrix(prediction, reference, len(self.classes))  # which raises where a value is no class
        height, width = reference.shape
        distance = max(1, round(SHARE * (height**2 + width**2) ** 0.5))
        prediction = torch.where(reference == IGNORE_INDEX, IGNORE_INDEX, prediction.int())
        expected, found = (
            torch.where(boundary_band(labels, distance), labels, IGNORE_INDEX) for labels in (reference, prediction)
        )
        both = torch.where(expected == found, expected, IGNORE_INDEX)
        pixels, others, intersection = (
            torch.bincount(labels.flatten(), minlength=256)[: len(self.classes)] for labels in (expected, found, both)
        )
        return torch.stack([intersection, pixels + others - intersection])

    def score(self, total: Tensor) -> dict[str, Any]:
        """mean_boundary_iou and, by class name, boundary_iou: in 0..1, None without a boundary pixel."""
        ious = [above / below if below else None for above, below in total.T.tolist()]
        present = [iou for iou in ious if iou is not None]
        return {
            "mean_boundary_iou": sum(present) / len(present) if present else None,
            "boundary_iou": dict(zip(self.classes, ious, strict=True)),
        }


def boundary_band(labels: Tensor, distance: int) -> Tensor:
    """Which pixels of labels (H, W) have another label, or the image's end, within `distance` pixels: bool (H, W).

    A window holds two labels where two pixels side by side in it differ; integral images count these pairs.
    """
    height, width = labels.shape
    band = torch.ones(height, width, dtype=torch.bool, device=labels.device)
    if min(height, width) > 2 * distance:
        rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
        pairs = box_sums(rows, 2 * distance, 2 * distance + 1) + box_sums(columns, 2 * distance + 1, 2 * distance)
        band[distance : height - distance, distance : width - distance] = pairs > 0
    return band


def box_sums(values: Tensor, height: int, width: int) -> Tensor:
    """The sum in each window of `height` x `width` of a map (H, W), int32: (H - height + 1, W - width + 1)."""
    integral = F.pad(values.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))
    wide = integral[:, width:] - integral[:, :-width]
    return wide[height:] - wide[:-height]
