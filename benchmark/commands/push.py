"""python -m benchmark push RUN user/name [--private]

Publish a finished run on the Hub: model, card, recipe, results and pictures, in one commit. The account that is logged
in pushes ('hf auth login', or HF_TOKEN).
"""

from collections.abc import Sequence
from pathlib import Path

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser, load_recipe


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark push", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument("name", metavar="user/name", help="the repository, which is created where it does not exist")
    parser.add_argument("--private", action="store_true", help="make a repository that is created private")
    args = parser.parse_args(arguments)
    print(f"{args.run} is at {push(args.run, args.name, private=args.private)}.")


def push(run: Path, name: str, *, private: bool = False) -> str:
    """Publish a finished run, and return its address.

    Raises:
        UserError: the run is not finished or damaged, or `name` must not or cannot be written.
    """
    from functools import partial

    import yaml
    from huggingface_hub import HfApi

    from benchmark.models.heads import HEADS
    from benchmark.recipe.identity import public
    from benchmark.reporting.hub import Pusher, find_model_folder, write_snapshot
    from benchmark.reporting.model_card import model_card
    from benchmark.reporting.model_folder import load_model
    from benchmark.reporting.pictures import sample_panels
    from benchmark.reporting.run_folder import RECIPE, RESULTS, SAMPLES, read_results
    from data_scripts.labels import default_colors

    for file in (RECIPE, RESULTS):
        if not (run / file).exists():
            raise UserError(f"{run} holds no finished run ({file} is missing): name one, or finish it by its command.")
    results, recipe = read_results(run / RESULTS), public(load_recipe([str(run / RECIPE)]))
    model = load_model(find_model_folder(str(run)))
    config = model.config
    classes = [config.id2label[c] for c in range(config.num_labels)]
    picture = sample_panels(run / SAMPLES, classes, config.colors or default_colors(len(classes)))
    about = {"step": results["step"], "head": HEADS[config.head].title, "picture": picture is not None}
    write = partial(
        write_snapshot,
        run_folder=run,
        config=config,
        weights=model.state_dict(),
        recipe_yaml=yaml.safe_dump(recipe, sort_keys=False),
        results=results,
        card=model_card(name, recipe, results, **about),
        picture=picture,
    )
    if not Pusher(name, private=private, folder=run).finish(write):
        raise UserError(f"{run} was not pushed: see the reason above, and run the same command again.")
    return f"{HfApi().endpoint}/{name}"
