"""What the processes that load data do about signals, which are meant for the process that trains."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What asks a run to end. SIGHUP comes when a terminal is closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Start processes in which no thread takes the signals that ask a run to end; this one takes them afterwards.

    A library may start threads in a worker before `outlive_signals` runs, and the system gives a signal to any thread.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(_worker: int = 0) -> None:
    """Let a worker live through the signals that ask a run to end, unless its parent sends them.

    They reach it where they are sent to a whole process group; the run, which is to save, would end by its loss. For
    a DataLoader's worker_init_fn; the workers are started under `blocked_signals`.
    """
    signal.set_wakeup_fd(-1)  # the parent's: a signal to this process is not one to the run
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait_for_parent() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != multiprocessing.parent_process().pid:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()
