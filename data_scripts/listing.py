"""What a dataset's archives hold, by their indexes alone: which pairs, in which order, under which fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_scripts.archive import Archive, Member, MissingArchive, natural_order
from data_scripts.errors import DatasetError
from data_scripts.labels import LabelRule


class Sample(NamedTuple):
    """An image and its label map, by name."""

    image: Member
    annotation: Member


class Files(NamedTuple):
    """Files of one archive: those below `folder` whose names end in `ending`.

    Attributes:
        archive: its number among the builder's `downloads`.
        folder: with a / at its end; an image and its label map have one name between folder and ending.
    """

    archive: int
    folder: str
    ending: str


@dataclass(frozen=True)
class Source:
    """Where a dataset is looked for: `root` is the folder of archives; `custom` belongs to folder and hub datasets."""

    root: str
    allow_partial: bool = False
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Download:
    """An archive as it is downloaded: its file name and the page to get it from."""

    file: str
    page: str


def require(downloads: Sequence[Download], root: str, hint: str = "") -> list[Path]:
    """The archives' paths in `root`; MissingArchive says which are missing, where to get them and where to put them."""
    missing = [download for download in downloads if not (Path(root) / download.file).exists()]
    if missing:
        files = ", ".join(download.file for download in missing)
        pages = " and ".join(dict.fromkeys(download.page for download in missing))
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise MissingArchive(
            f"{files} {verb} not in {root}: download {them} from {pages} and put {them} there, or let data.root name "
            f"the folder that holds {them}{hint}."
        )
    return [Path(root) / download.file for download in downloads]


@dataclass(frozen=True)
class Listing:
    """`samples` by split, in training order; `archives` are the records that make the fingerprint."""

    samples: dict[str, Sequence[Any]]
    archives: list[dict[str, Any]]
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    rule: LabelRule
    options: dict[str, Any] = field(default_factory=dict)  # what else shapes the result: seeds, custom keys
    left_out: dict[str, Any] = field(default_factory=dict)  # files that are no samples, for the report
    problems: dict[str, Any] | None = None  # what was wrong with the names, see `Problems.to_json`

    def digest(self, version: str) -> str:
        """Hex digest that names a cache: of archives' names, sizes, times and indexes, the options and `version`."""
        text = json.dumps(
            [version, self.archives, self.options, self.left_out, self.problems], sort_keys=True, default=str
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def archive_record(archive: Archive) -> dict[str, Any]:
    """Name, size, time of the last change and index digest of an opened archive."""
    status = os.stat(archive.path)
    name, digest = os.path.basename(archive.path), archive.digest()
    if os.path.isfile(archive.path):
        time = max(status.st_mtime_ns, status.st_ctime_ns)  # a copy may set the first back
        return {"name": name, "size": status.st_size, "time": time, "index": digest}
    return {"name": name, "size": len(archive.entries), "index": digest}  # with the files' times


def pair_files(
    archives: Sequence[Archive], pairs: Sequence[tuple[Files, Files]], allow_partial: bool
) -> tuple[list[Sample], int]:
    """What `pair` returns of images and label maps, one place of both after the other."""
    samples, left_out = [], 0
    for places in pairs:
        images, annotations = (_members(archives[files.archive], files) for files in places)
        paired, unpaired = pair(images, annotations, allow_partial)
        samples += paired
        left_out += unpaired
    return samples, left_out


def _members(archive: Archive, files: Files) -> dict[str, Member]:
    names = [name for name in archive.entries if name.startswith(files.folder) and name.endswith(files.ending)]
    return {name[len(files.folder) : -len(files.ending)]: Member(archive.path, name) for name in names}


def pair(
    images: Mapping[str, Member], annotations: Mapping[str, Member], allow_partial: bool = False
) -> tuple[list[Sample], int]:
    """The pairs that share a key, in natural order of the images, and how many members had no partner.

    A member without a partner raises DatasetError unless `allow_partial`.
    """
    unpaired = [(images[key], "label") for key in images if key not in annotations]
    unpaired += [(annotations[key], "image") for key in annotations if key not in images]
    if unpaired and not allow_partial:
        member, partner = unpaired[0]
        raise DatasetError(
            f"{member} has no {partner}, as {len(unpaired):,} in all: get the whole dataset again, "
            "or set data.allow_partial to leave them out."
        )
    return list(natural_pairs(images, annotations).values()), len(unpaired)


def natural_pairs(images: Mapping[str, Member], annotations: Mapping[str, Member]) -> dict[str, Sample]:
    """The pairs that share a key, by that key, in natural order of the images."""
    shared = sorted((key for key in images if key in annotations), key=lambda key: natural_order(images[key]))
    return {key: Sample(images[key], annotations[key]) for key in shared}


def check_official_counts(
    samples: Mapping[str, Sequence], counts: Mapping[str, int], archives: str, partial: bool
) -> None:
    """Raises DatasetError where a split lists fewer pairs than the official one, or none at all."""
    for split, official in counts.items():
        found = len(samples.get(split, ()))
        if found == 0 or (found < official and not partial):
            raise DatasetError(
                f"{archives} holds {found:,} of the {official:,} official {split} pairs: download it again"
                + (", or set data.allow_partial to use what is there." if found else ".")
            )
