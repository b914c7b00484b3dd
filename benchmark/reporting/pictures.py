"""Pictures for people: label maps in their classes' colours, legends, panels and confusion matrices."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmark.models.windows import IGNORE_INDEX

SAMPLE_SIDE = 256  # the longer side of a picture in samples/
PANEL_SIDE = 384  # the longer side of each of a panel's three pictures
GAP, LINE = 8, 22  # pixels between the parts of a picture, and from one line of text to the next
FONT_SIZE = 14
OVERLAY_SIDE = 2048  # an overlay's longer side at most: it is there to be looked at
IGNORE_COLOR = (0, 0, 0)


def palette(colors: Sequence[Sequence[int]]) -> np.ndarray:
    """The colour of each of 256 labels, uint8 (256, 3); black beyond the classes, and where a label is ignored."""
    table = np.full((256, 3), IGNORE_COLOR, np.uint8)
    table[: len(colors)] = colors
    return table


def draw_labels(labels: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """A uint8 label map (H, W) as a palette image: its pixels are the labels, its palette the classes' colours."""
    image = Image.fromarray(labels)
    image.putpalette(palette(colors).tobytes())
    return image


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Each class's share of a uint8 label map (H, W), in per cent: float64 (num_classes,)."""
    # PIL counts bytes as they are, where NumPy's bincount would make eight of each.
    return 100 * np.array(Image.fromarray(labels).histogram()[:num_classes]) / labels.size


def overlay(
    image: Image.Image, labels: np.ndarray, classes: Sequence[str], colors: Sequence[Sequence[int]]
) -> Image.Image:
    """An RGB image with its label map (H, W) laid half over it, above a legend of the classes by their share.

    At a size to look at: at least 256 pixels high, the longer side at most OVERLAY_SIDE where that allows it.
    """
    base = image.resize(_viewing_size(image.size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    shares = class_shares(labels, len(classes))
    names = {c: f"{classes[c]} {shares[c]:.1f} %" for c in np.argsort(-shares, kind="stable") if shares[c]}
    return _with_legend([blend(base, labels, colors)], [], names, colors)


def blend(image: Image.Image, labels: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """An RGB image with its label map, uint8 (H, W) of any size, laid half over it."""
    drawn = draw_labels(labels, colors).resize(image.size, Image.Resampling.NEAREST).convert("RGB")
    return Image.blend(image, drawn, 0.5)


def legend(classes: Sequence[str], colors: Sequence[Sequence[int]]) -> Image.Image:
    """The names of all classes beside their colours."""
    return _with_legend([Image.new("RGB", (PANEL_SIDE, 1), "white")], [], dict(enumerate(classes)), colors)


def panel(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Sequence[int]],
) -> np.ndarray:
    """Image | label | prediction side by side over a legend of the classes that occur: uint8 (H, W, 3).

    Args:
        image: uint8 (3, h, w).
        label, prediction: (H, W) class ids, 255 = ignore; drawn at a size to look at.
        colors: [red, green, blue] a class.
    """
    height, width = image.shape[1:]
    factor = PANEL_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    parts = [Image.fromarray(image.transpose(1, 2, 0)).resize(size, Image.Resampling.BILINEAR)]
    for ids in (label, prediction):
        drawn = Image.fromarray(palette(colors)[ids])
        parts.append(drawn.resize(size, Image.Resampling.NEAREST))
    names = {c: classes[c] for c in np.union1d(label, prediction) if c < len(classes)}
    if (label == IGNORE_INDEX).any():
        names[IGNORE_INDEX] = "no label"
    return np.asarray(_with_legend(parts, ["image", "label", "prediction"], names, colors))


class SampleNames(NamedTuple):
    """The files of one sample."""

    image: str
    label: str
    prediction: str


def sample_names(key: str) -> SampleNames:
    """The names in samples/ of what belongs to one validation image."""
    return SampleNames(f"{key}-image.jpg", f"{key}-label.png", f"{key}-prediction.png")


def sample_files(
    key: str, image: np.ndarray, label: np.ndarray, prediction: np.ndarray, colors: Sequence[Sequence[int]]
) -> dict[str, bytes]:
    """By name, the files of one validation image; arrays as for `panel`, at most SAMPLE_SIDE pixels a side."""
    names, files = sample_names(key), {}
    photo = Image.fromarray(image.transpose(1, 2, 0))
    factor = min(1.0, SAMPLE_SIDE / max(photo.size))
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    for name, picture in (
        (names.image, photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)),
        (names.label, draw_labels(label, colors).resize(size, Image.Resampling.NEAREST)),
        (names.prediction, draw_labels(prediction, colors).resize(size, Image.Resampling.NEAREST)),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if name.endswith("jpg") else "PNG", quality=85, optimize=True)
        files[name] = buffer.getvalue()
    return files


def sample_panels(folder: Path, classes: Sequence[str], colors: Sequence[Sequence[int]]) -> bytes | None:
    """The panels, one below the other, of what `sample_files` wrote to a folder, as a PNG; None of an empty one."""
    panels = []
    for file in sorted(folder.glob("*-image.jpg")):
        names = sample_names(file.name.removesuffix("-image.jpg"))
        image, label, prediction = (np.asarray(Image.open(folder / name)) for name in names)
        panels.append(panel(image.transpose(2, 0, 1), label, prediction, classes, colors))
    return png(stack_panels(panels)) if panels else None


def stack_panels(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels, uint8 (H, W, 3) each, one below the other on white."""
    width = max(panel.shape[1] for panel in panels)
    padded = [np.pad(panel, ((0, 0), (0, width - panel.shape[1]), (0, 0)), constant_values=255) for panel in panels]
    return np.concatenate(padded)


def confusion_picture(confusion: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A confusion matrix (C, C) of pixels, each label's row in per cent of its pixels: uint8 (H, W, 3).

    Rows are labels and columns predictions; the darker, the more. Cells show their per cents where they are wide
    enough.
    """
    count = len(classes)
    rows = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = int(np.clip(900 // count, 12, 44))
    text = ImageFont.load_default(min(FONT_SIZE, cell - 2))
    margin = int(max(text.getlength(name) for name in classes)) + 2 * GAP
    left, top = margin + LINE, margin + LINE
    title, title_font = "label (row) predicted as (column), in % of the label", ImageFont.load_default(FONT_SIZE)
    width = left + max(count * cell, int(title_font.getlength(title))) + GAP
    canvas = Image.new("RGB", (width, top + count * cell + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for r in range(count):
        draw.text((left - GAP, top + (r + 0.5) * cell), classes[r], fill="black", font=text, anchor="rm")
        for c in range(count):
            x, y = left + c * cell, top + r * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=_blue(rows[r, c]), outline=(235, 235, 235))
            if cell >= 30 and rows[r, c] >= 0.5:
                color = "white" if rows[r, c] > 50 else "black"
                draw.text((x + cell / 2, y + cell / 2), f"{rows[r, c]:.0f}", fill=color, font=text, anchor="mm")
    _write_upwards(canvas, [(left + c * cell, cell, classes[c]) for c in range(count)], top - GAP, text)
    draw.text((left, GAP / 2), title, fill="black", font=title_font)
    return np.asarray(canvas)


def png(picture: np.ndarray) -> bytes:
    """A uint8 picture (H, W, 3) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _viewing_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    factor = min(max(1.0, 256 / height), OVERLAY_SIDE / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _with_legend(
    parts: Sequence[Image.Image], titles: Sequence[str], names: dict[int, str], colors: Sequence[Sequence[int]]
) -> Image.Image:
    """Pictures of one size side by side, below their titles, over a legend of `names` by class."""
    width = len(parts) * (parts[0].width + GAP) + GAP
    # A picture of several parts is shown small, among others: its text is larger.
    size = FONT_SIZE if len(parts) == 1 else max(FONT_SIZE, width // 36)
    text, line, box = ImageFont.load_default(size), size * LINE // FONT_SIZE, size + 2
    column = max((int(text.getlength(name)) for name in names.values()), default=0) + box + 3 * GAP
    width = max(width, column + GAP)
    columns = max(1, (width - GAP) // column)
    above = GAP + (line if titles else 0)
    top = above + parts[0].height + GAP
    canvas = Image.new("RGB", (width, top + line * -(-len(names) // columns) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for number, part in enumerate(parts):
        x = GAP + number * (part.width + GAP)
        canvas.paste(part, (x, above))
        if titles:
            draw.text((x, GAP), titles[number], fill="black", font=text)
    table = palette(colors)
    for number, (c, name) in enumerate(names.items()):
        x, y = GAP + number % columns * column, top + number // columns * line
        draw.rectangle((x, y, x + box, y + box), fill=tuple(table[c].tolist()), outline="black")
        draw.text((x + box + GAP, y), name, fill="black", font=text)
    return canvas


def _write_upwards(
    canvas: Image.Image, columns: Sequence[tuple[int, int, str]], bottom: int, text: ImageFont.FreeTypeFont
) -> None:
    """Write each name above its column (x, width, name), from `bottom` upwards."""
    for x, width, name in columns:
        strip = Image.new("RGB", (int(text.getlength(name)) + 2, width), "white")
        ImageDraw.Draw(strip).text((0, width / 2), name, fill="black", font=text, anchor="lm")
        strip = strip.rotate(90, expand=True)
        canvas.paste(strip, (x, bottom - strip.height))


def _blue(percent: float) -> tuple[int, int, int]:
    share = percent / 100
    return tuple(round(255 + share * (dark - 255)) for dark in (8, 48, 107))
