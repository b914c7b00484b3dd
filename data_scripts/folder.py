"""A dataset of one's own: folders of images and label maps, plain or inside a zip or tar."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Container, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_scripts.archive import Archive, Member, MissingArchive, plain_name
from data_scripts.archive_formats import open_archive
from data_scripts.class_files import decode_text
from data_scripts.custom import Custom, parse_custom
from data_scripts.errors import DatasetError
from data_scripts.listing import Listing, Sample, Source, archive_record, natural_pairs
from data_scripts.own import OwnBuilder, share_out
from data_scripts.problems import Problems

IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".j2k",
    ".gif",
    ".heic",
)
LABEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif")
OTHER_LABELS = (".jpg", ".jpeg", ".webp", ".npy", ".npz", ".mat", ".json", ".xml", ".txt")  # that are not read
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.zst", ".rar", ".7z")


class Builder(OwnBuilder):
    """The splits that data.custom names."""

    @classmethod
    def list_dataset(cls, source: Source) -> Listing:
        custom, problems = parse_custom(source.custom), Problems()
        places = {
            "train": (custom.train_images, custom.train_labels, custom.train_list),
            "validation": (custom.val_images, custom.val_labels, custom.val_list),
        }
        if custom.val_list and not custom.val_images:
            places["validation"] = (custom.train_images, custom.train_labels, custom.val_list)
        samples: dict[str, Any] = {}
        left_out: dict[str, Any] = {}
        records = []
        with ExitStack() as stack:
            for split, (images, labels, names) in places.items():
                if images is None and labels is None:
                    continue
                if images is None or labels is None:
                    raise DatasetError(f"data.custom names only one folder of {split}: name its images and its labels.")
                photos = Place.find(source.root, images, stack)
                maps = Place.find(source.root, labels, stack)
                pairs, unpaired = find_pairs(photos, maps, custom)
                if not pairs:
                    raise DatasetError(nothing_found(photos, maps, images, labels, source.root))
                if names:
                    folders = {Path(source.root, place.replace("\\", "/")).name for place in (images, labels)}
                    pairs = listed_pairs(pairs, source.root, names, folders, custom, problems)
                    records.append({"name": names, "pairs": sorted(pairs)})
                elif unpaired and not source.allow_partial:
                    for sentence in unpaired:
                        problems.add("files without a partner", sentence)
                elif unpaired:
                    left_out[f"{split} files without a partner"] = len(unpaired)
                samples[split] = list(pairs.values())
                for archive in {photos.archive.path: photos.archive, maps.archive.path: maps.archive}.values():
                    records.append(archive_record(archive))
                    for reason, count in archive.skipped.items():
                        left_out[f"{reason} in {os.path.basename(archive.path)}"] = count
                if not pairs:
                    problems.raise_if_any(colors=False)
                    raise DatasetError(f"{names} names no pair of {images} in {source.root}: correct data.custom.")
        if not samples:
            raise DatasetError("data.custom names no images: set train_images and train_labels, or val_*.")
        samples = share_out(samples, custom)
        return Listing(
            samples,
            records,
            custom.classes,
            custom.palette(),
            custom.rule(),
            asdict(custom),
            left_out,
            problems.to_json(),
        )


@dataclass(frozen=True)
class Place:
    """A folder: `archive` is what contains it (itself, where it is a plain folder), `prefix` its path inside."""

    archive: Archive
    prefix: str

    @classmethod
    def find(cls, root: str, place: str, stack: ExitStack) -> Place:
        """Opens `place`, a folder in `root` or in an archive there; MissingArchive where there is none."""
        path = Path(root) / place.replace("\\", "/")
        if path.is_dir():
            return cls(stack.enter_context(open_archive(path)), "")
        for parent in (path, *path.parents):
            if parent.is_file():
                inner = plain_name(path.relative_to(parent).as_posix())
                return cls(stack.enter_context(open_archive(parent)), "" if inner == "." else f"{inner}/")
        raise MissingArchive(f"{place} is not in {root}{near_names(path)}: correct data.custom or data.root.")

    def members(self, endings: tuple[str, ...]) -> dict[str, Member]:
        """The members that end in one of `endings`, whatever their case, by their path below the place without it."""
        found: dict[str, Member] = {}
        for name in self.archive.entries:
            ending = longest_ending(name, endings)
            if name.startswith(self.prefix) and ending:
                key = name.removeprefix(self.prefix)[: -len(ending)]
                member = Member(self.archive.path, name)
                if key in found:
                    raise DatasetError(f"{member} and {found[key].name} would be one sample: rename or remove one.")
                found[key] = member
        return found


def near_names(path: Path) -> str:
    """What there is in place of a path's first part that does not exist."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    there = sorted(os.listdir(missing.parent)) if missing.parent.is_dir() else []
    near = [name for name in there if name.lower() == missing.name.lower()]
    near = near or difflib.get_close_matches(missing.name, there, n=2)
    return f", but {' and '.join(near)} is in {missing.parent}" if near else ""


def longest_ending(name: str, endings: tuple[str, ...]) -> str:
    """The longest of `endings` with which `name` ends, whatever its case; empty where there is none."""
    lower = name.lower()
    return max((ending for ending in endings if lower.endswith(ending.lower())), key=len, default="")


def find_pairs(photos: Place, maps: Place, custom: Custom) -> tuple[dict[str, Sample], list[str]]:
    """The pairs by their shared key, in natural order of the images, and a sentence about each file without one."""
    labels = maps.members((custom.label_suffix,) if custom.label_suffix else LABEL_ENDINGS)
    images = photos.members((custom.image_suffix,) if custom.image_suffix else IMAGE_ENDINGS)
    photo_names: set[str] = set()
    if (photos.archive.path, photos.prefix) == (maps.archive.path, maps.prefix):  # then a label map is no photo
        taken = {member.name for member in labels.values()} if custom.label_suffix else set()
        images = {key: member for key, member in images.items() if member.name not in taken}
        photo_names = {member.name for member in images.values()}
    others = {}
    for name in maps.archive.entries.keys() - photo_names:
        if name.startswith(maps.prefix) and (ending := longest_ending(name, OTHER_LABELS)):
            others[name.removeprefix(maps.prefix)[: -len(ending)]] = ending
    unpaired = []
    for key, member in images.items():
        if key not in labels:
            other = others.get(key)
            why = f" (its {other} is not read: save label maps as PNG)" if other else ""
            unpaired.append(
                f"{member} has no label{why}: add it, set data.custom.label_suffix to how label files end, or "
                "set data.allow_partial to leave it out."
            )
    unpaired += [
        f"{labels[key]} has no image: add it, set data.custom.image_suffix to how image files end, or set "
        "data.allow_partial to leave it out."
        for key in labels
        if key not in images
    ]
    return natural_pairs(images, labels), unpaired


def listed_pairs(
    pairs: dict[str, Sample], root: str, file: str, folders: Collection[str], custom: Custom, problems: Problems
) -> dict[str, Sample]:
    """The pairs that a list file names, one stem or path a line, in the pairs' order.

    Args:
        folders: names of the folders of images and labels, with which a path may begin.
    """
    path = Path(root) / file
    if not path.is_file():
        raise DatasetError(f"The list {path} is not there{near_names(path)}: correct data.custom.")
    by_tail: dict[str, list[str]] = {}
    for key in pairs:
        for tail in tails(key):
            by_tail.setdefault(tail, []).append(key)
    chosen: set[str] = set()
    suffixes = tuple(filter(None, (custom.image_suffix, custom.label_suffix)))
    for line in decode_text(path.read_bytes()).splitlines():
        name = plain_name(line.strip().split("\t")[0])
        if not name:
            continue
        first = name.split(" ")[0]  # some lists name an image and its label
        candidates = [name, *(n[: -len(longest_ending(n, IMAGE_ENDINGS)) or None] for n in (name, first))]
        candidates += [n.removesuffix(end) for end in suffixes for n in (name, first)]
        candidates += [n.removesuffix(end.rpartition(".")[0]) for end in suffixes for n in (name, first)]
        found = next(filter(None, (named_keys(c, pairs, by_tail, folders) for c in candidates)), [])
        if len(found) == 1:
            chosen.update(found)
            continue
        why = f"which may be {' or '.join(found[:3])}" if found else "which has no image with a label"
        problems.add("names of a list", f"{file} names {name}, {why}: correct the list.")
    return {key: pair for key, pair in pairs.items() if key in chosen}


def named_keys(
    name: str, keys: Container[str], by_tail: Mapping[str, list[str]], folders: Collection[str]
) -> list[str]:
    """The keys that a name may mean: itself, else those that end in it, else what follows one of `folders` in it."""
    if name in keys:
        return [name]
    parts = name.split("/")
    below = ["/".join(parts[i + 1 :]) for i, part in enumerate(parts) if part in folders]
    return by_tail.get(name) or [key for key in below if key in keys][:1]


def tails(key: str) -> list[str]:
    """A path, and what is left of it without its first folders."""
    parts = key.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def nothing_found(photos: Place, maps: Place, images: str, labels: str, root: str) -> str:
    """The sentence where no image has a label: what is there instead."""
    for place, name, endings in ((photos, images, IMAGE_ENDINGS), (maps, labels, LABEL_ENDINGS)):
        inside = [entry for entry in place.archive.entries if entry.startswith(place.prefix)]
        if any(longest_ending(entry, endings) for entry in inside):
            continue
        kinds = f"{name} in {root} holds no file that ends in {', '.join(endings[:6])}"
        packed = [entry for entry in (inside or place.archive.entries) if longest_ending(entry, ARCHIVES)]
        if packed:
            return f"{kinds}, but {packed[0]} is an archive inside: unpack it, because it is not read."
        tops = sorted({"/".join(entry.split("/")[:2]) for entry in place.archive.entries})[:4]
        there = f"{len(inside):,} other files" if inside else f"nothing; there is {' and '.join(tops) or 'no file'}"
        return f"{kinds}, but {there}: correct data.custom."
    return (
        f"{images} in {root} holds no image with a label: set data.custom.label_suffix and image_suffix to how the "
        "files of a pair end, such as _mask.png and .jpg."
    )
