from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from benchmark.models.windows import (
    cover_size,
    label_map,
    merge_windows,
    normalize,
    resize_to_cover,
    split_windows,
    upsampled_argmax,
    window_starts,
)


@pytest.mark.parametrize("crop", [(32, 32), (24, 40)])
@pytest.mark.parametrize("size", [(32, 32), (47, 90), (90, 47), (1, 1), (33, 500), (200, 30)])
def test_windows_cover_the_image_and_merge_back_to_it(size, crop):
    image = torch.randint(0, 256, (3, *cover_size(size, crop)), dtype=torch.uint8)
    windows = split_windows(image, crop)
    assert windows.shape[2:] == crop
    torch.testing.assert_close(merge_windows(windows.float(), image.shape[1:]), image.float())


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
def test_argmax_by_strips_equals_argmax_of_the_whole(size):
    logits = torch.randn(5, 33, 47)
    whole = F.interpolate(logits[None], size, mode="bilinear")[0]
    strips = upsampled_argmax(logits, size, rows_at_once=9)
    assert strips.shape == size
    # Rounding may decide between two classes only where they are as good as equal.
    chosen = whole.gather(0, strips[None].long())[0]
    assert (whole.amax(dim=0) - chosen).max() < 1e-5
    assert (strips == whole.argmax(dim=0)).float().mean() > 0.999


def test_overlapping_windows_are_averaged():
    windows = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    merged = merge_windows(windows, (4, 6))  # starts 0 and 2
    assert merged[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_label_map_of_constant_windows_is_constant():
    logits = torch.zeros(2, 3, 16, 16)
    logits[:, 2] = 1
    assert (label_map(logits, (20, 31)) == 2).all()


def test_normalize_equals_torchvisions():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    torch.testing.assert_close(normalize(image, mean, std), tv.normalize(image / 255, mean, std))
