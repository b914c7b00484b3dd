"""Class names for stored label values, from a list of names: a file beside the data, or a dataset's features."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from data_scripts.errors import DatasetError
from data_scripts.labels import IGNORE

CLASS_FILES = (
    "classes.txt",
    "labels.txt",
    "label_names.txt",
    "labelmap.txt",
    "class_dict.csv",
    "classes.csv",
    "meta.json",
)
NAME_TITLES = ("name", "class_name", "label_name", "category", "title", "class", "label")  # of a CSV's columns
ID_TITLES = ("id", "index", "idx", "value", "class_id", "label_id", "pixel_value", "number", "class", "label")
COLOR_TITLES = (("r", "g", "b"), ("red", "green", "blue"))
# name:r,g,b of CVAT; name,r,g,b of a CSV
COLORED = re.compile(r"^([^:,;]+)[:,;]\s*(\d+)\s*[,;]\s*(\d+)\s*[,;]\s*(\d+)")
NUMBER_FIRST = re.compile(r"^(?P<id>\d+)[\s:,;]+(?P<name>.+?)((\s*[,;]\s*\d+){3})?$")  # a colour may follow
NUMBER_LAST = re.compile(r"^(?P<name>.+?)\s*[:,;\t]\s*(?P<id>\d+)$")


def find_names(folders: Sequence[Path], values: Collection[int], colors: bool) -> tuple[dict[int, str], str]:
    """The first class file in `folders` that fits the stored values: names by value, and where they are from.

    Args:
        folders: the nearest to the data first.
        colors: whether the values are packed colours.

    Raises:
        DatasetError: there are only files that do not fit; it says which values they leave without a name.
    """
    files = [folder / name for folder in folders for name in sorted(CLASS_FILES) if (folder / name).is_file()]
    misfits, classes = [], set(values) if colors else class_values(values)
    for file in files:
        listed = read_class_file(file, colors)
        if not listed:
            continue
        given = listed if isinstance(listed, dict) else dict(enumerate(listed))
        names = given if isinstance(listed, dict) else name_in_order(listed, values)
        if len(classes & names.keys()) >= (min(2, len(classes)) if colors else len(classes)):
            return names, file.name if isinstance(listed, dict) else f"{file.name}, {describe_order(names)}"
        if not colors:
            misfits.append(misfit(file, given, classes))
    if misfits:
        raise DatasetError("\n".join(misfits))
    return {}, ""


def class_values(values: Collection[int]) -> set[int]:
    """The values that are classes: 255 stands for none, except in masks of 0 and 255."""
    return set(values) if set(values) <= {0, IGNORE} else set(values) - {IGNORE}


def misfit(file: Path, names: dict[int, str], classes: set[int]) -> str:
    """The sentence about a class file that leaves values without a name."""
    unnamed = ", ".join(str(value) for value in sorted(classes - names.keys()))
    return (
        f"{file} has {len(names)} name(s), and none for the label value(s) {unnamed}: give it a line for each value, "
        "write the value in front of each name (such as '0 background'), or remove the file."
    )


def reaches(names: Sequence[str], values: Collection[int]) -> bool:
    """Whether a list has a name for each class's value as an index."""
    return max(class_values(values)) < len(names)


def name_in_order(names: Sequence[str], values: Collection[int]) -> dict[int, str]:
    """A list without numbers by stored value; empty where it does not fit.

    As many names as classes are in the order of their values; else a value is an index, where the list reaches to all.
    Where neither fits, 255 is a class if the list has a name for it, too.
    """
    for named in (sorted(class_values(values)), sorted(values)):
        if len(names) == len(named):
            return dict(zip(named, names, strict=True))
        if reaches(names, values):
            return dict(enumerate(names))
    return {}


def describe_order(names: dict[int, str]) -> str:
    """Which value each line of a list names."""
    return (
        "whose first name stands for the value 0"
        if list(names) == list(range(len(names)))
        else "in the order of the values"
    )


def read_class_file(file: Path, colors: bool) -> dict[int, str] | list[str]:
    """Class names by stored value, or as a list where they have no numbers; empty where the file has none.

    Read are lists of names, CVAT's labelmap.txt, CSV with and without a header, and Supervisely's meta.json.

    Raises:
        DatasetError: some lines have a number and some have none, or two have the same.
    """
    text = decode_text(file.read_bytes())
    if file.suffix == ".json":
        return read_supervisely(text) if colors else {}
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter(lines))]
    if table and is_header(table[0]):
        return read_table(file, table, colors)
    colored = [match for line in lines if (match := COLORED.match(line))]
    if colors:
        return {pack(match[2], match[3], match[4]): match[1].strip() for match in colored}
    return [] if colored else read_lines(file, lines)


def decode_text(data: bytes) -> str:
    """A text file's content, without the byte order mark that Windows writes: UTF-8, or UTF-16 with a mark."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return data.decode(encoding, errors="replace")


def read_supervisely(text: str) -> dict[int, str]:
    """Class names by packed colour; empty where it is another JSON, because many a tool writes a meta.json."""
    names = {}
    try:
        for item in json.loads(text)["classes"]:
            if match := re.fullmatch(r"#?([0-9a-fA-F]{6})", str(item.get("color", ""))):
                names[int(match[1], 16)] = str(item["title"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return names


def read_lines(file: Path, lines: Sequence[str]) -> dict[int, str] | list[str]:
    """Lines of a name, of a number and a name, or of a name and a number."""
    for pattern in (NUMBER_FIRST, NUMBER_LAST):
        matches = [pattern.match(line) for line in lines]
        if len(lines) > 1 and not matches[0] and re.search(r"[:,;\t]", lines[0]) and all(matches[1:]):
            matches = matches[1:]  # the first is a header in words that are not known
        numbered = [(int(match["id"]), match["name"].strip()) for match in matches if match]
        if len(numbered) == len(matches):
            return unique(file, numbered)
        if numbered and pattern is NUMBER_FIRST:
            raise DatasetError(
                f"{file} has {len(numbered)} lines with a number in front and {len(matches) - len(numbered)} without: "
                "write the label value in front of each name, or remove the file."
            )
    return list(lines)


def unique(file: Path, numbered: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Names by number; DatasetError where two have the same one."""
    names = dict(numbered)
    if len(names) < len(numbered):
        raise DatasetError(f"{file} names a label value twice: correct the numbers, or remove the file.")
    return names


def delimiter(lines: Sequence[str]) -> str:
    """What parts the columns of a CSV."""
    return max(",;\t", key=lines[0].count) if lines else ","


def is_header(row: Sequence[str]) -> bool:
    """Whether a CSV's row holds the titles of columns: one is of names, and none is a number."""
    titles = [plain_title(cell) for cell in row]
    return any(title in NAME_TITLES for title in titles) and not any(title.isdigit() for title in titles)


def plain_title(cell: str) -> str:
    """A column's title without case, spaces and a plural."""
    title = cell.lower().replace(" ", "_").replace("-", "_")
    return {"names": "name", "classes": "class", "labels": "label"}.get(title, title)


def read_table(file: Path, table: Sequence[Sequence[str]], colors: bool) -> dict[int, str] | list[str]:
    """Class names of rows below a header: by packed colour, by number, or as a list where there is no number.

    Raises:
        DatasetError: some rows have a number and some have none, two have the same, or several columns hold numbers.
    """
    titles = [plain_title(cell) for cell in table[0]]
    rows = [[*row, *[""] * len(titles)][: len(titles)] for row in table[1:]]
    columns = dict(zip(titles, zip(*rows, strict=True), strict=False))
    numbers = {title: [bool(re.fullmatch(r"-?\d+(\.0+)?", cell)) for cell in columns[title]] for title in columns}
    numeric = {title for title in columns if all(numbers[title])}
    names = next((columns[title] for title in NAME_TITLES if title in columns and title not in numeric), ())
    channels = next((three for three in COLOR_TITLES if numeric.issuperset(three)), None)
    if colors:
        packed = zip(*(columns[channel] for channel in channels), strict=True) if channels else ()
        return {pack(*color): name for color, name in zip(packed, names, strict=False)}
    others = [title for title in columns if any(numbers[title]) and title not in sum(COLOR_TITLES, ())]
    ids = next((title for title in ID_TITLES if title in numeric), others[0] if len(others) == 1 else None)
    if ids in numeric:
        return unique(file, [(int(float(number)), name) for number, name in zip(columns[ids], names, strict=False)])
    if others:
        raise DatasetError(
            f"{file} has no column in which each row has its label value ({', '.join(others)}): name one id, with a "
            "number in each row, or remove the file."
        )
    return [] if channels else list(names)


def pack(red: str, green: str, blue: str) -> int:
    """A colour as the number that `images.decode_labels` makes of it."""
    return int(red) << 16 | int(green) << 8 | int(blue)
