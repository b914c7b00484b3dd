"""ACDC: 1920x1080 street scenes in fog, at night, in rain and in snow, with Cityscapes' 19 classes.

Sakaridis, Dai and Van Gool, ICCV 2021. Its validation split tells how far a model gets that was trained on Cityscapes,
in fair weather.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from data_scripts.archive import Archive, members_under
from data_scripts.builder import SegmentationBuilder
from data_scripts.cityscapes import COLORS, LABEL_IDS, NAMES
from data_scripts.listing import Download, Sample, keyed, pair

PAGE = "https://acdc.vision.ee.ethz.ch/download (after registration)"
CONDITIONS = {"fog": 100, "night": 106, "rain": 100, "snow": 100}  # validation images


class Builder(SegmentationBuilder):
    """The validation split of all four conditions; labelIds without a train id are ignored, as in Cityscapes."""

    classes = NAMES
    colors = COLORS
    downloads = (Download("rgb_anon_trainvaltest.zip", PAGE), Download("gt_trainval.zip", PAGE))
    counts: ClassVar = {"validation": sum(CONDITIONS.values())}
    rule = LABEL_IDS

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        photos, labels = archives
        samples, left_out = [], 0
        for condition in CONDITIONS:
            images = members_under(photos, f"rgb_anon/{condition}/val/", "_rgb_anon.png")
            annotations = members_under(labels, f"gt/{condition}/val/", "_gt_labelIds.png")
            paired, unpaired = pair(keyed(images, frame), keyed(annotations, frame), allow_partial)
            samples += paired
            left_out += unpaired
        return {"validation": samples}, {"validation": left_out}


def frame(name: str) -> str:
    """sequence/sequence_frame_number of a member's name."""
    sequence, file = name.split("/")[-2:]
    return f"{sequence}/{file.removesuffix('_rgb_anon.png').removesuffix('_gt_labelIds.png')}"
