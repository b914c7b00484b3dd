"""AdamW with rates of its own for the encoder and each of its blocks, the schedules, and the average of weights."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NO_WARMUP = (0, 0)


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    encoder_lr_multiplier: float,
    weight_decay: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained: the head at `lr`, the encoder at `lr * encoder_lr_multiplier`.

    A part of the encoder that is d layers below the top learns at `layer_decay ** d` times that (see `layers_below`).
    The groups are the head's, then the encoder's from the top down.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if not name.startswith("encoder.")]
    encoder = [(name, p) for name, p in trained if name.startswith("encoder.")]
    depths = layers_below([name for name, _ in encoder]) if layer_decay != 1 else [0] * len(encoder)
    groups: list[dict] = [{"params": head, "initial_lr": lr}]
    for depth in sorted(set(depths)):
        params = [p for (_, p), below in zip(encoder, depths, strict=True) if below == depth]
        groups.append({"params": params, "initial_lr": lr * encoder_lr_multiplier * layer_decay**depth})
    return torch.optim.AdamW(
        groups,
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )


def layers_below(names: Sequence[str]) -> list[int]:
    """How many layers below the top each of the encoder's parameters is.

    0: the final norm; 1 .. n: the n blocks, from the last to the first; n + 1: patch and position embeddings and all
    else before the blocks. As in BEiT (Bao et al., ICLR 2022), whose code counts the same layers from the other end.
    """
    blocks = [re.search(r"\bblocks\.(\d+)\.", name) for name in names]
    count = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    top = re.compile(r"encoder\.backbone\.norm\.")
    return [
        count - int(block[1]) if block else 0 if top.match(name) else count + 1
        for name, block in zip(names, blocks, strict=True)
    ]


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    steps: int,
    power: float,
    schedule: str = "poly",
    warmups: Sequence[tuple[int, int]] = (NO_WARMUP, NO_WARMUP),
) -> list[float]:
    """Set each group's rate for optimizer step `step` of `steps`, counted from 1, and return them.

    A function of the step alone has no state to save, and cannot be advanced once too often.

    Args:
        power: of the "poly" schedule.
        schedule: see `rate_factor`.
        warmups: of the first group, which is the head's, and of all others.
    """
    for number, group in enumerate(optimizer.param_groups):
        factor = rate_factor(step, steps, schedule, power, *warmups[min(number, 1)])
        group["lr"] = group["initial_lr"] * factor
    return [group["lr"] for group in optimizer.param_groups]


def rate_factor(step: int, steps: int, schedule: str, power: float, wait: int = 0, warmup: int = 0) -> float:
    """What a learning rate is multiplied by at `step`, counted from 1: 0..1.

    For `wait` steps it is 0, for `warmup` further ones it rises by 1 / warmup each, from 0. In the rest, of which a
    share p is over, it is (1 - p) ** power ("poly": DeepLab, arXiv 1606.00915, section 4.1), (1 + cos(pi p)) / 2
    ("cosine": SGDR, arXiv 1608.03983, equation 5, without restarts), or 1 ("constant").
    """
    done, before = step - 1, wait + warmup
    if done < before:
        return max(0, done - wait) / warmup if warmup else 0.0
    share = (done - before) / (steps - before)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    return 1.0 if schedule == "constant" else (1 - share) ** power


class MovingAverage:
    """average = decay * average + (1 - decay) * weights after each step, from the first weights on.

    (Polyak and Juditsky, SIAM Journal on Control and Optimization 1992, in its exponential form.)

    Args:
        model: unwrapped, on its device, not sharded; weights without a gradient do not change, and have no average.
        decay: in 0..1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.weights = list(trained), list(trained.values())
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step."""
        torch._foreach_lerp_(self.averages, self.weights, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages in the block, and restore its own weights afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, (weight, average) in enumerate(zip(self.weights, self.averages, strict=True)):
            self.averages[number], weight.data = weight.data, average

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, on the CPU, by the weights' names."""
        return {name: average.cpu() for name, average in zip(self.names, self.averages, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take averages as `state_dict` gives them."""
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(state[name])
