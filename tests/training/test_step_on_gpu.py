"""What a step does on a GPU: it does not wait for the host, and its captured passes compute the same."""

import itertools

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from interruption import metrics
from launching import parse

from benchmark.data.loaders import copied_ahead
from benchmark.errors import UserError, as_sentence
from benchmark.throughput.train import _build as build_synthetic
from benchmark.training.launch import start_processes
from benchmark.training.loop import train

GPU = ["--train.precision", "bf16", "--train.compile", "true"]


@pytest.fixture
def other_precision():
    """A test in bf16 among others in fp32, in one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.compiler.reset()
    yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", ["false", "true"])
@pytest.mark.parametrize("settings", [["--train.compile", "false"], ["--train.micro_batch_size", "2"]])
def test_a_step_never_waits_for_the_device(tiny, settings, cuda_graph, other_precision):
    recipe = parse([*tiny, *GPU, *settings, "--train.cuda_graph", cuda_graph])
    accelerator = start_processes(recipe)
    step, batches = build_synthetic(recipe, accelerator)
    numbers = itertools.count(1)
    for _ in range(2):
        step(next(numbers), batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [step(next(numbers), batches) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outputs[0]["loss"].item() != outputs[1]["loss"].item() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["linear", "mask2former"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_captured_run_is_bitwise_the_other(tiny, tmp_path, head, compiled, other_precision):
    flags = [*tiny, *GPU, "--train.compile", compiled, "--train.deterministic", "true", "--train.log_every", "1"]
    flags += ["--train.micro_batch_size", "2", "--optim.clip_norm", "1", "--train.ema_decay", "0.5"]
    flags += ["--model.head", head]
    found = {}
    for cuda_graph in ("false", "true"):
        folder = tmp_path / cuda_graph
        train(parse([*flags, "--train.cuda_graph", cuda_graph, "--output.dir", str(folder)]))
        losses = [line["train/loss"] for line in metrics(folder) if "train/loss" in line]
        found[cuda_graph] = losses, safetensors.torch.load_file(folder / "model/model.safetensors")
    assert found["true"][0] == found["false"][0] and len(found["true"][0]) == 6
    for name, weight in found["false"][1].items():
        assert torch.equal(weight, found["true"][1][name]), name


@pytest.mark.gpu
def test_a_batch_that_is_copied_ahead_is_whole():
    device, size = torch.device("cuda"), 2**22
    batches = ({"number": torch.full((size,), number).pin_memory()} for number in range(20))
    matrix, sums = torch.randn(2048, 2048, device=device), []
    for batch in copied_ahead(batches, device):
        matrix = matrix @ matrix / 2048  # so that the device is behind the host
        sums.append(batch["number"].sum())
    assert [int(found) for found in sums] == [size * number for number in range(20)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_cannot_be_captured_is_a_sentence(tiny):
    with pytest.raises(UserError, match=r"train.cuda_graph needs a CUDA GPU: set it to auto\."):
        train(parse([*tiny, "--train.cuda_graph", "true"]))


def test_a_kernel_that_is_not_deterministic_is_a_sentence():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as raised:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert (
        as_sentence(raised.value)
        == "put_ has no deterministic kernel on this device: set train.deterministic to false."
    )


@pytest.mark.gpu
def test_on_a_gpu_what_cannot_be_captured_is_a_sentence(tiny):
    with pytest.raises(UserError, match=r"train.cuda_graph does not work with the eomt head: set it to auto"):
        train(parse([*tiny, "--model.head", "eomt", "--model.eomt.num_blocks", "1", "--train.cuda_graph", "true"]))
