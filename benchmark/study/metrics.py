"""The scores of a run, from the counts of its images, by which they can be drawn again."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmark.study.bootstrap import intersection_and_union

# By the names of results.json, as tables call them; the first one ranks.
TITLES = {
    "mean_iou": "mIoU",
    "mean_boundary_iou": "boundary IoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}
OTHERS = list(TITLES)[1:]


class Counts(NamedTuple):
    """What a score is the mean ratio of: (images, classes) in pixels, as in `bootstrap.mean_ratio`."""

    numerators: np.ndarray
    denominators: np.ndarray
    frequencies: np.ndarray | None = None


def image_counts(arrays: Mapping[str, np.ndarray], dataset: str, images: int, classes: int) -> dict[str, Counts]:
    """The counts behind each metric, of a dataset in confusion.npz; files of older versions have no boundary IoU.

    Raises:
        KeyError, ValueError: the file holds no such dataset, or other images or classes.
    """
    confusions = np.asarray(arrays[dataset]).reshape(-1, 4)
    intersections, unions = intersection_and_union(confusions, images, classes)
    labelled = _table(confusions[:, [0, 1, 3]], images, classes)
    found = {
        "mean_iou": Counts(intersections, unions),
        "frequency_weighted_iou": Counts(intersections, unions, labelled),
        "mean_accuracy": Counts(intersections, labelled),
        "pixel_accuracy": Counts(intersections.sum(axis=1, keepdims=True), labelled.sum(axis=1, keepdims=True)),
    }
    if (key := f"{dataset}/boundary_iou") in arrays:
        rows = np.asarray(arrays[key]).reshape(-1, 4)
        parts = [rows[rows[:, 1] == part][:, [0, 2, 3]] for part in (0, 1)]
        found["mean_boundary_iou"] = Counts(*(_table(part, images, classes) for part in parts))
    return found


def _table(rows: np.ndarray, images: int, classes: int) -> np.ndarray:
    """Sums of pixels, uint32 (images, classes), from integers (n, 3) of image, class, pixels."""
    image, of_class, pixels = rows.T
    sums = np.bincount(image * classes + of_class, pixels, images * classes)
    return sums.reshape(images, classes).astype(np.uint32)
