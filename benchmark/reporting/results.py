"""The content of results.json: what was measured, on what, by what."""

import json
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmark.evaluation.loop import Evaluation
from benchmark.reporting.manifest import seal
from benchmark.reporting.run_folder import file_bytes, write_atomically
from data_scripts.preparation import PreparedDataset
from data_scripts.tables import format_table

PACKAGE = "vfm-segmentation-benchmark"
VERSIONS = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "numpy", "pillow")


def build_results(
    evaluations: Mapping[str, Evaluation],
    datasets: Mapping[str, PreparedDataset],
    experiment: Mapping[str, Any],
    training: Mapping[str, Any],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What results.json holds.

    Args:
        evaluations: by validation dataset; the first one's scores are at the top level.
        experiment: see `describe_experiment`.
        training: step, parameters, seconds and speed.
    """
    scores = {name: {**e.scores, "fingerprint": datasets[name].fingerprint} for name, e in evaluations.items()}
    first = next(iter(evaluations.values())).scores
    about = {"datasets": scores, **experiment, **describe_machine(accelerator), **training}
    if taken := first.keys() & about.keys():
        raise ValueError(f"A metric's score is named as a fact of the run ({', '.join(sorted(taken))}): rename it.")
    return seal(first | about)


def describe_experiment(identity: Mapping[str, Any], protocol: str, setting: str, dataset: str) -> dict[str, Any]:
    """What was run, by the keys under which results are compared."""
    return {
        "seed": identity["seed"],
        "encoder": identity["model.encoder"],
        "head": identity["model.head"],
        "dataset": dataset,
        "setting": setting,
        "protocol": protocol,
        "global_batch_size": identity["train.global_batch_size"],
    }


def describe_machine(accelerator: Accelerator) -> dict[str, Any]:
    """Where it ran, when it ended (the day in UTC), and with what."""
    device = accelerator.device
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} thread(s)"
        # Linux counts in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "world_size": accelerator.num_processes,
        "device": f"{device.type} ({name})",
        "peak_memory_bytes": peak,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in VERSIONS},
            **code_version(),
        },
    }


def _cpu_name() -> str:
    """The processor's model where Linux says it, else its kind."""
    file = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", file.read_text() if file.exists() else "", re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


@lru_cache
def code_version() -> dict[str, Any]:
    """This package's version and, in a git checkout of it, the commit and whether files differ from it."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        found: dict[str, Any] = {"benchmark": version(PACKAGE)}
    except PackageNotFoundError:
        found = {"benchmark": None}
    top = git("rev-parse", "--show-toplevel")
    if top and Path(top).resolve() == root:
        found |= {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    return found


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, whole or not at all."""
    write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())


def write_confusions(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write confusion.npz: for each validation dataset an int64 (n, 4) of image, label, prediction, pixels.

    Other evaluators' counts, int64 (n, ...) of image, place and count, are under <dataset>/<evaluator>.
    """
    arrays = {name: evaluation.confusions for name, evaluation in evaluations.items()}
    arrays |= {
        f"{name}/{evaluator}": counts
        for name, evaluation in evaluations.items()
        for evaluator, counts in evaluation.counts.items()
        if counts is not evaluation.confusions
    }
    write_atomically(path, file_bytes(lambda file: np.savez_compressed(file, **arrays)))


def score_table(scores: Mapping[str, Any]) -> str:
    """The IoU of each class and their mean, in per cent, as a table to print."""
    rows = _rows(list(scores["iou"].items()))
    last = _rows([("mean IoU", scores["mean_iou"]), ("pixel accuracy", scores["pixel_accuracy"])])
    lines = format_table([*rows, *last], ("class", "IoU in %")).splitlines()
    lines.insert(len(rows) + 1, "-" * max(map(len, lines)))
    if scores["absent_classes"]:
        lines.append(f"left out of the mean, having neither label nor prediction: {scores['absent_classes']} classes")
    return "\n".join(lines)


def _rows(values: Sequence[tuple[str, float | None]]) -> list[tuple[str, str]]:
    return [(name, f"{'-' if value is None else f'{100 * value:.2f}':>6}") for name, value in values]
