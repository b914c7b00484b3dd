"""The one way from an image to pixels takes them as they are stored, or refuses them."""

import numpy as np
import pytest
from PIL import Image

from benchmark.models.windows import ModelError, rgb_tensor


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused(dtype):
    pixels = np.arange(12).reshape(3, 4).astype(dtype)
    with pytest.raises(ModelError, match="has no known range: scale it to"):
        rgb_tensor(pixels)
    with pytest.raises(ModelError, match=r"more than 8 bits a channel.*convert it to 8 bits"):
        rgb_tensor(Image.fromarray(pixels))


def test_8_bits_are_kept():
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    assert (rgb_tensor(Image.fromarray(pixels)).permute(1, 2, 0).numpy() == pixels).all()
    assert (rgb_tensor(pixels[..., 0]).numpy() == pixels[..., 0]).all()
