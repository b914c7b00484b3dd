"""Checkpoints that are whole or not there: written under another name, verified when read, and never unpickled.

A checkpoint is a folder checkpoints/step-00001000 with model.safetensors, optimizer.safetensors, ema.safetensors (where
the run averages its weights), state.json and manifest.json, which says step, identity and world size, and the sums of
the other files.
"""

import json
import logging
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
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_state_dict,
)

from benchmark.errors import UserError
from benchmark.reporting import run_folder
from benchmark.reporting.manifest import MANIFEST, Damaged, encode_manifest, entry, read_files, read_manifest
from benchmark.reporting.run_folder import sync, writing
from benchmark.training.launch import on_main_process
from benchmark.training.optim import MovingAverage
from benchmark.training.step import gather_weights

logger = logging.getLogger(__name__)
OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Progress:
    """What a run knows besides weights and moments; saved with them, as JSON.

    A run that is asked to end during an evaluation has made the step before it, but has not logged it.
    """

    step: int = 0  # optimizer steps made
    logged_step: int = 0  # steps whose metrics are written
    saved_step: int = 0  # of the last checkpoint
    losses: list[dict[str, float]] = field(default_factory=list)  # of the steps since the last line of metrics
    train_seconds: float = 0.0
    logged_seconds: float = 0.0  # train_seconds at the last line of metrics
    eval_seconds: float = 0.0
    best: float = -1.0  # the best mIoU so far, of the first validation dataset
    best_step: int = 0
    digests: dict[str, str] = field(default_factory=dict)  # of the content of the datasets, by their names
    scaler: dict = field(default_factory=dict)  # of fp16's gradients

    @classmethod
    def from_json(cls, data: bytes) -> "Progress":
        """What state.json holds; older files say `reported`, have losses without parts and one digest, of the training
        data, whose name here is "".
        """
        saved = json.loads(data)
        if "digest" in saved:
            saved["digests"] = {"": saved.pop("digest")}
        if "reported" in saved:
            saved["logged_step"] = saved.pop("reported")
        saved["losses"] = [loss if isinstance(loss, dict) else {"loss": loss} for loss in saved["losses"]]
        return cls(**saved | {"saved_step": saved["step"]})

    def unlogged_steps(self, steps: int) -> range:
        """The steps up to the last one, `steps`, whose metrics are not written yet."""
        return range(self.logged_step + 1, steps + 1)

    def is_made(self, step: int) -> bool:
        """Whether the optimizer has made `step`."""
        return step <= self.step

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that the block takes to `what`."""
        start = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - start)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were read and are what was written."""

    path: Path
    files: dict[str, bytes]


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    identity: str,
    keep: int,
    average: MovingAverage | None = None,
) -> None:
    """Write a checkpoint under `folder`, then remove all but the newest `keep` up to it.

    Later ones are removed first: the run would have resumed from them if they were whole.

    Every process calls it, because sharded tensors are gathered together; the main one writes. DeepSpeed's optimizer
    is left out.

    Args:
        identity: the hash of the run's identity, which `find_checkpoint` compares.
        average: of the weights, where the run has one.

    Raises:
        UserError: a weight is not finite, so that the checkpoint would be of no use, or the disk refuses to be written.
    """
    tensors = {"model": gather_weights(accelerator, model)}
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        state = get_optimizer_state_dict(model, optimizer, options=OPTIONS)
        tensors["optimizer"] = _flatten(state.get("state", {}))
    if not accelerator.is_main_process:
        return
    if average:
        tensors["ema"] = average.state_dict()
    step = progress.step
    for name, weight in tensors["model"].items():
        if not weight.isfinite().all():
            raise UserError(
                f"The weight {name} is not finite after step {step}, which is therefore not saved: "
                "lower optim.lr or set train.precision to fp32."
            )
    # safetensors' own writer would leave files that only their owner can read.
    files = {
        f"{name}.safetensors": safetensors.torch.save({key: value.contiguous() for key, value in values.items()})
        for name, values in tensors.items()
    }
    files["state.json"] = json.dumps(asdict(progress)).encode()
    about = {"step": step, "identity": identity, "world_size": accelerator.num_processes}
    files[MANIFEST] = encode_manifest(about, {name: entry(data) for name, data in files.items()})
    target = folder / f"step-{step:08d}"
    _write_folder(target, files)
    _prune(folder, target, keep)


def _write_folder(target: Path, files: dict[str, bytes]) -> None:
    """Write a folder that is whole or not there."""
    folder = target.parent
    partial = folder / f".{target.name}.incomplete"
    with writing(target):
        for left in folder.glob(".step-*.incomplete"):  # by saves that were interrupted
            shutil.rmtree(left)
        if not folder.parent.is_dir():
            raise FileNotFoundError(str(folder.parent))
        partial.mkdir(parents=True)
    sync(folder.parent)
    for name, data in files.items():
        run_folder.write_durably(partial / name, data)
    sync(partial)
    shutil.rmtree(target, ignore_errors=True)  # one of the same step that was found damaged
    with writing(target):
        partial.rename(target)
    sync(folder)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but `newest` and the `keep` - 1 before it."""
    checkpoints = list_checkpoints(folder)
    if newest not in checkpoints:  # somebody removed the run folder meanwhile
        with writing(folder):
            raise FileNotFoundError(str(folder))
    end = checkpoints.index(newest) + 1
    for path in checkpoints[end:] + checkpoints[: max(0, end - keep)]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path, accelerator: Accelerator, identity: str) -> Checkpoint | None:
    """The newest checkpoint under `folder` that is whole and of this identity; None where there is none.

    One that is not is skipped with a warning that says why. The main process decides for all of them. Each process
    reads the files once, and verifies what it has read.
    """
    found = _newest(folder, identity) if accelerator.is_main_process else None
    path = on_main_process(accelerator, lambda: found and found.path)
    if path is None or found is not None:
        return found
    try:
        return read_checkpoint(path, identity)
    except Damaged as error:
        raise UserError(f"{path} is not on every machine as it was written ({error}): share output.dir.") from None


def _newest(folder: Path, identity: str) -> Checkpoint | None:
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path, identity)
        except Damaged as problem:
            logger.warning("The checkpoint %s is skipped: %s.", path, problem)
    return None


def read_checkpoint(path: Path, identity: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        Damaged: a file is not what was written, or the checkpoint is not of `identity`.
    """
    manifest = read_manifest(path)
    # Checkpoints that were saved by older versions have no identity: recipe.yaml beside them has been compared.
    if identity is not None and manifest.get("identity", identity) != identity:
        raise Damaged("it was written by a run of another recipe")
    return Checkpoint(path, read_files(path, manifest))


def load_checkpoint(
    checkpoint: Checkpoint,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None = None,
) -> Progress:
    """Load weights, moments and the weights' average, and return the progress. Every process calls it.

    Raises:
        UserError: it was written under DeepSpeed, or is to be loaded under it.
    """
    files, moments_file = checkpoint.files, "optimizer.safetensors"
    if accelerator.distributed_type == DistributedType.DEEPSPEED or moments_file not in files:
        raise UserError(
            f"{checkpoint.path} cannot be resumed from or to DeepSpeed, which can only pickle its optimizer's state: "
            "name another output.dir, and use accelerate_configs/fsdp.yaml for a run that may be resumed."
        )
    set_state_dict(
        model,
        optimizer,
        model_state_dict=safetensors.torch.load(files["model.safetensors"]),
        optim_state_dict={
            "state": _unflatten(safetensors.torch.load(files[moments_file])),
            "param_groups": _groups(model, optimizer),
        },
        options=OPTIONS,
    )
    if average:
        average.load_state_dict(safetensors.torch.load(files["ema.safetensors"]))
    return Progress.from_json(files["state.json"])


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name[5:].isdigit() and path.is_dir())


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's own groups, parameters by name: a checkpoint has what was learned, the recipe the rest."""
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
