"""Train a segmentation model from a recipe:

accelerate launch train.py --recipe recipes/quickstart.yaml [more recipes] [--section.key value ...]
"""

from benchmark.command_line import CommandParser
from benchmark.errors import exit_with_one_sentence


def main() -> None:
    parser = CommandParser(prog="train.py", description=__doc__)
    parser.add_recipe()
    parser.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="continue what the run folder holds"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be run, and stop")
    own, recipe = parser.parse_recipe()

    # Torch and what stands on it take seconds to import: only once the recipe is known to be right.
    from benchmark import assembly, training

    if own.dry_run:
        assembly.describe(recipe)
    else:
        training.train(recipe, resume=own.resume)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
