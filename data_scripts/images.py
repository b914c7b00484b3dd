"""Decodes and encodes images and label maps: the one place that knows PIL."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
import xxhash
from PIL import ExifTags, Image, ImageOps

from data_scripts.errors import DatasetError

# A photo's; MPO is a JPEG of a phone or drone with more pictures behind the first.
IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "GIF")
LABEL_FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # lossless: a JPEG's labels are not the ones that were drawn
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel, or fewer
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "jpeg2000")
PHOTOMETRIC, BITS, ORIENTATION, SAMPLE_FORMAT = 262, 258, 274, 339  # TIFF tags
KINDS = {  # the first bytes of what is saved under an image's name
    b"version https://git-lfs": "a Git LFS pointer and not the file: run 'git lfs pull'",
    b"<": "a web page or XML file: download the image again",
    b"Rar!": "a RAR archive: unpack it",
    b"PK\3\4": "a zip archive: unpack it, or name it in data.custom",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"%PDF": "a PDF: export its images",
    b"\x93NUMPY": "a NumPy array: save it as PNG",
    b"\x89HDF": "an HDF5 file: save its images as PNG",
}


class ImageInfo(NamedTuple):
    """Height and width in pixels as stored, whether EXIF asks for a turn, and whether the decoder warns of damage."""

    height: int
    width: int
    turned: bool
    damaged: bool = False


def decode(data: bytes, where: object, formats: tuple[str, ...]) -> Image.Image:
    """The image in `data`, decoded, as it is stored; DatasetError names `where` and says what the file is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.format not in formats:
                raise DatasetError(
                    f"{where} is a {image.format} file, not {' or '.join(formats)}: "
                    + (
                        "labels have to be lossless, so save it as PNG."
                        if formats == LABEL_FORMATS
                        else "save it as PNG."
                    )
                )
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise DatasetError(f"{where} holds {image.n_frames} pictures: save the one that is meant, as PNG.")
            check_chunks(data, where)
            check_tags(image, where, formats == LABEL_FORMATS)  # before it is loaded, which turns it, removing the tag
            image.load()
    except DatasetError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"{where} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which take 3 bytes of memory each: cut it into "
            "tiles, such as by 'gdal_retile.py -ps 4096 4096 -targetDir tiles large.tif'."
        ) from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise DatasetError(f"{where} {describe_damage(data, error, formats)}") from error
    return image


def describe_damage(data: bytes, error: Exception, formats: tuple[str, ...]) -> str:
    """What a file that cannot be decoded is, and what to do."""
    if not data:
        return "is empty: replace it or download it again."
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "is a HEIC photo, which is not read: save it as JPEG or PNG."
    for start, kind in KINDS.items():
        if data.lstrip()[: len(start)] == start:
            return f"is {kind}."
    reason = str(error).partition("<")[0].strip(" .:") or type(error).__name__
    return f"is no readable {' or '.join(formats[:3])} image ({reason}): replace it or download its archive again."


def check_chunks(data: bytes, where: object) -> None:
    """Verify the sums of a PNG's chunks, which PIL does not, and without which a decoder may crash."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[at + 4 : end])):
            kind = data[at + 4 : at + 8].decode("latin-1")
            raise DatasetError(f"{where} is damaged (the sum of its {kind!r} chunk differs): download it again.")
        at = end + 4 if data[at + 4 : at + 8] != b"IEND" else len(data)


def check_image(data: bytes, where: object) -> ImageInfo:
    """What a training image is, after decoding it once; DatasetError if it is not readable."""
    image = decode(data, where, IMAGE_FORMATS)
    if image.mode not in IMAGE_MODES or is_deep(image, data):
        raise DatasetError(
            f"{where} has pixels of mode {image.mode}, more than 8 bits a channel, whose range is not known: convert "
            "it to 8 bits a channel."
        )
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    return ImageInfo(image.height, image.width, turned, image.format in ("JPEG", "MPO") and is_damaged_jpeg(data))


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a file has more than 8 bits a channel, of which PIL keeps 8 where it has colours, without saying so."""
    if image.format == "PNG":
        return data[24] > 8  # of the IHDR chunk, which is the first in every PNG
    if image.format == "JPEG2000":  # ITU-T T.800, A.5.1: the marker SIZ, 36 bytes, the channels, 3 bytes for each
        at = data.find(b"\xff\x4f\xff\x51") + 40
        channels = int.from_bytes(data[at : at + 2], "big")
        return any((data[at + 2 + 3 * channel] & 127) >= 8 for channel in range(channels))  # the bits, less 1
    if image.format == "AVIF":
        # AV1-ISOBMFF, 2.3: the second bit of the third byte in a picture's av1C box says 10 or 12 bits.
        header = data.partition(b"mdat")[0]
        boxes = (header if b"av1C" in header else data).split(b"av1C")[1:]
        return any(box[2] & 0x40 for box in boxes if len(box) > 2)
    return image.format == "TIFF" and max(image.tag_v2.get(BITS, (8,))) > 8


def is_damaged_jpeg(data: bytes) -> bool:
    """Whether libjpeg warns of damaged scan data, over which it decodes other pixels; PIL drops its warnings."""
    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:  # also what it cannot convert, which is no damage
        return str(error).startswith(("Corrupt JPEG data", "Premature end", "Inconsistent progression"))
    return False


def turned_size(data: bytes) -> tuple[int, int]:
    """Height and width of an image when it is turned as its EXIF says."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return image.height, image.width


def decode_labels(data: bytes, where: object, colors: bool = False) -> np.ndarray:
    """The (H, W) integers of a label image as they are stored: gray levels, or a palette image's indices.

    With `colors` the image's RGB colours, as int32 r * 65536 + g * 256 + b. DatasetError names `where` and the remedy.
    """
    image = decode(data, where, LABEL_FORMATS)
    if image.mode in ("RGBA", "LA", "PA") and len(set(image.getchannel("A").getextrema())) > 1:
        raise DatasetError(
            f"{where} has an alpha channel of several values, which is not read: save what holds the classes alone, by "
            "'magick in.png -alpha extract out.png' for the alpha channel, or '-alpha off' for the others."
        )
    if colors:
        if image.mode.startswith(("I", "F")) or is_deep(image, data):
            raise DatasetError(
                f"{where} has 16 bits or more a channel, but data.custom.label_mapping names 8-bit colours: save it "
                "with 8 bits a channel, or map its numbers."
            )
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


def check_tags(image: Image.Image, where: object, labels: bool) -> None:
    """Refuse TIFFs of which PIL would not give the stored pixels; DatasetError says why.

    PIL turns a TIFF by its orientation, though no other image, and nothing turns its label map.
    """
    if image.format != "TIFF":
        return
    tags = image.tag_v2
    if not labels:
        if tags.get(ORIENTATION, 1) not in (0, 1):
            raise DatasetError(
                f"{where} has an orientation, by which readers turn it but not its labels: remove it, by 'mogrify "
                "-auto-orient -strip' where the labels fit the turned image, by 'mogrify -orient undefined' else."
            )
        return
    bits = tags.get(BITS, (8,))
    for refused, reason in (
        (tags.get(PHOTOMETRIC) == 0, "is stored inverted (WhiteIsZero)"),
        (tags.get(ORIENTATION, 1) != 1, "has an orientation, by which readers turn it"),
        (
            image.info.get("compression") in LOSSY_TIFF,
            "is compressed with loss, so that its labels are not those drawn",
        ),
        (bits[0] in (2, 4) and image.mode == "L", f"has {bits[0]} bits a pixel, which readers spread"),
        (
            bits[0] == 8 and 2 in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)),
            "has signed 8-bit values, which readers misread",
        ),
    ):
        if refused:
            raise DatasetError(f"{where} {reason}: save it as an 8-bit gray or palette PNG.")


def gray_step(image: Image.Image, data: bytes) -> int:
    """The distance of two gray levels that PIL spread to 0..255: PNG knows gray of 2 and 4 bits; 1 otherwise."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    bits = data[24]  # of the IHDR chunk, which is the first in every PNG
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


def checksum(image: bytes, annotation: bytes) -> str:
    """A sum of a row's stored bytes (XXH3, 64 bits, in hexadecimal), by which damage is found before decoding."""
    digest = xxhash.xxh3_64(image)
    digest.update(annotation)
    return digest.hexdigest()


def content_sum(name: str, image: bytes, labels: np.ndarray) -> int:
    """A number of 128 bits (XXH3) from a sample's name, pixels and labels, the same on every machine."""
    digest = xxhash.xxh3_128(f"{name}\0{labels.shape}\0".encode(errors="surrogateescape"))
    digest.update(image)
    digest.update(np.ascontiguousarray(labels).tobytes())
    return digest.intdigest()


def image_sum(image: bytes) -> int:
    """A number of 64 bits (XXH3) from an image's stored bytes: equal images have one."""
    return xxhash.xxh3_64_intdigest(image)


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) labels at another size, by torch's plain `nearest`."""
    return labels[np.ix_(nearest_source(labels.shape[0], height), nearest_source(labels.shape[1], width))]


def nearest_source(length: int, resized: int) -> np.ndarray:
    """int64 (resized,): which of `length` pixels each of `resized` pixels is taken from, as torch's `nearest` does it.

    The source index is floor(target index * scale), in float32.
    """
    scale = np.float32(length) / np.float32(resized)
    return np.minimum(np.floor(np.arange(resized, dtype=np.float32) * scale).astype(np.int64), length - 1)
