"""What a HuggingFace dataset holds: its splits, its columns of images and label maps, and the names of its classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import datasets

from data_scripts.class_files import reaches
from data_scripts.counts import Pair
from data_scripts.custom import Custom
from data_scripts.errors import DatasetError
from data_scripts.hub import (
    holds_arrays,
    holds_images,
    load_split,
    read_row,
    split_names,
    undecoded,
)
from data_scripts.inspection.folders import Found

VALIDATION = ("validation", "val", "valid", "dev", "eval", "test")  # how people call the split, best first
LABEL_WORDS = ("annotation", "mask", "label", "seg", "gt", "target")  # in the names of columns of label maps


def inspect_hub(path: str, config: str | None, share: float | None) -> tuple[Found, dict[str, Any]]:
    """Look at a dataset and read every label map; also returns the keys of data.custom that say where it is.

    Args:
        path: user/name on the Hub, or a folder.
        share: the share of the training rows that validates; None: a split of the dataset does, where there is one.

    Raises:
        DatasetError: it cannot be read, such as an empty one, or has no columns of images and label maps.
    """
    keys: dict[str, Any] = {"path": path} | ({"config": config} if config else {})
    custom = Custom(**keys)
    names = split_names("/", custom)
    train = "train" if "train" in names else names[0]
    others = [name for name in VALIDATION if name in names and name != train] if share is None else []
    chosen = {"train": train} | ({"validation": others[0]} if others else {})
    loaded = {split: load_split("/", custom, name) for split, name in chosen.items()}
    image, label = guess_columns(loaded["train"].features)
    keys |= {"train_split": train, "val_split": chosen.get("validation"), "image_column": image, "label_column": label}
    rows = {split: undecoded(part, Custom(**keys)) for split, part in loaded.items()}

    def read(sample: tuple[str, int]) -> Pair:
        return read_row(rows[sample[0]], *sample)

    found = Found(read, {split: [(split, row) for row in range(len(part))] for split, part in rows.items()})
    found.look_at_labels()
    # A ClassLabel in a column of its own is of whole images.
    columns = loaded["train"].features.items()
    classes = next(class_names(f for name, f in columns if name == label or not isinstance(f, datasets.ClassLabel)), [])
    # 255 may stand for no class, and a list that does not reach to the values names something else.
    if found.kind not in ("colors", "binary") and reaches(classes, found.values):
        found.names, found.names_from = dict(enumerate(classes)), "the dataset's features"
    return found, keys


def guess_columns(features: datasets.Features) -> tuple[str, str]:
    """The columns of images and of label maps, by their types and names; DatasetError where there are no two."""
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images = typed or [name for name, feature in features.items() if holds_images(feature)]
    arrays = [name for name, feature in features.items() if holds_arrays(feature)]
    named = [name for name in [*images, *arrays] if any(word in name.lower() for word in LABEL_WORDS)]
    labels = [*named, *arrays, *images[1:]]
    photos = [name for name in images if not labels or name != labels[0]]
    if not labels or not photos:
        raise DatasetError(
            f"The dataset has no two columns of images and label maps but {', '.join(features)}: write a recipe with "
            "data.train hub and data.custom.image_column and label_column."
        )
    return photos[0], labels[0]


def class_names(features: Iterable[Any]) -> Iterator[list[str]]:
    """The names of each ClassLabel, however deep it is."""
    for feature in features:
        if isinstance(feature, datasets.ClassLabel):
            yield list(feature.names)
        elif isinstance(feature, dict):
            yield from class_names(feature.values())
        elif hasattr(feature, "feature"):
            yield from class_names([feature.feature])
