"""LoveDA: 1024x1024 aerial images of towns and countryside at 0.3 m, 7 classes (Wang et al., NeurIPS 2021 Datasets)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from data_scripts.archive import Archive, members_under
from data_scripts.builder import SegmentationBuilder
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Sample, base_name, keyed, pair

PAGE = "https://zenodo.org/records/5706578"
# In the order of train ids (COLOR_MAP in Semantic_Segmentation/data/loveda.py of github.com/Junjue-Wang/LoveDA).
CLASSES = {
    "background": (255, 255, 255),
    "building": (255, 0, 0),
    "road": (255, 255, 0),
    "water": (0, 0, 255),
    "barren": (159, 129, 183),
    "forest": (0, 255, 0),
    "agricultural": (255, 195, 128),
}


class Builder(SegmentationBuilder):
    """Splits Train and Val, each rural and urban; 0 is no data, and the stored value of a class is its train id + 1."""

    classes = tuple(CLASSES)
    colors = tuple(CLASSES.values())
    downloads = (Download("Train.zip", PAGE), Download("Val.zip", PAGE))
    counts: ClassVar = {"train": 2522, "validation": 1669}
    rule = LabelRule({0: IGNORE} | {train_id + 1: train_id for train_id in range(len(CLASSES))})

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        samples: dict[str, list[Sample]] = {}
        left_out: dict[str, Any] = {}
        for split, archive, folder in zip(cls.counts, archives, ("Train", "Val"), strict=True):
            samples[split], left_out[split] = [], 0
            for area in ("Rural", "Urban"):
                images = members_under(archive, f"{folder}/{area}/images_png/", ".png")
                annotations = members_under(archive, f"{folder}/{area}/masks_png/", ".png")
                paired, unpaired = pair(keyed(images, base_name), keyed(annotations, base_name), allow_partial)
                samples[split] += paired
                left_out[split] += unpaired
        return samples, left_out
