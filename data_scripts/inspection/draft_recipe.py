"""The recipe that fits what was found in folders of images and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_scripts.errors import DatasetError
from data_scripts.inspection.folders import Found
from data_scripts.labels import IGNORE

COMMON_CROPS = (128, 256, 352, 512, 768, 1024)


def draft_recipe(found: Found, asked: Mapping[str, Any] | None = None) -> tuple[dict, list[str]]:
    """data.custom for what was found, and what it assumes, as comments.

    Args:
        asked: keys of data.custom that the user gives; ignore_id says what 255 is.

    Raises:
        DatasetError: 255 may be a class or may be ignored.
    """
    notes, values, asked = [], sorted(found.values), asked or {}
    custom: dict = {}
    if found.kind == "binary" and asked.get("ignore_id") != IGNORE:
        classes = [found.names.get(0, "background"), found.names.get(255, "object")]
        custom |= {"classes": classes, "label_mapping": {0: 0, 255: 1}}
        notes.append(
            f"Assumed: masks of 0 and 255 are {classes[0]} and {classes[1]}. Without the mapping 255 would be ignored."
        )
    elif found.kind == "colors":
        classes = []
        mapping: dict[str, int] = {}
        for value in values:
            key = f"{value >> 16},{value >> 8 & 255},{value & 255}"
            if found.names and value not in found.names:
                mapping[key] = IGNORE
                notes.append(f"Assumed: the colour {key}, which {found.names_from} does not name, is ignored.")
            elif not found.names and value in (0, 0xFFFFFF) and len(values) > 2 and is_rim(found, value):
                mapping[key] = IGNORE
                notes.append(f"Assumed: the colour {key} is void and ignored, because it has few pixels.")
            else:
                mapping[key] = len(classes)
                classes.append(found.names.get(value, f"color {key}"))
        custom |= {"classes": merge_names(classes), "label_mapping": mapping}
    else:
        ignores = IGNORE in values and is_ignored(found, asked)
        known = [value for value in values if value != IGNORE or not ignores]
        if found.names:
            named = [value for value in known if value in found.names]
            unnamed = [value for value in known if value not in found.names]
            custom["classes"] = merge_names([found.names[value] for value in named])
            if named != list(range(len(named))) or unnamed:
                custom["label_mapping"] = {value: index for index, value in enumerate(named)}
                custom["label_mapping"] |= dict.fromkeys(unnamed, IGNORE)
            for value in unnamed:
                notes.append(f"Assumed: the value {value}, which {found.names_from} does not name, is ignored.")
        else:
            custom["classes"] = [f"class {value}" for value in known]
            notes.append("Named by their values, because no class file names them: write the classes' names here.")
            if known != list(range(len(known))):
                custom["label_mapping"] = {value: index for index, value in enumerate(known)}
        if ignores:
            custom["ignore_id"] = IGNORE
            notes.append("Assumed: 255 is no class and is ignored.")
            if "label_mapping" in custom or len(known) == 1:
                custom["label_mapping"] = {**custom.get("label_mapping", {known[0]: 0}), IGNORE: IGNORE}
    if found.names_from:
        notes.append(f"The names are from {found.names_from}.")
    custom |= {"image_suffix": found.image_suffix, "label_suffix": found.label_suffix}
    return {key: value for key, value in custom.items() if value != ""}, notes


def is_ignored(found: Found, asked: Mapping[str, Any]) -> bool:
    """Whether 255 stands for no class: as the user says, as names say, or because the others are numbers in a row."""
    if "ignore_id" in asked:
        return asked["ignore_id"] == IGNORE
    others = sorted(set(found.values) - {IGNORE})
    if found.names or others in (list(range(len(others))), list(range(1, len(others) + 1))):
        return IGNORE not in found.names
    raise DatasetError(
        f"The label maps hold {', '.join(map(str, others))} and 255, so 255 may be a class and not 'ignore': add "
        "--data.custom.ignore_id null if it is one, or --data.custom.ignore_id 255 if it is not."
    )


def is_rim(found: Found, value: int) -> bool:
    """Whether a value has so few pixels that it may be a border between the others: under 5 %."""
    return found.values[value] < 0.05 * sum(found.values.values())


def merge_names(names: Sequence[str]) -> list[str]:
    """The names, each made different from those before it."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return result


def fitting_crop(sizes: Mapping[tuple[int, int], int], patch_size: int) -> int:
    """A square crop for images of these sizes: the largest common one that is not above the median shorter side."""
    shorter = float(np.median(np.repeat([min(size) for size in sizes], list(sizes.values()))))
    fitting = [crop for crop in COMMON_CROPS if crop <= shorter and crop % patch_size == 0]
    return fitting[-1] if fitting else max(patch_size, int(shorter // patch_size) * patch_size)
