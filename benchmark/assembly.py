"""From a recipe to the parts of a run: processes, datasets, model."""

import os
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    gather_object,
    parse_flag_from_env,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import data_scripts
from benchmark.errors import UserError
from benchmark.evaluation import Evaluation, evaluate
from benchmark.micro_batch import share_of_step
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.encoder import encoder_defaults
from benchmark.models.encoder_checkpoint import load_encoder_weights
from benchmark.models.modeling import SegmentationModel, parameter_counts
from benchmark.preemption import COLLECTIVE_TIMEOUT
from benchmark.recipe import Recipe
from benchmark.tracking import check_trackers
from data_scripts import PreparedDataset


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate as the recipe and the launcher say; one sentence where they do not fit together."""
    transformers.utils.logging.disable_progress_bar()
    check_trackers(recipe.output.trackers)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    share_of_step(recipe, world_size)
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if recipe.train.precision == "fp16" and on_cpu:
        raise UserError("train.precision fp16 needs a GPU: take bf16 or fp32 on a CPU.")
    if on_cpu:
        # The launcher allows one thread to each process, whatever the machine has.
        torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when the device is first used
        # A kernel without a deterministic form is warned of by its name, and not refused.
        torch.use_deterministic_algorithms(True, warn_only=True)
    # The class token's gradient is a view of the tokens'; DDP copies its few numbers and warns in every process.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(recipe.train.precision, recipe.train.precision),
        log_with=list(recipe.output.trackers),
        project_dir=recipe.output.dir,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
        ],
    )
    if world_size != accelerator.num_processes:
        raise UserError(
            f"{world_size} processes were launched, but each would train alone: on a CPU launch them with "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 --num_processes {world_size}."
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not accelerator.is_fsdp2:
        raise UserError(
            "FSDP was asked for, and accelerate gives it, as version 2, to several GPU processes alone: "
            "launch with accelerate_configs/fsdp.yaml on GPUs or take another configuration."
        )
    if accelerator.is_fsdp2:
        # The recipe's autocast over fp32 weights, as everywhere else: FSDP's own policy would train other numbers.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def num_cores() -> int:
    """The cores that this process may use; on macOS, which cannot tell, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle_gradient_buckets(model: nn.Module, config: SegmentationConfig, accelerator: Accelerator) -> None:
    """One backward pass of a loss of zero, whose gradients are thrown away.

    DDP sums gradients by buckets, and orders them anew after its first backward pass: without this, the first step
    after a resume would sum in another order than the same step of a run that was not interrupted.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    labels = torch.zeros(1, *config.crop_size, dtype=torch.long, device=accelerator.device)
    pixel_values = torch.zeros(1, 3, *config.crop_size, device=accelerator.device)
    outputs = model(pixel_values=pixel_values, labels=labels, positions=labels[:, 0, 0])
    accelerator.backward(outputs.loss * 0)
    model.zero_grad()


def processes_in_words(recipe: Recipe, accelerator: Accelerator, micro: int) -> str:
    """A table of what runs where; every process calls it."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    places = Counter(gather_object([(platform.node(), f"{device.type} ({name})")]))
    width = max(len(host) for host, _ in [*places, ("machine", "")])
    lines = [f"{'machine':<{width}}  processes  device"]
    lines += [f"{host:<{width}}  {count:>9}  {where}" for (host, where), count in places.items()]
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
    lines += [f"{accelerator.distributed_type.value}, backend {backend}, precision {recipe.train.precision}"]
    return "\n".join([*lines, step_in_words(recipe, accelerator.num_processes, micro)])


def step_in_words(recipe: Recipe, processes: int, micro: int) -> str:
    total = recipe.train.global_batch_size
    return (
        f"a step: {processes} process(es) x {total // processes // micro} accumulated x micro batch {micro} = {total}"
    )


def prepare_datasets(
    recipe: Recipe, accelerator: Accelerator, names: Sequence[str] | None = None
) -> dict[str, PreparedDataset]:
    """The datasets that the recipe names; the machine's first process builds what is missing, the others wait."""
    names = dict.fromkeys(names or [recipe.data.train, *recipe.data.val])
    with accelerator.local_main_process_first():
        datasets = {name: prepare_dataset(recipe, name) for name in names}
    for key, split, needed in (("train", "train", [recipe.data.train]), ("val", "validation", recipe.data.val)):
        for name in names:
            if name in needed and split not in datasets[name].splits:
                raise UserError(f"The dataset {name} has no {split} split: name another one in data.{key}.")
    classes = datasets[next(iter(names))].classes
    for name in names:
        if datasets[name].classes != classes:
            raise UserError(
                f"The dataset {name} has other classes than {next(iter(names))}: name one that shares them."
            )
    return datasets


def prepare_dataset(recipe: Recipe, name: str) -> PreparedDataset:
    """Build one dataset, or find it built."""
    data = recipe.data
    return data_scripts.prepare(
        name,
        root=data.root,
        cache_dir=data.cache_dir,
        allow_partial=data.allow_partial,
        num_proc=num_cores(),
        custom=asdict(data.custom),
    )


def model_config(recipe: Recipe, classes: Sequence[str], colors: Sequence[Sequence[int]] | None) -> SegmentationConfig:
    """The model that the recipe describes, for `classes`."""
    defaults = encoder_defaults(recipe.model.encoder)
    return SegmentationConfig(
        encoder=recipe.model.encoder,
        head=recipe.model.head,
        crop_size=recipe.data.crop,
        patch_size=int(recipe.model.patch_size),
        image_mean=recipe.model.image_mean or defaults.image_mean,
        image_std=recipe.model.image_std or defaults.image_std,
        freeze_encoder=recipe.model.freeze_encoder,
        num_points=int(recipe.model.num_points),
        seed=int(recipe.seed),
        colors=colors,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )


def build_model(recipe: Recipe, dataset: PreparedDataset) -> SegmentationModel:
    """The model with its first weights: the encoder's pretrained or random ones, and a head drawn from the seed."""
    torch.manual_seed(recipe.seed)
    model = SegmentationModel(model_config(recipe, dataset.classes, dataset.colors))
    if recipe.model.pretrained or recipe.model.checkpoint:
        load_encoder_weights(model.encoder, pretrained=recipe.model.pretrained, checkpoint=recipe.model.checkpoint)
    # What FSDP gathers at once: a block; the rest it keeps with the model, whose parts are not all called by forward.
    blocks = [*model.encoder.blocks, *getattr(model.head, "blocks", [])]
    model._no_split_modules = sorted({type(block).__name__ for block in blocks})
    if recipe.train.compile:
        model.compile_blocks()
    return model


def evaluate_datasets(
    recipe: Recipe,
    model: SegmentationModel,
    datasets: Mapping[str, PreparedDataset],
    accelerator: Accelerator,
    num_samples: int = 0,
    any_working: Callable[[bool], bool] = bool,
) -> dict[str, Evaluation]:
    """Score the unwrapped model on each validation dataset; hand back the same `num_samples` images each time.

    `any_working` is as in `evaluation.evaluate`.
    """
    evaluations = {}
    for name in recipe.data.val:
        split = datasets[name].splits["validation"]
        evaluations[name] = evaluate(
            model,
            split,
            datasets[name].classes,
            accelerator,
            batch_size=recipe.train.eval_batch_size,
            num_workers=recipe.data.num_workers,
            sample_indices=[number * len(split) // num_samples for number in range(num_samples)],
            any_working=any_working,
        )
    return evaluations


def describe(recipe: Recipe) -> None:
    """Print what a run of the recipe would be on this machine; needs neither data nor weights."""
    state = PartialState()
    micro, _ = share_of_step(recipe, state.num_processes)
    classes = data_scripts.class_names(recipe.data.train, asdict(recipe.data.custom))
    with torch.device("meta"):
        total, trained = parameter_counts(SegmentationModel(model_config(recipe, classes, None)))
    state.print(
        f"{recipe.to_yaml()}\n"
        f"parameters: {total:,}, of which {trained:,} are trained\n"
        f"{step_in_words(recipe, state.num_processes, micro)} on {state.device.type}"
    )
