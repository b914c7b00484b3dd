"""Charts of a study's page, as SVG text: intervals, cost against score, learning curves, ranks across settings.

Scores come in 0..1 and are drawn in per cent. `marks` numbers the encoders, so that each looks the same everywhere.
Rows are those of report.json. A value that is None has no mark.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

from benchmark.page.svg import (
    DASH,
    LINE,
    Box,
    Scale,
    element,
    head_size,
    heads,
    known,
    line,
    mark,
    path,
    picture,
    place_labels,
    shortened,
    spread,
    text_width,
    title,
    words,
    x_axis,
    y_axis,
)

Row = Mapping[str, Any]
Marks = Mapping[str, int]
WIDTH, HEIGHT = 960, 420
LEFT, TOP, FOOT = 44, 2 * LINE, 3 * LINE  # what the axes' texts need
ROW = 24  # from one encoder to the next
LOG_FROM = 10  # the axis of costs is logarithmic where they differ by more


def has_both(interval: Sequence[float | None] | None) -> TypeGuard[Sequence[float]]:
    """Whether both ends of an interval are known."""
    return interval is not None and all(known(end) for end in interval)


def interval_text(interval: Sequence[float | None] | None) -> str:
    """[low, high] of 0..1 in per cent; nothing where it is not known."""
    return "[{:.2f}, {:.2f}]".format(*(100 * end for end in interval)) if has_both(interval) else ""


def interval_chart(rows: Sequence[Row], marks: Marks) -> str:
    """The encoders from the best on, each with its interval and a small tick for each run."""
    rows = sorted((row for row in rows if known(row["mean_iou"])), key=lambda row: -row["mean_iou"])
    left, right = _names_width(row["encoder"] for row in rows), WIDTH - 150
    bottom = LINE + ROW * len(rows)
    x = Scale.around(_percents(rows), left, right)
    parts = [x_axis(x, LINE, bottom, "mean IoU in per cent")]
    for k, row in enumerate(rows):
        y, index = LINE + ROW * (k + 0.5), marks[row["encoder"]]
        parts.append(words(left - 12, y, row["encoder"], text_anchor="end"))
        if has_both(row["interval"]):
            parts.append(_bar(index, [(x.at(100 * end), y) for end in row["interval"]], _said(row)))
        for run in row["runs"]:
            if known(run["mean_iou"]):
                at, hover = (
                    x.at(100 * run["mean_iou"]),
                    f"seed {DASH if run['seed'] is None else run['seed']}: {100 * run['mean_iou']:.2f} %",
                )
                parts.append(element("path", title(hover), class_="run", d=path([(at, y - 8), (at, y + 8)])))
        parts.append(mark(index, x.at(100 * row["mean_iou"]), y, _said(row)))
        parts.append(words(right + 8, y, f"{100 * row['mean_iou']:.2f} {interval_text(row['interval'])}", class_="s"))
    return picture(WIDTH, bottom + FOOT, "Mean IoU of each encoder with its interval", *parts)


def cost_chart(rows: Sequence[Row], marks: Marks) -> str:
    """mean IoU with its interval against GPU-hours; a staircase joins the Pareto front of each kind of device, whose
    names are bold.
    """
    rows = [row for row in rows if known(row["mean_iou"]) and known(row["gpu_hours"])]
    costs = [row["gpu_hours"] for row in rows]
    log = min(costs, default=0) > 0 and max(costs) > LOG_FROM * min(costs)
    x = Scale.around(costs, LEFT, WIDTH - 20, log)
    y = Scale.around(_percents(rows), HEIGHT - FOOT, TOP)
    parts = [x_axis(x, y.end, y.start, "GPU-hours" + " (logarithmic)" * log), y_axis(y, x.start, x.end, "mean IoU, %")]
    for kind in dict.fromkeys((row["device"], row["precision"]) for row in rows if row["pareto"]):
        alike = [row for row in rows if row["pareto"] and (row["device"], row["precision"]) == kind]
        front = sorted((row["gpu_hours"], 100 * row["mean_iou"]) for row in alike)
        stairs = [(x.at(cost), y.at(score)) for cost, score in front]
        corners = [((after[0], before[1]), after) for before, after in pairwise(stairs)]
        hover = title("Pareto front: no other encoder is as cheap and as good")
        stairs = [stairs[0], *(point for corner in corners for point in corner)]
        parts.append(element("path", hover, class_="front", d=path(stairs)))
    points = [(x.at(row["gpu_hours"]), y.at(100 * row["mean_iou"])) for row in rows]
    taken: list[Box] = [(a - 6, b - 6, a + 6, b + 6) for a, b in points]
    for row, (at, height) in zip(rows, points, strict=True):
        hover = f"{_said(row)}, {row['gpu_hours']:.3g} GPU-hours{', on the Pareto front' * bool(row['pareto'])}"
        if has_both(row["interval"]):
            ends = [y.at(100 * end) for end in row["interval"]]
            taken.append((at - 2, min(ends), at + 2, max(ends)))
            parts.append(_bar(marks[row["encoder"]], [(at, end) for end in ends], hover))
        parts.append(mark(marks[row["encoder"]], at, height, hover))
    widths = [text_width(shortened(row["encoder"])) for row in rows]
    boxes = place_labels(points, widths, taken, (x.start, y.end, x.end, y.start))
    for row, (at, height), box in zip(rows, points, boxes, strict=True):
        if box:
            parts.append(_leader(at, height, box))
            style = "name front-name" if row["pareto"] else "name"
            beside = (
                (box[0], "start") if box[0] > at else (box[2], "end") if box[2] < at else (sum(box[::2]) / 2, "middle")
            )
            x_at, anchor = beside
            parts.append(words(x_at, (box[1] + box[3]) / 2, row["encoder"], class_=style, text_anchor=anchor))
    return picture(WIDTH, HEIGHT, "Mean IoU against GPU-hours", *parts)


def curve_chart(rows: Sequence[Row], marks: Marks) -> str:
    """mean IoU by training step, a line an encoder with its name at the end, and about ten marks on each."""
    curves = {row["encoder"]: [(step, score) for step, score in row["curve"] if known(step)] for row in rows}
    curves = {encoder: curve for encoder, curve in curves.items() if any(known(score) for _, score in curve)}
    right = WIDTH - _names_width(curves)
    height = max(HEIGHT, TOP + FOOT + LINE * len(curves))
    x = Scale.around([step for curve in curves.values() for step, _ in curve], LEFT, right)
    values = [100 * score for curve in curves.values() for _, score in curve if known(score)]
    y = Scale.around(values, height - FOOT, TOP)
    parts = [x_axis(x, y.end, y.start, "step"), y_axis(y, x.start, x.end, "mean IoU, %")]
    ends = []
    for encoder, curve in curves.items():
        points = [(x.at(step), y.at(100 * score) if known(score) else None) for step, score in curve]
        parts.append(line(marks[encoder], points, encoder))
        shown = [(*curve[k], *points[k]) for k in range(len(curve) - 1, -1, -max(1, len(curve) // 10))]
        seen = [(step, score, at, level) for step, score, at, level in shown if level is not None and known(score)]
        for step, score, at, level in seen:
            parts.append(mark(marks[encoder], at, level, f"{encoder}, step {step}: {100 * score:.2f} %"))
        ends.append(next((at, level) for at, level in reversed(points) if level is not None))
    for encoder, end, level in zip(curves, ends, spread([level for _, level in ends], LINE, LINE, height), strict=True):
        parts.append(element("path", class_="leader", d=path([(end[0] + 8, end[1]), (right + 4, level)])))
        parts.append(words(right + 8, level, encoder))
    return picture(WIDTH, height, "Mean IoU by training step", *parts)


def bump_chart(settings: Sequence[str], ranks: Mapping[str, Sequence[int | None]], marks: Marks) -> str:
    """Each encoder's rank in each setting, 1 at the top; its line breaks where it has none.

    Encoders of the same rank have the same height, side by side. Names are at the first and the last setting, or at
    the encoder's last mark.
    """
    side, (beyond, top) = _names_width(ranks), head_size(settings)
    gap = min(max((WIDTH - 2 * side) / max(len(settings) - 1, 1), 90), 240)
    columns = [side + gap * k for k in range(len(settings))]
    tied: dict[tuple[int, int], list[str]] = defaultdict(list)
    for encoder, row in ranks.items():
        for column, rank in enumerate(row):
            if rank is not None:
                tied[column, rank].append(encoder)
    lowest = max((rank + len(encoders) - 1 for (_, rank), encoders in tied.items()), default=1)

    def point(encoder: str, column: int) -> tuple[float, float | None]:
        rank = ranks[encoder][column]
        if rank is None:
            return columns[column], None
        same = tied[column, rank]
        return columns[column] + 13 * (same.index(encoder) - (len(same) - 1) / 2), top + ROW * (rank - 0.5)

    parts = [heads(settings, columns, top - 4)]
    parts += [element("path", class_="grid", d=path([(at, top), (at, top + ROW * lowest)])) for at in columns]
    points = {encoder: [point(encoder, column) for column in range(len(settings))] for encoder in ranks}
    parts += [line(marks[encoder], at, encoder) for encoder, at in points.items()]
    for (column, rank), encoders in tied.items():
        for encoder in encoders:
            at, level = points[encoder][column]
            parts.append(mark(marks[encoder], at, level or 0, f"{encoder}, {settings[column]}: rank {rank}"))
    parts += _bump_names(points, columns, top + LINE / 2, top + ROW * lowest)
    width = side + gap * max(len(settings) - 1, 0) + max(side, beyond)
    return picture(width, top + ROW * lowest + LINE, "Ranks of the encoders across settings", *parts)


def _bump_names(
    points: Mapping[str, Sequence[tuple[float, float | None]]], columns: Sequence[float], low: float, high: float
) -> list[str]:
    parts = []
    last = len(columns) - 1
    for column, shift, anchor in ((0, -18, "end"), (last, 18, "start")):
        levels = {encoder: at[column][1] for encoder, at in points.items()} if columns else {}
        there = {encoder: level for encoder, level in levels.items() if level is not None}
        ties = max((list(there.values()).count(level) for level in there.values()), default=1)
        x = columns[column] + shift + (ties - 1) * 6.5 * (1 if shift > 0 else -1) if there else 0
        for encoder, level in zip(there, spread(list(there.values()), LINE, low, high), strict=True):
            parts.append(words(x, level, encoder, text_anchor=anchor))
    for encoder, at in points.items():
        found = [(x, level) for x, level in at if level is not None]
        if found and at[0][1] is None and at[last][1] is None:
            parts.append(words(found[-1][0] + 10, found[-1][1] - 9, encoder, class_="name"))
    return parts


def _names_width(names: Any) -> float:
    return max((text_width(shortened(name)) for name in names), default=0) + 24


def _percents(rows: Sequence[Row]) -> list[float]:
    """All scores and interval ends that a chart must have room for."""
    ends = [end for row in rows if has_both(row["interval"]) for end in row["interval"]]
    runs = [run["mean_iou"] for row in rows for run in row["runs"] if known(run["mean_iou"])]
    return [100 * value for value in [*(row["mean_iou"] for row in rows), *ends, *runs]]


def _said(row: Row) -> str:
    return f"{row['encoder']}: {100 * row['mean_iou']:.2f} % {interval_text(row['interval'])}".rstrip()


def _bar(index: int, ends: Sequence[tuple[float, float]], hover: str) -> str:
    """An interval's line, in its encoder's colour, between two points."""
    return element("path", title(hover), class_=f"bar k{index % 7}", d=path(ends))


def _leader(x: float, y: float, box: Box) -> str:
    """A line from a mark to its label, where that is not right beside it."""
    near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    if abs(near_x - x) + abs(near_y - y) < 14:
        return ""
    return element("path", class_="leader", d=path([(x, y), (near_x, near_y)]))
