"""Decodes and encodes images and label maps: the one place that knows PIL."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from data_scripts.errors import DatasetError

IMAGE_FORMATS = ("JPEG", "PNG")
LABEL_FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # lossless: a JPEG's labels are not the ones that were drawn
IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def decode(data: bytes, where: object, formats: tuple[str, ...]) -> Image.Image:
    """The image in `data`, decoded, without EXIF rotation; DatasetError names `where` if it is broken or a bomb."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=formats)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{where} has more than {Image.MAX_IMAGE_PIXELS} pixels, which no dataset image has: remove it."
        ) from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise DatasetError(
            f"{where} is no readable {' or '.join(formats)} image: replace it or download its archive again."
        ) from error
    return image


def check_image(data: bytes, where: object) -> tuple[int, int]:
    """(height, width) of a training image in pixels, after decoding it once; DatasetError if it is not readable."""
    image = decode(data, where, IMAGE_FORMATS)
    if image.mode not in IMAGE_MODES:
        raise DatasetError(f"{where} has pixels of mode {image.mode}: convert it to 8 bits a channel.")
    return image.height, image.width


def decode_labels(data: bytes, where: object, colors: bool = False) -> np.ndarray:
    """The (H, W) integers of a label image as they are stored: gray levels, or a palette image's indices.

    With `colors` the image's RGB colours, as int32 r * 65536 + g * 256 + b. DatasetError names `where` and the remedy.
    """
    image = decode(data, where, LABEL_FORMATS)
    if colors:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int32), -1, 0)
        return red << 16 | green << 8 | blue
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("RGB", "RGBA"):
        raise DatasetError(
            f"{where} has RGB colours for labels: name each in data.custom.label_mapping as 'r,g,b': train id, "
            "or store an 8-bit gray or palette map of ids."
        )
    if image.mode not in ("L", "P") and not image.mode.startswith("I"):
        raise DatasetError(f"{where} has labels of mode {image.mode}: store them as an 8-bit gray or palette PNG.")
    return np.asarray(image) // gray_step(image, data)


def gray_step(image: Image.Image, data: bytes) -> int:
    """The distance of two gray levels that PIL spread to 0..255: PNG knows gray of 2 and 4 bits; 1 otherwise."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    bits = data[24]  # of the IHDR chunk, which stands first in every PNG
    return 255 // (2**bits - 1) if bits in (2, 4) else 1


def encode_png(array: np.ndarray) -> bytes:
    """Lossless PNG bytes of an (H, W) or (H, W, 3) uint8 array."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_label_map(labels: np.ndarray) -> bytes:
    """Lossless PNG bytes of an (H, W) uint8 label map, without row filters.

    PIL always chooses a filter for each row, and undoing them is two thirds of the time that a label map takes to
    decode; flat regions compress as well without. The format is that of https://www.w3.org/TR/png-3/.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = labels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), labels], axis=1)  # each row's first byte: filter 0, none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, gray, not interlaced
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) labels at another size, by torch's plain `nearest`."""
    return labels[np.ix_(nearest_source(labels.shape[0], height), nearest_source(labels.shape[1], width))]


def nearest_source(length: int, resized: int) -> np.ndarray:
    """int64 (resized,): which of `length` pixels each of `resized` pixels is taken from, as torch's `nearest` does it.

    The source index is floor(target index * scale), in float32.
    """
    scale = np.float32(length) / np.float32(resized)
    return np.minimum(np.floor(np.arange(resized, dtype=np.float32) * scale).astype(np.int64), length - 1)
