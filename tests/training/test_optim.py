import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim.lr_scheduler import PolynomialLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
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


@pytest.mark.parametrize("kind", ["poly", "cosine", "constant"])
def test_warm_up_and_schedule_are_transformers(model, kind):
    """The head warms up for 3 steps; the encoder waits for it and warms up for 4 of the 20."""
    optimizer = build_optimizer(model, lr=0.1, encoder_lr_multiplier=0.5, weight_decay=0.05)
    expected = []
    for lr, before, warmup in ((0.1, 0, 3), (0.05, 3, 4)):
        reference = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
        scheduler = {
            "poly": lambda *args: get_polynomial_decay_schedule_with_warmup(*args, lr_end=0.0, power=0.7),
            "cosine": get_cosine_schedule_with_warmup,
            "constant": lambda optimizer, warmup, _: get_constant_schedule_with_warmup(optimizer, warmup),
        }[kind](reference, warmup, 20 - before)
        rates = [0.0] * before
        for _ in range(20 - before):
            rates.append(scheduler.get_last_lr()[0])
            reference.step()
            scheduler.step()
        expected.append(rates)
    for step in range(20):
        rates = set_learning_rates(
            optimizer, step=step + 1, steps=20, power=0.7, schedule=kind, warmups=((0, 3), (3, 4))
        )
        assert rates == pytest.approx([rates[step] for rates in expected], rel=1e-9, abs=1e-15)
    assert expected[0][:4] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1]) and expected[1][3:5] == [0, 0.0125]


@pytest.mark.parametrize("name", ["vit_base_patch14_dinov2", "eva02_base_patch14_224", "beit3_base_patch16_224"])
def test_layer_decay_is_that_of_timm(name):
    """timm's own groups carry a scale that torch ignores; ours are at that rate, with weight decay on all."""
    with torch.device("meta"):
        model = SegmentationModel(SegmentationConfig(encoder=name, crop_size=(64, 64), id2label={0: "a", 1: "b"}))
        optimizer = build_optimizer(model, lr=1.0, encoder_lr_multiplier=0.5, weight_decay=0.05, layer_decay=0.8)
    # Without a classifier timm's top layer is the last block, and the final norm is in it; BEiT has the norm above.
    groups = param_groups_layer_decay(model.encoder.backbone, weight_decay=0.05, layer_decay=0.8)
    expected = {id(p): 0.5 * 0.8 * group["lr_scale"] for group in groups for p in group["params"]}
    expected |= {id(p): 0.5 for p in model.encoder.backbone.norm.parameters()}
    expected |= {id(p): 1.0 for p in model.head.parameters()}
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {key: pytest.approx(value, rel=1e-9) for key, value in expected.items()}
    assert min(rates.values()) == pytest.approx(0.5 * 0.8 ** (len(model.encoder.blocks) + 1))
    assert all(group["weight_decay"] == 0.05 for group in optimizer.param_groups)
