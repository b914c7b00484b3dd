"""The library: what a program needs of this package, in one place. docs/api.md shows it."""

import os

from benchmark.evaluation.boundary_iou import BoundaryIoU
from benchmark.evaluation.inference import label_image
from benchmark.evaluation.mean_iou import MeanIoU
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting import model_folder
from benchmark.reporting.hub import find_model_folder

__all__ = ["BoundaryIoU", "MeanIoU", "label_image", "load_model"]


def load_model(name: str | os.PathLike) -> SegmentationModel:
    """A trained model on the CPU, in eval mode.

    Args:
        name: a model folder, a run's folder, or user/name on the Hub.

    Raises:
        UserError, ModelError: it is not there, is damaged, or is no model of this project.
    """
    return model_folder.load_model(find_model_folder(os.fspath(name)))
