"""Where a study's runs stand, from their folders alone, whatever trains them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmark.errors import UserError
from benchmark.reporting.run_folder import METRICS, RECIPE, RESULTS, is_owned, read_results, write_atomically
from benchmark.study.study import Cell
from data_scripts.tables import format_table

FINISHED, RUNNING, INTERRUPTED, FAILED, WAITING = "finished", "running", "interrupted", "failed", "waiting"
TAIL = 1 << 16  # bytes of metrics.jsonl that hold its last lines


@dataclass(frozen=True)
class Status:
    """Where one run stands.

    Attributes:
        state: one of finished, running, interrupted, failed, waiting.
        step, steps: done, and to do; `steps` is None before the run has started.
        score: the last mIoU in 0..1; None before the first evaluation.
        seconds: of training that are left (None where unknown); of a finished run, of training and evaluation.
        sentence: why it failed.
    """

    state: str
    step: int = 0
    steps: int | None = None
    score: float | None = None
    seconds: float | None = None
    sentence: str | None = None


def run_status(folder: Path) -> Status:
    """Where the run of a folder stands.

    Raises:
        UserError: its results are damaged.
    """
    if (folder / RESULTS).exists():
        results = read_results(folder / RESULTS)
        seconds = results["train_seconds"] + results["eval_seconds"]
        return Status(FINISHED, results["step"], results["step"], results["mean_iou"], seconds)
    failure = read_failure(folder)
    if not (folder / RECIPE).exists():
        state = FAILED if failure else RUNNING if is_owned(folder) else WAITING
        return Status(state, sentence=failure)
    try:
        recipe = yaml.safe_load((folder / RECIPE).read_text())
        train, val = recipe["train"], recipe["data"]["val"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return Status(FAILED, sentence=f"{folder / RECIPE} is damaged: remove the folder.")
    steps, lines = train["steps"], _last_lines(folder / METRICS)
    step = max((line["step"] for line in lines), default=0)
    score = _last(lines, "val/mean_iou" if len(val) == 1 else f"val/{val[0]}/mean_iou")
    speed = _last(lines, "speed/images_per_second")
    seconds = (steps - step) * train["global_batch_size"] / speed if speed else None
    state = RUNNING if is_owned(folder) else FAILED if failure else INTERRUPTED
    return Status(state, step, steps, score, seconds, None if state == RUNNING else failure)


def _last_lines(file: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl, without one that is being written."""
    try:
        with open(file, "rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL))
            text = opened.read()
    except OSError:
        return []
    lines = []
    for line in text.split(b"\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:  # cut at either end
            continue
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def _last(lines: Sequence[dict[str, Any]], tag: str) -> float | None:
    """The number of the last line that has one."""
    return next((line[tag] for line in reversed(lines) if line.get(tag) is not None), None)


def failure_file(folder: Path) -> Path:
    """Where a sweep notes that a run failed: beside its folder, which is the run's own."""
    return folder.with_name(f".{folder.name}.failed")


def log_file(folder: Path) -> Path:
    """Where a sweep keeps what a run printed."""
    return folder.with_name(f"{folder.name}.log")


def note_failure(folder: Path, sentence: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(failure_file(folder), (sentence + "\n").encode())


def read_failure(folder: Path) -> str | None:
    """Why the run failed; None where no failure is noted."""
    file = failure_file(folder)
    return file.read_text().strip() if file.exists() else None


def failure_sentence(folder: Path) -> str:
    """What the log of a run that ended without results says of it, in one sentence."""
    try:
        lines = log_file(folder).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    start = max((number for number, line in enumerate(lines) if line.startswith("$ ")), default=0)
    told = [line for line in lines[start:] if line.startswith("error: ")]
    if told:
        return told[-1].removeprefix("error: ")
    ends = [line for line in lines[start + 1 :] if line[:1].isalpha() and ("Error" in line.partition(":")[0])]
    if ends:
        return f"It ended with {ends[-1]}"
    return "It ended without a result and without an error: the system may have ended it for lack of memory."


def study_status(cells: Sequence[Cell]) -> dict[Cell, Status]:
    """Where each run stands; one whose results are damaged has failed."""
    found = {}
    for cell in cells:
        try:
            found[cell] = run_status(cell.folder)
        except UserError as error:
            found[cell] = Status(FAILED, sentence=str(error))
    return found


def status_table(statuses: dict[Cell, Status], most: int | None = None) -> str:
    """A table of a study's runs and, in the last line, what is done and how long the rest will take.

    Args:
        most: rows; those that run or failed go first. None shows all, in the study's order.
    """
    chosen = list(statuses.items())
    if most is not None and len(chosen) > most:
        first = [FAILED, RUNNING, INTERRUPTED, FINISHED, WAITING]
        chosen = sorted(chosen, key=lambda item: first.index(item[1].state))[: max(most, 1)]
    rows = [
        (
            cell.setting,
            f"{cell.encoder}, seed {cell.seed}",
            status.state,
            f"{status.step:,}/{status.steps:,}" if status.steps else "-",
            "-" if status.score is None else f"{100 * status.score:.2f}",
        )
        for cell, status in chosen
    ]
    lines = [format_table(rows, ("setting", "run", "state", "step", "mIoU"), left=3)]
    if len(chosen) < len(statuses):
        lines.append(f"... and {len(statuses) - len(chosen)} more")
    return "\n".join([*lines, summary(statuses)])


def summary(statuses: dict[Cell, Status]) -> str:
    """One line: how many runs are in each state, and the time left."""
    states = [status.state for status in statuses.values()]
    counts = [f"{states.count(state)} {state}" for state in (FINISHED, RUNNING, INTERRUPTED, FAILED, WAITING)]
    text = f"{len(states)} runs: " + ", ".join(count for count in counts if not count.startswith("0 "))
    left = seconds_left(statuses)
    if left is None or not left[0]:
        return text
    return f"{text}; about {_duration(left[0])}{'' if left[1] else ' of training'} left"


def seconds_left(statuses: dict[Cell, Status]) -> tuple[float, bool] | None:
    """The time until all runs have ended, as many at once as run now, and whether it holds that of their evaluations.

    A run takes as long as the finished runs of its setting did. Where none is finished, its own speed of training says
    what is left, or that of the setting's other runs, or what is known of other settings. None where nothing is known.
    """
    measured, trained = (_whole_seconds(statuses, finished) for finished in (True, False))
    known = trained | measured
    if not known:
        return None
    everywhere = [seconds for values in known.values() for seconds in values]
    total, evaluated = 0.0, True
    for cell, status in statuses.items():
        if status.state not in (RUNNING, INTERRUPTED, WAITING):
            continue
        evaluated &= cell.setting in measured or cell.setting not in trained
        if status.seconds is not None and cell.setting not in measured:
            total += status.seconds
        else:
            values = known.get(cell.setting, everywhere)
            total += sum(values) / len(values) * (1 - status.step / status.steps if status.steps else 1)
    running = sum(status.state == RUNNING for status in statuses.values())
    return total / max(1, running), evaluated


def _whole_seconds(statuses: dict[Cell, Status], finished: bool) -> dict[str, list[float]]:
    """By setting, how long its finished runs took, or its other ones would take from their first step to their last."""
    found: dict[str, list[float]] = {}
    for cell, status in statuses.items():
        if status.seconds is None or finished != (status.state == FINISHED):
            continue
        left = 1.0 if finished else 1 - status.step / status.steps if status.steps else 0
        if left:
            found.setdefault(cell.setting, []).append(status.seconds / left)
    return found


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
