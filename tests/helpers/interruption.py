"""Training processes that are killed, signalled or stopped at a chosen event.

They are forked from a process that has imported everything, which saves each the seconds of its imports; they take part
in one run as launched processes do, and their exit status can be read.
"""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["benchmark.training.loop"])


@dataclass(frozen=True)
class Interruption:
    """What is sent to the process `rank` when it reaches an event for the `count`-th time.

    Events: "dataset", before one is prepared; "step", after the optimizer's; "evaluate", after an image was scored;
    "write", in the middle of writing a file of a checkpoint; "rename", before it gets its name; "prune", before an old
    one is removed; "log", after a line of metrics.
    """

    event: str
    count: int
    number: int = signal.SIGKILL  # SIGSTOP stops a process without ending it
    rank: int = 0
    launcher: bool = False  # it is sent to the parent of that process

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name} at {self.event} {self.count}, rank {self.rank}"


def run(
    flags: list[str],
    log: Path,
    processes: int = 1,
    interruption: Interruption | None = None,
    environment: dict | None = None,
    patience: float = 10,
    **settings,
) -> list[int]:
    """Train with `flags` and return each process's exit status; their output goes to `log`.

    As a launcher does, the others are killed when one dies; they have `patience` seconds to end by themselves, unless
    it was killed. Settings replace constants of this package, such as
    training.preemption__AGREEMENT_TIMEOUT, or of huggingface_hub.
    """
    with socket.socket() as free:
        # It stays bound to its port, so that nobody else is given it; that it does not listen lets rank 0 do so.
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        children = [
            FORKS.Process(target=_train, args=(flags, log, rank, processes, port, interruption, environment, settings))
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        while any(child.exitcode is None for child in children):
            failed = [child.exitcode for child in children if child.exitcode]
            if failed:
                for child in children:
                    child.join(0 if -signal.SIGKILL in failed else patience)
                    child.kill()
            time.sleep(0.02)
    return [child.exitcode for child in children]


def _train(flags, log, rank, processes, port, interruption, environment, settings) -> None:
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | (environment or {})
    multiprocessing.set_start_method("fork", force=True)  # of the workers that load data
    if processes > 1:
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= address | {"WORLD_SIZE": str(processes)}
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Only now, for this module is also imported by tests that need no torch.
    from benchmark.errors import exit_with_one_sentence
    from benchmark.recipe.parser import CommandParser
    from benchmark.training.loop import train

    if os.environ.get("ACCELERATE_USE_FSDP") and processes > 1:
        _shard_on_the_cpu()
    for name, value in settings.items():
        module, constant = name.split("__")
        package = "" if module.startswith("huggingface_hub") else "benchmark."
        setattr(importlib.import_module(package + module), constant, value)
    if interruption and interruption.rank == rank:
        interrupt_at(interruption)
    if "FIRST_GRADIENTS" in os.environ and rank == 0:
        _save_first_gradients(os.environ["FIRST_GRADIENTS"])
    with exit_with_one_sentence():
        parser = CommandParser()
        parser.add_recipe()
        train(parser.parse_recipe(flags)[1])


def _shard_on_the_cpu() -> None:
    """Make accelerate believe that there are GPUs until it has chosen FSDP, which it otherwise drops silently."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _save_first_gradients(file: str) -> None:
    """Save the gradients with which the first optimizer step is made."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def save(optimizer, *_) -> None:
        torch.save([p.grad.clone() for group in optimizer.param_groups for p in group["params"]], file)
        hook.remove()

    hook = register_optimizer_step_pre_hook(save)


def interrupt_at(interruption: Interruption) -> None:
    import torch

    from benchmark.evaluation import mean_iou
    from benchmark.reporting import run_folder, tracking
    from benchmark.training import checkpoint
    from benchmark.training import datasets as training_datasets

    seen = 0

    def happen() -> None:
        nonlocal seen
        seen += 1
        if seen == interruption.count:
            os.kill(os.getppid() if interruption.launcher else os.getpid(), interruption.number)

    def around(owner, name: str, *, before: bool = False) -> None:
        original = getattr(owner, name)

        def replaced(*args, **kwargs):
            if before:
                happen()
            result = original(*args, **kwargs)
            if not before:
                happen()
            return result

        setattr(owner, name, replaced)

    def write_half_way(path, data, original=run_folder.write_durably) -> None:
        if path.parent.parent.name == "checkpoints":
            path.write_bytes(data[: len(data) // 2])
            happen()
        original(path, data)

    if interruption.event == "write":
        run_folder.write_durably = write_half_way
    elif interruption.event == "dataset":
        around(training_datasets, "prepare_dataset", before=True)
    elif interruption.event == "step":
        around(torch.optim.AdamW, "step")
    elif interruption.event == "evaluate":
        around(mean_iou, "confusion_matrix")
    elif interruption.event == "log":
        around(tracking.Tracking, "log")
    else:
        original = {"rename": Path.rename, "prune": checkpoint.shutil.rmtree}[interruption.event]

        def before(path, *args, **kwargs):
            ours = "step-" in Path(path).name and (interruption.event == "rename" or not kwargs)
            if ours:
                happen()
            return original(path, *args, **kwargs)

        setattr(*((Path, "rename") if interruption.event == "rename" else (checkpoint.shutil, "rmtree")), before)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def outcome(folder: Path) -> dict:
    """What makes two runs equal: the last weights and moments, the published model, the metrics."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    files = json.loads((last / "manifest.json").read_text())["files"]
    digests = {name: files[name]["sha256"] for name in ("model.safetensors", "optimizer.safetensors")}
    return {
        "step": last.name,
        **digests,
        "model": (folder / "model/model.safetensors").read_bytes(),
        "metrics": metrics(folder),
    }
