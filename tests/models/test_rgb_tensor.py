"""The one way from an image to pixels takes them as they are stored, or refuses them."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from benchmark.data.transforms import DecodeError, decode_image
from benchmark.models.windows import ModelError, rgb_tensor
from benchmark.prediction.inputs import open_image
from data_scripts.errors import DatasetError
from data_scripts.images import check_image


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB or gray with alpha, which PIL does not write: (H, W, 3 or 2)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff16(pixels: np.ndarray) -> bytes:
    """An uncompressed TIFF of 16-bit RGB, (H, W, 3)."""
    height, width, _ = pixels.shape
    data, bits = pixels.astype("<u2").tobytes(), 8 + 2 + 10 * 12 + 4
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 2), (273, bits + 6), (277, 3), (278, height)]
    entries += [(279, len(data)), (284, 1)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 3 if tag == 258 else 1, value) for tag, value in entries)
    tags = tags.replace(struct.pack("<HHII", 258, 4, 3, bits), struct.pack("<HHII", 258, 3, 3, bits))
    return b"II*\0" + struct.pack("<IH", 8, 10) + tags + struct.pack("<IHHH", 0, 16, 16, 16) + data


def ppm16(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    return b"P6 %d %d 65535\n" % (width, height) + pixels.astype(">u2").tobytes()


@pytest.mark.parametrize("bits", [8, 10])
def test_an_avif_of_10_bits_is_refused(bits):
    stream, pixels = io.BytesIO(), np.full((64, 64, 3), 60_000, np.uint16)
    with av.open(stream, "w", format="avif") as container:
        picture = container.add_stream("libsvtav1", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p" if bits == 8 else "yuv420p10le"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le").reformat(format=picture.pix_fmt)
        for packet in [*picture.encode(frame), *picture.encode()]:
            container.mux(packet)
    data = stream.getvalue()
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    if bits == 8:
        assert rgb_tensor(Image.open(io.BytesIO(data))).min() > 220
        assert check_image(data, "image").height == 64
        return
    with pytest.raises(ModelError, match="more than 8 bits a channel"):
        rgb_tensor(Image.open(io.BytesIO(data)))
    with pytest.raises(DatasetError, match="more than 8 bits a channel"):
        check_image(data, "image")


def test_a_ppm_of_16_bits_is_refused(tmp_path):
    (tmp_path / "image.ppm").write_bytes(ppm16(np.random.default_rng(0).integers(0, 4096, (8, 9, 3))))
    with pytest.raises(ModelError, match="more than 8 bits a channel"):
        open_image(tmp_path / "image.ppm")
    Image.new("RGB", (9, 8), "red").save(tmp_path / "image.ppm")
    assert rgb_tensor(open_image(tmp_path / "image.ppm"))[0].min() == 255


@pytest.mark.parametrize("bare", [False, True])  # a codestream without a container
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_jpeg_2000_of_more_than_8_bits_is_refused(mode, bare):
    """PIL writes 8 bits alone: here one channel's depth is written over, at which readers look."""
    stream = io.BytesIO()
    Image.new(mode, (8, 8), "red").save(stream, "JPEG2000", no_jp2=bare)
    data = bytearray(stream.getvalue())
    assert rgb_tensor(Image.open(io.BytesIO(data)))[0].min() > 250
    assert check_image(bytes(data), "image").height == 8
    channel = data.index(b"\xff\x4f\xff\x51") + 42 + 3 * 1
    assert data[channel] == 8 - 1
    data[channel] = 12 - 1
    assert Image.open(io.BytesIO(data)).mode == mode
    with pytest.raises(ModelError, match="more than 8 bits a channel"):
        rgb_tensor(Image.open(io.BytesIO(data)))
    with pytest.raises(DatasetError, match="more than 8 bits a channel"):
        check_image(bytes(data), "image")


@pytest.mark.parametrize(("write", "channels"), [(png16, 3), (png16, 2), (tiff16, 3)])
def test_16_bits_that_pil_would_cut_are_refused(tmp_path, write, channels):
    """A 12-bit sensor's, of which PIL keeps the high byte: it would see at most 15 of 255."""
    data = write(np.random.default_rng(0).integers(0, 4096, (8, 9, channels)))
    assert np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).max() <= 15
    with pytest.raises(ModelError, match=r"more than 8 bits a channel.*convert it to 8 bits"):
        rgb_tensor(Image.open(io.BytesIO(data)))
    with pytest.raises(DecodeError, match="more than 8 bits a channel"):
        decode_image(data)
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ModelError, match="more than 8 bits a channel"):
        open_image(tmp_path / "image")


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
