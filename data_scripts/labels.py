"""Label rules: from the numbers stored in a dataset's label images to train ids; and colours for those ids."""

from __future__ import annotations

from collections.abc import Mapping
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np

from data_scripts.errors import DatasetError

IGNORE = 255


def default_colors(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """An 8-bit RGB colour for each class: hues a golden ratio apart, of changing brightness."""
    hsv = [(c * 0.618034 % 1, (0.8, 0.5)[c // 3 % 2], (0.92, 0.65, 0.43)[c % 3]) for c in range(num_classes)]
    return tuple(tuple(round(255 * channel) for channel in hsv_to_rgb(*color)) for color in hsv)


@dataclass(frozen=True)
class LabelRule:
    """Raw value -> train id; `others` is the train id of values not named, None if they are an error.

    With `colors` the raw values are RGB colours packed by `images.decode_labels`.
    """

    train_ids: Mapping[int, int]
    others: int | None = None
    colors: bool = False

    def __call__(self, raw: np.ndarray, where: object) -> tuple[np.ndarray, bool]:
        """((H, W) uint8 train ids, whether the raw map has one single value); DatasetError at a value out of range."""
        if raw.dtype == np.uint8:
            values, inverse = np.flatnonzero(np.bincount(raw.reshape(-1), minlength=256)), None
        else:
            values, inverse = np.unique(raw, return_inverse=True)
        ids = np.array([self._train_id(int(value), where) for value in values], dtype=np.uint8)
        if inverse is not None:
            return ids[inverse].reshape(raw.shape), len(values) == 1
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[values] = ids
        return table[raw], len(values) == 1

    def _train_id(self, value: int, where: object) -> int:
        train_id = self.train_ids.get(value, self.others)
        if train_id is None:
            shown = f"colour {value >> 16},{value >> 8 & 255},{value & 255}" if self.colors else f"value {value}"
            raise DatasetError(
                f"{where} holds the label {shown}, which is outside the range of classes: correct the label."
            )
        return train_id
