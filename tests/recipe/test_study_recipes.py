"""The study's eight tables of ten runs: each resolves to the protocol's values, and would start."""

import json
import re
import runpy
from functools import lru_cache

import pytest
import yaml
from launching import ROOT

from benchmark.recipe.identity import protocol
from benchmark.recipe.parser import load_recipe
from benchmark.recipe.schema import Recipe, flatten
from benchmark.training.build import describe, model_config

# name: (base encoder, large encoder)
ENCODERS = {
    "eva02_clip": ("eva02_base_patch16_clip_224.merged2b", "eva02_large_patch14_clip_336.merged2b"),
    "eva02": ("eva02_base_patch14_224.mim_in22k", "eva02_large_patch14_224.mim_m38m"),
    "dinov2": ("vit_base_patch14_dinov2.lvd142m", "vit_large_patch14_dinov2.lvd142m"),
    "beit3": ("beit3_base_patch16_224.pt", "beit3_large_patch16_224.pt"),
    "siglip": ("vit_base_patch16_siglip_512.webli", "vit_large_patch16_siglip_384.webli"),
    "dfn": ("vit_base_patch16_clip_224.dfn2b", "vit_large_patch14_clip_224.dfn2b"),
    "deit3_in21k": ("deit3_base_patch16_384.fb_in22k_ft_in1k", "deit3_large_patch16_384.fb_in22k_ft_in1k"),
    "deit3_in1k": ("deit3_base_patch16_384.fb_in1k", "deit3_large_patch16_384.fb_in1k"),
    "mae": ("vit_base_patch16_224.mae", "vit_large_patch16_224.mae"),
    "sam": ("samvit_base_patch16.sa1b", "samvit_large_patch16.sa1b"),
}
# setting: (size, head, frozen, patch size, train, val, crop, steps, classes)
SETTINGS = {
    "ade20k_linear": ("base", "linear", False, 16, "ade20k", ["ade20k"], 512, 40_000, 150),
    "ade20k_linear_frozen": ("base", "linear", True, 16, "ade20k", ["ade20k"], 512, 40_000, 150),
    "ade20k_mask2former": ("base", "mask2former", False, 16, "ade20k", ["ade20k"], 512, 40_000, 150),
    "ade20k_linear_large": ("large", "linear", False, 16, "ade20k", ["ade20k"], 512, 40_000, 150),
    "ade20k_linear_patch8": ("base", "linear", False, 8, "ade20k", ["ade20k"], 512, 40_000, 150),
    "pascal_voc_linear": ("base", "linear", False, 16, "pascal_voc", ["pascal_voc"], 512, 20_000, 21),
    "cityscapes_linear": ("base", "linear", False, 16, "cityscapes", ["cityscapes"], 1024, 20_000, 19),
    "gta5_linear": ("base", "linear", False, 16, "gta5", ["cityscapes"], 1024, 20_000, 19),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# by encoder, whatever its size; the others have ImageNet's
NORMALISATION = {"eva02_clip": CLIP, "eva02": CLIP, "dfn": CLIP, "beit3": HALF, "siglip": HALF}
RUNS = [(setting, encoder) for setting in SETTINGS for encoder in ENCODERS]


@lru_cache
def resolve(setting: str, encoder: str) -> Recipe:
    size = SETTINGS[setting][0]
    return load_recipe([str(ROOT / f"recipes/{setting}.yaml"), str(ROOT / f"recipes/encoders/{encoder}_{size}.yaml")])


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a dry run needs no network")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_there_are_eighty_runs_each_with_a_folder_of_its_own():
    assert len({resolve(*run).output.dir for run in RUNS}) == 80


@pytest.mark.parametrize(("setting", "encoder"), RUNS)
def test_a_run_has_the_protocols_values(setting, encoder):
    size, head, frozen, patch_size, train, val, crop, steps, _ = SETTINGS[setting]
    found = dict(flatten(resolve(setting, encoder).to_dict()))
    expected = {
        "seed": 0,
        "data.train": train,
        "data.val": val,
        "data.crop_size": crop,
        "data.allow_partial": False,
        "model.encoder": ENCODERS[encoder][size == "large"],
        "model.head": head,
        "model.patch_size": patch_size,
        "model.pretrained": True,
        "model.checkpoint": None,
        "model.freeze_encoder": frozen,
        "model.mask2former.num_points": 12_544,
        "optim.lr": 1e-4,
        "optim.encoder_lr_multiplier": 0.1,
        "optim.weight_decay": 0.05,
        "optim.poly_power": 0.9,
        "train.steps": steps,
        "train.global_batch_size": 16,
        "train.precision": "bf16",
        "train.compile": not encoder.startswith("eva02"),
        "train.eval_every": 1000,
        "output.setting": setting,
    }
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(("setting", "encoder"), RUNS)
def test_a_dry_run_needs_neither_network_nor_data(setting, encoder, offline, capsys):
    recipe = resolve(setting, encoder)
    describe(recipe)
    resolved, counts = re.match(r"(.*)^parameters: (.*) are trained$", capsys.readouterr().out, re.S | re.M).groups()
    assert yaml.safe_load(resolved) == recipe.to_dict()
    total, trained = (int(count.replace(",", "")) for count in counts.split(", of which "))
    size, head, frozen, *_, num_classes = SETTINGS[setting]
    width, millions = {"base": (768, 85), "large": (1024, 303)}[size]
    assert trained == ((width + 1) * num_classes if frozen else total)
    assert 0 < total / 1e6 - millions < (22 if head == "mask2former" else 6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_pixels_are_normalised_as_the_encoder_was_pretrained(encoder):
    for setting in SETTINGS:
        config = model_config(resolve(setting, encoder), ["a"], None)
        assert (tuple(config.image_mean), tuple(config.image_std)) == NORMALISATION.get(encoder, IMAGENET)


def test_hashes_never_change():
    """Results of different versions are compared by them: tests/golden/protocols.json is never written again."""
    frozen = json.loads((ROOT / "tests/golden/protocols.json").read_text())
    assert {setting: protocol(resolve(setting, "dinov2")) for setting in SETTINGS} == frozen


def test_a_setting_says_only_what_differs_from_the_default_one():
    default = yaml.safe_load((ROOT / "recipes/ade20k_linear.yaml").read_text())
    keys = dict(flatten(default))
    for setting in SETTINGS:
        if setting == "ade20k_linear":
            assert "base" not in default and {"augment.hue", "optim.betas", "train.steps"} <= set(keys)
            continue
        own = dict(flatten(yaml.safe_load((ROOT / f"recipes/{setting}.yaml").read_text())))
        own.pop("base")
        assert own and all(keys.get(key) != value for key, value in own.items()), setting


def test_a_tables_runs_are_comparable_and_the_large_ones_with_the_defaults_too():
    protocols = {setting: {protocol(resolve(setting, encoder)) for encoder in ENCODERS} for setting in SETTINGS}
    assert all(len(hashes) == 1 for hashes in protocols.values())
    assert protocols.pop("ade20k_linear_large") == protocols["ade20k_linear"]
    assert len(set().union(*protocols.values())) == 7


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_file_opens_with_its_own_command(setting):
    words = (ROOT / f"recipes/{setting}.yaml").read_text().partition("\n")[0].split()
    assert words[:7] == ["#", "accelerate", "launch", "--quiet", "train.py", "--recipe", f"recipes/{setting}.yaml"]
    recipe = load_recipe([str(ROOT / word) for word in words if word.endswith(".yaml")])
    assert recipe == resolve(setting, "dinov2") == load_recipe([str(ROOT / f"recipes/{setting}.yaml")])


def test_train_py_ends_a_dry_run_without_an_error_and_without_a_file(tmp_path, monkeypatch, offline, capsys):
    recipes = [str(ROOT / name) for name in ("recipes/gta5_linear.yaml", "recipes/encoders/beit3_base.yaml")]
    monkeypatch.setattr("sys.argv", ["train.py", "--recipe", *recipes, "--dry_run", "--data.root", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "beit3_base_patch16_224.pt" in printed and "micro batch 16" in printed
    assert not list(tmp_path.iterdir())
