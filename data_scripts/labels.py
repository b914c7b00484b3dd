"""Label rules: from the numbers stored in a dataset's label images to train ids; and colours for those ids."""

from __future__ import annotations

from collections.abc import Mapping
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

IGNORE = 255


def default_colors(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """An 8-bit RGB colour for each class: hues a golden ratio apart, of changing brightness."""
    hsv = [(c * 0.618034 % 1, (0.8, 0.5)[c // 3 % 2], (0.92, 0.65, 0.43)[c % 3]) for c in range(num_classes)]
    return tuple(tuple(round(255 * channel) for channel in hsv_to_rgb(*color)) for color in hsv)


class Mapped(NamedTuple):
    """(H, W) uint8 train ids, the raw values that occur, and the pixels of each that is not named (255 in `labels`)."""

    labels: np.ndarray
    values: np.ndarray
    unknown: dict[int, int]


@dataclass(frozen=True)
class LabelRule:
    """Raw value -> train id; `others` is the train id of values not named, None if they are an error.

    With `colors` the raw values are RGB colours: (r, g, b), or packed as `images.decode_labels` does.
    """

    train_ids: Mapping[Any, int]
    others: int | None = None
    colors: bool = False

    def __post_init__(self) -> None:
        packed = {
            raw[0] << 16 | raw[1] << 8 | raw[2] if isinstance(raw, tuple) else raw: train_id
            for raw, train_id in self.train_ids.items()
        }
        object.__setattr__(self, "train_ids", packed)

    def __call__(self, raw: np.ndarray) -> Mapped:
        """Train ids of a raw label map (H, W) of integers."""
        if raw.dtype == np.uint8:
            counts = np.bincount(raw.reshape(-1), minlength=256)
            values, inverse = np.flatnonzero(counts), None
            counts = counts[values]
        else:
            values, inverse, counts = np.unique(raw, return_inverse=True, return_counts=True)
        found = [self.train_ids.get(int(value), self.others) for value in values]
        unknown = {int(v): int(n) for v, n, train_id in zip(values, counts, found, strict=True) if train_id is None}
        ids = np.array([IGNORE if train_id is None else train_id for train_id in found], dtype=np.uint8)
        if inverse is not None:
            labels = ids[inverse].reshape(raw.shape)
        else:
            table = np.full(256, IGNORE, dtype=np.uint8)
            table[values] = ids
            labels = table[raw]
        return Mapped(labels, values, unknown)
