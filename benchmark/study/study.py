"""The file of a study: settings x encoders x seeds, and the run that each cell is.

    seeds: [0]
    encoders:                                   # a name, and the recipe files that make it
      dinov2: [../encoders/dinov2_base.yaml]
    settings:
      default: [../ade20k_linear.yaml]          # recipe files, and keys that override them: {train.steps: 100}
      large:                                    # a setting with encoders or seeds of its own
        recipe: [../ade20k_linear_large.yaml]
        encoders: {dinov2: [../encoders/dinov2_large.yaml]}
    more_seeds:
      - {setting: default, encoders: [dinov2], seeds: [1, 2]}

Files are relative to the study's. Encoders of one name belong together across settings: their ranks are compared.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.recipe.parser import load_recipe, read_yaml, to_text
from benchmark.recipe.schema import Recipe, flatten
from benchmark.reporting.run_folder import write_atomically

STUDY = "study.json"  # in the study's folder: its cells, for the report
KEYS = ("encoders", "settings", "seeds", "more_seeds")
NAME = re.compile(r"[\w+][\w.+-]*")
# What each cell sets itself, or what would make all runs write to one place.
OWN = ("seed", "output.dir", "output.setting", "output.hub_model_id")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        files, flags: its recipe, as they stand behind `train.py --recipe`.
        folder: its run folder.
    """

    setting: str
    encoder: str
    seed: int
    files: tuple[str, ...]
    flags: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.encoder}-seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """What stands behind `train.py`."""
        return ["--recipe", *self.files, *self.flags]

    def line(self, launch: Sequence[str] = ()) -> str:
        """The shell command that trains it; `launch` are options of `accelerate launch`."""
        return shlex.join(["accelerate", "launch", "--quiet", *launch, train_script(), *self.arguments])

    @cached_property
    def recipe(self) -> Recipe:
        """The cell's recipe; UserError where a file or a key is wrong."""
        return load_recipe(self.files, self.flags)


@dataclass(frozen=True)
class Study:
    """A study's name, its folder and its cells, setting by setting."""

    name: str
    folder: Path
    cells: tuple[Cell, ...]

    def write(self) -> None:
        """Write study.json, from which a report knows which runs are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cells = [{"setting": c.setting, "encoder": c.encoder, "seed": c.seed} for c in self.cells]
        content = json.dumps({"name": self.name, "cells": cells}, indent=1) + "\n"
        write_atomically(self.folder / STUDY, content.encode())


def load_study(
    file: Path, overrides: Sequence[str] = (), folder: Path | None = None, recipes: Sequence[str] = ()
) -> Study:
    """The study of a file.

    Args:
        overrides: `--section.key value` for all runs.
        folder: the study's; by default runs/ and the file's name.
        recipes: files for all runs, which override a setting's files and which an encoder's override. Keys that a
            setting or an encoder sets itself override all files, because settings may differ in them alone.

    Raises:
        UserError: all that is wrong with the file, or with a cell's recipe, each with its place.
    """
    content, faults = read_yaml(file, "study"), []
    faults += [f"'{key}' is not a key of a study: it has {', '.join(KEYS)}." for key in content if key not in KEYS]
    given = [flag[2:].partition("=")[0] for flag in overrides if flag.startswith("--")]
    faults += [
        f"--{key} is each run's own: remove it (--output_dir names all runs' folder, the study has encoders and seeds)."
        for key in given
        if key in (*OWN, "model.encoder")
    ]
    reader = _Reader(file, faults)
    encoders = reader.recipes("encoders", content.get("encoders", {}))
    seeds = reader.seeds("seeds", content.get("seeds", [0]))
    settings = reader.settings(content.get("settings"), encoders, seeds)
    more = reader.more_seeds(content.get("more_seeds", []), settings)
    if faults:
        raise UserError(f"The study {file} cannot be run: " + " ".join(faults))
    folder = folder or Path("runs") / file.stem
    cells = tuple(
        _cell(folder, setting, recipe, recipes, name, encoder, seed, overrides)
        for setting, (recipe, members, base) in settings.items()
        for name, encoder in members.items()
        for seed in sorted({*base, *more.get((setting, name), ())})
    )
    _check_recipes(file, cells)
    return Study(file.stem, folder, cells)


def read_study(folder: Path) -> dict[str, Any]:
    """The name and the cells that study.json in a study's folder holds; empty elsewhere.

    Raises:
        UserError: it is damaged.
    """
    if not (folder / STUDY).exists():
        return {"name": "", "cells": []}
    try:
        content = json.loads((folder / STUDY).read_text())
        cells = [{key: cell[key] for key in ("setting", "encoder", "seed")} for cell in content["cells"]]
        return {"name": str(content["name"]), "cells": cells}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / STUDY} is damaged ({error}), so that missing runs are not known: run the study's `sweep` "
            "again, which writes it."
        ) from None


def train_script() -> str:
    """train.py of this checkout, relative to the working directory where it is below it.

    Raises:
        UserError: the package was installed without it.
    """
    script = Path(__file__).resolve().parents[2] / "train.py"
    if not script.exists():
        raise UserError("train.py is not beside this package: install it from a clone with `pip install -e .`.")
    return shorten(script)


def shorten(path: Path) -> str:
    """A path relative to the working directory where it is below it, else absolute."""
    full = Path(os.path.abspath(path))
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


@dataclass(frozen=True)
class _RecipeList:
    files: tuple[str, ...]
    flags: tuple[str, ...]


class _Reader:
    """Reads the parts of a study file and notes what is wrong with each in `faults`."""

    def __init__(self, file: Path, faults: list[str]):
        self.file, self.faults = file, faults

    def recipes(self, where: str, content: Any) -> dict[str, _RecipeList]:
        """Names and the recipe list of each."""
        if not isinstance(content, Mapping):
            self.faults.append(f"{where} must map names to lists of recipe files.")
            return {}
        for name in content:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.faults.append(f"The name {name!r} in {where} may have letters, digits and _.+- only.")
        return {str(name): self.recipe(f"{where}.{name}", items) for name, items in content.items()}

    def recipe(self, where: str, items: Any) -> _RecipeList:
        """A list of recipe files and of mappings of keys that override them."""
        files: list[str] = []
        flags: list[str] = []
        if not isinstance(items, list):
            self.faults.append(f"{where} must be a list of recipe files and {{key: value}}, not {items!r}.")
            items = []
        for item in items:
            if isinstance(item, str):
                files.append(shorten(self.file.parent / item))
            elif isinstance(item, Mapping):
                flags += self._flags(where, dict(item))
            else:
                self.faults.append(f"{where} holds {item!r}, which is neither a file nor {{key: value}}.")
        return _RecipeList(tuple(files), tuple(flags))

    def _flags(self, where: str, item: dict) -> Iterator[str]:
        for key, value in flatten(item):
            if key in OWN:
                self.faults.append(f"{where} sets {key}, which is each run's own: remove it.")
            yield f"--{key}"
            yield value if isinstance(value, str) else to_text(value)

    def seeds(self, where: str, content: Any) -> list[int]:
        if not isinstance(content, list) or not content or not all(type(s) is int and s >= 0 for s in content):
            self.faults.append(f"{where} must be a list of whole numbers, 0 or more, not {content!r}.")
            return []
        if len(set(content)) < len(content):
            self.faults.append(f"{where} names a seed twice: {content}.")
        return content

    def settings(
        self, content: Any, encoders: dict[str, _RecipeList], seeds: list[int]
    ) -> dict[str, tuple[_RecipeList, dict[str, _RecipeList], list[int]]]:
        """By setting: its recipe, its encoders, its seeds."""
        if not isinstance(content, Mapping) or not content:
            self.faults.append("settings must map at least one name to a list of recipe files.")
            return {}
        found: dict[str, tuple[_RecipeList, dict[str, _RecipeList], list[int]]] = {}
        for name, setting in content.items():
            where, members, own = f"settings.{name}", encoders, seeds
            if isinstance(setting, Mapping):
                unknown = [key for key in setting if key not in ("recipe", "encoders", "seeds")]
                self.faults += [f"{where} has no key '{key}': it has recipe, encoders, seeds." for key in unknown]
                if isinstance(setting.get("encoders"), list):
                    members = self.chosen(f"{where}.encoders", setting["encoders"], encoders)
                elif "encoders" in setting:
                    members = self.recipes(f"{where}.encoders", setting["encoders"])
                own = self.seeds(f"{where}.seeds", setting["seeds"]) if "seeds" in setting else seeds
                setting = setting.get("recipe")
            if not members:
                self.faults.append(f"{where} has no encoder: name some under encoders.")
            found |= {n: (recipe, members, own) for n, recipe in self.recipes("settings", {name: setting}).items()}
        return found

    def chosen(self, where: str, names: Any, encoders: dict[str, _RecipeList]) -> dict[str, _RecipeList]:
        """Some of the encoders, by name."""
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.faults.append(f"{where} must be a list of names of encoders, not {names!r}.")
            return {}
        self.faults += [
            f"{where} names {n!r}, which is not among {list(encoders)}." for n in names if n not in encoders
        ]
        return {name: encoders[name] for name in names if name in encoders}

    def more_seeds(self, content: Any, settings: Mapping[str, tuple]) -> dict[tuple[str, str], list[int]]:
        """By setting and encoder: further seeds."""
        found: dict[tuple[str, str], list[int]] = {}
        if not isinstance(content, list):
            self.faults.append("more_seeds must be a list of {setting, encoders, seeds}.")
            return found
        for number, item in enumerate(content):
            where = f"more_seeds[{number}]"
            if not isinstance(item, Mapping) or set(item) != {"setting", "encoders", "seeds"}:
                self.faults.append(f"{where} must be {{setting, encoders, seeds}}.")
            elif not isinstance(item["setting"], str) or item["setting"] not in settings:
                self.faults.append(f"{where} names the setting {item['setting']!r}, which is not there.")
            else:
                seeds = self.seeds(f"{where}.seeds", item["seeds"])
                for name in self.chosen(where, item["encoders"], settings[item["setting"]][1]):
                    found.setdefault((item["setting"], name), []).extend(seeds)
        return found


def _cell(
    folder: Path,
    setting: str,
    recipe: _RecipeList,
    recipes: Sequence[str],
    name: str,
    encoder: _RecipeList,
    seed: int,
    overrides: Sequence[str],
) -> Cell:
    run = folder / setting / f"{name}-seed{seed}"
    own = ("--seed", str(seed), "--output.setting", setting, "--output.dir", shorten(run))
    flags = (*recipe.flags, *encoder.flags, *overrides, *own)
    return Cell(setting, name, seed, (*recipe.files, *recipes, *encoder.files), flags, run)


def _check_recipes(file: Path, cells: Sequence[Cell]) -> None:
    """Raise UserError with each different fault of the cells' recipes, and the first cell that has it."""
    faults: dict[str, str] = {}
    for cell in cells:
        try:
            cell.recipe  # noqa: B018 - it is parsed
        except UserError as error:
            faults.setdefault(str(error), cell.name)
    if faults:
        told = [f"{name}: {fault}" for fault, name in faults.items()]
        raise UserError("\n".join([f"{len(told)} fault(s) in the recipes of {file}; fix each:", *told]))
