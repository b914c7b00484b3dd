"""Where numbers and pictures are logged: accelerate's trackers, metrics.jsonl, the progress bar."""

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

from benchmark.errors import UserError
from benchmark.reporting.run_folder import METRICS, TENSORBOARD, write_atomically, writing

COLUMNS = ("model.encoder", "model.head", "optim.lr", "seed")  # by which TensorBoard compares runs
PROJECT = "vfm-segmentation"  # under which trackers that know projects file the run


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not have here, because it would leave them out silently.

    Raises:
        UserError: one of `names` is not accelerate's, or is not installed.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name in available:
            continue
        if name in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"output.trackers names {name}, which is not installed: install it or remove it.")
        raise UserError(
            f"output.trackers names {name}, which accelerate does not know: "
            f"choose from {', '.join(LOGGER_TYPE_TO_CLASS)}."
        )


class Tracking:
    """One `log(values, step)` in front of the trackers, metrics.jsonl and the progress bar.

    Only the main process writes. What an earlier, interrupted run wrote after `start_step` is cut off.

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
        tensorboard = TensorBoardTracker(TENSORBOARD, folder, purge_step=start_step + 1)
        accelerator.log_with = [tensorboard if str(name) == TENSORBOARD else name for name in accelerator.log_with]
        accelerator.init_trackers(PROJECT)
        flat = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in (recipe or {}).items()
        }
        for tracker in accelerator.trackers:
            if tracker is tensorboard:
                self.writer = tracker.writer
                # The HPARAMS tab opens with these columns; the whole recipe is in the TEXT tab.
                self._describe({key.split(".")[-1]: flat[key] for key in COLUMNS if key in flat}, recipe_text, metric)
            else:
                tracker.store_init_configuration(flat)

    def _describe(self, columns: Mapping[str, Any], text: str, metric: str) -> None:
        """The recipe as text, and hyperparameters beside which TensorBoard shows the last value of `metric`."""
        if text:
            self.writer.add_text("recipe", "\n".join("    " + line for line in text.splitlines()), 0)
        if columns:
            # The writer's own add_hparams would make a second run of them.
            for summary in hparams_summary(dict(columns), {metric: 0.0}):
                self.writer.file_writer.add_summary(summary)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Record scalars by their tags, such as train/loss; None is recorded in metrics.jsonl alone."""
        if not self.main:
            return
        with writing(self.metrics):
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
        """Advance the progress bar by one step."""
        self.bar.update()

    def status(self, **values: str) -> None:
        """Show `values` at the end of the progress bar from now on."""
        self.bar.set_postfix(values, refresh=False)

    def flush(self) -> None:
        """Sync what was logged to the disk, because a run that resumes after the next checkpoint does not log it."""
        if not self.main:
            return
        with writing(self.metrics):
            if self.writer:
                self.writer.flush()
            if self.metrics.exists():
                with self.metrics.open("a") as file:
                    os.fsync(file.fileno())

    def close(self) -> None:
        self.bar.close()
        if self.writer and self.metrics.parent.is_dir():  # its thread would print a traceback into a removed folder
            self.writer.close()


def cut_back(metrics: Path, step: int) -> None:
    """Drop every line of a metrics.jsonl that is later than `step`, and a last one that was not finished."""
    if not metrics.exists():
        return
    kept = []
    for number, line in enumerate(metrics.read_bytes().splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {metrics} is damaged: remove the line, or remove the run.") from None
        kept.append(line)
    write_atomically(metrics, b"".join(kept))
