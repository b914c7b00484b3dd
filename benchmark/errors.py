"""Errors are product: what a user can mend ends in one sentence and exit status 2, without a traceback."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmark.models.errors import ModelError
from data_scripts.errors import DatasetError

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """A mistake that the user can mend; its message is one sentence that says what to do."""


def as_sentence(error: BaseException | None) -> str | None:
    """The sentence for the user, where `error` or what it was raised from is a user's to mend; else None."""
    while error is not None:
        if isinstance(error, (UserError, ModelError, DatasetError)):
            return str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):  # safetensors has an exception of its own for it
            where = f" for {error.filename}" if getattr(error, "filename", None) else ""
            return f"No space is left on the disk{where}; free some and run the same command again."
        if isinstance(error, OSError) and error.filename and error.errno in FORBIDDEN:
            return f"{error.filename} cannot be read or written ({error.strerror}): mend that, or name another place."
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def exit_with_one_sentence() -> Iterator[None]:
    """Turn an error that the user can mend into its sentence on stderr and exit status 2."""
    try:
        yield
    except Exception as error:
        sentence = as_sentence(error)
        if sentence is None:
            raise
        if int(os.environ.get("RANK", 0)):
            time.sleep(3)  # where the first process says the same, the launcher ends this one meanwhile
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
