"""Training processes that are killed, signalled or held up at a chosen event.

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
FORKS.set_forkserver_preload(["benchmark.training"])


@dataclass(frozen=True)
class Blow:
    """What happens to the process `rank` when it comes to an event for the `count`-th time.

    Events: "dataset", before one is prepared; "step", after the optimizer's; "evaluate", after an image was scored;
    "write", in the middle of writing a file of a checkpoint; "rename", before it gets its name; "prune", before an old
    one goes; "log", after a line of metrics.
    """

    event: str
    count: int
    number: int = signal.SIGKILL  # SIGSTOP holds a process up
    rank: int = 0
    launcher: bool = False  # it happens to the parent of that process

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name} at {self.event} {self.count}, rank {self.rank}"


def run(
    flags: list[str],
    log: Path,
    processes: int = 1,
    blow: Blow | None = None,
    environment: dict | None = None,
    **settings,
) -> list[int]:
    """Train with `flags` and hand back each process's exit status; their output goes to `log`.

    As a launcher does, the others are killed when one dies. Settings replace constants: preemption__AGREEMENT_TIMEOUT,
    or package.module__NAME of another package.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = [
        FORKS.Process(target=_train, args=(flags, log, rank, processes, port, blow, environment, settings))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    while any(child.exitcode is None for child in children):
        failed = [child.exitcode for child in children if child.exitcode]
        if failed:
            patience = 0 if -signal.SIGKILL in failed else 3  # seconds, for those that end by themselves
            for child in children:
                child.join(patience)
                child.kill()
        time.sleep(0.02)
    return [child.exitcode for child in children]


def _train(flags, log, rank, processes, port, blow, environment, settings) -> None:
    # A process takes the machine's cores by as many as share it; here one.
    cores = str(max(processes, len(os.sched_getaffinity(0))))
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": cores} | (
        environment or {}
    )
    multiprocessing.set_start_method("fork", force=True)  # of the workers that load data
    if processes > 1:
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= address | {"WORLD_SIZE": str(processes)}
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Only now, for this module is also imported by tests that need no torch.
    from benchmark.command_line import CommandParser
    from benchmark.errors import exit_with_one_sentence
    from benchmark.training import train

    if os.environ.get("ACCELERATE_USE_FSDP") and processes > 1:
        _shard_on_the_cpu()
    for name, value in settings.items():
        module, constant = name.split("__")
        setattr(importlib.import_module(module if "." in module else f"benchmark.{module}"), constant, value)
    if blow and blow.rank == rank:
        strike(blow)
    if "FIRST_GRADIENTS" in os.environ and rank == 0:
        _save_first_gradients(os.environ["FIRST_GRADIENTS"])
    with exit_with_one_sentence():
        parser = CommandParser()
        parser.add_recipe()
        train(parser.parse_recipe(flags)[1])


def _shard_on_the_cpu() -> None:
    """Make accelerate believe in GPUs until it has settled for FSDP, which it otherwise leaves out without a word."""
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


def strike(blow: Blow) -> None:
    import torch

    from benchmark import assembly, checkpoint, evaluation, tracking

    seen = 0

    def happen() -> None:
        nonlocal seen
        seen += 1
        if seen == blow.count:
            os.kill(os.getppid() if blow.launcher else os.getpid(), blow.number)

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

    def write_half_way(path, data, original=checkpoint.write_durably) -> None:
        if path.parent.parent.name == "checkpoints":
            path.write_bytes(data[: len(data) // 2])
            happen()
        original(path, data)

    if blow.event == "write":
        checkpoint.write_durably = write_half_way
    elif blow.event == "dataset":
        around(assembly, "prepare_dataset", before=True)
    elif blow.event == "step":
        around(torch.optim.AdamW, "step")
    elif blow.event == "evaluate":
        around(evaluation, "confusion_matrix")
    elif blow.event == "log":
        around(tracking.Tracking, "log")
    else:
        original = {"rename": Path.rename, "prune": checkpoint.shutil.rmtree}[blow.event]

        def before(path, *args, **kwargs):
            ours = "step-" in Path(path).name and (blow.event == "rename" or not kwargs)
            if ours:
                happen()
            return original(path, *args, **kwargs)

        setattr(*((Path, "rename") if blow.event == "rename" else (checkpoint.shutil, "rmtree")), before)


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
