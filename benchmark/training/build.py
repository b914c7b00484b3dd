"""From a recipe to the parts of a run: datasets, model, step, reporter."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch.utils.flop_counter import FlopCounterMode

from benchmark.data.step_plan import StepPlan
from benchmark.errors import UserError
from benchmark.evaluation.loop import Evaluation, evaluate
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.encoder import encoder_defaults
from benchmark.models.encoder_checkpoint import load_encoder_weights
from benchmark.models.linear_head import inverse_frequencies
from benchmark.models.meta import without_memory
from benchmark.models.modeling import SegmentationModel, parameter_counts
from benchmark.recipe.identity import identity, protocol, public, settings
from benchmark.recipe.schema import Recipe
from benchmark.reporting.hub import Pusher
from benchmark.reporting.reporter import Reporter
from benchmark.reporting.results import describe_experiment
from benchmark.reporting.run_folder import RunFolder
from benchmark.training.checkpoint import Progress
from benchmark.training.cuda_graph import capture_passes
from benchmark.training.init_from import start_from
from benchmark.training.launch import num_workers
from benchmark.training.lora import add_adapters
from benchmark.training.memory import explain_out_of_memory, memory_advice, plan_without_trial
from benchmark.training.optim import build_optimizer, set_learning_rates
from benchmark.training.step import Step
from data_scripts.custom import Custom
from data_scripts.preparation import OWN, PreparedDataset, class_names

logger = logging.getLogger(__name__)


def model_config(
    recipe: Recipe,
    classes: Sequence[str],
    colors: Sequence[Sequence[int]] | None,
    pixels: Mapping[str, int] | None = None,
) -> SegmentationConfig:
    """The model that the recipe describes, for `classes`; `pixels` as in `class_weights`."""
    defaults = encoder_defaults(recipe.model.encoder)
    return SegmentationConfig(
        encoder=recipe.model.encoder,
        head=recipe.model.head,
        head_options=recipe.model.head_options(),
        crop_size=recipe.data.crop,
        patch_size=int(recipe.model.patch_size),
        image_mean=recipe.model.image_mean or defaults.image_mean,
        image_std=recipe.model.image_std or defaults.image_std,
        freeze_encoder=recipe.model.freeze_encoder,
        seed=int(recipe.seed),
        colors=colors,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
        class_weights=class_weights(recipe, classes, pixels),
    )


def untrained_model(recipe: Recipe) -> SegmentationModel:
    """The model that the recipe describes, with random weights; needs no data, and class weights are all 1."""
    classes = class_names(recipe.data.train, asdict(recipe.data.custom))
    return SegmentationModel(model_config(recipe, classes, None))


def class_weights(recipe: Recipe, classes: Sequence[str], pixels: Mapping[str, int] | None) -> list[float] | None:
    """What each class weighs in the loss, None where all weigh 1; UserError where a list is not of one for each class.

    Args:
        pixels: of the training split, by class; None where the dataset is not known yet: all then weigh 1.
    """
    weights = recipe.loss.class_weights
    if weights is None:
        return None
    if weights == "inverse_frequency":
        return inverse_frequencies([pixels[name] for name in classes] if pixels else [1] * len(classes))
    if len(weights) != len(classes):
        raise UserError(
            f"loss.class_weights holds {len(weights)} numbers, but {recipe.data.train} has {len(classes)} classes: "
            "give one number for each class."
        )
    return [float(weight) for weight in weights]


def check_model(recipe: Recipe) -> tuple[int, int]:
    """The parameters of the recipe's model, and how many are trained; no memory is taken for its weights.

    Raises:
        ModelError: the recipe asks for an encoder or a head that does not exist, or that cannot be as it says.
        UserError: it describes data of one's own and trains on others.
    """
    data = recipe.data
    if data.custom != Custom() and not {data.train, *data.val} & set(OWN):
        raise UserError(
            f"data.custom describes data of your own, but data.train is {data.train} and data.val {data.val}: leave "
            "out the recipe that names these, or data.custom."
        )
    with without_memory():
        model = untrained_model(recipe)
        if recipe.model.lora_rank:
            add_adapters(model.encoder, recipe.model.lora_rank)
        return parameter_counts(model)


def build_model(
    recipe: Recipe, dataset: PreparedDataset, *, load_weights: bool = True
) -> tuple[SegmentationModel, list[str]]:
    """The model with its first weights, and lines that say where they are from.

    The encoder has pretrained or random weights, the head is drawn from the seed; with model.init_from both start from
    a trained model.

    Args:
        load_weights: false where a checkpoint will replace them.
    """
    torch.manual_seed(recipe.seed)
    pixels = dataset.report["splits"]["train"]["pixels"]
    model = SegmentationModel(model_config(recipe, dataset.classes, dataset.colors, pixels))
    lines = []
    if load_weights and recipe.model.init_from:
        lines = start_from(model, recipe.model.init_from)
    elif load_weights:
        pretrained, checkpoint = recipe.model.pretrained, recipe.model.checkpoint
        lines = [str(load_encoder_weights(model.encoder, pretrained=pretrained, checkpoint=checkpoint))]
    if recipe.model.lora_rank:
        add_adapters(model.encoder, recipe.model.lora_rank)
    # What FSDP gathers at once: a block; the rest it keeps with the model, whose parts are not all called by forward.
    model._no_split_modules = sorted({type(block).__name__ for block in model.blocks})
    if recipe.train.compile:
        model.compile_blocks()
    return model, lines


def build_step(recipe: Recipe, model: SegmentationModel, plan: StepPlan, accelerator: Accelerator) -> Step:
    """The optimizer step of the recipe; `model` is on its device."""
    optim = recipe.optim
    optimizer = build_optimizer(
        model,
        lr=optim.lr,
        encoder_lr_multiplier=optim.encoder_lr_multiplier,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        eps=optim.eps,
        layer_decay=optim.layer_decay,
    )
    schedule = partial(
        set_learning_rates,
        steps=recipe.train.steps,
        power=optim.poly_power,
        schedule=optim.schedule,
        warmups=optim.warmups,
    )
    captured = captures_passes(recipe, model, accelerator)
    if captured:
        with explain_out_of_memory(*memory_advice(plan)):
            capture_passes(model, plan.micro_batch_size, accelerator)
    return Step(
        model,
        optimizer,
        schedule,
        plan,
        accelerator,
        steps=recipe.train.steps,
        clip_norm=optim.clip_norm,
        ema_decay=recipe.train.ema_decay,
        compiled=recipe.train.compile,
        keep_gradients=captured and plan.accumulation > 1,
    )


def captures_passes(recipe: Recipe, model: SegmentationModel, accelerator: Accelerator) -> bool:
    """Whether the passes of a micro batch become CUDA graphs; UserError where they should and cannot."""
    reasons = {
        "needs a CUDA GPU": accelerator.device.type == "cuda",
        "needs a single process": accelerator.num_processes == 1,
        f"does not work with the {recipe.model.head} head": model.head.capturable,
    }
    failed = [reason for reason, holds in reasons.items() if not holds]
    if recipe.train.cuda_graph is True and failed:
        raise UserError(f"train.cuda_graph {failed[0]}: set it to auto.")
    return recipe.train.cuda_graph is not False and not failed


def build_reporter(
    recipe: Recipe,
    accelerator: Accelerator,
    folder: RunFolder,
    datasets: Mapping[str, PreparedDataset],
    config: SegmentationConfig,
    counts: tuple[int, int],
    progress: Progress,
    pusher: Pusher | None,
) -> Reporter:
    """What reports the run of the recipe; `config` is the model's, and `counts` are what `check_model` returns."""
    return Reporter(
        accelerator,
        folder,
        datasets,
        config,
        counts,
        progress,
        recipe=public(recipe),
        settings=settings(recipe),
        experiment=cache(partial(describe_run, recipe)),
        pusher=pusher,
    )


def describe_run(recipe: Recipe) -> dict[str, Any]:
    """What is run, as results.json says it."""
    own = recipe.data.custom.name if recipe.data.train in ("folder", "hub") else None
    experiment = describe_experiment(
        identity(recipe), protocol(recipe), str(recipe.output.setting), dataset=own or recipe.data.train
    )
    return experiment | {"window_gflops": window_gflops(recipe)}


def window_gflops(recipe: Recipe) -> float | None:
    """The arithmetic of one window's forward pass: 2 operations for each product and sum, in 1e9.

    As torch.utils.flop_counter counts them; None where it cannot.
    """
    try:
        with without_memory():
            model = untrained_model(recipe).eval().requires_grad_(False)
            window = torch.zeros(1, 3, *recipe.data.crop)
            with FlopCounterMode(display=False) as counter:
                model(window)
    except Exception as error:  # an encoder that runs need not be one that can be counted
        logger.info("The arithmetic of %s was not counted (%s).", recipe.model.encoder, error)
        return None
    return counter.get_total_flops() / 1e9


def build_pusher(recipe: Recipe, accelerator: Accelerator, folder: RunFolder) -> Pusher | None:
    """What pushes the run to the Hub, on the main process, where the recipe says so."""
    if not (recipe.output.hub_model_id and accelerator.is_main_process):
        return None
    return Pusher(recipe.output.hub_model_id, private=recipe.output.hub_private, folder=folder.path)


def evaluate_datasets(
    recipe: Recipe,
    model: SegmentationModel,
    datasets: Mapping[str, PreparedDataset],
    accelerator: Accelerator,
    *,
    num_samples: int = 0,
    any_process: Callable[[bool], bool] | None = None,
) -> dict[str, Evaluation]:
    """Score the unwrapped model on each validation dataset; return the same `num_samples` images each time.

    `any_process` is as in `benchmark.evaluation.inference.predict_logits`.
    """
    score = partial(
        evaluate,
        model,
        accelerator=accelerator,
        batch_size=recipe.train.eval_batch_size,
        num_workers=num_workers(recipe.data.num_workers, accelerator.device),
        any_process=any_process,
    )
    evaluations = {}
    for name in recipe.data.val:
        split = datasets[name].splits["validation"]
        indices = [number * len(split) // num_samples for number in range(num_samples)]
        evaluations[name] = score(split, datasets[name].classes, sample_indices=indices)
    return evaluations


def describe(recipe: Recipe) -> None:
    """Print what a run of the recipe would be on this machine; needs neither data nor weights."""
    state = PartialState()
    plan = plan_without_trial(recipe.train.global_batch_size, state.num_processes, recipe.train.micro_batch_size)
    total, trained = check_model(recipe)
    state.print(
        f"{recipe.to_yaml()}\nparameters: {total:,}, of which {trained:,} are trained\n{plan} on {state.device.type}"
    )
