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
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmark.errors import UserError
from benchmark.recipe.schema import KEYS, Recipe, flatten

UNIONS = (types.UnionType, typing.Union)  # Python has two kinds of them: of classes, and of anything else
RENAMED = {"model.num_points": "model.mask2former.num_points"}  # old names, which saved recipes still have


class Flag(typing.NamedTuple):
    """One value for one key, and where it was written."""

    key: str
    value: str
    where: str


def load_recipe(files: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `files`, each overriding those before it key by key, then of `--section.key value` flags.

    Raises:
        UserError: one sentence that names the file or the key and what to write there.
    """
    flags = [flag for file in files for flag in _file_flags(Path(file))]
    flags += _command_line_flags(overrides)
    recipe = _parse(flags)
    for key, value in flatten(dataclasses.asdict(recipe)):
        if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise UserError(f"{key} must be finite, not {value}.")
    setting = recipe.output.setting or (Path(files[0]).stem if files else "default")
    name = recipe.model.encoder.split(":")[-1].replace("/", "_")
    folder = recipe.output.dir or str(Path("runs") / setting / f"{name}-seed{recipe.seed}")
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, setting=setting, dir=folder))


@lru_cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Recipe)
    return parser


def _parse(flags: Sequence[Flag]) -> Recipe:
    parser = _parser()

    def parse(some: Sequence[Flag]) -> Any:
        return parser.parse_args([f"--{flag.key}={flag.value}" for flag in some])

    try:
        return Recipe(**parser.instantiate(parse(flags)))
    except ArgumentError as error:
        key = re.search(r'[Kk]ey "([\w.]+)"', str(error)).group(1)
    for flag in flags:  # of several values for the key, the first that is wrong
        try:
            if flag.key == key:
                parse([flag])
        except ArgumentError:
            raise UserError(f"{key} {flag.where} must be {_describe(KEYS[key].type)}, not {flag.value}.") from None
    raise UserError(f"{key} must be {_describe(KEYS[key].type)}.")


class CommandParser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence, and whose --help lists the recipe's keys."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see {self.prog} --help).")

    def add_recipe(self, required: bool = True, keys: Sequence[str] = ("",)) -> None:
        """Let the command take `--recipe FILE [FILE ...]` and `--section.key value`.

        Args:
            keys: how the keys begin that the command uses, which --help lists.
        """
        self.add_argument(
            "--recipe",
            nargs="+",
            required=required,
            metavar="FILE",
            help="recipes; a later one overrides an earlier one",
        )
        lines = ["recipe keys, which override the files wherever they are on the line:"]
        section = None
        for key, item in KEYS.items():
            if not key.startswith(tuple(keys)):
                continue
            if key.rpartition(".")[0] != section:
                section = key.rpartition(".")[0]
                lines += ["", f"{section or 'of the whole run'}:"]
            default = json.dumps(item.default)
            lines.append(f"  --{key} {_describe(item.type)} (default: {default})\n      {item.about}".rstrip())
        self.epilog = "\n".join(lines)

    def parse_recipe(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
        """The command's own flags, and the recipe that the rest of the line asks for."""
        args, overrides = self.parse_known_args(arguments)
        return args, load_recipe(args.recipe, overrides)


def whole_number_above_0(text: str) -> int:
    """The number of a command's own flag, as argparse's `type`."""
    try:
        return PositiveInt(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}") from None


def _file_flags(file: Path, above: Sequence[Path] = ()) -> list[Flag]:
    """The flags of a recipe file, after those of the file that its `base` names, which is relative to it."""
    content = read_yaml(file)
    if file.resolve() in above:
        raise UserError(f"The recipe {file} is its own base, through {above[-1].name}: remove one `base:`.")
    flags = []
    if "base" in content:
        base = content.pop("base")
        if not isinstance(base, str):
            raise UserError(f"base in {file} must name one recipe file, not {json.dumps(base)}.")
        flags = _file_flags(file.parent / base, [*above, file.resolve()])
    for key, value in flatten(content):
        key = _check_key(key, f"in {file}")
        if not _fits(KEYS[key].type, value):
            raise UserError(f"{key} in {file} must be {_describe(KEYS[key].type)}, not {to_text(value)}.")
        flags.append(Flag(key, value if isinstance(value, str) else to_text(value), f"in {file}"))
    return flags


def to_text(value: Any) -> str:
    """A value as the YAML that a flag takes, which does not know the pairs of escapes that JSON makes of an emoji."""
    return json.dumps(value, ensure_ascii=False)


def read_yaml(file: Path, what: str = "recipe") -> dict[str, Any]:
    """A file's keys and values; UserError, which calls the file `what`, where it holds anything else."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader) or {}
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.yaml")], n=3)
        names = " or ".join(str(file.parent / name) for name in near)
        raise UserError(
            f"There is no {what} {file}: " + (f"did you mean {names}?" if near else f"look into {file.parent}/.")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The {what} {file} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"The {what} {file}{where} is not good YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"The {what} {file} must hold keys and values, such as 'seed: 0'.")
    return content


def _command_line_flags(arguments: Sequence[str]) -> list[Flag]:
    flags, rest = [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise UserError(f"'{flag}' on the command line belongs to no flag; write --section.key value.")
        key = _check_key(flag[2:], "on the command line")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag} on the command line has no value; write {flag} VALUE.")
            value = rest.pop(0)
        flags.append(Flag(key, value, "on the command line"))
    return flags


def _check_key(key: str, where: str) -> str:
    """The key under its present name; UserError where there is none of that name."""
    key = RENAMED.get(key, key)
    if key in KEYS:
        return key
    inside = [known for known in KEYS if known.startswith(key + ".")]
    if inside:
        raise UserError(f"'{key}' {where} is a section; set one of its keys, such as {inside[0]}.")
    # A key may be right but in the wrong section, or misspelt: only its last word is compared.
    section, _, name = key.rpartition(".")
    names = {known: known.rpartition(".")[2] for known in KEYS}
    inside = [known for known in KEYS if section and known == f"{section}.{names[known]}"]
    near = [known for known in [*inside, *KEYS] if difflib.get_close_matches(name, [names[known]], cutoff=0.75)]
    near.sort(key=lambda known: names[known] != name)
    if near:
        hint = f"did you mean {near[0]}?"
    elif inside:
        hint = f"the keys of '{section}' are {', '.join(names[known] for known in inside)}."
    else:
        hint = "the keys are listed by --help."
    raise UserError(f"There is no recipe key '{key}' ({where}): {hint}")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a duplicate key is an error, and 1e-4 a number (as in YAML 1.2)."""

    def construct_mapping(self, node, deep=False):
        seen = []  # a key may be a list, which is another error
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", key_node.start_mark
                )
            seen.append(key)
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
    """A type in words, for --help and error messages."""
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
        ClosedUnitInterval: "a number from 0 to 1",
        float: "a number",
        bool: "true or false",
        int: "a whole number",
        str: "a text",
        types.NoneType: "null",
    }
    return words[kind]
