"""Ending early without loss: what asks a run to end, and what its processes agree on between two steps.

A scheduler that takes a machine away says so by a signal and gives some seconds. The signal may reach one process or
all of them, at any moment; they agree on one step, save it, leave a marker and end with status 75.
"""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from torch import tensor

import benchmark
from benchmark.errors import UserError

MARKER = "preempted.json"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A launcher forwards the signal that a scheduler has sent to every process itself: within so many seconds it is one.
ECHO_SECONDS = 1.0
# A process that does not come to an agreement for so long is stuck. The collectives on the device wait longer, for they
# end the process without a word.
AGREEMENT_TIMEOUT, COLLECTIVE_TIMEOUT = timedelta(minutes=30), timedelta(minutes=40)
ROLL_CALL_TIMEOUT = timedelta(seconds=60)


class Preempted(SystemExit):
    """Ends the process with status 75, EX_TEMPFAIL of sysexits.h: the same command goes on where the run stopped."""

    def __init__(self):
        super().__init__(os.EX_TEMPFAIL)


class Preemption:
    """Whether any process was asked to end, by SIGTERM, SIGUSR1, Ctrl-C or the loss of its launcher.

    As a context manager it takes these signals, the second of which ends the process at once, and names the ranks that
    do not answer where a collective times out. A thread takes them: Python would not call a handler as long as a
    process waits in a collective.

    Args:
        marker: the file that `leave_marker` writes; one of an earlier run is removed.
    """

    def __init__(self, accelerator: Accelerator, marker: Path):
        self.accelerator, self.marker = accelerator, marker
        self.reason: str | None = None
        self.asked_at = 0.0
        self.launcher = benchmark.LAUNCHER if _is_launched() else None
        self.group = self.roll_call = None
        if accelerator.num_processes > 1:
            # On the host, where waiting for the slowest process stops no device; one more for when this one is broken.
            self.group = dist.new_group(backend="gloo", timeout=AGREEMENT_TIMEOUT)
            self.roll_call = dist.new_group(backend="gloo", timeout=ROLL_CALL_TIMEOUT)
        if accelerator.is_main_process:
            marker.unlink(missing_ok=True)

    def __enter__(self) -> "Preemption":
        receiver, self.sender = socket.socketpair()
        self.sender.setblocking(False)
        self.previous_fd = signal.set_wakeup_fd(self.sender.fileno(), warn_on_full_buffer=False)
        self.previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self.listener = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        self.listener.start()
        return self

    def __exit__(self, kind, error, _traceback) -> None:
        # A launcher that sees the first process end signals the others, whose status shall stay 75.
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_IGN if kind is Preempted else handler)
        signal.set_wakeup_fd(self.previous_fd)
        # Ends the listener, also where forked processes hold the socket; waited for, lest it take the groups down.
        self.sender.shutdown(socket.SHUT_WR)
        self.listener.join()
        self.sender.close()
        if self.roll_call and isinstance(error, RuntimeError) and "imed out" in str(error):
            self._call_the_roll(error)

    def check(self) -> None:
        """Raise Preempted in every process when any of them was asked to end; all must call it at the same place."""
        self.any_working(False)

    def any_working(self, working: bool) -> bool:
        """As `check`; hands back whether any process said that it has work left."""
        if self.reason is None and self.launcher not in (None, os.getppid()):
            self._ask("the launcher is gone")
        said = tensor([self.reason is not None, working]).int()
        if self.group:
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self.group)
        if said[0]:
            raise Preempted
        return bool(said[1])

    def leave_marker(self, step: int) -> None:
        """Say in the run folder that the run ended at `step` before its time; all processes end after it is written."""
        if self.accelerator.is_main_process:
            reason = self.reason or "another process was asked to end"
            self.marker.write_text(json.dumps({"step": step, "reason": reason}) + "\n")
            print(f"Preempted ({reason}): step {step} is saved, the same command goes on from there.", flush=True)
        self.accelerator.wait_for_everyone()

    def _listen(self, receiver: socket.socket) -> None:
        with receiver:
            while number := receiver.recv(1):
                if number[0] in SIGNALS:
                    self._note(number[0])

    def _note(self, number: int) -> None:
        if self.reason is None:
            self._ask(signal.Signals(number).name)
        elif time.monotonic() - self.asked_at > ECHO_SECONDS:
            os._exit(128 + number)

    def _ask(self, reason: str) -> None:
        self.asked_at, self.reason = time.monotonic(), reason

    def _call_the_roll(self, error: RuntimeError) -> None:
        """After a collective that timed out: raise a sentence that names the ranks that do not answer."""
        try:
            dist.monitored_barrier(self.roll_call, timeout=ROLL_CALL_TIMEOUT, wait_all_ranks=True)
        except RuntimeError as missing:
            raise UserError(
                f"A process is stuck ({missing}): look at its machine and run the same command again."
            ) from error


def _take_no_signals() -> None:
    """In a process that was forked: what it is sent is its own, and ends it as it ends any process."""
    if signal.set_wakeup_fd(-1) != -1:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_take_no_signals)


def _is_launched() -> bool:
    """Whether accelerate's launcher or torchrun started this process: a shell may go, they may not."""
    return any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"))


def outlive_signals(_worker: int = 0) -> None:
    """Let a process that loads data live through the signals that ask a run to end, unless its parent sends them.

    They reach it where they are sent to a whole process group; the run, which is to save, would end by its loss. For
    a DataLoader's worker_init_fn.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait_for_parent() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != multiprocessing.parent_process().pid:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()
