from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, kendalltau, norm
from scipy.stats import t as student

from benchmark.evaluation.mean_iou import scores as results_scores
from benchmark.study.bootstrap import (
    Run,
    Scores,
    bootstrap_scores,
    draw_run,
    generator,
    image_weights,
    intersection_and_union,
    mean_ratio,
    seed_noise,
    setting_scores,
    small_sample,
)
from benchmark.study.statistics import (
    best_probabilities,
    choice_regret,
    difference_intervals,
    pareto_front,
    permutation_p_value,
    rank_correlation,
    rank_sets,
    ranks,
    score_intervals,
    seed_summary,
    sure_wins,
)

MANY = 1e9  # degrees of freedom: the images' variance is known


def random_confusions(seed=0, images=9, classes=6, absent=4, only_predicted=5):
    """Sparse rows of images in which one class never occurs and one is predicted alone."""
    random = np.random.default_rng(seed)
    dense = random.integers(1, 5000, (images, classes, classes)) * (random.random((images, classes, classes)) < 0.5)
    dense[:, absent], dense[:, :, absent], dense[:, only_predicted] = 0, 0, 0
    dense[:, 0, only_predicted] = 7
    places = np.argwhere(dense)
    return np.column_stack([places, dense[tuple(places.T)]]), dense


def models(scores, sd=0.0, draws=4000, seed=0, prefix="model", correlation=0.0):
    """Models with normal draws, `correlation` of them shared."""
    random = np.random.default_rng(seed)
    scores = np.asarray(scores, float)
    own, shared = random.standard_normal((len(scores), draws)), random.standard_normal(draws)
    noise = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared
    return Scores(tuple(f"{prefix} {m}" for m in range(len(scores))), scores, scores[:, None] + sd * noise)


def test_scores_are_those_of_results_json():
    rows, dense = random_confusions()
    above, below = intersection_and_union(rows, 9, 6)
    for image in range(9):
        hits = dense[image].diagonal()
        np.testing.assert_array_equal(above[image], hits)
        np.testing.assert_array_equal(below[image], dense[image].sum(0) + dense[image].sum(1) - hits)
    expected = results_scores(torch.tensor(dense.sum(0)), "abcdef")
    assert expected["absent_classes"] == 1 and expected["iou"]["f"] == 0
    assert mean_ratio(above, below) == pytest.approx(expected["mean_iou"], abs=1e-12)


@pytest.mark.parametrize("row", [(9, 0, 0, 1), (0, 6, 0, 1), (0, 0, 6, 1), (-1, 0, 0, 1), (0, -1, 0, 1)])
def test_rows_outside_are_refused(row):
    with pytest.raises(ValueError, match=r"are not in 0\.\."):
        intersection_and_union(np.array([row]), 9, 6)


def test_a_split_without_pixels_has_no_score():
    empty = intersection_and_union(np.zeros((0, 4), np.int64), 3, 2)
    with pytest.raises(ValueError, match="No class has a pixel"):
        mean_ratio(*empty)


def test_bootstrap_equals_a_slow_loop():
    above, below = intersection_and_union(random_confusions()[0], 9, 6)
    weights = image_weights("shapes", 9, 1500, seed=3)
    expected = []
    for weight in weights.astype(np.float64):
        ratios = []
        for c in range(6):
            union = sum(weight[i] * below[i, c] for i in range(9))
            if union:
                ratios.append(sum(weight[i] * above[i, c] for i in range(9)) / union)
        expected.append(sum(ratios) / len(ratios))
    np.testing.assert_allclose(bootstrap_scores(above, below, weights), expected, atol=1e-7)
    np.testing.assert_allclose(bootstrap_scores(above, below, weights.astype(np.float64)), expected, atol=1e-13)


def test_weights_are_dirichlet_and_shared_by_name():
    weights = image_weights("shapes", 20, 2500)
    assert weights.dtype == np.float32 and weights.min() > 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    # Dirichlet(1, ..., 1) of n: mean 1/n, variance (n - 1) / (n^2 (n + 1)), the correlation of two weights -1/(n - 1).
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 20, rtol=0.1)
    assert weights.var() == pytest.approx(19 / (400 * 21), rel=0.03)
    assert np.corrcoef(weights.T)[np.triu_indices(20, 1)].mean() == pytest.approx(-1 / 19, abs=0.01)
    np.testing.assert_array_equal(weights, image_weights("shapes", 20, 2500))
    for other in (image_weights("other", 20, 2500), image_weights("shapes", 20, 2500, seed=1)):
        assert abs(np.corrcoef(weights.ravel(), other.ravel())[0, 1]) < 0.02
    # A chunk is not the one before it again.
    assert not np.array_equal(weights[:1000], weights[1000:2000])


def test_names_of_random_numbers_do_not_run_together():
    draws = {tuple(generator(0, *names).random(2)) for names in (("a", "bc"), ("ab", "c"), ("abc",), ())}
    assert len(draws) == 4


def test_the_interval_of_images_agrees_with_scipys_for_one_class():
    random = np.random.default_rng(1)
    below = random.lognormal(0, 0.5, (150, 1))
    above = below * random.beta(4, 2, (150, 1))
    runs = {"one": [draw_run(above, below, image_weights("a", 150, 10_000))]}
    low, high = score_intervals(setting_scores("s", runs, seed_noise([[0.5]])))[0]
    expected = bootstrap(
        (above[:, 0], below[:, 0]),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="basic",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.002)


def test_the_small_sample_factor_of_equal_images_is_that_of_a_mean():
    """n / (n - 1) is what the variance of n equal values is short of."""
    assert small_sample(np.ones((5, 3)))[0] == pytest.approx(np.sqrt(5 / 4))
    # A class in one image adds to what the mean needs and nothing to what is seen: (1/2 + 1) / (1/2 * 1/2).
    assert small_sample(np.array([[1.0, 0, 0], [1, 8, 0]]))[0] == pytest.approx(np.sqrt(6))
    assert small_sample(np.eye(3)) == (1, 1)


def test_the_small_sample_factor_makes_up_for_what_residuals_miss():
    shares = np.array([0.6, 0.3, 0.1])
    values = np.random.default_rng(0).standard_normal((200_000, 3))
    means = values @ shares
    seen = (shares**2 * (values - means[:, None]) ** 2).sum(axis=1).mean()
    assert small_sample(shares[:, None])[0] == pytest.approx(np.sqrt(means.var() / seen), rel=0.01)


def test_seed_noise_is_pooled_within_models():
    groups = [[0.5, 0.52, 0.57], [0.7], [0.6, 0.64]]
    noise = seed_noise(groups, draws=20_000, name="s")
    expected = (2 * np.var(groups[0], ddof=1) + np.var(groups[2], ddof=1)) / 3
    assert noise.variance == pytest.approx(expected) and noise.degrees_of_freedom == 3
    assert not noise.image_sampling_only
    assert (expected / noise.scale**2).mean() == pytest.approx(1, rel=0.03)  # chi2_3 / 3
    assert seed_noise([[0.5], [0.7]]).image_sampling_only
    one, same, other = (seed_noise([[0.5, 0.6]], name=name).scale for name in ("a", "a", "b"))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_seed_noise_of_models_has_students_distribution():
    noise = seed_noise([[0.5, 0.52, 0.57], [0.6, 0.64]], draws=40_000)
    still = np.zeros(40_000)
    runs = {
        "three": [Run(s, still + s, 1.0, MANY) for s in (0.5, 0.52, 0.57)],
        "one": [Run(0.6, still + 0.6, 1.0, MANY)],
    }
    drawn = setting_scores("s", runs, noise)
    assert drawn.scores == pytest.approx([0.53, 0.6])
    for row, score, seeds in zip(drawn.draws, drawn.scores, (3, 1), strict=True):
        quantiles = np.quantile((row - score) / np.sqrt(noise.variance / seeds), [0.1, 0.9, 0.975])
        np.testing.assert_allclose(quantiles, student.ppf([0.1, 0.9, 0.975], 3), rtol=0.04)
    # Each model's own noise, on one uncertain scale.
    assert abs(np.corrcoef(np.sign(drawn.draws - drawn.scores[:, None]))[0, 1]) < 0.02
    other = setting_scores("t", runs, noise)
    assert abs(np.corrcoef(np.sign(drawn.draws[1] - 0.6), np.sign(other.draws[1] - 0.6))[0, 1]) < 0.02


def test_draws_are_centred_widened_and_paired():
    draws = np.random.default_rng(0).standard_normal(1000)
    runs = {"a": [Run(0.5, 0.4 + 0.01 * draws, 1.5, MANY)], "b": [Run(0.6, 0.6 + 0.01 * draws, 2.5, MANY)]}
    drawn = setting_scores("s", runs, seed_noise([[0.5], [0.6]], 1000))
    assert drawn.draws.mean(axis=1) == pytest.approx([0.5, 0.6])
    assert drawn.draws.std(axis=1) == pytest.approx([0.02 * draws.std()] * 2)
    np.testing.assert_allclose(np.diff(drawn.draws, axis=0), 0.1)  # the same images: no doubt about the difference
    with pytest.raises(ValueError, match="at least one run"):
        setting_scores("s", {"a": []}, seed_noise([[0.5]], 1000))


def test_few_images_give_draws_students_distribution_alike_in_all_settings_of_a_dataset():
    """Normal draws, because the mean over many classes is nearly normal, on a scale that is an estimate."""
    normal = norm.ppf((np.arange(40_000) + 0.5) / 40_000)
    draws = np.random.default_rng(0).permutation(normal)
    run, still = Run(0.5, 0.5 + 0.01 * draws, 1.0, 4.0), seed_noise([[0.5]], 40_000)
    first, same, other = (
        setting_scores(setting, {"a": [run]}, still, dataset).draws[0]
        for setting, dataset in (("s", "d"), ("t", "d"), ("s", "e"))
    )
    quantiles = np.quantile((first - 0.5) / 0.01, [0.1, 0.9, 0.975])
    np.testing.assert_allclose(quantiles, student.ppf([0.1, 0.9, 0.975], 4), rtol=0.03)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_degrees_of_freedom_of_images():
    def degrees(table):
        return small_sample(np.array(table, float))[1]

    assert degrees([[7, 7, 7]] * 12) == pytest.approx(11)
    assert degrees([[5, 0], [5, 0], [5, 0], [0, 0]]) == pytest.approx(2)  # of the images that have a class
    assert degrees([[5, 0, 1]] + [[5, 0, 0]] * 8 + [[0, 1, 0]]) == pytest.approx(8)  # a class in one image says nothing
    assert degrees([[1000, 0], [0, 1]]) == 1
    # Two classes in images of their own: the sum of two means' variances, one of four images and one of six.
    variances = [1 / 4**2 * (1 - 1 / 4)] * 4 + [1 / 6**2 * (1 - 1 / 6)] * 6
    expected = sum(variances) ** 2 / sum(v**2 for v in variances) - 1
    assert degrees([[1, 0]] * 4 + [[0, 1]] * 6) == pytest.approx(expected)


def test_one_image_has_draws_without_spread():
    above, below = np.array([[3.0, 0, 0]]), np.array([[4.0, 2, 0]])
    run = draw_run(above, below, image_weights("a", 1, 100))
    assert run.score == 0.375 and run.factor == 1
    np.testing.assert_allclose(run.draws, 0.375, atol=1e-7)


def test_one_seed_has_no_standard_deviation():
    assert seed_summary([0.5]) == (0.5, None)
    assert seed_summary([0.5, 0.6]) == pytest.approx((0.55, np.sqrt(0.005)))


def test_the_interval_of_a_score_is_mirrored_and_inside_0_to_1():
    draws = np.random.default_rng(0).exponential(0.1, 50_000)
    low, high = score_intervals(Scores(("a",), np.array([0.5]), (0.5 + draws - 0.1)[None]))[0]
    tail = -0.1 * np.log([0.975, 0.025]) - 0.1  # an exponential's quantiles
    assert (low, high) == pytest.approx((0.5 - tail[1], 0.5 - tail[0]), abs=0.01)
    edges = score_intervals(models([0.01, 0.99], sd=0.4))
    assert edges[0, 0] == 0 and edges[1, 1] == 1


def test_differences_are_paired_and_antisymmetric():
    scored = models([0.5, 0.52, 0.6], sd=0.01, correlation=0.9, draws=40_000)
    intervals = difference_intervals(scored)
    assert intervals[0, 2] == pytest.approx(-0.1 + np.array([-1, 1]) * 1.96 * 0.01 * np.sqrt(0.2), abs=3e-4)
    np.testing.assert_array_equal(intervals[2, 0], -intervals[0, 2, ::-1])
    assert not intervals[1, 1].any()


def test_rank_sets_by_hand():
    assert rank_sets(models([0.5, 0.9, 0.51], sd=0.02)).tolist() == [[2, 3], [1, 1], [2, 3]]
    assert rank_sets(models([0.5])).tolist() == [[1, 1]]
    assert rank_sets(models([0.5, 0.5, 0.6], sd=0)).tolist() == [[2, 3], [2, 3], [1, 1]]  # the same run twice
    assert rank_sets(models([0.5, 0.51, 0.52], sd=0.1)).tolist() == [[1, 3]] * 3


def test_equal_models_are_seldom_ranked_where_few_images_hold_a_class():
    """Three classes in 3 of 100 images each: one chi2 for all pairs ranks some pair in 19 % of such studies."""
    wrong, studies = 0, 0
    for number in range(400):
        random = np.random.default_rng(number)
        sizes = random.lognormal(0, 0.8, (100, 3)) * (random.random((100, 3)) < 0.03)
        sizes = sizes[:, sizes.any(axis=0)]
        if sizes.size == 0 or small_sample(sizes)[1] < 2:
            continue
        weights, hard = image_weights("few", 100, 500, number), random.normal(0, 0.12, (100, 1))
        equal = {}
        for name in "abcdef":
            right = np.clip(0.6 + hard + random.normal(0, 0.07, sizes.shape), 0.01, 0.99)
            equal[name] = [draw_run(right * sizes, (2 - right) * sizes, weights)]
        wrong += sure_wins(setting_scores("one", equal, seed_noise([], 500), "few", number)).any()
        studies += 1
    assert studies > 300 and wrong / studies < 0.12, (wrong, studies)


def test_rank_sets_need_more_than_one_pairs_margin():
    """Two models 2.2 standard errors apart: surely different as one pair, not as one of 45."""
    gap = 2.2 * 0.01 * np.sqrt(2)
    assert rank_sets(models([0.5, 0.5 + gap], sd=0.01)).tolist() == [[2, 2], [1, 1]]
    many = models([0.5, 0.5 + gap, *np.linspace(0.1, 0.3, 8)], sd=0.01)
    assert rank_sets(many)[:2].tolist() == [[1, 2], [1, 2]]


def test_ranks_and_the_probability_of_being_best():
    assert ranks(np.array([0.3, 0.5, 0.5, 0.5])).tolist() == [4, 1, 1, 1]
    draws = np.array([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert best_probabilities(Scores(("a", "b", "c"), draws.mean(1), draws)) == pytest.approx(
        [11 / 24, 11 / 24, 1 / 12]
    )


@pytest.mark.parametrize("count", [3, 5, 7, 8, 12])
def test_tau_and_p_without_ties_are_scipys(count):
    a, b = np.random.default_rng(count).random((2, count))
    expected = kendalltau(a, b, method="exact")
    found = rank_correlation(models(a, 0.01), models(b, 0.01))
    assert (found.tau, found.p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))


def test_p_with_ties_is_the_share_of_permutations():
    a, b = np.array([1, 2, 2, 3, 4.0]), np.array([1, 1, 3, 2, 3.0])
    taus = [abs(kendalltau(a, np.array(order)).statistic) for order in permutations(b)]
    observed = abs(kendalltau(a, b).statistic)
    assert permutation_p_value(a, b) == pytest.approx(np.mean(np.array(taus) >= observed - 1e-9))


def test_p_with_ties_of_many_models_is_near_the_exact_one():
    a, b = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9.0]), np.array([1, 1, 2, 4, 3, 5, 5, 4, 6.0])
    orders = b[np.array(list(permutations(range(9))), dtype=np.int8)]
    first, second = np.triu_indices(9, 1)
    sums = np.sign(orders[:, second] - orders[:, first]).sum(axis=1)  # a is in order
    observed = np.sign(b[second] - b[first]).sum()
    found = permutation_p_value(a, b)
    assert found == pytest.approx(np.mean(np.abs(sums) >= abs(observed)), rel=0.1)
    assert found == permutation_p_value(a, b)
    reversible = np.array([1, 1, *range(2, 20)], float)
    assert permutation_p_value(reversible, reversible) == pytest.approx(1 / 100_001)  # never 0


def test_tau_looks_at_shared_models_only():
    a, b = models([0.1, 0.2, 0.3, 0.4], 0.001), models([0.3, 0.2, 0.9, 0.1], 0.001)
    b = Scores(("model 3", "model 1", "other", "model 0"), b.scores, b.draws)
    found = rank_correlation(a, b)
    assert found.tau == pytest.approx(1)  # 0.1, 0.2, 0.4 and 0.1, 0.2, 0.3
    assert rank_correlation(a, b.of(["model 3", "other", "model 0"])) is None
    assert rank_correlation(a, models([0.5] * 4, 0.001)) is None  # no order, no tau


def test_the_interval_of_tau_is_narrow_without_noise_and_wide_with_it():
    a, b = np.array([0.5, 0.52, 0.55, 0.6, 0.62]), np.array([0.3, 0.35, 0.33, 0.41, 0.4])
    exact = rank_correlation(models(a, 1e-7), models(b, 1e-7, seed=1))
    assert (exact.low, exact.high) == pytest.approx((exact.tau, exact.tau))
    noisy = rank_correlation(models(a, 0.05), models(b, 0.05, seed=1))
    assert noisy.high - noisy.low > 1.4
    assert -1 <= noisy.low < noisy.high <= 1


def test_noise_that_settings_share_is_no_agreement():
    """Estimates that agree say less of the true order where shared noise would make them agree."""
    steps, random = np.linspace(0, 0.1, 12), np.random.default_rng(3)
    a = models(0.5 + steps, 0.03)
    own = models(0.5 + np.sort(steps + 0.003 * random.standard_normal(12)), 0.03, seed=9)
    noise = 0.9 * (a.draws - a.scores[:, None]) + np.sqrt(1 - 0.81) * (own.draws - own.scores[:, None])
    together = rank_correlation(a, Scores(own.encoders, own.scores, own.scores[:, None] + noise))
    apart = rank_correlation(a, own)
    assert together.tau == apart.tau == pytest.approx(1)
    assert together.low < apart.low - 0.1


def test_regret_by_hand():
    cheap, expensive = models([0.9, 0.5, 0.4], 0.001), models([0.6, 0.7, 0.5], 0.001, seed=1)
    found = choice_regret(cheap, expensive)
    assert found.encoder == "model 0" and found.estimate == pytest.approx(0.1)
    # Model 1's lead has the error 0.001 sqrt(2), and what is said of it does not depend on how many others there are.
    assert (found.upper_bound - 0.1) / (0.001 * 2**0.5) == pytest.approx(1.645, abs=0.1)
    same = choice_regret(expensive, expensive)
    assert same.encoder == "model 1" and same.estimate == 0 and same.upper_bound == 0
    near = choice_regret(models([0.5, 0.6]), models([0.699, 0.7], 0.01))
    assert near.estimate == 0 and near.upper_bound > 0.01


def test_regret_of_ties_missing_models_and_one_model():
    tied = models([0.9, 0.9, 0.4])
    assert choice_regret(tied, models([0.6, 0.7, 0.5])).encoder == "model 0"
    assert choice_regret(tied, models([0.7, 0.6, 0.5])).encoder == "model 1"
    # What the cheap setting does not know is lost all the same.
    assert choice_regret(models([0.9]), models([0.6, 0.7])).estimate == pytest.approx(0.1)
    assert choice_regret(tied, models([0.5], prefix="other")) is None


def test_bounds_of_several_cheap_settings_are_true_at_once():
    """Of seven settings whose choices are all as bad, one bound alone is too low in 5 % of studies, at the most."""
    expensive = models([0.6, 0.7], sd=0.01, draws=100_000)
    found = choice_regret(models([0.9, 0.8]), expensive, settings=7)
    assert found.upper_bound == pytest.approx(0.1 + norm.ppf(1 - 0.05 / 7) * 0.01 * np.sqrt(2), abs=5e-4)


def test_the_pareto_front_keeps_ties():
    costs, scores = [1, 2, 2, 3, 1, 4, 2], [0.5, 0.6, 0.6, 0.6, 0.4, 0.9, 0.5]
    assert pareto_front(costs, scores).tolist() == [True, True, True, False, False, True, False]
    assert pareto_front([], []).tolist() == []
