"""The main job, in real processes: what it leaves, how it resumes, and that a step's split changes nothing."""

import json
import shutil

import pytest
import torch
from launching import launch, run_python
from safetensors.torch import load_file

from benchmark.command_line import CommandParser
from benchmark.errors import UserError
from benchmark.training import train
from data_scripts import prepare


def parse(flags):
    parser = CommandParser()
    parser.add_recipe()
    return parser.parse_recipe(flags)[1]


def read_metrics(folder):
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def test_a_run_leaves_its_whole_folder_and_is_scored_the_same_again(tiny, tmp_path):
    done = run_python("train.py", *tiny)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    names = {"recipe.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "model", "results.json", "confusion.npz"}
    assert {path.name for path in folder.iterdir()} == names
    results = json.loads((folder / "results.json").read_text())
    assert "mean IoU" in done.stdout and f"{100 * results['mean_iou']:.2f}" in done.stdout
    assert results["step"] == 6 and results["encoder"] == "test_vit" and results["setting"] == "tiny"
    assert results["dataset_fingerprint"]["counts"].keys() == {"train", "validation"}
    tags = {tag for line in read_metrics(folder) for tag in line}
    assert {"train/loss", "train/lr", "train/encoder_lr", "val/mean_iou", "val/iou/circle"} <= tags
    assert [line["step"] for line in read_metrics(folder) if "train/loss" in line] == [2, 4, 6]
    assert [line["step"] for line in read_metrics(folder) if "val/mean_iou" in line] == [3, 6]

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = run_python("train.py", *tiny)
    assert again.returncode == 0 and "mean IoU" in again.stdout
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    scored = run_python(
        "-m", "benchmark", "evaluate", "--model", str(folder / "model"), "--output", str(tmp_path / "r.json")
    )
    assert scored.returncode == 0, scored.stderr
    evaluated = json.loads((tmp_path / "r.json").read_text())
    assert evaluated.keys() == results.keys()
    for key in ("mean_iou", "iou", "pixel_accuracy", "protocol", "step", "dataset_fingerprint", "parameters"):
        assert evaluated[key] == results[key]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_ends_bitwise_as_one_that_was_not(tiny, tmp_path, processes, capsys):
    """The folder is put back to what a kill after step 4 leaves: the checkpoint of step 3, and lines beyond it."""
    folder, cut = tmp_path / "run", tmp_path / "cut"

    def go(processes, flags):
        if processes == 1:
            train(parse(flags))
            return capsys.readouterr().out
        done = launch(processes, "train.py", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    go(processes, [*tiny, "--train.keep_checkpoints", "5"])
    shutil.copytree(folder, cut)
    for name in ("checkpoints/step-00000006", "model"):
        shutil.rmtree(cut / name)
    for name in ("results.json", "confusion.npz"):
        (cut / name).unlink()
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:10])

    assert "Going on after step 3" in go(processes, [*tiny, "--output.dir", str(cut)])
    assert read_metrics(cut) == read_metrics(folder)
    for name in ("model/model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        first, second = load_file(folder / name), load_file(cut / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_split_of_a_step_changes_neither_gradients_nor_losses(tiny, tmp_path):
    """4 images at once, one by one, and by two processes: the same samples, the same step."""
    gradients, losses = {}, {}
    for name, processes, micro_batch in (("at once", 1, 4), ("one by one", 1, 1), ("two processes", 2, 2)):
        folder = tmp_path / name
        options = ["--train.micro_batch_size", str(micro_batch), "--train.log_every", "1", "--output.dir", str(folder)]
        done = launch(processes, "tests/helpers/first_gradients.py", str(tmp_path / f"{name}.pt"), *tiny, *options)
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / "results.json").read_text())["world_size"] == processes
        gradients[name] = torch.load(tmp_path / f"{name}.pt")
        losses[name] = [line["train/loss"] for line in read_metrics(folder) if "train/loss" in line]
    largest = max(gradient.abs().max() for gradient in gradients["at once"])
    assert largest > 1e-3
    for name in ("one by one", "two processes"):
        assert losses[name][:5] == pytest.approx(losses["at once"][:5], abs=1e-5)
        for ours, theirs in zip(gradients[name], gradients["at once"], strict=True):
            assert (ours - theirs).abs().max() < 1e-5 * largest


def test_training_learns(tiny, tmp_path):
    """The loss of a run of 40 steps falls by more than a seventh."""
    options = [
        "--train.steps",
        "40",
        "--train.log_every",
        "5",
        "--train.eval_every",
        "40",
        "--train.checkpoint_every",
        "40",
    ]
    train(parse([*tiny, *options]))
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert losses[-1] < losses[0] * 6 / 7


def test_train_on_one_dataset_and_validate_on_another_reports_each_apart(tiny, tmp_path, monkeypatch, cache_dir):
    shapes = prepare("shapes", root="data", cache_dir=cache_dir)
    monkeypatch.setattr("benchmark.assembly.prepare_dataset", lambda recipe, name: shapes)
    results = train(parse([*tiny, "--data.val", "[shapes, other]"]))
    assert results["datasets"].keys() == {"shapes", "other"}
    assert results["mean_iou"] == results["datasets"]["shapes"]["mean_iou"]
    tags = {tag for line in read_metrics(tmp_path / "run") for tag in line}
    assert {"val/shapes/mean_iou", "val/other/mean_iou", "val/other/iou/star"} <= tags


def test_a_loss_that_is_not_finite_stops_the_run(tiny):
    with pytest.raises(UserError, match=r"The loss of step \d is (nan|inf)"):
        train(parse([*tiny, "--optim.lr", "1e30"]))


def test_other_training_data_are_refused_on_resume(tiny, tmp_path):
    train(parse(tiny))
    folder = tmp_path / "run"
    (folder / "results.json").unlink()
    for state in folder.glob("checkpoints/*/state.json"):
        manifest = json.loads((state.parent / "manifest.json").read_text())
        del manifest["state.json"]
        (state.parent / "manifest.json").write_text(json.dumps(manifest))
        state.write_text(json.dumps(json.loads(state.read_text()) | {"digest": "another"}))
    with pytest.raises(UserError, match="was trained on other files of shapes"):
        train(parse(tiny))
