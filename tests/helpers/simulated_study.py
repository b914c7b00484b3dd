"""Studies whose true scores are known: counts of images and classes from a model with closed-form means.

An image of class c has L labelled pixels. A model finds the share t of them and as many wrong ones as it misses, so
that the intersection is t L and the union (2 - t) L. t = Phi(skill + noise), normal noise of variance s^2, has the
mean Phi(skill / sqrt(1 + s^2)). An image without the class may have false pixels in its union alone.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from benchmark.study.bootstrap import Scores, draw_run, image_weights, seed_noise, setting_scores


@dataclass(frozen=True)
class Population:
    """A validation set's population: the shares of images that have a class, and the classes' difficulty."""

    share: np.ndarray  # (classes,)
    skill: np.ndarray  # (classes,)
    images: int
    seed_sd: float = 0.023  # in skill: 0.7 to 0.8 points of mIoU
    noise: tuple[float, float, float, float] = (0.5, 0.5, 0.35, 0.25)  # of image, image x class, x model, x seed
    size_sd: float = 0.8  # of the logarithm of a class's pixels in an image
    false_rate: float = 0.03
    false_size: float = 0.1

    @property
    def variance(self) -> float:
        """Of all that is added to a skill."""
        return self.seed_sd**2 + sum(sd**2 for sd in self.noise)

    def truth(self, effects: np.ndarray, present: np.ndarray) -> np.ndarray:
        """The mIoU of models of `effects` (models, classes) over all images and seeds and the classes `present`."""
        found = ndtr((self.skill + effects) / np.sqrt(1 + self.variance))
        size = np.exp(self.size_sd**2 / 2)
        false = (1 - self.share) * self.false_rate * self.false_size * size
        ratio = found * self.share * size / ((2 - found) * self.share * size + false)
        return ratio[:, present].mean(axis=1)

    def split(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labelled pixels, difficulty and the size of false predictions of a split's images: (images, classes) each."""
        shape = self.images, len(self.share)
        label = (random.random(shape) < self.share) * np.exp(self.size_sd * random.standard_normal(shape))
        hard = self.noise[0] * random.standard_normal((self.images, 1)) + self.noise[1] * random.standard_normal(shape)
        false = (label == 0) * self.false_size * np.exp(self.size_sd * random.standard_normal(shape))
        return label, hard, false

    def runs(
        self, effects: np.ndarray, seeds: int, split: tuple[np.ndarray, ...], random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Intersections and unions of models on a split, float32 (models, seeds, images, classes)."""
        label, hard, false = split
        shape = len(effects), seeds, *label.shape
        draw = random.standard_normal
        skill = (self.skill + effects)[:, None, None] + hard + self.seed_sd * draw((*shape[:2], 1, 1))
        skill = skill + self.noise[2] * draw((len(effects), 1, *label.shape), np.float32)
        found = ndtr(skill + self.noise[3] * draw(shape, np.float32), dtype=np.float32)
        wrong = (random.random(shape, np.float32) < self.false_rate) * false
        return found * label, (2 - found) * label + wrong


def common_classes(random: np.random.Generator) -> Population:
    """20 classes, each in 5 to 40 % of 300 images."""
    return Population(random.uniform(0.05, 0.4, 20), norm.ppf(random.uniform(0.6, 0.9, 20)) * 1.3, 300)


def rare_classes(random: np.random.Generator) -> Population:
    """60 classes in 400 images, of which the rarest occur in 0.4 % of them."""
    share = np.geomspace(0.004, 0.4, 60)
    return Population(share, norm.ppf(random.uniform(0.6, 0.9, 60)) * 1.3, 400)


def few_images(random: np.random.Generator) -> Population:
    """8 classes, each in 20 to 80 % of 20 images."""
    return Population(random.uniform(0.2, 0.8, 8), norm.ppf(random.uniform(0.6, 0.9, 8)) * 1.3, 20)


def simulate(
    make,
    several: int,
    number: int,
    draws: int = 1000,
    spread: float = 0.045,
    own_spread: float = 0.012,
    class_spread: float = 0.06,
) -> list[tuple[np.ndarray, Scores]]:
    """Three settings of six models, each with the models' true scores: the second shares the first one's dataset.

    Args:
        make: makes a population from random numbers.
        several: models of the first setting that have three seeds. Where it is fewer than all, all other models have
            one seed, in every setting, and borrow the variance of these.
        number: of the study, its seed.
        spread: standard deviation of models' skills, in all settings alike; 0.045 is 1.1 points of mIoU.
        own_spread: standard deviation of what the second and the third setting each add to it.
        class_spread: standard deviation of a model's skill from class to class. With all three at 0, all models are
            equally good.
    """
    random = np.random.default_rng([number, several])
    common = spread * random.standard_normal((6, 1))
    settings = []
    for setting, dataset in (("cheap", "first"), ("same images", "first"), ("dear", "second")):
        if setting != "same images":
            population = make(random)
            split = population.split(random)
            weights = image_weights(dataset, population.images, draws, number)
            present = split[0].any(axis=0)
        own = 0 if setting == "cheap" else own_spread
        effects = 0.95 ** bool(own) * common + own * random.standard_normal((6, 1))
        effects = effects + class_spread * random.standard_normal((6, len(present)))
        above, below = population.runs(effects, 3, split, random)
        seeds = [3 if several == 6 or (setting == "cheap" and m < several) else 1 for m in range(6)]
        models = {
            f"model {m}": [draw_run(above[m, k][:, present], below[m, k][:, present], weights) for k in range(seeds[m])]
            for m in range(6)
        }
        if setting == "cheap" or several == 6:
            known = [[run.score for run in runs] for runs in models.values()]
            noise = seed_noise(known, draws, setting, number)
        scores = setting_scores(setting, models, noise, dataset, number)
        settings.append((population.truth(effects, present), scores))
    return settings
