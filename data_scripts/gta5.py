"""GTA V, "Playing for Data": rendered street scenes with Cityscapes' 19 classes (Richter et al., ECCV 2016)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from data_scripts.archive import Archive
from data_scripts.builder import SegmentationBuilder
from data_scripts.cityscapes import COLORS, LABEL_IDS, NAMES
from data_scripts.listing import Download, Files, Sample, Source, pair_files

PAGE = "https://download.visinf.tu-darmstadt.de/data/from_games/"
PARTS = tuple(
    (Download(f"{part:02}_images.zip", PAGE), Download(f"{part:02}_labels.zip", PAGE)) for part in range(1, 11)
)

logger = logging.getLogger(__name__)


class Builder(SegmentationBuilder):
    """One split, all for training; a label map of another size than its image is resized to it, nearest."""

    classes = NAMES
    colors = COLORS
    downloads = tuple(download for part in PARTS for download in part)
    counts: ClassVar = {"train": 24966}
    rule = LABEL_IDS
    drops_one_value = True
    resizes_labels = True
    missing_hint = ", or set data.allow_partial to train on the pairs that are there"

    @classmethod
    def choose_downloads(cls, source: Source) -> Sequence[Download]:
        """All ten pairs; with `allow_partial` those that are there, the others named in a warning."""
        missing = [download.file for download in cls.downloads if not (Path(source.root) / download.file).exists()]
        whole = [part for part in PARTS if not any(download.file in missing for download in part)]
        if not (missing and whole and source.allow_partial):
            return cls.downloads
        logger.warning("gta5 is prepared without all pairs, because %s are not in %s.", ", ".join(missing), source.root)
        return [download for part in whole for download in part]

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        pairs = [
            (Files(photos, "images/", ".png"), Files(photos + 1, "labels/", ".png"))
            for photos in range(0, len(archives), 2)
        ]
        samples, left_out = pair_files(archives, pairs, allow_partial)
        opened = {Path(archive.path).name for archive in archives}
        missing = [download.file for download in cls.downloads if download.file not in opened]
        return {"train": samples}, {"train": left_out, "archives": missing}
