"""PASCAL VOC 2012 segmentation, without SBD's extra labels: 21 classes (Everingham et al., IJCV 2015)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from data_scripts.archive import Archive, Member, natural_order
from data_scripts.builder import SegmentationBuilder
from data_scripts.errors import DatasetError
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Sample

NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
FOLDER = "VOCdevkit/VOC2012/"


def voc_color(index: int) -> tuple[int, int, int]:
    """The official colour of a palette index: its bits, dealt to r, g, b from the top (VOClabelcolormap.m)."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return tuple(color)


class Builder(SegmentationBuilder):
    """The splits of ImageSets/Segmentation; labels are palette indices, 255 is the void border."""

    classes = tuple(NAMES.split())
    colors = tuple(voc_color(index) for index in range(21))
    downloads = (
        Download(
            "VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        ),
    )
    counts: ClassVar = {"train": 1464, "validation": 1449}
    rule = LabelRule({**{index: index for index in range(21)}, 255: IGNORE})
    drops_one_value = True

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        (archive,) = archives
        samples = {
            split: listed_samples(archive, f"{FOLDER}ImageSets/Segmentation/{file}")
            for split, file in (("train", "train.txt"), ("validation", "val.txt"))
        }
        return samples, {}


def listed_samples(archive: Archive, list_name: str) -> list[Sample]:
    """The pairs that a split's list names; DatasetError where the archive lacks one of them."""
    samples = []
    for name in archive.read(list_name).decode("ascii", errors="replace").split():
        image = Member(archive.path, f"{FOLDER}JPEGImages/{name}.jpg")
        annotation = Member(archive.path, f"{FOLDER}SegmentationClass/{name}.png")
        for member in (image, annotation):
            if member.name not in archive.entries:
                raise DatasetError(f"{member} is missing, though {list_name} names it: download the archive again.")
        samples.append(Sample(image, annotation))
    return sorted(samples, key=lambda sample: natural_order(sample.image))
