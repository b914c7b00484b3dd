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
        if setting["uneven_classes"]:
            told.append(f"{highest}, but the means are over different classes: see the notes.")
        elif len(candidates) > 1:
            others = ", ".join(name for name in candidates if name != first["encoder"])
            told.append(
                f"{highest}, and is the best with probability {first['best_probability']:.2f}; {others} may be as good."
            )
        elif not _moves(setting):
            told.append(f"{highest}, but the validation images are too few to say how far chance moves its lead.")
        elif setting["seed_noise"]["degrees_of_freedom"]:
            told.append(f"{best}, beyond noise.")
        else:
            told.append(f"{best}, beyond the noise of the images; one seed says nothing of the noise of training.")
    return told


def _moves(setting: Mapping[str, Any]) -> bool:
    """Whether other images would move the first encoder's lead on the second, as far as the draws know."""
    pair = {row["encoder"] for row in setting["rows"][:2]}
    low, high = next(d["interval"] for d in setting["differences"] if {d["better"], d["worse"]} == pair)
    return setting["image_noise"] and high - low > STILL


def _stand_ins(
    settings: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], thresholds: Thresholds
) -> list[str]:
    """For each setting that has cheaper ones: the cheapest that may stand for it, or that the data show none."""
    told = []
    for name in [setting["setting"] for setting in settings]:
        cheaper = sorted(
            (pair for pair in pairs if pair["b"] == name and pair["cost_ratio"] is not None),
            key=lambda pair: pair["cost_ratio"],
        )
        known = [pair for pair in cheaper if pair["tau_interval"] is not None]
        good = [p for p in known if p["tau_interval"][0] > thresholds.tau and p["regret_bound"] < thresholds.regret]
        limits = f"tau above {thresholds.tau:g}, regret below {100 * thresholds.regret:g} points"
        if good:
            told.append(f"To choose for {name}, {_describe_pair(good[0])} is the cheapest that will do ({limits}).")
        elif known:
            closest = max(known, key=lambda pair: pair["tau_interval"][0])
            told.append(
                f"To choose for {name}, no cheaper setting is shown to do ({limits}); the closest is "
                f"{_describe_pair(closest)}. More seeds, images or encoders would narrow that."
            )
        elif cheaper:
            told.append(f"For {name} the data cannot say whether a cheaper setting will do: it takes three encoders.")
    return told


def _describe_pair(pair: Mapping[str, Any]) -> str:
    low, high = pair["tau_interval"]
    return (
        f"{pair['a']} (at {pair['cost_ratio']:.2f} of its GPU-hours; tau {pair['tau']:.2f}, interval {low:.2f} to "
        f"{high:.2f}; its choice, {pair['choice']}, loses {100 * pair['regret']:.2f} points, at most "
        f"{100 * pair['regret_bound']:.2f})"
    )
