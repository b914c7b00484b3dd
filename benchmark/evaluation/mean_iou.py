"""Mean intersection over union, from one confusion matrix."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.evaluation.evaluator import Evaluator
from benchmark.models.windows import IGNORE_INDEX


class MeanIoU(Evaluator):
    """mIoU and pixel accuracy over a whole split; the counts are a confusion matrix (label, prediction) in pixels."""

    description: ClassVar[str] = "Mean intersection over union of label maps, 255 being ignored."

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.classes), len(self.classes)

    def count(self, prediction: Tensor, reference: Tensor, logits: Tensor | None = None) -> Tensor:
        return confusion_matrix(prediction, reference, len(self.classes))

    def score(self, total: Tensor) -> dict[str, Any]:
        return scores(total, self.classes)


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Counts of pixels, int64 (num_classes, num_classes): rows are labels, columns predictions; ignored pixels are
    left out.

    Args:
        prediction, label: integers in 0..255 of one shape, on one device.

    Raises:
        ValueError: where a labelled pixel's label or prediction is not a class.
    """
    for what, values in (("label", label), ("prediction", prediction)):
        if values.dtype != torch.uint8 and values.numel() and (values.min() < 0 or values.max() > 255):
            raise ValueError(f"A {what} lies outside the {num_classes} classes: {values.min()}..{values.max()}.")
    # All 256 values are counted and ignored ones left out of the table: picking pixels out takes ten times as long.
    pairs = torch.bincount((label.int() * 256 + prediction).flatten(), minlength=256**2).view(256, 256)
    counts = pairs[torch.arange(256, device=pairs.device) != IGNORE_INDEX]
    sums = {"label": counts[num_classes:].sum(dim=1), "prediction": counts[:, num_classes:].sum(dim=0)}
    for what, others in sums.items():
        if outside := (others.nonzero().flatten() + num_classes).tolist():
            raise ValueError(f"A {what} lies outside the {num_classes} classes: {outside}.")
    return counts[:num_classes, :num_classes]


def scores(confusion: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Scores in 0..1 from a confusion matrix whose rows are labels.

    The IoU of a class is TP / (TP + FP + FN), as in the PASCAL VOC challenge. A class with neither label nor
    prediction has none: its IoU is None, and it is left out of the mean.

    Returns:
        mean_iou, pixel_accuracy (None where nothing is labelled), iou by class name, absent_classes (how many were
        left out).
    """
    hits = confusion.diagonal()
    unions = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
    iou = [hit / union if union else None for hit, union in zip(hits.tolist(), unions.tolist(), strict=True)]
    present = [value for value in iou if value is not None]
    total = int(confusion.sum())
    return {
        "mean_iou": sum(present) / len(present) if present else None,
        "pixel_accuracy": int(hits.sum()) / total if total else None,
        "iou": dict(zip(classes, iou, strict=True)),
        "absent_classes": len(iou) - len(present),
    }
