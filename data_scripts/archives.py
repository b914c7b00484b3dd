"""Reads members of zip, tar and plain folders in place: nothing is extracted, nothing in them is trusted."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data_scripts.errors import DatasetError, printable

MAX_MEMBER_BYTES = 256 * 2**20  # far above any image of the official archives (8 MiB), far below a machine's memory
ENCRYPTED = 0x1  # the general purpose flag of a zip entry that asks for a password
TAR_BLOCK = 512


class MissingArchive(DatasetError):
    """An archive does not lie where it was looked for."""


class Member(NamedTuple):
    """One file inside an archive: names only, so that it travels to worker processes."""

    archive: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.name} in {self.archive}")


class Entry(NamedTuple):
    """What an archive's index says about a member: `size` in bytes, `stamp` tells two contents of equal size apart."""

    size: int
    stamp: int
    offset: int = 0


def natural_order(member: Member) -> tuple[int, str]:
    """Sort key: the first number in the member's whole path, then the path."""
    number = re.search(r"\d+", member.name)
    return int(number.group()) if number else -1, member.name


class Archive(ABC):
    """An opened archive: `entries` is its index of regular files by name; use it as a context manager."""

    def __init__(self, path: str | os.PathLike) -> None:
        """Raises MissingArchive where nothing lies at `path`, DatasetError where it cannot be trusted."""
        self.path = str(path)
        if not os.path.exists(self.path):
            raise MissingArchive(f"{self.path} does not exist: put the archive there.")
        self.entries: dict[str, Entry] = {}

    @abstractmethod
    def _read(self, name: str, size: int) -> bytes: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def read(self, name: str) -> bytes:
        """The bytes of member `name`; DatasetError where they are missing, too many, or not what the index declares."""
        member = Member(self.path, name)
        if name not in self.entries:
            raise DatasetError(f"{member} is missing: download the archive again.")
        size = self.entries[name].size
        if size > MAX_MEMBER_BYTES:
            limit = MAX_MEMBER_BYTES // 2**20
            raise DatasetError(f"{member} declares {size} bytes, over the cap of {limit} MiB: it is no dataset image.")
        data = self._read(name, size)
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

    def _add(self, name: str, entry: Entry) -> None:
        if name in self.entries:
            member = Member(self.path, name)
            raise DatasetError(f"{member} is there twice: it is not the official archive, download it again.")
        self.entries[name] = entry


class Zip(Archive):
    """A zip archive; the stamp is the member's CRC-32, which reading verifies."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise DatasetError(
                f"{self.path} is no whole zip archive ({error}): a cut download or another file under its name, "
                "download it again."
            ) from error
        try:
            for info in self._zip.infolist():
                if not (info.is_dir() or stat.S_ISLNK(info.external_attr >> 16)):
                    self._add(info.filename, Entry(info.file_size, info.CRC))
        except BaseException:
            self.close()
            raise

    def _read(self, name: str, size: int) -> bytes:
        member = Member(self.path, name)
        if self._zip.getinfo(name).flag_bits & ENCRYPTED:
            raise DatasetError(f"{member} is locked by a password: make the archive again without one.")
        try:
            with self._zip.open(name) as stream:
                return stream.read(size + 1)
        except Exception as error:  # zlib, lzma, struct and zipfile each raise their own on damaged bytes
            raise DatasetError(f"{member} is damaged ({error}): download the archive again.") from error

    def close(self) -> None:
        self._zip.close()


class Tar(Archive):
    """An uncompressed tar archive; the stamp is the member's time, for a tar carries no checksum of its data."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        self._file = open(self.path, "rb")  # noqa: SIM115 - close() closes it
        try:
            self._read_index()
        except tarfile.TarError as error:
            self.close()
            raise DatasetError(
                f"{self.path} is no whole tar archive ({error}): a cut download, a compressed tar or another file "
                "under its name; download it again or decompress it."
            ) from error
        except BaseException:
            self.close()
            raise

    def _read_index(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for info in tar:
                if info.isreg() and not info.issparse():
                    self._add(info.name, Entry(info.size, int(info.mtime), info.offset_data))
            end = tar.offset
        # A tar cut at a member's border reads without an error; only the closing zero block tells.
        self._file.seek(end)
        if self._file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise tarfile.ReadError("its end is missing")

    def _read(self, name: str, size: int) -> bytes:
        self._file.seek(self.entries[name].offset)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


class Folder(Archive):
    """A plain folder tree, read as if it were an archive; the stamp is the file's modification time in ns."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        for folder, _, files in os.walk(self.path):
            for file in files:
                name = (Path(folder) / file).relative_to(self.path).as_posix()
                status = os.stat(os.path.join(folder, file))
                self._add(name, Entry(status.st_size, status.st_mtime_ns))

    def _read(self, name: str, size: int) -> bytes:
        with open(os.path.join(self.path, name), "rb") as stream:
            return stream.read(size + 1)

    def close(self) -> None:
        pass


def open_archive(path: str | os.PathLike) -> Archive:
    """Opens a folder, a .tar or (everything else) a zip."""
    if os.path.isdir(path):
        return Folder(path)
    return Tar(path) if str(path).endswith(".tar") else Zip(path)


class Reader:
    """Reads members of any number of archives, keeping each archive open; a context manager."""

    def __init__(self) -> None:
        self._open: dict[str, Archive] = {}

    def read(self, member: Member) -> bytes:
        """The member's bytes; raises DatasetError as `Archive.read` does."""
        if member.archive not in self._open:
            self._open[member.archive] = open_archive(member.archive)
        return self._open[member.archive].read(member.name)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        for archive in self._open.values():
            archive.close()


def members_under(archive: Archive, folder: str, suffix: str | tuple[str, ...]) -> Iterable[Member]:
    """The members below `folder` whose names end in `suffix`, without the rubbish that macOS adds."""
    for name in archive.entries:
        rubbish = name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")
        if name.startswith(folder) and name.endswith(suffix) and not rubbish:
            yield Member(archive.path, name)
