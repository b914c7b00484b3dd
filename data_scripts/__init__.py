"""Archive -> Arrow: one HF datasets builder per dataset."""

from data_scripts.errors import DatasetError
from data_scripts.preparation import DATASETS, PreparedDataset, class_names, prepare
from data_scripts.report import format_report

__all__ = ["DATASETS", "DatasetError", "PreparedDataset", "class_names", "format_report", "prepare"]
