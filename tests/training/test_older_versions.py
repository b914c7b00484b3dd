"""Folders of version 0.1.0 resume, evaluate and predict, to the same numbers."""

import json
import shutil

import pytest
import yaml
from interruption import metrics, outcome
from launching import parse

from benchmark.__main__ import main
from benchmark.reporting.manifest import encode_manifest, entry
from benchmark.training.loop import train

NEW_KEYS = {"optim": ("betas", "eps"), "model": ("mask2former",)}


def make_old(folder) -> None:
    """Rewrite a run folder as version 0.1.0 left it."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    num_points = recipe["model"]["mask2former"]["num_points"]
    del recipe["augment"]
    for section, keys in NEW_KEYS.items():
        for key in keys:
            del recipe[section][key]
    recipe["model"]["num_points"] = num_points
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for checkpoint in (folder / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        del state["saved_step"]
        state["reported"] = state.pop("logged_step")
        state["losses"] = [loss["loss"] for loss in state["losses"]]
        (checkpoint / "state.json").write_text(json.dumps(state))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        files = {name: entry((checkpoint / name).read_bytes()) for name in manifest["files"]}
        about = {"step": manifest["step"], "recipe": "0" * 64, "world_size": 1}
        (checkpoint / "manifest.json").write_bytes(encode_manifest(about, files))
    if (folder / "model").exists():
        (folder / "model/manifest.json").unlink()
        config = json.loads((folder / "model/config.json").read_text())
        del config["head_options"]
        (folder / "model/config.json").write_text(json.dumps(config | {"num_points": num_points}))


@pytest.mark.parametrize("head", ["linear", pytest.param("mask2former", marks=pytest.mark.slow)])
def test_an_old_run_resumes_and_an_old_model_is_scored_the_same(tiny, tmp_path, capsys, head):
    flags = [*tiny, "--model.head", head, "--model.mask2former.num_points", "64", "--train.keep_checkpoints", "5"]
    results = train(parse(flags))
    folder, cut = tmp_path / "run", tmp_path / "cut"
    shutil.copytree(folder, cut)
    for name in ("checkpoints/step-00000006", "model"):
        shutil.rmtree(cut / name)
    for name in ("results.json", "confusion.npz"):
        (cut / name).unlink()
    expected = outcome(folder)
    make_old(cut)
    make_old(folder)

    train(parse([*flags, "--output.dir", str(cut)]))
    assert "Resuming after step 3" in capsys.readouterr().out
    resumed = outcome(cut)
    old_losses = [line.get("train/loss") for line in metrics(cut)]
    assert old_losses == [line.get("train/loss") for line in expected.pop("metrics")]
    assert {key: resumed[key] for key in expected} == expected

    assert train(parse(flags)) == results  # a finished run
    main(["evaluate", "--model", str(folder / "model"), "--output", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert (again["mean_iou"], again["iou"]) == (results["mean_iou"], results["iou"])
