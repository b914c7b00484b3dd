"""Label maps: stored values to train ids, and the nearest resize."""

import io

import numpy as np
import pytest
from PIL import Image

from data_scripts.errors import DatasetError
from data_scripts.images import decode_labels, encode_label_map, resize_nearest
from data_scripts.labels import IGNORE, LabelRule


def test_resize_equals_torch_s_plain_nearest():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    sizes = [(1, 7), (7, 1), (13, 29), (1052, 1046), (1024, 1052), (37, 37), (600, 719)]
    for old in sizes:
        labels = rng.integers(0, 256, old, dtype=np.uint8)
        for new in sizes:
            expected = torch.nn.functional.interpolate(torch.from_numpy(labels)[None, None], size=new, mode="nearest")
            assert np.array_equal(resize_nearest(labels, *new), expected[0, 0].numpy())


@pytest.mark.parametrize("size", [(1, 1), (37, 41), (512, 683)])
def test_a_label_map_is_a_gray_png_of_the_same_ids(size):
    labels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_label_map(labels)))
    image.verify()  # the checksums of the chunks
    image = Image.open(io.BytesIO(encode_label_map(labels)))
    assert (image.format, image.mode) == ("PNG", "L")
    assert np.array_equal(np.asarray(image), labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_rule_maps_every_value(dtype):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 34, (30, 40)).astype(dtype)
    rule = LabelRule({7: 0, 33: 1}, others=IGNORE)
    labels, values, unknown = rule(raw)
    expected = np.vectorize(lambda value: {7: 0, 33: 1}.get(value, IGNORE))(raw)
    assert labels.dtype == np.uint8 and np.array_equal(labels, expected) and not unknown
    assert values.tolist() == np.unique(raw).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_rule_without_others_counts_what_it_does_not_name(dtype):
    labels, _, unknown = LabelRule({0: 0})(np.array([[0, 9, 9, 4]], dtype=dtype))
    assert unknown == {4: 1, 9: 2} and labels.tolist() == [[0, 255, 255, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_png_of_few_bits_keeps_its_numbers(bits, palette):
    """PIL spreads gray of 2 and 4 bits over 0..255."""
    import struct
    import zlib

    values = np.arange(2 ** min(bits, 4), dtype=np.uint8).repeat(8)
    packed = np.packbits(np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]).tobytes()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 3 if palette else 0, 0, 0, 0)
    colors = chunk(b"PLTE", bytes(range(48))) if palette else b""
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colors
    png += chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    assert np.array_equal(decode_labels(png, "x")[0], values)


def test_labels_in_a_jpeg_are_refused():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="JPEG")
    with pytest.raises(DatasetError, match=r"a\.jpg is a JPEG file, not PNG .*labels have to be lossless"):
        decode_labels(buffer.getvalue(), "a.jpg")


def test_colours_are_named_as_they_are_or_packed():
    raw = np.array([[0x80_40_20, 0x00_00_01]], dtype=np.int32)
    for rule in (
        LabelRule({(0x80, 0x40, 0x20): 1, (0, 0, 1): IGNORE}, colors=True),
        LabelRule({0x80_40_20: 1, 1: IGNORE}, colors=True),
    ):
        assert rule(raw).labels.tolist() == [[1, IGNORE]] and not rule(raw).unknown
