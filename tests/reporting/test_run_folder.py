"""A run folder has one owner, and what the disk refuses is a sentence."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from interruption import run as run_training
from launching import ROOT, parse

from benchmark.errors import UserError, as_sentence
from benchmark.recipe.identity import identity
from benchmark.recipe.parser import load_recipe
from benchmark.reporting import run_folder
from benchmark.reporting.run_folder import RunFolder, write_atomically
from benchmark.training.loop import train

OWNER = """
import sys, time
from pathlib import Path
from benchmark.recipe.identity import identity
from benchmark.recipe.parser import load_recipe
from benchmark.reporting.run_folder import RunFolder
import multiprocessing
recipe = load_recipe([])
folder = RunFolder(Path(sys.argv[1]), identity(recipe))
folder.claim(recipe.to_yaml(), "auto")
multiprocessing.get_context("fork").Process(target=time.sleep, args=(5,)).start()  # a worker that outlives its parent
print("claimed", flush=True)
time.sleep(60)
"""


def own(folder) -> subprocess.Popen:
    """Another process that owns `folder`."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "claimed\n"
    return owner


def test_a_second_run_on_a_folder_ends_with_a_sentence_and_a_killed_owner_frees_it(tiny, tmp_path):
    folder = tmp_path / "run"
    owner = own(folder)
    recipe = load_recipe([])
    try:
        second = RunFolder(folder, identity(recipe))
        with pytest.raises(UserError, match=rf"is being trained by process {owner.pid} on .*: wait for it"):
            second.claim(recipe.to_yaml(), "auto")
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    second.claim(recipe.to_yaml(), "auto")
    assert f"process {os.getpid()}" in (folder / ".lock").read_text()
    second.close()


def test_a_folder_is_claimed_only_once_data_and_weights_are_there(tiny, tmp_path):
    """So that after a mistake in the recipe the same folder still takes the right one."""
    wrong = ["--model.pretrained", "true", "--model.encoder", "vit_tiny_patch16_224"]  # there is no network
    for flags in (wrong, ["--data.train", "camvid", "--data.val", "[camvid]", "--data.root", str(tmp_path / "none")]):
        with pytest.raises(Exception) as error:
            train(parse([*tiny, *flags]))
        assert as_sentence(error.value)
        assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert train(parse([*tiny, "--train.steps", "1"]))["step"] == 1


def test_a_finished_run_whose_results_are_damaged_is_a_sentence(tiny, tmp_path):
    train(parse([*tiny, "--train.steps", "1"]))
    (tmp_path / "run/results.json").write_text('{"mean_iou": 0.')
    with pytest.raises(UserError, match=r"results\.json is damaged .*: remove it, and the same command"):
        train(parse([*tiny, "--train.steps", "1"]))
    (tmp_path / "run/results.json").unlink()
    assert train(parse([*tiny, "--train.steps", "1"]))["step"] == 1


@pytest.mark.parametrize("call", ["rename", "fsync"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.EIO])
def test_what_a_file_system_refuses_is_a_sentence_that_names_the_file(tmp_path, monkeypatch, call, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    owner, name = (run_folder.Path, "rename") if call == "rename" else (os, "fsync")
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(UserError, match=r"recipe\.yaml.* cannot be written .*another output\.dir"):
        write_atomically(tmp_path / "recipe.yaml", b"x")


@pytest.mark.parametrize("log_every", ["1", "1000"])
def test_a_folder_that_is_removed_while_training_is_a_sentence(tiny, tmp_path, log_every):
    """Noticed at the next line of metrics, or at the next checkpoint."""
    folder = tmp_path / "run"
    flags = ["--train.steps", "100000", "--train.log_every", log_every, "--train.checkpoint_every", "20"]
    with ThreadPoolExecutor() as pool:
        run = pool.submit(run_training, [*tiny, *flags, "--train.eval_every", "100000"], tmp_path / "log")
        until = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*")):
            assert time.monotonic() < until and not run.done()
            time.sleep(0.05)
        folder.rename(tmp_path / "gone")
        statuses, errors = run.result(timeout=120), (tmp_path / "log").read_text()
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert statuses == [2] and len(sentences) == 1, errors
    assert "was removed while the run writes to it" in sentences[0]
    assert errors.rstrip().endswith(sentences[0])  # TensorBoard's thread may have noticed it, too, before


def test_results_name_the_code(tiny, tmp_path):
    versions = train(parse([*tiny, "--train.steps", "1"]))["versions"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert versions["benchmark"]
    if commit.returncode == 0:  # a checkout
        assert versions["commit"] == commit.stdout.strip() and versions["modified"] in (True, False)
    assert json.loads((tmp_path / "run/results.json").read_text())["versions"] == versions
