"""The one exception by which the builders tell a user what to fix, and how a foreign name is shown."""


class DatasetError(ValueError):
    """A mistake in what was asked of a dataset or found in its archives; its message is one sentence on what to do."""


def printable(text: str) -> str:
    """`text` with control characters and bytes that are not UTF-8 as escapes: it may come from an archive.

    A raw line feed or an ANSI sequence in a file's name could forge the lines of a log.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
