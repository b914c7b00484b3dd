import csv

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.commands.predict import find_images, main
from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel

CLASSES = ["sky", "car", "road"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: c for c, name in enumerate(CLASSES)}}
    config = SegmentationConfig(
        encoder="test_vit", crop_size=(32, 32), colors=[(9, 0, 0), (0, 9, 0), (0, 0, 9)], **names
    )
    folder = tmp_path_factory.mktemp("model")
    SegmentationModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """a.jpg, a.png, deep/b.png, one pixel.png, and files that are no image for all their names."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {"a.jpg": (40, 60), "a.png": (32, 32), "deep/b.png": (90, 31), "pixel.png": (1, 1)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("nor this")
    return folder


def test_a_folder_of_images_becomes_label_maps_overlays_and_shares(model, photos, tmp_path, capsys):
    Image.new("RGB", (4000, 2)).save(photos / "line.png")
    output = tmp_path / "out"
    main(["--model", str(model), str(photos), "--output", str(output), "--batch_size", "3"])
    expected = {"a.jpg": (40, 60), "a.png": (32, 32), "deep/b": (90, 31), "pixel": (1, 1)}
    found = {str(f.relative_to(output / "labels").with_suffix("")) for f in output.glob("labels/**/*.png")}
    assert found == set(expected)
    with (output / "shares.csv").open() as stream:
        shares = {
            row.pop("image"): {name: float(share) for name, share in row.items()} for row in csv.DictReader(stream)
        }
    assert shares.keys() == set(expected)
    for name, size in expected.items():
        label_map = Image.open(output / "labels" / f"{name}.png")
        labels = np.asarray(label_map)
        assert label_map.mode == "P" and labels.shape == size and labels.max() < 3
        assert label_map.getpalette()[:9] == [9, 0, 0, 0, 9, 0, 0, 0, 9]
        for c, share in enumerate(shares[name].values()):
            assert share == pytest.approx(100 * (labels == c).mean(), abs=1e-3)
        assert (output / "overlays" / f"{name}.jpg").exists()
    printed = capsys.readouterr()
    assert "4 image(s)" in printed.out
    assert "text.jpg was left out: cannot identify image file" in printed.err
    assert "line.png was left out: An image of 4000x2 pixels is too long and narrow" in printed.err


def test_files_and_patterns_name_images_once_and_apart(photos):
    found = find_images([str(photos / "*.png"), str(photos / "a.jpg"), str(photos / "a.png")])
    assert {name: file.name for name, file in found.items()} == {
        "a.png": "a.png",
        "a.jpg": "a.jpg",
        "pixel": "pixel.png",
    }
    (photos / "a.jpg.png").write_bytes((photos / "a.png").read_bytes())
    assert set(find_images([str(photos / "a.*")])) == {"a.png", "a.jpg", "a.jpg.png"}
    found = find_images([str(photos / "**" / "b.png")])
    assert {name: file.name for name, file in found.items()} == {"b": "b.png"}


def test_a_very_large_image_is_read_and_a_larger_one_reported(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # PIL warns above it and refuses above twice as many
    output = tmp_path / "out"
    main(["--model", str(model), str(photos / "a.jpg"), str(photos / "deep" / "b.png"), "--output", str(output)])
    assert (output / "labels" / "a.png").exists() and (output / "labels" / "deep" / "b.png").exists()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1300)
    main(["--model", str(model), str(photos / "a.png"), str(photos / "deep" / "b.png"), "--output", str(output)])
    assert "b.png was left out: Image size (2790 pixels) exceeds limit" in capsys.readouterr().err


def test_what_cannot_be_predicted_ends_in_one_sentence(model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    good, out = str(photos / "a.jpg"), str(tmp_path / "out")
    for arguments, sentence in (
        (["--model", str(model), str(tmp_path / "empty"), "--output", out], "holds no images"),
        (["--model", str(model), str(tmp_path / "no.jpg"), "--output", out], "There is no image"),
        (["--model", str(model), str(photos / "text.jpg"), "--output", out], r"None of 1 image\(s\) could be read"),
        (["--model", str(model), good, "--output", str(tmp_path / "file")], "cannot be written"),
        (["--model", str(model), good, "--output", out, "--batch_size", "0"], "must be above 0"),
        (["--model", str(tmp_path / "empty"), good, "--output", out], "holds no model"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            main(arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_image_of_108_million_pixels(tmp_path, model, monkeypatch):
    Image.effect_noise((12000, 9000), 80).save(tmp_path / "huge.jpg")
    main(["--model", str(model), str(tmp_path / "huge.jpg"), "--output", str(tmp_path / "out")])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Image.open(tmp_path / "out" / "labels" / "huge.png").size == (12000, 9000)
