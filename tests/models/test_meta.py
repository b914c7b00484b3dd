import pytest
import torch
from torch import nn

from benchmark.models.encoder import Encoder
from benchmark.models.heads import HEADS
from benchmark.models.meta import without_memory


def facts(module: nn.Module) -> dict[str, tuple]:
    """All that is known of a module's tensors but their values."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (tuple(t.shape), t.dtype, t.requires_grad, type(t)) for name, t in tensors}


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
        "vit_relpos_small_patch16_224",
        "samvit_base_patch16",
    ],
)
def test_an_encoder_is_the_same_but_for_its_values(name):
    def make() -> Encoder:
        return Encoder(name, (64, 96), 16, depth=2)

    with without_memory():
        shapes = make()
    assert all(tensor.is_meta for tensor in [*shapes.parameters(), *shapes.buffers()])
    assert facts(shapes) == facts(make())


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_the_same_but_for_its_values(head):
    with without_memory():
        shapes = HEADS[head](32, 5, (4, 6))
    assert facts(shapes) == facts(HEADS[head](32, 5, (4, 6)))


def test_what_changes_more_than_values_still_does():
    with without_memory():
        assert torch.zeros(2, 1).squeeze_().requires_grad_().shape == (2,)
        assert torch.zeros(2).requires_grad_().requires_grad
        assert torch.zeros(2).add(torch.zeros(3, 1)).shape == (3, 2)
    assert torch.zeros(2).fill_(3).tolist() == [3, 3]
