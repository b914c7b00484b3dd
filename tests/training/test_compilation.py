"""Blocks are compiled once for all of them, and not again while a run trains and evaluates."""

import itertools

import pytest
import torch
from launching import parse
from torch import nn
from torch._dynamo.utils import counters

from benchmark.throughput.train import _build as build_synthetic
from benchmark.training.launch import start_processes


# Of each kind of block one graph that trains and one that evaluates; the decoder's first block takes expanded queries.
@pytest.mark.parametrize(
    ("encoder", "head", "graphs"),
    [
        ("test_vit4", "linear", 2),
        ("test_vit4", "mask2former", 6),
        ("vit_small_patch14_reg4_dinov2", "linear", 2),
        ("eva02_tiny_patch14_224", "linear", 2),
    ],
)
def test_steps_and_evaluations_do_not_compile_again(tiny, encoder, head, graphs, monkeypatch):
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    recipe = parse([*tiny, "--train.compile", "true", "--model.head", head, "--model.encoder", encoder])
    step, batches = build_synthetic(recipe, start_processes(recipe))
    model, numbers = step.unwrapped_model(), itertools.count(1)

    @torch.no_grad()
    def evaluate():
        model.eval()(torch.zeros(recipe.train.eval_batch_size, 3, *recipe.data.crop))
        model.train()

    for _ in range(3):
        step(next(numbers), batches), evaluate()
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
