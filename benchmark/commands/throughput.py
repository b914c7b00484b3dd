"""python -m benchmark throughput data|eval|loss|train|all [--recipe FILE ...] [--section.key value ...]

Measure one part on this machine: print a table and, last, one line of JSON.

  data   training samples that one worker makes in a second, and where its time goes; needs the recipe's dataset
  eval   label maps and scores beside the bare forward passes; needs neither data nor pretrained weights
  loss   the Mask2Former loss beside transformers' own; takes no recipe
  train  training steps of the recipe's model on synthetic images, in turns with a matrix product, which says what the
         machine could do; needs neither data nor pretrained weights
  all    one after the other

Medians count; the spread is the distance of the quartiles. On a machine that does other work, compare CPU seconds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser, load_recipe, whole_number_above_0
from benchmark.recipe.schema import KEYS, Recipe
from data_scripts.tables import format_table

USED_KEYS = (  # how those begin that a part uses
    *("seed", "data.", "augment.", "optim.", "loss."),
    *(f"model.{key}" for key in ("encoder", "head", "patch_size", "freeze_encoder", "lora_rank", "image_")),
    *(key for key in KEYS if key.startswith("model.") and key.count(".") == 2),  # of the heads
    *(f"train.{key}" for key in ("steps", "global_batch_size", "micro_batch_size", "eval_batch_size")),
    *(f"train.{key}" for key in ("precision", "compile", "cuda_graph", "deterministic", "ema_decay")),
)


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark throughput", description=__doc__)
    parser.add_argument("part", choices=("data", "eval", "loss", "train", "all"), help="what is measured")
    parser.add_recipe(required=False, keys=USED_KEYS)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long data is measured (%(default)s)")
    parser.add_argument(
        "--steps", type=whole_number_above_0, default=10, help="how many steps train and eval make (10)"
    )
    parser.add_argument("--profile", metavar="FILE", help="of train: write a trace of two steps, for Perfetto")
    args, overrides = parser.parse_known_args(arguments)
    if not 0 < args.seconds < math.inf:
        raise UserError("--seconds must be above 0: leave it out for ten.")
    if args.profile and args.part not in ("train", "all"):
        raise UserError(f"throughput {args.part} writes no trace: leave out --profile.")
    if args.profile and not Path(args.profile).absolute().parent.is_dir():
        raise UserError(f"--profile {args.profile} cannot be written: make its folder first.")
    if args.part == "loss" and (args.recipe or overrides):
        raise UserError("throughput loss has one setting of its own and takes no recipe: leave it out.")
    if args.part != "loss" and not args.recipe:
        raise UserError(f"throughput {args.part} measures what a recipe says: name one with --recipe.")
    recipe = load_recipe(args.recipe or (), overrides)
    parts = {
        "data": lambda: measure_data(recipe, args.seconds),
        "train": lambda: measure_train(recipe, args.steps, args.profile),
        "eval": lambda: measure_evaluation(recipe, args.steps),
        "loss": measure_loss,
    }
    for name, measure in parts.items():
        if args.part in (name, "all"):
            measure()


def measure_data(recipe: Recipe, seconds: float) -> None:
    from benchmark.throughput.data import PARTS, measure
    from benchmark.training.datasets import prepare_dataset

    split = prepare_dataset(recipe, recipe.data.train).splits["train"]
    measured = measure(split, crop_size=recipe.data.crop, seed=recipe.seed, augment=recipe.augment, seconds=seconds)
    _print(
        f"Training samples of {recipe.data.train} at {' x '.join(map(str, recipe.data.crop))}, one worker, one thread",
        {"images/s": f"{measured['images_per_second']:.1f}"}
        | {f"{part}, ms an image": f"{measured[part]:.2f}" for part in PARTS},
        measured,
    )


def measure_train(recipe: Recipe, steps: int, profile: str | None) -> None:
    from accelerate import PartialState

    from benchmark.throughput.train import measure

    measured = measure(recipe, steps, profile)
    if not PartialState().is_main_process:
        return
    split = {f"s/step, {part}": f"{seconds:.3f}" for part, seconds in measured["split"].items()}
    memory = {f"GiB, {part}": f"{most / 2**30:.2f}" for part, most in (measured["memory_split"] or {}).items()}
    energy = measured["kilowatt_hours"]
    _print(
        f"Training steps of {_describe(recipe)}",
        {
            "images/s": f"{measured['images_per_second']:.2f}",
            "s/step": f"{measured['seconds_per_step']:.3f}",
            "CPU s/step": f"{measured['cpu_seconds_per_step']:.3f}",
            "spread": f"{measured['spread']:.1%}",
            **split,
            "TFLOP/s": f"{measured['tflops']:.3f}",
            "of a matrix product's": f"{measured['matrix_share']:.0%}",
            "attention": ", ".join(measured["attention"]) or "whole matrices",
            "hours of the whole training": f"{measured['hours']:.2f}",
            **({"kWh of the whole training": f"{energy:.2f}"} if energy else {}),
            "peak memory, GiB": f"{measured['peak_memory_bytes'] / 2**30:.2f}",
            **memory,
            "device": measured["device"],
        },
        measured,
    )


def measure_evaluation(recipe: Recipe, rounds: int) -> None:
    from benchmark.throughput.evaluation import measure

    measured = measure(recipe, rounds)
    _print(
        f"Label maps of {measured['image_size']} and {measured['classes']} classes by {_describe(recipe)}",
        {
            "images/s": f"{measured['images_per_second']:.2f}",
            "s/image": f"{measured['seconds']:.3f}",
            "CPU s/image": f"{measured['cpu_seconds']:.3f}",
            "spread": f"{measured['spread']:.1%}",
            "s/image, forward passes alone": f"{measured['forward_seconds']:.3f}",
            "times the forward passes": f"{measured['over_forward']:.2f}",
            "peak memory, GiB": f"{measured['peak_memory_bytes'] / 2**30:.2f}",
            "device": measured["device"],
        },
        measured,
    )


def measure_loss() -> None:
    from benchmark.throughput.loss import BATCH_SIZE, measure

    measured = measure()
    rows = [
        (
            name,
            *(f"{row[key]:.3f}" for key in ("seconds", "cpu_seconds")),
            *(f"{row[key]:,}" for key in ("operations", "host_copies")),
        )
        for name, row in measured["losses"].items()
    ]
    print(f"Mask2Former loss, forward and backward, {BATCH_SIZE} images on {measured['device']}")
    print(format_table(rows, ("", "seconds", "CPU seconds", "operations", "host copies")))
    print(json.dumps(measured))


def _describe(recipe: Recipe) -> str:
    model = recipe.model
    return (
        f"{model.encoder}, {'frozen, ' * model.freeze_encoder}{model.head} head, "
        f"{' x '.join(map(str, recipe.data.crop))}, patch {model.patch_size}, {recipe.train.precision}"
    )


def _print(title: str, rows: Mapping[str, str], measured: Mapping[str, object]) -> None:
    print(f"{title}\n{format_table(list(rows.items()), left=2)}")
    print(json.dumps(dict(measured)))
