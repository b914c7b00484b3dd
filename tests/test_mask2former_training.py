"""The Mask2Former head in the loop."""

from launching import parse

from benchmark.training import train

MASK2FORMER = ["--model.head", "mask2former"]


def test_a_recipe_trains_and_scores_it(tiny, tmp_path):
    results = train(parse([*tiny, *MASK2FORMER, "--model.num_points", "256", "--train.steps", "2"]))
    assert results["head"] == "mask2former" and 0 < results["mean_iou"] < 1
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
