"""COCO-Stuff, ACDC and LoveDA in their official layouts, rebuilt small, and their label rules beside the authors'."""

import numpy as np
import pytest
import torchvision

from data_scripts.acdc import Builder as Acdc
from data_scripts.coco_stuff import Builder as CocoStuff
from data_scripts.errors import DatasetError
from data_scripts.loveda import Builder as LoveDA
from data_scripts.preparation import prepare

# The stored values 0..181 that occur, and their train ids, at both ends of each gap: clsID_to_trID in
# tools/dataset_converters/coco_stuff164k.py of open-mmlab/mmsegmentation.
COCO_RUNS = [
    *((0, 10, 0), (12, 24, 11), (26, 27, 24), (30, 43, 26), (45, 64, 40), (66, 66, 60), (69, 69, 61), (71, 81, 62)),
    *((83, 89, 73), (91, 181, 80)),
]


def build(name, tmp_path, **options):
    return prepare(name, root=tmp_path, cache_dir=tmp_path / "cache", allow_partial=True, **options)


@pytest.fixture
def archives(tmp_path, make):
    """What a download of each dataset holds, of few images; the dataset's archives by name."""
    photo, labels = make.image(format="JPEG"), make.labels
    layouts = {
        "train2017.zip": {f"train2017/{n:012}.jpg": photo for n in (9, 25)},
        "val2017.zip": {"val2017/000000000139.jpg": photo},
        "stuffthingmaps_trainval2017.zip": {
            "train2017/000000000009.png": labels([0, 12, 181, 255]),
            "train2017/000000000025.png": labels([91]),
            "val2017/000000000139.png": labels([89, 255]),
        },
        "rgb_anon_trainvaltest.zip": {
            f"rgb_anon/{weather}/{split}/GP01/GP01_frame_{n:06}_rgb_anon.png": make.image(width=34)
            for weather in ("fog", "night", "rain", "snow")
            for split, n in (("train", 1), ("val", 41), ("val", 9), ("val_ref", 3), ("test", 5))
        },
        "gt_trainval.zip": {
            f"gt/{weather}/{split}/GP01/GP01_frame_{n:06}_gt_{kind}.png": labels(
                np.repeat(np.arange(34, dtype=np.uint8)[None], 12, 0)
            )
            for weather in ("fog", "night", "rain", "snow")
            for split, n in (("train", 1), ("val", 41), ("val", 9))
            for kind in ("labelIds", "labelTrainIds", "labelColor", "invIds")
        },
    }
    for split, first in (("Train", 0), ("Val", 2522)):
        members = {}
        for number, area in enumerate(("Rural", "Urban")):
            members[f"{split}/{area}/images_png/{first + number}.png"] = make.image(seed=number)
            members[f"{split}/{area}/masks_png/{first + number}.png"] = labels([0, 1 + number, 7])
        layouts[f"{split}.zip"] = members
    for name, members in layouts.items():
        make.zip(tmp_path / name, members)
    return layouts


def test_coco_stuff(tmp_path, archives, rows):
    prepared = build("coco_stuff", tmp_path)
    train, val = rows(prepared, "train"), rows(prepared, "validation")
    assert [name for name, _, _ in train] == ["000000000009.jpg", "000000000025.jpg"]
    assert np.unique(train[0][2]).tolist() == [0, 11, 170, 255] and (train[1][2] == 80).all()
    assert [name for name, _, _ in val] == ["000000000139.jpg"] and np.unique(val[0][2]).tolist() == [79, 255]


def test_the_label_rule_of_coco_stuff_is_its_authors():
    expected = {start + n: first + n for start, end, first in COCO_RUNS for n in range(end - start + 1)}
    assert CocoStuff.rule.train_ids == expected | {255: 255} and CocoStuff.rule.others is None
    named = {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 157: "tree", 170: "wood"}
    assert {number: CocoStuff.classes[number] for number in named} == named
    assert len(set(CocoStuff.classes)) == len(CocoStuff.classes) == len(set(CocoStuff.colors)) == 171


def test_acdc_is_a_validation_split_of_four_weathers_with_the_labels_of_cityscapes(tmp_path, archives, rows):
    prepared = build("acdc", tmp_path)
    found = rows(prepared, "validation")
    assert set(prepared.splits) == {"validation"} and len(found) == 8
    assert [name for name, _, _ in found][:2] == ["GP01_frame_000009_rgb_anon.png", "GP01_frame_000041_rgb_anon.png"]
    places = [row["image"]["path"].split("/")[1] for row in prepared.splits["validation"]]
    assert places == [weather for weather in ("fog", "night", "rain", "snow") for _ in range(2)]
    classes = torchvision.datasets.Cityscapes.classes
    official = [255 if not 0 <= entry.train_id < 19 else entry.train_id for entry in classes if entry.id >= 0]
    assert found[0][2][0].tolist() == official


def test_loveda(tmp_path, archives, rows):
    prepared = build("loveda", tmp_path)
    for split, names in (("train", ["0.png", "1.png"]), ("validation", ["2522.png", "2523.png"])):
        found = rows(prepared, split)
        assert [name for name, _, _ in found] == names
        assert [np.unique(labels).tolist() for _, _, labels in found] == [[0, 6, 255], [1, 6, 255]]
    # LoveDA.__getitem__ of Semantic_Segmentation/data/loveda.py subtracts 1, and ignores what is then -1.
    assert LoveDA.rule.train_ids == {value: value - 1 if value else 255 for value in range(8)}


@pytest.mark.parametrize(
    ("name", "count", "archive", "member"),
    [
        ("coco_stuff", "118,287 official train", "stuffthingmaps_trainval2017.zip", "train2017/000000000025.png"),
        ("acdc", "406 official validation", "gt_trainval.zip", "gt/snow/val/GP01/GP01_frame_000009_gt_labelIds.png"),
        ("loveda", "2,522 official train", "Val.zip", "Val/Urban/masks_png/2523.png"),
    ],
)
def test_wrong_and_partial_archives_are_refused(name, count, archive, member, tmp_path, archives, make):
    arguments = {"root": tmp_path, "cache_dir": tmp_path / "cache"}
    with pytest.raises(DatasetError, match=f"of the {count} pairs: download it again"):
        prepare(name, **arguments)
    members = dict(archives[archive])
    removed = members.pop(member)
    make.zip(tmp_path / archive, members)
    with pytest.raises(DatasetError, match=r"has no label, as 1 in all"):
        prepare(name, **arguments)
    make.zip(tmp_path / archive, {"other/" + member: removed})
    with pytest.raises(DatasetError, match=r"holds 0 of the .* pairs: download it again\."):
        prepare(name, **arguments, allow_partial=True)
    (tmp_path / archive).unlink()
    with pytest.raises(DatasetError, match=rf"{archive} is not in .*: download it from http"):
        prepare(name, **arguments)


def test_a_label_that_is_no_class_is_refused(tmp_path, archives, make):
    members = archives["stuffthingmaps_trainval2017.zip"] | {"train2017/000000000025.png": make.labels([11])}
    make.zip(tmp_path / "stuffthingmaps_trainval2017.zip", members)  # a street sign, which nobody annotated
    with pytest.raises(DatasetError, match="11"):
        build("coco_stuff", tmp_path)


def test_counts_are_the_official_ones():
    assert CocoStuff.counts == {"train": 118287, "validation": 5000}
    assert Acdc.counts == {"validation": 100 + 106 + 100 + 100}
    assert LoveDA.counts == {"train": 1366 + 1156, "validation": 992 + 677}
