"""A run's folder: the names in it, whose it is, and writing that leaves the old content or the new."""

import fcntl
import io
import json
import logging
import os
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from benchmark.errors import UserError
from benchmark.recipe.identity import difference
from benchmark.reporting.manifest import is_intact

logger = logging.getLogger(__name__)
RECIPE, RESULTS, CONFUSION, METRICS = "recipe.yaml", "results.json", "confusion.npz", "metrics.jsonl"
CHECKPOINTS, MODEL, TENSORBOARD, SAMPLES = "checkpoints", "model", "tensorboard", "samples"
PREEMPTED = "preempted.json"
LOCK, LOG, BEST, CHOSEN = ".lock", "run.log", "model_best", "chosen.json"


class RunFolder:
    """The folder of one run, which has one owner at a time.

    Args:
        path: `output.dir`.
        identity: the recipe's keys that make the run, by dotted name.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, identity
        self.lock: IO[str] | None = None
        self.said: list[str] = []  # before the folder was claimed

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def finished_results(self, resume: str) -> dict[str, Any] | None:
        """The results of a run that is finished, None for one to start or continue.

        Args:
            resume: "auto" continues a run of the same identity, "never" wants an empty folder.

        Raises:
            UserError: the folder is not this run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self} is a file: name another output.dir.")
        # Before it is claimed, a folder holds hidden files of a kill or a full disk, and the marker of a preemption.
        if not self.path.exists() or all(p.name.startswith(".") or p.name == PREEMPTED for p in self.path.iterdir()):
            return None
        if resume == "never":
            raise UserError(
                f"{self} is not empty: name another output.dir, remove the folder, or continue with --resume auto."
            )
        if not (self / RECIPE).exists():
            raise UserError(f"{self} holds something that is not a run: name another output.dir.")
        if different := difference(self / RECIPE, self.identity):
            raise UserError(
                f"{self} holds a run of another recipe ({different}): name another output.dir or remove the folder."
            )
        return read_results(self / RESULTS) if (self / RESULTS).exists() else None

    def claim(self, recipe_yaml: str, resume: str) -> None:
        """Make the folder this process's own until it ends, however it ends, and write recipe.yaml.

        Raises:
            UserError: another process owns it, or has finished the run meanwhile.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # A lock of the process and not of the file's descriptor: workers that are forked later do not share it.
            self.lock = open(self / LOCK, "a+")  # noqa: SIM115 - it stays open as long as the process owns the folder
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            owner = self.lock.read().strip() or "another process"
            self.close()
            raise UserError(f"{self} is being trained by {owner}: wait for it, or name another output.dir.") from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): make sure that only one run uses it.", self, error.strerror)
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {platform.node()}\n")
        self.lock.flush()
        if self.finished_results(resume):
            self.close()
            raise UserError(f"{self} was finished by another process meanwhile: run the same command for its results.")
        (self / PREEMPTED).unlink(missing_ok=True)
        write_atomically(self / RECIPE, recipe_yaml.encode())
        self.log("\n".join(self.said))

    def say(self, text: str) -> None:
        """Print a text beside the progress bar, and note it for run.log; on the main process."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if self.lock:
            self.log(text)
        else:
            self.said.append(text)

    def log(self, text: str) -> None:
        """Append a text to run.log, which holds what the console showed."""
        if text:
            with writing(self / LOG), (self / LOG).open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def close(self) -> None:
        """Give the folder up; the end of the process does it, too."""
        if self.lock:
            self.lock.close()
            self.lock = None


def is_owned(path: Path) -> bool:
    """Whether a living process on this machine (on NFS with locks: on any) owns the run folder; nothing is locked."""
    # struct flock, which Python does not know: a lock in the way of a reader's, from the start to the end of the file.
    fields = {"type": fcntl.F_RDLCK, "whence": os.SEEK_SET, "start": 0, "length": 0, "process": 0}
    order, layout = ["type", "whence", "start", "length", "process"], "@hhqqi"
    if sys.platform == "darwin":
        order, layout = ["start", "length", "process", "type", "whence"], "@qqihh"
    try:
        with open(path / LOCK, "rb") as file:
            found = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *(fields[name] for name in order)))
    except OSError:  # no folder, or a file system without locks
        return False
    return struct.unpack(layout, found)[order.index("type")] != fcntl.F_UNLCK


def read_results(path: Path) -> dict[str, Any]:
    """What a results.json holds.

    Raises:
        UserError: it is not what was written.
    """
    try:
        results = json.loads(path.read_text())
        # Versions that wrote no sum did not write their own number either.
        if not is_intact(results) and ("sha256" in results or "benchmark" in results["versions"]):
            raise ValueError("its sum differs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and the same command writes it again.") from None
    return results


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a file system refuses in the block into a sentence about `path`; a full disk has one of its own."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} was removed while the run writes to it: start the run again.") from error
    except OSError as error:
        if error.errno is None or "No space left" in str(error):
            raise
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror}): check its file system and permissions, "
            "or name another place, such as another output.dir."
        ) from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is on the disk when this returns."""
    with writing(path), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, its name holds the old content or the new."""
    partial = path.with_name(f".{path.name}.incomplete")
    write_durably(partial, data)
    with writing(path):
        partial.rename(path)
    sync(path.parent)


def publish_files(folder: Path) -> None:
    """Sync a folder's files to the disk and give them the umask's modes: some writers leave them to their owner."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_bytes(write: Any) -> bytes:
    """What `write` writes to the binary file that it is called with."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def find_in_run(folder: Path, name: str) -> Path | None:
    """A file of the run that a model folder belongs to: in it on the Hub, above it in a run folder; None if nowhere."""
    return next((place / name for place in (folder, folder.parent) if (place / name).exists()), None)


def results_of_model(folder: Path) -> dict[str, Any]:
    """What results.json says of the run that a model folder belongs to; of a model that was chosen before the run's end
    its own step and mIoU, and not the run's seconds. Empty where there is no run.
    """
    run, chosen = find_in_run(folder, RESULTS), folder / CHOSEN
    results = read_results(run) if run else {}
    return results | json.loads(chosen.read_text()) | {"train_seconds": None} if chosen.exists() else results
