"""python -m benchmark prepare --recipe FILE [FILE ...] [--section.key value ...]

Build the datasets that a recipe names, without training, and print what is in them.
"""

from collections.abc import Sequence

from benchmark.recipe.parser import CommandParser


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark prepare", description=__doc__)
    parser.add_recipe()
    _, recipe = parser.parse_recipe(arguments)

    from benchmark.training.build import check_sizes, prepare_dataset
    from data_scripts.report import format_report

    for name in dict.fromkeys([recipe.data.train, *recipe.data.val]):
        dataset = prepare_dataset(recipe, name)
        print(f"{name}: {dataset.folder}\n{format_report(dataset)}")
        if name in recipe.data.val and "validation" in dataset.splits:
            check_sizes(dataset, recipe.data.crop)
