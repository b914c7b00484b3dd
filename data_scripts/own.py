"""What `folder` and `hub` datasets have in common: every image counts, and is checked before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np

from data_scripts.builder import SegmentationBuilder
from data_scripts.counts import Counts
from data_scripts.custom import Custom
from data_scripts.errors import DatasetError
from data_scripts.labels import IGNORE


class OwnBuilder(SegmentationBuilder):
    """Base of the builders of people's own data; `listing.options` are the keys of data.custom."""

    mapping: ClassVar[str] = "data.custom.label_mapping"
    VERSION = datasets.Version("1.2.0")  # raise it when a check is added: what was built before it is built again

    def check_counts(self, counts: Mapping[str, Counts]) -> None:
        custom = Custom(**self.listing.options)
        values = set().union(*(part.values for part in counts.values()))
        if custom.label_mapping is None and IGNORE in values and custom.ignore_id == IGNORE:
            others = sorted(values - {IGNORE})
            if len(others) <= 1:
                shown = f"{others[0]} and 255" if others else "255 alone"
                mapping = "{0: 0, 255: 1}" if others in ([], [0]) else f"{{{others[0]}: 0, 255: 1}}"
                raise DatasetError(
                    f"The label maps hold {shown}, so 255 may be a class and not 'ignore': set "
                    f"data.custom.label_mapping to {mapping} if it is one, or to "
                    f"{{{others[0] if others else 0}: 0, 255: 255}} if it is not."
                )
        super().check_counts(counts)
        if "train" in counts:
            pixels = counts["train"].pixels[: len(custom.classes)]
            absent = [name for name, count in zip(custom.classes, pixels, strict=True) if count == 0]
            absent = [name for name in absent if name not in custom.allow_absent]
            if absent:
                raise DatasetError(
                    f"No pixel of the training split is {' or '.join(absent)}: correct data.custom.classes, "
                    "label_mapping or ignore_id, or name what may be missing in data.custom.allow_absent."
                )
        if "train" in counts and "validation" in counts:
            check_apart(counts["train"].places, counts["validation"].places, custom.val_share is not None)


def check_apart(train: Mapping[int, str], validation: Mapping[int, str], drawn: bool) -> None:
    """Refuse images that are in both splits, byte for byte: their scores would say nothing of other images.

    Args:
        train, validation: where an image is, by the sum of its bytes.
        drawn: whether data.custom.val_share divided them.

    Raises:
        DatasetError: there are some.
    """
    shared = sorted((validation[content], train[content]) for content in train.keys() & validation.keys())
    if not shared:
        return
    named = "; ".join(f"{there} and {here}" for there, here in shared[:3])
    if drawn:
        raise DatasetError(
            f"{len(shared):,} image(s) are duplicates, of which data.custom.val_share put one into validation and one "
            f"into training, so that the score would be too high, such as {named}: keep one file of each."
        )
    raise DatasetError(
        f"{len(shared):,} validation image(s) are training images too, byte for byte, so that the score would be too "
        f"high, such as {named}: remove them from one split, or set data.custom.val_share in place of a validation "
        "split."
    )


def draw_split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which of `count` samples train and which validate: a seeded draw; both in order.

    Raises:
        DatasetError: there are too few.
    """
    if count < 2:
        raise DatasetError(f"data.custom.val_share cannot split {count} image(s): add some.")
    chosen = np.random.default_rng(seed).permutation(count)[: min(max(1, round(share * count)), count - 1)]
    validation = set(chosen.tolist())
    return [i for i in range(count) if i not in validation], sorted(validation)


def share_out(samples: dict[str, Sequence[Any]], custom: Custom) -> dict[str, Sequence[Any]]:
    """The splits, with a validation split drawn from the training samples where data.custom.val_share says so."""
    if custom.val_share is None:
        return samples
    if "validation" in samples or "train" not in samples:
        raise DatasetError(
            "data.custom.val_share needs training pairs and no validation pairs: remove one of the keys."
        )
    train, validation = draw_split(len(samples["train"]), custom.val_share, custom.split_seed)
    rows = samples["train"]
    return {"train": [rows[i] for i in train], "validation": [rows[i] for i in validation]}
