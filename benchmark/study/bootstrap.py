"""How far a score would move with other images and other seeds: draws of it.

A score is the mean over classes of a ratio of counts that add up over images. The Bayesian bootstrap (Rubin, The
Annals of Statistics 1981) draws it again under random weights of the images; what training with another seed would
change is added as normal noise. All draws with one number, whatever the model or the setting, belong together.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2

DRAWS = 10_000
CHUNK = 1_000  # draws at once: their products stay in a few megabytes


@dataclass(frozen=True)
class Run:
    """One run's score in 0..1, its draws (draws,) under the dataset's weights, and its `small_sample` factor and
    degrees of freedom."""

    score: float
    draws: np.ndarray
    factor: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class SeedNoise:
    """What is known of the variance between seeds.

    Attributes:
        variance: pooled within models, in squared units of the score; 0 where nothing is known.
        degrees_of_freedom: the sum over models of seeds - 1. 0 means that no model has two seeds: draws then hold image
            sampling only, and say nothing about retraining.
        scale: (draws,), the standard deviation in each draw, which is itself uncertain.
    """

    variance: float
    degrees_of_freedom: int
    scale: np.ndarray

    @property
    def image_sampling_only(self) -> bool:
        return self.degrees_of_freedom == 0


@dataclass(frozen=True)
class ImageNoise:
    """What images alone add to the draws of a setting's models.

    Attributes:
        deviations: (models, draws), times the small-sample factor.
        widening: (draws,), sqrt(nu / chi2_nu), which the draws hold once for all models.
        degrees_of_freedom: nu.
        seed: of further draws of chi2_nu.
    """

    deviations: np.ndarray
    widening: np.ndarray
    degrees_of_freedom: float
    seed: int


@dataclass(frozen=True)
class Scores:
    """The models of one setting: mean scores over seeds (models,), and joint draws (models, draws) around them.

    Without `images` the draws hold no uncertainty of the images' variance.
    """

    encoders: tuple[str, ...]
    scores: np.ndarray
    draws: np.ndarray
    images: ImageNoise | None = None

    def of(self, encoders: Sequence[str]) -> "Scores":
        """Those of some encoders, in that order."""
        rows = [self.encoders.index(encoder) for encoder in encoders]
        images = self.images and replace(self.images, deviations=self.images.deviations[rows])
        return Scores(tuple(encoders), self.scores[rows], self.draws[rows], images)

    def pair_deviations(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """How far draws of the differences score[first] - score[second] lie from these: (pairs, draws).

        Each pair has a chi2 of its own in place of the one of all models. The images' variance of a pair is estimated
        from that pair: where images are few, some of many estimates are too small, and one chi2 would not know.
        """
        deviations = self.draws[first] - self.draws[second] - (self.scores[first] - self.scores[second])[:, None]
        if self.images is not None:
            degrees, shape = self.images.degrees_of_freedom, deviations.shape
            own = np.sqrt(degrees / generator(self.images.seed, "image variance of pairs").chisquare(degrees, shape))
            of_images = self.images.deviations[first] - self.images.deviations[second]
            deviations += (own - self.images.widening) * of_images
        return deviations


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers of `seed` for what `names` name, independent of those for other names, the same everywhere."""
    # The length as well, because names of one checksum exist.
    words = [word for name in names for word in (len(name), zlib.crc32(name.encode()))]
    return np.random.default_rng([seed, *words])


def intersection_and_union(confusions: np.ndarray, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image's pixels in the intersection and in the union of label and prediction.

    Args:
        confusions: integers (n, 4): image, label, prediction, pixels, as in confusion.npz.

    Returns:
        two float64 arrays (images, classes), at least 0; exact for up to 2^53 pixels.

    Raises:
        ValueError: an image or a class lies outside.
    """
    image, label, prediction, pixels = np.asarray(confusions).reshape(-1, 4).T
    for what, values, limit in (
        ("image", image, images),
        ("label", label, classes),
        ("prediction", prediction, classes),
    ):
        if len(values) and (values.min() < 0 or values.max() >= limit):
            raise ValueError(f"The {what}s {values.min()}..{values.max()} are not in 0..{limit - 1}.")

    def add(of_class: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        places = (image * classes + of_class)[chosen]
        return np.bincount(places, pixels[chosen], images * classes).reshape(images, classes)

    intersection = add(label, label == prediction)
    return intersection, add(label) + add(prediction) - intersection


def mean_ratio(numerators: np.ndarray, denominators: np.ndarray, frequencies: np.ndarray | None = None) -> float:
    """The score of a whole split: the mean over classes of sum of numerators / sum of denominators over images.

    A class whose denominators are all 0 is left out of the mean, as in results.json. With intersections and unions
    the score is results.json's mean_iou.

    Args:
        numerators, denominators: (images, classes), at least 0.
        frequencies: (images, classes), at least 0: a class weighs as much as its sum of them; all alike where None.

    Raises:
        ValueError: no class is left.
    """
    return float(bootstrap_scores(numerators, denominators, np.ones((1, len(numerators))), frequencies)[0])


def image_weights(dataset: str, images: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """A dataset's weights, the same for all runs on it: float32 (draws, images), each row Dirichlet(1, ..., 1).

    No weight is 0, so that no class ever vanishes. Weights of datasets with other names are independent.
    """
    random = generator(seed, "images", dataset)
    weights: np.ndarray = np.empty((draws, images), np.float32)
    for start in range(0, draws, CHUNK):
        drawn = random.standard_exponential((min(CHUNK, draws - start), images))
        weights[start : start + CHUNK] = drawn / drawn.sum(axis=1, keepdims=True)
    return weights


def bootstrap_scores(
    numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray, frequencies: np.ndarray | None = None
) -> np.ndarray:
    """The score under each row of weights.

    Args:
        numerators, denominators, frequencies: (images, classes), as in `mean_ratio`.
        weights: (draws, images). float32 gives scores within 1e-7 of those of float64, at twice the speed.

    Returns:
        float64 (draws,).

    Raises:
        ValueError: no class has a denominator.
    """
    present = np.any(denominators, axis=0)
    if not present.any():
        raise ValueError("No class has a pixel: there is no score to draw.")
    # One product for all, in the weights' precision.
    parts = [numerators, denominators] if frequencies is None else [numerators, denominators, frequencies]
    counts = np.hstack([part[:, present] for part in parts]).astype(weights.dtype)
    scores = np.empty(len(weights))
    for start in range(0, len(weights), CHUNK):
        sums = weights[start : start + CHUNK] @ counts
        above, below, *often = np.split(sums, len(parts), axis=1)
        chunk = slice(start, start + CHUNK)
        if often:
            scores[chunk] = (above / below * often[0]).sum(axis=1, dtype=np.float64) / often[0].sum(axis=1)
        else:
            scores[chunk] = (above / below).mean(axis=1, dtype=np.float64)
    return scores


def small_sample(denominators: np.ndarray) -> tuple[float, float]:
    """What few images make of a bootstrap: its deviations are too small, and how far images move a score is uncertain.

    A class's ratio is a mean over images with the shares h_i of its denominator. Residuals r_i from that mean have
    E[sum h_i^2 r_i^2] = s^2 sum h_i^2 (1 - 2 h_i + H), H = sum h_j^2, while the mean's variance is s^2 H: the
    correction of heteroscedasticity-consistent variances for leverage (MacKinnon and White, Journal of Econometrics
    1985), pooled here over classes, because a class in one image shows no deviation at all.

    An image thus adds v_i, its sum over classes of h_i^2 (1 - 2 h_i + H), to the variance that is seen. A sum of
    unequal variances has (sum v_i)^2 / sum v_i^2 degrees of freedom (Satterthwaite, Biometrics Bulletin 1946), one
    less because the mean is estimated: images - 1 where all count alike.

    Args:
        denominators: (images, classes), at least 0.

    Returns:
        the factor of the deviations, at least 1, and the degrees of freedom, at least 1; both are 1 where every class
        is in one image, as nothing can be known then.
    """
    present = denominators[:, np.any(denominators, axis=0)]
    shares = present / present.sum(axis=0)
    squares = shares**2
    variance = squares.sum(axis=0)
    seen = (squares * (1 - 2 * shares + variance)).sum(axis=1)
    if seen.sum() <= 0:
        return 1.0, 1.0
    degrees = seen.sum() ** 2 / (seen**2).sum() - 1
    return float(np.sqrt(variance.sum() / seen.sum())), max(1.0, float(degrees))


def draw_run(
    numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray, frequencies: np.ndarray | None = None
) -> Run:
    """What is kept of one run; arguments and errors as for `bootstrap_scores`."""
    return Run(
        mean_ratio(numerators, denominators, frequencies),
        bootstrap_scores(numerators, denominators, weights, frequencies),
        *small_sample(denominators),
    )


def seed_noise(scores: Sequence[Sequence[float]], draws: int = DRAWS, name: str = "", seed: int = 0) -> SeedNoise:
    """The variance between seeds, pooled within models.

    Args:
        scores: of each model, those of its seeds; models with one seed add nothing.
        name: of the pool, such as its setting; the uncertainty of pools with other names is independent.
    """
    squares = sum(float(((np.asarray(values) - np.mean(values)) ** 2).sum()) for values in scores)
    degrees = sum(len(values) - 1 for values in scores)
    if not degrees:
        return SeedNoise(0.0, 0, np.zeros(draws))
    # Normal noise of this scale has Student's t distribution, because the variance is an estimate.
    scale = np.sqrt(squares / generator(seed, "seed variance", name).chisquare(degrees, draws))
    return SeedNoise(squares / degrees, degrees, scale)


def setting_scores(
    setting: str, models: Mapping[str, Sequence[Run]], noise: SeedNoise, dataset: str = "", seed: int = 0
) -> Scores:
    """The joint draws of a setting's models: other images, and other seeds as far as `noise` knows of them.

    A model's draw is the mean over its seeds, centred on its score, its deviations times the small-sample factor and
    sqrt(nu / chi2_nu), because the images' variance is an estimate, too, plus z * scale / sqrt(seeds). One factor and
    one nu serve all models, the mean over runs, because they share images. A model with one seed gets the noise that
    other models, or another setting's, have shown.

    Args:
        setting: a name; the noise of settings with other names is independent.
        models: by encoder, the runs of its seeds: one or more.
        dataset: whose images these are; all settings of a dataset have one chi2 in a draw, as they have one weight.

    Raises:
        ValueError: no model, or a model without a run.
    """
    if not models or not all(models.values()):
        raise ValueError("A setting needs at least one model, and each model at least one run.")
    every = [run for runs in models.values() for run in runs]
    factor, degrees = (np.mean([getattr(run, name) for run in every]) for name in ("factor", "degrees_of_freedom"))
    chances = generator(seed, "image variance", dataset).random(len(noise.scale))
    widening = np.sqrt(degrees / chi2.ppf(chances, degrees))
    scores = np.array([np.mean([run.score for run in runs]) for runs in models.values()])
    draws, deviations = np.empty((2, len(models), len(noise.scale)))
    for row, deviation, score, (encoder, runs) in zip(draws, deviations, scores, models.items(), strict=True):
        images = np.mean([run.draws for run in runs], axis=0)
        deviation[:] = factor * (images - images.mean())
        normal = generator(seed, "seeds", setting, encoder).standard_normal(len(row))
        row[:] = score + widening * deviation + normal * noise.scale / np.sqrt(len(runs))
    return Scores(tuple(models), scores, draws, ImageNoise(deviations, widening, float(degrees), seed))
