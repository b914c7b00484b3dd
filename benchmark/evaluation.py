"""Sliding-window evaluation of one model on one split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from benchmark.data import evaluation_loader
from benchmark.mean_iou import MeanIoU, confusion_matrix
from benchmark.models.modeling import SegmentationModel, semantic_logits
from benchmark.models.windows import label_map, normalize, pooled_windows


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
        scores: as `mean_iou.scores` gives them.
        confusions: one row a nonzero entry of an image's confusion matrix: image, label, prediction, pixels; int64
            (n, 4).
        samples: the images of the indices that were asked for.
    """

    scores: dict
    confusions: np.ndarray
    samples: list[Sample]

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
    any_working: Callable[[bool], bool] = bool,
) -> Evaluation:
    """Score `model` on `split`, each image once whatever the number of processes.

    Args:
        model: unwrapped; its configuration says the crop and the normalisation.
        batch_size: windows in one forward.
        sample_indices: images to hand back with their predictions.
        any_working: called before each forward with whether this process has windows left; what it hands back says
            whether any process has. One that agrees over the processes keeps their forwards equal in number, which
            sharded models need, and may end the evaluation by an exception.
    """
    config, device = model.config, accelerator.device
    crop = tuple(config.crop_size)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    loader = evaluation_loader(split, crop_size=crop, rank=rank, world_size=world_size, num_workers=num_workers)
    metric = MeanIoU(classes)
    confusions, samples = [], []

    def forward(windows: Tensor) -> Tensor:
        any_working(True)
        return logits_of(windows)

    def logits_of(windows: Tensor) -> Tensor:
        pixel_values = normalize(windows, config.image_mean, config.image_std)
        with accelerator.autocast():
            outputs = model(pixel_values=pixel_values)
        return semantic_logits(outputs, crop)

    def images():
        for item in loader:
            yield item, item["pixel_values"].to(device, non_blocking=True)

    was_training = model.training
    model.eval()
    with torch.no_grad():
        for item, logits in pooled_windows(images(), forward, crop, batch_size):
            prediction = label_map(logits, item["labels"].shape)
            label = item["labels"].to(device, non_blocking=True)
            confusion = confusion_matrix(prediction, label, len(classes)).cpu()
            metric.confusion += confusion
            confusions.append(_sparse(item["index"], confusion))
            if item["index"] in sample_indices:
                arrays = (item["pixel_values"], item["labels"], prediction)
                samples.append(Sample(item["index"], *(array.cpu().numpy() for array in arrays)))
        while any_working(False):
            logits_of(torch.zeros(batch_size, 3, *crop, dtype=torch.uint8, device=device))
    model.train(was_training)

    metric.confusion = accelerator.reduce(metric.confusion.to(device), "sum").cpu()
    rows = np.concatenate([*gather_object(confusions), np.zeros((0, 4), np.int64)])
    return Evaluation(
        scores=metric.compute(),
        confusions=rows[np.lexsort(rows.T[::-1])],
        samples=sorted(gather_object(samples), key=lambda sample: sample.index),
    )


def _sparse(index: int, confusion: Tensor) -> np.ndarray:
    label, prediction = confusion.nonzero(as_tuple=True)
    columns = (torch.full_like(label, index), label, prediction, confusion[label, prediction])
    return torch.stack(columns, dim=1).numpy()


def format_table(scores: dict) -> str:
    """The IoU of each class and their mean, in per cent, as a table to print."""
    rows = [*scores["iou"].items(), ("mean IoU", scores["mean_iou"]), ("pixel accuracy", scores["pixel_accuracy"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {'-' if value is None else f'{100 * value:.2f}':>6}" for name, value in rows]
    lines.insert(len(scores["iou"]), "-" * (width + 8))
    if scores["absent_classes"]:
        lines.append(f"left out of the mean, having neither label nor prediction: {scores['absent_classes']} classes")
    return "\n".join(lines)
