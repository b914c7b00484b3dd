"""Sliding-window evaluation of one model on one split."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from benchmark.data.loaders import evaluation_loader
from benchmark.evaluation.boundary_iou import BoundaryIoU
from benchmark.evaluation.evaluator import Evaluator, reduce_over_processes
from benchmark.evaluation.inference import predict_logits
from benchmark.evaluation.mean_iou import MeanIoU
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import WindowLogits, label_map, merged_logits

EVALUATORS = {"mean_iou": MeanIoU, "boundary_iou": BoundaryIoU}


@dataclass(frozen=True)
class Sample:
    """One validation image, all uint8: the image (3, h, w) as the model saw it, its label and prediction (H, W)."""

    index: int
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured, the same on every process.

    Attributes:
        scores: (name, value) pairs of all evaluators.
        counts: by evaluator, the counts of each image: int64 (n, ...) of image, place, count.
        samples: the images of the indices that were asked for.
    """

    scores: dict[str, Any]
    counts: dict[str, np.ndarray]
    samples: list[Sample]

    @property
    def confusions(self) -> np.ndarray:
        """Each image's confusion counts that are not 0: int64 (n, 4) of image, label, prediction, pixels."""
        return self.counts["mean_iou"]

    def confusion(self, num_classes: int) -> np.ndarray:
        """The confusion matrix of the whole split: int64 (label, prediction), in pixels."""
        matrix = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(matrix, (self.confusions[:, 1], self.confusions[:, 2]), self.confusions[:, 3])
        return matrix


def evaluate(
    model: SegmentationModel,
    split: Dataset,
    classes: Sequence[str],
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    sample_indices: Sequence[int] = (),
    any_process: Callable[[bool], bool] | None = None,
) -> Evaluation:
    """Score `model` on `split`, each image once whatever the number of processes.

    Args:
        model: unwrapped; its configuration says the crop and the normalisation.
        batch_size: windows in one forward pass.
        sample_indices: images to return with their predictions.
        any_process: as in `inference.predict_logits`.
    """
    device = accelerator.device
    loader = evaluation_loader(
        split,
        crop_size=tuple(model.config.crop_size),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=num_workers,
    )
    evaluators = {name: evaluator(classes) for name, evaluator in EVALUATORS.items()}
    indices, samples = [], []
    was_training = model.training
    model.eval()
    for item, logits in predict_logits(
        model,
        ((item, item["pixel_values"]) for item in loader),
        batch_size=batch_size,
        device=device,
        autocast=accelerator.autocast,
        any_process=any_process,
    ):
        prediction = count_image(evaluators.values(), logits, item["labels"].to(device, non_blocking=True))
        indices.append(item["index"])
        if item["index"] in sample_indices:
            arrays = (item["pixel_values"], item["labels"], prediction)
            samples.append(Sample(item["index"], *(array.cpu().numpy() for array in arrays)))
    model.train(was_training)

    counts = {name: reduce_over_processes(e, indices, accelerator) for name, e in evaluators.items()}
    scores: dict[str, Any] = {}
    for name, evaluator in evaluators.items():
        own = evaluator.compute()
        if taken := scores.keys() & own.keys():
            raise ValueError(f"{name} names a score as another metric does ({', '.join(sorted(taken))}): rename it.")
        scores |= own
    return Evaluation(scores, counts, sorted(gather_object(samples), key=lambda sample: sample.index))


def count_image(evaluators: Iterable[Evaluator], logits: WindowLogits, reference: Tensor) -> Tensor:
    """Fold one image into the counts of all evaluators; return its label map (H, W), uint8.

    Args:
        reference: (H, W) uint8 on the logits' device, 255 = ignore.
    """
    prediction = label_map(logits, reference.shape)
    for evaluator in evaluators:
        merged = merged_logits(logits, reference.shape) if evaluator.needs_logits else None
        evaluator.add(prediction=prediction, reference=reference, logits=merged)
    return prediction
