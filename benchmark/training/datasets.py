"""The datasets that a recipe names, built or found built; without torch, which `prepare` would wait for."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import joblib

from benchmark.errors import UserError
from benchmark.models.sizes import MAX_WINDOWS, num_windows
from benchmark.recipe.schema import Recipe
from data_scripts.preparation import PreparedDataset, prepare

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare_datasets(
    recipe: Recipe, accelerator: "Accelerator", names: Sequence[str] | None = None
) -> dict[str, PreparedDataset]:
    """The datasets that the recipe names; the machine's first process builds what is missing, the others wait.

    What it raises, every process raises.
    """
    names = list(dict.fromkeys(names or [recipe.data.train, *recipe.data.val]))
    if accelerator.num_processes > 1:
        _build_once(recipe, names, accelerator)
    datasets = {name: prepare_dataset(recipe, name) for name in names}
    for key, split, needed in (("train", "train", [recipe.data.train]), ("val", "validation", recipe.data.val)):
        for name in names:
            if name in needed and split not in datasets[name].splits:
                raise UserError(f"The dataset {name} has no {split} split: name another one in data.{key}.")
    for name in names:
        if "validation" in datasets[name].splits:
            check_sizes(datasets[name], recipe.data.crop)
    classes = datasets[names[0]].classes
    for name in names:
        if datasets[name].classes != classes:
            raise UserError(f"The dataset {name} has other classes than {names[0]}: name one that shares them.")
    return datasets


def _build_once(recipe: Recipe, names: Sequence[str], accelerator: "Accelerator") -> None:
    from accelerate.utils import gather_object

    fault = None
    if accelerator.is_local_main_process:
        try:
            for name in names:
                prepare_dataset(recipe, name)
        except Exception as error:
            fault = error
    for raised in gather_object([fault]):
        if raised is not None:
            raise raised


def check_sizes(dataset: PreparedDataset, crop_size: tuple[int, int]) -> None:
    """Raise UserError where an evaluation would refuse an image: before hours of training, and not after them."""
    for height, width, name in dataset.report["splits"]["validation"]["extremes"].values():
        if num_windows((height, width), crop_size) > MAX_WINDOWS:
            raise UserError(
                f"{name}, an image of {width}x{height} pixels in the validation split of {dataset.name}, is too long "
                f"and narrow for windows of {crop_size[1]}x{crop_size[0]}: cut it into pieces, or remove it."
            )


def prepare_dataset(recipe: Recipe, name: str) -> PreparedDataset:
    """Build one dataset, or find it built."""
    data = recipe.data
    return prepare(
        name,
        root=data.root,
        cache_dir=data.cache_dir,
        allow_partial=data.allow_partial,
        num_proc=joblib.cpu_count(),
        custom=asdict(data.custom),
    )
