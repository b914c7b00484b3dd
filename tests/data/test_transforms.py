"""Geometry against torchvision's transforms in the straightforward order, draws against the protocol's numbers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms.v2 import functional as F

from benchmark.data import transforms
from benchmark.recipe.schema import Augment

DRAWS = 10_000


def encode(array: np.ndarray, file_format: str = "PNG", mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def scene(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image, uint8 (height, width, 3), and a label map (height, width) of blocks, a fifth of them ignored."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    image = np.clip(np.asarray(coarse, np.float32) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    blocks = Image.fromarray(rng.choice([0, 1, 2, 7, 255], (9, 9)).astype(np.uint8))
    return image, np.asarray(blocks.resize((width, height), Image.NEAREST))


def generators():
    return (np.random.default_rng([0, position]) for position in range(DRAWS))


@pytest.mark.parametrize(
    ("size", "crop_size"),
    [((90, 120), (64, 64)), ((120, 67), (64, 96)), ((37, 150), (80, 48)), ((200, 60), (32, 32)), ((64, 64), (64, 64))],
)
def test_crops_equal_the_straightforward_order(size, crop_size):
    image, label = scene(*size)
    flips, paddings = set(), set()
    for position in range(12):
        sample = transforms.training_sample(
            encode(image), encode(label), crop_size=crop_size, seed=3, position=position, augment=Augment()
        )

        rng = np.random.default_rng([3, position])
        transforms.draw_jitter(rng, Augment())
        geometry, _ = transforms.choose_crop(label, crop_size, rng, Augment())
        pixels, labels = torch.tensor(image).permute(2, 0, 1), torch.tensor(label)[None]
        if geometry.flip:
            pixels, labels = F.horizontal_flip(pixels), F.horizontal_flip(labels)
        pixels = F.resize(pixels, geometry.scaled, antialias=True)
        labels = F.resize(labels, geometry.scaled, interpolation=F.InterpolationMode.NEAREST)
        padding = [0, 0, *(max(0, crop_size[i] - geometry.scaled[i]) for i in (1, 0))]
        pixels, labels = F.pad(pixels, padding, fill=0), F.pad(labels, padding, fill=255)
        pixels, labels = (F.crop(x, geometry.top, geometry.left, *crop_size) for x in (pixels, labels))

        assert torch.equal(sample["labels"], labels[0])
        assert (sample["pixel_values"].int() - pixels.int()).abs().max() <= 1
        assert sample["sizes"].tolist() == [min(a, b) for a, b in zip(geometry.scaled, crop_size, strict=True)]
        flips.add(geometry.flip)
        paddings.add(max(padding) > 0)
    assert flips == {False, True}
    assert True in paddings


def test_jitter_has_the_protocols_distribution():
    draws = np.stack([transforms.draw_jitter(rng, Augment()) for rng in generators()])
    ranges = [(1 - 32 / 255, 1 + 32 / 255), (0.5, 1.5), (0.5, 1.5), (-18 / 360, 18 / 360)]
    takes_part = draws[:, :4] != [1, 1, 1, 0]
    for factors, part, (low, high) in zip(draws.T, takes_part.T, ranges, strict=False):
        assert stats.binomtest(int(part.sum()), DRAWS, 0.5).pvalue > 1e-3
        assert stats.kstest(factors[part], stats.uniform(low, high - low).cdf).pvalue > 1e-3
        assert factors.min() >= np.float32(low) and factors.max() <= np.float32(high)
        # Of some 5,000 draws the outermost lie this close to the ends, but for a chance in a million.
        margin = 0.003 * (high - low)
        assert factors[part].min() < low + margin and factors[part].max() > high - margin
    contrast_first = draws[:, 4]
    assert set(contrast_first) == {0, 1}
    assert stats.binomtest(int(contrast_first.sum()), DRAWS, 0.5).pvalue > 1e-3
    # Independent of each other: all 32 combinations are equally likely.
    combination = np.column_stack([takes_part, contrast_first]) @ (1 << np.arange(5))
    assert stats.chisquare(np.bincount(combination.astype(int), minlength=32)).pvalue > 1e-3


def test_geometry_has_the_protocols_distribution():
    crop_size, height, width = (512, 640), 40_000, 100_000
    sizes = np.array([transforms.draw_scaled_size(height, width, crop_size, rng, Augment()) for rng in generators()])
    fit = min(crop_size[0] / height, crop_size[1] / width)
    # A width of w stands for ratios in [w, w + 1) / width.
    ratios = (sizes[:, 1] + 0.5) / width
    assert stats.kstest(ratios / fit, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3
    assert np.all(np.abs(sizes[:, 0] / height - ratios) < 1 / height + 0.5 / width)

    corners = np.array([transforms.draw_corner((520, 643), (512, 640), rng) for rng in generators()])
    for coordinate, places in zip(corners.T, (9, 4), strict=True):
        assert stats.chisquare(np.bincount(coordinate, minlength=places)).pvalue > 1e-3
    assert transforms.draw_corner((100, 640), (512, 640), np.random.default_rng(0)) == (0, 0)

    label = np.zeros((2, 2), np.uint8)
    flips = sum(transforms.choose_crop(label, (2, 2), rng, Augment())[0].flip for rng in generators())
    assert stats.binomtest(flips, DRAWS, 0.5).pvalue > 1e-3


def test_scaled_size_is_rounded_down():
    class Factor:
        def uniform(self, low, high):
            assert (low, high) == (0.5, 2.0)
            return 1.3

    # 1.3 * min(512 / 500, 512 / 333) = 1.3312
    assert transforms.draw_scaled_size(500, 333, (512, 512), Factor(), Augment()) == (665, 443)


def test_crops_are_drawn_until_they_hold_a_labelled_pixel():
    label = np.full((64, 64), 255, np.uint8)
    label[:9, :9] = 4
    for seed in range(200):
        geometry, crop = transforms.choose_crop(label, (16, 16), np.random.default_rng(seed), Augment())
        assert (crop == 4).any(), geometry


def test_image_without_a_labelled_pixel_ends_the_draws():
    _, crop = transforms.choose_crop(np.full((64, 64), 255, np.uint8), (16, 16), np.random.default_rng(0), Augment())
    assert (crop == 255).all()


def test_samples_are_a_pure_function_of_seed_and_position():
    image, label = (encode(array) for array in scene(50, 70))

    def sample(seed, position):
        np.random.seed(sample.calls)
        torch.manual_seed(sample.calls)
        sample.calls += 1
        return transforms.training_sample(
            image, label, crop_size=(32, 32), seed=seed, position=position, augment=Augment()
        )

    sample.calls = 0
    first, again = sample(1, 2**33 + 5), sample(1, 2**33 + 5)
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)
    assert not torch.equal(first["pixel_values"], sample(1, 2**33 + 6)["pixel_values"])
    assert not torch.equal(first["pixel_values"], sample(2, 2**33 + 5)["pixel_values"])


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(scene(40, 60)[0], "JPEG", exif=exif)


def transparent_rgb() -> bytes:
    return encode(scene(40, 60)[0], transparency=(0, 0, 0))


def test_pixels_of_more_than_8_bits_are_refused():
    """PIL would cut them to 0..255."""
    with pytest.raises(transforms.DecodeError, match=r"mode I;16 has more than 8 bits a channel"):
        transforms.decode_image(encode(scene(41, 67)[0][..., 0].astype(np.uint16) * 200))


@pytest.mark.parametrize(
    "encoded",
    [
        encode(scene(41, 67)[0], "JPEG", quality=90),
        encode(scene(41, 67)[0], "JPEG", subsampling=0, progressive=True),
        encode(scene(41, 67)[0], "JPEG", mode="L"),
        encode(scene(41, 67)[0], "JPEG", mode="CMYK"),
        encode(scene(41, 67)[0]),
        encode(scene(41, 67)[0], mode="L"),
        encode(scene(41, 67)[0], mode="RGBA"),
        encode(scene(41, 67)[0], mode="P"),
        encode(scene(41, 67)[0], mode="LA"),
        encode(scene(41, 67)[0], "BMP"),
        transparent_rgb(),
        exif_rotated(),
    ],
    ids=lambda encoded: encoded[:4].hex(),
)
def test_images_decode_to_the_pixels_of_pil(encoded):
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    decoded = transforms.decode_image(encoded)
    assert decoded.dtype == torch.uint8
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), expected)


def test_annotations_decode_to_their_ids():
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(transforms.decode_annotation(encode(label)).numpy(), label)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_broken_images_raise_one_kind_of_error(file_format):
    whole = encode(scene(40, 60)[0], file_format)
    for broken in (whole[: len(whole) // 2], b"", b"not an image", whole[:30]):
        with pytest.raises(transforms.DecodeError):
            transforms.decode_image(broken)
