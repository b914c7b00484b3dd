"""Datasets of one's own: folders, archives and Hub datasets, read right or refused with the remedy."""

import io
import os

import datasets
import numpy as np
import pytest
from PIL import Image

from data_scripts.custom import parse_custom
from data_scripts.errors import DatasetError
from data_scripts.preparation import class_names, prepare

CLASSES = ["ground", "tree", "house"]
PLACES = {"train_images": "photos/train", "train_labels": "maps/train"}


def build(tmp_path, **custom):
    custom = {"classes": CLASSES, **PLACES, **custom}
    return prepare("folder", root=tmp_path, cache_dir=tmp_path / "cache", custom=custom)


def write(tmp_path, make, labels, ending=".png"):
    members = {}
    for number, data in enumerate(labels):
        members[f"photos/train/a/{number}.jpg"] = make.image(format="JPEG", seed=number)
        members[f"maps/train/a/{number}{ending}"] = data
    make.folder(tmp_path, members)
    return members


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, format="PNG")
    return buffer.getvalue()


BANDS = np.repeat(np.array([0, 1, 2, 255]), 3)[:, None].repeat(16, 1)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_folder_a_zip_and_a_tar_give_the_same(tmp_path, make, rows, kind):
    members = write(tmp_path / "plain", make, [make.labels([0, 1, 2, 255]), make.labels([2, 1])])
    inside = {"folder": "plain", "zip": "mine.zip", "tar": "mine.tar"}[kind]
    make.zip(tmp_path / "mine.zip", {**members, "__MACOSX/photos/train/a/._0.jpg": b"x"})
    make.tar(tmp_path / "mine.tar", members)
    prepared = build(tmp_path, **{key: f"{inside}/{place}" for key, place in PLACES.items()})
    train = rows(prepared, "train")
    assert [name for name, _, _ in train] == ["0.jpg", "1.jpg"]
    assert train[0][1] == members["photos/train/a/0.jpg"] and np.array_equal(train[0][2], BANDS)
    assert prepared.classes == tuple(CLASSES) == class_names("folder", {"classes": CLASSES})
    assert len(set(prepared.colors)) == 3 and list(prepared.splits) == ["train"]


def test_suffixes_say_what_belongs_together(tmp_path, make, rows):
    photo, labels = make.image(), make.labels([0, 1])
    make.folder(
        tmp_path, {"d/x_photo.png": photo, "d/x_map.png": labels, "d/y_photo.png": photo, "d/y_map.png": labels}
    )
    places = {"train_images": "d", "train_labels": "d", "image_suffix": "_photo.png", "label_suffix": "_map.png"}
    assert len(rows(build(tmp_path, **places, allow_absent=["house"]), "train")) == 2


def test_a_changed_folder_is_built_again(tmp_path, make, rows):
    write(tmp_path, make, [make.labels([0, 1, 2])])
    first = build(tmp_path)
    write(tmp_path, make, [make.labels([0, 2, 1])])
    second = build(tmp_path)
    assert first.folder != second.folder and first.fingerprint["digest"] != second.fingerprint["digest"]
    assert first.folder != build(tmp_path, ignore_id=254, label_mapping={0: 1, 1: 0, 2: 2}).folder


def test_a_copied_folder_has_the_same_fingerprint(tmp_path, make):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        write(tmp_path / place, make, [make.labels([0, 1, 2])])
        os.utime(tmp_path / place / "photos/train/a/0.jpg", (1, len(place)))
    here, there = (build(tmp_path / place).fingerprint for place in ("here", "there"))
    assert here == there


def test_palette_images_are_read_by_index(tmp_path, make, rows):
    write(tmp_path, make, [make.labels([0, 1, 2, 255], palette=True)])
    assert np.array_equal(rows(build(tmp_path), "train")[0][2], BANDS)


def test_sixteen_bits_are_read_in_full(tmp_path, make, rows):
    raw = np.select([BANDS == 0, BANDS == 1, BANDS == 2], [7, 1000, 33000], 65535).astype(np.uint16)
    write(tmp_path, make, [png(raw)])
    prepared = build(tmp_path, ignore_id=65535, label_mapping={7: 0, 1000: 1, 33000: 2})
    assert np.array_equal(rows(prepared, "train")[0][2], BANDS)


def test_colours_are_mapped_or_refused_with_the_remedy(tmp_path, make, rows):
    colors = np.array([[0, 0, 0], [0, 128, 0], [200, 10, 5], [255, 255, 255]], dtype=np.uint8)
    write(tmp_path, make, [png(colors[np.minimum(BANDS, 3)])])
    with pytest.raises(DatasetError, match=r"a/0\.png .* RGB colours.*data\.custom\.label_mapping"):
        build(tmp_path)
    mapping = {"0,0,0": 0, "0,128,0": 1, "200,10,5": 2, "255,255,255": 255}
    assert np.array_equal(rows(build(tmp_path, label_mapping=mapping), "train")[0][2], BANDS)
    del mapping["200,10,5"]
    with pytest.raises(DatasetError, match=r"a/0\.png .* holds the label colour 200,10,5"):
        build(tmp_path, label_mapping=mapping)


def test_a_value_beyond_the_classes_is_named(tmp_path, make):
    write(tmp_path, make, [make.labels([0, 3])])
    with pytest.raises(DatasetError, match=r"a/0\.png .* label value 3"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"clases": CLASSES}, "no key 'clases': the nearest is 'classes'"),
        ({"classes": []}, "classes must hold 2 to 254 different names"),
        ({"ignore_id": 1}, "ignore_id 1 is the train id of 'tree'"),
        ({"label_mapping": {0: 3}}, "sends 0 to 3"),
        ({"label_mapping": {"0,0": 0}}, "the key '0,0'"),
        ({"label_mapping": {"0,0,0": 0, 1: 1}}, "mixes numbers and colours"),
        ({"colors": [[0, 0, 0]]}, "1 colours for 3 classes"),
        ({"colors": [[0, 0, 300]] * 3}, "in 0..255"),
        ({"train_labels": None}, "only one folder of train"),
        ({"train_images": None, "train_labels": None}, "names no images"),
        ({"train_images": "nowhere"}, "nowhere is not in"),
    ],
)
def test_wrong_keys_are_one_sentence(tmp_path, make, keys, sentence):
    write(tmp_path, make, [make.labels([0, 1])])
    with pytest.raises(DatasetError) as caught:
        build(tmp_path, **keys)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def hub_rows(make):
    return {
        "photo": [{"bytes": make.image(format="JPEG", seed=seed), "path": None} for seed in range(3)],
        "mask": [{"bytes": make.labels([0, seed]), "path": None} for seed in range(3)],
        "caption": ["x"] * 3,
    }


@pytest.mark.parametrize("kind", ["saved", "parquet"])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_hub_dataset_from_a_folder(tmp_path, make, rows, kind, num_proc, monkeypatch):
    features = datasets.Features(
        {"photo": datasets.Image(), "mask": datasets.Image(), "caption": datasets.Value("string")}
    )
    table = datasets.Dataset.from_dict(hub_rows(make), features=features)
    if kind == "saved":
        datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "mine")
    else:
        (tmp_path / "mine").mkdir()
        table.to_parquet(tmp_path / "mine" / "train-00000-of-00001.parquet")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    custom = {"classes": CLASSES, "path": "mine", "val_split": None, "image_column": "photo", "label_column": "mask"}
    prepared = prepare("hub", root=tmp_path, cache_dir=tmp_path / "cache", custom=custom, num_proc=num_proc)
    train = rows(prepared, "train")
    assert [stored for _, stored, _ in train] == [cell["bytes"] for cell in hub_rows(make)["photo"]]
    assert [np.unique(labels).tolist() for _, _, labels in train] == [[0], [0, 1], [0, 2]]
    with pytest.raises(DatasetError, match="x cannot be read"):  # a text may be a path
        prepare("hub", root=tmp_path, cache_dir=tmp_path / "cache", custom={**custom, "label_column": "caption"})
    with pytest.raises(DatasetError, match="has no split 'dev' but 'train'"):
        prepare("hub", root=tmp_path, cache_dir=tmp_path / "cache", custom={**custom, "val_split": "dev"})


def test_a_hub_dataset_that_cannot_be_had(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    with pytest.raises(
        DatasetError, match=r"^The dataset a/b is neither .* \(no network\): correct data\.custom\.path"
    ):
        prepare("hub", root=tmp_path, cache_dir=tmp_path / "cache", custom={"classes": CLASSES, "path": "a/b"})


def test_of_several_colours_of_a_class_the_first_draws_it():
    mapping = {"1,2,3": 0, "4,5,6": 0, "7,8,9": 1}
    assert parse_custom({"classes": ["a", "b"], "label_mapping": mapping}).palette() == ((1, 2, 3), (7, 8, 9))
