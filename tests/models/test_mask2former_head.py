"""The Mask2Former decoder, against a plain reimplementation and transformers' position embedding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding

from benchmark.models.mask2former_head import Mask2FormerHead, attended_tokens, sine_positions
from benchmark.models.mask_head import semantic_logits

GRID = (4, 6)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return Mask2FormerHead(24, num_labels=5, grid_size=GRID, num_queries=7, num_blocks=3, hidden_size=32, ffn_size=64)


@pytest.fixture
def tokens():
    return torch.randn(2, GRID[0] * GRID[1], 24, generator=torch.Generator().manual_seed(1))


def as_multihead_attention(attention):
    """The same weights in torch's own module."""
    hidden_size = attention.query.in_features
    reference = nn.MultiheadAttention(hidden_size, attention.num_heads, batch_first=True)
    projections = (attention.query, attention.key, attention.value)
    reference.in_proj_weight.data = torch.cat([projection.weight.data for projection in projections])
    reference.in_proj_bias.data = torch.cat([projection.bias.data for projection in projections])
    reference.out_proj.load_state_dict(attention.output.state_dict())
    return reference


def plain_decoder(head, tokens):
    """The decoder as the protocol words it, one image at a time, with nn.MultiheadAttention and loops."""
    embedding = Mask2FormerSinePositionEmbedding(num_position_features=16, normalize=True)
    positions = embedding(torch.Size((1, 32, *GRID)), torch.device("cpu"), torch.float32).flatten(2)[0].T
    class_logits, mask_logits = [], []
    for image in tokens:
        values = head.projection(image)
        queries = head.queries
        layers = []
        for block in [*head.blocks, None]:
            normed = head.norm(queries)
            masks = head.mask_mlp(normed) @ values.T
            layers.append((head.class_layer(normed), masks))
            if block is None:
                break
            blocked = masks < 0
            for row in blocked:
                if row.all():
                    row[:] = False
            cross, own = as_multihead_attention(block.cross_attention), as_multihead_attention(block.self_attention)
            update, _ = cross(queries + head.query_positions, values + positions, values, attn_mask=blocked)
            queries = block.cross_attention_norm(queries + update)
            update, _ = own(queries + head.query_positions, queries + head.query_positions, queries)
            queries = block.self_attention_norm(queries + update)
            queries = block.ffn_norm(queries + block.ffn(queries))
        class_logits.append(torch.stack([layer[0] for layer in layers]))
        mask_logits.append(torch.stack([layer[1].view(-1, *GRID) for layer in layers]))
    return torch.stack(class_logits, dim=1), torch.stack(mask_logits, dim=1)


def test_decoder_equals_plain_reimplementation(head, tokens):
    predictions = head(tokens)
    class_logits, mask_logits = plain_decoder(head, tokens)
    assert (mask_logits < 0).flatten(-2).any(-1).all(), "masks that block nothing would not test the masking"
    torch.testing.assert_close(predictions.class_logits, class_logits, atol=1e-5, rtol=0)
    for layer in range(4):
        torch.testing.assert_close(predictions.mask_logits(layer), mask_logits[layer], atol=1e-5, rtol=0)


def test_shapes_and_gradients_reach_every_parameter(head, tokens):
    predictions = head(tokens)
    assert predictions.class_logits.shape == (4, 2, 7, 6)
    assert predictions.mask_embeddings.shape == (4, 2, 7, 32)
    assert predictions.mask_features.shape == (2, 32, *GRID)
    assert predictions.mask_logits().shape == (2, 7, *GRID)
    (predictions.class_logits.square().mean() + predictions.mask_logits().square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_protocol_sizes():
    head = Mask2FormerHead(768, num_labels=150, grid_size=(32, 32))
    assert len(head.blocks) == 9 and head.queries.shape == (100, 256) and head.blocks[0].self_attention.num_heads == 8
    assert head.blocks[0].ffn[0].out_features == 2048 and head.class_layer.out_features == 151


def test_compiles_without_graph_break(head, tokens):
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    for ours, theirs in zip(compiled(tokens), head(tokens), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_query_with_empty_mask_attends_everywhere():
    features = torch.eye(3)[None]  # the mask logits are the embeddings
    embeddings = torch.tensor([[[-1.0, -1.0, -1.0], [1.0, -1.0, 0.0]]])
    expected = torch.tensor([[[True, True, True], [True, False, True]]])
    assert torch.equal(attended_tokens(embeddings, features), expected)


@pytest.mark.parametrize("grid", [(4, 6), (7, 3)])
def test_sine_positions_equal_transformers(grid):
    embedding = Mask2FormerSinePositionEmbedding(num_position_features=32, normalize=True)
    expected = embedding(torch.Size((1, 64, *grid)), torch.device("cpu"), torch.float32).flatten(2)[0].T
    torch.testing.assert_close(sine_positions(grid, 64, torch.device("cpu")), expected, atol=1e-5, rtol=0)


def test_cross_attention_starts_as_multihead_attention():
    """The projections' spread is that of torch's module, which differs from nn.Linear's by a factor of 1.22."""
    head = Mask2FormerHead(8, num_labels=2, grid_size=(2, 2), num_blocks=1)
    reference = nn.MultiheadAttention(256, 8)
    ours = head.blocks[0].cross_attention
    for projection, theirs in zip((ours.query, ours.key, ours.value), reference.in_proj_weight.chunk(3), strict=True):
        assert projection.weight.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
        assert not projection.bias.any()
    assert ours.output.weight.std().item() == pytest.approx(reference.out_proj.weight.std().item(), rel=0.02)
    assert not ours.output.bias.any()


def test_semantic_logits_sum_masks_times_classes():
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(2, 5, 4, generator=generator)
    mask_logits = torch.randn(2, 5, 3, 3, generator=generator)
    folded = semantic_logits(class_logits, mask_logits, (9, 12))
    expected = torch.zeros(2, 3, 9, 12)
    for image in range(2):
        for query in range(5):
            mask = F.interpolate(mask_logits[image, query][None, None], (9, 12), mode="bilinear")[0, 0].sigmoid()
            for label in range(3):
                expected[image, label] += mask * class_logits[image, query].softmax(0)[label]
    torch.testing.assert_close(folded, expected)


def test_semantic_logits_are_fp32_under_autocast():
    class_logits, mask_logits = torch.randn(1, 5, 4).bfloat16(), torch.randn(1, 5, 3, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        folded = semantic_logits(class_logits, mask_logits, (6, 6))
    assert folded.dtype == torch.float32
    torch.testing.assert_close(folded, semantic_logits(class_logits.float(), mask_logits.float(), (6, 6)))
