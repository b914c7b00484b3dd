"""AdamW with the encoder's own learning rate, and the polynomial schedule."""

from collections.abc import Sequence

import torch
from torch import nn


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    encoder_lr_multiplier: float,
    weight_decay: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained: the head at `lr`, the encoder at `lr * encoder_lr_multiplier`."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if not name.startswith("encoder.")]
    encoder = [p for name, p in trained if name.startswith("encoder.")]
    groups = [{"params": head, "initial_lr": lr}, {"params": encoder, "initial_lr": lr * encoder_lr_multiplier}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        weight_decay=weight_decay,
        fused=head[0].device.type == "cuda",
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, *, step: int, steps: int, power: float) -> list[float]:
    """Set each group's rate for optimizer step `step` of `steps`, counted from 1, and return them.

    lr = initial_lr * (1 - (step - 1) / steps) ** power, the "poly" schedule of DeepLab (arXiv 1606.00915, section
    4.1). A function of the step alone has no state to save, and cannot be advanced once too often.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (1 - (step - 1) / steps) ** power
    return [group["lr"] for group in optimizer.param_groups]
