"""Whole models of every family come back from disk as they went: nothing is lost that no checkpoint holds."""

import pytest
import torch

from benchmark.models.configuration import SegmentationConfig
from benchmark.models.encoder import encoder_defaults
from benchmark.models.modeling import SegmentationModel, semantic_logits

# Small members of the study's families, and of newer ones; SAM and BEiT-3 have none.
SMALL = [
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "deit3_small_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_pe_spatial_tiny_patch16_512",
]
STUDY = [
    "eva02_base_patch16_clip_224",
    "eva02_base_patch14_224",
    "vit_base_patch14_dinov2",
    "beit3_base_patch16_224",
    "vit_base_patch16_siglip_512",
    "vit_base_patch16_clip_224",
    "deit3_base_patch16_384",
    "vit_base_patch16_224",
    "samvit_base_patch16",
]
CROP = (64, 96)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(encoder: str, head: str) -> SegmentationModel:
    """Every weight is random and has a say, also those that timm starts at zero."""
    defaults = encoder_defaults(encoder)
    config = SegmentationConfig(
        encoder=encoder,
        head=head,
        crop_size=CROP,
        patch_size=16,
        image_mean=defaults.image_mean,
        image_std=defaults.image_std,
        id2label=dict(enumerate("abc")),
    )
    model = SegmentationModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_round_trip(encoder: str, head: str, dtype: torch.dtype, folder) -> None:
    model = model_of(encoder, head)
    model.save_pretrained(folder)
    loaded = SegmentationModel.from_pretrained(folder, dtype=dtype).eval()
    pixel_values = torch.randn(2, 3, *CROP, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        expected, found = (semantic_logits(m(pixel_values), CROP) for m in (model.to(dtype), loaded))
    assert expected.isfinite().all() and expected.std() > 1e-3
    assert torch.equal(found, expected)
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    for key in ("encoder", "head", "crop_size", "patch_size", "image_mean", "image_std", "id2label"):
        assert getattr(loaded.config, key) == getattr(model.config, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder", SMALL)
def test_a_small_model_comes_back_bit_equal(encoder, dtype, tmp_path):
    assert_round_trip(encoder, "linear", dtype, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_model_with_a_mask2former_head_comes_back_bit_equal(dtype, tmp_path):
    assert_round_trip("eva02_tiny_patch14_224", "mask2former", dtype, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder", STUDY)
def test_a_model_of_the_study_comes_back_bit_equal(encoder, dtype, tmp_path):
    assert_round_trip(encoder, "linear", dtype, tmp_path)
