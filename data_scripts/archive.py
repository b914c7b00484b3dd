"""What every kind of archive has: members by name, read in place and checked; nothing in an archive is trusted."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from typing import NamedTuple

from data_scripts.errors import DatasetError, printable

MAX_MEMBER_BYTES = 256 * 2**20  # far above any image of the official archives (8 MiB), far below a machine's memory
MAX_ENTRIES = 1_000_000  # of one archive; each takes 200 bytes of memory
SYSTEM_NAMES = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information")


class MissingArchive(DatasetError):
    """An archive is not where it was looked for."""


class Member(NamedTuple):
    """One file inside an archive: names only, so that it travels to worker processes."""

    archive: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.name} in {self.archive}")


class Entry(NamedTuple):
    """What an archive's index says about a member: `size` in bytes, `stamp` tells two contents of equal size apart.

    `stored` is the name inside the archive, which the member's own name may normalise.
    """

    size: int
    stamp: int
    offset: int = 0
    stored: str = ""


def natural_order(member: Member) -> tuple[int, str]:
    """Sort key: the first number in the member's whole path, then the path."""
    number = re.search(r"\d+", member.name)
    return int(number.group()) if number else -1, member.name


def plain_name(name: str) -> str:
    """A member's name with forward slashes, without a leading `./` or `/`, its letters composed (Unicode's NFC)."""
    name = re.sub(r"^(\./|/)+", "", re.sub(r"/+", "/", name.replace("\\", "/")))
    return unicodedata.normalize("NFC", name)


def is_system_file(name: str) -> bool:
    """Whether a name is one of an operating system or a tool: a hidden file or folder, a thumbnail, a resource fork."""
    return any(part.startswith(".") or part in SYSTEM_NAMES for part in name.split("/"))


class Archive(ABC):
    """An opened archive: `entries` is its index of regular files by name; use it as a context manager.

    Attributes:
        skipped: how many files were left out, by the reason.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Raises MissingArchive where nothing is at `path`, DatasetError where it cannot be trusted."""
        self.path = str(path)
        if not os.path.exists(self.path):
            raise MissingArchive(f"{self.path} does not exist: put the archive there.")
        self.entries: dict[str, Entry] = {}
        self.skipped: Counter[str] = Counter()
        self.duplicates: set[str] = set()  # names with two contents

    @abstractmethod
    def _read(self, entry: Entry) -> bytes: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def read(self, name: str) -> bytes:
        """The bytes of member `name`; DatasetError where they are missing, too many or not as declared."""
        member = Member(self.path, name)
        if name not in self.entries:
            raise DatasetError(f"{member} is missing: download the archive again.")
        if name in self.duplicates:
            raise DatasetError(f"{member} is there twice: remove one of them, or download the archive again.")
        size = self.entries[name].size
        if size > MAX_MEMBER_BYTES:
            limit = MAX_MEMBER_BYTES // 2**20
            raise DatasetError(
                f"{member} declares {size} bytes, over the cap of {limit} MiB: cut a large image into tiles, as by "
                "'gdal_retile.py -ps 4096 4096 -targetDir tiles large.tif'."
            )
        data = self._read(self.entries[name])
        if len(data) != size:
            raise DatasetError(f"{member} has {len(data)} bytes but declares {size}: download the archive again.")
        return data

    def digest(self, stamps: bool = True) -> str:
        """Hex digest of the index: every member's name and size, and its stamp if `stamps`."""
        index = hashlib.sha256()
        for name in sorted(self.entries):
            entry = self.entries[name]
            stamp = entry.stamp if stamps else ""
            index.update(f"{name}\0{entry.size}\0{stamp}\n".encode(errors="surrogateescape"))
        return index.hexdigest()

    def add(self, stored: str, entry: Entry) -> None:
        name = plain_name(stored)
        if is_system_file(name):
            self.skipped["hidden or system files"] += 1
            return
        other = self.entries.get(name)
        if other and (other.size, other.stamp) != (entry.size, entry.stamp):
            self.duplicates.add(name)
        self.entries[name] = entry._replace(stored=stored)
        self.check_count(len(self.entries))

    def check_count(self, count: int) -> None:
        if count > MAX_ENTRIES:
            raise DatasetError(f"{self.path} has more than {MAX_ENTRIES:,} files: split it into several archives.")
