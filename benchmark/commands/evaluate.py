"""python -m benchmark evaluate --model MODEL [--recipe FILE ...] [--output FILE] [--section.key value ...]

Score a trained model on the validation datasets of the recipe it was trained by, or on those that --data.val names.
MODEL is a run's folder, a model's, user/name on the Hub, or an .onnx file that `export` wrote.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser, load_recipe
from benchmark.recipe.schema import Recipe

if TYPE_CHECKING:  # torch takes seconds to import
    from benchmark.export.onnx_model import OnnxModel
    from benchmark.models.configuration import SegmentationConfig
    from benchmark.models.modeling import SegmentationModel


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="runs/x, a model's folder, user/name on the Hub, or x.onnx")
    parser.add_recipe(required=False, keys=("data.", "train.precision", "train.compile", "train.eval_batch_size"))
    parser.add_argument("--output", help="a file for the results as JSON")
    args, overrides = parser.parse_known_args(arguments)
    if args.output:
        if Path(args.output).is_dir():
            raise UserError(f"--output {args.output} is a folder: name a file in it.")
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    from benchmark.export.onnx_model import load_any
    from benchmark.reporting.run_folder import RECIPE, find_in_run

    model, folder = load_any(args.model)
    recipe = find_in_run(folder, RECIPE)
    if not args.recipe and not recipe:
        raise UserError(f"There is no recipe.yaml beside {args.model}: name a recipe with --recipe.")
    asked = load_recipe(args.recipe or [str(recipe)], overrides)
    check_recipe(asked, model.config, recipe, args.model)
    evaluate(model, folder, asked, args.output)


def check_recipe(asked: Recipe, config: SegmentationConfig, trained: Path | None, model_name: str) -> None:
    """Refuse a recipe by which the model was not trained: the scores would have that recipe's name and protocol.

    What is scored, and in which precision, may differ.

    Args:
        config: the model's own, which a recipe.yaml of another run, beside a file that was moved, does not fit.
        trained: the recipe.yaml of the model's run; None where it is not there, and the configuration has to do.
    """
    from benchmark.recipe.identity import difference, identity

    wanted = identity(asked)
    there = {key: getattr(config, key) for key in ("encoder", "head", "patch_size", "freeze_encoder")}
    pairs = [(f"model.{key}", value, wanted[f"model.{key}"]) for key, value in there.items()]
    pairs.append(("data.crop_size", list(config.crop_size), list(asked.data.crop)))
    different = next((f"{key} is {one} there and {other} here" for key, one, other in pairs if one != other), None)
    if trained and not different:
        free = ("data.val", "data.allow_partial", "data.custom.", "train.precision")
        different = difference(trained, {k: v for k, v in wanted.items() if not k.startswith(free)})
    if different:
        raise UserError(
            f"{model_name} was trained by another recipe ({different}): leave out --recipe, or name the one it was "
            "trained by, and say what is scored with --data.val."
        )


def evaluate(model: SegmentationModel | OnnxModel, folder: Path, recipe: Recipe, output: str | None) -> dict:
    """Score the model as `recipe` says, print the table and return (and write to `output`) what results.json holds."""
    from benchmark.export.onnx_model import OnnxModel
    from benchmark.models.meta import without_memory
    from benchmark.models.modeling import SegmentationModel, parameter_counts
    from benchmark.reporting import results
    from benchmark.reporting.run_folder import results_of_model
    from benchmark.training import build, launch
    from benchmark.training.datasets import prepare_datasets

    accelerator = launch.start_processes(recipe)
    exported = isinstance(model, OnnxModel)
    model.to(accelerator.device)
    if recipe.train.compile and not exported:
        model.compile_blocks()
    datasets = prepare_datasets(recipe, accelerator, names=recipe.data.val)
    for name, dataset in datasets.items():
        if list(dataset.classes) != list(model.config.id2label.values()):
            raise UserError(
                f"{folder} was trained on other classes than those of {name}: name another one in data.val."
            )

    start = time.perf_counter()
    evaluations = build.evaluate_datasets(recipe, model, datasets, accelerator)
    seconds = time.perf_counter() - start

    trained = results_of_model(folder)
    with without_memory():  # of a file, those of the model that it was made of
        total, trainable = parameter_counts(SegmentationModel(model.config) if exported else model)
    training = {
        **{key: trained.get(key) for key in ("step", "train_seconds", "images_per_second", "dataset_fingerprint")},
        "parameters": total,
        "trainable_parameters": trained.get("trainable_parameters", trainable),  # of LoRA's, which are merged
        "eval_seconds": seconds,
    }
    experiment = build.describe_run(recipe)
    if exported:
        experiment["exported"] = {"format": "onnx", "precision": model.about["precision"]}
    measured = results.build_results(evaluations, datasets, experiment, training, accelerator)
    if accelerator.is_main_process:
        for name in datasets:
            print(f"{name}\n{results.score_table(measured['datasets'][name])}")
        if output:
            results.write_results(Path(output), measured)
    accelerator.end_training()
    return measured
