"""Products on a CPU: as exact as PyTorch's own, by whichever library."""

import pytest
import torch

from benchmark.recipe.parser import load_recipe
from benchmark.training import cpu
from benchmark.training.launch import start_processes

FEW, MANY = (256, 512), (272, 512)  # crops of 512 and 544 tokens, in patches of 16


def precision() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def rounded_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """As a processor with AMX may multiply, once it is permitted to."""
    return torch.mul(left.bfloat16().float()[:, :, None], right.bfloat16().float()).sum(1)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(257, 384, 1152), (1025, 768, 150), (5, 7, 3)])
def test_products_keep_the_bound_of_fp32(rows, inner, columns):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator, requires_grad=True)
    right = torch.randn(inner, columns, generator=generator, requires_grad=True)
    cpu.multiply_with_onednn(tokens=1)
    product = left @ right
    product.backward(product.detach())
    with torch.no_grad():
        results = {
            "product": (product, left, right),
            "gradient of left": (left.grad, product, right.T),
            "gradient of right": (right.grad, left.T, product),
        }
        for name, (found, a, b) in results.items():
            # Higham, Accuracy and Stability of Numerical Algorithms, equation 3.13: n roundings of 2^-24 each.
            bound = a.shape[1] * 2**-24 * (a.double().abs() @ b.double().abs())
            assert ((found.double() - a.double() @ b.double()).abs() <= bound).all(), name


def test_permission_to_round_is_withdrawn_where_a_processor_uses_it(monkeypatch):
    before = precision()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", rounded_product)
        cpu.multiply_with_onednn(tokens=1)
    assert precision() == before and torch.backends.cuda.flash_sdp_enabled()


def test_only_what_gains_is_changed(monkeypatch):
    before = precision()
    monkeypatch.setattr(cpu, "_multiplies_exactly", lambda: True)
    for is_slow, asked in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(cpu, "_mkl_is_slow", lambda is_slow=is_slow: is_slow)
        cpu.set_up_cpu(asked, FEW, 16)
        assert precision() == before and torch.backends.cuda.flash_sdp_enabled()
    cpu.set_up_cpu("fp32", MANY, 16)
    assert precision() == "bf16" and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(("crop", "few"), [(MANY, False), (FEW, True)])
def test_a_run_sets_its_cpu_up_for_its_tokens(crop, few, tiny, monkeypatch):
    monkeypatch.setattr(cpu, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(cpu, "_multiplies_exactly", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    start_processes(load_recipe([tiny[1]], [*tiny[2:], "--data.crop_size", str(list(crop))]))
    assert precision() == "bf16" and torch.backends.cuda.flash_sdp_enabled() != few
