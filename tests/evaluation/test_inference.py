"""The loop over windows, which evaluation and `predict` share."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmark.evaluation.inference import predict_logits
from benchmark.models.windows import split_windows


class Pixels(torch.nn.Module):
    """Gives back the pixels it sees as logits, and remembers the shapes of its batches."""

    config = SimpleNamespace(crop_size=[16, 16], image_mean=[0.0] * 3, image_std=[1.0] * 3, head="linear")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, pixel_values):
        self.shapes.append(tuple(pixel_values.shape))
        return {"logits": pixel_values}


IMAGES = [torch.randint(0, 256, (3, 16, width), dtype=torch.uint8) for width in (16, 40, 17, 100)]


def run(model, images, batch_size, **options):
    return list(
        predict_logits(
            model, enumerate(images), batch_size=batch_size, device=torch.device("cpu"), autocast=nullcontext, **options
        )
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_each_image_gets_its_own_windows_in_batches_of_one_shape(batch_size):
    model = Pixels()
    found = run(model, IMAGES, batch_size)
    assert [key for key, _ in found] == [0, 1, 2, 3]
    for (_, logits), image in zip(found, IMAGES, strict=True):
        windows = split_windows(image, (16, 16)).float() / 255
        torch.testing.assert_close(logits.rows(slice(len(windows)), slice(16)), windows)
    assert set(model.shapes) == {(batch_size, 3, 16, 16)}
    assert len(model.shapes) == -(-sum(len(split_windows(image, (16, 16))) for image in IMAGES) // batch_size)


def test_a_process_without_windows_takes_part_as_long_as_another_has_some():
    """It forwards padding, so that all processes make equally many forward passes."""
    model, left = Pixels(), iter([True, True, True, False])
    flags = []

    def any_process(flag):
        flags.append(flag)
        return next(left)

    assert len(run(model, IMAGES[:1], 2, any_process=any_process)) == 1
    assert flags == [True, False, False, False] and len(model.shapes) == 3
