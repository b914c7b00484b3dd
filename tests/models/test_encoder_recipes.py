"""The recipes of the encoders: models that exist, with weights to fetch, and nothing but what makes an encoder."""

from pathlib import Path

import pytest
import timm
import yaml

from benchmark.models.encoder import encoder_defaults

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "encoders").glob("*.yaml"))
STUDY = {"eva02_clip", "eva02", "dinov2", "beit3", "siglip", "dfn", "deit3_in21k", "deit3_in1k", "mae", "sam"}


def test_the_studys_ten_are_there_in_both_sizes():
    names = {path.stem for path in RECIPES}
    assert {f"{family}_{size}" for family in STUDY for size in ("base", "large")} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_a_model_with_weights_and_its_own_statistics(path):
    recipe = yaml.safe_load(path.read_text())
    model = recipe["model"]
    assert path.read_text().startswith("# ")
    assert recipe.get("train") == ({"compile": False} if "eva02" in path.stem else None)
    assert recipe.keys() <= {"model", "train"} and model.keys() <= {"encoder", "image_mean", "image_std"}

    defaults = encoder_defaults(model["encoder"])
    assert timm.get_pretrained_cfg(model["encoder"]).hf_hub_id
    assert path.stem.split("_")[-1] in model["encoder"]
    for key in ("image_mean", "image_std"):
        if key in model:
            assert model[key] == [0.5, 0.5, 0.5] != list(getattr(defaults, key))
    assert ("image_mean" in model) == ("image_std" in model) == path.stem.startswith("beit3")
