"""What the processes that load data do about signals, which are meant for the process that trains."""

import multiprocessing
import os
import signal
import threading

# What asks a run to end. SIGHUP comes when a terminal is closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def outlive_signals(_worker: int = 0) -> None:
    """Let a worker live through the signals that ask a run to end, unless its parent sends them.

    They reach it where they are sent to a whole process group; the run, which is to save, would end by its loss. For
    a DataLoader's worker_init_fn.
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
