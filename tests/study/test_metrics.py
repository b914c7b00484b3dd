"""Every metric of a report is that of results.json, and its draws are those of counts under weights."""

import numpy as np
import pytest
import torch

from benchmark.evaluation.boundary_iou import BoundaryIoU
from benchmark.evaluation.mean_iou import MeanIoU
from benchmark.study.bootstrap import bootstrap_scores, mean_ratio
from benchmark.study.metrics import TITLES, image_counts

CLASSES, IMAGES = list("abcde"), 6


@pytest.fixture
def counted():
    """Evaluators that have seen images with rare, absent and ignored classes, and the arrays of their confusion.npz."""
    random = np.random.default_rng(0)
    evaluators = {"x": MeanIoU(CLASSES), "x/boundary_iou": BoundaryIoU(CLASSES)}
    for image in range(IMAGES):
        label = np.kron(random.integers(0, 3 + (image > 3), (4, 5)), np.ones((6, 6), int)).astype(np.uint8)
        prediction = np.where(random.random(label.shape) < 0.8, label, random.integers(0, 4, label.shape))
        label[random.random(label.shape) < 0.05] = 255
        for evaluator in evaluators.values():
            evaluator.add(prediction=prediction, reference=label)
    arrays = {
        name: np.concatenate([np.insert(counts, 0, image, axis=1) for image, counts in enumerate(evaluator.images)])
        for name, evaluator in evaluators.items()
    }
    return list(evaluators.values()), arrays


def test_scores_are_those_of_the_evaluators(counted):
    evaluators, arrays = counted
    counts = image_counts(arrays, "x", IMAGES, len(CLASSES))
    scores = {name: value for evaluator in evaluators for name, value in evaluator.compute().items()}
    assert set(counts) == set(TITLES)
    for metric in TITLES:
        assert mean_ratio(*counts[metric]) == pytest.approx(scores[metric], rel=1e-12), metric
    assert scores["iou"]["e"] is None and scores["recall"]["e"] is None
    assert "mean_boundary_iou" not in image_counts({"x": arrays["x"]}, "x", IMAGES, len(CLASSES))


def test_a_draw_with_whole_weights_is_the_score_of_images_seen_so_often(counted):
    evaluators, arrays = counted
    counts = image_counts(arrays, "x", IMAGES, len(CLASSES))
    times = np.array([3, 1, 2, 1, 1, 4])
    for evaluator in evaluators:
        total = torch.zeros(evaluator.shape, dtype=torch.int64)
        for rows, often in zip(evaluator.images, times.tolist(), strict=True):
            total[tuple(torch.from_numpy(rows[:, :-1]).T)] += often * torch.from_numpy(rows[:, -1])
        for metric, expected in evaluator.score(total).items():
            if metric in TITLES:
                numerators, denominators, frequencies = counts[metric]
                weights = (times / times.sum())[None]
                found = bootstrap_scores(numerators, denominators, weights, frequencies)
                assert found == pytest.approx([expected], rel=1e-12), metric
