"""The worked examples of CONTRIBUTING.md, applied to a copy of the repository: one file each, and they train."""

import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT

from benchmark.reporting.pictures import png

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n# file: (\S+)\n(.*?)```", TEXT, flags=re.S)
TINY = """
train: {steps: 2, global_batch_size: 4, eval_every: 2, log_every: 1, checkpoint_every: 2}
data: {crop_size: 64}
model: {patch_size: 16}
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository with all examples applied, and `touched`: the lines that each adds to a file that exists."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("benchmark", "data_scripts", "recipes", "train.py"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    for kind, name, body in BLOCKS:
        file = folder / name
        if kind == "diff":
            removed = "\n".join(line[1:] for line in body.splitlines() if line.startswith("-"))
            added = "\n".join(line[1:] for line in body.splitlines() if line.startswith("+"))
            text = file.read_text()
            assert text.count(removed) == 1, (name, removed)
            file.write_text(text.replace(removed, added))
        else:
            assert not file.exists()
            file.write_text(body)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


COMMANDS = """
import contextlib, io, json, sys
import train
from benchmark.__main__ import main

outputs = []
for name, *arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        if name == "train.py":
            sys.argv = [name, *arguments]
            train.main()
        else:
            main([name, *arguments])
    outputs.append(output.getvalue())
print(json.dumps(outputs))
"""


@pytest.fixture
def run(copy, cache_dir, tmp_path):
    def run(*commands: list[str]) -> list[str]:
        """What each command prints; one process runs them all, because it imports for seconds."""
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    recipes = ["--recipe", "recipes/shapes_example.yaml", "tiny.yaml"]
    run.train = ["train.py", *recipes, "--data.cache_dir", str(cache_dir), "--output.dir", str(tmp_path / "run")]
    return run


def test_each_example_is_one_file_and_at_most_a_line_with_its_import():
    kinds = [kind for kind, _, _ in BLOCKS]
    assert kinds == ["yaml", "yaml", "python", "diff", "python", "diff", "python", "diff"]
    for kind, _, body in BLOCKS:
        if kind == "diff":
            changed = [line for line in body.splitlines() if line.startswith("+") and line != "+"]
            assert len(changed) <= 2 and len([line for line in changed if "import" not in line]) == 1


def test_the_encoder_is_listed_and_the_setting_the_head_and_the_metric_train(run, tmp_path):
    listed, _, evaluated = run(
        ["encoders", "tiny_example"],
        [*run.train, "--model.head", "normed_linear"],
        ["evaluate", "--model", str(tmp_path / "run/model")],
    )
    line = next(line for line in listed.splitlines() if "tiny_example" in line)
    assert line.startswith("test_vit2.r160_in1k") and "An example: a tiny ViT from timm" in line
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["setting"] == "shapes_example" and results["head"] == "normed_linear"
    assert results["labelled_share"] == 1.0 == results["datasets"]["shapes"]["labelled_share"]
    assert "val/labelled_share" in (tmp_path / "run/metrics.jsonl").read_text()
    assert "mean IoU" in evaluated
    assert (tmp_path / "run/model/normed_linear_head.py").exists()  # it travels to the Hub


def test_the_dataset_trains(run, tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "example.zip", "w") as archive:
        for split, count in (("train", 4), ("val", 2)):
            for number in range(count):
                image = np.repeat(rng.integers(0, 256, (70, 80, 1), np.uint8), 3, axis=2)
                archive.writestr(f"{split}/images/{number}.png", png(image))
                archive.writestr(f"{split}/labels/{number}.png", png(rng.choice([0, 1, 9], (70, 80)).astype(np.uint8)))
    run([*run.train, "--data.train", "example", "--data.val", "[example]", "--data.root", str(tmp_path)])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert set(results["iou"]) == {"ground", "thing"} and results["labelled_share"] == pytest.approx(2 / 3, abs=0.02)


def test_each_mutation_changes_one_place():
    mutations = runpy.run_path(str(ROOT / "tests" / "mutations.py"))["MUTATIONS"]
    counts = {mutation.what: (ROOT / mutation.file).read_text().count(mutation.old) for mutation in mutations}
    assert counts == dict.fromkeys(counts, 1)
