"""The Mask2Former head in the loop: it trains from a recipe, and it can learn a few scenes by heart."""

import dataclasses

import pytest

import data_scripts
from benchmark.command_line import CommandParser
from benchmark.training import train

MASK2FORMER = ["--model.head", "mask2former"]


def parse(flags):
    parser = CommandParser()
    parser.add_recipe()
    return parser.parse_recipe(flags)[1]


def test_a_recipe_trains_and_scores_it(tiny, tmp_path):
    results = train(parse([*tiny, *MASK2FORMER, "--model.num_points", "256", "--train.steps", "2"]))
    assert results["head"] == "mask2former" and 0 < results["mean_iou"] < 1
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_it_learns_eight_scenes_by_heart(tiny, monkeypatch):
    """mIoU of at least 0.95 on the eight images that it was trained on."""
    prepare = data_scripts.prepare

    def first_eight(*arguments, **options):
        dataset = prepare(*arguments, **options)
        rows = dataset.splits["train"].select(range(8))
        return dataclasses.replace(dataset, splits={"train": rows, "validation": rows})

    monkeypatch.setattr(data_scripts, "prepare", first_eight)
    options = {
        "data.crop_size": 96,
        "model.patch_size": 4,
        "model.num_points": 1024,
        "optim.lr": 1e-3,
        "train.steps": 800,
        "train.global_batch_size": 8,
        "train.log_every": 50,
        "train.eval_every": 200,
        "train.checkpoint_every": 800,
    }
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert train(parse([*tiny, *MASK2FORMER, *flags]))["mean_iou"] >= 0.95
