"""ACDC: 1920x1080 street scenes in fog, at night, in rain and in snow, with Cityscapes' 19 classes.

Sakaridis, Dai and Van Gool, ICCV 2021. Its validation split tells how far a model gets that was trained on Cityscapes,
in fair weather.
"""

from typing import ClassVar

from data_scripts.builder import SegmentationBuilder
from data_scripts.cityscapes import COLORS, LABEL_IDS, NAMES
from data_scripts.listing import Download, Files

PAGE = "https://acdc.vision.ee.ethz.ch/download (after registration)"
CONDITIONS = {"fog": 100, "night": 106, "rain": 100, "snow": 100}  # validation images


class Builder(SegmentationBuilder):
    """The validation split of all four conditions; labelIds without a train id are ignored, as in Cityscapes."""

    classes = NAMES
    colors = COLORS
    downloads = (Download("rgb_anon_trainvaltest.zip", PAGE), Download("gt_trainval.zip", PAGE))
    counts: ClassVar = {"validation": sum(CONDITIONS.values())}
    pairs: ClassVar = {
        "validation": [
            (Files(0, f"rgb_anon/{name}/val/", "_rgb_anon.png"), Files(1, f"gt/{name}/val/", "_gt_labelIds.png"))
            for name in CONDITIONS
        ]
    }
    rule = LABEL_IDS
