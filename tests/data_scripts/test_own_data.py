"""Data as people have them: what is right for each is read, and whatever is not is said, all at once."""

import io
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import datasets
import numpy as np
import pytest
from PIL import ExifTags, Image

from data_scripts import archive_formats, format_report
from data_scripts.errors import DatasetError
from data_scripts.images import IMAGE_MODES, check_image, decode_labels
from data_scripts.inspection.pairing import match_pairs
from data_scripts.preparation import prepare

CLASSES = ["background", "object"]


def png(array, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def photo(seed=0, size=(16, 24), file_format="PNG", **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def labels(*values, size=(16, 24)) -> np.ndarray:
    """A label map of vertical stripes of `values`."""
    return np.resize(np.repeat(np.array(values), size[1] // len(values) + 1)[: size[1]], size).astype(np.uint8)


@pytest.fixture
def build(tmp_path):
    """Write files below tmp_path and prepare the dataset that the keys describe."""

    def build(files=(), **custom):
        for name, data in dict(files).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        keys = {"classes": CLASSES, "train_images": "img", "train_labels": "lab", **custom}
        options = {key: keys.pop(key) for key in ("allow_partial", "num_proc") if key in keys}
        return prepare("folder", root=tmp_path, cache_dir=tmp_path / "cache", custom=keys, **options)

    return build


def pair(number=0, values=(0, 1), folder="", image=".png"):
    return {f"{folder}img/{number}{image}": photo(number), f"{folder}lab/{number}.png": png(labels(*values))}


def stored(prepared, split="train"):
    return [np.asarray(Image.open(io.BytesIO(row["annotation"]["bytes"]))) for row in prepared.splits[split]]


VAL = {"val_images": "val/img", "val_labels": "val/lab"}


# Never silently wrong


def test_jpegs_of_which_the_decoder_warns_are_counted(build):
    """PIL decodes zeroed scan data into other pixels silently."""
    good, size = photo(size=(160, 240), file_format="JPEG"), (160, 240)
    half = len(good) // 2
    damaged = good[:half] + bytes(100) + good[half + 100 :]
    assert (check_image(good, "").damaged, check_image(damaged, "").damaged) == (False, True)
    files = {f"img/{name}.jpg": data for name, data in (("a", good), ("b", damaged), ("c", damaged))}
    prepared = build({**files, **{f"lab/{name}.png": png(labels(0, 1, size=size)) for name in "abc"}}, num_proc=2)
    assert "2 JPEGs of which the decoder warns that their data are damaged, such as b.jpg" in format_report(prepared)


def test_masks_of_0_and_255_are_not_all_ignored(build):
    """The object would be ignored, and the mIoU be 100."""
    with pytest.raises(
        DatasetError, match=r"hold 0 and 255, .*label_mapping to \{0: 0, 255: 1\} if it is one"
    ) as error:
        build(pair(0, (0, 255)) | pair(1, (0, 255)))
    assert "\n" not in str(error.value)
    assert [np.unique(m).tolist() for m in stored(build(label_mapping={0: 0, 255: 1}))] == [[0, 1], [0, 1]]
    meant = build(label_mapping={0: 0, 255: 255}, allow_absent=["object"])
    assert [np.unique(m).tolist() for m in stored(meant)] == [[0, 255], [0, 255]]


def test_one_class_alone_is_refused(build):
    """Its mIoU is 100 %, whatever the model: most often the classes are elsewhere in the files."""
    with pytest.raises(
        DatasetError, match=r"holds 'background' alone, and a score over one class is 100 %.*: name every"
    ):
        build(pair(0, (0, 0)), classes=["background"])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colors", [False, True])
def test_classes_in_an_alpha_channel_are_not_dropped(mode, colors):
    buffer = io.BytesIO()
    image = Image.fromarray(np.zeros((16, 24), np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(labels(0, 1, 2)))
    image.save(buffer, "PNG")
    with pytest.raises(DatasetError, match=r"a\.png has an alpha channel of several values.*: save what holds"):
        decode_labels(buffer.getvalue(), "a.png", colors)
    opaque = np.dstack([np.full((16, 24, 3), 7, np.uint8), np.full((16, 24), 255, np.uint8)])
    assert np.unique(decode_labels(png(opaque), "a.png", colors=True)).tolist() == [0x070707]


def test_a_class_without_a_pixel_in_training_is_named(build):
    with pytest.raises(DatasetError, match=r"No pixel of the training split is object: .*data\.custom\.allow_absent"):
        build(pair(0, (0, 0)))
    assert build(allow_absent=["object"]).report["splits"]["train"]["pixels"] == {"background": 384, "object": 0}


def test_every_image_of_ones_own_counts_but_those_without_a_label(build):
    files = pair(0, (0, 1)) | pair(1, (0,)) | pair(2, (1,)) | pair(3, (255,))
    prepared = build(files)
    assert [np.unique(m).tolist() for m in stored(prepared)] == [[0, 1], [0], [1]]
    part = prepared.report["splits"]["train"]
    assert part["dropped"] == {"one_value": 0, "unlabelled": 1} and part["first"] == {"unlabelled": "3.png"}
    assert "1 left out, because no pixel is labelled, such as 3.png" in format_report(prepared)
    assert "train: 3 of 4 images" in format_report(prepared)
    assert part["pixels"] == {"background": 592, "object": 560} and "592  51.389%" in format_report(prepared)


def test_a_validation_split_that_is_the_training_split_is_refused(build, tmp_path):
    with pytest.raises(DatasetError, match=r"1 validation image\(s\) are training images too"):
        build(pair() | pair(folder="val/"), **VAL)
    cells = {"image": [{"bytes": photo(), "path": None}], "annotation": [{"bytes": png(labels(0, 1)), "path": None}]}
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    table = datasets.Dataset.from_dict(cells, features=features)
    table.save_to_disk(tmp_path / "one")
    for keys, words in (({}, "has no split 'validation' but 'train'"), ({"val_split": "train"}, "are both 'train'")):
        with pytest.raises(DatasetError, match=words):
            prepare("hub", root=tmp_path, cache_dir=tmp_path / "c", custom={"classes": CLASSES, "path": "one", **keys})


@pytest.mark.parametrize("num_proc", [None, 2])
def test_every_image_of_both_splits_is_counted_and_three_are_named(build, num_proc):
    """Whatever the names and the labels: an image that was trained on says nothing of others."""
    files = {key: data for number in range(6) for key, data in pair(number).items()}
    files |= {f"val/img/v{number}.png": photo(number) for number in (1, 2, 3, 4, 9)}
    files |= {f"val/lab/v{number}.png": png(labels(1, 0)) for number in (1, 2, 3, 4, 9)} | {"img/odd.png": photo(7)}
    told = (
        r"^4 validation image\(s\) .* such as v1\.png in \S+val/img and 1\.png in .*; v2.*; v3\.png[^;]*: remove them"
    )
    with pytest.raises(DatasetError, match=told):
        build(files, **VAL, allow_partial=True, num_proc=num_proc)
    for number in (1, 2, 3, 4):
        files[f"val/img/v{number}.png"] = photo(10 + number)
    assert build(files, **VAL, allow_partial=True, num_proc=num_proc).fingerprint["counts"]["validation"] == 5


def test_a_duplicate_that_the_draw_divides_is_refused_and_others_are_not(build):
    files = {key: data for number in range(10) for key, data in pair(number).items()}
    validation = [row["image"]["path"] for row in build(files, val_share=0.2).splits["validation"]]
    train = [f"{number}.png" for number in range(10) if f"{number}.png" not in validation]
    apart = {f"img/{validation[0]}": files[f"img/{train[0]}"]}
    with pytest.raises(DatasetError, match=rf"1 image\(s\) are duplicates, .*{validation[0]} in .* and {train[0]} in"):
        build(apart, val_share=0.2)
    together = {f"img/{validation[0]}": files[f"img/{validation[1]}"]}
    assert build(together, val_share=0.2).fingerprint["counts"] == {"train": 8, "validation": 2}


@pytest.mark.parametrize("keys", [("7", 7), ("0,64,128", "0, 64, 128"), ("0,64,128", "[0, 64, 128]")])
def test_a_key_that_means_two_things_is_refused(build, keys):
    with pytest.raises(DatasetError, match="twice, in two ways"):
        build(pair(), label_mapping={keys[0]: 0, keys[1]: 1})


def test_content_decides_the_fingerprint(build, tmp_path):
    padded = {name: data.ljust(200, b"\0") for name, data in pair(0).items() if "lab" in name}
    first = build(pair(0) | padded | pair(1))
    copy = tmp_path / "lab/0.png"
    status = copy.stat()
    copy.write_bytes(png(labels(1, 0)).ljust(status.st_size, b"\0"))  # as large, and the time is set back
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = build()
    assert second.fingerprint["digest"] != first.fingerprint["digest"]
    assert np.array_equal(stored(second)[0], labels(1, 0))
    assert build(num_proc=2).fingerprint == second.fingerprint


def test_all_problems_are_said_at_once(build):
    files = pair(0, (0, 7)) | pair(1, (0, 7, 9)) | pair(2) | pair(3)
    files["img/4.png"], files["lab/5.png"] = photo(4), png(labels(0, 1))
    files["img/2.png"] = files["img/2.png"][:100]
    with pytest.raises(DatasetError) as error:
        build(files)
    first, *rest = str(error.value).split("\n")
    assert first == "5 problems in the dataset; fix each and run it again:"
    for line, words in zip(
        rest,
        (
            ("2.png in", "is damaged"),
            ("4.png in", "has no label", "data.custom.label_suffix", "data.allow_partial"),
            ("5.png in", "has no image", "data.custom.image_suffix"),
            ("0.png in", "label value 7", "pixels of 2 image(s))", "add 7 to data.custom.label_mapping"),
            ("1.png in", "label value 9", "(96 pixels of 1 image(s))"),
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_of_many_problems_of_a_kind_twenty_are_shown(build):
    files = {f"img/{number:02}.png": b"" for number in range(30)}
    files |= {f"lab/{number:02}.png": png(labels(0, 1)) for number in range(30)}
    with pytest.raises(DatasetError) as error:
        build(files)
    lines = str(error.value).split("\n")
    assert len(lines) == 22 and "and 10 more" in lines[-1] and all("is empty" in line for line in lines[1:-1])


# Pixels as they are stored


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_photo_of_more_than_8_bits_is_refused(build, mode):
    array = np.linspace(0, 60000, 24)[None].repeat(16, 0)
    image = Image.fromarray(array.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    with pytest.raises(DatasetError, match=rf"0\.tif .* mode {mode}, more than 8 bits a channel"):
        build({"img/0.tif": buffer.getvalue(), "lab/0.png": png(labels(0, 1))})


def test_modes_and_marks_agree_with_the_models():
    from benchmark.models import windows
    from data_scripts.labels import IGNORE

    assert (windows.IMAGE_MODES, windows.IGNORE_INDEX) == (IMAGE_MODES, IGNORE)


def tiff(array, **tags) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})
    return buffer.getvalue()


def raw_tiff(array: np.ndarray, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """A TIFF that PIL would not write: few bits, inverted, signed."""
    height, width = array.shape
    if bits < 8:
        unpacked = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        data = np.packbits(unpacked.reshape(height, -1), axis=-1).tobytes()
    else:
        data = array.tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 146)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format)]
    body = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + struct.pack("<I", 0)
    return header.ljust(146, b"\0") + data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw_tiff(labels(0, 1), 8, 0), "inverted"),
        (raw_tiff(labels(0, 1), 1, 0), "inverted"),
        (raw_tiff(labels(0, 1), 4, 1), "4 bits"),
        (raw_tiff(labels(0, 1), 2, 1), "2 bits"),
        (raw_tiff(np.where(labels(0, 1) == 1, -1, 0).astype(np.int8), 8, 1, 2), "signed 8-bit"),
        (tiff(labels(0, 1), t274=6), "orientation"),
    ],
)
def test_label_maps_that_readers_change_are_refused_with_the_reason(data, reason):
    with pytest.raises(DatasetError, match=rf"a\.tif .*{reason}.*: save it as an 8-bit"):
        decode_labels(data, "a.tif")


def test_several_pages_and_lossy_labels_are_refused():
    for file_format, extra in (("TIFF", {}), ("GIF", {}), ("PNG", {})):
        buffer = io.BytesIO()
        first, second = Image.fromarray(labels(0, 1)), Image.fromarray(labels(1, 0))
        first.save(buffer, file_format, save_all=True, append_images=[second], **extra)
        with pytest.raises(DatasetError, match="holds 2 pictures"):
            decode_labels(buffer.getvalue(), "a")
    buffer = io.BytesIO()
    Image.fromarray(labels(0, 1)).save(buffer, "TIFF", compression="jpeg")
    with pytest.raises(DatasetError, match="compressed with loss"):
        decode_labels(buffer.getvalue(), "a")


def deep_png(array: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (H, W, 3), which PIL does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *array.shape[1::-1], 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(array: np.ndarray) -> bytes:
    """A TIFF of 16-bit colours (H, W, 3), which PIL does not write."""
    height, width, _ = array.shape
    data, strip = array.astype("<u2").tobytes(), 8 + 2 + 9 * 12 + 4 + 6
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, strip - 6), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, strip), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<IHHH", 0, 16, 16, 16) + data


@pytest.mark.parametrize("write", [deep_png, deep_tiff])
def test_16_bit_colours_are_not_cut_to_8(build, write):
    """PIL opens both as RGB of 8 bits, of which it takes the high byte: a 12-bit sensor's photo is nearly black."""
    data = write(np.random.default_rng(0).integers(0, 4096, (16, 24, 3)))
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB" and np.asarray(image).max() == 15
    with pytest.raises(DatasetError, match=r"0\.\w+ .* mode RGB, more than 8 bits a channel"):
        build({f"img/0.{'png' if write is deep_png else 'tif'}": data, "lab/0.png": png(labels(0, 1))})
    for encoded in (data, png(np.full((4, 4), 300, np.uint16))):
        with pytest.raises(DatasetError, match="16 bits or more a channel"):
            decode_labels(encoded, "a", colors=True)


def test_exif_that_turns_a_photo_beside_labels_that_do_not_is_named(build):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = photo(size=(24, 16), file_format="JPEG", exif=exif)
    with pytest.raises(DatasetError, match=r"0\.jpg .* is turned by its EXIF and the labels are not"):
        build({"img/0.jpg": turned, "lab/0.png": png(labels(0, 1))})
    exif[ExifTags.Base.Orientation] = 3  # which leaves the size as it is
    prepared = build({"img/0.jpg": photo(file_format="JPEG", exif=exif)})
    assert "1 turned by EXIF, such as 0.jpg: pixels and labels are taken as stored" in format_report(prepared)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_with_an_orientation_is_refused(build, orientation):
    """PIL turns TIFFs alone, so that half of them would lie upside down under their labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    files = {"img/0.tif": tiff(pixels, t274=orientation), "lab/0.png": png(labels(0, 1))}
    with pytest.raises(DatasetError, match=r"0\.tif .* has an orientation, .*: remove it, by 'mogrify -auto-orient"):
        build(files)
    build({"img/0.tif": tiff(pixels, t274=1)})


# Damage


@pytest.mark.parametrize("chunk", [b"IDAT", b"IEND"])
def test_a_wrong_sum_in_a_png_is_found(build, chunk):
    """Which PIL does not check, and which makes torchvision's decoder crash."""
    data = bytearray(photo())
    at = data.rindex(chunk)
    (length,) = struct.unpack_from(">I", data, at - 4)
    data[at + 4 + length] ^= 1
    with pytest.raises(DatasetError, match=rf"0\.png .*\(the sum of its '{chunk.decode()}' chunk differs\)"):
        build({"img/0.png": bytes(data), "lab/0.png": png(labels(0, 1))})


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "a HEIC photo"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (photo(file_format="JPEG")[:-300], "[tT]runcated"),
    ],
)
def test_a_file_that_is_no_image_is_named_for_what_it_is(data, kind):
    with pytest.raises(DatasetError, match=f"^a.jpg .*{kind}"):
        check_image(data, "a.jpg")


def test_a_time_that_is_no_number_and_a_sparse_file_are_no_crash(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, time in (("nan.png", "nan"), ("inf.png", "inf"), ("a.png", "1")):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 1, {"mtime": time}
            tar.addfile(info, io.BytesIO(b"x"))
    with archive_formats.open_archive(tmp_path / "x.tar") as archive:
        assert set(archive.entries) == {"nan.png", "inf.png", "a.png"}
    data = bytearray((tmp_path / "x.tar").read_bytes())
    at = data.rindex(b"a.png\0")
    data[at + 156] = ord("S")  # GNU's sparse member, without its map
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "sparse.tar").write_bytes(data)
    try:
        with archive_formats.open_archive(tmp_path / "sparse.tar") as archive:
            assert "a.png" not in archive.entries
    except DatasetError as error:
        assert "no whole tar archive" in str(error)


def test_an_archive_of_too_many_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data_scripts.archive.MAX_ENTRIES", 3)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(4):
            archive.writestr(str(number), b"")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number in range(4):
            archive.addfile(tarfile.TarInfo(str(number)), io.BytesIO())
    for name in ("x.zip", "x.tar"):
        with pytest.raises(DatasetError, match=rf"{name} has .*files.*: split it into several"):
            archive_formats.open_archive(tmp_path / name)


# The whole folder


def test_linked_folders_are_followed_and_system_files_are_not_samples(build, tmp_path):
    files = pair(0) | {f"elsewhere/{name}": data for name, data in pair(1).items()}
    files |= {f"{place}/.ipynb_checkpoints/0-checkpoint.png": photo() for place in ("img", "lab")}
    files |= {"img/@eaDir/0.png": b"x", "img/Thumbs.db": b"x", "img/._0.png": b"x"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for place in ("img", "lab"):
        (tmp_path / place / "more").symlink_to(tmp_path / "elsewhere" / place)
        (tmp_path / place / "more" / "loop").symlink_to(tmp_path / place)
    (tmp_path / "img/gone.png").symlink_to("/nowhere.png")
    prepared = build()
    assert [row["image"]["path"] for row in prepared.splits["train"]] == ["0.png", "more/1.png"]
    report = format_report(prepared)
    assert "4 hidden or system files in img" in report and "1 links to nothing in img" in report


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz", "tar.zst"])
def test_archives_of_all_kinds_and_their_names(build, tmp_path, kind):
    """Backslashes, a leading ./, and letters in either of Unicode's normal forms."""
    decomposed = unicodedata.normalize("NFD", "é")
    members = {name.replace("0.", f"{decomposed}."): data for name, data in pair(folder="data\\").items()}
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                info = zipfile.ZipInfo("x")
                info.filename = name.replace("/", "\\")
                archive.writestr(info, data)
    else:
        import pyarrow

        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo("./" + name.replace("\\", "/"))
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        data = buffer.getvalue()
        if kind != "tar":
            codec = pyarrow.Codec("zstd" if kind.endswith("zst") else "gzip")
            data = codec.compress(data, asbytes=True)
        path.write_bytes(data)
    prepared = build(train_images=f"x.{kind}/data/img", train_labels=f"x.{kind}/data/lab")
    assert [row["image"]["path"] for row in prepared.splits["train"]] == ["data/img/é.png"]


@pytest.mark.parametrize(
    ("start", "words"), [(b"Rar!\x1a\x07\x01\0", "is a RAR archive"), (b"7z\xbc\xaf\x27\x1c", "is a 7z archive")]
)
def test_archives_that_are_not_read_are_named(build, start, words):
    with pytest.raises(DatasetError, match=f"x.bin {words}, which is not read: unpack it"):
        build({"x.bin": start + bytes(100)}, train_images="x.bin/img", train_labels="x.bin/lab")


@pytest.mark.parametrize("ending", [".webp", ".bmp", ".tif", ".jfif", ".jp2", ".JPG", ".Png"])
def test_every_photo_that_pillow_reads_is_one(build, ending):
    kind = {".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".jfif": "JPEG", ".jp2": "JPEG2000", ".JPG": "JPEG"}
    files = pair(0) | {f"img/0{ending}": photo(file_format=kind.get(ending, "PNG"))}
    del files["img/0.png"]
    assert len(build(files).splits["train"]) == 1


def test_names_that_are_not_utf_8(build, tmp_path):
    for place, data in (("img", photo()), ("lab", png(labels(0, 1)))):
        (tmp_path / place).mkdir()
        with open(os.path.join(os.fsencode(tmp_path / place), b"caf\xe9.png"), "wb") as file:
            file.write(data)
    assert build().splits["train"][0]["image"]["path"] == "caf\\xe9.png"


def test_one_folder_of_photos_and_masks(build):
    files = {name.replace("img/", "all/").replace("lab/0", "all/0_mask"): data for name, data in pair().items()}
    prepared = build(files, train_images="all", train_labels="all", label_suffix="_mask.png")
    assert len(prepared.splits["train"]) == 1


def test_a_label_map_of_another_format_is_named_and_a_photo_alone_is_none(build):
    with pytest.raises(DatasetError, match=r"1\.png .* has no label \(its \.npy is not read: save label maps as PNG\)"):
        build(pair() | {"img/1.png": photo(1), "lab/1.npy": b"x"})
    files = {"all/0.jpg": photo(), "all/0.png": png(labels(0, 1)), "all/1.jpg": photo(1)}
    with pytest.raises(DatasetError, match=r"1\.jpg in \S* has no label: add it"):
        build(files, train_images="all", train_labels="all", image_suffix=".jpg", label_suffix=".png")


def test_a_folder_in_another_case_and_an_empty_one_are_explained(build):
    with pytest.raises(DatasetError, match=r"Img is not in .*, but img is in"):
        build(pair(), train_images="Img")
    with pytest.raises(DatasetError, match=r"doc in .* holds no file that ends in \.jpg.* but 1 other files"):
        build({"doc/readme.md": b"x"}, train_images="doc")


# Split files


def test_lists_name_the_pairs_of_a_split(build, tmp_path):
    files = {key: value for number in range(4) for key, value in pair(number).items()}
    lists = {"train.txt": b"0\n2.png\n", "val.txt": b"img/1.png lab/1.png\n./3\n"}
    prepared = build(files | lists, train_list="train.txt", val_list="val.txt")
    names = {split: [row["image"]["path"] for row in prepared.splits[split]] for split in prepared.splits}
    assert names == {"train": ["0.png", "2.png"], "validation": ["1.png", "3.png"]}
    (tmp_path / "val.txt").write_text("1\nnothing\n")
    with pytest.raises(DatasetError, match=r"val\.txt names nothing, which has no image with a label"):
        build(train_list="train.txt", val_list="val.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_may_name_whole_files_and_come_from_windows(build, tmp_path, encoding):
    names = ["a/0", "a/1", "b/2", "b/3"]
    files = {f"img/{name}_photo.png": photo(k) for k, name in enumerate(names)}
    files |= {f"lab/{name}_mask.png": png(labels(0, 1)) for name in names}
    keys = {"image_suffix": "_photo.png", "label_suffix": "_mask.png", "train_list": "list.txt"}
    lines = ["img/a/0_photo.png", "a/1_photo", "img/b/2_photo.png lab/b/2_mask.png"]
    build(files | {"list.txt": "\n".join(lines).encode(encoding)}, **keys)
    paths = [row["image"]["path"] for row in build(**keys).splits["train"]]
    assert sorted(paths) == ["a/0_photo.png", "a/1_photo.png", "b/2_photo.png"]


def test_photos_of_several_endings_have_label_maps_of_one(tmp_path):
    (tmp_path / "img").mkdir(), (tmp_path / "lab").mkdir()
    for number, ending in enumerate((".jpg", ".jpeg", ".jpg")):
        (tmp_path / f"img/{number}{ending}").write_bytes(photo())
        (tmp_path / f"lab/{number}_mask.png").write_bytes(png(labels(0, 1)))
    found = match_pairs(str(tmp_path / "img"), str(tmp_path / "lab"), {})
    assert len(found.pairs) == 3 and not found.unpaired and found.suffixes == ("", "_mask.png")


def test_a_list_never_takes_another_file_than_the_one_named(build, tmp_path):
    files = {f"img/{name}.png": photo(k) for k, name in enumerate(("a/0", "b/0", "b/1", "c/d/2", "3"))}
    files |= {name.replace("img/", "lab/"): png(labels(0, 1)) for name in files}
    build(files)
    right = ("b/0", "1", "img/a/0.png", "my/img/c/d/2.png", "lab/3.png", "d/2")
    (tmp_path / "list.txt").write_text("\n".join(right))
    paths = [row["image"]["path"] for row in build(train_list="list.txt").splits["train"]]
    assert sorted(paths) == ["3.png", "a/0.png", "b/0.png", "b/1.png", "c/d/2.png"]
    for line, told in {
        "c/0": "c/0, which has no image with a label",
        "0.png": "0.png, which may be a/0 or b/0",
        "val/3.png": "val/3.png, which has no image",
        "img/1.png lab/1.png": "img/1.png lab/1.png, which has no",
    }.items():
        (tmp_path / "list.txt").write_text(f"b/1\n{line}\n")
        with pytest.raises(DatasetError, match=rf"list\.txt names {told}.*: correct the list"):
            build(train_list="list.txt")


def test_a_share_of_the_training_pairs_validates(build):
    files = {key: value for number in range(10) for key, value in pair(number).items()}
    prepared = build(files, val_share=0.2)
    names = {split: {row["image"]["path"] for row in prepared.splits[split]} for split in prepared.splits}
    assert (len(names["train"]), len(names["validation"])) == (8, 2) and not names["train"] & names["validation"]
    again = build(val_share=0.2, split_seed=1)
    assert {row["image"]["path"] for row in again.splits["validation"]} != names["validation"]


def test_colours_of_a_mapping_are_those_of_the_pictures(build):
    colors = np.array([[10, 20, 30], [200, 0, 0]], np.uint8)
    files = {"img/0.png": photo(), "lab/0.png": png(colors[labels(0, 1)])}
    prepared = build(files, label_mapping={"10,20,30": 0, "200, 0, 0": 1})
    assert prepared.colors == ((10, 20, 30), (200, 0, 0))


def test_rows_without_an_image_are_named(tmp_path):
    cell = {"bytes": photo(), "path": None}
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    rows = [
        {"image": cell, "annotation": {"bytes": png(labels(0, 1)), "path": None}},
        {"image": None, "annotation": None},
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "d")
    with pytest.raises(DatasetError, match="row 1 of train, column image is empty: fill or remove the row"):
        keys = {"classes": CLASSES, "path": "d", "val_split": None}
        prepare("hub", root=tmp_path, cache_dir=tmp_path / "cache", custom=keys)


def test_label_maps_as_arrays_and_images_as_bytes(tmp_path):
    features = datasets.Features({"image": datasets.Value("binary"), "annotation": datasets.Array2D((16, 24), "uint8")})
    rows = [{"image": photo(), "annotation": labels(0, 1).tolist()}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "d")
    keys = {"classes": CLASSES, "path": "d", "val_split": None}
    prepared = prepare("hub", root=tmp_path, cache_dir=tmp_path / "cache", custom=keys)
    assert np.array_equal(stored(prepared)[0], labels(0, 1))
