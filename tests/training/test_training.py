"""The main job, in real processes: what it leaves, how it resumes, and that a step's split changes nothing."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from accelerate import Accelerator
from interruption import Interruption, metrics, outcome, run
from launching import parse, run_python
from PIL import Image

from benchmark.__main__ import main
from benchmark.commands.export import default_place
from benchmark.data.step_plan import sample_index
from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.errors import ModelError
from benchmark.models.heads import HEADS
from benchmark.models.linear_head import upsampled_cross_entropy
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.run_folder import BEST, RunFolder, results_of_model
from benchmark.throughput.arithmetic import count
from benchmark.training.build import build_model, check_model, model_config, window_gflops
from benchmark.training.datasets import prepare_datasets
from benchmark.training.launch import start_processes
from benchmark.training.loop import train
from benchmark.training.memory import largest_micro_batch, plan_without_trial
from data_scripts.preparation import class_names, prepare


def test_a_run_leaves_its_whole_folder_and_is_scored_the_same_again(tiny, tmp_path, capsys):
    done = run_python("train.py", *tiny)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    names = {"recipe.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "model", "results.json", "confusion.npz"}
    names |= {"samples"}
    assert {path.name for path in folder.iterdir()} == names | {".lock", "run.log"}
    results = json.loads((folder / "results.json").read_text())
    assert "mean IoU" in done.stdout and f"{100 * results['mean_iou']:.2f}" in done.stdout
    assert results["step"] == 6 and results["encoder"] == "test_vit" and results["setting"] == "tiny"
    assert results["dataset_fingerprint"]["counts"].keys() == {"train", "validation"}
    tags = {tag for line in metrics(folder) for tag in line}
    assert {"train/loss", "train/lr", "train/encoder_lr", "val/mean_iou", "val/iou/circle"} <= tags
    assert [line["step"] for line in metrics(folder) if "train/loss" in line] == [2, 4, 6]
    assert [line["step"] for line in metrics(folder) if "val/mean_iou" in line] == [3, 6]

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert train(parse(tiny)) == results
    assert "was finished before" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    main(["evaluate", "--model", str(folder / "model"), "--output", str(tmp_path / "r.json")])
    evaluated = json.loads((tmp_path / "r.json").read_text())
    assert evaluated.keys() == results.keys()
    assert {path.stat().st_mode & 0o077 for path in (folder / "model").iterdir()} == {0o044}
    for key in ("mean_iou", "iou", "pixel_accuracy", "protocol", "step", "dataset_fingerprint", "parameters"):
        assert evaluated[key] == results[key]


def test_an_interrupted_run_ends_bitwise_as_one_that_was_not(tiny, tmp_path, capsys):
    """The folder is put back to what a kill after step 4 leaves: the checkpoint of step 3, and lines beyond it."""
    folder, cut = tmp_path / "run", tmp_path / "cut"
    train(parse([*tiny, "--train.keep_checkpoints", "5"]))
    shutil.copytree(folder, cut)
    for name in ("checkpoints/step-00000006", "model"):
        shutil.rmtree(cut / name)
    for name in ("results.json", "confusion.npz"):
        (cut / name).unlink()
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:10])
    capsys.readouterr()

    train(parse([*tiny, "--output.dir", str(cut)]))
    assert "Resuming after step 3" in capsys.readouterr().out
    assert outcome(cut) == outcome(folder)


def test_an_interrupted_run_with_all_further_settings_ends_bitwise_as_one_that_was_not(tiny, tmp_path):
    """EoMT, whose masks follow the step, the moving average, groups of layers, warm-up and clipping."""
    folder, cut = tmp_path / "run", tmp_path / "cut"
    flags = [*tiny, "--model.head", "eomt", "--model.eomt.num_points", "64", "--model.eomt.num_queries", "9"]
    flags += ["--train.ema_decay", "0.7", "--optim.layer_decay", "0.8", "--optim.warmup_steps", "[1, 2]"]
    flags += ["--optim.clip_norm", "0.5", "--train.keep_checkpoints", "5"]
    train(parse(flags))
    shutil.copytree(folder, cut)
    for name in ("checkpoints/step-00000006", "model"):
        shutil.rmtree(cut / name)
    for name in ("results.json", "confusion.npz"):
        (cut / name).unlink()
    train(parse([*flags, "--output.dir", str(cut)]))
    assert outcome(cut) == outcome(folder)
    found = [safetensors.torch.load_file(path / "checkpoints/step-00000006/ema.safetensors") for path in (folder, cut)]
    model = safetensors.torch.load_file(folder / "model/model.safetensors")
    for name, average in found[0].items():
        assert torch.equal(average, found[1][name]) and torch.equal(average, model[name])


def test_the_moving_average_is_evaluated_and_saved(tiny, tmp_path):
    """Against a loop over the checkpoints of each step; its scores are those of model/."""
    flags = [*tiny, "--train.steps", "3", "--train.checkpoint_every", "1", "--train.keep_checkpoints", "9"]
    flags += ["--train.eval_every", "3", "--optim.lr", "0.01"]
    train(parse([*flags, "--output.dir", str(tmp_path / "plain")]))
    results = train(parse([*flags, "--train.ema_decay", "0.6"]))
    steps = [tmp_path / f"run/checkpoints/step-{step:08d}" for step in range(1, 4)]
    weights = [safetensors.torch.load_file(step / "model.safetensors") for step in steps]
    averages = [safetensors.torch.load_file(step / "ema.safetensors") for step in steps]
    for name, weight in safetensors.torch.load_file(tmp_path / "plain/model/model.safetensors").items():
        assert torch.equal(weight, weights[-1][name])  # the run itself is not changed by its average
        average = averages[0][name].double()
        for number in range(1, 3):
            average = 0.6 * average + 0.4 * weights[number][name].double()
            assert (averages[number][name] - average).abs().max() < 1e-6
    assert (averages[-1]["head.classifier.weight"] - weights[-1]["head.classifier.weight"]).abs().max() > 1e-4
    main(["evaluate", "--model", str(tmp_path / "run/model"), "--output", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text())["mean_iou"] == results["mean_iou"]


def test_class_weights_reach_the_loss(tiny, cache_dir):
    dataset = prepare("shapes", root="data", cache_dir=cache_dir)
    shares = list(dataset.report["splits"]["train"]["pixel_share"].values())
    model, _ = build_model(parse([*tiny, "--loss.class_weights", "inverse_frequency"]), dataset)
    assert model.config.class_weights == pytest.approx([1 / share / 6 for share in shares], rel=1e-9)
    logits = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6).repeat_interleave(3)[:16].expand(2, 16, 16)
    loss, _ = model.head.loss(logits, labels, None, 0)
    assert torch.equal(loss, upsampled_cross_entropy(logits, labels, model.config.class_weights))
    assert not torch.equal(loss, upsampled_cross_entropy(logits, labels))
    with pytest.raises(UserError, match=r"holds 2 numbers, but shapes has 6 classes: give one number for each class"):
        check_model(parse([*tiny, "--loss.class_weights", "[1, 2]"]))
    with pytest.raises(ModelError, match=r"The eomt head's loss has no class weights: set loss.class_weights to null"):
        check_model(parse([*tiny, "--loss.class_weights", "inverse_frequency", "--model.head", "eomt"]))


def test_a_run_on_ones_own_images_resumes(tiny, tmp_path, capsys):
    """With label values mapped by a recipe's file, whose keys YAML reads as numbers and recipe.yaml holds as text."""
    for place, high in (("images", 256), ("labels", 2), ("val_images", 256), ("val_labels", 2)):
        (tmp_path / place).mkdir()
        for number in range(len(place), len(place) + 4):
            pixels = np.random.default_rng(number).integers(0, high, (80, 80, 3)[: 3 if high > 2 else 2], np.uint8)
            Image.fromarray(pixels * (11 if high == 2 else 1)).save(tmp_path / place / f"{number}.png")
    recipe = {
        "train": "folder",
        "val": ["folder"],
        "custom": {
            "classes": ["a", "b"],
            "label_mapping": {0: 0, 11: 1, 7: 255},
            "name": "mine",
            **{f"train_{place}": place for place in ("images", "labels")},
            **{f"val_{place}": f"val_{place}" for place in ("images", "labels")},
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": recipe}))
    flags = [*tiny[:2], str(tmp_path / "own.yaml"), *tiny[2:], "--data.root", str(tmp_path)]
    results = train(parse(flags))
    assert results["dataset"] == "mine"
    for name in ("results.json", "checkpoints/step-00000006"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train(parse(flags))["iou"] == results["iou"]
    assert "Resuming after step 3" in capsys.readouterr().out
    (tmp_path / "run" / "results.json").unlink()
    again = parse(["--recipe", str(tmp_path / "run" / "recipe.yaml")])
    assert train(again)["dataset_fingerprint"] == results["dataset_fingerprint"]


@pytest.mark.parametrize(("head", "compared"), [("linear", 5), ("mask2former", 1), ("eomt", 1)])
def test_the_split_of_a_step_changes_neither_gradients_nor_losses(tiny, tmp_path, head, compared):
    """4 images at once, one by one, and by two processes: the same samples, the same step."""
    gradients, losses = {}, {}
    flags = [*tiny, "--model.head", head, "--train.log_every", "1"]
    flags += ["--model.mask2former.num_points", "256", "--model.eomt.num_points", "256"]
    end = Interruption("step", compared, signal.SIGTERM)  # before anything is evaluated
    for name, processes, micro_batch in (("at once", 1, 4), ("one by one", 1, 1), ("two processes", 2, 2)):
        folder, log = tmp_path / name, tmp_path / f"{name}.log"
        options = ["--train.micro_batch_size", str(micro_batch), "--train.eval_every", "6", "--output.dir", str(folder)]
        environment = {"FIRST_GRADIENTS": str(tmp_path / f"{name}.pt")}
        assert run([*flags, *options], log, processes, end, environment) == [75] * processes, log.read_text()
        assert f"{processes} process(es) x {4 // processes // micro_batch} accumulated" in log.read_text()
        gradients[name] = torch.load(tmp_path / f"{name}.pt")
        logged = [line["train/loss"] for line in metrics(folder) if "train/loss" in line]
        losses[name] = logged[:compared]  # a signal may be noticed a step later
    largest = max(gradient.abs().max() for gradient in gradients["at once"])
    assert largest > 1e-3
    for name in ("one by one", "two processes"):
        assert len(losses[name]) == compared
        assert losses[name] == pytest.approx(losses["at once"], rel=1e-5, abs=1e-5)
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
    losses = [line["train/loss"] for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert losses[-1] < losses[0] * 6 / 7


def test_train_on_one_dataset_and_validate_on_another_reports_each_apart(tiny, tmp_path, monkeypatch, cache_dir):
    shapes = prepare("shapes", root="data", cache_dir=cache_dir)
    monkeypatch.setattr("benchmark.training.datasets.prepare_dataset", lambda recipe, name: shapes)
    results = train(parse([*tiny, "--data.val", "[shapes, other]"]))
    assert results["datasets"].keys() == {"shapes", "other"}
    assert results["mean_iou"] == results["datasets"]["shapes"]["mean_iou"]
    tags = {tag for line in metrics(tmp_path / "run") for tag in line}
    assert {"val/shapes/mean_iou", "val/other/mean_iou", "val/other/iou/star"} <= tags


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_images(tiny, tmp_path, cache_dir):
    with pytest.raises(UserError, match=r"The loss of step \d is (nan|inf)") as error:
        train(parse([*tiny, "--optim.lr", "1e30", "--train.log_every", "1"]))
    step = int(re.search(r"step (\d)", str(error.value))[1])
    split = prepare("shapes", root="data", cache_dir=cache_dir).splits["train"]
    rows = [sample_index(position, len(split), seed=0) for position in range(4 * step - 4, 4 * step)]
    assert all((split[row]["image"]["path"] or f"row {row}") in str(error.value) for row in rows)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_weights_that_are_lost_leave_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    """The loss tells a step later than the weights: the checkpoint of the step between would be of no use."""

    def step(self, *args, original=torch.optim.AdamW.step, **kwargs):
        original(self, *args, **kwargs)
        step.count += 1
        if step.count == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))

    step.count = 0
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match="not finite after step 4"):
        train(parse([*tiny, "--train.checkpoint_every", "2", "--train.keep_checkpoints", "1"]))
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000002"]


def test_the_end_of_memory_says_which_size_to_try_next(tiny, monkeypatch):
    def forward(self, pixel_values, labels=None, positions=None, original=SegmentationModel.forward):
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, pixel_values, labels, positions)

    monkeypatch.setattr(SegmentationModel, "forward", forward)
    with pytest.raises(UserError, match=r"micro batch of 4 images does not fit.*set train.micro_batch_size to 2\."):
        train(parse(tiny))
    with pytest.raises(UserError, match=r"16 windows at once does not fit.*set train.eval_batch_size to 8\."):
        train(parse([*tiny, "--train.micro_batch_size", "2"]))


@pytest.mark.parametrize("head", HEADS)
def test_the_largest_micro_batch_is_found_and_nothing_is_left_of_the_trial(head, monkeypatch):
    options = {"num_points": 16, "num_queries": 5} if head in ("mask2former", "eomt") else {}  # and more classes
    config = SegmentationConfig("test_vit", head, crop_size=(32, 32), head_options=options, num_labels=9)
    model = SegmentationModel(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, tried, original = torch.get_rng_state(), [], model.forward

    def forward(pixel_values, labels, positions):
        tried.append(len(pixel_values))
        torch.rand(1)
        outputs = original(pixel_values, labels, positions)
        if len(pixel_values) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return outputs

    monkeypatch.setattr(model, "forward", forward)
    assert largest_micro_batch(model, [12, 6, 4, 3, 2, 1], Accelerator()) == 3
    assert tried == [12, 6, 4, 3]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(UserError, match="one image does not fit"):
        largest_micro_batch(model, [12, 6], Accelerator())


def test_on_a_cpu_auto_is_a_divisor_of_at_most_16():
    assert plan_without_trial(60, 1, "auto").micro_batch_size == 15
    assert plan_without_trial(60, 2, "auto").accumulation == 2


def test_deterministic_algorithms_where_the_recipe_says_so(tiny):
    try:
        start_processes(parse([*tiny, "--train.deterministic", "true"]))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_on_a_gpu_a_deterministic_run_resumes_bitwise(tiny, tmp_path, head):
    flags = [*tiny, "--train.deterministic", "true", "--model.head", head, "--output.dir"]
    train(parse([*flags, str(tmp_path / "whole")]))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000006")
    (tmp_path / "cut/results.json").unlink()
    train(parse([*flags, str(tmp_path / "cut")]))
    torch.use_deterministic_algorithms(False)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.gpu
def test_on_a_gpu_auto_finds_a_micro_batch(tiny, capsys):
    train(parse([*tiny, "--train.micro_batch_size", "auto", "--train.global_batch_size", "8"]))
    assert "micro batch 8 = 8" in capsys.readouterr().out


def test_other_training_data_are_refused_on_resume(tiny, tmp_path, monkeypatch):
    train(parse(tiny))
    (tmp_path / "run/results.json").unlink()
    shapes = prepare_datasets(parse(tiny), Accelerator())["shapes"]
    other = dataclasses.replace(shapes, fingerprint=shapes.fingerprint | {"digest": "another"})
    monkeypatch.setattr("benchmark.training.datasets.prepare_dataset", lambda recipe, name: other)
    with pytest.raises(UserError, match="was trained on other files of shapes"):
        train(parse(tiny))


def test_what_another_process_trained_while_a_run_started_is_not_lost(tiny, tmp_path, monkeypatch):
    """The other one saves step 4 and ends between this one's look at the checkpoints and its claim of the folder."""
    train(parse(tiny))
    (tmp_path / "run/results.json").unlink()
    checkpoints = tmp_path / "run/checkpoints"
    hidden, original = tmp_path / "hidden", RunFolder.claim
    checkpoints.rename(hidden)

    def claim(folder, *arguments):
        hidden.rename(checkpoints)
        original(folder, *arguments)

    monkeypatch.setattr(RunFolder, "claim", claim)
    saved = sorted(path.name for path in hidden.iterdir())
    with pytest.raises(UserError, match=r"Another process trained on in .* meanwhile: run the same command again"):
        train(parse(tiny))
    assert sorted(path.name for path in checkpoints.iterdir()) == saved
    monkeypatch.undo()
    assert train(parse(tiny))["step"] == 6


def test_a_resume_loads_no_pretrained_weights_and_reads_its_checkpoint_once(tiny, tmp_path, monkeypatch):
    from benchmark.training import build, loop

    loaded, fetched = [], []
    monkeypatch.setattr(loop, "fetch_weights", lambda _: fetched.append(len(loaded)))
    monkeypatch.setattr(build, "load_encoder_weights", lambda *_, **options: loaded.append(options))
    flags = [*tiny, "--model.pretrained", "true", "--train.keep_checkpoints", "1"]
    train(parse(flags))
    assert loaded == [{"pretrained": True, "checkpoint": None}]
    (tmp_path / "run/results.json").unlink()
    read, original = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or original(path))
    train(parse(flags))
    assert len(loaded) == 1 and fetched == [0]
    assert sorted(name for name in read if name.startswith(("model.s", "optimizer", "state"))) == [
        "model.safetensors",
        "model.safetensors",  # of the model that is saved again, for its sums
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_console_and_run_log_say_each_score_and_the_best(tiny, tmp_path, capsys):
    results = train(parse([*tiny, "--train.eval_every", "2", "--train.keep_best", "true"]))
    printed, log = capsys.readouterr().out, (tmp_path / "run/run.log").read_text()
    scores = [line["val/mean_iou"] for line in metrics(tmp_path / "run") if "val/mean_iou" in line]
    for number, score in enumerate(scores):
        best = max(scores[: number + 1])
        line = f"step {2 * number + 2}: mIoU {100 * score:.2f} %, best {100 * best:.2f} % at step "
        assert line in printed and line in log
    for words in (
        "train: 256 of 256 images",
        "machine",
        "IoU in %",
        f"{100 * results['mean_iou']:.2f}",
    ):
        assert words in log and words in printed
    chosen = json.loads((tmp_path / "run/model_best/chosen.json").read_text())
    assert chosen["mean_iou"] == max(scores) and "chosen on the validation data" in chosen["note"]
    main(["evaluate", "--model", str(tmp_path / "run/model_best"), "--output", str(tmp_path / "best.json")])
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["mean_iou"], best["step"], best["train_seconds"]) == (max(scores), chosen["step"], None)
    assert best["images_per_second"] == results["images_per_second"]
    places = {name: default_place(str(tmp_path / "run" / name), tmp_path / "run" / name) for name in ("model", BEST)}
    assert places == {"model": tmp_path / "run", BEST: tmp_path / "run" / BEST}
    assert results_of_model(tmp_path / "run" / BEST)["mean_iou"] == max(scores)


@pytest.mark.parametrize("head", HEADS)
def test_a_windows_arithmetic_is_that_of_a_model_with_memory(tiny, head):
    recipe = parse([*tiny, "--model.head", head])
    model = SegmentationModel(model_config(recipe, class_names("shapes", {}), None)).eval().requires_grad_(False)
    flops = count(lambda: model(torch.zeros(1, 3, *recipe.data.crop))).flops
    assert window_gflops(recipe) == pytest.approx(flops / 1e9)
