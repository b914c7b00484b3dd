"""python -m benchmark throughput data|loss|train [--recipe FILE ...] [--section.key value ...]

Measure one part on this machine: print a table and, last, one line of JSON.

  data   training samples that one worker makes in a second, and where its time goes; needs the recipe's dataset
  loss   the Mask2Former loss beside transformers' own; takes no recipe
  train  training steps of the recipe's model on synthetic images; needs neither data nor pretrained weights
"""

import json
from collections.abc import Mapping, Sequence

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser, load_recipe
from benchmark.recipe.schema import Recipe
from data_scripts.tables import format_table

KEYS = (  # how those begin that a part uses
    *("seed", "data.", "augment.", "optim."),
    *(f"model.{key}" for key in ("encoder", "head", "patch_size", "freeze_encoder", "image_", "mask2former.")),
    *(f"train.{key}" for key in ("global_batch_size", "micro_batch_size", "precision", "compile", "deterministic")),
)


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark throughput", description=__doc__)
    parser.add_argument("part", choices=("data", "loss", "train"), help="what is measured")
    parser.add_recipe(required=False, keys=KEYS)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long data is measured (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="how many steps train makes (%(default)s)")
    own, overrides = parser.parse_known_args(arguments)
    if own.seconds <= 0 or own.steps <= 0:
        raise UserError("--seconds and --steps must be above 0: leave them out for ten.")
    if own.part == "loss":
        if own.recipe or overrides:
            raise UserError("throughput loss has one setting of its own and takes no recipe: leave it out.")
        from benchmark.commands import throughput_loss

        throughput_loss.run()
        return
    if not own.recipe:
        raise UserError(f"throughput {own.part} measures what a recipe says: name one with --recipe.")
    recipe = load_recipe(own.recipe, overrides)
    if own.part == "data":
        measure_data(recipe, own.seconds)
    else:
        measure_train(recipe, own.steps)


def measure_data(recipe: Recipe, seconds: float) -> None:
    from benchmark.commands.throughput_data import PARTS, measure
    from benchmark.training.build import prepare_dataset

    split = prepare_dataset(recipe, recipe.data.train).splits["train"]
    measured = measure(split, crop_size=recipe.data.crop, seed=recipe.seed, augment=recipe.augment, seconds=seconds)
    _print(
        f"Training samples of {recipe.data.train} at {' x '.join(map(str, recipe.data.crop))}, one worker, one thread",
        {"images/s": f"{measured['images_per_second']:.1f}"}
        | {f"{part}, ms an image": f"{measured[part]:.2f}" for part in PARTS},
        measured,
    )


def measure_train(recipe: Recipe, steps: int) -> None:
    from accelerate import PartialState

    from benchmark.commands.throughput_train import measure

    measured = measure(recipe, steps)
    if not PartialState().is_main_process:
        return
    model = recipe.model
    _print(
        f"Training steps of {model.encoder}, {'frozen, ' * model.freeze_encoder}{model.head} head, "
        f"{' x '.join(map(str, recipe.data.crop))}, patch {model.patch_size}, {recipe.train.precision}",
        {
            "images/s": f"{measured['images_per_second']:.2f}",
            "s/step": f"{measured['seconds_per_step']:.3f}",
            "peak memory, GiB": f"{measured['peak_memory_bytes'] / 2**30:.2f}",
            "device": measured["device"],
        },
        measured,
    )


def _print(title: str, rows: Mapping[str, str], measured: Mapping[str, object]) -> None:
    print(f"{title}\n{format_table(list(rows.items()), left=2)}")
    print(json.dumps(dict(measured)))
