"""The processes of a run: how they start, and what they agree on."""

import os
import platform
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import joblib
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)

from benchmark.data.step_plan import StepPlan
from benchmark.errors import UserError
from benchmark.recipe.schema import Recipe
from benchmark.reporting.tracking import check_trackers
from benchmark.training.cpu import set_up_cpu
from data_scripts.tables import format_table

Result = TypeVar("Result")
# Collectives on the device wait longer than the agreement of `preemption`, because they end the process silently.
COLLECTIVE_TIMEOUT = timedelta(minutes=40)
MOST_WORKERS = 16  # each holds batches in shared memory
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # variables of accelerate's and torch's launchers


def start_processes(recipe: Recipe) -> Accelerator:
    """Accelerate as the recipe and the launcher say; one sentence where they do not fit together."""
    transformers.utils.logging.disable_progress_bar()
    check_trackers(recipe.output.trackers)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if recipe.train.precision == "fp16" and on_cpu:
        raise UserError("train.precision fp16 needs a GPU: use bf16 or fp32 on a CPU.")
    if on_cpu:
        torch.set_num_threads(num_threads())
        set_up_cpu(recipe.train.precision, recipe.data.crop, int(recipe.model.patch_size))
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when the device is first used
        # Without warn_only, under which attention would stay as it is.
        torch.use_deterministic_algorithms(True)
        torch._inductor.config.deterministic = True  # kernels are not chosen by how long they take
    # The class token's gradient is a view of the tokens'; DDP copies its few numbers and warns in every process.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(recipe.train.precision, recipe.train.precision),
        log_with=list(recipe.output.trackers),
        project_dir=recipe.output.dir,
        kwargs_handlers=[
            # A weight that is used several times is cast each time, so that its gradients are summed in fp32.
            AutocastKwargs(cache_enabled=False),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
        ],
    )
    if world_size != accelerator.num_processes:
        raise UserError(
            f"{world_size} processes were launched, but each would train alone: on a CPU launch them with "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 --num_processes {world_size}."
        )
    accelerator.wait_for_everyone()  # a process that ended sooner would fail those that are still connecting
    check_settings(recipe, accelerator.distributed_type)
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not accelerator.is_fsdp2:
        raise UserError(
            "FSDP was asked for, but accelerate supports it, as version 2, for several GPU processes only: "
            "launch with accelerate_configs/fsdp.yaml on GPUs or use another configuration."
        )
    if accelerator.is_fsdp2:
        # The recipe's autocast over fp32 weights, as everywhere else: FSDP's own policy would train other numbers.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def check_settings(recipe: Recipe, kind: DistributedType) -> None:
    """Raise UserError where a setting does not work with sharded weights."""
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    for key, value in (("train.ema_decay", recipe.train.ema_decay), ("model.lora_rank", recipe.model.lora_rank)):
        if value:
            raise UserError(f"{key} does not work with sharded weights: use accelerate_configs/multi_gpu.yaml.")
    if recipe.optim.clip_norm and kind == DistributedType.DEEPSPEED:
        raise UserError("optim.clip_norm does not work under DeepSpeed: use accelerate_configs/fsdp.yaml.")


def is_launched() -> bool:
    """Whether accelerate's launcher or torchrun started this process."""
    return any(name in os.environ for name in LAUNCHERS)


def num_cores() -> int:
    """The cores that this process may use: its affinity, and its container's quota (control groups 1 and 2)."""
    return joblib.cpu_count()


def num_threads() -> int:
    """The threads of this process on a CPU: OMP_NUM_THREADS where it is set, else an equal share of the cores.

    accelerate's launcher sets OMP_NUM_THREADS to 1 where nobody has set it; that 1 does not count.
    """
    share = _share_of_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if not asked.isdigit() or int(asked) == 0:
        return share
    if asked == "1" and is_launched():
        try:
            environment = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        except OSError:  # no Linux
            return share
        if not any(variable.startswith(b"OMP_NUM_THREADS=") for variable in environment):
            return share
    return int(asked)


def num_workers(asked: int | str, device: torch.device) -> int:
    """The processes that load images for this one: `asked`, or what the machine gives where that is "auto".

    On a GPU one for each core of this process less its own, from 1 to MOST_WORKERS; on a CPU 1, because a step itself
    uses the cores.
    """
    if asked != "auto":
        return int(asked)
    return 1 if device.type == "cpu" else min(max(_share_of_cores() - 1, 1), MOST_WORKERS)


def _share_of_cores() -> int:
    """The cores of this process where the run's processes on this machine share them; at least 1."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def on_main_process(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """What `function` returns on the main process, in every process; what it raises, every process raises.

    Every process calls it. The result has to be picklable.
    """
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = error
    outcome = broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def describe_processes(accelerator: Accelerator, plan: StepPlan, precision: str, workers: int) -> str:
    """A table of what runs where, how a step is split and how many load images; every process calls it."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    places = Counter(gather_object([(platform.node(), f"{device.type} ({name})")]))
    rows = [(host, str(count), where) for (host, where), count in places.items()]
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
    return "\n".join(
        [
            format_table(rows, ("machine", "processes", "device")),
            f"{accelerator.distributed_type.value}, backend {backend}, precision {precision}",
            str(plan),
            f"{workers} worker(s) load images for each process",
        ]
    )
