import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import PolynomialLR

from benchmark.training.optim import build_optimizer, set_learning_rates


@pytest.fixture
def model():
    model = nn.Module()
    model.encoder, model.head = nn.Linear(3, 4), nn.Linear(4, 2)
    return model


def test_the_schedule_is_pytorchs_polynomial_one(model):
    optimizer = build_optimizer(model, lr=0.1, encoder_lr_multiplier=0.5, weight_decay=0.05)
    reference = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler = PolynomialLR(reference, total_iters=20, power=0.9)
    for step in range(20):
        rates = set_learning_rates(optimizer, step=step + 1, steps=20, power=0.9)
        assert rates == pytest.approx([scheduler.get_last_lr()[0], scheduler.get_last_lr()[0] * 0.5], rel=1e-9)
        reference.step()
        scheduler.step()


def test_every_trained_parameter_is_in_one_group_with_weight_decay(model):
    model.encoder.bias.requires_grad_(False)
    optimizer = build_optimizer(model, lr=0.1, encoder_lr_multiplier=0.1, weight_decay=0.05)
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {
        id(model.head.weight): 0.1,
        id(model.head.bias): 0.1,
        id(model.encoder.weight): pytest.approx(0.01),
    }
    assert all(group["weight_decay"] == 0.05 for group in optimizer.param_groups)
