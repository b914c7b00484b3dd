"""Cityscapes, fine annotations: 2048x1024 street scenes with 19 classes (Cordts et al., CVPR 2016)."""

from typing import ClassVar

from data_scripts.builder import SegmentationBuilder
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Files

# name: (labelId, colour), in the order of train ids (cityscapesScripts, helpers/labels.py)
CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
NAMES = tuple(CLASSES)
COLORS = tuple(color for _, color in CLASSES.values())
LABEL_IDS = LabelRule({label_id: train_id for train_id, (label_id, _) in enumerate(CLASSES.values())}, others=IGNORE)
PAGE = "https://www.cityscapes-dataset.com/downloads/ (after registration)"


class Builder(SegmentationBuilder):
    """Splits train and val; labelIds without a train id are ignored."""

    classes = NAMES
    colors = COLORS
    downloads = (Download("leftImg8bit_trainvaltest.zip", PAGE), Download("gtFine_trainvaltest.zip", PAGE))
    counts: ClassVar = {"train": 2975, "validation": 500}
    pairs: ClassVar = {
        split: [
            (
                Files(0, f"leftImg8bit/{folder}/", "_leftImg8bit.png"),
                Files(1, f"gtFine/{folder}/", "_gtFine_labelIds.png"),
            )
        ]
        for split, folder in (("train", "train"), ("validation", "val"))
    }
    rule = LABEL_IDS
    drops_one_value = True
