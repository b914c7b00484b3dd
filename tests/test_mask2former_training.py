"""The Mask2Former head in the loop."""

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
