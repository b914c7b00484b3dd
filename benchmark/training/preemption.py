"""Ending early without loss: what asks a run to end, and what its processes agree on between two steps.

A scheduler that takes a machine away says so by a signal and gives some seconds. The signal may reach one process or
all of them, at any moment; they agree on one step, save it, leave a marker and end with status 75.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from torch import tensor

import benchmark
from benchmark.data.workers import SIGNALS
from benchmark.errors import UserError
from benchmark.training.launch import is_launched

# A launcher forwards the signal that a scheduler has sent to every process itself: signals within this time are one.
ECHO_SECONDS = 1.0
AGREEMENT_TIMEOUT = timedelta(minutes=30)  # after which a process that does not answer is stuck
ROLL_CALL_TIMEOUT = timedelta(seconds=60)


class Preempted(SystemExit):
    """Ends the process with status 75, EX_TEMPFAIL of sysexits.h: the same command resumes where the run stopped."""

    def __init__(self):
        super().__init__(os.EX_TEMPFAIL)


class Preemption:
    """Whether any process was asked to end: by SIGTERM, SIGUSR1, SIGHUP, Ctrl-C or the loss of its launcher.

    As a context manager it handles these signals, the second of which ends the process at once, and names the ranks
    that do not answer where a collective times out. A thread receives them, because Python would not call a handler
    while a process waits in a collective.

    Args:
        marker: the file that `leave_marker` writes.
    """

    def __init__(self, accelerator: Accelerator, marker: Path):
        self.accelerator, self.marker = accelerator, marker
        self.reason: str | None = None
        self.asked_at = 0.0
        self.launcher = benchmark.LAUNCHER if is_launched() else None  # a shell may end, a launcher must not
        self.group = self.roll_call = None
        if accelerator.num_processes > 1:
            # On the host, where waiting for the slowest process stops no device; one more for when this one is broken.
            self.group = dist.new_group(backend="gloo", timeout=AGREEMENT_TIMEOUT)
            self.roll_call = dist.new_group(backend="gloo", timeout=ROLL_CALL_TIMEOUT)

    def __enter__(self) -> "Preemption":
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]  # a closed one says it is none
        receiver, self.sender = socket.socketpair()
        self.sender.setblocking(False)
        self.previous_fd = signal.set_wakeup_fd(self.sender.fileno(), warn_on_full_buffer=False)
        # A signal that is ignored stays ignored: nohup does that to SIGHUP.
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self.previous = {number: signal.signal(number, lambda *_: None) for number in handled}
        self.listener = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        self.listener.start()
        return self

    def __exit__(self, kind, error, _traceback) -> None:
        # A launcher that sees the first process end signals the others, whose status must stay 75.
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_IGN if kind is Preempted else handler)
        signal.set_wakeup_fd(self.previous_fd)
        # Ends the listener, even where forked processes hold the socket; it is waited for, or it could take the
        # process groups down later.
        self.sender.shutdown(socket.SHUT_WR)
        self.listener.join()
        self.sender.close()
        if self.roll_call and isinstance(error, RuntimeError) and "imed out" in str(error):
            self._name_stuck_ranks(error)

    def check(self) -> None:
        """Raise Preempted in every process when any of them was asked to end; all must call it at the same place."""
        self.any_process(False)

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; raises as `check` does, and must be called as it is."""
        if self.reason is None and self.launcher not in (None, os.getppid()):
            self._ask("the launcher is gone")
        flags = tensor([self.reason is not None, flag]).int()
        if self.group:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        if flags[0]:
            raise Preempted
        return bool(flags[1])

    def leave_marker(self, step: int) -> None:
        """Write to the run folder that the run ended early at `step`; all processes end after it is written."""
        if self.accelerator.is_main_process:
            reason = self.reason or "another process was asked to end"
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            self.marker.write_text(json.dumps({"step": step, "reason": reason}) + "\n")
            print(f"Preempted ({reason}): step {step} is saved, the same command resumes from there.", flush=True)
        self.accelerator.wait_for_everyone()

    def _listen(self, receiver: socket.socket) -> None:
        with receiver:
            while number := receiver.recv(1):
                if number[0] in SIGNALS:
                    self._receive(number[0])

    def _receive(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._replace_terminal()
        if self.reason is None:
            self._ask(signal.Signals(number).name)
        elif time.monotonic() - self.asked_at > ECHO_SECONDS:
            os._exit(128 + number)

    def _replace_terminal(self) -> None:
        """Let stdout and stderr go nowhere where they were a terminal: it is closed, so that writing to it fails."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self.terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def _ask(self, reason: str) -> None:
        self.asked_at, self.reason = time.monotonic(), reason
        if self.accelerator.is_main_process:
            with suppress(OSError):  # of a reader that has ended
                print(f"{reason}: the run ends once what it does now is done and saved.", file=sys.stderr, flush=True)

    def _name_stuck_ranks(self, error: RuntimeError) -> None:
        """After a collective that timed out: raise a sentence that names the ranks that do not answer."""
        try:
            dist.monitored_barrier(self.roll_call, timeout=ROLL_CALL_TIMEOUT, wait_all_ranks=True)
        except RuntimeError as missing:
            raise UserError(
                f"A process is stuck ({missing}): look at its machine and run the same command again."
            ) from error
