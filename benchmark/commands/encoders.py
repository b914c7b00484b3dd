"""python -m benchmark encoders [PATTERN]

List the encoders that have a recipe; with a pattern, every timm model it matches that can be an encoder. A pattern with
* or ? is matched with the whole name, any other one with a part of it: dinov3, 'vit_base_*'. Parameters are those that
a segmentation model uses, so without a classifier; they, pixels and patch are given for the size of pretraining. GFLOPs
are those of one image of 512x512 in patches of 16x16, 2 for each product and sum. The licence is what timm says of the
weights; whether they are gated is asked of the Hub, and "?" where it cannot be reached. What was worked out of timm's
models is kept in HuggingFace's cache, for the versions that are installed.
"""

import fnmatch
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub.constants import HF_HOME
from joblib import Memory
from tqdm.auto import tqdm

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser
from data_scripts.tables import format_table

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path("recipes") / "encoders"

FACTS = ("parameters", "pixels", "patch", "GFLOPs", "licence", "gated")


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
    print(format_table(rows, ("encoder", "recipe", "pretraining", *FACTS), left=3))


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
    glob = pattern if set(pattern) & set("*?") else f"*{pattern}*"
    recipes = with_recipe()
    found = [c for c in recipes if any(fnmatch.fnmatch(name, glob) for name in (c.name, Path(c.recipe).stem))]
    weights, models = kept(timm_names)
    trained = {name.partition(".")[0] for name in weights}
    others = [Candidate(name, "", name.partition(".")[2]) for name in weights]
    others += [Candidate(name, "", "timm has no weights") for name in models if name not in trained]
    listed = {candidate.name for candidate in found}
    return found + [c for c in others if fnmatch.fnmatch(c.name, glob) and c.name not in listed]


def known_encoders(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, tuple[str, ...]]]:
    """Those that can be an encoder, each with its FACTS."""
    hub = Hub()
    for candidate in candidates:
        on_hub = candidate.name.startswith("hf-hub:")  # where it may change
        if facts := (timm_facts(candidate.name) if on_hub else kept(timm_facts, candidate.name)):
            *facts, repository = facts
            yield candidate, (*facts, "-" if repository is None else hub.gated(repository))


def kept(function: Callable, *arguments: str) -> Any:
    """What the function returns, worked out once for the versions of timm and PyTorch and of the code."""
    files = [Path(__file__), *sorted((ROOT / "benchmark" / "models").glob("*.py"))]
    code = b"".join(file.read_bytes() for file in files)
    versions = f"timm-{version('timm')}-torch-{version('torch')}-{hashlib.sha256(code).hexdigest()[:8]}"
    try:
        memory = Memory(Path(HF_HOME) / "vfm-segmentation-benchmark" / versions, verbose=0)
    except OSError:  # read-only
        return function(*arguments)
    return memory.cache(function)(*arguments)


def timm_names() -> tuple[list[str], list[str]]:
    """Of timm's weights and of its models."""
    import timm

    return timm.list_pretrained(), timm.list_models()


def timm_facts(name: str) -> tuple[str, str, str, str, str, str | None] | None:
    """FACTS but for the last, and the weights' repository on the Hub, None where there are none; None where the model
    cannot be an encoder. No memory is taken for weights.
    """
    import timm

    from benchmark.models.encoder import Encoder, encoder_defaults
    from benchmark.models.errors import ModelError
    from benchmark.models.meta import without_memory
    from benchmark.models.modeling import parameter_counts

    try:
        defaults = encoder_defaults(name)
        with without_memory():
            total, _ = parameter_counts(Encoder(name, defaults.img_size, defaults.patch_size))
    except ModelError:  # no plain vision transformer
        return None
    cfg = timm.get_pretrained_cfg(name)
    terms = ("-", None) if cfg is None or not cfg.has_weights else (cfg.license or "-", cfg.hf_hub_id or "")
    size = "x".join(map(str, defaults.img_size))
    return f"{total:,}", size, str(defaults.patch_size), gflops(name), *terms


def gflops(name: str, size: int = 512, patch_size: int = 16) -> str:
    """The arithmetic of an encoder's forward pass of one square image; a dash where it cannot be counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmark.models.encoder import Encoder
    from benchmark.models.meta import without_memory

    try:
        with without_memory(), FlopCounterMode(display=False) as counter:
            Encoder(name, (size, size), patch_size).eval().requires_grad_(False)(torch.zeros(1, 3, size, size))
    except Exception:  # one that runs need not be one that can be counted
        return "-"
    return f"{counter.get_total_flops() / 1e9:.0f}"


class Hub:
    """What the Hub says of weights, asked as long as it answers."""

    def __init__(self) -> None:
        self.answers = True

    def gated(self, repository: str | None) -> str:
        """yes, no, or ? where nobody can say."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        if not (repository and self.answers):
            return "?"
        try:
            return "yes" if HfApi().model_info(repository, expand=["gated"], timeout=5).gated else "no"
        except HfHubHTTPError:  # of this one
            return "?"
        except Exception:  # no network, which has many exceptions, or told to be offline
            self.answers = False
            return "?"
