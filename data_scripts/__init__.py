"""Archive -> Arrow: one HF datasets builder per dataset."""

from data_scripts.errors import DatasetError
from data_scripts.prepare import DATASETS, PreparedDataset, class_names, format_report, prepare

__all__ = ["DATASETS", "DatasetError", "PreparedDataset", "class_names", "format_report", "prepare"]
