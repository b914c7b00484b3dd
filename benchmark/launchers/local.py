"""A study's runs on this machine, as many at once as there are places, and each once, though other sweeps start it too.

A run is a group of processes. It holds a lock beside its folder, which the system releases when the last of them that
has it ends: a second sweep leaves it alone while it lives, and takes it over when it is gone. Over NFS the lock holds
between machines where NFS has locks (version 4, or version 3 with lockd).
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmark.errors import UserError
from benchmark.reporting.run_folder import PREEMPTED, RESULTS, is_owned
from benchmark.study.status import failure_file, failure_sentence, log_file, note_failure
from benchmark.study.study import Cell, train_script

POLL = 0.5  # seconds
# Seconds in which torch's launcher lets its processes save.
GRACE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "150", "PET_SHUTDOWN_TIMEOUT": "150"}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Place:
    """Where one run at a time goes: the command before train.py, and variables of its environment."""

    command: tuple[str, ...]
    environment: dict[str, str]


@dataclass
class Active:
    """A run that this process has started."""

    cell: Cell
    place: Place
    process: subprocess.Popen
    lock: int


def find_places(devices: Sequence[str], gpus_per_run: int, jobs: int, cores: int) -> list[Place]:
    """The places of this machine.

    Args:
        devices: names of its GPUs, as in CUDA_VISIBLE_DEVICES; none on a CPU.
        gpus_per_run: GPUs of one run.
        jobs: runs beside each other on a CPU, which share the cores.

    Raises:
        UserError: a run wants more GPUs than there are.
    """
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--quiet")
    if not devices:
        threads = str(max(1, cores // jobs))
        return [Place((*launcher, *launch_options(0)), {"OMP_NUM_THREADS": threads})] * jobs
    if gpus_per_run > len(devices):
        raise UserError(f"--gpus_per_run {gpus_per_run} is more than the {len(devices)} GPUs that are here: lower it.")
    command = (*launcher, *launch_options(gpus_per_run))
    groups = [devices[i : i + gpus_per_run] for i in range(0, len(devices) - gpus_per_run + 1, gpus_per_run)]
    threads = str(max(1, cores // len(devices)))
    return [Place(command, {"CUDA_VISIBLE_DEVICES": ",".join(group), "OMP_NUM_THREADS": threads}) for group in groups]


def launch_options(gpus: int) -> list[str]:
    """Options of `accelerate launch` for a run on so many GPUs of one machine; 0 is a CPU."""
    configs = Path(train_script()).parent / "accelerate_configs"
    file = configs / {0: "cpu.yaml", 1: "single_gpu.yaml"}.get(gpus, "multi_gpu.yaml")
    # Port 0 is a free one: runs beside each other have one each.
    several = ["--num_processes", str(gpus), "--main_process_port", "0"] if gpus > 1 else []
    return ["--config_file", str(file), *several]


class LocalSweep:
    """Runs cells until each is finished or has failed, or until a signal asks it to end.

    Args:
        say: called with a line where a run starts or ends.
        show: called at each poll.
    """

    def __init__(self, places: Sequence[Place], say: Callable[[str], None], show: Callable[[], None]):
        self.free, self.say, self.show = list(places), say, show
        self.active: list[Active] = []
        self.signals: list[int] = []
        self.started_at = time.time()

    def run(self, cells: Sequence[Cell]) -> bool:
        """Run the cells; whether a signal ended it early."""
        # A signal that is ignored stays ignored: nohup does that to SIGHUP.
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self._receive) for number in handled}
        try:
            waiting = list(cells)
            while self.active or (waiting and not self.signals):
                if not self.signals:
                    waiting = [cell for cell in waiting if not self._is_done(cell) and not self._start(cell)]
                self.show()
                time.sleep(POLL)
                for active in list(self.active):
                    if self._ended(active):
                        again = self._finish(active)
                        waiting += [active.cell] if again else []
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return bool(self.signals)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        """Ask all runs to save and end; a second signal ends them at once, because they then receive a second one."""
        self.signals.append(number)
        for active in self.active:
            _signal_group(active.process.pid, signal.SIGTERM)

    def _is_done(self, cell: Cell) -> bool:
        """Whether it is finished, or has failed in another sweep since this one was started."""
        failed = failure_file(cell.folder)
        return (cell.folder / RESULTS).exists() or (
            failed.exists() and failed.stat().st_mtime > self.started_at and not is_owned(cell.folder)
        )

    def _start(self, cell: Cell) -> bool:
        """Start a run where a place is free and nobody else has it; whether it was started."""
        if not self.free:
            return False
        lock = take_lock(cell.folder)
        if lock is None:
            return False
        if self._is_done(cell):  # meanwhile
            os.close(lock)
            return False
        (cell.folder / PREEMPTED).unlink(missing_ok=True)  # of an earlier start
        failure_file(cell.folder).unlink(missing_ok=True)
        place = self.free.pop(0)
        command = [*place.command, train_script(), *cell.arguments]
        with log_file(cell.folder).open("a") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | GRACE | place.environment,
                start_new_session=True,  # a group of its own, because Ctrl-C must reach this process alone
                pass_fds=[lock],  # the launcher holds the lock, too: it outlives this process
            )
        self.active.append(Active(cell, place, process, lock))
        self.say(f"{cell.name}: started")
        if self.signals:  # which came while it was being started
            _signal_group(process.pid, signal.SIGTERM)
        return True

    def _ended(self, active: Active) -> bool:
        """Whether the whole group has ended: a launcher that a signal ends leaves processes that still save."""
        return active.process.poll() is not None and not _signal_group(active.process.pid, 0)

    def _finish(self, active: Active) -> bool:
        """Say how a run ended, and release its place and its lock; whether it has to run again."""
        cell, again = active.cell, False
        self.active.remove(active)
        self.free.append(active.place)
        marked = _marked_step(cell.folder)
        if (cell.folder / RESULTS).exists():
            self.say(f"{cell.name}: finished")
        elif self.signals or marked >= 0:
            again = not self.signals
            self.say(f"{cell.name}: interrupted" + (f" at step {marked:,}" if marked >= 0 else ""))
        else:
            note_failure(cell.folder, failure_sentence(cell.folder))
            self.say(f"{cell.name}: failed, see {log_file(cell.folder)}")
        os.close(active.lock)
        return again


def take_lock(folder: Path) -> int | None:
    """The descriptor of a run's lock, which lasts until all its copies are closed; None where somebody else runs it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # no locks here: the run folder's own owner has to do
        pass
    if is_owned(folder):  # by a run without a sweep, or one whose launcher was killed and that still saves
        os.close(descriptor)
        return None
    return descriptor


def _marked_step(folder: Path) -> int:
    """The step at which the run was preempted; -1 where it was not."""
    try:
        return int(json.loads((folder / PREEMPTED).read_text())["step"])
    except (OSError, ValueError, KeyError):
        return -1


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a group of processes; whether it has any."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS, where they ended and are not waited for
        return False
    return True
