import csv
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.commands.predict import main
from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.prediction.inputs import find_inputs
from benchmark.prediction.video import Frame, VideoWriter, read_frames
from benchmark.reporting.pictures import blend

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
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(photos / "deep" / "16bit.png")
    Image.effect_noise((33, 70), 80).convert("CMYK").save(photos / "deep" / "cmyk.jpg")
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["--model", str(model), str(photos), "--output", str(output), "--batch_size", "3", "--device", "cpu"])
    expected = {"a.jpg": (40, 60), "a.png": (32, 32), "deep/b": (90, 31), "pixel": (1, 1)}
    expected["deep/cmyk"] = (70, 33)
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
    assert "5 image(s)" in printed.out
    assert "16bit.png was left out: An image of mode I;16 has more than 8 bits a channel" in printed.err
    assert "text.jpg was left out: cannot identify image file" in printed.err
    assert "line.png was left out: An image of 4000x2 pixels is too long and narrow" in printed.err


def test_what_prepare_takes_is_taken_and_what_it_skips_is_skipped(model, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / ".hidden").mkdir(parents=True)
    image = Image.effect_noise((33, 70), 80).convert("RGB")
    for name in ("a.jfif", "b.jp2", ".hidden/d.png", "._a.png"):
        image.save(folder / name, format="JPEG" if name.endswith("jfif") else None)
    image.save(folder / "e.gif", save_all=True, append_images=[Image.effect_noise((33, 70), 80)])
    assert set(find_inputs([str(folder)], tmp_path / "out")) == {"a", "b", "e"}
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["--model", str(model), str(folder), "--output", str(tmp_path / "out"), "--device", "cpu"])
    printed = capsys.readouterr()
    assert "2 image(s)" in printed.out and "e.gif was left out: It holds 2 pictures: save the one" in printed.err


@pytest.mark.parametrize("place", [".", "predictions"])
def test_what_a_former_run_wrote_is_no_input(model, photos, place):
    (photos / "text.jpg").unlink()
    arguments = ["--model", str(model), str(photos), "--output", str(photos / place), "--device", "cpu"]
    main(arguments)
    shares = (photos / place / "shares.csv").read_text()
    assert shares.count("\n") == 5
    main(arguments)
    assert (photos / place / "shares.csv").read_text() == shares
    labels = photos / place / "labels"
    assert set(find_inputs([f"{photos}/**/*.png"], photos / place)) == {"a", "deep/b", "pixel"}
    assert len(find_inputs([str(labels / "a.png.png")], photos / place)) == 1  # what is named is meant


@pytest.mark.parametrize("images", ["photos", "photos/labels"])
def test_label_maps_of_ones_own_are_not_replaced(model, photos, images):
    (photos / "labels").mkdir()
    Image.new("L", (32, 32), 1).save(photos / "labels" / "a.png")
    before = (photos / "labels" / "a.png").read_bytes()
    with pytest.raises(UserError, match=r"labels holds what `predict` did not write: name another folder"):
        main(["--model", str(model), str(photos.parent / images), "--output", str(photos), "--device", "cpu"])
    assert (photos / "labels" / "a.png").read_bytes() == before


def test_files_and_patterns_name_images_once_and_apart(photos):
    output = photos / "predictions"
    found = find_inputs([str(photos / "*.png"), str(photos / "a.jpg"), str(photos / "a.png")], output)
    assert {name: file.name for name, file in found.items()} == {
        "a.png": "a.png",
        "a.jpg": "a.jpg",
        "pixel": "pixel.png",
    }
    (photos / "a.jpg.png").write_bytes((photos / "a.png").read_bytes())
    assert set(find_inputs([str(photos / "a.*")], output)) == {"a.png", "a.jpg", "a.jpg.png"}
    found = find_inputs([str(photos / "**" / "b.png")], output)
    assert {name: file.name for name, file in found.items()} == {"b": "b.png"}
    (photos / "a.jpg").unlink()
    for file in photos.glob("*.*"):
        file.unlink()
    assert set(find_inputs([str(photos)], output)) == {
        "deep/b"
    }  # a folder's own tree, though all is in one branch of it


def test_a_videos_frames_are_labelled_as_images_and_keep_their_times(model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    pixels = [np.asarray(Image.fromarray(p).resize((61, 40))) for p in rng.integers(0, 256, (5, 6, 6, 3), np.uint8)]
    writer = VideoWriter(tmp_path / "clip.mp4")
    for picture, time in zip(pixels, (0, 1, 2, 5, 9), strict=True):  # at a rate that varies
        writer.write(Frame(picture, 100 * time, Fraction(1, 1000)))
    writer.close()
    frames = list(read_frames(tmp_path / "clip.mp4"))
    assert [float(frame.pts * frame.time_base) for frame in frames] == [0, 0.1, 0.2, 0.5, 0.9]
    assert frames[0].pixels.shape == (40, 60, 3)
    assert np.abs(frames[3].pixels - pixels[3][:, :60].astype(float)).mean() < 20
    for number, frame in enumerate(frames):
        Image.fromarray(frame.pixels).save(tmp_path / f"{number}.png")

    main(["--model", str(model), str(tmp_path / "clip.mp4"), "--output", str(tmp_path / "video"), "--batch_size", "3"])
    main(["--model", str(model), str(tmp_path / "[0-9].png"), "--output", str(tmp_path / "images")])
    video, images = ((tmp_path / name / "shares.csv").read_text() for name in ("video", "images"))
    assert video == images.replace("\n", "\nclip:").removesuffix("clip:") and video.count("\n") == 6
    laid = list(read_frames(tmp_path / "video" / "overlays" / "clip.mp4"))
    assert [frame.pts * frame.time_base for frame in laid] == [frame.pts * frame.time_base for frame in frames]
    with Image.open(tmp_path / "images" / "labels" / "3.png") as labels:
        expected = np.asarray(blend(Image.fromarray(frames[3].pixels), np.asarray(labels), [(9, 0, 0)] * 3))
    assert np.abs(laid[3].pixels - expected.astype(float)).mean() < 20
    assert (tmp_path / "video" / "legend.png").exists()

    (tmp_path / "torn.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:900])
    with pytest.raises(SystemExit, match=r"^1$"):
        both = [str(tmp_path / "torn.mp4"), str(tmp_path / "0.png")]
        main(["--model", str(model), *both, "--output", str(tmp_path / "torn")])
    assert "torn.mp4 was left out: " in capsys.readouterr().err


def test_a_very_large_image_is_read_and_a_larger_one_reported(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # PIL warns above it and refuses above twice as many
    output = tmp_path / "out"
    main(["--model", str(model), str(photos / "a.jpg"), str(photos / "deep" / "b.png"), "--output", str(output)])
    assert (output / "labels" / "a.png").exists() and (output / "labels" / "deep" / "b.png").exists()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1300)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["--model", str(model), str(photos / "a.png"), str(photos / "deep" / "b.png"), "--output", str(output)])
    assert "b.png was left out: Image size (2790 pixels) exceeds limit" in capsys.readouterr().err


def test_what_cannot_be_predicted_ends_in_one_sentence(model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    good, out = str(photos / "a.jpg"), str(tmp_path / "out")
    for arguments, sentence in (
        (["--model", str(model), str(tmp_path / "empty"), "--output", out], "holds no images"),
        (["--model", str(model), str(tmp_path / "no.jpg"), "--output", out], "There is no image"),
        (["--model", str(model), str(photos / "text.jpg"), "--output", out], r"None of 1 file\(s\) could be read"),
        (["--model", str(model), good, "--output", str(tmp_path / "file")], "cannot be written"),
        (["--model", str(model), good, "--output", out, "--batch_size", "0"], "must be a whole number above 0, not 0"),
        (["--model", str(model), good, "--output", out, "--device", "abacus"], "--device abacus cannot be used"),
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
