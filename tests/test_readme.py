"""Every command of the README and of docs/ is parsed by what it calls, and every file they name is there."""

import configparser
import functools
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from launching import ROOT

from benchmark.__main__ import COMMANDS
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.recipe.parser import CommandParser
from benchmark.recipe.schema import KEYS
from benchmark.reporting.model_folder import save_model
from benchmark.training.build import describe

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S)]
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
ASSIGNMENT = re.compile(r"[A-Z_]+=\S+")


def commands() -> list[tuple[str, ...]]:
    parts = [part for line in LINES if line and not line.startswith("#") for part in line.split("&&")]
    words = [shlex.split(part) for part in parts]
    return sorted({tuple(word for word in command if not ASSIGNMENT.fullmatch(word)) for command in words})


def test_there_are_commands():
    assert ("pytest",) in commands() and len(commands()) > 8


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_is_one_that_works(command, capsys):
    program = command[0]
    if program == "accelerate" and command[1] == "launch":
        check_launch(command[2:])
    elif program == "python" and command[1] == "-m":
        assert command[2] == "venv" or (command[2] == "benchmark" and command[3] in COMMANDS)
        if command[2] == "benchmark":
            check_flags(command)
    elif program == "python" and "-m" not in command:
        check_launch(command[1:])
    else:
        # What is not ours: pip's editable installs, pytest, and programs that the dependencies bring.
        assert program in ("pip", "pytest", "tensorboard", "lint-imports", "ruff", "sbatch", "cd", "git", "source")


def check_launch(words: Sequence[str]) -> None:
    script = words.index("train.py")
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    parser = CommandParser()
    parser.add_recipe()
    parser.add_argument("--resume")
    parser.add_argument("--dry_run", action="store_true")
    _, recipe = parser.parse_recipe(words[script + 1 :])
    describe(recipe)


@functools.cache
def help_of(command: str) -> str:
    line = [sys.executable, "-m", "benchmark", command, "--help"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def check_flags(command: Sequence[str]) -> None:
    """The command's own --help knows each of its flags, but for overrides of the recipe."""
    for word in command[4:]:
        assert not word.startswith("--") or word in help_of(command[3]) or word[2:] in KEYS
    for before, word in itertools.pairwise(command):
        if word.endswith(".yaml") and before != "--output" and word != "my.yaml":
            assert (ROOT / word).is_file()


def test_every_file_that_is_named_exists():
    for page in PAGES:
        text = page.read_text()
        for name in set(re.findall(r"\]\(([\w./-]+)\)", text)):
            assert (page.parent / name).exists(), (page.name, name)
        made = {"results.json", "recipe.yaml", "report.md", "lines.txt"}
        for name in set(re.findall(r"`([\w/]+/[\w/]+\.(?:py|yaml|md|sh))`", text)) - made:
            assert (ROOT / name).exists(), (page.name, name)
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
            compile(block, page.name, "exec")


def test_the_librarys_examples_run(tmp_path, monkeypatch):
    """The blocks of docs/api.md, one after the other, as a reader would paste them."""
    config = SegmentationConfig(encoder="test_vit", crop_size=(32, 32), num_labels=3)
    model = SegmentationModel(config)
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "runs/quickstart/test_vit-seed0/model", config, model.state_dict())
    rng = np.random.default_rng(0)
    names = {"image": rng.integers(0, 256, (40, 70, 3), np.uint8), "truth": rng.integers(0, 3, (40, 70), np.uint8)}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), flags=re.S)
    exec(blocks[0] + blocks[1], names)
    assert names["labels"].shape == (40, 70) and names["labels"].dtype == np.uint8
    union = [((names["labels"] == c) | (names["truth"] == c)).sum() for c in range(3)]
    hits = [((names["labels"] == c) & (names["truth"] == c)).sum() for c in range(3)]
    expected = np.mean([h / u for h, u in zip(hits, union, strict=True) if u])
    assert names["scores"]["mean_iou"] == pytest.approx(expected)
    first = names.pop("scores")
    exec(blocks[2], names)
    assert names["scores"] == first


def test_the_drawing_is_the_contract():
    """The rooms of the README, from above to below, are the layers that import-linter checks."""
    drawing = re.search(r"```\ntrain\.py .*?\n(.*?)```", README, flags=re.S)[1]
    rooms = [line.split()[0] for line in drawing.splitlines()]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:layers"]["layers"].replace("|", "\n").split()
    assert rooms == [layer.removeprefix("benchmark.") for layer in layers if layer != "benchmark.__main__"]
    folders = {path.name for path in (ROOT / "benchmark").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {"data_scripts"} == set(rooms)


def test_ci_runs_the_readmes_test_command():
    assert "pip install -e '.[test]' && pytest" in README
    ci = (ROOT / ".ci/run").read_text()
    assert "pip install" in ci and "-e '.[test]'" in ci and "\npytest" in ci and "\npre-commit run --all-files" in ci


def test_train_py_is_short_and_knows_only_what_it_may():
    text = (ROOT / "train.py").read_text()
    assert text.count("\n") < 40
    imported = re.findall(r"^\s*from (\S+) import", text, flags=re.M)
    assert set(imported) <= {
        "benchmark.errors",
        "benchmark.recipe.parser",
        "benchmark.training.build",
        "benchmark.training.loop",
    }
