"""Which images and label maps of folders belong together by their names, as `folder` pairs them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from data_scripts.archive import Member, MissingArchive
from data_scripts.custom import Custom
from data_scripts.errors import DatasetError
from data_scripts.folder import IMAGE_ENDINGS, LABEL_ENDINGS, Place, find_pairs, longest_ending, near_names
from data_scripts.listing import Sample

SUFFIXES = ("image_suffix", "label_suffix")


class Matched(NamedTuple):
    """Pairs, how their files end, and sentences: of files without a partner, and of two that would be one sample."""

    pairs: list[Sample]
    suffixes: tuple[str, str]
    unpaired: list[str]
    doubled: list[str]


def match_pairs(image_folder: str, label_folder: str, given: Mapping[str, str]) -> Matched:
    """The pairs of two folders, which may be inside archives, or the same one.

    `a.jpg` belongs to `a.png`, `a_mask.png`, `a_L.png`; `a_leftImg8bit.png` to `a_gtFine_labelIds.png`.

    Args:
        given: image_suffix and label_suffix, which are guessed where neither is given.

    Raises:
        DatasetError: there are none.
    """
    with ExitStack() as stack:
        photos, maps = find_place(image_folder, stack), find_place(label_folder, stack)
        same = (photos.archive.path, photos.prefix) == (maps.archive.path, maps.prefix)
        names, labels = names_below(photos, IMAGE_ENDINGS), names_below(maps, LABEL_ENDINGS)
        suffixes = (given.get(SUFFIXES[0], ""), given.get(SUFFIXES[1], ""))
        if not any(suffixes) and (same or not {*map(stem, names)} & {*map(stem, labels)}):
            suffixes = guess_suffixes(names, labels, same)
            if not same and suffixes[0].lower() in IMAGE_ENDINGS:  # photos may end in several
                suffixes = ("", suffixes[1])
        doubled = remove_doubled(photos, (suffixes[0],) if suffixes[0] else IMAGE_ENDINGS)
        doubled += remove_doubled(maps, (suffixes[1],) if suffixes[1] else LABEL_ENDINGS)
        found, unpaired = find_pairs(photos, maps, Custom(image_suffix=suffixes[0], label_suffix=suffixes[1]))
        if not found or (same and not suffixes[1]):  # each would be its own label map
            raise DatasetError(nothing_matches(image_folder, label_folder, names, labels))
    return Matched(list(found.values()), suffixes, unpaired, doubled)


def find_place(folder: str, stack: ExitStack) -> Place:
    """An absolute folder, or one inside an archive; DatasetError where there is none."""
    try:
        return Place.find("/", folder, stack)
    except MissingArchive as error:
        raise DatasetError(f"{folder} does not exist{near_names(Path(folder))}: correct the name.") from error


def names_below(place: Place, endings: tuple[str, ...]) -> list[str]:
    """The files that end in one of `endings`, by their path below the place."""
    names = (name for name in place.archive.entries if name.startswith(place.prefix) and longest_ending(name, endings))
    return [name.removeprefix(place.prefix) for name in names]


def stem(name: str) -> str:
    """A name without its ending."""
    return name[: len(name) - len(longest_ending(name, IMAGE_ENDINGS))]


def remove_doubled(place: Place, endings: tuple[str, ...]) -> list[str]:
    """Takes files out of a place that would be one sample with another; a sentence about each."""
    first: dict[str, str] = {}
    sentences = []
    for name in names_below(place, endings):
        other = first.setdefault(name[: -len(longest_ending(name, endings))], name)
        if other != name:
            member = Member(place.archive.path, place.prefix + name)
            del place.archive.entries[member.name]
            sentences.append(f"{member} and {other} would be one sample: rename or remove one of them.")
    return sentences


def nothing_matches(image_folder: str, label_folder: str, images: Sequence[str], labels: Sequence[str]) -> str:
    """The sentence where there are no pairs: what there is instead."""
    for folder, names, what, endings in (
        (image_folder, images, "image", IMAGE_ENDINGS),
        (label_folder, labels, "label map", LABEL_ENDINGS),
    ):
        if not names:
            return f"{folder} holds no {what} that ends in {', '.join(endings[:5])}: name the folder that holds them."
    inner = sorted({name.rpartition("/")[0] for name in (*images, *labels)} - {""})
    if image_folder == label_folder and len(inner) > 1:
        return (
            f"{image_folder} holds the folders {', '.join(inner[:4])}: let --images and --labels name those of the "
            f"images and of the label maps, such as {image_folder}/{inner[0]}."
        )
    return (
        f"No image in {image_folder} belongs to a label map in {label_folder} by its name (such as {images[0]} and "
        f"{labels[-1]}): rename the files so that those of a pair begin alike, or set --data.custom.image_suffix and "
        "--data.custom.label_suffix to how they end."
    )


def guess_suffixes(photos: Sequence[str], maps: Sequence[str], same: bool) -> tuple[str, str]:
    """How images and label maps end behind the name that they share, as most of them do; empty where none do."""
    ends: Counter[tuple[str, str]] = Counter()
    by_folder: dict[str, list[str]] = {}
    for name in photos:
        by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    folders = sorted(by_folder)
    for label in maps[:200]:
        near = difflib.get_close_matches(label.rpartition("/")[0], folders, n=1, cutoff=0) if folders else []
        candidates = by_folder.get(label.rpartition("/")[0]) or (by_folder[near[0]] if near else [])
        best = max(
            (c for c in candidates if not (same and c == label)), key=lambda c: len(prefix(c, label)), default=""
        )
        if shared := shared_stem(best, label):
            ends[best[len(shared) :], label[len(shared) :]] += 1
    if same:  # a label map's ending is the longer one, or another format
        ends = Counter({(p, m): n for (p, m), n in ends.items() if len(m) > len(p) or stem(p) == stem(m) == ""})
    # Of several files beside each image, the one that is named as a label map.
    words = ("labelids", "label", "mask", "seg")

    def rank(pair: tuple[str, str]) -> tuple[int, int]:
        return ends[pair], -next((number for number, word in enumerate(words) if word in pair[1].lower()), len(words))

    return max(ends, key=rank, default=("", ""))


def shared_stem(one: str, other: str) -> str:
    """What the names of a pair share: the whole stem of the first, or up to a _ or -; empty where neither is so."""
    shared = prefix(stem(one), stem(other))
    return shared if shared == stem(one) else shared[: max(shared.rfind("_"), shared.rfind("-"), 0)]


def prefix(one: str, other: str) -> str:
    """The beginning that two names share."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
