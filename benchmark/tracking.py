"""Where numbers and pictures go: accelerate's trackers, metrics.jsonl, the progress bar."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers
from torch.utils.tensorboard.summary import hparams as hparams_summary
from tqdm.auto import tqdm

from benchmark.checkpoint import write_atomically
from benchmark.errors import UserError

METRICS = "metrics.jsonl"
PROJECT = "vfm-segmentation"  # under which trackers that know projects file the run


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate, which leaves them out without a word, does not have here.

    Raises:
        UserError: one of `names` is not accelerate's, or is not installed.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name in available:
            continue
        if name in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"output.trackers names {name}, which is not installed: install it or take it away.")
        raise UserError(
            f"output.trackers names {name}, which accelerate does not know: take of {', '.join(LOGGER_TYPE_TO_CLASS)}."
        )


class Tracking:
    """One `log(values, step)` in front of the trackers, metrics.jsonl and the progress bar; only the main process
    writes.

    What was written after `start_step` by an earlier, interrupted run is cut off.

    Args:
        accelerator: made with `log_with` the trackers' names; TensorBoard's events go to tensorboard/ in `folder`.
        recipe: dotted keys and their values, for pages that compare runs.
        recipe_text: recipe.yaml, for people.
        metric: the tag by which runs are compared.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        *,
        start_step: int,
        steps: int,
        recipe: Mapping[str, Any] | None = None,
        recipe_text: str = "",
        metric: str = "val/mean_iou",
    ):
        self.accelerator, self.main = accelerator, accelerator.is_main_process
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
        tensorboard = TensorBoardTracker("tensorboard", folder, purge_step=start_step + 1)
        accelerator.log_with = [tensorboard if str(name) == "tensorboard" else name for name in accelerator.log_with]
        accelerator.init_trackers(PROJECT)
        flat = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in (recipe or {}).items()
        }
        for tracker in accelerator.trackers:
            if tracker is tensorboard:
                self.writer = tracker.writer
                self._describe(flat, recipe_text, metric)
            else:
                tracker.store_init_configuration(flat)

    def _describe(self, recipe: Mapping[str, Any], text: str, metric: str) -> None:
        """The recipe as text, and as hyperparameters beside which TensorBoard shows the last value of `metric`."""
        if text:
            self.writer.add_text("recipe", "\n".join("    " + line for line in text.splitlines()), 0)
        if recipe:
            # The writer's own add_hparams would make a second run of them.
            for summary in hparams_summary(dict(recipe), {metric: 0.0}):
                self.writer.file_writer.add_summary(summary)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record scalars by their tags, such as train/loss; None is recorded in metrics.jsonl alone."""
        if not self.main:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log({tag: value for tag, value in values.items() if value is not None}, step=step)

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """Record a uint8 image (H, W, 3)."""
        for tracker in self.accelerator.trackers if self.main else ():
            if tracker.name == "tensorboard":
                tracker.log_images({tag: image[None]}, step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({tag: [image]}, step)

    def advance(self) -> None:
        """Move the progress bar on by one step."""
        self.bar.update()

    def status(self, **values: str) -> None:
        """Show `values` at the end of the progress bar from now on."""
        self.bar.set_postfix(values, refresh=False)

    def flush(self) -> None:
        """See to the disk what was logged: a checkpoint that is saved next does not log it again."""
        if self.writer:
            self.writer.flush()
        if self.main and self.metrics.exists():
            with self.metrics.open("a") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()


def cut_back(metrics: Path, step: int) -> None:
    """Drop every line of a metrics.jsonl that is later than `step`, and a last one that was not finished."""
    if not metrics.exists():
        return
    kept = []
    for number, line in enumerate(metrics.read_text().splitlines(keepends=True), start=1):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {metrics} is damaged: take the line out, or remove the run.") from None
        kept.append(line)
    write_atomically(metrics, "".join(kept).encode())
