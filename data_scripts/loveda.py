"""LoveDA: 1024x1024 aerial images of towns and countryside at 0.3 m, 7 classes (Wang et al., NeurIPS 2021 Datasets)."""

from typing import ClassVar

from data_scripts.builder import SegmentationBuilder
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Files

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
FOLDERS = {"train": ("Train/Rural", "Train/Urban"), "validation": ("Val/Rural", "Val/Urban")}


class Builder(SegmentationBuilder):
    """Splits Train and Val, each rural and urban; 0 is no data, and the stored value of a class is its train id + 1."""

    classes = tuple(CLASSES)
    colors = tuple(CLASSES.values())
    downloads = (Download("Train.zip", PAGE), Download("Val.zip", PAGE))
    counts: ClassVar = {"train": 2522, "validation": 1669}
    pairs: ClassVar = {
        split: [
            (Files(archive, f"{folder}/images_png/", ".png"), Files(archive, f"{folder}/masks_png/", ".png"))
            for folder in folders
        ]
        for archive, (split, folders) in enumerate(FOLDERS.items())
    }
    rule = LabelRule({0: IGNORE} | {train_id + 1: train_id for train_id in range(len(CLASSES))})
