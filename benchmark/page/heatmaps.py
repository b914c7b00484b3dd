"""Pictures of tables of a study's page, as SVG text: agreement of settings, IoU by class, pairs that differ.

Colours have eleven steps, the classes h0..h10 of the style sheet; every number is in its cell, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmark.page.charts import interval_text
from benchmark.page.svg import (
    DASH,
    MINUS,
    element,
    escape,
    head_size,
    heads,
    known,
    number,
    picture,
    shortened,
    text_width,
    title,
    words,
)

Cell = tuple[str, str, str]  # the class of its colour, its text, what is shown while the pointer is over it
UNKNOWN: Cell = ("none", DASH, "not known")


def tau_heatmap(settings: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> str:
    """Kendall's tau between each two settings: -1..1, blue above 0 and orange below."""
    found = {frozenset((pair["a"], pair["b"])): pair for pair in pairs}

    def cell(row: int, column: int) -> Cell:
        a, b = settings[row], settings[column]
        pair = found.get(frozenset((a, b)))
        if row == column:
            return "self", "", a
        if pair is None or not known(pair["tau"]):
            return UNKNOWN
        low, high = pair["tau_interval"] or (None, None)
        interval = f" [{low:.2f}, {high:.2f}]" if known(low) and known(high) else ""
        hover = f"{a}, {b}: tau {pair['tau']:.2f}{interval}, {pair['encoders']} encoders"
        return _shade(pair["tau"]), _signed(pair["tau"], 2), hover

    return _grid(settings, settings, cell, (50, 30), "Kendall's tau between settings")


def difference_matrix(encoders: Sequence[str], differences: Sequence[Mapping[str, Any]]) -> str:
    """How much better the row's encoder is than the column's, in points; coloured where it is sure."""
    found = {frozenset((pair["better"], pair["worse"])): pair for pair in differences}

    def cell(row: int, column: int) -> Cell:
        pair = found.get(frozenset((encoders[row], encoders[column])))
        if row == column:
            return "self", "", encoders[row]
        if pair is None or not known(pair["difference"]):
            return UNKNOWN
        points = 100 * pair["difference"]
        value = points if pair["better"] == encoders[row] else -points
        colour = ("h7" if value > 0 else "n7") if pair["sure"] else "h0"
        said = (
            f"{pair['better']} {MINUS} {pair['worse']}: {_signed(points, 2)} {interval_text(pair['interval'])} points"
        )
        return colour, _signed(value, 1), f"{said}, {'sure' if pair['sure'] else 'not sure among all pairs'}"

    return _grid(encoders, encoders, cell, (47, 22), "Pairs of encoders that differ beyond noise")


def class_heatmap(encoders: Sequence[str], classes: Sequence[str], iou: Sequence[Mapping[str, float | None]]) -> str:
    """IoU in per cent: a row a class, its mean before a column an encoder; the worst class first, unknown ones last.

    `iou` is each encoder's, by class.
    """
    means: dict[str, float | None] = {}
    for name in classes:
        values = [value for scores in iou if known(value := scores.get(name))]
        means[name] = sum(values) / len(values) if values else None
    worst_first = sorted(means, key=lambda name: (means[name] is None, means[name] or 0))
    names, columns = ["mean", *encoders], [means, *iou]

    def cell(row: int, column: int) -> Cell:
        value = columns[column].get(worst_first[row])
        if not known(value):
            return UNKNOWN
        return _shade(value), f"{100 * value:.0f}", f"{names[column]} {100 * value:.2f}"

    return _grid(worst_first, names, cell, (32, 16), "IoU of each class and encoder")


def _grid(
    rows: Sequence[str],
    columns: Sequence[str],
    cell: Callable[[int, int], Cell],
    size: tuple[int, int],
    label: str,
) -> str:
    """A table of cells of a size (width, height), with a name before each row and one aslant above each column."""
    width, height = size
    left = max((text_width(shortened(name)) for name in rows), default=0) + 14
    beyond, top = head_size(columns)
    middles = [left + width * (k + 0.5) for k in range(len(columns))]
    digits = round(width / 6.6)  # as many characters of a fixed width as a cell has room for
    parts = [heads(columns, middles, top - 4)]
    for r, name in enumerate(rows):
        drawn, texts = [words(left - 8, height / 2, name, text_anchor="end")], ""
        for c, middle in enumerate(middles):
            style, text, hover = cell(r, c)
            texts += text.center(digits)
            # A stroke as wide as the cell, and a row's texts as one: the shortest form, because cells are many.
            drawn.append(element("path", title(hover), class_=style, d=f"M{number(middle)} 0v{height - 1}"))
        place = f'x="{number(left)}" y="{number(height / 2 + 3.5)}" textLength="{width * len(columns)}"'
        drawn.append(f'<text class="row" xml:space="preserve" {place}>{escape(texts)}</text>' if columns else "")
        parts.append(element("g", *drawn, transform=f"translate(0 {number(top + height * r)})"))
    cells = element("g", *parts, "", class_="cells", stroke_width=width - 1)
    return picture(left + width * len(columns) + beyond, top + height * len(rows) + 4, label, cells)


def _shade(value: float) -> str:
    """One of eleven steps of a value in -1..1: h for positive values and n for negative ones."""
    return f"{'h' if value >= 0 else 'n'}{round(10 * min(abs(value), 1))}"


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", MINUS)
