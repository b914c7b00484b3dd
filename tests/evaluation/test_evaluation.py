import io
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn.functional import one_hot

from benchmark.evaluation.loop import EVALUATORS, evaluate
from benchmark.evaluation.mean_iou import MeanIoU, scores
from benchmark.reporting.results import score_table

CLASSES = ["dark", "middle", "bright", "never"]


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "x.png"}


@pytest.fixture
def split() -> datasets.Dataset:
    """Seven images of one grey each; the label says which third it is of, but for noise and ignored pixels."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(7):
        size = (20 + 3 * index, 31)
        images.append(png(np.full((*size, 3), 40 + 85 * (index % 3), np.uint8)))
        annotations.append(
            png(np.where(rng.random(size) < 0.7, index % 3, rng.choice([0, 1, 2, 255], size)).astype(np.uint8))
        )
    feature = datasets.Features({key: datasets.Image(decode=False) for key in ("image", "annotation")})
    return datasets.Dataset.from_dict({"image": images, "annotation": annotations}, features=feature)


class Thirds(torch.nn.Module):
    """Predicts the third of brightness at each pixel of a token grid of 4 x 4."""

    config = SimpleNamespace(crop_size=[16, 16], image_mean=[0.0] * 3, image_std=[1.0] * 3, head="linear")

    def forward(self, pixel_values):
        third = (pixel_values[:, 0, ::4, ::4] * 3).long().clamp(max=2)
        return {"logits": one_hot(third, 4).movedim(-1, 1).float()}


def truth(split) -> np.ndarray:
    confusion = np.zeros((4, 4), np.int64)
    for index, row in enumerate(split):
        label = np.asarray(Image.open(io.BytesIO(row["annotation"]["bytes"])))
        for c in range(4):
            confusion[c, index % 3] += (label == c).sum()
    return confusion


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_each_image_counts_once_for_any_number_of_processes(split, processes):
    """Ranks one after another, each alone; their matrices must add up to that of the split."""
    accelerator = Accelerator(cpu=True)
    total = np.zeros((4, 4), np.int64)
    for rank in range(processes):
        place = SimpleNamespace(
            process_index=rank,
            num_processes=processes,
            device=torch.device("cpu"),
            autocast=accelerator.autocast,
            reduce=lambda tensor, _: tensor,
        )
        result = evaluate(Thirds(), split, CLASSES, place, batch_size=4, num_workers=0)
        for _, label, prediction, pixels in result.confusions:
            total[label, prediction] += pixels
    np.testing.assert_array_equal(total, truth(split))


def test_scores_confusions_and_samples_agree(split, monkeypatch):
    # As two processes would give them, the one with the later images first.
    monkeypatch.setattr("benchmark.evaluation.loop.gather_object", lambda samples: samples[::-1])
    result = evaluate(
        Thirds(), split, CLASSES, Accelerator(cpu=True), batch_size=3, num_workers=0, sample_indices=[0, 5]
    )
    expected = scores(torch.from_numpy(truth(split)), CLASSES)
    assert {name: result.scores[name] for name in expected} == expected
    boundary = np.zeros((2, 4), int)
    np.add.at(boundary, tuple(result.counts["boundary_iou"][:, 1:3].T), result.counts["boundary_iou"][:, 3])
    ious = [above / below if below else None for above, below in boundary.T.tolist()]
    assert list(result.scores["boundary_iou"].values()) == ious
    assert result.scores["iou"]["never"] is None and result.scores["absent_classes"] == 1
    assert [sample.index for sample in result.samples] == [0, 5]
    assert (result.samples[1].prediction == 2).all()
    assert sorted(set(result.confusions[:, 0])) == list(range(7))
    assert "never" in score_table(result.scores) and "1 classes" in score_table(result.scores)


def test_the_model_is_left_in_the_mode_it_was_in(split):
    model = Thirds().train()
    evaluate(model, split, CLASSES, Accelerator(cpu=True), batch_size=3, num_workers=0)
    assert model.training


def test_a_metric_that_needs_logits_gets_those_of_the_whole_image(split, monkeypatch):
    class Highest(MeanIoU):
        needs_logits = True

        def count(self, prediction, reference, logits=None):
            assert logits.shape == (4, *reference.shape) and torch.equal(logits.argmax(0), prediction)
            return super().count(logits.argmax(0), reference)

        def score(self, total):
            return {"by_logits": scores(total, self.classes)["mean_iou"]}

    monkeypatch.setitem(EVALUATORS, "highest", Highest)
    found = evaluate(Thirds(), split, CLASSES, Accelerator(cpu=True), batch_size=3, num_workers=0).scores
    assert found["by_logits"] == found["mean_iou"]


def test_a_metric_whose_names_are_taken_or_whose_counts_are_no_integers_is_refused(split, monkeypatch):
    class Other(MeanIoU):
        def score(self, total):
            return {"mean_iou": 1.0}

    class Shares(MeanIoU):
        def count(self, prediction, reference, logits=None):
            return super().count(prediction, reference) / 2

    for metric, kind, words in (
        (Other, ValueError, r"other names a score .* \(mean_iou\)"),
        (Shares, TypeError, "int64"),
    ):
        monkeypatch.setitem(EVALUATORS, "other", metric)
        with pytest.raises(kind, match=words):
            evaluate(Thirds(), split, CLASSES, Accelerator(cpu=True), batch_size=3, num_workers=0)
