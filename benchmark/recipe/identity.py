"""Which keys make two runs the same run, which make their results comparable, and which may be published."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.recipe.parser import load_recipe
from benchmark.recipe.schema import KEYS, Recipe, flatten

UNIMPORTANT = ("data.custom.name", "data.custom.allow_absent")  # they change no sample


def identity(recipe: Recipe) -> dict[str, Any]:
    """Every key that changes a result, by its dotted name.

    Machine keys and output are not among them; neither is the section of a head that the model does not have, nor
    data.custom where no dataset is made of it.
    """
    custom = {"folder", "hub"} & {recipe.data.train, *recipe.data.val}
    found = {}
    for key, value in flatten(recipe.to_dict()):
        section = key.split(".")
        if section[0] == "output" or KEYS[key].metadata.get("machine"):
            continue
        if key.startswith("data.custom.") and (not custom or key in UNIMPORTANT):
            continue
        if section[0] == "model" and len(section) == 3 and section[1] != recipe.model.head:
            continue
        found[key] = value
    found["data.crop_size"] = list(recipe.data.crop)  # 512 is [512, 512]
    return found


def protocol(recipe: Recipe) -> str:
    """A hash of what makes two results comparable: the identity without the encoder under comparison and the seed."""
    keys = identity(recipe)
    return _hash({key: keys[key] for key in keys if key != "seed" and not KEYS[key].metadata.get("encoder")})[:16]


def identity_hash(recipe: Recipe) -> str:
    """A hash of the identity."""
    return _hash(identity(recipe))


def _hash(keys: dict[str, Any]) -> str:
    """The sha256 of the keys that differ from their defaults: a key that is added later changes no hash."""
    defaults = dict(flatten(Recipe().to_dict())) | {"data.crop_size": list(Recipe().data.crop)}
    differing = {key: value for key, value in keys.items() if value != defaults[key]}
    return hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()


def difference(file: Path, wanted: dict[str, Any]) -> str | None:
    """The first key in which a saved recipe.yaml differs from the identity `wanted`, in words; None where none does.

    A key that the file lacks has its default: the file may be older than the key.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        saved = identity(load_recipe([str(file)]))
    except UserError as error:
        raise UserError(f"{file} is damaged ({error}) Restore the file, or remove the run.") from None
    for key, value in wanted.items():
        if key in saved and saved[key] != value:
            return f"{key} is {saved[key]} there and {value} here"
    return None


def public(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it may be published: without this machine's folders, and of another absolute path its last part."""
    tree = recipe.to_dict()
    for key, value in list(flatten(tree)):
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        if key in ("data.root", "data.cache_dir", "output.dir"):
            place[name] = KEYS[key].default
        elif isinstance(value, str) and os.path.isabs(value):
            place[name] = os.path.basename(value.rstrip("/"))
    return tree


def settings(recipe: Recipe) -> dict[str, Any]:
    """The identity as it may be published, without what people say of their own data."""
    keys = identity(recipe)
    return {key: value for key, value in flatten(public(recipe)) if key in keys and not key.startswith("data.custom.")}
