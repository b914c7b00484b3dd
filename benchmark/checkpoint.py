"""Checkpoints that are whole or not there: written aside, verified when read, and never unpickled.

A checkpoint is a folder checkpoints/step-00001000 with model.safetensors, optimizer.safetensors, state.json and
manifest.json; the manifest names every other file's size and sha256.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
    main: bool,
) -> None:
    """Write the checkpoint of `step` under `folder`, then remove all but the newest `keep`.

    Every process calls it, since sharded tensors are gathered together; the `main` one writes.

    Args:
        state: what else is needed to go on, as JSON.
    """
    weights, optimizer_state = get_state_dict(model, optimizer, options=OPTIONS)
    if not main:
        return
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.incomplete"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    files = {
        # safetensors' own writer would leave files that only their owner can read.
        "model.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in weights.items()}),
        "optimizer.safetensors": safetensors.torch.save(_flatten(optimizer_state["state"])),
        "state.json": json.dumps({"step": step, **state}).encode(),
    }
    manifest = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    for name, data in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
        write_durably(aside / name, data)
    _sync_folder(aside)
    shutil.rmtree(target, ignore_errors=True)  # one of the same step that was found broken
    aside.rename(target)
    _sync_folder(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Load the newest checkpoint under `folder` that is whole, and return its state; None where there is none.

    A broken one is skipped with a warning that says what is wrong with it.
    """
    for path in reversed(list_checkpoints(folder)):
        if problem := find_problem(path):
            logger.warning("The checkpoint %s is skipped: %s.", path, problem)
            continue
        moments = _unflatten(safetensors.torch.load_file(path / "optimizer.safetensors"))
        set_state_dict(
            model,
            optimizer,
            model_state_dict=safetensors.torch.load_file(path / "model.safetensors"),
            optim_state_dict={"state": moments, "param_groups": _groups(model, optimizer)},
            options=OPTIONS,
        )
        return json.loads((path / "state.json").read_text())
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def find_problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None where every byte is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, entry in manifest.items():
            data = (path / name).read_bytes()
            if len(data) != entry["size"]:
                return f"{name} has {len(data)} bytes in place of {entry['size']}"
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, its name holds the old content or the new."""
    aside = path.with_name(f".{path.name}.incomplete")
    write_durably(aside, data)
    aside.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's own groups, parameters by name: a checkpoint says what was learned, the recipe how to go on."""
    names = {parameter: name.removeprefix("module.") for name, parameter in model.named_parameters()}
    return [
        {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]


def _flatten(state: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{parameter}/{key}": value.contiguous() for parameter, values in state.items() for key, value in values.items()
    }


def _unflatten(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, key = name.split("/")
        state.setdefault(parameter, {})[key] = value
    return state
