"""What every metric has in common: counts of one image, which add up over images and processes, and scores of them."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Evaluator(evaluate.Metric):
    """A metric of label maps as an `evaluate.Metric` that keeps integer counts and no image.

    A subclass says `shape`, `count` and `score`, and is named once in `benchmark.evaluation.loop.EVALUATORS`. Counts
    are int64, so that sums over images and processes are exact; the names of its scores are no other metric's.

    Attributes:
        total: int64 of `shape`, the sum of all images' counts.
        images: for each image that was added its counts that are not 0, int64 (n, dimensions + 1): place and count.
    """

    needs_logits: ClassVar[bool] = False
    description: ClassVar[str] = ""

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.total = torch.zeros(self.shape, dtype=torch.int64)
        self.images: list[np.ndarray] = []
        super().__init__()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the counts."""

    @abstractmethod
    def count(self, prediction: Tensor, reference: Tensor, logits: Tensor | None) -> Tensor:
        """Counts, int64 of `shape`, of one image, computed on the device of its label maps.

        Args:
            prediction, reference: (H, W) integers; in the reference 255 = ignore.
            logits: (C, H, W) fp32 where `needs_logits`, else None.
        """

    @abstractmethod
    def score(self, total: Tensor) -> dict[str, Any]:
        """(name, value) pairs from summed counts; a value may be a mapping of names to values itself."""

    def add(self, *, prediction: Any, reference: Any, logits: Tensor | None = None) -> None:
        """Fold one image, label maps (H, W) as integer arrays or tensors, into the counts.

        Raises:
            ValueError: they differ in shape, or where the reference is not 255 one of them holds no class.
        """
        prediction, reference = torch.as_tensor(prediction), torch.as_tensor(reference)
        if prediction.shape != reference.shape or reference.ndim != 2:
            shapes = " and ".join(str(tuple(labels.shape)) for labels in (prediction, reference))
            raise ValueError(f"Prediction and reference must be label maps of one shape (H, W), not {shapes}.")
        counts = self.count(prediction, reference, logits).cpu()
        if counts.dtype != torch.int64:
            raise TypeError(f"{type(self).__name__} counts {counts.dtype}, but counts are int64: round a scaled sum.")
        self.total += counts
        places = counts.nonzero()
        self.images.append(torch.cat([places, counts[tuple(places.T)][:, None]], dim=1).numpy())

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Fold label maps, each image of its own size, into the counts."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        """The scores, as `score` gives them, of all that was added; the counts start from 0 again."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        result = self.score(self.total)
        self.total.zero_()
        self.images.clear()
        return result

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )


def reduce_over_processes(evaluator: Evaluator, indices: Sequence[int], accelerator: Accelerator) -> np.ndarray:
    """Sum the counts of all processes into each one's `total`; return the images' own counts, sorted by image.

    Args:
        indices: of the images that this process added, in that order.

    Returns:
        int64 (n, dimensions + 2): image, place, count; the same on every process.
    """
    evaluator.total = accelerator.reduce(evaluator.total.to(accelerator.device), "sum").cpu()
    numbered = [np.insert(counts, 0, index, axis=1) for index, counts in zip(indices, evaluator.images, strict=True)]
    empty = np.zeros((0, evaluator.total.ndim + 2), np.int64)
    rows = np.concatenate([*gather_object(numbered), empty])
    return rows[np.lexsort(rows.T[::-1])]


def flatten_scores(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """(name, value) pairs of scores, those of classes as iou/<class>."""
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from flatten_scores(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
