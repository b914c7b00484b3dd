"""From recipe files and flags to a `Recipe`, strictly.

A recipe file is read as a list of flags, so that files and the command line are checked by one parser in one pass, in
the order in which they override each other.
"""

import argparse
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmark.errors import UserError
from benchmark.recipe import KEYS, Recipe, flatten

UNIONS = (types.UnionType, typing.Union)  # Python has two kinds of them: of classes, and of anything else


def load_recipe(files: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `files`, each overriding those before it key by key, then of `--section.key value` flags.

    Raises:
        UserError: one sentence that names the file or the key and what to write there.
    """
    flags = [flag for file in files for flag in _file_flags(file)]
    flags += _command_line_flags(overrides)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Recipe)
    try:
        recipe = Recipe(**parser.instantiate(parser.parse_args([f"--{key}={value}" for key, value in flags])))
    except ArgumentError as error:
        key = re.search(r'[Kk]ey "([\w.]+)"', str(error)).group(1)
        given = dict(flags)[key]
        raise UserError(f"{key} must be {_describe(KEYS[key].type)}, not {given}.") from None
    for key, value in flatten(dataclasses.asdict(recipe)):
        if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise UserError(f"{key} must be finite, not {value}.")
    setting = recipe.output.setting or (Path(files[0]).stem if files else "default")
    name = recipe.model.encoder.split(":")[-1].replace("/", "_")
    folder = recipe.output.dir or str(Path("runs") / setting / f"{name}-seed{recipe.seed}")
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, setting=setting, dir=folder))


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that tells a mistake in one sentence, and whose --help lists the recipe's keys."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see {self.prog} --help).")

    def add_recipe(self, required: bool = True) -> None:
        """Let the command take `--recipe FILE [FILE ...]` and `--section.key value`."""
        self.add_argument(
            "--recipe",
            nargs="+",
            required=required,
            metavar="FILE",
            help="recipes; a later one overrides an earlier one",
        )
        keys = (f"  --{key} {_describe(item.type)}" for key, item in KEYS.items())
        self.epilog = "recipe keys, which override the files wherever they stand:\n" + "\n".join(keys)

    def parse_recipe(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
        """The command's own flags, and the recipe that the rest of the line asks for."""
        own, overrides = self.parse_known_args(arguments)
        return own, load_recipe(own.recipe, overrides)


def _file_flags(file: str) -> list[tuple[str, str]]:
    try:
        content = yaml.load(Path(file).read_text(), _StrictLoader)
    except FileNotFoundError:
        folder = Path(file).parent
        near = difflib.get_close_matches(Path(file).name, [p.name for p in folder.glob("*.yaml")], n=3)
        hint = f"did you mean {' or '.join(str(folder / n) for n in near)}?" if near else f"look into {folder}/."
        raise UserError(f"There is no recipe {file}: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {file} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"The recipe {file}{where} is not good YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"The recipe {file} must hold keys and values, such as 'seed: 0'.")
    flags = list(flatten(content or {}))
    for key, value in flags:
        _check_key(key, f"in {file}")
        if not _fits(KEYS[key].type, value):
            raise UserError(f"{key} in {file} must be {_describe(KEYS[key].type)}, not {json.dumps(value)}.")
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in flags]


def _command_line_flags(arguments: Sequence[str]) -> list[tuple[str, str]]:
    flags, rest = [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise UserError(f"'{flag}' on the command line belongs to no flag; write --section.key value.")
        _check_key(flag[2:], "on the command line")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag} on the command line has no value; write {flag} VALUE.")
            value = rest.pop(0)
        flags.append((flag[2:], value))
    return flags


def _check_key(key: str, where: str) -> None:
    if key in KEYS:
        return
    # A key may be misspelt, or right but in the wrong section.
    same_name = [known for known in KEYS if known.split(".")[-1] == key.split(".")[-1]]
    near = same_name or difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
    inside = [known for known in KEYS if known.startswith(key + ".")]
    if inside:
        raise UserError(f"'{key}' {where} is a section; set one of its keys, such as {inside[0]}.")
    hint = f"did you mean {near[0]}?" if near else "the keys are listed by --help."
    raise UserError(f"There is no recipe key '{key}' ({where}): {hint}")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a doubled key is an error, and 1e-4 a number (as in YAML 1.2)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _fits(kind: Any, value: Any) -> bool:
    """Whether YAML's own distinction of texts and collections agrees with the type; a flag cannot tell."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)
    if isinstance(value, str):
        return any(k is str or typing.get_origin(k) is Literal for k in kinds)
    if isinstance(value, (list, dict)):
        origins = (list, tuple) if isinstance(value, list) else (dict,)
        return any(typing.get_origin(k) in origins for k in kinds)
    return True


def _describe(kind: Any) -> str:
    """A type in words, for an error message."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return arguments[0] if len(arguments) == 1 else "one of " + ", ".join(arguments)
    if typing.get_origin(kind) in UNIONS:
        return " or ".join(_describe(argument) for argument in arguments)
    if typing.get_origin(kind) is dict:
        return f"a mapping of {_describe(arguments[0])} to {_describe(arguments[1])}"
    if typing.get_origin(kind) in (list, tuple):
        return f"a list, each item {_describe(arguments[0])}"
    words = {
        PositiveInt: "a whole number above 0",
        NonNegativeInt: "a whole number, 0 or more",
        PositiveFloat: "a number above 0",
        NonNegativeFloat: "a number, 0 or more",
        float: "a number",
        bool: "true or false",
        int: "a whole number",
        str: "a text",
        types.NoneType: "null",
    }
    return words[kind]
