"""A study's numbers: from runs to what report.json holds and every table and picture shows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from benchmark.study import statistics
from benchmark.study.answer import Thresholds, answer
from benchmark.study.bootstrap import DRAWS, Scores, SeedNoise, small_sample
from benchmark.study.collect import RARE, Collection, Group, Trained, learning_curve
from benchmark.study.metrics import OTHERS
from benchmark.study.scores import add_metrics, draw_other_scores, draw_scores
from data_scripts.preparation import OWN

FEWEST_DEGREES = 2  # of freedom of the images: below, in simulated studies, statements of 95 % were wrong in up to 40 %


def build_report(
    collection: Collection, thresholds: Thresholds | None = None, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """What report.json holds; docs/statistics.md says what each number means.

    Args:
        draws: of the bootstrap.
        seed: of the draws. The same runs and seed give the same numbers to the last digit.
    """
    thresholds = thresholds or Thresholds()
    groups = [group for group in collection.groups if group.runs]
    notes = list(collection.notes)
    scores, noises, sources = draw_scores(groups, draws, seed)
    others = draw_other_scores(groups, draws, seed)
    settings = []
    for group in collection.groups:
        if group.runs:
            lender = next((other for other in groups if other.setting == sources[group.setting]), None)
            noise = _noise_entry(noises[group.setting], group, lender)
            settings.append(_setting(group, scores[group.setting], noise, notes))
            metrics = {metric: found[group.setting] for metric, found in others.items() if group.setting in found}
            add_metrics(settings[-1]["rows"], metrics)
            _withhold(settings[-1])
        else:
            settings.append(_empty_setting(group))
            notes.append(f"{group.setting}: no run is finished.")
    doubtful = [entry["setting"] for entry in settings if entry["uneven_classes"] or not entry["image_noise"]]
    pairs = _pairs(groups, scores, seed, doubtful)
    return {
        "name": collection.name,
        "versions": _versions(groups, notes),
        "thresholds": {"tau": thresholds.tau, "regret": thresholds.regret},
        "draws": draws,
        "answer": answer(settings, pairs, thresholds),
        "notes": notes,
        "settings": settings,
        "pairs": pairs,
    }


def _noise_entry(noise: SeedNoise, group: Group, lender: Group | None) -> dict[str, Any]:
    std = None if noise.image_sampling_only else float(np.sqrt(noise.variance))
    foreign = lender is not None and lender.runs[0].dataset != group.runs[0].dataset
    source = lender and lender.setting
    return {"std": std, "degrees_of_freedom": noise.degrees_of_freedom, "from": source, "of_other_data": foreign}


def _setting(group: Group, scores: Scores, noise: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """One table, and what is said of the data below it."""
    first = group.runs[0]
    images_of_class = (first.labelled > 0).sum(axis=0)
    rare = int(((images_of_class > 0) & (images_of_class < RARE)).sum())
    if noise["degrees_of_freedom"] == 0:
        notes.append(f"{group.setting}: no model has two seeds, so nothing is said about training again.")
    elif noise["from"]:
        whose = ", which has another dataset: two seeds here would tell more" if noise["of_other_data"] else ""
        notes.append(f"{group.setting}: how far seeds differ is borrowed from {noise['from']}{whose}.")
    if uneven := group.uneven:
        told = "; ".join(f"{name} is predicted by {', '.join(encoders)}" for name, encoders in uneven.items())
        notes.append(
            f"{group.setting}: some classes have no validation label, and count 0 in the mIoU of the runs that predict "
            f"them alone, so that the scores must not be compared ({told}): leave these classes out of the "
            "dataset, or add validation images of them."
        )
    validation, *further = first.results["datasets"]
    if further:
        notes.append(f"{group.setting} is ranked on {validation} alone: results.json has the scores on {further}.")
    image_noise = bool((images_of_class > 1).any() and small_sample(first.labelled)[1] >= FEWEST_DEGREES)
    if not image_noise:
        notes.append(
            f"{group.setting}: the {len(first.unions)} validation image(s) are too few, or too few of them share a "
            "class, to say how far chance moves a score: there are no intervals, and every encoder may have every rank."
        )
    if len(kinds := {run.kind_of_device for run in group.runs}) > 1:
        told = "; ".join(sorted(f"{device}, {precision}" for device, precision in kinds))
        notes.append(f"{group.setting}: runs of several kinds ({told}): times and memory must not be compared.")
    intervals, sets = statistics.score_intervals(scores), statistics.rank_sets(scores)
    best, ranks = statistics.best_probabilities(scores), statistics.ranks(scores.scores)
    rows = [
        _row(group.of(encoder))
        | {
            "interval": intervals[m].tolist(),
            "rank": int(ranks[m]),
            "rank_set": sets[m].tolist(),
            "best_probability": float(best[m]),
        }
        for m, encoder in enumerate(scores.encoders)
    ]
    _mark_front(rows)
    rows.sort(key=lambda row: (row["rank"], row["encoder"]))
    return {
        "setting": group.setting,
        "dataset": first.results["dataset"] if validation in OWN else validation,
        "protocol": first.results["protocol"],
        "steps": first.results["step"],
        "images": len(first.unions),
        "classes": first.classes,
        "rare_classes": rare,
        "seed_noise": noise,
        "image_noise": image_noise,
        "uneven_classes": uneven,
        "rows": rows,
        "differences": _differences(scores),
        "missing": _missing(group),
    }


def _withhold(setting: dict[str, Any]) -> None:
    """Take out what the data cannot say: where there is no image noise, or where classes are uneven."""
    every, known = [1, len(setting["rows"])], setting["image_noise"]
    if known and not setting["uneven_classes"]:
        return
    for row in setting["rows"]:
        row |= {"rank_set": every, "best_probability": None}
        if not known:
            row["interval"] = None
            for metric in row["metrics"].values():
                metric |= {"interval": None, "rank_set": every}
        elif "mean_boundary_iou" in row["metrics"]:  # the one other mean over classes that are predicted or labelled
            row["metrics"]["mean_boundary_iou"]["rank_set"] = every
    for pair in setting["differences"]:
        pair |= {"interval": None, "sure": False}


def _empty_setting(group: Group) -> dict[str, Any]:
    empty = dict.fromkeys(("dataset", "protocol", "steps", "images", "rare_classes", "image_noise"))
    noise = {"std": None, "degrees_of_freedom": 0, "from": None, "of_other_data": False}
    lists: dict[str, Any] = {"classes": [], "uneven_classes": {}, "rows": [], "differences": []}
    return {"setting": group.setting, **empty, "seed_noise": noise, **lists, "missing": _missing(group)}


def _missing(group: Group) -> list[dict[str, Any]]:
    return [
        {"encoder": run.encoder, "seed": run.seed, "state": run.state, "sentence": run.sentence}
        for run in group.missing
    ]


def _row(runs: Sequence[Trained]) -> dict[str, Any]:
    """What is said of one encoder apart from its draws: means over its seeds."""
    mean, std = statistics.seed_summary([run.score() for run in runs])
    first = runs[0]

    def over_seeds(name: str) -> float | None:
        values = [run.results.get(name) for run in runs]
        return None if None in values else float(np.mean(values))

    curves = [dict(learning_curve(run)) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    ious = [run.results["iou"] for run in runs]
    device, precision = first.kind_of_device
    alike = len({run.kind_of_device for run in runs}) == 1
    return {
        "encoder": first.encoder,
        "model": first.results["encoder"],
        "seeds": [run.results["seed"] for run in runs],
        "mean_iou": mean,
        "std": std,
        "parameters": first.results["parameters"],
        "trainable_parameters": first.results.get("trainable_parameters"),
        "gpu_hours": float(np.mean([run.gpu_hours for run in runs])),
        "images_per_second": over_seeds("images_per_second"),
        "peak_memory_bytes": max(run.results["peak_memory_bytes"] for run in runs),
        "gflops": first.results.get("window_gflops"),
        "device": device if alike else None,
        "precision": precision if alike else None,
        "iou": {
            name: None if any(iou[name] is None for iou in ious) else float(np.mean([iou[name] for iou in ious]))
            for name in first.classes
        },
        "curve": [[step, float(np.mean([curve[step] for curve in curves]))] for step in steps],
        "runs": [_run(run) for run in runs],
    }


def _run(run: Trained) -> dict[str, Any]:
    device, precision = run.kind_of_device
    measured = {name: run.results.get(name) for name in ("images_per_second", "peak_memory_bytes", *OTHERS)}
    where = {"device": device, "precision": precision, "folder": run.name}
    return {"seed": run.results["seed"], "mean_iou": run.score(), "gpu_hours": run.gpu_hours, **measured, **where}


def _mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """Say of each row whether it is on the Pareto front of its device and precision; None where these differ."""
    kinds = [(row["device"], row["precision"]) for row in rows]
    for kind in dict.fromkeys(kinds):
        alike = [row for row, other in zip(rows, kinds, strict=True) if other == kind]
        front = statistics.pareto_front(
            np.array([row["gpu_hours"] for row in alike]), np.array([row["mean_iou"] for row in alike])
        )
        for row, on_front in zip(alike, front, strict=True):
            row["pareto"] = None if None in kind else bool(on_front)


def _differences(scores: Scores) -> list[dict[str, Any]]:
    """Every pair of encoders of a setting, the better one first."""
    intervals, sure = statistics.difference_intervals(scores), statistics.sure_wins(scores)
    found = []
    for m in range(len(scores.encoders)):
        for n in range(m + 1, len(scores.encoders)):
            better, worse = (m, n) if scores.scores[m] >= scores.scores[n] else (n, m)
            found.append(
                {
                    "better": scores.encoders[better],
                    "worse": scores.encoders[worse],
                    "difference": float(scores.scores[better] - scores.scores[worse]),
                    "interval": intervals[better, worse].tolist(),
                    "sure": bool(sure[better, worse]),
                }
            )
    return found


def _pairs(
    groups: Sequence[Group], scores: Mapping[str, Scores], seed: int, doubtful: Sequence[str]
) -> list[dict[str, Any]]:
    """Every pair of settings that share encoders, the cheaper one first; nothing is said of `doubtful` ones."""
    pairs = []
    for first, second in combinations(groups, 2):
        if shared := [encoder for encoder in first.encoders if encoder in second.encoders]:
            pairs.append((*_cheap_and_expensive(first, second, shared), len(shared)))
    compared = Counter(b.setting for _, b, _, _ in pairs)
    found = []
    for a, b, ratio, encoders in pairs:
        tau = regret = None
        if a.setting not in doubtful and b.setting not in doubtful:
            tau = statistics.rank_correlation(scores[a.setting], scores[b.setting], seed)
            regret = statistics.choice_regret(scores[a.setting], scores[b.setting], compared[b.setting])
        found.append(
            {
                "a": a.setting,
                "b": b.setting,
                "encoders": encoders,
                "tau": tau.tau if tau else None,
                "tau_interval": [tau.low, tau.high] if tau else None,
                "p": tau.p_value if tau else None,
                "choice": regret.encoder if regret else None,
                "regret": regret.estimate if regret else None,
                "regret_bound": regret.upper_bound if regret else None,
                "cost_ratio": ratio,
            }
        )
    return found


def _cheap_and_expensive(first: Group, second: Group, shared: Sequence[str]) -> tuple[Group, Group, float | None]:
    """Two settings by their GPU-hours for the encoders that they share, and the ratio of these.

    The ratio is None where devices or precisions differ, or no time is known; the order is then the study's.
    """
    runs = [run for group in (first, second) for encoder in shared for run in group.of(encoder)]
    if len({run.kind_of_device for run in runs}) > 1:
        return first, second, None
    hours = [
        sum(float(np.mean([run.gpu_hours for run in group.of(encoder)])) for encoder in shared)
        for group in (first, second)
    ]
    if not min(hours):
        return first, second, None
    if hours[0] <= hours[1]:
        return first, second, hours[0] / hours[1]
    return second, first, hours[1] / hours[0]


def _versions(groups: Sequence[Group], notes: list[str]) -> dict[str, Any]:
    """This package's version and commit in all runs, or None where they differ."""
    found: dict[str, Any] = {}
    for name in ("benchmark", "commit"):
        values = {run.results["versions"].get(name) for group in groups for run in group.runs}
        found[name] = values.pop() if len(values) == 1 else None
        if len(values) > 1:
            notes.append(f"The runs were made by {len(values)} versions of this package ({name}).")
    changed = [run.name for group in groups for run in group.runs if run.results["versions"].get("modified")]
    if changed:
        notes.append(f"{len(changed)} run(s) were made with uncommitted changes to this package: {', '.join(changed)}.")
    return found
