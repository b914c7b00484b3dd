"""Train a segmentation model from a recipe:

accelerate launch --quiet train.py --recipe recipes/quickstart.yaml [more recipes] [--section.key value ...]
"""

from benchmark.errors import exit_with_one_sentence
from benchmark.recipe.parser import CommandParser


def main() -> None:
    parser = CommandParser(prog="train.py", description=__doc__)
    parser.add_recipe()
    parser.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="continue what the run folder holds"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the whole recipe and what would be run, and stop")
    args, recipe = parser.parse_recipe()

    # Torch and what needs it take seconds to import: only when the recipe is known to be right.
    if args.dry_run:
        from benchmark.training.build import describe

        describe(recipe)
    else:
        from benchmark.training.loop import train

        train(recipe, resume=args.resume)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
