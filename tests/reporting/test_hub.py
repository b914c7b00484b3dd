"""Pushing and loading by name, against a server on the loopback, with the real huggingface_hub."""

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading

import huggingface_hub.constants as hub_constants
import pytest
import torch
import yaml
from hub_server import TOKEN
from interruption import run
from launching import parse, run_python
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from benchmark.__main__ import main
from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting import results as results_module
from benchmark.reporting.hub import Pusher, find_model_folder, write_snapshot
from benchmark.reporting.model_folder import load_model, save_model
from benchmark.training.loop import train

REPO = "me/shapes-tiny"


def write(text):
    return lambda folder: (folder / "config.json").write_text(text)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    SegmentationModel(SegmentationConfig(encoder="test_vit", crop_size=(32, 32))).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_each_push_is_one_commit_and_the_last_is_waited_for(online, tmp_path):
    pusher = Pusher(REPO, private=True, folder=tmp_path)
    pusher.push(10, write("ten"))
    assert pusher.finish(write("last"))
    assert [message for message, _ in online.repos[REPO]] == ["first", "Step 10", "The finished model"]
    assert online.files(REPO) == {"config.json": b"last"}
    assert online.private[REPO]
    assert not (tmp_path / ".push").exists()


def test_a_push_without_scores_takes_away_those_of_older_weights(online, tmp_path):
    def write_scored(folder):
        for name in ("config.json", "results.json", "panel.png", "confusion.npz", "metrics.jsonl"):
            (folder / name).write_text("of step 10")

    pusher = Pusher(REPO, private=True, folder=tmp_path)
    pusher.push(10, write_scored)
    pusher.running.result()
    pusher.push(20, write("of step 20"))
    pusher.running.result()
    assert online.files(REPO) == {"config.json": b"of step 20", "metrics.jsonl": b"of step 10"}
    assert pusher.finish(write_scored)
    assert len(online.files(REPO)) == 5


def test_a_push_does_not_wait_for_the_one_before_it_and_is_left_out(online, tmp_path):
    gate = threading.Event()
    pusher = Pusher(REPO, private=False, folder=tmp_path)
    online.refuse = lambda number: not gate.wait(30)
    for step in (1, 2, 3):
        pusher.push(step, write(str(step)))
    assert not pusher.running.done()
    gate.set()
    assert pusher.finish(write("last"))
    assert [message for message, _ in online.repos[REPO]][1:] == ["Step 1", "The finished model"]


def test_a_push_survives_two_refusals_of_three_requests(online, tmp_path):
    pusher = Pusher(REPO, private=False, folder=tmp_path)
    online.refuse = lambda number: number % 3 != 0
    pusher.push(1, write("one"))
    assert pusher.finish(write("last"))
    assert [message for message, _ in online.repos[REPO]][1:] == ["Step 1", "The finished model"]


def test_a_snapshot_that_cannot_be_written_is_left_out_and_takes_no_place(online, tmp_path, caplog):
    """safetensors' error for a full disk is no OSError."""

    def write_half(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("No space left on device")

    pusher = Pusher(REPO, private=False, folder=tmp_path)
    pusher.push(1, write_half)
    pusher.running.result()
    assert "was left out" in caplog.text and not (tmp_path / ".push").exists()
    assert pusher.finish(write("last"))


def test_a_push_that_hangs_does_not_keep_a_run_that_is_asked_to_end(hub, tiny, tmp_path):
    gate, log = threading.Event(), tmp_path / "log"

    def end_the_run_and_hang(number: int) -> bool:
        if "preupload" not in hub.requests[-1]:
            return False
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)
        return not gate.wait(120)

    hub.refuse = end_the_run_and_hang
    flags = [*tiny, "--output.hub_model_id", REPO, "--output.push_every", "1", "--train.steps", "100000"]
    constants = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings = {f"huggingface_hub.constants__{name}": value for name, value in constants.items()}
    try:
        assert run(flags, log, environment={"HF_TOKEN": TOKEN}, **settings) == [75], log.read_text()
    finally:
        gate.set()
    assert (tmp_path / "run/preempted.json").exists()


def test_a_push_that_hangs_does_not_keep_a_run_that_fails(hub, tiny, tmp_path):
    gate, log = threading.Event(), tmp_path / "log"
    hub.refuse = lambda number: "preupload" in hub.requests[-1] and not gate.wait(120)
    flags = [*tiny, "--output.hub_model_id", REPO, "--output.push_every", "1", "--train.steps", "300"]
    constants = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings = {f"huggingface_hub.constants__{name}": value for name, value in constants.items()}
    try:
        # The first step takes all weights to where the second loss is not finite, which is noticed later.
        flags += ["--optim.lr", "1e30"]
        flags += [flag for key in ("eval", "log", "checkpoint") for flag in (f"--train.{key}_every", "300")]
        assert run(flags, log, environment={"HF_TOKEN": TOKEN}, **settings) == [2], log.read_text()
    finally:
        gate.set()
    assert log.read_text().count("error: The loss of step") == 1
    assert any("preupload" in request for request in hub.requests)


def test_a_hub_that_is_down_gives_a_warning_and_ends_nothing(online, tmp_path, caplog):
    pusher = Pusher(REPO, private=False, folder=tmp_path)
    online.refuse = lambda number: True
    pusher.push(1, write("one"))
    assert not pusher.finish(write("last"))
    warned = [record.getMessage() for record in caplog.records if record.name == "benchmark.reporting.hub"]
    assert warned == [
        f"{what} could not be pushed to {REPO} (status 503); 'python -m benchmark push' pushes a finished run."
        for what in ("Step 1", "The finished model")
    ]
    assert all(
        record.levelno == logging.WARNING for record in caplog.records if record.name == "benchmark.reporting.hub"
    )
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda hub, patch: patch.delenv("HF_TOKEN"), "needs a login to the Hub"),
        (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrong"), r"may not push to me/shapes-tiny .* 401"),
        (lambda hub, patch: setattr(hub, "forbid", True), r"may not push to me/shapes-tiny .* 403"),
    ],
)
def test_missing_permission_to_push_is_an_error_before_training(online, tmp_path, monkeypatch, break_it, sentence):
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    break_it(online, monkeypatch)
    with pytest.raises(UserError, match=sentence):
        Pusher(REPO, private=False, folder=tmp_path)


def test_an_invalid_repository_name_is_an_error(online, tmp_path):
    with pytest.raises(UserError, match="must be user/name, not mine"):
        Pusher("mine", private=False, folder=tmp_path)
    with pytest.raises(UserError, match="must be user/name, not a/b/c"):
        Pusher("a/b/c", private=False, folder=tmp_path)


def test_names_that_give_no_model_end_in_one_sentence(online, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    for name, sentence in {
        str(tmp_path / "run"): "holds no model: name a finished run",
        str(tmp_path / "nothing"): "There is no model folder",
        "me/nothing": "no model on the Hub called me/nothing",
        "me/a name": "neither a folder nor a name",
    }.items():
        with pytest.raises(UserError, match=sentence):
            find_model_folder(name)
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        find_model_folder("me/nothing")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        find_model_folder("me/nothing")


def test_a_gated_model_is_an_error(online, tmp_path):
    assert Pusher(REPO, private=False, folder=tmp_path).finish(write("{}"))
    online.gate = True
    with pytest.raises(UserError, match=f"Access to {REPO} .* has to be requested"):
        find_model_folder(REPO)


def test_a_run_folder_names_the_model_in_it(saved):
    assert find_model_folder(str(saved.parent)) == saved


def test_another_projects_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="not a model of this project"):
        find_model_folder(str(tmp_path))


@pytest.mark.parametrize("damage", ["missing", "torn", "shape"])
def test_weights_that_cannot_be_loaded_end_in_one_sentence(saved, damage):
    file = saved / "model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        weights = load_file(file)
        weights["head.classifier.weight"] = weights["head.classifier.weight"][:1].clone()
        save_file(weights, file, metadata={"format": "pt"})
    expected = {
        "missing": "has no weights",
        "torn": "are torn",
        "shape": r"head\.classifier\.weight of shape \[1, 64\]",
    }
    with pytest.raises((UserError, ValueError), match=expected[damage]) as caught:
        load_model(saved)
    assert str(caught.value).count("\n") == 0


def test_a_snapshot_loads_as_a_model_and_holds_the_run(saved, tmp_path):
    model = load_model(saved)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1767225600.my-host.77.0").write_text("x")
    target = tmp_path / "snapshot"
    target.mkdir()
    write_snapshot(
        target,
        tmp_path,
        config=model.config,
        weights=model.state_dict(),
        recipe_yaml="seed: 1\n",
        results={"a": 1},
        card="# x",
        picture=b"png",
    )
    assert torch.equal(load_model(target).head.classifier.weight, model.head.classifier.weight)
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.suffix != ".py"}
    assert names >= {
        "README.md",
        "recipe.yaml",
        "results.json",
        "panel.png",
        "config.json",
        "tensorboard/events.out.tfevents.1767225600.0",
    }
    assert {"preprocessor_config.json", "model.safetensors"} <= names


def test_a_run_is_pushed_while_it_trains_and_scored_the_same_by_its_name(
    online, tiny, tmp_path, capfd, caplog, monkeypatch
):
    """With every other request refused during training; no token, path or host's name is pushed."""
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    peaks, describe = itertools.count(1), results_module.describe_machine

    def describe_rising(accelerator):
        return describe(accelerator) | {"peak_memory_bytes": next(peaks)}

    monkeypatch.setattr(results_module, "describe_machine", describe_rising)
    online.refuse = lambda number: number % 2 != 0
    train(parse([*tiny, "--output.hub_model_id", REPO, "--output.push_every", "3"]))
    online.refuse = lambda number: False
    assert [message for message, _ in online.repos[REPO]] == ["first", "Step 3", "The finished model"]
    files, folder = online.files(REPO), tmp_path / "run"
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert files[name] == (folder / "model" / name).read_bytes()
    assert files["results.json"] == (folder / "results.json").read_bytes()
    trained = yaml.safe_load((folder / "recipe.yaml").read_text())
    private = {"data": {"root": "data", "cache_dir": None}, "output": {"dir": None}}
    expected = {
        key: value | private.get(key, {}) if isinstance(value, dict) else value for key, value in trained.items()
    }
    assert yaml.safe_load(files["recipe.yaml"]) == expected
    assert any(name.startswith("tensorboard/events") for name in files) and "panel.png" in files
    assert online.cards[-1] == files["README.md"].decode() and "model-index" in online.cards[-1]

    main(["evaluate", "--model", REPO, "--output", str(tmp_path / "again.json")])
    again, results = (json.loads(path.read_text()) for path in (tmp_path / "again.json", folder / "results.json"))
    assert again["mean_iou"] == results["mean_iou"] and again["iou"] == results["iou"]

    main(["push", str(folder), "me/later", "--private"])
    later = online.files("me/later")
    assert online.private["me/later"] and later.keys() == files.keys()
    card = later.pop("README.md").decode().replace("me/later", REPO).replace("later", "shapes-tiny")
    assert card == files["README.md"].decode() and later.pop("panel.png")[:4] == b"\x89PNG"
    assert all(data == files[name] for name, data in later.items())
    online.refuse = lambda number: True
    with pytest.raises(UserError, match="was not pushed: see the reason above"):
        main(["push", str(folder), "me/later"])

    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    pushed = [data for _, commit in online.repos[REPO] for data in commit.values()]
    assert not any(TOKEN.encode() in data for data in left + pushed)
    for secret in (str(tmp_path), "secret-host"):
        names = [name for _, commit in online.repos[REPO] for name in commit]
        assert not any(secret.encode() in data for data in pushed) and not any(secret in name for name in names)
    assert TOKEN not in "".join([*capfd.readouterr(), caplog.text])


STRANGER = """
import sys
sys.modules["benchmark"] = sys.modules["data_scripts"] = None  # to import them is an error
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
name, images, output = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
known = {"trust_remote_code": True, "revision": "main"}  # without a revision, transformers says that it fetches code

segment = pipeline("image-segmentation", model=name, **known)
found = {}
for batch_size in (1, 3):
    for image, regions in zip(images, segment(images, batch_size=batch_size), strict=True):
        labels = sum(np.asarray(r["mask"]) // 255 * (1 + segment.model.config.label2id[r["label"]]) for r in regions)
        found.setdefault(image, []).append(labels)
segment.model.save_pretrained(output)
one = segment(images[0])

model = AutoModelForSemanticSegmentation.from_pretrained(name, **known)
processor = AutoImageProcessor.from_pretrained(name, **known)
pictures = [Image.open(image) for image in images]
with torch.no_grad():
    outputs = model(**processor(pictures))
maps = processor.post_process_semantic_segmentation(outputs, [picture.size[::-1] for picture in pictures])
for image, labels in zip(images, maps, strict=True):
    assert all((labels.numpy() + 1 == masks).all() for masks in found[image])
windows = processor.post_process_semantic_segmentation(outputs)
print([list(window.shape) for window in windows], len(one))
"""


def test_what_is_not_a_finished_run_is_not_pushed(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"holds no finished run \(results\.json is missing\)"):
        main(["push", str(tmp_path), REPO])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_a_pushed_model_is_loaded_by_its_name_where_this_package_is_not(online, tmp_path, head):
    """Pipeline, batches of windows, and AutoModel give one label map, without a warning; saved again it loads."""
    torch.manual_seed(0)
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    config = SegmentationConfig(encoder="test_vit", crop_size=(32, 32), head=head, **names)
    save_model(tmp_path / "model", config, SegmentationModel(config).state_dict())
    pusher = Pusher(REPO, private=False, folder=tmp_path)
    assert pusher.finish(lambda folder: shutil.copytree(tmp_path / "model", folder, dirs_exist_ok=True))
    images = [str(tmp_path / f"{width}.png") for width in (32, 70, 50)]
    for width, image in zip((32, 70, 50), images, strict=True):
        Image.effect_noise((width, 50), 80).convert("RGB").save(image)
    environment = {"HF_ENDPOINT": online.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    again = tmp_path / "again"
    done = run_python("-c", STRANGER, REPO, *images, str(again), **environment)
    assert done.returncode == 0, done.stderr
    windows, regions = done.stdout.rsplit(" ", 1)
    assert json.loads(windows) == [[32, 32]] * 5 and 1 <= int(regions) <= 3
    messages = [line for line in done.stderr.splitlines() if line and not line.startswith(("Loading w", "Writing m"))]
    assert not messages, done.stderr
    assert (again / "pipeline.py").exists() and type(load_model(again).head).__name__.lower().startswith(head)
