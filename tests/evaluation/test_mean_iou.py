import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score, precision_score, recall_score

from benchmark.evaluation.mean_iou import MeanIoU, confusion_matrix, scores


def random_maps(seed, shape=(37, 41), classes=6, absent=(4,)):
    rng = np.random.default_rng(seed)
    present = [c for c in range(classes) if c not in absent]
    label = rng.choice([*present, 255], shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.5, np.where(label == 255, 0, label), rng.choice(present, shape))
    return prediction.astype(np.uint8), label


def test_confusion_and_iou_equal_scikit_learns():
    metric = MeanIoU([f"class {c}" for c in range(6)])
    maps = [random_maps(seed, shape=(20 + seed, 30)) for seed in range(5)]
    for prediction, label in maps:
        metric.add(prediction=prediction, reference=label)
    truth = np.concatenate([label.ravel() for _, label in maps])
    guess = np.concatenate([prediction.ravel() for prediction, _ in maps])
    kept = truth != 255
    expected = sklearn_confusion(truth[kept], guess[kept], labels=range(6))
    np.testing.assert_array_equal(metric.total.numpy(), expected)

    result = metric.compute()
    present = [0, 1, 2, 3, 5]
    iou = jaccard_score(truth[kept], guess[kept], labels=present, average=None)
    np.testing.assert_allclose([result["iou"][f"class {c}"] for c in present], iou, rtol=1e-12)
    assert result["mean_iou"] == pytest.approx(iou.mean(), rel=1e-12)
    assert result["pixel_accuracy"] == pytest.approx((truth == guess)[kept].mean(), rel=1e-12)
    assert result["iou"]["class 4"] is None and result["absent_classes"] == 1
    for name, score in (("precision", precision_score), ("recall", recall_score)):
        each = score(truth[kept], guess[kept], labels=present, average=None)
        np.testing.assert_allclose([result[name][f"class {c}"] for c in present], each, rtol=1e-12)
    assert result["mean_accuracy"] == pytest.approx(each.mean(), rel=1e-12)
    weighted = jaccard_score(truth[kept], guess[kept], labels=present, average="weighted")
    assert result["frequency_weighted_iou"] == pytest.approx(weighted, rel=1e-12)


def test_compute_forgets_what_was_added():
    metric = MeanIoU(["a", "b"])
    ones, zeros = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    assert metric.compute(predictions=[ones], references=[ones])["mean_iou"] == 1.0
    assert metric.compute(predictions=[zeros], references=[ones])["mean_iou"] == 0.0


def test_nothing_labelled_has_no_score():
    result = scores(torch.zeros(3, 3, dtype=torch.int64), "abc")
    assert result["mean_iou"] is None and result["pixel_accuracy"] is None and result["absent_classes"] == 3


@pytest.mark.parametrize(("prediction", "label"), [(7, 0), (0, 7)])
def test_ids_outside_the_classes_are_refused(prediction, label):
    with pytest.raises(ValueError, match="lies outside the 3 classes"):
        confusion_matrix(torch.tensor([prediction]), torch.tensor([label]), 3)
