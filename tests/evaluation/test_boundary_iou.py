"""Boundary IoU beside an erosion of each class's mask, as the authors' code does it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from benchmark.evaluation.boundary_iou import BoundaryIoU, boundary_band

CLASSES = list("abcd")


def random_map(size, seed, classes=4, ignored=0.0):
    """Blocks of random labels, some pixels of noise, some ignored."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes, (size[0] // 9 + 1, size[1] // 9 + 1))
    labels = np.kron(blocks, np.ones((9, 9), int))[: size[0], : size[1]]
    noisy = np.where(random.random(size) < 0.01, random.integers(0, classes, size), labels)
    return np.where(random.random(size) < ignored, 255, noisy).astype(np.uint8)


def oracle(prediction, label):
    """Each class's mask less its erosion by d steps of 3x3, outside of the image being no mask: (2, classes)."""
    prediction = np.where(label == 255, 255, prediction)
    distance = max(1, round(0.02 * np.hypot(*label.shape)))
    counts = []
    for number in range(len(CLASSES)):
        bands = [
            mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
            for mask in (prediction == number, label == number)
        ]
        counts.append([(bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()])
    return np.array(counts).T


@pytest.mark.parametrize("ignored", [0.0, 0.002, 0.3])
@pytest.mark.parametrize("size", [(70, 130), (150, 40), (300, 400), (3, 200), (1, 1), (2, 3)])
def test_counts_are_those_of_an_erosion_of_each_class(size, ignored):
    metric, total = BoundaryIoU(CLASSES), np.zeros((2, 4), int)
    for seed in range(3):
        prediction, label = random_map(size, seed), random_map(size, seed + 100 * (seed > 0), ignored=ignored)
        expected = oracle(prediction, label)
        found = metric.count(torch.from_numpy(prediction), torch.from_numpy(label))
        np.testing.assert_array_equal(found, expected)
        metric.add(prediction=prediction, reference=label)
        total += expected
    with np.errstate(invalid="ignore"):
        ious = total[0] / total[1]
    scores = metric.compute()
    assert list(scores["boundary_iou"].values()) == [None if np.isnan(iou) else iou for iou in ious]
    assert scores["mean_boundary_iou"] == pytest.approx(np.nanmean(ious), rel=1e-12)


def test_a_prediction_that_is_right_where_there_is_a_label_scores_1():
    label = random_map((120, 90), 0, ignored=0.01)
    prediction = np.where(label == 255, random_map((120, 90), 1), label)
    assert BoundaryIoU(CLASSES).compute(predictions=[prediction], references=[label])["mean_boundary_iou"] == 1


def test_a_shifted_contour_costs_more_than_in_the_mean_iou():
    label = np.zeros((200, 200), np.uint8)
    label[40:160, 40:160] = 1
    prediction = np.roll(label, 2, axis=1)
    scores = BoundaryIoU(["ground", "square"]).compute(predictions=[prediction], references=[label])
    assert scores["boundary_iou"]["square"] < 0.75 < 118 / 122


def test_no_boundary_pixel_is_no_score():
    label = np.full((20, 30), 255, np.uint8)
    scores = BoundaryIoU(CLASSES).compute(predictions=[np.zeros_like(label)], references=[label])
    assert scores["mean_boundary_iou"] is None and set(scores["boundary_iou"].values()) == {None}


def test_the_band_of_one_contour():
    labels = torch.zeros(9, 12, dtype=torch.uint8)
    labels[:, 6:] = 3
    band = boundary_band(labels, 2)
    assert band[4].tolist() == [True] * 2 + [False] * 2 + [True] * 4 + [False] * 2 + [True] * 2
    assert band[:2].all() and band[-2:].all()
