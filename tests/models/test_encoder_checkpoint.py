"""Checkpoints of every layout into an encoder; what does not fit, is absent, or is no checkpoint at all is refused."""

import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from benchmark.models import encoder_checkpoint
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.encoder import Encoder
from benchmark.models.encoder_checkpoint import fill_encoder, load_encoder_weights
from benchmark.models.errors import ModelError

SHRUNK = {"depth": 2, "embed_dim": 64, "num_heads": 4}
VIT = "vit_base_patch16_224.mae"
BEIT3 = "beit3_base_patch16_224.pt"


def vit_weights(**kwargs) -> dict[str, torch.Tensor]:
    return timm.create_model(VIT, num_classes=0, **(SHRUNK | kwargs)).state_dict()


def vit_encoder() -> Encoder:
    return Encoder(VIT, (224, 224), 16, **SHRUNK)


def torchscale_beit3() -> dict[str, torch.Tensor]:
    """A checkpoint as BEiT-3's authors publish it: branches A (vision) and B (text), and q, k, v apart."""
    width, hidden = 64, 256
    shapes = {
        "self_attn.inner_attn_ln": (width,),
        "self_attn_layer_norm": (width,),
        "final_layer_norm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width),
        "self_attn.out_proj": (width, width),
        "ffn.{}.fc1": (hidden, width),
        "ffn.{}.fc2": (width, hidden),
        "ffn.{}.ffn_layernorm": (hidden,),
    }
    weights = {
        "beit3.text_embed.weight": torch.randn(10, width),
        "beit3.vision_embed.mask_token": torch.randn(1, 1, width),
        "beit3.vision_embed.cls_token": torch.randn(1, 1, width),
        "beit3.vision_embed.proj.weight": torch.randn(width, 3, 16, 16),
        "beit3.vision_embed.proj.bias": torch.randn(width),
        "beit3.encoder.embed_positions.A.weight": torch.randn(2 + 1 + 14 * 14, width),
        "beit3.encoder.embed_positions.B.weight": torch.randn(20, width),
    }
    for branch in "AB":
        for layer in range(2):
            for name, shape in shapes.items():
                name = name.format(branch) if "{}" in name else f"{name}.{branch}"
                weights[f"beit3.encoder.layers.{layer}.{name}.weight"] = torch.randn(shape)
                weights[f"beit3.encoder.layers.{layer}.{name}.bias"] = torch.randn(shape[0])
        weights[f"beit3.encoder.layer_norm.{branch}.weight"] = torch.randn(width)
        weights[f"beit3.encoder.layer_norm.{branch}.bias"] = torch.randn(width)
    return weights


def place_by_hand(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under timm's names, written out."""
    layer_names = {
        "norm1": "self_attn_layer_norm.A",
        "norm2": "final_layer_norm.A",
        "attn.norm": "self_attn.inner_attn_ln.A",
        "attn.proj": "self_attn.out_proj.A",
        "mlp.fc1": "ffn.A.fc1",
        "mlp.fc2": "ffn.A.fc2",
        "mlp.norm": "ffn.A.ffn_layernorm",
    }
    placed = {
        "cls_token": source["beit3.vision_embed.cls_token"],
        "pos_embed": source["beit3.encoder.embed_positions.A.weight"][2:][None],
    }
    for leaf in ("weight", "bias"):
        placed[f"patch_embed.proj.{leaf}"] = source[f"beit3.vision_embed.proj.{leaf}"]
        placed[f"norm.{leaf}"] = source[f"beit3.encoder.layer_norm.A.{leaf}"]
        for layer in range(2):
            prefix = f"beit3.encoder.layers.{layer}"
            for ours, theirs in layer_names.items():
                placed[f"blocks.{layer}.{ours}.{leaf}"] = source[f"{prefix}.{theirs}.{leaf}"]
            parts = [source[f"{prefix}.self_attn.{part}_proj.A.{leaf}"] for part in "qkv"]
            placed[f"blocks.{layer}.attn.qkv.{leaf}"] = torch.cat(parts)
    return placed


def test_beit3_as_published_equals_the_same_tensors_placed_by_hand(tmp_path):
    source = torchscale_beit3()
    torch.save({"model": source}, tmp_path / "beit3_base_patch16_224.pth")
    encoder = Encoder(BEIT3, (224, 224), 16, **SHRUNK)
    report = load_encoder_weights(encoder, checkpoint=tmp_path / "beit3_base_patch16_224.pth")

    assert report.leftover == []
    loaded, placed = encoder.backbone.state_dict(), place_by_hand(source)
    assert loaded.keys() == placed.keys()
    assert all(torch.equal(loaded[key], placed[key]) for key in placed)


def test_beit3_final_norm_is_found_where_average_pooling_had_moved_it(tmp_path):
    pooled = timm.create_model(BEIT3, num_classes=0, **SHRUNK).state_dict()
    pooled["fc_norm.weight"] = torch.randn(64)
    safetensors.torch.save_file(pooled, tmp_path / "model.safetensors")
    encoder = Encoder(BEIT3, (224, 224), 16, **SHRUNK)
    load_encoder_weights(encoder, checkpoint=tmp_path / "model.safetensors")
    assert torch.equal(encoder.backbone.norm.weight, pooled["fc_norm.weight"])


@pytest.mark.parametrize(
    ("suffix", "wrapper"),
    [(".safetensors", None)] + [(s, w) for s in (".pth", ".pt", ".bin") for w in (None, "model", "state_dict")],
)
def test_timm_files_of_every_kind_load_and_leftovers_are_listed(suffix, wrapper, tmp_path):
    weights = vit_weights() | {"head.weight": torch.randn(10, 64)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, path)
    encoder = vit_encoder()
    report = load_encoder_weights(encoder, checkpoint=path)
    assert report == (str(path), ["head.weight"])
    assert all(torch.equal(value, weights[key]) for key, value in encoder.backbone.state_dict().items())


def test_half_precision_weights_are_resampled_in_full_precision(tmp_path):
    half = {key: value.half() for key, value in vit_weights().items()}
    for name, weights in {"half": half, "full": {key: value.float() for key, value in half.items()}}.items():
        safetensors.torch.save_file(weights, tmp_path / f"{name}.safetensors")
    encoders = [Encoder(VIT, (64, 64), 8, **SHRUNK) for _ in range(2)]
    for name, encoder in zip(["half", "full"], encoders, strict=True):
        load_encoder_weights(encoder, checkpoint=tmp_path / f"{name}.safetensors")
    half_loaded, full_loaded = (encoder.backbone.state_dict() for encoder in encoders)
    assert all(torch.equal(half_loaded[key], full_loaded[key]) for key in full_loaded)


class Bomb:
    """Unpickling it touches a file: the proof that code ran."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: Path(path).write_bytes(pickle.dumps(thing))])
def test_a_malicious_pickle_is_refused_and_does_not_run(write, tmp_path):
    mark = tmp_path / "ran"
    write({"model": vit_weights(), "extra": Bomb(mark)}, tmp_path / "bomb.pth")
    torch.load(tmp_path / "bomb.pth", weights_only=False) if write is torch.save else pickle.loads(
        (tmp_path / "bomb.pth").read_bytes()
    )
    assert mark.exists(), "the bomb must be a live one"
    mark.unlink()

    assert_refused(tmp_path / "bomb.pth", "bomb.pth", "more than tensors")
    assert not mark.exists()


def assert_refused(path: Path, *parts: str, encoder: Encoder | None = None) -> None:
    """One sentence that holds every part, and an encoder as it was."""
    encoder = encoder or vit_encoder()
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    with pytest.raises(ModelError) as error:
        load_encoder_weights(encoder, checkpoint=path)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert all(torch.equal(value, before[key]) for key, value in encoder.backbone.state_dict().items())


def test_another_width_is_refused_with_both_shapes(tmp_path):
    torch.save(vit_weights(embed_dim=96), tmp_path / "wide.pth")
    shapes = ["(1, 1, 96)", "(1, 1, 64)"]
    assert_refused(tmp_path / "wide.pth", VIT, "2 blocks of width 96", "2 blocks of width 64", *shapes)


@pytest.mark.parametrize(("depth", "named"), [(3, "has no blocks.2.norm1.weight"), (1, "lacks blocks.1.norm1.weight")])
def test_another_depth_is_refused_with_both_depths(depth, named, tmp_path):
    torch.save(vit_weights(depth=depth), tmp_path / "deep.pth")
    assert_refused(tmp_path / "deep.pth", f"{depth} blocks of width 64", "2 blocks of width 64", named)


@pytest.mark.parametrize(
    "other",
    ["eva02_base_patch14_224.mim_in22k", "deit3_base_patch16_384.fb_in1k", "samvit_base_patch16.sa1b", "resnet10t"],
)
def test_another_architecture_is_refused(other, tmp_path):
    kwargs = {} if other == "resnet10t" else SHRUNK
    torch.save(timm.create_model(other, **kwargs).state_dict(), tmp_path / "other.pth")
    assert_refused(tmp_path / "other.pth", "other.pth", VIT, "2 blocks of width 64")


def test_a_missing_weight_is_named(tmp_path):
    weights = vit_weights()
    del weights["blocks.1.attn.proj.weight"]
    torch.save(weights, tmp_path / "torn.pth")
    assert_refused(tmp_path / "torn.pth", "lacks blocks.1.attn.proj.weight")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    assert_refused(tmp_path / "absent.pth", "absent.pth", "model.checkpoint")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert_refused(tmp_path / "text.pth", "text.pth", "damaged")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    assert_refused(tmp_path / "text.safetensors", "text.safetensors", "damaged")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert_refused(tmp_path / "list.pth", "list.pth")


def test_pretrained_weights_come_from_timms_hub(monkeypatch):
    weights = {key: torch.randn_like(value) for key, value in vit_weights().items()}
    published = {("timm/" + VIT, True): weights}
    monkeypatch.setattr(
        encoder_checkpoint, "load_state_dict_from_hf", lambda name, weights_only: published[name, weights_only]
    )
    encoder = vit_encoder()
    assert load_encoder_weights(encoder) == ("timm/" + VIT, [])
    assert all(torch.equal(value, weights[key]) for key, value in encoder.backbone.state_dict().items())


def test_without_network_the_sentence_says_what_to_do(monkeypatch):
    def no_network(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(encoder_checkpoint, "load_state_dict_from_hf", no_network)
    with pytest.raises(ModelError, match=re.escape(VIT) + ".*network.*model.checkpoint.*model.pretrained"):
        load_encoder_weights(vit_encoder())


def test_a_model_without_published_weights_says_so():
    encoder = Encoder("beit3_giant_patch14_224", (28, 28), 14, **SHRUNK)
    with pytest.raises(ModelError, match="no pretrained weights of beit3_giant"):
        load_encoder_weights(encoder)


def test_neither_leaves_the_encoder_as_it_was():
    encoder = vit_encoder()
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    assert load_encoder_weights(encoder, pretrained=False).source == "random"
    assert all(torch.equal(value, before[key]) for key, value in encoder.backbone.state_dict().items())


@pytest.mark.parametrize("names", [("student", "teacher"), ("teacher", "student"), ("model", "ema")])
def test_of_a_teacher_and_a_student_the_teachers_weights_are_taken(names, tmp_path):
    encoder, weights = vit_encoder(), vit_weights()
    taken = {"teacher": 2.0, "ema": 2.0}
    file = {
        f"{name}.backbone.{key}": torch.full_like(value, taken.get(name, 1.0))
        for name in names
        for key, value in weights.items()
    }
    torch.save(file, tmp_path / "dino.pth")
    load_encoder_weights(encoder, checkpoint=str(tmp_path / "dino.pth"))
    assert (encoder.backbone.blocks[0].attn.qkv.weight == 2).all()


# Positions


def with_coordinates(crop, name=VIT, **options) -> Encoder:
    """An encoder whose positions say, in two channels, at which share of the height and of the width they lie."""
    encoder = Encoder(name, crop, 16, **(SHRUNK | options))
    rows, columns = ((torch.arange(n) + 0.5) / n for n in encoder.grid_size)
    table = encoder.backbone.pos_embed.data.zero_()
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    table[0, -len(grid) :, :2] = grid
    return encoder


@pytest.mark.parametrize("name", [VIT, "eva02_base_patch16_clip_224.merged2b"])
@pytest.mark.parametrize(
    ("trained", "wanted"),
    [
        ((112, 448), (112, 448)),  # as many tokens as in pretraining
        ((112, 448), (224, 224)),
        ((256, 512), (512, 256)),
        ((256, 256), (128, 512)),
        ((256, 512), (256, 256)),
    ],
)
def test_positions_of_a_trained_crop_are_where_they_were(trained, wanted, name):
    encoder, expected = Encoder(name, wanted, 16, **SHRUNK), with_coordinates(wanted, name)
    fill_encoder(encoder, with_coordinates(trained, name).backbone.state_dict(), "a run", trained)
    error = (encoder.backbone.pos_embed - expected.backbone.pos_embed).abs().max()
    assert error == 0 if trained == wanted else error < 0.03  # of 1; at the border bicubic resampling has no neighbours


@pytest.mark.parametrize("name", [VIT, "beit_base_patch16_224", "vit_relpos_base_patch16_224"])
def test_a_crop_that_is_not_square_gives_its_own_weights_again(name):
    trained, encoder = (Encoder(name, (64, 144), 16, **SHRUNK) for _ in range(2))
    for weight in trained.parameters():
        torch.nn.init.normal_(weight)
    fill_encoder(encoder, trained.backbone.state_dict(), "a run", (64, 144))
    for key, value in trained.backbone.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[key], value), key


def test_a_file_says_by_the_configuration_beside_it_at_which_crop_it_was_trained(tmp_path):
    weights = with_coordinates((128, 512)).backbone.state_dict()
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"encoder.backbone.{key}": value for key, value in weights.items()}, file)
    encoder = Encoder(VIT, (128, 512), 16, **SHRUNK)
    with pytest.raises(ModelError, match=r"256 tokens, which may be 16x16 or 8x32: name its run with model.init_from"):
        load_encoder_weights(encoder, checkpoint=str(file))
    (tmp_path / "config.json").write_text('{"model_type": "other", "crop_size": [128, 512]}')
    with pytest.raises(ModelError, match="may be 16x16 or 8x32"):
        load_encoder_weights(encoder, checkpoint=str(file))
    SegmentationConfig(encoder=VIT, crop_size=(128, 512)).save_pretrained(tmp_path)
    load_encoder_weights(encoder, checkpoint=str(file))
    assert torch.equal(encoder.backbone.pos_embed, weights["pos_embed"])


def test_positions_of_neither_a_square_nor_the_pretraining_say_so(tmp_path):
    weights = with_coordinates((128, 256)).backbone.state_dict()
    with pytest.raises(ModelError, match=r"129 positions, which are neither .* nor those of a square: name the run"):
        fill_encoder(vit_encoder(), weights, "a file")
