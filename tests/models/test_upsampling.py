"""Bilinear upsampling by rows, against torch's own of the whole."""

import pytest
import torch
import torch.nn.functional as F

from benchmark.models.mask2former_head import Mask2FormerHead
from benchmark.models.upsampling import upsample

SIZES = [((4, 5), (32, 40)), ((7, 3), (30, 31)), ((33, 20), (10, 9)), ((1, 1), (6, 5)), ((5, 6), (5, 6))]


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_rows_are_those_of_the_whole(source, size, dtype):
    maps = torch.randn(2, 3, *source).to(dtype)
    whole = F.interpolate(maps.float(), size, mode="bilinear")
    torch.testing.assert_close(upsample(maps, size), whole, rtol=0, atol=0)
    for start in range(0, size[0], 3):
        rows = slice(start, min(start + 3, size[0]))
        torch.testing.assert_close(upsample(maps, size, rows), whole[:, :, rows])
    torch.testing.assert_close(upsample(maps, size, slice(None)), whole)


def test_some_rows_of_the_queries_masks():
    outputs = {"class_queries_logits": torch.randn(3, 6, 5), "masks_queries_logits": torch.randn(3, 6, 4, 4) * 4}
    whole = Mask2FormerHead.semantic_logits(outputs, (32, 24))
    torch.testing.assert_close(Mask2FormerHead.semantic_logits(outputs, (32, 24), slice(9, 21)), whole[:, :, 9:21])
