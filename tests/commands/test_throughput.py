import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmark.commands import throughput
from benchmark.data.color_jitter import color_jitter
from benchmark.data.loaders import training_loader
from benchmark.data.step_plan import StepPlan
from benchmark.errors import UserError
from benchmark.evaluation.loop import EVALUATORS
from benchmark.evaluation.mean_iou import MeanIoU
from benchmark.recipe.parser import load_recipe
from benchmark.throughput.arithmetic import count
from benchmark.throughput.timing import Timing, time_in_turns
from benchmark.throughput.train import CLASSES_PER_IMAGE, PARTS, SPLIT_STEPS, measure, synthetic_batch
from data_scripts.preparation import prepare


def run(tiny: list[str], capsys, part: str, *flags: str) -> dict:
    throughput.main([part, *tiny, *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train_makes_the_steps_it_is_asked_for_and_leaves_nothing(tiny, tmp_path, capsys):
    stepped = []
    hook = register_optimizer_step_post_hook(lambda *_: stepped.append(1))
    measured = run(tiny, capsys, "train", "--steps", "2", "--train.micro_batch_size", "2")
    hook.remove()
    # One is counted, three warm up, and some are split; two micro batches are accumulated in each.
    assert len(stepped) == 2 + 1 + 3 + SPLIT_STEPS
    assert set(measured["split"]) == set(PARTS) and all(seconds > 0 for seconds in measured["split"].values())
    assert measured["matrix_share"] == pytest.approx(measured["tflops"] / measured["matrix_tflops"])
    assert measured["steps"] == 2 and measured["world_size"] == 1
    assert measured["images_per_second"] * measured["seconds_per_step"] == pytest.approx(measured["global_batch_size"])
    assert measured["peak_memory_bytes"] > 2**20
    assert measured["memory_split"] is None and measured["kilowatt_hours"] is None  # not known of a CPU
    assert not (tmp_path / "run").exists()


def test_train_needs_neither_archives_nor_weights(tiny):
    flags = ["--data.train", "ade20k", "--model.pretrained", "true", "--train.steps", "900"]
    flags += ["--optim.warmup_steps", "[100, 500]"]  # more than are measured
    assert measure(load_recipe([tiny[1]], flags), steps=1)["images_per_second"] > 0


def test_the_synthetic_batch_is_like_the_loaders(tiny, cache_dir):
    split = prepare("shapes", root="data", cache_dir=cache_dir).splits["train"]
    options = {"plan": StepPlan(2, 1, 2), "rank": 0, "start_step": 0, "steps": 1, "num_workers": 0}
    loaded = next(iter(training_loader(split, crop_size=(64, 96), seed=0, **options)))
    made = synthetic_batch(2, (64, 96), num_classes=150)
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {k: (v.shape, v.dtype) for k, v in loaded.items()}
    assert [len(labels.unique()) for labels in made["labels"]] == [CLASSES_PER_IMAGE] * 2
    assert made["labels"].max() < 150
    jittered = color_jitter(made["pixel_values"], made["thumbnails"], made["jitter"], made["sizes"])
    assert jittered.shape == (2, 3, 64, 96)


def test_data_says_where_the_time_goes(tiny, capsys):
    measured = run(tiny, capsys, "data", "--seconds", "0.1")
    whole = 1000 / measured["images_per_second"]
    assert sum(measured[part] for part in ("decode", "label", "resize", "rest")) >= whole - 1e-6


def test_a_steps_operations_are_those_of_its_layers(tiny):
    """Of the blocks' products, forward and backward, which are nearly all that a step of larger images computes."""
    flags = ["--model.encoder", "test_vit", "--data.crop_size", "128", "--train.global_batch_size", "2"]
    measured = measure(load_recipe([tiny[1]], [*tiny[2:], *flags]), steps=1)
    width, depth, tokens, images = 64, 6, (128 // 16) ** 2 + 1, 2
    products = 2 * images * depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    assert measured["tflops"] * measured["seconds_per_step"] * 1e12 == pytest.approx(3 * products, rel=0.2)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.Conv2d(8, 4, 2, stride=2, groups=2),
        torch.nn.ConvTranspose2d(8, 6, 2, stride=2),
    ],
)
def test_each_gradient_of_a_convolution_counts_as_its_forward_pass(layer):
    images = torch.randn(2, 8, 6, 10, requires_grad=True)
    forward = count(lambda: layer(images)).flops
    assert forward > 0 and count(lambda: layer(images).sum().backward()).flops == 3 * forward
    assert count(lambda: layer(images.detach()).sum().backward()).flops == 2 * forward


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_counts_as_its_two_products_and_their_gradients(backend):
    query, key, value = (torch.randn(2, 3, tokens, 32, requires_grad=True) for tokens in (10, 20, 20))
    with sdpa_kernel(backend):
        counted = count(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert counted.flops == 3 * 2 * (2 * 3 * 10 * 20) * (32 + 32)
    assert counted.attention == ([] if backend == SDPBackend.MATH else ["flash_attention_for_cpu"])


def test_each_part_has_the_most_memory_of_its_steps(tiny, monkeypatch):
    numbers = itertools.count()
    monkeypatch.setattr("benchmark.throughput.train.peak_memory", lambda device: next(numbers))
    measured = measure(load_recipe([tiny[1]], tiny[2:]), steps=1)
    first = (SPLIT_STEPS - 1) * len(PARTS) + 1  # the call before the first part empties what was
    assert measured["memory_split"] == dict(zip(PARTS, itertools.count(first), strict=False))


def test_energy_is_that_of_the_hours(tiny, monkeypatch):
    watts = iter([100, 200, 600])
    monkeypatch.setattr("benchmark.throughput.train.power", lambda device: next(watts))
    measured = measure(load_recipe([tiny[1]], tiny[2:]), steps=1)
    assert measured["kilowatt_hours"] == pytest.approx(measured["hours"] * 0.3)


def test_a_trace_is_written_on_request(tiny, tmp_path):
    throughput.main(["train", *tiny, "--steps", "1", "--profile", str(tmp_path / "trace.json")])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum("Optimizer.step" in str(event.get("name")) for event in events) == 2


@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_evaluation_is_told_beside_its_forward_passes(tiny, capsys, head):
    measured = run(tiny, capsys, "eval", "--steps", "2", "--model.head", head, "--train.eval_batch_size", "2")
    assert measured["image_size"] == "128x256" and measured["classes"] == 6
    assert measured["over_forward"] == pytest.approx(measured["seconds"] / measured["forward_seconds"])
    assert measured["images_per_second"] * measured["seconds"] == pytest.approx(1)


def test_evaluation_counts_metrics_that_need_logits(tiny, capsys, monkeypatch):
    sizes = []

    class OfLogits(MeanIoU):
        needs_logits = True

        def count(self, prediction, reference, logits=None):
            sizes.append(logits.shape)
            return super().count(prediction, reference)

    monkeypatch.setitem(EVALUATORS, "mean_iou", OfLogits)
    run(tiny, capsys, "eval", "--steps", "1", "--train.eval_batch_size", "2")
    assert set(sizes) == {(6, 128, 256)}


def test_all_measures_one_part_after_the_other(tiny, monkeypatch):
    measured = []
    for name in ("data", "train", "evaluation", "loss"):
        monkeypatch.setattr(throughput, f"measure_{name}", lambda *_, name=name: measured.append(name))
    throughput.main(["all", *tiny])
    assert measured == ["data", "train", "evaluation", "loss"]


def test_parts_are_timed_in_turns():
    calls = []
    parts = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = time_in_turns(parts, 3, torch.device("cpu"))
    assert calls == list("ababab") and len(timings["a"].wall) == len(timings["b"].cpu) == 3
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0), (1.0, 2.0, 9.0))
    assert (timing.seconds, timing.cpu_seconds, timing.spread) == (3.0, 2.0, (4 - 2) / 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: part"),
        (["lost"], "choose from"),
        (["train"], "name one with --recipe"),
        (["loss", "--recipe", "recipes/quickstart.yaml"], "takes no recipe"),
        (["train", "--steps", "0"], "above 0"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, expected):
    with pytest.raises(UserError, match=expected):
        throughput.main(arguments)
