from itertools import pairwise

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from benchmark.models.windows import (
    WindowLogits,
    argmax_,
    cover_size,
    label_map,
    merged_logits,
    merged_rows,
    normalize,
    resize_to_cover,
    split_windows,
    window_origins,
    window_starts,
)


def window_logits(windows):
    """Windows (n, C, height, width) as what makes some of their rows."""
    return WindowLogits(tuple(windows.shape[2:]), lambda some, rows: windows[some, :, rows])


@pytest.mark.parametrize("crop", [(32, 32), (24, 40)])
@pytest.mark.parametrize("size", [(32, 32), (47, 90), (90, 47), (1, 1), (33, 500), (200, 30)])
def test_windows_cover_the_image_and_merge_back_to_it(size, crop):
    image = torch.randint(0, 256, (3, *cover_size(size, crop)), dtype=torch.uint8)
    windows = split_windows(image, crop)
    assert windows.shape[2:] == crop
    merged = merged_rows(window_logits(windows.float()), image.shape[1:], slice(None))[0]
    torch.testing.assert_close(merged, image.float())
    part = merged_rows(window_logits(windows.float()), image.shape[1:], slice(5, 29))[0]
    assert torch.equal(part, merged[:, 5:29])


@pytest.mark.parametrize("length", [512, 513, 683, 1023, 1024, 1025, 2048])
def test_starts_are_the_fewest_at_equal_strides(length):
    starts = window_starts(length, 512)
    assert starts[0] == 0 and starts[-1] == length - 512
    assert len(starts) == -(-length // 512)
    strides = {b - a for a, b in pairwise(starts)}
    assert all(stride <= 512 for stride in strides) and (not strides or max(strides) - min(strides) <= 1)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 900), (512, 512), (37, 41)])
def test_resizing_is_torchvisions_and_just_covers_the_crop(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    resized = resize_to_cover(image, (128, 128))
    assert min(resized.shape[1:]) == 128
    expected = tv.resize(image, list(resized.shape[1:]), antialias=True)
    assert torch.equal(resized, expected)


@pytest.mark.parametrize("size", [(100, 130), (31, 47), (7, 3), (1, 1), (200, 65)])
def test_the_label_map_by_bands_is_the_argmax_of_the_merged_logits(size, monkeypatch):
    monkeypatch.setattr("benchmark.models.windows.CPU_ELEMENTS", 5 * size[1] * 9)
    count = len(window_origins(cover_size(size, (32, 24)), (32, 24)))
    logits = window_logits(torch.randn(count, 5, 32, 24))
    merged, found = merged_logits(logits, size), label_map(logits, size)
    assert found.shape == size and merged.shape == (5, *size)
    # Rounding may decide between two classes only where they are as good as equal.
    chosen = merged.gather(0, found[None].long())[0]
    assert (merged.amax(dim=0) - chosen).max() < 1e-5
    assert (found == merged.argmax(dim=0)).float().mean() > 0.999


def test_overlapping_windows_are_averaged():
    windows = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    merged = merged_rows(window_logits(windows), (4, 6), slice(None))[0]  # starts 0 and 2
    assert merged[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_label_map_of_constant_windows_is_constant():
    logits = torch.zeros(2, 3, 16, 16)
    logits[:, 2] = 1
    assert (label_map(window_logits(logits), (20, 31)) == 2).all()


def test_of_equal_logits_the_first_class_wins():
    logits = torch.randint(0, 3, (255, 8, 8)).float()
    expected = [[row.index(max(row)) for row in column] for column in logits.permute(1, 2, 0).tolist()]
    assert argmax_(logits.clone()).tolist() == expected
    assert argmax_(logits[:1].clone()).eq(0).all()


def test_normalize_equals_torchvisions():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    torch.testing.assert_close(normalize(image, mean, std), tv.normalize(image / 255, mean, std))
