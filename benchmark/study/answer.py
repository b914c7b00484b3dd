"""A report's answer in words: which encoder, and which cheap setting may stand for an expensive one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

STILL = 1e-6  # of mIoU: an interval as narrow as that is the rounding of float32


class Thresholds(NamedTuple):
    """When a cheap setting may stand for an expensive one: tau's interval lies above `tau`, the regret's bound is below
    `regret`, in 0..1 of mIoU."""

    tau: float = 0.5
    regret: float = 0.01


def answer(settings: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], thresholds: Thresholds) -> list[str]:
    """Sentences about each setting's best encoder, then about what may stand for each setting.

    Args:
        settings, pairs: as in report.json.
    """
    return [*_best(settings), *_stand_ins(settings, pairs, thresholds)]


def _best(settings: Sequence[dict[str, Any]]) -> list[str]:
    """For each setting, which encoders may be its best one."""
    told = []
    for setting in settings:
        rows = setting["rows"]
        if len(rows) < 2:
            continue
        first, candidates = rows[0], [row["encoder"] for row in rows if row["rank_set"][0] == 1]
        highest = f"{setting['setting']}: {first['encoder']} scores highest ({100 * first['mean_iou']:.2f} %)"
        best = highest.replace("scores highest", "is the best")
        doubt = _doubt(setting)
        if setting["uneven_classes"]:
            told.append(f"{highest}, but the means are over different classes: see the notes.")
        elif not setting["image_noise"] or (len(candidates) == 1 and not _moves(setting)):
            told.append(f"{highest}, but the validation images are too few to say how far chance moves its lead.")
        elif len(candidates) > 1:
            others = ", ".join(name for name in candidates if name != first["encoder"])
            share = first["best_probability"]
            often = f"{100 * share:.0f}" if share < 0.995 else "over 99"
            told.append(f"{highest}, and is the best in {often} % of the draws; {others} may be as good{doubt}.")
        elif doubt:
            told.append(f"{best}, beyond the noise of the images{doubt}.")
        else:
            told.append(f"{best}, beyond noise.")
        if absent := _without_a_run(setting):
            told[-1] += f" No run is finished of {', '.join(absent)}."
    return told


def _doubt(*settings: Mapping[str, Any]) -> str:
    """What is not known of the noise of training in some settings, after a semicolon; empty where it is known."""
    noises = [setting["seed_noise"] for setting in settings]
    if not all(noise["degrees_of_freedom"] for noise in noises):
        return "; one seed says nothing of the noise of training"
    if any(noise["of_other_data"] for noise in noises):
        return "; the noise of training is that of another dataset"
    return ""


def _without_a_run(setting: Mapping[str, Any]) -> list[str]:
    """The encoders of a setting that it says nothing about."""
    finished = [row["encoder"] for row in setting["rows"]]
    return list(dict.fromkeys(run["encoder"] for run in setting["missing"] if run["encoder"] not in finished))


def _moves(setting: Mapping[str, Any]) -> bool:
    """Whether other images would move the first encoder's lead on the second, as far as the draws know."""
    pair = {row["encoder"] for row in setting["rows"][:2]}
    low, high = next(d["interval"] for d in setting["differences"] if {d["better"], d["worse"]} == pair)
    return high - low > STILL


def _stand_ins(
    settings: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], thresholds: Thresholds
) -> list[str]:
    """For each setting that has cheaper ones: the cheapest that may stand for it, or that the data show none."""
    told = []
    by_name = {setting["setting"]: setting for setting in settings}
    for name, setting in by_name.items():
        cheaper = sorted(
            (pair for pair in pairs if pair["b"] == name and (pair["cost_ratio"] or 1) < 1),
            key=lambda pair: pair["cost_ratio"],
        )
        known = [pair for pair in cheaper if pair["tau_interval"] is not None]
        good = [p for p in known if p["tau_interval"][0] > thresholds.tau and p["regret_bound"] < thresholds.regret]
        limits = f"tau above {thresholds.tau:g}, regret below {100 * thresholds.regret:g} points"
        if good:
            doubt = _doubt(setting, by_name[good[0]["a"]])
            told.append(
                f"To choose for {name}, {_describe_pair(good[0])} is the cheapest that will do ({limits}){doubt}."
            )
        elif known:
            closest = max(known, key=lambda pair: pair["tau_interval"][0])
            told.append(
                f"To choose for {name}, no cheaper setting is shown to do ({limits}); the closest is "
                f"{_describe_pair(closest)}. More seeds, images or encoders would narrow that."
            )
        elif cheaper:
            told.append(
                f"For {name} the data cannot say whether a cheaper setting will do: it takes three encoders in both, "
                "whose scores may be compared."
            )
    return told


def _describe_pair(pair: Mapping[str, Any]) -> str:
    low, high = pair["tau_interval"]
    return (
        f"{pair['a']} (at {pair['cost_ratio']:.2f} of its GPU-hours; tau {pair['tau']:.2f} over {pair['encoders']} "
        f"encoders, interval {low:.2f} to {high:.2f}; its choice, {pair['choice']}, loses {100 * pair['regret']:.2f} "
        f"points, at most {100 * pair['regret_bound']:.2f})"
    )
