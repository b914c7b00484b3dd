"""From folders as people have them to a recipe that trains at once."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from launching import ROOT, parse
from PIL import ExifTags, Image

from benchmark.__main__ import main
from benchmark.errors import UserError, as_sentence
from benchmark.training.loop import train
from data_scripts.errors import DatasetError
from data_scripts.own import draw_split

SIZE = (70, 90)


def ids(number: int, *values: int) -> np.ndarray:
    """A label map of stripes of `values`, shifted by `number`."""
    return np.resize(np.roll(np.repeat(values, SIZE[1] // len(values) + 1), number)[: SIZE[1]], SIZE).astype(np.uint8)


def photo(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8))


def save(path: Path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def palette_map(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return image


COLORS = np.array([[0, 0, 0], [200, 30, 30], [30, 30, 200], [255, 255, 255]], np.uint8)


def plain_ids(root, number):
    save(root / "images" / f"{number}.jpg", photo(number))
    save(root / "labels" / f"{number}.png", ids(number, 0, 1, 2, 255))


def shifted_ids(root, number):
    save(root / "images" / f"{number}.png", photo(number))
    save(root / "labels" / f"{number}_L.png", ids(number, 1, 2, 5))


def palette(root, number):
    save(root / "images" / f"{number}.jpg", photo(number))
    save(root / "labels" / f"{number}.png", palette_map(ids(number, 0, 1, 2)))
    (root / "classes.txt").write_text("sky\nroad\ncar\n")


def rgb_with_void(root, number):
    array = ids(number, 0, 1, 2)
    array[:1, :3] = 3  # a few white pixels
    array[array == 0] = 1 if number == 99 else 0
    save(root / "images" / f"{number}.jpg", photo(number))
    save(root / "labels" / f"{number}.png", COLORS[array])


def binary_mask(root, number):
    save(root / "images" / f"{number}.jpg", photo(number))
    save(root / "labels" / f"{number}_mask.png", ids(number, 0, 1) * 255)


def cityscapes_tree(root, number):
    name = f"aachen/aachen_{number:06}_000019"
    save(root / "images" / f"{name}_leftImg8bit.png", photo(number))
    labels = ids(number, 7, 8, 26, 3)
    save(root / "labels" / f"{name}_gtFine_labelIds.png", labels)
    save(root / "labels" / f"{name}_gtFine_color.png", np.stack([labels] * 3, -1))
    (root / "labels" / f"{name}_gtFine_polygons.json").write_text("{}")


def names_with_spaces(root, number):
    save(root / "images" / f"Straße 街 {number}.jpg", photo(number))
    save(root / "labels" / f"Straße 街 {number}.png", ids(number, 0, 1, 2))


KINDS = {
    "plain_ids": (plain_ids, "numbers", ["class 0", "class 1", "class 2"]),
    "shifted_ids": (shifted_ids, "numbers", ["class 1", "class 2", "class 5"]),
    "palette": (palette, "palette indices", ["sky", "road", "car"]),
    "rgb_with_void": (rgb_with_void, "RGB colours", ["color 0,0,0", "color 30,30,200", "color 200,30,30"]),
    "binary_mask": (binary_mask, "masks of 0 and 255", ["background", "object"]),
    "cityscapes_tree": (cityscapes_tree, "numbers", ["road", "sidewalk", "car"]),
    "names with spaces": (names_with_spaces, "numbers", ["class 0", "class 1", "class 2"]),
}


def prepare(tmp_path, root, *more) -> dict:
    """The recipe that the command writes."""
    output = tmp_path / "my.yaml"
    main(
        ["prepare", "--images", str(root / "images"), "--labels", str(root / "labels"), "--output", str(output), *more]
    )
    return yaml.safe_load(output.read_text())


def on_own(tiny, tmp_path) -> list[str]:
    """The written recipe, with the tiny model and steps of the tests."""
    return ["--recipe", str(tmp_path / "my.yaml"), *tiny[1:], "--data.train", "folder", "--data.val", "[folder]"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_as_people_have_it_trains_at_once(kind, tiny, tmp_path, capsys):
    write, label_kind, classes = KINDS[kind]
    root = tmp_path / kind
    for number in range(6):
        write(root, number)
    recipe = prepare(tmp_path, root)
    printed = capsys.readouterr().out
    assert "train: 6 pairs" in printed and f"labels: {label_kind}" in printed
    custom = recipe["data"]["custom"]
    assert custom["classes"] == classes and custom["val_share"] == 0.2 and custom["name"] == "my"
    assert Image.open(tmp_path / "my.jpg").width > 200
    assert re.search(r"accelerate launch --quiet train\.py --recipe \S*my\.yaml", printed)
    results = train(parse([*on_own(tiny, tmp_path), "--train.steps", "2"]))
    assert list(results["iou"]) == classes and results["dataset"] == "my"


def test_what_was_assumed_is_a_comment(tmp_path):
    for kind, words in (("binary_mask", "masks of 0 and 255 are background"), ("plain_ids", "255 is no class and is")):
        for number in range(3):
            KINDS[kind][0](tmp_path / kind, number)
        prepare(tmp_path, tmp_path / kind)
        text = (tmp_path / "my.yaml").read_text()
        assert re.search(rf"^# Assumed: .*{words}", text, re.M)
        (tmp_path / "my.yaml").unlink()


def test_validation_folders_of_ones_own(tiny, tmp_path):
    for number in range(4):
        plain_ids(tmp_path / "a", number)
        plain_ids(tmp_path / "b", number + 4)
    val = ["--val_images", str(tmp_path / "b/images"), "--val_labels", str(tmp_path / "b/labels")]
    recipe = prepare(tmp_path, tmp_path / "a", *val)
    assert "val_share" not in recipe["data"]["custom"]
    results = train(parse([*on_own(tiny, tmp_path), "--train.steps", "1"]))
    assert results["datasets"]["folder"]["fingerprint"]["counts"] == {"train": 4, "validation": 4}


def test_keys_on_the_command_line_are_those_of_the_recipe(tiny, tmp_path):
    for number in range(5):
        save(tmp_path / "images" / f"{number}.png", photo(number))
        save(tmp_path / "labels" / f"{number}.png", ids(number, 0, 128, 255))
    with pytest.raises(DatasetError, match=r"add --data\.custom\.ignore_id null if it is one"):
        prepare(tmp_path, tmp_path)
    for key in ("data.root", "data.custom.train_images", "data.custom.label_column", "train.steps"):
        with pytest.raises(UserError, match=f"does not take --{key}: leave it out"):
            prepare(tmp_path, tmp_path, f"--{key}", "1")
    with pytest.raises(UserError, match=r"no recipe key 'data\.crops'"):
        prepare(tmp_path, tmp_path, "--data.crops", "32")
    assert not (tmp_path / "my.yaml").exists()
    recipe = prepare(tmp_path, tmp_path, "--data.custom.ignore_id", "null", "--data.crop_size=32")
    assert recipe["data"]["crop_size"] == 32 and recipe["data"]["custom"]["ignore_id"] is None
    results = train(parse([*on_own(tiny, tmp_path), "--train.steps", "1"]))
    assert list(results["iou"]) == ["class 0", "class 128", "class 255"]


def one_folder(root, number):
    save(root / f"s_{number}.jpg", photo(number))
    save(root / f"s_{number}.png", ids(number, 0, 1, 2))


@pytest.mark.parametrize(
    ("write", "packed", "images", "labels"),
    [
        (one_folder, False, "data", "data"),
        (one_folder, True, "data.zip", "data.zip"),
        (plain_ids, True, "data.zip/images", "data.zip/labels"),
    ],
)
def test_pairs_in_one_folder_and_folders_in_one_zip_train(write, packed, images, labels, tiny, tmp_path):
    for number in range(6):
        write(tmp_path / "data", number)
    if packed:
        shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data")
        shutil.rmtree(tmp_path / "data")
    places = ["--images", str(tmp_path / images), "--labels", str(tmp_path / labels)]
    main(["prepare", *places, "--output", str(tmp_path / "my.yaml")])
    results = train(parse([*on_own(tiny, tmp_path), "--train.steps", "1"]))
    assert list(results["iou"]) == ["class 0", "class 1", "class 2"]
    counts = results["datasets"]["folder"]["fingerprint"]["counts"]
    assert counts == {"train": 5, "validation": 1}


@pytest.mark.parametrize(
    ("count", "flags", "words"),
    [
        (4, ["--val_share", "20"], "val_share must be between 0 and 1, not 20"),
        (1, [], "val_share cannot split 1 image"),
        (4, ["--data.custom.classes", "[a, a, a]"], "must hold 2 to 254 different names"),
        (4, ["--data.custom.label_mapping", "{0: 0, 1: 9}"], "sends 1 to 9: send it to 0..2 or 255"),
        (4, ["--data.custom.label_mapping", "{0: 0, 2: 1}"], r"value.s. 1 have no class: add each to data\.custom"),
        (4, ["--data.custom.train_list", "train.txt"], "The list /train.txt is not there"),
    ],
)
def test_a_recipe_that_training_would_refuse_is_not_written(count, flags, words, tmp_path):
    for number in range(count):
        plain_ids(tmp_path, number)
    with pytest.raises((DatasetError, UserError), match=words) as error:
        prepare(tmp_path, tmp_path, *flags)
    assert "\n" not in str(error.value) and not [*tmp_path.glob("my.*")]


@pytest.mark.parametrize("share", [[], ["--val_images"]])
def test_an_image_in_both_splits_stops_before_a_recipe_is_written(share, tmp_path):
    for number in range(4):
        plain_ids(tmp_path, number)
    images = sorted((tmp_path / "images").iterdir())
    if share:
        for kind in ("images", "labels"):
            shutil.copytree(tmp_path / kind, tmp_path / "val" / kind)
        share += [str(tmp_path / "val/images"), "--val_labels", str(tmp_path / "val/labels")]
    else:
        for image in images[1:]:
            shutil.copy(images[0], image)
    with pytest.raises(
        DatasetError, match="training images too, byte for byte" if share else "image.s. are duplicates"
    ):
        prepare(tmp_path, tmp_path, *share)
    assert not [*tmp_path.glob("my.*")]


@pytest.mark.parametrize("labels", ["numbers", "colours", "rows"])
def test_a_class_that_only_validation_would_have_is_said(labels, tmp_path):
    """Of any draw exactly the one that validates the image with class 2 is refused, as training would refuse it."""
    maps = [ids(number, 0, 1, 2) if number == 3 else ids(number, 0, 1) for number in range(4)]
    for number, array in enumerate(maps):
        save(tmp_path / "images" / f"{number}.jpg", photo(number))
        save(tmp_path / "labels" / f"{number}.png", COLORS[array] if labels == "colours" else array)
    table = {"image": [photo(number) for number in range(4)], "label": [Image.fromarray(array) for array in maps]}
    rows = datasets.Dataset.from_dict(table, datasets.Features(image=datasets.Image(), label=datasets.Image()))
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "hub")
    places = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    places = ["--hub", str(tmp_path / "hub")] if labels == "rows" else places
    missing, name = [], "color 30,30,200" if labels == "colours" else "class 2"
    for seed in range(6):
        output = tmp_path / f"{seed}.yaml"
        command = ["prepare", *places, "--output", str(output), "--data.custom.split_seed", str(seed)]
        try:
            main(command)
        except UserError as error:
            assert str(error).startswith(f"No pixel of the training split is {name}: take") and not output.exists()
            main([*command, "--data.custom.allow_absent", f"['{name}']"])
            missing.append(seed)
        assert yaml.safe_load(output.read_text())["data"]["custom"]["split_seed"] == seed
    assert missing == [seed for seed in range(6) if draw_split(4, 0.2, seed)[1] == [3]] and missing


def test_what_is_printed_is_what_training_does_with_a_mapping(tmp_path, capsys):
    for number in range(3):
        plain_ids(tmp_path, number)
    asked = ["--data.custom.label_mapping", "{0: 1, 1: 0, 2: 255}", "--data.custom.classes", "[a, b]"]
    prepare(tmp_path, tmp_path, *asked)
    rows = [line.rsplit(maxsplit=1)[0].split() for line in capsys.readouterr().out.splitlines() if line[-1:] == "%"]
    assert rows == [["0", "b"], ["1", "a"], ["2", "ignored"], ["255", "ignored"]]


def test_validation_folders_and_a_share_exclude_each_other(tmp_path):
    for number in range(3):
        plain_ids(tmp_path, number)
        plain_ids(tmp_path / "val", number + 3)
    val = ["--val_images", str(tmp_path / "val/images"), "--val_labels", str(tmp_path / "val/labels")]
    with pytest.raises(DatasetError, match="val_share needs training pairs and no validation pairs"):
        prepare(tmp_path, tmp_path, *val, "--val_share", "0.5")


def test_two_images_of_one_name_are_problems(tmp_path):
    """Training would take only one of them, so it refuses; all are said at once."""
    for number in range(4):
        plain_ids(tmp_path, number)
    for number in (1, 2):
        save(tmp_path / "images" / f"{number}.png", photo(number))
    save(tmp_path / "labels/3.bmp", ids(3, 0, 1, 2))
    with pytest.raises(UserError) as error:
        prepare(tmp_path, tmp_path)
    lines = str(error.value).split("\n")
    assert lines[0].startswith("3 problem(s)") and len(lines) == 4 and not [*tmp_path.glob("my.*")]
    assert all("would be one sample: rename or remove one" in line for line in lines[1:])


def test_files_without_a_partner_are_left_out_where_it_is_allowed(tiny, tmp_path, capsys):
    for number in range(6):
        plain_ids(tmp_path, number)
    (tmp_path / "labels/2.png").unlink()
    save(tmp_path / "labels/more.png", ids(0, 0, 1))
    with pytest.raises(UserError, match=r"^2 problem.s.*\n2\.jpg in .* has no label.*\nmore\.png in .* has no image"):
        prepare(tmp_path, tmp_path)
    recipe = prepare(tmp_path, tmp_path, "--data.allow_partial", "true")
    assert "train: 2 file(s) without a partner left out" in capsys.readouterr().out
    assert recipe["data"]["allow_partial"] is True
    results = train(parse([*on_own(tiny, tmp_path), "--train.steps", "1"]))
    assert results["datasets"]["folder"]["fingerprint"]["counts"] == {"train": 4, "validation": 1}


def test_a_recipe_that_is_there_is_kept(tmp_path):
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(UserError, match="is there already: name another file"):
        prepare(tmp_path, tmp_path)
    assert (tmp_path / "my.yaml").read_text() == "mine"


def test_a_picture_of_ones_own_is_kept_and_a_sheet_is_drawn_again(tmp_path):
    for number in range(3):
        plain_ids(tmp_path / "a", number)
    photo(0).save(tmp_path / "my.jpg")
    with pytest.raises(UserError, match=r"my\.jpg is there already: name another file"):
        prepare(tmp_path, tmp_path / "a")
    (tmp_path / "my.jpg").unlink()
    for _ in range(2):
        prepare(tmp_path, tmp_path / "a")
        (tmp_path / "my.yaml").unlink()
    with pytest.raises(UserError, match=r"let its name end in \.yaml"):
        main(["prepare", "--images", "a", "--labels", "b", "--output", str(tmp_path / "q.jpg")])


def test_images_that_exif_turns_are_told_and_shown_first(tmp_path, capsys):
    """Upside down: no size tells that the labels were drawn on the turned image."""
    for number in range(40):
        plain_ids(tmp_path / "a", number)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    dark = Image.new("RGB", SIZE[::-1], (0, 0, 90))
    dark.save(tmp_path / "a/images/33.jpg", exif=exif)
    prepare(tmp_path, tmp_path / "a")
    assert "turned by EXIF: 1 image(s), such as 33.jpg in " in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "my.jpg")).astype(int)
    assert (abs(sheet[5:30, 5:30] - [0, 0, 90]) < 12).all()


def test_the_next_command_can_be_pasted_whatever_the_name(tmp_path, capsys):
    for number in range(3):
        plain_ids(tmp_path / "a", number)
    output = tmp_path / "my data.yaml"
    images, labels = str(tmp_path / "a/images"), str(tmp_path / "a/labels")
    main(["prepare", "--images", images, "--labels", labels, "--output", str(output)])
    for text in (capsys.readouterr().out, output.read_text()):
        line = next(line for line in text.splitlines() if "accelerate launch" in line)
        assert str(output) in shlex.split(line)


def test_three_faults_are_said_in_one_run(tmp_path):
    """Labels half the size of their image, a label without an image, and a file that is no image."""
    for number in range(3):
        plain_ids(tmp_path, number)
    save(tmp_path / "labels/0.png", ids(0, 0, 1, 2)[::2, ::2])
    save(tmp_path / "labels/extra.png", ids(0, 0, 1))
    (tmp_path / "images/1.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError) as error:
        prepare(tmp_path, tmp_path)
    lines = str(error.value).split("\n")
    assert lines[0].startswith("3 problem(s)") and len(lines) == 4
    for words in (
        "0.png in .* is 45x35 pixels but its image 90x70: make them equal",
        "extra.png in .* has no image",
        "is a web page",
    ):
        assert any(re.search(words, line) for line in lines[1:]), words
    assert not (tmp_path / "my.yaml").exists()


def test_classes_from_files_that_tools_write(tmp_path):
    texts = {
        "labelmap.txt": "# label:color_rgb:parts:actions\nground:0,0,0::\nred:200,30,30::\nblue:30,30,200::\n",
        "class_dict.csv": "name,r,g,b\nground,0,0,0\nred,200,30,30\nblue,30,30,200\n",
        "meta.json": '{"classes": [{"title": "ground", "color": "#000000"}, {"title": "red", "color": "#C81E1E"}, '
        '{"title": "blue", "color": "#1E1EC8"}]}',
    }
    for number, (name, text) in enumerate(texts.items()):
        root = tmp_path / str(number)
        for index in range(2):
            save(root / "images" / f"{index}.jpg", photo(index))
            save(root / "labels" / f"{index}.png", COLORS[ids(index, 0, 1, 2)])
        (root / name).write_text(text)
        recipe = prepare(tmp_path, root)
        assert recipe["data"]["custom"]["classes"] == ["ground", "blue", "red"]
        assert f"The names are from {name}." in (tmp_path / "my.yaml").read_text()
        (tmp_path / "my.yaml").unlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name what to prepare"),
        (["--images", "a"], "Images and labels go together"),
        (["--images", "nowhere", "--labels", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words):
    with pytest.raises(Exception) as error:
        main(["prepare", *arguments])
    sentence = as_sentence(error.value)
    assert sentence and words in sentence and "\n" not in sentence


def test_pictures_are_no_label_maps(tmp_path):
    for number in range(2):
        save(tmp_path / "images" / f"{number}.png", photo(number))
        save(tmp_path / "labels" / f"{number}.png", photo(number + 9))
    with pytest.raises(Exception, match="different colours, so they are pictures"):
        prepare(tmp_path, tmp_path)


@pytest.mark.parametrize("labels", [datasets.Image(), datasets.Array2D(SIZE, "uint8")])
def test_a_hub_dataset_becomes_a_recipe_that_trains(labels, tiny, tmp_path, capsys):
    """Columns by type and name, splits by name, class names from a ClassLabel that is not of whole images."""
    maps = [ids(number, 0, 1, 2, 255) for number in range(6)]
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "scene": datasets.ClassLabel(names=["beach", "city", "forest"]),  # of the whole image
            "seg_mask": labels,
            "photo": datasets.Image(),
            "objects": {"category": datasets.List(datasets.ClassLabel(names=["sky", "road", "car"]))},
        }
    )
    rows = {
        "id": range(6),
        "scene": [0] * 6,
        "seg_mask": [Image.fromarray(m) for m in maps] if isinstance(labels, datasets.Image) else maps,
        "photo": [photo(number) for number in range(6)],
        "objects": [{"category": [0]}] * 6,
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path / "hub/set"
    datasets.DatasetDict({"train": table.select(range(4)), "test": table.select(range(4, 6))}).save_to_disk(folder)
    main(["prepare", "--hub", str(folder), "--output", str(tmp_path / "my.yaml")])
    printed = capsys.readouterr().out
    assert "train: 4 pairs" in printed and "validation: 2 pairs" in printed and Image.open(tmp_path / "my.jpg")
    custom = yaml.safe_load((tmp_path / "my.yaml").read_text())["data"]["custom"]
    assert (custom["image_column"], custom["label_column"]) == ("photo", "seg_mask")
    assert (custom["train_split"], custom["val_split"]) == ("train", "test")
    own = ["--data.train", "hub", "--data.val", "[hub]", "--train.steps", "1"]
    results = train(parse(["--recipe", str(tmp_path / "my.yaml"), *tiny[1:], *own]))
    assert list(results["iou"]) == ["sky", "road", "car"] and results["dataset"] == "my"


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (lambda table, folder: table.save_to_disk(folder), "neither a folder in / nor can it be read"),
        (
            lambda table, folder: table.to_parquet(folder / "train.parquet"),
            "no data!",
        ),
    ],
)
def test_an_empty_hub_dataset_is_a_sentence(save, sentence, tmp_path):
    """The library fails to load one, in two ways."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    (tmp_path / "set").mkdir()
    save(datasets.Dataset.from_dict({"image": [], "label": []}, features=features), tmp_path / "set")
    with pytest.raises(DatasetError, match=sentence):
        main(["prepare", "--hub", str(tmp_path / "set"), "--output", str(tmp_path / "my.yaml")])


def test_each_command_lists_the_keys_that_it_uses(capsys):
    for command, there, absent in (
        ("prepare", "--data.custom.label_mapping", "--optim.lr"),
        ("evaluate", "--train.precision", "--train.steps"),
        ("throughput", "--train.steps", "--hub."),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert there in text and absent not in text
        keys = [number for number, line in enumerate(text.splitlines()) if line.startswith("  --") and "(def" in line]
        assert all(text.splitlines()[number + 1].startswith("      ") for number in keys)  # its meaning


def test_no_large_library_is_imported_for_a_dataset(tiny):
    """torch alone takes longer than all of the rest."""
    code = f"import sys, benchmark.__main__ as b; b.main(['prepare', *{tiny[:4]!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "shapes: " in done.stdout and done.stdout.splitlines()[-1] == "False"
