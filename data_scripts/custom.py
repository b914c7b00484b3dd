"""What a user says of their own dataset: the keys of data.custom, for `folder` and `hub`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from data_scripts.errors import DatasetError
from data_scripts.labels import IGNORE, LabelRule, default_colors


@dataclass(frozen=True)
class Custom:
    """The keys of data.custom; the first four belong to both datasets.

    classes: names, in the order of train ids.
    colors: one [r, g, b] a class, for pictures; None: evenly spread hues.
    ignore_id: the stored label value that is not trained on; None: there is none.
    label_mapping: stored label value, or "r,g,b" where labels are colours, to train id or 255 (ignore); None: stored
        values are train ids.
    folder: *_images and *_labels are folders in data.root, or inside an archive there ("my.zip/images/train"); an
        image and a label belong together when their paths agree after their suffixes ("": any ending) are cut off.
    hub: `path` is a folder (in data.root or not) or a name on the Hub, `config` and `revision` are load_dataset's.
    """

    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignore_id: int | None = IGNORE
    label_mapping: dict[int | str, int] | None = None
    train_images: str | None = None
    train_labels: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    image_suffix: str = ""
    label_suffix: str = ""
    path: str | None = None
    config: str | None = None
    revision: str | None = None
    train_split: str | None = "train"
    val_split: str | None = "validation"
    image_column: str = "image"
    label_column: str = "annotation"

    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """One 8-bit RGB colour a class."""
        if self.colors is not None:
            return tuple(tuple(color) for color in self.colors)
        return default_colors(len(self.classes))

    def rule(self) -> LabelRule:
        """The rule of `label_mapping` and `ignore_id`."""
        ids = self.label_mapping
        if ids is None:
            ids = {train_id: train_id for train_id in range(len(self.classes))}
        by_color = [isinstance(key, str) and "," in key for key in ids]
        if any(by_color) and not all(by_color):
            raise DatasetError("data.custom.label_mapping mixes numbers and colours: name all labels by one of them.")
        colors = any(by_color)
        train_ids = {raw_value(key): train_id for key, train_id in ids.items()}
        if self.ignore_id is not None and not colors:
            train_ids.setdefault(self.ignore_id, IGNORE)
        return LabelRule(train_ids, colors=colors)


def raw_value(key: int | str) -> int:
    """A key of label_mapping as the number that a label image stores; r * 65536 + g * 256 + b for "r,g,b"."""
    try:
        parts = [int(part) for part in str(key).split(",")]
    except ValueError:
        parts = []
    if len(parts) == 1:
        return parts[0]
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise DatasetError(f"data.custom.label_mapping has the key {key!r}: write a number or 'r,g,b' in 0..255.")
    return parts[0] << 16 | parts[1] << 8 | parts[2]


def parse_custom(keys: Mapping[str, Any]) -> Custom:
    """Checks the keys of data.custom; raises DatasetError, naming the key and what is right."""
    known = [field.name for field in fields(Custom)]
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise DatasetError(f"data.custom has no key {key!r}: the nearest is {nearest!r}.")
    custom = Custom(**{key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()})
    if custom.label_mapping is not None:
        # YAML gives numbers and a saved recipe strings, but the digest must be the same.
        custom = replace(custom, label_mapping={str(key): value for key, value in custom.label_mapping.items()})
    count = len(custom.classes)
    if not 1 <= count < IGNORE or len(set(custom.classes)) != count:
        raise DatasetError(f"data.custom.classes must hold 1 to {IGNORE - 1} different names: list them by train id.")
    if custom.colors is not None and not all(is_color(color) for color in custom.colors):
        raise DatasetError("data.custom.colors must hold colours [r, g, b] in 0..255: correct it or leave it out.")
    if len(custom.palette()) != count:
        raise DatasetError(
            f"data.custom.colors has {len(custom.palette())} colours for {count} classes: name one each."
        )
    if custom.label_mapping is None and custom.ignore_id is not None and 0 <= custom.ignore_id < count:
        raise DatasetError(
            f"data.custom.ignore_id {custom.ignore_id} is the train id of {custom.classes[custom.ignore_id]!r}: "
            "take a number beyond the classes, or map labels with data.custom.label_mapping."
        )
    for raw, train_id in custom.rule().train_ids.items():
        if not (0 <= train_id < count or train_id == IGNORE):
            raise DatasetError(
                f"data.custom.label_mapping sends {raw} to {train_id}: send it to 0..{count - 1} or {IGNORE} (ignore)."
            )
    return custom


def is_color(color: Any) -> bool:
    """Whether `color` is three whole numbers in 0..255."""
    return len(color) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in color)
