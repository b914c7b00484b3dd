"""From groups of runs to the draws of their scores, under every metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.study import statistics
from benchmark.study.bootstrap import Run, Scores, SeedNoise, draw_run, image_weights, seed_noise, setting_scores
from benchmark.study.collect import Group
from benchmark.study.metrics import OTHERS


def draw_scores(
    groups: Sequence[Group], draws: int, seed: int, metric: str = "mean_iou"
) -> tuple[dict[str, Scores], dict[str, SeedNoise], dict[str, str | None]]:
    """By setting: the scores and their draws, their seed noise, and the setting that it is borrowed from, or None."""
    drawn = _draw(groups, draws, seed, metric)
    noises, sources = _seed_noises(groups, draws, seed, metric)
    scores = {
        group.setting: setting_scores(
            group.setting, drawn[group.setting], noises[group.setting], group.runs[0].dataset, seed
        )
        for group in groups
    }
    return scores, noises, sources


def draw_other_scores(groups: Sequence[Group], draws: int, seed: int) -> dict[str, dict[str, Scores]]:
    """By metric and setting, the scores of settings whose runs all have the metric: those of older versions do not."""
    found = {}
    for metric in OTHERS:
        having = [group for group in groups if all(metric in run.counts for run in group.runs)]
        having = [group for group in having if all(run.results.get(metric) is not None for run in group.runs)]
        found[metric] = draw_scores(having, draws, seed, metric)[0]
    return found


def add_metrics(rows: Sequence[dict[str, Any]], scores: Mapping[str, Scores]) -> None:
    """Give each row its other metrics: score, interval, rank and rank set."""
    for row in rows:
        row["metrics"] = {}
    for metric, found in scores.items():
        intervals, sets = statistics.score_intervals(found), statistics.rank_sets(found)
        ranks = statistics.ranks(found.scores)
        for row in rows:
            m = found.encoders.index(row["encoder"])
            row["metrics"][metric] = {
                "score": float(found.scores[m]),
                "interval": intervals[m].tolist(),
                "rank": int(ranks[m]),
                "rank_set": sets[m].tolist(),
            }


def _draw(groups: Sequence[Group], draws: int, seed: int, metric: str) -> dict[str, dict[str, list[Run]]]:
    """By setting and encoder, the draws of each run, under one set of weights a dataset."""
    found: dict[str, dict[str, list[Run]]] = {group.setting: {} for group in groups}
    for dataset in dict.fromkeys(run.dataset for group in groups for run in group.runs):
        weights = None
        for group in groups:
            for run in (run for encoder in group.encoders for run in group.of(encoder) if run.dataset == dataset):
                if weights is None:
                    weights = image_weights(dataset, len(run.unions), draws, seed)
                runs = found[group.setting].setdefault(run.encoder, [])
                numerators, denominators, frequencies = run.counts[metric]
                runs.append(draw_run(numerators, denominators, weights, frequencies))
    return found


def _seed_noises(
    groups: Sequence[Group], draws: int, seed: int, metric: str
) -> tuple[dict[str, SeedNoise], dict[str, str | None]]:
    """By setting, its seed noise, and the setting from which it is borrowed where no model of its own has two seeds."""
    noises = {
        group.setting: seed_noise(
            [[run.score(metric) for run in group.of(encoder)] for encoder in group.encoders],
            draws,
            group.setting,
            seed,
        )
        for group in groups
    }
    sources: dict[str, str | None] = dict.fromkeys(noises)
    known = [group for group in groups if noises[group.setting].degrees_of_freedom]
    found = dict(noises)
    for group in groups:
        if known and noises[group.setting].image_sampling_only:
            same = [other for other in known if other.runs[0].dataset == group.runs[0].dataset]
            lender = max(same or known, key=lambda other: noises[other.setting].degrees_of_freedom)
            found[group.setting], sources[group.setting] = noises[lender.setting], lender.setting
    return found, sources
