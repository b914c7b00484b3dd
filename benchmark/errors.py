"""Errors are product: what a user can fix ends in one sentence and exit status 2, without a traceback."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from benchmark.models.errors import ModelError
from data_scripts.errors import DatasetError
from data_scripts.report import printable_lines

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class UserError(Exception):
    """A mistake that the user can fix; its message is one sentence that says what to do."""


class ProcessError(UserError):
    """A `UserError` that may happen to one process of several alone, so that each process prints its own."""


def as_sentence(error: BaseException | None) -> str | None:
    """The sentence for the user, where `error` or what it was raised from is the user's to fix; else None."""
    while error is not None:
        if isinstance(error, (UserError, ModelError, DatasetError)):
            return printable_lines(str(error))
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):  # safetensors has an exception of its own for it
            where = f" for {error.filename}" if getattr(error, "filename", None) else ""
            return f"No space is left on the disk{where}; free some and run the same command again."
        if isinstance(error, OSError) and error.filename and error.errno in FORBIDDEN:
            return f"{error.filename} cannot be read or written ({error.strerror}): fix that, or name another place."
        if " does not have a deterministic implementation" in str(error):  # torch's RuntimeError
            operation = str(error).partition(" ")[0]
            return f"{operation} has no deterministic kernel on this device: set train.deterministic to false."
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def exit_with_one_sentence() -> Iterator[None]:
    """Turn an error that the user can fix into its sentence on stderr and exit status 2.

    Of several processes on a machine, which fail alike, the first one prints it. Ctrl-C is no error either.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if as_sentence(error) is None:
            raise
        sys.exit(report_error(error))


def report_error(error: BaseException) -> int:
    """Print what a user reads about `error`, and return the exit status of the process."""
    if isinstance(error, SystemExit):
        return error.code
    sentence, rank = as_sentence(error), int(os.environ.get("LOCAL_RANK", 0))
    if sentence is None:
        traceback.print_exception(error)
        return 1
    if rank == 0:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    elif isinstance(error, ProcessError):
        print(f"error: process {rank}: {sentence}", file=sys.stderr, flush=True)
    return 2
