"""What a run makes of its recipe, seen from outside: inputs of the model, the optimizer, logs and scores."""

import json

import numpy as np
import pytest
import torch
from interruption import metrics, run
from launching import parse
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.transforms.v2 import functional as F

from benchmark.data.step_plan import sample_index
from benchmark.data.transforms import decode_image, training_sample
from benchmark.models.modeling import SegmentationModel
from benchmark.recipe.schema import Augment
from benchmark.training.loop import train
from data_scripts.preparation import prepare

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
CROP = (64, 64)


@pytest.fixture
def inputs(monkeypatch):
    """What reaches the model: keyword arguments of each forward pass, by whether it trains."""
    seen = {True: [], False: []}

    def forward(self, pixel_values, labels=None, positions=None, original=SegmentationModel.forward, **options):
        if pixel_values.device.type != "meta":  # where a pass is only counted
            seen[self.training].append({"pixel_values": pixel_values, "labels": labels, "positions": positions})
        return original(self, pixel_values, labels, positions, **options)

    monkeypatch.setattr(SegmentationModel, "forward", forward)
    return seen


@pytest.mark.parametrize("seed", [0, 5])
def test_what_reaches_the_model_is_what_torchvision_makes(tiny, cache_dir, inputs, seed):
    """Of the images whose contrast is left alone: its mean is that of a thumbnail, which has a test of its own."""
    flags = ["--seed", str(seed), "--train.steps", "2", "--train.global_batch_size", "8", "--train.log_every", "2"]
    statistics = ["--model.image_mean", str(MEAN), "--model.image_std", str(STD)]
    train(parse([*tiny, *flags, *statistics]))
    split = prepare("shapes", root="data", cache_dir=cache_dir).splits["train"]
    compared = changed = 0
    for step, batch in enumerate(inputs[True]):
        assert batch["positions"].tolist() == list(range(8 * step, 8 * step + 8))
        for index, position in enumerate(batch["positions"].tolist()):
            row = split[sample_index(position, len(split), seed)]
            sample = training_sample(
                row["image"]["bytes"],
                row["annotation"]["bytes"],
                crop_size=CROP,
                seed=seed,
                position=position,
                augment=Augment(),
            )
            assert torch.equal(batch["labels"][index], sample["labels"].long())
            brightness, contrast, saturation, hue, _ = sample["jitter"].tolist()
            if contrast != 1:
                continue
            height, width = sample["sizes"].tolist()
            image = sample["pixel_values"][:, :height, :width]
            jittered = F.adjust_hue(F.adjust_saturation(F.adjust_brightness(image, brightness), saturation), hue)
            expected = torch.zeros(3, *CROP, dtype=torch.uint8)
            expected[:, :height, :width] = jittered
            expected = F.normalize(expected.float() / 255, MEAN, STD)
            torch.testing.assert_close(batch["pixel_values"][index], expected, rtol=0, atol=1.01 / 255 / min(STD))
            compared += 1
            changed += not torch.equal(jittered, image)
    assert compared >= 4 and changed >= 2


def test_evaluation_sees_the_pixels_under_the_same_statistics(tiny, cache_dir, inputs):
    statistics = ["--model.image_mean", str(MEAN), "--model.image_std", str(STD)]
    train(parse([*tiny, "--train.steps", "1", *statistics]))
    split = prepare("shapes", root="data", cache_dir=cache_dir).splits["validation"]
    image = decode_image(split[0]["image"]["bytes"])
    factor = max(64 / image.shape[1], 64 / image.shape[2])
    size = [round(image.shape[1] * factor), round(image.shape[2] * factor)]
    window = F.resize(image, size, antialias=True)[:, :64, :64]
    first = inputs[False][0]["pixel_values"][0]
    torch.testing.assert_close(first, F.normalize(window.float() / 255, MEAN, STD), rtol=0, atol=1e-6)


def test_the_optimizer_is_the_recipes(tiny):
    """Each group's rate, decay, betas and eps before every step, and which parameters it holds."""
    groups = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: groups.append(
            (type(optimizer), [{**g, "params": [p.shape for p in g["params"]]} for g in optimizer.param_groups])
        )
    )
    recipe = ["--optim.lr", "0.02", "--optim.encoder_lr_multiplier", "0.25", "--optim.weight_decay", "0.3"]
    recipe += ["--optim.betas", "[0.8, 0.99]", "--optim.eps", "1e-6"]
    train(parse([*tiny, *recipe, "--optim.poly_power", "0.5", "--train.micro_batch_size", "2"]))
    hook.remove()
    assert len(groups) == 6  # and not one for each micro batch
    for step, (kind, (head, encoder)) in enumerate(groups):
        assert issubclass(kind, torch.optim.AdamW)
        assert head["lr"] == pytest.approx(0.02 * (1 - step / 6) ** 0.5, rel=1e-12)
        assert encoder["lr"] == pytest.approx(0.005 * (1 - step / 6) ** 0.5, rel=1e-12)
        for group in (head, encoder):
            assert (group["weight_decay"], tuple(group["betas"]), group["eps"]) == (0.3, (0.8, 0.99), 1e-6)
            assert not group["amsgrad"] and not group["maximize"]
        assert head["params"] == [torch.Size([6, 64]), torch.Size([6])] and len(encoder["params"]) > 20


def test_the_optimizers_defaults_are_pytorchs(tiny):
    groups = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: groups.extend(optimizer.param_groups))
    train(parse([*tiny, "--train.steps", "1"]))
    hook.remove()
    assert {(tuple(group["betas"]), group["eps"], group["weight_decay"]) for group in groups} == {
        ((0.9, 0.999), 1e-8, 0.05)
    }


def test_the_augmentation_is_the_recipes(tiny, cache_dir, inputs):
    """Without jitter, flip and scale, a crop is the image as it just fits into it, padded."""
    still = {"jitter_probability": "0", "flip_probability": "0", "min_scale": "1", "max_scale": "1"}
    flags = [flag for key, value in still.items() for flag in (f"--augment.{key}", value)]
    plain = ["--model.image_mean", "[0, 0, 0]", "--model.image_std", "[1, 1, 1]"]
    train(parse([*tiny, *flags, *plain, "--train.steps", "1"]))
    split = prepare("shapes", root="data", cache_dir=cache_dir).splits["train"]
    for position, pixels in enumerate(inputs[True][0]["pixel_values"]):
        image = decode_image(split[sample_index(position, len(split), 0)]["image"]["bytes"])
        ratio = min(64 / image.shape[1], 64 / image.shape[2])
        size = [int(image.shape[1] * ratio), int(image.shape[2] * ratio)]
        expected = torch.zeros(3, *CROP)
        expected[:, : size[0], : size[1]] = F.resize(image, size, antialias=True) / 255
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def test_the_logged_rates_are_the_closed_form(tiny, tmp_path):
    """A line of step t, counted from 1, has the rate with which that step was made."""
    train(parse([*tiny, "--optim.encoder_lr_multiplier", "0.1", "--optim.poly_power", "0.7", "--train.log_every", "1"]))
    lines = [line for line in metrics(tmp_path / "run") if "train/lr" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        rate = 1e-3 * (1 - (line["step"] - 1) / 6) ** 0.7
        assert line["train/lr"] == pytest.approx(rate, rel=1e-12)
        assert line["train/encoder_lr"] == pytest.approx(rate / 10, rel=1e-12)


def test_gradients_are_clipped_as_torch_does_and_their_norm_is_logged(tiny, tmp_path):
    """Over micro batches and groups; the norm is that before, and the step is made with what is left."""
    seen = []

    def look(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    hook = register_optimizer_step_pre_hook(look)
    flags = [*tiny, "--train.micro_batch_size", "2", "--train.steps", "2", "--train.log_every", "1"]
    train(parse([*flags, "--output.dir", str(tmp_path / "free")]))
    for most in (1e-3, 1e9):
        train(parse([*flags, "--optim.clip_norm", str(most), "--output.dir", str(tmp_path / str(most))]))
    hook.remove()
    free, small, large = seen[:2], seen[2:4], seen[4:]
    assert small == pytest.approx([1e-3, 1e-3], rel=1e-3) and large == free and min(free) > 0.1
    for most, expected in ((1e-3, free[:1]), (1e9, free)):
        logged = [line["train/grad_norm"] for line in metrics(tmp_path / str(most)) if "train/loss" in line]
        assert logged[: len(expected)] == pytest.approx(expected, rel=1e-5)
    assert not any("train/grad_norm" in line for line in metrics(tmp_path / "free"))


def test_the_logged_rates_know_warm_up_and_schedule(tiny, tmp_path):
    options = ["--optim.warmup_steps", "[1, 2]", "--optim.schedule", "cosine", "--optim.layer_decay", "0.5"]
    train(parse([*tiny, *options, "--train.log_every", "1"]))
    lines = [line for line in metrics(tmp_path / "run") if "train/lr" in line]
    head = [0, *(0.5 * (1 + np.cos(np.pi * done / 5)) for done in range(5))]
    encoder = [0, 0, 0.5, *(0.5 * (1 + np.cos(np.pi * done / 3)) for done in range(3))]
    assert [1e3 * line["train/lr"] for line in lines] == pytest.approx(head, abs=1e-12)
    assert [1e3 * line["train/encoder_lr"] for line in lines] == pytest.approx(encoder, abs=1e-12)


def test_two_seeds_differ_in_weights_and_in_samples(tiny, tmp_path, inputs):
    for seed in (0, 1):
        folder = str(tmp_path / str(seed))
        train(parse([*tiny, "--seed", str(seed), "--train.steps", "1", "--output.dir", folder]))
    first, second = inputs[True]
    assert not torch.equal(first["labels"], second["labels"])
    scores = [json.loads((tmp_path / str(seed) / "results.json").read_text())["iou"] for seed in (0, 1)]
    assert scores[0] != scores[1]


def test_one_process_and_two_give_equal_scores_and_confusions(tiny, tmp_path):
    """The rate is so small that no weight changes: only the evaluation could differ."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        flags = [*tiny, "--train.steps", "1", "--optim.lr", "1e-30", "--output.dir", str(folder)]
        log = tmp_path / f"{processes}.log"
        assert run(flags, log, processes) == [0] * processes, log.read_text()
        results = json.loads((folder / "results.json").read_text())
        assert results["world_size"] == processes
        confusion = np.load(folder / "confusion.npz")["shapes"]
        assert sorted(set(confusion[:, 0])) == list(range(64))
        found.append(({key: results[key] for key in ("mean_iou", "pixel_accuracy", "iou")}, confusion))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    matrix = np.zeros((6, 6), np.int64)
    np.add.at(matrix, (found[0][1][:, 1], found[0][1][:, 2]), found[0][1][:, 3])
    hits = matrix.diagonal()
    iou = hits / (matrix.sum(0) + matrix.sum(1) - hits)
    assert list(found[0][0]["iou"].values()) == pytest.approx(iou.tolist(), rel=1e-12)
