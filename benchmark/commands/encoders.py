"""python -m benchmark encoders [PATTERN]

List the encoders that have a recipe; with a pattern, every timm model it matches that can be an encoder. A pattern with
* or ? is matched with the whole name, any other one with a part of it: dinov3, 'vit_base_*'. Parameters are those that
a segmentation model uses, so without a classifier; they, pixels and patch are given for the size of pretraining.
"""

import fnmatch
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm.auto import tqdm

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser
from data_scripts.tables import format_table

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path("recipes") / "encoders"


class Candidate(NamedTuple):
    """A timm name, the recipe that has it ("" for none), and what is known of its pretraining."""

    name: str
    recipe: str
    pretraining: str


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark encoders", description=__doc__)
    parser.add_argument("pattern", nargs="?", help="a timm name, or a part of it or of its recipe's name")
    pattern = parser.parse_args(arguments).pattern

    candidates = with_recipe() if pattern is None else matching(pattern)
    rows = [
        (candidate.name, candidate.recipe, candidate.pretraining, *facts)
        for candidate, facts in known_encoders(tqdm(candidates, leave=False, disable=not sys.stderr.isatty()))
    ]
    if not rows:
        if pattern is None:
            raise UserError(f"There are no recipes in {ROOT / RECIPES}: install this package again, or give a pattern.")
        raise UserError(f"No plain vision transformer of timm matches '{pattern}': try a shorter one, such as dinov2.")
    print(format_table(rows, ("encoder", "recipe", "pretraining", "parameters", "pixels", "patch"), left=3))


def with_recipe() -> list[Candidate]:
    """What recipes/encoders/ holds; the first line of each file tells the pretraining."""
    candidates = []
    for path in sorted((ROOT / RECIPES).glob("*.yaml")):
        text = path.read_text()
        name = yaml.safe_load(text)["model"]["encoder"]
        candidates.append(Candidate(name, str(RECIPES / path.name), text.partition("\n")[0].lstrip("# ")))
    return candidates


def matching(pattern: str) -> list[Candidate]:
    """What matches: recipes first, then timm's other models; the tag of their weights tells the pretraining."""
    import timm

    glob = pattern if set(pattern) & set("*?") else f"*{pattern}*"
    recipes = with_recipe()
    found = [c for c in recipes if any(fnmatch.fnmatch(name, glob) for name in (c.name, Path(c.recipe).stem))]
    weights = timm.list_pretrained()
    trained = {name.partition(".")[0] for name in weights}
    others = [Candidate(name, "", name.partition(".")[2]) for name in weights]
    others += [Candidate(name, "", "timm has no weights") for name in timm.list_models() if name not in trained]
    listed = {candidate.name for candidate in found}
    return found + [c for c in others if fnmatch.fnmatch(c.name, glob) and c.name not in listed]


def known_encoders(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, tuple[str, str, str]]]:
    """Those that can be an encoder, each with its parameters, pixels and patch size; no memory is taken for weights."""
    import torch

    from benchmark.models.encoder import Encoder, encoder_defaults
    from benchmark.models.errors import ModelError
    from benchmark.models.modeling import parameter_counts

    for candidate in candidates:
        try:
            defaults = encoder_defaults(candidate.name)
            with torch.device("meta"):
                total, _ = parameter_counts(Encoder(candidate.name, defaults.img_size, defaults.patch_size))
        except ModelError:  # no plain vision transformer
            continue
        yield candidate, (f"{total:,}", "x".join(map(str, defaults.img_size)), str(defaults.patch_size))
