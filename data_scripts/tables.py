"""Tables for a terminal."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), left: int = 1) -> str:
    """Rows of cells as aligned columns: the first `left` columns to the left, the others to the right."""
    lines = [*([header] if header else []), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        (
            f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
