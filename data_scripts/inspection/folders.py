"""What folders of images and labels hold, and the recipe that fits them: pairs, label kind, values, classes, crop."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_scripts.archive_formats import Reader
from data_scripts.cityscapes import CLASSES as CITYSCAPES
from data_scripts.class_files import find_names
from data_scripts.counts import Pair, wrong_size
from data_scripts.errors import DatasetError
from data_scripts.images import check_image, decode_labels
from data_scripts.inspection.pairing import match_pairs

STORED = {"ids": "numbers", "palette": "palette indices", "colors": "RGB colours"}  # ways to store labels
MAX_CLASSES = 200  # distinct values beyond which a map holds no classes but pictures


@dataclass
class Found:
    """What was found in pairs of images and label maps.

    Attributes:
        read: gives the bytes of one of `pairs`.
        pairs: by split, the images and label maps that belong together: members of archives, or rows of a dataset.
        image_suffix, label_suffix: how the files of a pair end behind what they share.
        kind: ids, palette, colors or binary.
        values: pixels of each stored value (a packed colour where `kind` is colors), over all pairs.
        values_of: the values of each of `pairs`.
        sizes: how many images have each (height, width).
        turned: those of `pairs` whose image is to be turned by its EXIF, which nothing does.
        unpaired: by split, files that are left out because they have no partner.
        problems: files that cannot be used, as sentences.
        names: class names by stored value, where a palette or a file has them; `names_from` says which.
    """

    read: Callable[[Any], Pair]
    pairs: dict[str, list[Any]] = field(default_factory=dict)
    image_suffix: str = ""
    label_suffix: str = ""
    kind: str = "ids"
    values: Counter[int] = field(default_factory=Counter)
    values_of: dict[Any, frozenset[int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    turned: list[Any] = field(default_factory=list)
    unpaired: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    names_from: str = ""
    value_sets: dict[frozenset[int], frozenset[int]] = field(default_factory=dict)  # one in memory for many pairs

    def look_at_labels(self) -> None:
        """Read every pair: sizes, kind, values and problems.

        Raises:
            DatasetError: no label map can be read, or they hold no classes.
        """
        self._count_values()
        if not self.values:
            raise DatasetError("\n".join(self.problems) or "No label map can be read: check the files.")
        if len(self.values) > MAX_CLASSES:
            raise DatasetError(
                f"The label maps hold {len(self.values):,} different "
                f"{'colours' if self.kind == 'colors' else 'values'}, so they are pictures, or were saved with loss or "
                "smoothing: save them as PNG, without antialiasing."
            )
        if self.kind != "colors" and set(self.values) <= {0, 255} and 255 in self.values:
            self.kind = "binary"

    def _count_values(self) -> None:
        """Read every pair, and set the kind of the labels and their values."""
        counts: dict[str, Counter[int]] = {kind: Counter() for kind in STORED}
        samples: dict[str, dict[str, Any]] = {kind: {} for kind in STORED}  # by the label map's name
        for sample in (sample for samples in self.pairs.values() for sample in samples):
            try:
                pair = self.read(sample)
                kind = stored_kind(pair)
                counts[kind].update(self._look_at(pair, kind == "colors", sample))
                samples[kind][str(pair.annotation_name)] = sample
            except DatasetError as error:
                self.problems.append(str(error))
        if samples["colors"] and samples["ids"]:  # palette maps are both
            odd, most = sorted(("colors", "ids"), key=lambda kind: len(samples[kind]))
            sentence = f"holds {STORED[odd]} and others {STORED[most]}: store it as those."
            self.problems += [f"{name} {sentence}" for name in samples.pop(odd)]
        self.kind = next((kind for kind in ("colors", "palette") if samples.get(kind)), "ids")
        if self.kind == "colors":
            for sample in samples["palette"].values():
                counts["colors"].update(self._count(stored_labels(self.read(sample), True), sample))
        self.values = counts["colors"] if self.kind == "colors" else counts["palette"] + counts["ids"]

    def _look_at(self, pair: Pair, colors: bool, sample: Any) -> Counter[int]:
        """Note the sizes of a pair; returns the pixels of each value."""
        if pair.image is None or pair.annotation is None:
            raise DatasetError(f"{pair.image_name} has no image or no label map: fill or remove the row.")
        info = check_image(pair.image, pair.image_name)
        raw = stored_labels(pair, colors)
        if raw.shape != (info.height, info.width):
            self.problems.append(wrong_size(pair, raw, info))
        self.sizes[info.height, info.width] += 1
        if info.turned:
            self.turned.append(sample)
        return self._count(raw, sample)

    def _count(self, raw: np.ndarray, sample: Any) -> Counter[int]:
        """The pixels of each value of an (H, W) label map, and a note of the values."""
        values, counts = np.unique(raw, return_counts=True)
        there = frozenset(values.tolist())
        self.values_of[sample] = self.value_sets.setdefault(there, there)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def stored_kind(pair: Pair) -> str:
    """How a label map is stored: colors, palette or ids; ids where it cannot be read, which is said elsewhere."""
    try:
        mode = Image.open(io.BytesIO(pair.annotation)).mode if isinstance(pair.annotation, bytes) else ""
    except Exception:  # it is read again, by what says why
        mode = ""
    return {"RGB": "colors", "RGBA": "colors", "P": "palette"}.get(mode, "ids")


def stored_labels(pair: Pair, colors: bool) -> np.ndarray:
    """The (H, W) integers of a pair's label map; packed RGB with `colors`."""
    if isinstance(pair.annotation, np.ndarray):
        return pair.annotation
    assert pair.annotation is not None
    return decode_labels(pair.annotation, pair.annotation_name, colors)


def inspect_folders(
    places: Mapping[str, tuple[str, str]],
    reader: Reader,
    suffixes: Mapping[str, str] | None = None,
    allow_partial: bool = False,
) -> Found:
    """Look at all pairs of each split, (images folder, labels folder), and read every label map.

    Args:
        suffixes: image_suffix and label_suffix, which are guessed where neither is given.
        allow_partial: whether files without a partner are left out, and no problems.

    Raises:
        DatasetError: there are no pairs, or no label map can be read.
    """
    found = Found(lambda pair: Pair(pair[0], reader.read(pair[0]), pair[1], reader.read(pair[1])))
    for split, folders in places.items():
        matched = match_pairs(*folders, suffixes or {})
        if found.pairs and (found.image_suffix, found.label_suffix) != matched.suffixes:
            raise DatasetError(f"The files of {split} are named in another way than those of train: rename them alike.")
        found.pairs[split], (found.image_suffix, found.label_suffix) = matched.pairs, matched.suffixes
        found.problems += matched.doubled
        if allow_partial:
            found.unpaired[split] = len(matched.unpaired)
        else:
            found.problems += matched.unpaired
    found.look_at_labels()
    name_classes(found, places)
    return found


def name_classes(found: Found, places: Mapping[str, tuple[str, str]]) -> None:
    """Name the values from a file beside the folders, or from a known colour list."""
    near = [folder for pair in places.values() for place in map(Path, pair) for folder in (place, *place.parents[:2])]
    folders = sorted(dict.fromkeys(near), key=lambda folder: -len(folder.parts))
    found.names, found.names_from = find_names(folders, found.values, found.kind == "colors")
    if found.names:
        return
    cityscapes = {name: (label_id, color) for name, (label_id, color) in CITYSCAPES.items()}
    if found.kind == "colors":
        known = {red << 16 | green << 8 | blue: name for name, (_, (red, green, blue)) in cityscapes.items()}
        if sum(value in known for value in found.values) > len(found.values) / 2:
            found.names, found.names_from = known, "Cityscapes' colours"
    elif "labelIds" in found.label_suffix:
        found.names = {label_id: name for name, (label_id, _) in cityscapes.items()}
        found.names_from = "Cityscapes' label ids"
