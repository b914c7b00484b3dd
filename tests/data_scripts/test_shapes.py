"""The embedded dataset: the same everywhere, and hard for who does not look."""

import numpy as np
import pytest

from data_scripts import shapes
from data_scripts.preparation import prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare("shapes", root=".", cache_dir=tmp_path_factory.mktemp("cache"))


def test_sizes_and_classes(prepared, rows):
    assert prepared.fingerprint["counts"] == {"train": 256, "validation": 64}
    for _, _, labels in rows(prepared, "validation"):
        assert 120 <= labels.shape[0] <= 160 <= labels.shape[1] <= 192
        assert labels.max() < len(prepared.classes)


def test_a_scene_is_a_function_of_its_key(prepared, rows):
    for index, (_, stored, labels) in enumerate(rows(prepared, "validation")[:5]):
        pixels, expected = shapes.draw_scene(np.random.default_rng((shapes.SEED, 1, index)))
        assert np.array_equal(labels, expected) and stored == shapes.encode_png(pixels)


def test_all_scenes_differ(prepared):
    stored = [row["image"]["bytes"] for part in prepared.splits.values() for row in part]
    assert len(set(stored)) == len(stored)


def test_a_constant_prediction_scores_badly_and_every_class_is_frequent(prepared):
    for part in prepared.report["splits"].values():
        shares = part["pixel_share"].values()
        assert max(shares) / len(shares) < 0.15  # its mIoU: one class has its share, the others 0
        assert min(shares) > 0.03


def test_colour_alone_does_not_decide(prepared, rows):
    """The classes' hues overlap once their own spread and the augmentation's jitter (18/360) are added."""
    hues = sorted(shapes.HUES.values())
    gaps = np.diff([*hues, hues[0] + 1])
    assert (gaps < 2 * (shapes.HUE_SPREAD + 18 / 360)).sum() >= len(hues) - 1
