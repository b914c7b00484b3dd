"""Mean intersection over union, and whatever else one confusion matrix tells."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.evaluation.evaluator import Evaluator
from benchmark.models.windows import IGNORE_INDEX


class MeanIoU(Evaluator):
    """mIoU, accuracies, precision and recall over a whole split, as `scores` gives them.

    The counts are a confusion matrix (label, prediction) in pixels.
    """

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
    prediction has none: its IoU is None, and it is left out of the mean. Precision is TP / (TP + FP), recall
    TP / (TP + FN), None where nothing is predicted or labelled. As in Long et al. (CVPR 2015, section 5), mean accuracy
    is the mean of the recalls, and frequency-weighted IoU weighs each class's IoU by its share of the labelled pixels.

    Returns:
        mean_iou, absent_classes (how many were left out of it), pixel_accuracy, mean_accuracy and
        frequency_weighted_iou (None where nothing is labelled), and by class name iou, precision and recall.
    """
    hits, labelled, predicted = (
        counts.tolist() for counts in (confusion.diagonal(), confusion.sum(1), confusion.sum(0))
    )
    unions = [label + found - hit for hit, label, found in zip(hits, labelled, predicted, strict=True)]
    iou, recall, precision = (_ratios(hits, others) for others in (unions, labelled, predicted))
    total = sum(labelled)
    weighted = sum(value * pixels for value, pixels in zip(iou, labelled, strict=True) if value is not None)
    return {
        "mean_iou": _mean(iou),
        "pixel_accuracy": sum(hits) / total if total else None,
        "mean_accuracy": _mean(recall),
        "frequency_weighted_iou": weighted / total if total else None,
        "iou": dict(zip(classes, iou, strict=True)),
        "precision": dict(zip(classes, precision, strict=True)),
        "recall": dict(zip(classes, recall, strict=True)),
        "absent_classes": iou.count(None),
    }


def _ratios(above: Sequence[int], below: Sequence[int]) -> list[float | None]:
    return [a / b if b else None for a, b in zip(above, below, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None where none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
