"""Launches as a user makes them, in real processes from the repository's root, and the recipe of their flags."""

import os
import subprocess
import sys
from pathlib import Path

from benchmark.recipe.parser import CommandParser
from benchmark.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run python from the repository's root, as a user does, with one thread."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def parse(flags: list[str]) -> Recipe:
    """The recipe that train.py makes of `flags`."""
    parser = CommandParser()
    parser.add_recipe()
    return parser.parse_recipe(flags)[1]
