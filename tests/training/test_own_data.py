"""Training on one's own images: what is said and checked before it starts, and scores by hand."""

import io
import json
import multiprocessing
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from interruption import Interruption, run
from launching import parse
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from benchmark.__main__ import main
from benchmark.data.loaders import training_loader
from benchmark.data.step_plan import StepPlan
from benchmark.errors import UserError
from benchmark.reporting.run_folder import read_results
from benchmark.training import datasets as training_datasets
from benchmark.training.datasets import prepare_dataset
from benchmark.training.loop import train
from data_scripts import class_names
from data_scripts.archive import MissingArchive
from data_scripts.errors import DatasetError

CLASSES = ["ground", "thing", "never"]


def scene(number: int, size: tuple[int, int], with_object: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    labels = np.zeros(size, np.uint8)
    if with_object:
        labels[size[0] // 4 : size[0] // 2, size[1] // 4 :] = 1
    labels[: size[0] // 8] = 255
    image = np.where(labels == 1, 200, 60)[..., None] + rng.integers(-30, 30, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def own(tiny, tmp_path):
    """Flags of a run on a folder of images of odd sizes, half of them without the object."""
    for split, numbers in (("train", range(6)), ("val", range(6, 14))):
        for place in ("images", "labels"):
            (tmp_path / split / place).mkdir(parents=True)
        for number in numbers:
            image, labels = scene(number, (40 + 3 * number, 90 - 2 * number), number % 2 == 0)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{number}.png")
            Image.fromarray(labels).save(tmp_path / split / "labels" / f"{number}.png")
    custom = {f"{split}_{place}": f"{split}/{place}" for split in ("train", "val") for place in ("images", "labels")}
    custom |= {"classes": CLASSES, "allow_absent": ["never"]}
    data = {"train": "folder", "val": ["folder"], "root": str(tmp_path), "custom": custom}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": data}))
    return [*tiny[:2], str(tmp_path / "own.yaml"), *tiny[2:]]


def test_the_score_is_the_one_by_hand_over_every_validation_image(own, tmp_path):
    """With NumPy, over the PNGs that `predict` writes: images without the object, ignored pixels, an absent class."""
    results = train(parse(own))
    model = str(tmp_path / "run/model")
    main(["predict", "--model", model, str(tmp_path / "val/images"), "--output", str(tmp_path / "out")])
    confusion = np.zeros((3, 3), np.int64)
    for number in range(6, 14):
        label = np.asarray(Image.open(tmp_path / f"val/labels/{number}.png")).astype(int)
        prediction = np.asarray(Image.open(tmp_path / f"out/labels/{number}.png")).astype(int)
        assert label.shape == prediction.shape
        for a in range(3):
            for b in range(3):
                confusion[a, b] += ((label == a) & (prediction == b)).sum()
    unions = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = [h / u if u else None for h, u in zip(confusion.diagonal().tolist(), unions.tolist(), strict=True)]
    present = [value for value in iou if value is not None]
    assert list(results["iou"].values()) == iou
    assert results["mean_iou"] == sum(present) / len(present)
    assert results["pixel_accuracy"] == confusion.diagonal().sum() / confusion.sum()
    assert sorted(set(np.load(tmp_path / "run/confusion.npz")["folder"][:, 0])) == list(range(8))


def test_the_first_lines_say_what_the_data_hold(own, capsys):
    train(parse([*own, "--train.steps", "1"]))
    report, _, rest = capsys.readouterr().out.partition("machine")
    assert "train: 6 of 6 images" in report and "validation: 8 of 8 images" in report
    assert "of the pixels are ignored" in report and "never" in report and "mean IoU" in rest


def test_a_finished_run_whose_data_changed_does_not_print_its_score(own, tmp_path, capsys):
    train(parse(own))
    file = tmp_path / "val/labels/6.png"
    Image.fromarray(np.asarray(Image.open(file)) * 0 + 1).save(file)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"was finished on other files of folder .*its scores do not hold"):
        train(parse(own))
    assert "mean IoU" not in capsys.readouterr().out
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"6\.png .* is no readable"):
        train(parse(own))
    file.write_bytes(whole)
    (tmp_path / "run/results.json").unlink()
    file = tmp_path / "train/labels/0.png"
    Image.fromarray(np.asarray(Image.open(file)) * 0 + 1).save(file)
    with pytest.raises(UserError, match="was trained on other files of folder"):
        train(parse(own))


def test_validation_data_that_changed_are_refused_when_a_run_resumes(own, tmp_path):
    """The best score so far, and the curve, would be those of other labels."""
    classes = json.dumps(list(class_names("shapes")))
    arguments = [*own, "--data.train", "shapes", "--data.val", "[folder, shapes]", "--train.steps", "4"]
    arguments += ["--data.custom.classes", classes, "--data.custom.allow_absent", classes]
    arguments += ["--train.eval_every", "2", "--train.checkpoint_every", "2"]
    train(parse(arguments))
    for name in ("results.json", "model_best/chosen.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    file = tmp_path / "val/labels/6.png"
    Image.fromarray(np.asarray(Image.open(file)) * 0 + 1).save(file)
    with pytest.raises(UserError, match="was scored on other files of folder"):
        train(parse(arguments))


def test_an_image_that_evaluation_would_refuse_is_found_before_training(own, tmp_path):
    Image.fromarray(np.zeros((6, 900, 3), np.uint8)).save(tmp_path / "val/images/long.png")
    Image.fromarray(np.zeros((6, 900), np.uint8)).save(tmp_path / "val/labels/long.png")
    for start in (lambda: train(parse(own)), lambda: main(["prepare", *own])):
        with pytest.raises(UserError, match=r"long\.png, an image of 900x6 pixels .* is too long .*: cut it"):
            start()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_there_before_the_evaluation_of_its_step(own, tmp_path):
    log = tmp_path / "log"
    assert run(own, log, interruption=Interruption("evaluate", 1)) == [-9], log.read_text()
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000003"]


def test_no_flipped_bit_of_the_results_is_a_traceback_or_another_number(own, tmp_path):
    """In each byte one bit, and the one by which letters differ in case: 1e-5 and 1E-5 mean the same results."""
    results = train(parse([*own, "--train.steps", "1"]))
    file = tmp_path / "run/results.json"
    data, found = file.read_bytes(), 0
    flips = sorted({(at, bit) for at in range(len(data)) for bit in (at % 8, 5)})
    for at, bit in flips:
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        try:
            assert read_results(file) == results
        except UserError as error:
            assert re.search(r"results\.json is damaged .*: remove it", str(error))
            found += 1
    assert found > 0.9 * len(flips)
    with pytest.raises(UserError, match=r"results\.json is damaged .*: remove it"):
        file.write_bytes(data.replace(b"sha256", b"sha257"))
        train(parse([*own, "--train.steps", "1"]))
    file.write_bytes(data)
    assert train(parse([*own, "--train.steps", "1"])) == results == json.loads(data)


def read_all(flags, say) -> None:
    """In a process of its own, which a damaged file may crash: prepare the data and read every row."""
    try:
        recipe = parse(flags)
        split = prepare_dataset(recipe, "folder").splits["train"]
        plan = StepPlan(6, 1, 6)
        options = {"rank": 0, "start_step": 0, "steps": 1, "crop_size": (64, 64), "seed": 0, "num_workers": 0}
        say.put("".join(str(batch["positions"].tolist()) for batch in training_loader(split, plan=plan, **options)))
    except (UserError, DatasetError) as error:
        say.put(str(error))


@pytest.mark.parametrize("flips", [24, pytest.param(240, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_the_prepared_data_is_a_sentence(own, tmp_path, flips):
    """Wherever it is in the Arrow file: in a row, an offset, or the file's own structure."""
    flags = [*own, "--data.cache_dir", str(tmp_path / "cache")]
    assert prepare_dataset(parse(flags), "folder")
    context = multiprocessing.get_context("fork")
    file = next((tmp_path / "cache").rglob("*-train*.arrow"))
    data, found = file.read_bytes(), []
    for at in np.linspace(0, len(data) - 1, flips).astype(int):
        file.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        say = context.SimpleQueue()
        reader = context.Process(target=read_all, args=(flags, say))
        reader.start()
        reader.join(60)
        assert reader.exitcode == 0, at
        found.append(say.get())
    damaged = [sentence for sentence in found if not sentence.startswith("[")]
    assert len(damaged) > flips / 2 and all("remove" in sentence for sentence in damaged), damaged


def test_pixels_of_more_than_8_bits_are_refused_by_processor_and_predict(own, tmp_path, capsys):
    train(parse([*own, "--train.steps", "1"]))
    folder = str(tmp_path / "run/model")
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    deep = Image.fromarray(np.linspace(0, 65535, 3000).reshape(50, 60).astype(np.uint16))
    for image in (deep, np.random.default_rng(0).random((50, 60, 3), np.float32), np.zeros((9, 9), np.uint16)):
        with pytest.raises(ValueError, match=r"convert it to"):
            processor(image)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        assert model(**processor(np.zeros((50, 60, 3), np.uint8))).logits.shape[1] == 3
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/deep.png").write_bytes(buffer.getvalue())
    Image.new("RGB", (60, 50)).save(tmp_path / "photos/plain.png")
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["predict", "--model", folder, str(tmp_path / "photos"), "--output", str(tmp_path / "out")])
    assert "deep.png was left out: An image of mode I;16 has more than 8 bits" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out/labels") == ["plain.png"]


def test_what_the_process_that_builds_raises_every_process_raises(own, monkeypatch):
    """And none of them builds again, or waits for one that has ended."""
    built = []
    monkeypatch.setattr(training_datasets, "prepare_dataset", lambda _, name: built.append(name))
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [MissingArchive("It is gone."), *mine])
    with pytest.raises(MissingArchive, match="It is gone"):
        training_datasets.prepare_datasets(parse(own), SimpleNamespace(num_processes=2, is_local_main_process=False))
    assert not built
