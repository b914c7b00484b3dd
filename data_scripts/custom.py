"""What a user says of their own dataset: the keys of data.custom, for `folder` and `hub`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from data_scripts.errors import DatasetError
from data_scripts.labels import IGNORE, LabelRule, default_colors


def key(default: Any, about: str) -> Any:
    """A key: its default, and what it means."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Custom:
    """The keys of data.custom: what they say of a dataset, for `folder` and `hub` or for one of them."""

    name: str | None = key(None, "what the dataset is called in results; null: folder or hub")
    classes: tuple[str, ...] = key((), "names, in the order of train ids")
    colors: tuple[tuple[int, int, int], ...] | None = key(
        None,
        "one [r, g, b] a class, for pictures; null: those of label_mapping where it names colours, else spread hues",
    )
    ignore_id: int | None = key(IGNORE, "the stored label value that is not trained on; null: there is none")
    label_mapping: dict[int | str, int] | None = key(
        None,
        "stored label value, or 'r,g,b' or [r, g, b] where labels are colours, to train id or 255 (ignore); null: "
        "stored values are train ids",
    )
    allow_absent: tuple[str, ...] = key((), "classes that may have no pixel in the training split")
    val_share: float | None = key(
        None, "share of the training pairs that validates where no other pairs do; null: none"
    )
    split_seed: int = key(0, "decides which pairs these are")
    train_images: str | None = key(
        None, "folder: a folder in data.root, or inside an archive there, such as my.zip/images/train"
    )
    train_labels: str | None = key(None, "folder: the label maps of these images")
    train_list: str | None = key(None, "folder: a text file in data.root with a stem or path a line; null: all pairs")
    val_images: str | None = key(None, "folder: as train_images")
    val_labels: str | None = key(None, "folder: as train_labels")
    val_list: str | None = key(None, "folder: as train_list")
    image_suffix: str = key("", "folder: how images end behind the path that a pair shares; '': any ending")
    label_suffix: str = key("", "folder: how label maps end behind it")
    path: str | None = key(None, "hub: a folder, in data.root or not, or user/name on the Hub")
    config: str | None = key(None, "hub: the configuration, as load_dataset takes it")
    revision: str | None = key(None, "hub: the revision, as load_dataset takes it")
    train_split: str | None = key("train", "hub: the split to train on; null: none")
    val_split: str | None = key("validation", "hub: the split to validate on; null: none")
    image_column: str = key("image", "hub: the column of the images")
    label_column: str = key("annotation", "hub: the column of the label maps")

    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """One 8-bit RGB colour a class."""
        if self.colors is not None:
            return tuple((red, green, blue) for red, green, blue in self.colors)
        colors = list(default_colors(len(self.classes)))
        rule = self.rule()
        if rule.colors:
            for raw, train_id in reversed(list(rule.train_ids.items())):  # of several colours of a class, the first
                if train_id != IGNORE:
                    colors[train_id] = (raw >> 16, raw >> 8 & 255, raw & 255)
        return tuple(colors)

    def rule(self) -> LabelRule:
        """The rule of `label_mapping` and `ignore_id`."""
        ids = self.label_mapping
        if ids is None:
            ids = {train_id: train_id for train_id in range(len(self.classes))}
        by_color = [isinstance(key, str) and "," in key for key in ids]
        if any(by_color) and not all(by_color):
            raise DatasetError("data.custom.label_mapping mixes numbers and colours: name all labels by one of them.")
        colors = any(by_color)
        train_ids: dict[int, int] = {}
        for key, train_id in ids.items():
            raw = raw_value(key)
            if raw in train_ids:
                raise DatasetError(f"data.custom.label_mapping names {key!r} twice, in two ways: remove one of them.")
            train_ids[raw] = train_id
        if self.ignore_id is not None and not colors:
            train_ids.setdefault(self.ignore_id, IGNORE)
        return LabelRule(train_ids, colors=colors)


def raw_value(key: int | str) -> int:
    """A key of label_mapping as the number that a label image stores; r * 65536 + g * 256 + b for "r,g,b"."""
    try:
        parts = [int(part) for part in str(key).strip("[]() ").split(",")]
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
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"the nearest is {nearest[0]!r}." if nearest else f"its keys are {', '.join(known)}."
            raise DatasetError(f"data.custom has no key {key!r}: {hint}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    custom = Custom(**values)
    if custom.label_mapping is not None:
        custom.rule()  # before keys that differ as numbers and strings become one
        # YAML gives numbers and a saved recipe strings, but the digest must be the same.
        custom = replace(custom, label_mapping={str(key): value for key, value in custom.label_mapping.items()})
    count = len(custom.classes)
    if count == 1:
        raise DatasetError(
            f"data.custom.classes holds {custom.classes[0]!r} alone, and a score over one class is 100 % whatever a "
            "model does: name every class, the background too, and check that the label maps hold more than one value."
        )
    if not 2 <= count < IGNORE or len(set(custom.classes)) != count:
        raise DatasetError(f"data.custom.classes must hold 2 to {IGNORE - 1} different names: list them by train id.")
    if custom.colors is not None and not all(is_color(color) for color in custom.colors):
        raise DatasetError("data.custom.colors must hold colours [r, g, b] in 0..255: correct it or leave it out.")
    for raw, train_id in custom.rule().train_ids.items():
        if not (0 <= train_id < count or train_id == IGNORE):
            raise DatasetError(
                f"data.custom.label_mapping sends {raw} to {train_id}: send it to 0..{count - 1} or {IGNORE} (ignore)."
            )
    if len(custom.palette()) != count:
        raise DatasetError(
            f"data.custom.colors has {len(custom.palette())} colours for {count} classes: name one each."
        )
    if custom.label_mapping is None and custom.ignore_id is not None and 0 <= custom.ignore_id < count:
        raise DatasetError(
            f"data.custom.ignore_id {custom.ignore_id} is the train id of {custom.classes[custom.ignore_id]!r}: "
            "take a number beyond the classes, or map labels with data.custom.label_mapping."
        )
    for name in custom.allow_absent:
        if name not in custom.classes:
            raise DatasetError(f"data.custom.allow_absent names {name!r}, which is no class: take it from classes.")
    if custom.val_share is not None and not 0 < custom.val_share < 1:
        raise DatasetError(f"data.custom.val_share must be between 0 and 1, not {custom.val_share}.")
    return custom


def is_color(color: Any) -> bool:
    """Whether `color` is three whole numbers in 0..255."""
    return len(color) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in color)
