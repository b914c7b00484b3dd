"""Checkpoints that are whole or not there: written aside, verified when read, and never unpickled.

A checkpoint is a folder checkpoints/step-00001000 with model.safetensors, optimizer.safetensors, state.json and
manifest.json. The manifest says step, recipe and world size, names every other file's size and sha256, and ends with
its own.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from benchmark.errors import UserError

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"  # in the run folder
MANIFEST = "manifest.json"
OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Progress:
    """What a run knows besides weights and moments: saved with them, as JSON."""

    step: int = 0  # optimizer steps done
    reported: int = 0  # steps whose metrics are written: one less than `step` where an evaluation was cut off
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of metrics
    train_seconds: float = 0.0
    logged_seconds: float = 0.0  # train_seconds at the last line of metrics
    eval_seconds: float = 0.0
    digest: str = ""  # of the training data
    scaler: dict = field(default_factory=dict)  # of fp16's gradients

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that the block takes to `what`."""
        start = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - start)


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    recipe: dict[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint under `folder`, then remove all but the newest `keep` up to it.

    Later ones go first: the run would have gone on from them if they were whole.

    Every process calls it, since sharded tensors are gathered together; the main one writes. DeepSpeed's optimizer is
    left out.

    Args:
        recipe: the keys that make the experiment; `find_checkpoint` asks for the same.

    Raises:
        UserError: a weight is not finite, so that the checkpoint would be of no use.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        tensors = {"model": accelerator.get_state_dict(model)}
    else:
        weights, state = get_state_dict(model, optimizer, options=OPTIONS)
        tensors = {"model": weights, "optimizer": _flatten(state.get("state", {}))}
    if not accelerator.is_main_process:
        return
    step = progress.step
    for name, weight in tensors["model"].items():
        if not weight.isfinite().all():
            raise UserError(
                f"The weight {name} is not finite after step {step}, which is therefore not saved: "
                "lower optim.lr or take train.precision fp32."
            )
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.incomplete"
    for left in folder.glob(".step-*.incomplete"):  # by saves that were cut off
        shutil.rmtree(left)
    aside.mkdir(parents=True)
    _sync(folder.parent)
    # safetensors' own writer would leave files that only their owner can read.
    files = {
        f"{name}.safetensors": safetensors.torch.save({key: value.contiguous() for key, value in values.items()})
        for name, values in tensors.items()
    }
    files["state.json"] = json.dumps(asdict(progress)).encode()
    about = {"step": step, "recipe": _recipe_hash(recipe), "world_size": accelerator.num_processes}
    entries = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    for name, data in {**files, MANIFEST: _signed({**about, "files": entries})}.items():
        write_durably(aside / name, data)
    _sync(aside)
    shutil.rmtree(target, ignore_errors=True)  # one of the same step that was found broken
    aside.rename(target)
    _sync(folder)
    _prune(folder, target, keep)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but `newest` and the `keep` - 1 before it."""
    checkpoints = list_checkpoints(folder)
    end = checkpoints.index(newest) + 1
    for path in checkpoints[end:] + checkpoints[: max(0, end - keep)]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path, accelerator: Accelerator, recipe: dict[str, Any]) -> Path | None:
    """The newest checkpoint under `folder` that is whole and of this recipe; None where there is none.

    One that is not is skipped with a warning that says why. The main process looks, and all take what it found,
    whatever a shared disk shows them.
    """
    found = [_find_checkpoint(folder, _recipe_hash(recipe)) if accelerator.is_main_process else None]
    return broadcast_object_list(found)[0]


def _find_checkpoint(folder: Path, recipe_hash: str) -> Path | None:
    for path in reversed(list_checkpoints(folder)):
        problem = find_problem(path)
        if problem is None and json.loads((path / MANIFEST).read_bytes())["recipe"] != recipe_hash:
            problem = "it was written by a run of another recipe"
        if problem is None:
            return path
        logger.warning("The checkpoint %s is skipped: %s.", path, problem)
    return None


def load_checkpoint(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Load a checkpoint that was found whole. Every process calls it.

    Raises:
        UserError: it was written under DeepSpeed, or is to be loaded under it.
    """
    moments_file = path / "optimizer.safetensors"
    if accelerator.distributed_type == DistributedType.DEEPSPEED or not moments_file.exists():
        raise UserError(
            f"{path} cannot be gone on with from or to DeepSpeed, which can only pickle its optimizer's state: "
            "name another output.dir, and take accelerate_configs/fsdp.yaml for a run that may be resumed."
        )
    # Read whole: tensors that are views of a mapped file would outlive the file, which is pruned later.
    moments = _unflatten(safetensors.torch.load(moments_file.read_bytes()))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=safetensors.torch.load((path / "model.safetensors").read_bytes()),
        optim_state_dict={"state": moments, "param_groups": _groups(model, optimizer)},
        options=OPTIONS,
    )
    return Progress(**json.loads((path / "state.json").read_text()))


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def find_problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None where every byte is as it was written."""
    try:
        signed = (path / MANIFEST).read_bytes()
        manifest = json.loads(signed)
        if _signed({key: value for key, value in manifest.items() if key != "sha256"}) != signed:
            return f"{MANIFEST} is not what was written (its sha256 differs)"
        for name, entry in manifest["files"].items():
            data = (path / name).read_bytes()
            if len(data) != entry["size"]:
                return f"{name} has {len(data)} bytes in place of {entry['size']}"
            if _sha256(data) != entry["sha256"]:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _signed(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes, its own sha256 the last entry."""
    return json.dumps({**manifest, "sha256": _sha256(json.dumps(manifest).encode())}, indent=1).encode()


def _recipe_hash(recipe: dict[str, Any]) -> str:
    return _sha256(json.dumps(recipe, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    _sync(path.parent)


def publish_files(folder: Path) -> None:
    """See a folder's files to the disk, in the umask's modes: some writers leave them to their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
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
