"""Each reach into a library's private parts is in one file, and fails here when the library changes."""

import ast
import inspect
import subprocess
from collections import defaultdict

import datasets
import multiprocess.util
import torch
from accelerate.utils.memory import should_reduce_batch_size
from launching import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

# What begins with one underscore and is not ours: the only file that may use it.
KNOWN = {
    "_apply": "benchmark/models/encoder.py",  # torch: every .to() comes through it
    "_buffers": "benchmark/models/encoder.py",
    "_non_persistent_buffers_set": "benchmark/models/encoder.py",
    "_no_split_modules": "benchmark/training/build.py",  # transformers: what FSDP wraps
    "_inductor": "benchmark/training/launch.py",  # torch: its compiler's settings
    "_foreach_lerp_": "benchmark/training/optim.py",  # torch: one kernel for all weights
    "_fingerprint": "data_scripts/hub.py",  # datasets: of a dataset's content and its path
    "_output_dir": "data_scripts/builder.py",
    "_prepare_split_single": "data_scripts/builder.py",
    "_download_and_prepare": "data_scripts/builder.py",
    "torch.utils._python_dispatch": "benchmark/throughput/loss.py",
}


def test_no_other_private_part_is_used_and_each_in_one_file():
    found = defaultdict(set)
    names = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in names:
        if not name.startswith(("benchmark/", "data_scripts/", "train.py")):
            continue
        tree = ast.parse((ROOT / name).read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
                found[node.module].add(name)
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            mine = isinstance(node, ast.Attribute) and (node.attr in own or node.attr == "_exit")
            stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            on_self = private and isinstance(node.value, ast.Name) and node.value.id == "self"
            if private and not mine and not (stored and on_self):
                found[node.attr].add(name)
        for function in functions:
            overrides = "super()" in ast.unparse(function)
            if function.name.startswith("_") and not function.name.startswith("__") and overrides:
                found[function.name].add(name)
    ours = {"_zip", "_file", "_open", "_tables_valid", "_replace"}  # of our own objects, and a named tuple's method
    assert {key: files for key, files in found.items() if key not in ours} == {
        key: {file} for key, file in KNOWN.items()
    }


def test_the_private_parts_are_still_there():
    builder = datasets.GeneratorBasedBuilder
    assert {"self", "dl_manager"} <= set(inspect.signature(builder._download_and_prepare).parameters)
    assert "gen_kwargs" in inspect.signature(builder._prepare_split_single).parameters
    assert "_output_dir" in inspect.getsource(datasets.DatasetBuilder)
    assert datasets.Dataset.from_dict({"a": [1]})._fingerprint != datasets.Dataset.from_dict({"a": [2]})._fingerprint
    assert hasattr(PreTrainedModel, "_no_split_modules")
    assert torch._inductor.config.deterministic is False
    averages = [torch.zeros(2), torch.zeros(1)]
    torch._foreach_lerp_(averages, [torch.ones(2), torch.ones(1)], 0.25)
    assert [average.tolist() for average in averages] == [[0.25, 0.25], [0.25]]
    module = torch.nn.Module()
    module.register_buffer("table", torch.zeros(1), persistent=False)
    assert module._non_persistent_buffers_set == {"table"} and "table" in module._buffers
    assert should_reduce_batch_size(torch.OutOfMemoryError("CUDA out of memory."))
    assert hasattr(TorchDispatchMode, "__torch_dispatch__")


def test_multiprocess_calls_what_is_registered_in_a_child_as_long_as_it_lives():
    """By which the worker processes of a build learn that they are its children."""
    parent, child = multiprocess.Pipe()

    class Registered:
        def start(self):
            child.send("started")

    registered = Registered()
    multiprocess.util.register_after_fork(registered, Registered.start)
    for alive in (True, False):
        process = multiprocess.get_context("fork").Process(target=lambda: None)
        process.start()
        process.join()
        assert parent.poll(1 if alive else 0.2) == alive
        if alive:
            assert parent.recv() == "started"
            del registered
