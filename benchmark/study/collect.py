"""The runs in folders, and which of them may be compared."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.errors import UserError
from benchmark.recipe.identity import identity
from benchmark.recipe.parser import load_recipe
from benchmark.recipe.schema import KEYS
from benchmark.reporting.run_folder import CONFUSION, METRICS, RECIPE, RESULTS, read_results
from benchmark.study.bootstrap import mean_ratio
from benchmark.study.metrics import TITLES, Counts, image_counts
from benchmark.study.status import FAILED, FINISHED, Status, run_status
from benchmark.study.study import read_study

SEEDED = re.compile(r"(.+)-seed\d+")  # a run folder's name
RARE = 10  # images: a class in fewer is rare


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        name: its folder, relative to the one that was given.
        encoder: what it is called in tables.
        results: results.json.
        keys: the recipe's identity.
        counts: of the first validation dataset, by metric: what its score is drawn from.
    """

    folder: Path
    name: str
    encoder: str
    results: dict[str, Any]
    keys: dict[str, Any]
    counts: dict[str, Counts]

    @property
    def unions(self) -> np.ndarray:
        """(images, classes), in pixels."""
        return self.counts["mean_iou"].denominators

    @property
    def labelled(self) -> np.ndarray:
        """(images, classes), in pixels; the same for all runs on a dataset."""
        return self.counts["mean_accuracy"].denominators

    @property
    def unlabelled(self) -> dict[str, bool]:
        """The classes without a validation label, and whether the run predicts them: then they count 0, else not."""
        labelled = self.labelled.sum(axis=0)
        predicted = self.unions.sum(axis=0)
        return {name: bool(predicted[k] > 0) for k, name in enumerate(self.classes) if labelled[k] == 0}

    def score(self, metric: str = "mean_iou") -> float:
        """A score of the first validation dataset, in 0..1."""
        return float(self.results[metric])

    @property
    def classes(self) -> list[str]:
        return list(self.results["iou"])

    @property
    def dataset(self) -> str:
        """What its validation images are: their name and digest."""
        name, scores = next(iter(self.results["datasets"].items()))
        return f"{name} {scores['fingerprint']['digest']}"

    @property
    def trained_on(self) -> str:
        return str(self.results["dataset_fingerprint"]["digest"])

    @property
    def gpu_hours(self) -> float:
        return float(self.results["train_seconds"] * self.results["world_size"] / 3600)

    @property
    def kind_of_device(self) -> tuple[str, str]:
        """Runs of one device and one precision may be compared in time and memory."""
        return self.results["device"], self.keys["train.precision"]


@dataclass(frozen=True)
class Missing:
    """A run that a study has and that is not finished."""

    setting: str
    encoder: str
    seed: int
    state: str
    sentence: str | None


@dataclass
class Group:
    """The runs of one setting that may be ranked: they differ in encoder and seed alone."""

    setting: str
    runs: list[Trained] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def encoders(self) -> list[str]:
        return list(dict.fromkeys(run.encoder for run in self.runs))

    @property
    def uneven(self) -> dict[str, list[str]]:
        """Classes without a validation label that some runs alone predict, and so count: the encoders that do."""
        predicted = {name: [run for run in self.runs if run.unlabelled[name]] for name in self.runs[0].unlabelled}
        some = {name: runs for name, runs in predicted.items() if 0 < len(runs) < len(self.runs)}
        return {name: list(dict.fromkeys(run.encoder for run in runs)) for name, runs in some.items()}

    def of(self, encoder: str) -> list[Trained]:
        """The runs of an encoder, by seed."""
        return sorted((run for run in self.runs if run.encoder == encoder), key=lambda run: run.results["seed"])


@dataclass(frozen=True)
class Collection:
    """What folders hold: groups in the study's order, and what the reader has to know about them."""

    name: str
    groups: list[Group]
    notes: list[str]


def collect(folders: Sequence[Path]) -> Collection:
    """The finished runs below some folders, in groups that may be ranked, and what is missing.

    Raises:
        UserError: a folder is not there, or none holds a finished run.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: name a study's folder or a run's.")
    notes: list[str] = []
    broken: dict[Path, str] = {}
    runs: list[Trained] = []
    for folder in folders:
        for path in _run_folders(folder):
            try:
                runs.append(read_run(path, path.relative_to(folder).as_posix() if path != folder else path.name))
            except UserError as error:
                notes.append(f"A run was left out. {error}")
                broken[path] = str(error)
    if not runs:
        told = f" {notes[0]}" if notes else ""
        raise UserError(f"No finished run is below {', '.join(map(str, folders))}: train some first.{told}")
    groups = _group(_without_duplicates(runs, notes), notes)
    for run in (run for folder in folders for run in _missing(folder, broken)):
        group = next((group for group in groups if group.setting == run.setting), None)
        if group is None:
            groups.append(group := Group(run.setting))
        group.missing.append(run)
    order = [cell["setting"] for folder in folders for cell in read_study(folder)["cells"]]
    groups.sort(key=lambda group: order.index(group.setting) if group.setting in order else len(order))
    name = " and ".join(read_study(folder)["name"] or folder.resolve().name for folder in folders)
    return Collection(name, groups, notes)


def read_run(folder: Path, name: str) -> Trained:
    """A finished run.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    results = read_results(folder / RESULTS)
    if not (folder / RECIPE).exists():
        raise UserError(f"{folder} has no {RECIPE}: restore it, or remove the folder.")
    keys = identity(load_recipe([str(folder / RECIPE)]))
    validation = next(iter(results["datasets"]))
    try:
        with np.load(folder / CONFUSION) as file:
            arrays = dict(file)
        images = results["datasets"][validation]["fingerprint"]["counts"]["validation"]
        counts = image_counts(arrays, validation, images, len(results["iou"]))
        measured = {metric: mean_ratio(*counts[metric]) for metric in counts if results.get(metric) is not None}
    except Exception as error:  # NumPy and zip have many for a damaged file
        raise UserError(
            f"{folder / CONFUSION} is missing or damaged ({error}): remove results.json, and the run's command writes "
            "both again."
        ) from None
    if "mean_iou" not in measured:
        raise UserError(f"{folder}: {RESULTS} has no mIoU: train the run again.")
    for metric, value in measured.items():
        if abs(value - results[metric]) > 1e-9:
            raise UserError(
                f"{folder}: {CONFUSION} gives a {TITLES[metric]} of {value:.6f} and {RESULTS} says {results[metric]}; "
                "they do not belong together: train the run again."
            )
    match = SEEDED.fullmatch(folder.resolve().name)
    return Trained(folder, name, match.group(1) if match else results["encoder"], results, keys, counts)


def learning_curve(run: Trained) -> list[tuple[int, float]]:
    """The mIoU at each evaluation, by step, of the first validation dataset."""
    several = len(run.results["datasets"]) > 1
    tag = f"val/{next(iter(run.results['datasets']))}/mean_iou" if several else "val/mean_iou"
    points: dict[int, float] = {}
    try:
        lines = (run.folder / METRICS).read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.get(tag) is not None:
            points[values["step"]] = values[tag]
    return sorted(points.items())


def key_differences(groups: Sequence[Group]) -> list[str]:
    """The keys in which groups differ, each with its values; of data, that they differ."""
    first = [group.runs[0] for group in groups]
    keys = dict.fromkeys(key for run in first for key in run.keys if not KEYS[key].metadata.get("encoder"))
    found = []
    for key in keys:
        values = [run.keys.get(key) for run in first]
        if key != "seed" and any(value != values[0] for value in values):
            found.append(f"{key} ({', '.join(map(str, values))})")
    data: list[tuple[str, list[Any]]] = [
        ("validation images", [run.dataset for run in first]),
        ("training images", [run.trained_on for run in first]),
        ("classes", [run.classes for run in first]),
    ]
    return found + [what for what, values in data if any(value != values[0] for value in values)]


def _run_folders(folder: Path) -> Iterator[Path]:
    if (folder / RESULTS).exists():
        yield folder
    else:
        yield from sorted(path.parent for path in folder.rglob(RESULTS))


def _missing(folder: Path, broken: Mapping[Path, str]) -> Iterator[Missing]:
    """The runs of a study that are not finished, and those whose results cannot be read."""
    for cell in read_study(folder)["cells"]:
        run = folder / cell["setting"] / f"{cell['encoder']}-seed{cell['seed']}"
        status = Status(FAILED, sentence=broken[run]) if run in broken else run_status(run)
        if status.state != FINISHED:
            yield Missing(cell["setting"], cell["encoder"], cell["seed"], status.state, status.sentence)


def _without_duplicates(runs: Sequence[Trained], notes: list[str]) -> list[Trained]:
    """One run of each recipe and seed: a second one is no further seed."""
    found: dict[str, Trained] = {}
    for run in runs:
        key = repr((run.results["setting"], run.keys, run.dataset, run.trained_on))
        if key in found:
            first, second = (f"{copy.folder} ({100 * copy.score():.2f} %)" for copy in (found[key], run))
            notes.append(f"{first} and {second} are the same run twice: only the former counts. Remove one of them.")
        found.setdefault(key, run)
    return list(found.values())


def _group(runs: Sequence[Trained], notes: list[str]) -> list[Group]:
    """Groups of one setting, protocol and data; those of one setting are numbered, and a note says what differs."""
    by_key: dict[tuple, Group] = {}
    for run in runs:
        setting = run.results["setting"]
        key = (setting, run.results["protocol"], run.dataset, run.trained_on, *run.classes)
        by_key.setdefault(key, Group(setting)).runs.append(run)
    groups = []
    for setting in dict.fromkeys(key[0] for key in by_key):
        same = [group for key, group in by_key.items() if key[0] == setting]
        same.sort(key=lambda group: -len(group.runs))  # what a setting lacks is missing in its largest group
        for number, group in enumerate(same):
            group.setting = setting if number == 0 else f"{setting} ({number + 1})"
            _name_apart(group)
        if len(same) > 1:
            encoders = "; ".join(f"{group.setting} has {', '.join(group.encoders)}" for group in same)
            notes.append(
                f"{len(same)} tables are called {setting}, because their runs must not be compared: they differ in "
                f"{'; '.join(key_differences(same)) or 'their protocol'}. {encoders}."
            )
        groups += same
    return groups


def _name_apart(group: Group) -> None:
    """Add to the name of encoders that have one name in the tables, but are not the same, in what they differ."""
    own = [key for key in KEYS if KEYS[key].metadata.get("encoder")]
    for encoder in group.encoders:
        same = group.of(encoder)
        differing = [key for key in own if len({repr(run.keys.get(key)) for run in same}) > 1]
        for index, run in enumerate(group.runs):
            if differing and run.encoder == encoder:
                told = ", ".join(f"{key.rpartition('.')[2]} {run.keys.get(key)}" for key in differing)
                group.runs[index] = replace(run, encoder=f"{encoder} ({told})")
