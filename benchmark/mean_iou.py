"""Mean intersection over union as an `evaluate` metric that keeps nothing but one confusion matrix."""

from collections.abc import Sequence

import datasets
import evaluate
import torch
from torch import Tensor

IGNORE_INDEX = 255


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Counts of pixels, int64 (num_classes, num_classes): rows are labels, columns predictions; ignored pixels are
    left out.

    Args:
        prediction, label: integers of one shape, on one device.

    Raises:
        ValueError: where a labelled pixel's label or prediction is not a class.
    """
    labelled = label != IGNORE_INDEX
    label, prediction = label[labelled].long(), prediction[labelled].long()
    for what, values in (("label", label), ("prediction", prediction)):
        if values.numel() and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"A {what} lies outside the {num_classes} classes: {values.min()}..{values.max()}.")
    return torch.bincount(label * num_classes + prediction, minlength=num_classes**2).view(num_classes, num_classes)


def scores(confusion: Tensor, classes: Sequence[str]) -> dict:
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


class MeanIoU(evaluate.Metric):
    """mIoU over a whole split, folded image by image into one confusion matrix.

    With several processes, add up their `confusion` before `compute`; images are never gathered.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.confusion = torch.zeros((len(self.classes),) * 2, dtype=torch.int64)
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of label maps, 255 being ignored.",
            citation="",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def add_batch(self, *, predictions, references) -> None:
        """Fold label maps (H, W), integer arrays or tensors, each image of its own size, into the confusion matrix."""
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = torch.as_tensor(prediction), torch.as_tensor(reference)
            self.confusion += confusion_matrix(prediction, reference, len(self.classes)).cpu()

    def add(self, *, prediction, reference) -> None:
        """Fold one label map (H, W) into the confusion matrix."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None) -> dict:
        """The scores, as `scores` gives them, of all that was added; the matrix starts anew."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        result = scores(self.confusion, self.classes)
        self.confusion.zero_()
        return result
