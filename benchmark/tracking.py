"""Where numbers and pictures go: accelerate's trackers, metrics.jsonl, the progress bar."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from benchmark.checkpoint import write_atomically

METRICS = "metrics.jsonl"


class Tracking:
    """One `log(values, step)` in front of TensorBoard, metrics.jsonl and the progress bar; only the main process
    writes.

    What was written after `start_step` by an earlier, interrupted run is cut off.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, start_step: int, steps: int):
        self.main = accelerator.is_main_process
        # A log file takes one line every ten seconds, a terminal shows each step.
        interval = 0.1 if sys.stderr.isatty() else 10.0
        options = {"unit": "step", "disable": not self.main, "dynamic_ncols": True, "mininterval": interval}
        self.bar = tqdm(total=steps, initial=start_step, maxinterval=interval, **options)
        self.writer = None
        if not self.main:
            return
        self.metrics = folder / METRICS
        cut_back(self.metrics, start_step)
        # purge_step: TensorBoard forgets what was logged from that step on.
        options = {"tensorboard": {"purge_step": start_step + 1}}
        accelerator.init_trackers("tensorboard", init_kwargs=options)
        self.writer = accelerator.get_tracker("tensorboard", unwrap=True)
        self.accelerator = accelerator

    def log(self, values: dict[str, float], step: int) -> None:
        """Record scalars by their tags, such as train/loss; None is recorded in metrics.jsonl alone."""
        if not self.main:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log({tag: value for tag, value in values.items() if value is not None}, step=step)

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """Record a uint8 image (H, W, 3)."""
        if self.writer:
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def advance(self) -> None:
        """Move the progress bar on by one step."""
        self.bar.update()

    def status(self, **values: str) -> None:
        """Show `values` at the end of the progress bar from now on."""
        self.bar.set_postfix(values, refresh=False)

    def flush(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()


def cut_back(metrics: Path, step: int) -> None:
    """Drop every line of a metrics.jsonl that is later than `step`, and a last one that was not finished."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    write_atomically(metrics, "".join(kept).encode())


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
        label, prediction: (H, W) class ids, 255 = ignore; drawn at the image's size.
        colors: [red, green, blue] a class.
    """
    height, width = image.shape[1:]
    scale = max(1, round(256 / height))
    size = (width * scale, height * scale)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    parts = [Image.fromarray(image.transpose(1, 2, 0)).resize(size, Image.Resampling.BILINEAR)]
    parts += [Image.fromarray(palette[ids]).resize(size, Image.Resampling.NEAREST) for ids in (label, prediction)]

    present = [c for c in np.union1d(label, prediction) if c < len(classes)]
    gap, line, text = 8, 22, ImageFont.load_default(14)
    total_width = 3 * size[0] + 4 * gap
    column = max(int(text.getlength(classes[c])) for c in present) + 40 if present else total_width
    columns = max(1, total_width // column)
    top = gap + line + size[1] + gap
    canvas = Image.new("RGB", (total_width, top + line * -(-len(present) // columns) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (title, part) in enumerate(zip(("image", "label", "prediction"), parts, strict=True)):
        x = gap + number * (size[0] + gap)
        draw.text((x, gap), title, fill="black", font=text)
        canvas.paste(part, (x, gap + line))
    for number, c in enumerate(present):
        x, y = gap + number % columns * column, top + number // columns * line
        draw.rectangle((x, y, x + 16, y + 16), fill=tuple(int(v) for v in palette[c]), outline="black")
        draw.text((x + 24, y), classes[c], fill="black", font=text)
    return np.asarray(canvas)
