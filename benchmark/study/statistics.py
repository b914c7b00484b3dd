"""What is said of a study's models from their scores and draws: intervals, ranks, agreement of settings, regret.

All statements are at 95 %. docs/statistics.md says how often they hold in simulated studies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, permutation_test, rankdata

from benchmark.study.bootstrap import Scores, generator

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
PERMUTATIONS = 100_000
POSTERIOR = 4_000


@dataclass(frozen=True)
class RankCorrelation:
    """How far two settings order the same models alike.

    Attributes:
        tau: Kendall's tau-b in -1..1.
        p_value: of a permutation test of no agreement, two-sided.
        low, high: the interval of the tau of the true scores. It need not lie around `tau`, which noise pulls towards
            0.
    """

    tau: float
    p_value: float
    low: float
    high: float


@dataclass(frozen=True)
class Regret:
    """What is lost in an expensive setting where a cheap one chose the encoder: at least 0, in units of the score."""

    encoder: str
    estimate: float
    upper_bound: float


def seed_summary(scores: Sequence[float]) -> tuple[float, float | None]:
    """The mean over seeds and the standard deviation (divisor K - 1), which is None with one seed."""
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def score_intervals(models: Scores) -> np.ndarray:
    """Each model's interval of its score, (models, 2), within 0..1: that of the method where the draws hold seed noise.

    It is the basic bootstrap interval, 2 * score - quantiles (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 5.2). Seed noise is in the draws and symmetric, so that it widens both sides alike.
    """
    low, high = np.quantile(models.draws, TAILS, axis=1)
    return np.clip(2 * models.scores[:, None] - np.stack([high, low], axis=1), 0, 1)


def difference_intervals(models: Scores) -> np.ndarray:
    """Percentile intervals of score m - score n: (models, models, 2), each pair for itself."""
    count = len(models.scores)
    intervals = np.zeros((count, count, 2))
    for m, n in zip(*np.triu_indices(count, 1), strict=True):
        low, high = np.quantile(models.draws[m] - models.draws[n], TAILS)
        intervals[m, n], intervals[n, m] = (low, high), (-high, -low)
    return intervals


def sure_wins(models: Scores) -> np.ndarray:
    """Whether model m surely beats model n, all statements true at once: bool (models, models).

    It does where the difference exceeds q standard errors; q is the 95 % quantile over draws of the largest
    |deviation| / standard error over all pairs. (Mogstad, Romano, Shaikh and Wilhelm, Review of Economic Studies 2023.)
    In these deviations the images' variance of each pair is uncertain by itself, see `Scores.pair_deviations`.
    """
    count = len(models.scores)
    beats: np.ndarray = np.zeros((count, count), bool)
    if count > 1:
        first, second = np.triu_indices(count, 1)
        difference = models.scores[first] - models.scores[second]
        errors = (models.draws[first] - models.draws[second]).std(axis=1)
        margin = _margin(models.pair_deviations(first, second), errors)
        beats[first, second], beats[second, first] = difference > margin, -difference > margin
    return beats


def rank_sets(models: Scores) -> np.ndarray:
    """Ranks that each model may have, from the best, 1, on: int (models, 2) of first and last, all true at once.

    1 + models that surely beat it ... all models - those that it surely beats.
    """
    beats = sure_wins(models)
    return np.stack([1 + beats.sum(axis=0), len(beats) - beats.sum(axis=1)], axis=1)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from the highest score, 1, on; equal scores share the best of their ranks: int (models,)."""
    return rankdata(-np.asarray(scores), method="min").astype(np.int64)


def best_probabilities(models: Scores) -> np.ndarray:
    """The share of draws in which each model is the best, (models,); models that tie share a draw."""
    best = models.draws == models.draws.max(axis=0)
    return (best / best.sum(axis=0)).mean(axis=1)


def rank_correlation(a: Scores, b: Scores, seed: int = 0) -> RankCorrelation | None:
    """How far settings `a` and `b` order the encoders that they share alike (Kendall, Biometrika 1945).

    The draws of `a` and `b` belong together draw by draw: they share the weights where the settings share the dataset.

    Returns:
        None with fewer than 3 shared encoders, or where all scores of a setting are the same.
    """
    shared = [encoder for encoder in a.encoders if encoder in b.encoders]
    if len(shared) < 3:
        return None
    a, b = a.of(shared), b.of(shared)
    tau = float(kendalltau(a.scores, b.scores).statistic)
    if np.isnan(tau):
        return None
    low, high = np.quantile(_posterior_tau(a, b, seed), TAILS)
    return RankCorrelation(tau, permutation_p_value(a.scores, b.scores, seed), float(low), float(high))


def permutation_p_value(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of Kendall's tau-b of a, b (models,): the share of orders of b with as large a |tau|.

    Exact without ties and up to 8 models. Else over 100,000 seeded permutations, as (1 + found) / (1 + tried), which
    never claims too much (Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 2010).
    """
    if len(np.unique(a)) == len(np.unique(b)) == len(a):
        return float(kendalltau(a, b, method="exact").pvalue)
    first, second = np.triu_indices(len(a), 1)
    signs = np.sign(a[first] - a[second])

    def concordance(orders: np.ndarray, axis: int) -> np.ndarray:
        # Whole numbers, so that equal values of tau are equal. tau's denominator is the same for every permutation.
        return np.abs(np.sign(orders[..., first] - orders[..., second]) @ signs)

    test = permutation_test(
        (b,),
        concordance,
        permutation_type="pairings",
        vectorized=True,
        alternative="greater",
        n_resamples=PERMUTATIONS,
        batch=1_000,
        rng=generator(seed, "permutations"),
    )
    return float(test.pvalue)


def choice_regret(cheap: Scores, expensive: Scores, settings: int = 1) -> Regret | None:
    """What is lost in `expensive` where the best encoder of `cheap` is taken, of those in both; None without any.

    The estimate is the best score in `expensive`, of all its encoders, less that of the choice. Its upper bound is the
    largest of the encoders' one-sided upper bounds of their lead on the choice, each for itself: where that of the
    truly best one holds, so does the largest (intersection-union test: Berger, Technometrics 1982). Among encoders that
    tie in `cheap`, the worst in `expensive` counts as chosen.

    Args:
        settings: how many cheap settings are compared with `expensive`; their bounds are all true at once (Bonferroni).
    """
    shared = [encoder for encoder in cheap.encoders if encoder in expensive.encoders]
    if not shared:
        return None
    cheap, choices = cheap.of(shared), expensive.of(shared)
    tied = np.flatnonzero(cheap.scores == cheap.scores.max())
    encoder = shared[int(tied[choices.scores[tied].argmin()])]
    chosen = expensive.encoders.index(encoder)
    lead = expensive.scores - expensive.scores[chosen]
    bounds = 2 * lead - np.quantile(expensive.draws - expensive.draws[chosen], (1 - LEVEL) / settings, axis=1)
    return Regret(encoder, float(lead.max()), float(max(0, bounds.max())))


def pareto_front(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which of n models no other one beats, being as cheap and as good, and cheaper or better: bool (n,)."""
    costs, scores = np.asarray(costs), np.asarray(scores)
    as_good = (costs[:, None] <= costs) & (scores[:, None] >= scores)
    better = (costs[:, None] < costs) | (scores[:, None] > scores)
    return ~(as_good & better).any(axis=0)


def _margin(deviations: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """What no row's |deviation| (rows, draws) exceeds in 95 % of draws, in proportion to its standard error (rows,)."""
    moving = errors > 0  # the same runs twice, or a model and itself, do not move
    if not moving.any():
        return np.zeros(len(errors))
    t = deviations[moving] / errors[moving, None]
    return np.quantile(np.abs(t).max(axis=0), LEVEL) * errors


def _posterior_tau(a: Scores, b: Scores, seed: int) -> np.ndarray:
    """Draws of the tau of the true scores: (draws,).

    Percentiles of the draws' own taus are not used: each holds the noise twice, and their interval misses a true tau
    of 0.7 in a quarter of studies. So the true scores are normal pairs around the settings' means, with unknown
    variances and correlation (flat priors); the estimates add noise, whose covariance is that of the draws. Draws
    come from the posterior by importance resampling. (Two-stage normal model: Rubin, Journal of Educational
    Statistics 1981.)
    """
    random = generator(seed, "tau")
    models = len(a.scores)
    estimates = np.stack([a.scores, b.scores])
    estimates = estimates - estimates.mean(axis=1, keepdims=True)
    noise = np.stack([s.draws - s.draws.mean(axis=0) for s in (a, b)]).astype(np.float64)
    noise -= noise.mean(axis=2, keepdims=True)
    noise_covariance = np.einsum("imb,jmb->ij", noise, noise) / noise.shape[2] / (models - 1)

    products = estimates @ estimates.T
    # The estimates' deviation holds the noise too, so that 2.5 times it is far above the true one.
    deviations = random.uniform(0, 2.5, (2, POSTERIOR)) * np.sqrt(np.diag(products) / (models - 1))[:, None]
    correlations = random.uniform(-1, 1, POSTERIOR)
    true = np.einsum("is,js->sij", deviations, deviations)
    true[:, 0, 1] = true[:, 1, 0] = correlations * true[:, 0, 1]
    total = true + noise_covariance
    inverse = np.linalg.inv(total)
    fit = np.log(np.linalg.det(total)) * (models - 1) + np.einsum("sij,ij->s", inverse, products)
    likelihood = np.exp((fit.min() - fit) / 2)
    chosen = random.choice(POSTERIOR, POSTERIOR, p=likelihood / likelihood.sum())

    gain = true[chosen] @ inverse[chosen]
    values, vectors = np.linalg.eigh(true[chosen] - gain @ true[chosen])
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None]  # rounding may leave a variance below 0
    drawn = gain @ estimates + root @ random.standard_normal((POSTERIOR, 2, models))
    first, second = np.triu_indices(models, 1)
    signs = np.sign(drawn[:, :, first] - drawn[:, :, second])
    return signs.prod(axis=1).mean(axis=1)
