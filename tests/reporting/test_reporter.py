"""What a line of metrics averages, and over which steps."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmark.recipe.parser import load_recipe
from benchmark.reporting.reporter import Reporter
from benchmark.reporting.results import describe_machine
from benchmark.training.build import build_reporter
from benchmark.training.checkpoint import Progress


@pytest.fixture
def reporter():
    """A reporter of 4 images a step, whose `logged` are its lines."""
    reporter = Reporter.__new__(Reporter)
    reporter.logged = []
    reporter.global_batch_size = 4
    reporter.tracking = SimpleNamespace(
        log=lambda values, step: reporter.logged.append((step, values)), status=lambda **values: None
    )
    return reporter


def test_a_line_is_the_mean_of_its_steps_and_of_each_part(reporter):
    losses = [{"loss": 3.0, "mask": 1.0}, {"loss": 5.0, "mask": 2.0}]
    reporter.progress = Progress(step=7, losses=losses, train_seconds=6.0, logged_seconds=2.0)
    reporter.log_training([0.1, 0.01])
    ((step, values),) = reporter.logged
    assert step == 7 and values == {
        "train/loss": 4.0,
        "train/loss/mask": 1.5,
        "train/lr": 0.1,
        "train/encoder_lr": 0.01,
        "speed/images_per_second": 2 * 4 / 4.0,
    }
    assert reporter.progress.losses == [] and reporter.progress.logged_seconds == 6.0


def test_steps_of_an_older_version_have_no_parts(reporter):
    losses = [{"loss": 3.0}, {"loss": 5.0, "mask": 2.0}]
    reporter.progress = Progress(step=2, losses=losses, train_seconds=1.0)
    reporter.log_training([0.1])
    assert "train/loss/mask" not in reporter.logged[0][1] and reporter.logged[0][1]["train/loss"] == 4.0


def test_trackers_get_no_path_of_this_machine(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("benchmark.reporting.reporter.Tracking", lambda *_, **options: given.update(options))
    flags = ["--model.init_from", "/home/me/runs/old", "--model.checkpoint", "/data/vit.pth", "--data.train", "folder"]
    flags += ["--data.custom.classes", '["/home/me/classes.txt"]', "--seed", "3"]
    recipe = load_recipe([], flags)
    folder = SimpleNamespace(path=tmp_path)
    build_reporter(recipe, None, folder, {}, None, (1, 1), Progress(), None)
    assert given["recipe"]["model.init_from"] == "old" and given["recipe"]["seed"] == 3
    assert "/home" not in json.dumps(given["recipe"]) and "/data" not in json.dumps(given)


def test_cpus_of_another_number_of_threads_are_another_device(monkeypatch):
    place = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    devices = []
    for threads in (1, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        devices.append(describe_machine(place)["device"])
    assert devices[0].startswith("cpu (") and devices == [devices[0], devices[0].replace("1 thread(s)", "8 thread(s)")]
