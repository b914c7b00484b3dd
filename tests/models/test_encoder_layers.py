"""The layers of an encoder beside hooks on its blocks."""

import pytest
import torch

from benchmark.models.encoder import Encoder

NAMES = [
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "eva02_tiny_patch14_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_pe_spatial_tiny_patch16_512",
    "beit_base_patch16_224",
    "vit_relpos_small_patch16_224",
    "samvit_base_patch16",
]


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_what_the_blocks_return(name):
    torch.manual_seed(0)
    encoder = Encoder(name, (32, 48), 16, depth=3, **({"global_attn_indexes": (1,)} if "sam" in name else {})).eval()
    seen = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixel_values = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = encoder(pixel_values)
        blocks = [tokens.flatten(1, 2) if tokens.ndim == 4 else tokens for tokens in seen]
        last = encoder.layers(pixel_values, 2)
        (whole,) = encoder.layers(pixel_values, [1], keep_prefix_tokens=True)
    prefix = encoder.num_prefix_tokens
    assert torch.equal(whole, blocks[1]) and len(last) == 2 and len(seen) == 3 + 3 + 2
    assert all(torch.equal(tokens, block[:, prefix:]) for tokens, block in zip(last, blocks[1:], strict=True))
    if hasattr(encoder.backbone, "norm") and not isinstance(encoder.backbone.norm, torch.nn.Identity):
        assert torch.equal(encoder.final_norm(last[-1]), expected)
    else:
        assert torch.equal(last[-1], expected)
        assert encoder.final_norm(last[-1]).std(dim=-1).allclose(torch.ones(()), atol=0.01)


def test_a_frozen_encoder_keeps_no_graph_of_its_layers():
    encoder = Encoder("test_vit", (32, 32), 16)
    encoder.freeze()
    assert not encoder.layers(torch.randn(1, 3, 32, 32), 2)[0].requires_grad
