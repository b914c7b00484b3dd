"""Adapters: merged as peft merges them, trained everywhere, and gone in the saved model."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from launching import parse
from torch import nn

from benchmark.__main__ import main
from benchmark.errors import UserError
from benchmark.models.encoder import Encoder
from benchmark.models.encoder_checkpoint import fill_encoder
from benchmark.recipe.parser import load_recipe
from benchmark.training.build import check_model
from benchmark.training.loop import train
from benchmark.training.lora import add_adapters, check_adapters, merged_adapters, without_adapters

peft = pytest.importorskip("peft")
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "encoders").glob("*.yaml"))
# One of each kind of attention; those of beit and qkvb use the layer's weight without calling it.
KINDS = [
    "vit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_pe_spatial_tiny_patch16_512",
    "beit_base_patch16_224",
    "vit_relpos_small_patch16_224",
    "samvit_base_patch16",
]


def adapted(name: str, rank: int = 3) -> Encoder:
    """A shallow encoder with adapters that all have a say, also B, which starts at zero."""
    torch.manual_seed(0)
    options = {"global_attn_indexes": (1,)} if "samvit" in name else {}
    encoder = Encoder(name, (32, 32), 16, depth=2, **options)
    for parameter in encoder.parameters():  # also what timm starts at zero
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    add_adapters(encoder, rank)
    for key, parameter in encoder.named_parameters():
        if ".lora_B." in key:
            parameter.data.normal_(0, 0.1)
    return encoder


def check_gradients_and_merging(name: str) -> None:
    encoder = adapted(name)
    pixels = torch.randn(2, 3, 32, 32)
    encoder(pixels).square().mean().backward()
    check_adapters(encoder)
    trained = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
    assert all(".lora_" in key and ".attn." in key for key in trained)
    assert all(p.grad.abs().max() > 0 for p in trained.values())

    encoder.eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.no_grad():
        unmerged = encoder(pixels)
        with merged_adapters(encoder):
            merged = encoder(pixels)
            weights = {key: value.clone() for key, value in without_adapters(encoder.state_dict()).items()}
        assert torch.equal(encoder(pixels), unmerged)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    scale = unmerged.abs().max()
    assert (merged - unmerged).abs().max() < 1e-5 * max(1, scale)

    options = {"global_attn_indexes": (1,)} if "samvit" in name else {}
    plain = Encoder(name, (32, 32), 16, depth=2, **options).eval()
    assert plain.state_dict().keys() == weights.keys()
    plain.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(plain(pixels), merged)  # what is scored is what is saved


@pytest.mark.parametrize("name", KINDS)
def test_every_adapter_has_a_gradient_and_merged_is_unmerged(name):
    check_gradients_and_merging(name)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_adapter_of_every_recipe_has_a_gradient_and_merged_is_unmerged(path):
    check_gradients_and_merging(yaml.safe_load(path.read_text())["model"]["encoder"])


def test_a_new_adapter_changes_nothing():
    torch.manual_seed(0)
    encoder = Encoder("test_vit", (32, 32), 16).eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = encoder(pixels)
        add_adapters(encoder, 4)
        assert torch.equal(encoder(pixels), before)


def test_an_adapter_without_a_gradient_is_refused():
    """As where attention uses the layer's weight and does not call the layer."""
    encoder = adapted("beit_base_patch16_224")
    for module in encoder.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = False
    encoder(torch.randn(1, 3, 32, 32)).square().mean().backward()
    with pytest.raises(UserError, match=r"4 of 8 parts of adapters have no gradient, such as .*qkv.lora_A.*null"):
        check_adapters(encoder)


def test_a_run_trains_adapters_and_head_and_saves_a_merged_model_that_resumes(tiny, tmp_path):
    folder = tmp_path / "run"
    flags = [*tiny, "--model.lora_rank", "2", "--optim.lr", "0.01", "--train.ema_decay", "0.5"]
    results = train(parse([*flags, "--train.keep_checkpoints", "9"]))
    first, last = (
        safetensors.torch.load_file(folder / f"checkpoints/step-0000000{step}/model.safetensors") for step in (3, 6)
    )
    changed = {key for key in first if not torch.equal(first[key], last[key])}
    assert changed == {key for key in first if ".lora_" in key or key.startswith("head.")}
    total, trained = check_model(parse([*flags, "--model.lora_rank", "null"]))
    adapters = sum(value.numel() for key, value in first.items() if ".lora_" in key)
    head = sum(value.numel() for key, value in first.items() if key.startswith("head."))
    assert (results["parameters"], results["trainable_parameters"]) == (total, adapters + head)
    assert total == trained and check_model(parse(flags)) == (total, adapters + head)

    saved = safetensors.torch.load_file(folder / "model/model.safetensors")
    assert not any("lora" in key or "base_layer" in key for key in saved)
    averages = safetensors.torch.load_file(folder / "checkpoints/step-00000006/ema.safetensors")
    layer = "encoder.backbone.blocks.1.attn.qkv"
    a, b = (averages[f"{layer}.lora_{part}.default.weight"].double() for part in "AB")
    expected = first[f"{layer}.base_layer.weight"].double() + b @ a
    assert (saved[f"{layer}.weight"] - expected).abs().max() < 1e-6
    main(["evaluate", "--model", str(folder / "model"), "--output", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert (again["iou"], again["parameters"]) == (results["iou"], total)
    assert again["trainable_parameters"] == adapters + head

    (folder / "results.json").unlink()
    for file in (folder / "checkpoints/step-00000006").iterdir():
        file.unlink()
    (folder / "checkpoints/step-00000006").rmdir()
    assert train(parse(flags))["iou"] == results["iou"]
    resumed = safetensors.torch.load_file(folder / "model/model.safetensors")
    assert all(torch.equal(value, resumed[key]) for key, value in saved.items())


def test_a_merged_model_is_one_to_start_from():
    encoder = adapted("test_vit")
    with merged_adapters(encoder):
        weights = without_adapters({f"encoder.{key}": value for key, value in encoder.state_dict().items()})
        plain = Encoder("test_vit", (32, 32), 16, depth=2)
        assert not [key for key in fill_encoder(plain, weights, "x").leftover if "blocks" in key]


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"trains the encoder, but model\.freeze_encoder is true"):
        load_recipe([], ["--model.lora_rank=2", "--model.freeze_encoder=true"])
    bare = nn.Module()
    bare.name = "bare"
    with pytest.raises(UserError, match="bare has no linear layer in its attention"):
        add_adapters(bare, 2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs peft: pip install"):
        add_adapters(Encoder("test_vit", (32, 32), 16), 2)
