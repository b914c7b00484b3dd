"""How much a function computes, and which kernels compute its attention."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

PREFIX = "_scaled_dot_product_"
KERNELS = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")


class Arithmetic(NamedTuple):
    """Floating-point operations of products, 2 for each product and sum, and the attention kernels of PyTorch that were
    called; none where attention was computed as whole matrices.
    """

    flops: int
    attention: list[str]


def count(function: Callable[[], object]) -> Arithmetic:
    """Call the function, whose modules are neither compiled nor captured, and count.

    Attention counts as its products do, 2 in the forward pass and 4 in the backward pass. PyTorch's own counter does
    not know the CPU's kernel, and counts what the others compute a second time in the backward pass. Each gradient of a
    convolution counts as its forward pass, because the counter takes the weight's of a grouped one for a whole one.
    """
    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten.convolution_backward: _convolution_backward}
    for kernel in KERNELS:
        for name, formula in ((kernel, _forward), (f"{kernel}_backward", _backward)):
            with suppress(AttributeError):  # a build of PyTorch need not have all of them
                formulas[getattr(torch.ops.aten, PREFIX + name)] = formula
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        function()
    called = {str(operator).removeprefix("aten." + PREFIX) for operator in counter.get_flop_counts()["Global"]}
    return Arithmetic(counter.get_total_flops(), sorted(called & set(KERNELS)))


def _forward(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    """Of shapes (B, heads, Q, D), (B, heads, N, D) and (B, heads, N, E)."""
    return 2 * query[:-1].numel() * key[2] * (query[3] + value[3])


def _convolution_backward(
    grad: torch.Size,
    inputs: torch.Size,
    weight: torch.Size,
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    needed: list[bool],
    **_,
) -> int:
    """Of grad (B, C out, ...), inputs (B, C in, ...), and which gradients are `needed`: input's, weight's, bias's."""
    return conv_flop_count(inputs, weight, grad, transposed) * (needed[0] + needed[1])


def _backward(_: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *__, **___) -> int:
    return 2 * _forward(query, key, value)
