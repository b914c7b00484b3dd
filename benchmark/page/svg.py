"""What the charts of a study's page are drawn with: SVG elements as text, marks, scales, labels that keep apart.

Lengths are in pixels. Colours are classes that the page's style sheet fills in, so that light and dark both work.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, floor, isfinite, log10, pi, sin
from typing import Any, TypeGuard
from unicodedata import east_asian_width

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LINE = 15  # from one line of text to the next
COLORS = 7
LONGEST_NAME = 26  # characters; a longer name is cut, and its title has it all
Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]


def _star(points: int, inner: float = 1, turn: float = 0, size: float = 6.5) -> str:
    """The path of a regular polygon, or of a star where `inner`, its inner radius in 0..1, is below 1."""
    radii = [size] if inner == 1 else [size, size * inner]
    count = points * len(radii)
    angles = [2 * pi * k / count - pi / 2 + turn * pi / 180 for k in range(count)]
    corners = [
        (radii[k % len(radii)] * cos(angle), radii[k % len(radii)] * sin(angle)) for k, angle in enumerate(angles)
    ]
    return path(corners) + "z"


def number(value: float) -> str:
    """A coordinate with one decimal, or none where it is 0."""
    return f"{value:.1f}".removesuffix(".0").replace("-0.0", "0")


def path(points: Sequence[tuple[float, float | None]]) -> str:
    """The path through points (x, y); it breaks where y is None."""
    drawn, move = [], True
    for x, y in points:
        if y is not None:
            drawn.append(f"{'M' if move else 'L'}{number(x)} {number(y)}")
        move = y is None
    return "".join(drawn)


# With 7 colours, 70 encoders have no mark in common.
SHAPES = (
    "M-5.2 0a5.2 5.2 0 1 0 10.4 0a5.2 5.2 0 1 0-10.4 0z",
    _star(4, turn=45),
    _star(3, turn=0),
    _star(4),
    _star(5, inner=0.45, size=7.5),
    _star(3, turn=180),
    _star(4, inner=0.35, size=7.5),
    _star(3, turn=90),
    _star(4, inner=0.35, turn=45, size=7.5),
    _star(3, turn=270),
)


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a value: neither None nor NaN nor infinite."""
    return value is not None and isfinite(value)


def clean(text: str) -> str:
    """The text, its characters that neither XML nor UTF-8 can hold replaced."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: object) -> str:
    """Any text as the text of an element or the value of an attribute."""
    return html.escape(clean(str(text)))


def element(name: str, *children: str, **attributes: Any) -> str:
    """An element of children that are markup already; class_ is `class`, text_anchor is `text-anchor`."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{number(value) if isinstance(value, float) else escape(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{said}>{''.join(children)}</{name}>" if children else f"<{name}{said}/>"


def title(text: str) -> str:
    """What is shown while the pointer is over the element that this is in."""
    return element("title", escape(text))


def picture(width: float, height: float, label: str, *parts: str) -> str:
    """A whole SVG; `label` says what it shows to who cannot see it."""
    size = {"width": number(width), "height": number(height), "viewBox": f"0 0 {number(width)} {number(height)}"}
    return element("svg", *parts, "", role="img", aria_label=label, **size)


def mark(index: int, x: float, y: float, hover: str) -> str:
    """The mark of encoder `index`: its own pair of colour and shape."""
    place = f"translate({number(x)} {number(y)})"
    style = f"m k{index % COLORS}"
    return element("path", title(hover), class_=style, transform=place, d=SHAPES[index % len(SHAPES)])


def line(index: int, points: Sequence[tuple[float, float | None]], hover: str) -> str:
    """The line of encoder `index`; the eighth encoder's has the first one's colour and is dashed."""
    style = f"l k{index % COLORS} d{index // COLORS % 3}"
    return element("path", title(hover), class_=style, d=path(points) or "M0 0")


def shortened(name: str, limit: int = LONGEST_NAME) -> str:
    """The name, cut where it is longer than `limit` characters."""
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def text_width(text: str) -> float:
    """About how wide a text of 12 pixels is; rather too much."""
    return sum(13 if east_asian_width(character) in "WF" else 7.5 for character in text)


def words(x: float, y: float, text: str, **attributes: Any) -> str:
    """A text whose first line's middle is at y; a long one is cut."""
    shown = shortened(text)
    hover = [title(text)] if shown != text else []
    return element("text", escape(shown), *hover, x=float(x), y=float(y + 4), **attributes)


def heads(names: Sequence[str], xs: Sequence[float], y: float) -> str:
    """Names of columns, aslant above (x, y)."""
    turned = (f"translate({number(x)} {number(y)})rotate(-40)" for x in xs)
    return "".join(words(0, -4, name, transform=turn) for name, turn in zip(names, turned, strict=True))


def head_size(names: Sequence[str]) -> tuple[float, float]:
    """Width beyond the last column's middle and height that `heads` needs."""
    longest = max((text_width(shortened(name)) for name in names), default=0)
    return longest * cos(40 * pi / 180) + 8, longest * sin(40 * pi / 180) + 16


@dataclass(frozen=True)
class Scale:
    """Values low..high on pixels start..end, by their logarithms where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> "Scale":
        """A scale with a margin around the values; of 0..1 without any."""
        low, high = min(values, default=0), max(values, default=1)
        if log:
            margin = (high / low) ** 0.08
            return cls(low / margin, high * margin, start, end, True)
        margin = 0.08 * (high - low) or max(abs(high) / 10, 0.5)
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the scale, about six."""
        if self.log:
            powers = range(floor(log10(self.low)), floor(log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) < 5 else (1,)
            return [v for p in powers for v in (f * 10.0**p for f in factors) if self.low <= v <= self.high]
        rough = (self.high - self.low) / 6
        power = 10.0 ** floor(log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
        return [k * step for k in range(floor(self.low / step) + 1, floor(self.high / step) + 1)]


def x_axis(x: Scale, top: float, bottom: float, name: str) -> str:
    """Grid lines from top to bottom with their values and the axis' name below."""
    parts = [words((x.start + x.end) / 2, bottom + 2.4 * LINE, name, text_anchor="middle", class_="s")]
    for value in x.ticks():
        at = x.at(value)
        parts.append(element("path", class_="grid", d=path([(at, top), (at, bottom)])))
        parts.append(words(at, bottom + LINE, f"{value:g}", text_anchor="middle", class_="s"))
    return "".join(parts)


def y_axis(y: Scale, left: float, right: float, name: str) -> str:
    """Grid lines from left to right with their values beside them and the axis' name above; y.start is its foot."""
    parts = [words(0, y.end - LINE, name, class_="s")]
    for value in y.ticks():
        at = y.at(value)
        parts.append(element("path", class_="grid", d=path([(left, at), (right, at)])))
        parts.append(words(left - 6, at, f"{value:g}", text_anchor="end", class_="s"))
    return "".join(parts)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in the order of the wanted ones, `gap` apart at least, with the least squares of all moves.

    They are within low..high where there is room for that, else they go beyond high.
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    blocks: list[tuple[float, int]] = []  # mean of wanted - k * gap, and size: isotonic regression
    for k, index in enumerate(order):
        mean, size = wanted[index] - k * gap, 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    most = high - (len(wanted) - 1) * gap
    means = [max(low, min(mean, most)) for mean, size in blocks for _ in range(size)]
    placed = dict(zip(order, (mean + k * gap for k, mean in enumerate(means)), strict=True))
    return [placed[k] for k in range(len(wanted))]


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place_labels(
    anchors: Sequence[Point], widths: Sequence[float], taken: Sequence[Box], within: Box
) -> list[Box | None]:
    """A box near each anchor that overlaps no box in `taken` and no other label; None where none is free."""
    directions = [(1, 0), (-1, 0), (0.7, -1), (0.7, 1), (-0.7, -1), (-0.7, 1), (0, -1), (0, 1)]
    boxes: list[Box | None] = []
    blocked = list(taken)
    for (x, y), width in zip(anchors, widths, strict=True):
        centres = (
            (x + side * (11 + 0.6 * far + width / 2), y + rise * (LINE + far))
            for far in range(0, 400, 7)
            for side, rise in directions
        )
        options = ((cx - width / 2, cy - LINE / 2, cx + width / 2, cy + LINE / 2) for cx, cy in centres)
        inside = (
            b for b in options if within[0] <= b[0] and within[1] <= b[1] and b[2] <= within[2] and b[3] <= within[3]
        )
        free = next((box for box in inside if not any(overlap(box, other) for other in blocked)), None)
        boxes.append(free)
        blocked += [free] if free else []
    return boxes
