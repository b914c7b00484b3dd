"""python -m benchmark encoders [PATTERN]

List the encoders that have a recipe; with a pattern, every timm model it matches that can be an encoder. A pattern with
* or ? is matched with the whole name, another one with any part of it: dinov3, 'vit_base_*'. Parameters are those that
a segmentation model uses, so without a classifier; they, pixels and patch are given for the size of pretraining.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmark.command_line import CommandParser
from benchmark.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path("recipes") / "encoders"


class Candidate(NamedTuple):
    """A timm name, the recipe that has it ("" for none), and what is told of its pretraining."""

    name: str
    recipe: str
    pretraining: str


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark encoders", description=__doc__)
    parser.add_argument("pattern", nargs="?", help="a timm name, or a part of it or of its recipe's name")
    pattern = parser.parse_args(arguments).pattern

    candidates = with_recipe() if pattern is None else matching(pattern)
    header = Candidate("encoder", "recipe", "pretraining")
    widths = [max(map(len, column)) for column in zip(header, *candidates, strict=True)]
    printed = 0
    for candidate, facts in known_encoders(candidates):
        if not printed:
            print(_line(widths, header, "parameters", "pixels", "patch"))
        print(_line(widths, candidate, *facts), flush=True)
        printed += 1
    if not printed:
        raise UserError(f"No plain vision transformer of timm matches '{pattern}': try a shorter one, such as dinov2.")


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


def known_encoders(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, tuple[str, str, str]]]:
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


def _line(widths: Sequence[int], candidate: Candidate, parameters: str, pixels: str, patch: str) -> str:
    name, recipe, _ = widths
    return (
        f"{candidate.name:{name}}  {parameters:>13}  {pixels:>9}  {patch:>5}  "
        f"{candidate.recipe:{recipe}}  {candidate.pretraining}"
    )
