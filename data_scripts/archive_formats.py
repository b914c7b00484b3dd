"""Reads members of zip, tar and plain folders in place: nothing is extracted, nothing in them is trusted."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from data_scripts.archive import Archive, Entry, Member
from data_scripts.errors import DatasetError

ENCRYPTED, DEFLATE64 = 0x1, 9  # the general purpose flag of a zip entry with a password; Windows' compression method
TAR_BLOCK = 512
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst")
FOREIGN = {b"Rar!": "a RAR archive", b"7z\xbc\xaf": "a 7z archive", b"\xfd7zX": "an xz archive"}


class Zip(Archive):
    """A zip archive; the stamp is the member's CRC-32, which reading verifies."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        try:
            self.check_count(zip_entry_count(self.path))
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{self.path} is no whole zip archive ({error}): an interrupted download or another file under its "
                "name, download it again."
            ) from error
        try:
            for info in self._zip.infolist():
                if not (info.is_dir() or stat.S_ISLNK(info.external_attr >> 16)):
                    self.add(info.filename, Entry(info.file_size, info.CRC))
        except BaseException:
            self.close()
            raise

    def _read(self, entry: Entry) -> bytes:
        member, info = Member(self.path, entry.stored), self._zip.getinfo(entry.stored)
        if info.flag_bits & ENCRYPTED:
            raise DatasetError(f"{member} is locked by a password: make the archive again without one.")
        if info.compress_type == DEFLATE64:
            raise DatasetError(
                f"{member} is compressed by Deflate64, which Windows uses for large archives: make the archive again "
                "with 7-Zip or zip, or let data.root name the unpacked folder."
            )
        try:
            with self._zip.open(info) as stream:
                return stream.read(entry.size + 1)
        except Exception as error:  # zlib, lzma, struct and zipfile each raise their own on damaged bytes
            raise DatasetError(f"{member} is damaged ({error}): download the archive again.") from error

    def close(self) -> None:
        self._zip.close()


def zip_entry_count(path: str) -> int:
    """How many entries the end record of a zip declares (65,535 for more, in a zip64); 0 where there is none."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2**16 - 64))
        tail = file.read()
    at, at64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if at64 >= 0:
        return int.from_bytes(tail[at64 + 32 : at64 + 40], "little")
    return int.from_bytes(tail[at + 10 : at + 12], "little") if at >= 0 else 0


class Tar(Archive):
    """A tar archive; the stamp is the member's time, because a tar has no checksum of its data.

    One that is compressed is decompressed into a temporary file first, as large as the data: it has no index.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        self._file: IO[bytes] = open(self.path, "rb")  # noqa: SIM115 - close() closes it
        try:
            if self.path.lower().endswith(COMPRESSED_TARS):
                self._file = decompressed(self._file, self.path)
            self._read_index()
        except DatasetError:
            self.close()
            raise
        except Exception as error:  # tarfile raises ValueError, OverflowError and others on hostile headers
            self.close()
            if isinstance(error, OSError) and error.errno:
                raise
            raise DatasetError(
                f"{self.path} is no whole tar archive ({error}): an interrupted download, or another file under its "
                "name; download it again."
            ) from error

    def _read_index(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would grow with entries that nobody asked for
                if info.isreg() and not info.issparse():
                    self.add(info.name, Entry(info.size, whole_number(info.mtime), info.offset_data))
            end = tar.offset
        # A tar cut at a member's border reads without an error; only the closing zero block shows it.
        self._file.seek(end)
        if self._file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise tarfile.ReadError("its end is missing")

    def _read(self, entry: Entry) -> bytes:
        self._file.seek(entry.offset)
        return self._file.read(entry.size)

    def close(self) -> None:
        self._file.close()


def whole_number(time: float) -> int:
    """A time in whole seconds; 0 for one that is no number."""
    try:
        return int(time)
    except (ValueError, OverflowError):
        return 0


def decompressed(file: IO[bytes], path: str) -> IO[bytes]:
    """A temporary file with the content of a compressed one, which is closed."""
    import pyarrow

    kind = {"z": "gzip", "2": "bz2", "t": "zstd"}[path[-1].lower()]
    target = tempfile.TemporaryFile()  # noqa: SIM115 - the archive closes it
    with file, pyarrow.CompressedInputStream(pyarrow.PythonFile(file), kind) as source:
        while part := source.read(2**22):
            target.write(part)
    target.seek(0)
    return target


class Folder(Archive):
    """A plain folder tree, read as if it were an archive; links are followed, each folder once.

    The stamp is when the file was changed last, in ns: its time, or that of its entry where somebody set its time back.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        seen = set()
        for folder, folders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above or beside it
                folders.clear()
                continue
            seen.add(real)
            for file in files:
                name = (Path(folder) / file).relative_to(self.path).as_posix()
                try:
                    status = os.stat(os.path.join(folder, file))
                except FileNotFoundError:
                    self.skipped["links to nothing"] += 1
                    continue
                self.add(name, Entry(status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)))

    def _read(self, entry: Entry) -> bytes:
        with open(os.path.join(self.path, entry.stored), "rb") as stream:
            return stream.read(entry.size + 1)

    def close(self) -> None:
        pass


def open_archive(path: str | os.PathLike) -> Archive:
    """Opens a folder, a .tar (or a compressed one) or, everything else, a zip."""
    if os.path.isdir(path):
        return Folder(path)
    name = str(path).lower()
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(4)
        if start in FOREIGN and not name.endswith(".tar"):
            raise DatasetError(
                f"{path} is {FOREIGN[start]}, which is not read: unpack it and let data.root name the folder, or pack "
                "it as zip or tar."
            )
    return Tar(path) if name.endswith((".tar", *COMPRESSED_TARS)) else Zip(path)


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
