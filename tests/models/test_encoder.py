"""Encoders of every family: shapes, gradients, timm's own features as the oracle, round trips, and errors."""

import copy

import pytest
import timm
import torch
from timm.layers import resample_patch_embed
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from benchmark.models.encoder import Encoder, encoder_defaults
from benchmark.models.encoder_checkpoint import load_encoder_weights
from benchmark.models.errors import ModelError

BASE = [
    "eva02_base_patch16_clip_224.merged2b",
    "eva02_base_patch14_224.mim_in22k",
    "vit_base_patch14_dinov2",
    "beit3_base_patch16_224.pt",
    "vit_base_patch16_siglip_512.webli",
    "vit_base_patch16_clip_224.dfn2b",
    "deit3_base_patch16_384.fb_in22k_ft_in1k",
    "deit3_base_patch16_384.fb_in1k",
    "vit_base_patch16_224.mae",
    "samvit_base_patch16.sa1b",
]
LARGE = [
    "eva02_large_patch14_clip_336.merged2b",
    "eva02_large_patch14_224.mim_m38m",
    "vit_large_patch14_dinov2",
    "beit3_large_patch16_224.pt",
    "vit_large_patch16_siglip_384.webli",
    "vit_large_patch14_clip_224.dfn2b",
    "deit3_large_patch16_384.fb_in22k_ft_in1k",
    "deit3_large_patch16_384.fb_in1k",
    "vit_large_patch16_224.mae",
    "samvit_large_patch16.sa1b",
]
NEWER = [
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_siglip_512.v2_webli",
    "vit_pe_spatial_base_patch16_512.fb",
    "aimv2_large_patch14_224.apple_pt",
    "beit_base_patch16_224",
    "vit_relpos_base_patch16_224",
    "deit_base_distilled_patch16_224",
    "vit_base_patch16_rope_mixed_224",
    "flexivit_base.1200ep_in1k",
    "vit_base_patch16_radio_v3.c_radio",
    "vit_so400m_patch16_radio_v4.c_radio",
]
SHRUNK = {"depth": 2, "embed_dim": 64, "num_heads": 4}

# (name, crop, patch size): the study's settings
STUDY = [(name, 512, 16) for name in BASE + LARGE]
STUDY += [(name, 512, 8) for name in BASE]
STUDY += [(name, 1024, 16) for name in BASE + LARGE if name.startswith(("samvit", "eva02"))]


def shrunk(name: str) -> dict:
    """Arguments for a small model of the same make; SAM keeps one windowed and one global block."""
    return SHRUNK | ({"global_attn_indexes": [1]} if name.startswith("samvit") else {})


def timm_arguments(name: str) -> dict:
    """As BEiT-3 was pretrained: its final norm acts on every token."""
    return {"global_pool": "token"} if name.startswith("beit3") else {}


def fill_at_random(model: nn.Module) -> dict[str, torch.Tensor]:
    """Random weights of a size that leaves no part of the network without a say; returned as a copy."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + 0.05)
    return {key: value.clone() for key, value in model.state_dict().items()}


def checkpoint_of(model: nn.Module, folder) -> str:
    path = folder / "weights.pth"
    torch.save(fill_at_random(model), path)
    return str(path)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def assert_trains(name: str, crop: int, patch_size: int, **timm_kwargs) -> None:
    encoder = Encoder(name, (crop, crop), patch_size, **timm_kwargs)
    grid = crop // patch_size
    tokens = encoder(torch.randn(1, 3, crop, crop))
    assert tokens.shape == (1, grid * grid, encoder.embed_dim) and encoder.grid_size == (grid, grid)
    assert tokens.isfinite().all()
    tokens.square().mean().backward()
    without_gradient = [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not without_gradient


@pytest.mark.parametrize(("name", "crop", "patch_size"), STUDY)
def test_every_study_encoder_trains_at_its_sizes(name, crop, patch_size):
    assert_trains(name, crop, patch_size, **shrunk(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "crop", "patch_size"), STUDY)
def test_every_study_encoder_trains_at_its_sizes_in_full(name, crop, patch_size):
    assert_trains(name, crop, patch_size)


@pytest.mark.parametrize("name", [*BASE[:9], LARGE[0], LARGE[5], *NEWER])
def test_tokens_equal_timm_with_the_same_checkpoint_at_another_size(name, tmp_path):
    patch_size = 16 if "relpos" in name else 8  # timm's own loading cannot resample the patches of relpos
    size = {"img_size": (64, 96), "patch_size": patch_size}
    native = timm.create_model(name, **shrunk(name), **timm_arguments(name))
    weights = fill_at_random(native)
    source = {"state_dict": weights, "url": "", "hf_hub_id": ""}
    arguments = size | shrunk(name) | timm_arguments(name)
    oracle = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **arguments).eval()

    encoder = Encoder(name, **size, **shrunk(name)).eval()
    load_encoder_weights(encoder, checkpoint=checkpoint_of(native, tmp_path))

    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = oracle.forward_features(images)[:, oracle.num_prefix_tokens :]
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*BASE[:9], LARGE[0], LARGE[5], *NEWER])
def test_tokens_equal_timm_at_the_native_size(name, tmp_path):
    native = timm.create_model(name, **shrunk(name), **timm_arguments(name)).eval()
    defaults = encoder_defaults(name)
    encoder = Encoder(name, defaults.img_size, defaults.patch_size, **shrunk(name)).eval()
    load_encoder_weights(encoder, checkpoint=checkpoint_of(native, tmp_path))

    images = torch.randn(1, 3, *defaults.img_size)
    with torch.no_grad():
        expected = native.forward_features(images)[:, native.num_prefix_tokens :]
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("img_size", "patch_size", "window"), [((256, 256), 16, 4), ((256, 192), 8, 5)])
def test_sam_equals_timm_interpolating_its_positions_in_the_forward_pass(img_size, patch_size, window, tmp_path):
    name = "samvit_base_patch16.sa1b"
    native = timm.create_model(name, **shrunk(name))
    encoder = Encoder(name, img_size, patch_size, **shrunk(name)).eval()
    report = load_encoder_weights(encoder, checkpoint=checkpoint_of(native, tmp_path))
    assert report.leftover and all(key.startswith("neck.") for key in report.leftover)
    assert [block.window_size for block in encoder.blocks] == [window, 0]

    # timm resamples tables of any length while it runs, so the oracle keeps those of pretraining
    oracle = timm.create_model(
        name, img_size=img_size, patch_size=patch_size, window_size=window, **shrunk(name)
    ).eval()
    oracle.neck = nn.Identity()
    for key, value in native.state_dict().items():
        if key == "patch_embed.proj.weight":
            value = resample_patch_embed(value, [patch_size, patch_size])
        if not key.startswith("neck."):
            module, _, leaf = key.rpartition(".")
            setattr(oracle.get_submodule(module), leaf, nn.Parameter(value))
    images = torch.randn(2, 3, *img_size)
    with torch.no_grad():
        expected = oracle.forward_features(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("crop", "patch_size", "window"), [(512, 16, 7), (512, 8, 14), (1024, 16, 14)])
def test_sam_tables_hold_every_distance_once_and_stay_when_sizes_match(crop, patch_size, window, tmp_path):
    name = "samvit_base_patch16.sa1b"
    native = timm.create_model(name, **shrunk(name))
    encoder = Encoder(name, (crop, crop), patch_size, **shrunk(name))
    load_encoder_weights(encoder, checkpoint=checkpoint_of(native, tmp_path))

    windowed, globally = encoder.blocks
    assert windowed.window_size == window
    assert len(windowed.attn.rel_pos_h) == len(windowed.attn.rel_pos_w) == 2 * window - 1
    assert len(globally.attn.rel_pos_h) == len(globally.attn.rel_pos_w) == 2 * (crop // patch_size) - 1
    if crop // patch_size == 64:
        for key, value in native.state_dict().items():
            if "rel_pos" in key or key == "pos_embed":
                assert torch.equal(encoder.backbone.state_dict()[key], value)


class Config(PretrainedConfig):
    def __init__(self, name: str = BASE[0], **kwargs):
        super().__init__(**kwargs)
        self.name = name


class Model(PreTrainedModel):
    """The least a transformers model needs to carry an encoder; it knows nothing of rotary tables."""

    config_class = Config

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = Encoder(config.name, (64, 96), 16, **shrunk(config.name))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, pixel_values):
        return self.encoder(pixel_values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*BASE, *NEWER])
def test_saved_and_loaded_again_gives_bit_equal_tokens(name, dtype, tmp_path):
    model = Model(Config(name)).eval()
    fill_at_random(model)
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path, dtype=dtype).eval()
    model = model.to(dtype)

    images = torch.randn(1, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        assert loaded(images).dtype == dtype
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", [BASE[0], "vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_rope_mixed_224"])
def test_rotary_tables_keep_full_precision_under_any_cast(name):
    encoder = Encoder(name, (64, 96), 16, **SHRUNK)
    encoder(torch.zeros(1, 3, 64, 96))
    before = {key: value.clone() for key, value in encoder.backbone.rope.named_buffers()}
    encoder.bfloat16()(torch.zeros(1, 3, 64, 96, dtype=torch.bfloat16))
    after = dict(encoder.backbone.rope.named_buffers())
    assert before and all(torch.equal(after[key], value) for key, value in before.items())


def test_a_first_pass_in_inference_mode_does_not_spoil_training():
    encoder = Encoder(BASE[0], (32, 32), 16, **SHRUNK)
    with torch.inference_mode():
        encoder(torch.randn(1, 3, 32, 32))
    encoder(torch.randn(1, 3, 32, 32)).sum().backward()


def test_blocks_can_be_compiled_one_by_one():
    encoder = Encoder(BASE[2], (32, 32), 16, **SHRUNK)
    images = torch.randn(1, 3, 32, 32)
    expected = encoder(images)
    for block in encoder.blocks:
        block.compile(backend="eager")
    torch.testing.assert_close(encoder(images), expected)


def test_a_frozen_encoder_has_no_graph_and_stays_in_eval_mode():
    encoder = Encoder(BASE[2], (32, 32), 16, pos_drop_rate=0.5, **SHRUNK)
    images = torch.randn(1, 3, 32, 32)
    trained = encoder.train()(images)
    assert trained.requires_grad and not torch.equal(trained, encoder(images))

    encoder.freeze()
    nn.Sequential(encoder).train()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    tokens = encoder(images)
    assert not tokens.requires_grad and torch.equal(tokens, encoder(images))


def test_a_copy_is_independent():
    encoder = Encoder(BASE[0], (32, 32), 16, **SHRUNK).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(images)
        fill_at_random(copy.deepcopy(encoder))
        assert torch.equal(encoder(images), expected)


def test_defaults_are_those_of_the_weights():
    dinov2 = encoder_defaults("vit_base_patch14_dinov2.lvd142m")
    assert dinov2 == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (518, 518), 14)
    assert encoder_defaults("vit_base_patch16_siglip_512.webli").image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "img_size", "patch_size", "parts"),
    [
        ("vit_base_patch14_dinov", (64, 64), 16, ["'vit_base_patch14_dinov'", "vit_base_patch14_dinov2"]),
        ("vit_base_patch16_224.ma", (64, 64), 16, ["vit_base_patch16_224.mae"]),
        ("resnet50", (64, 64), 16, ["resnet50", "plain vision transformer"]),
        ("vit_base_r50_s16_224", (64, 64), 16, ["vit_base_r50_s16_224", "plain vision transformer"]),
        ("vit_base_patch14_dinov2", (500, 512), 16, ["500x512", "16x16", "496x512"]),
        ("vit_base_patch14_dinov2", (4, 64), 16, ["4x64", "16x64"]),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name, img_size, patch_size, parts):
    with pytest.raises(ModelError) as error:
        Encoder(name, img_size, patch_size)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)
