"""LoRA adapters in the encoder: a few weights that are trained beside the pretrained ones, and merged into them.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685): a linear layer W becomes
W + B A, with A drawn at random and B zero at the start.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.models.encoder import Encoder

ADAPTER, BASE = ".lora_", ".base_layer."  # in the names of weights


def add_adapters(encoder: Encoder, rank: int) -> None:
    """Give every linear layer of the encoder's attention an adapter of `rank`, and train nothing else of the encoder.

    Raises:
        UserError: peft is not installed, or there is no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora_rank needs peft: pip install 'peft>=0.19'.") from None
    modules = encoder.named_modules()
    targets = [name for name, module in modules if ".attn." in name and isinstance(module, nn.Linear)]
    if not targets:
        raise UserError(f"{encoder.name} has no linear layer in its attention for model.lora_rank: set it to null.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), encoder)
    _separate_biases(encoder, True)


def check_adapters(model: nn.Module) -> None:
    """After a backward pass: raise UserError where an adapter has no gradient, because nothing would train it."""
    parts = [(name, p) for name, p in model.named_parameters() if ADAPTER in name and p.requires_grad]
    if dead := [name for name, p in parts if p.grad is None]:
        raise UserError(
            f"{len(dead)} of {len(parts)} parts of adapters have no gradient, such as {dead[0]}: the encoder does not "
            "call these layers; set model.lora_rank to null, or name another encoder."
        )


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Merge the adapters into the model's weights for the block, and take them out again without a changed bit.

    In the block the model computes what the saved model computes.
    """
    layers = [module for module in model.modules() if hasattr(module, "merged_adapters")]
    if not layers:
        yield
        return
    originals = [layer.get_base_layer().weight.data for layer in layers]
    for layer, original in zip(layers, originals, strict=True):
        layer.get_base_layer().weight.data = original.clone()
        layer.merge()
    _separate_biases(model, False)
    try:
        yield
    finally:
        _separate_biases(model, True)
        for layer, original in zip(layers, originals, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = original


def without_adapters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merged weights under the names of a model that never had adapters."""
    return {name.replace(BASE, "."): weight for name, weight in weights.items() if ADAPTER not in name}


def _separate_biases(model: nn.Module, separate: bool) -> None:
    """Let attention call its layer and add the bias, or (timm's default) use the layer's weight, past its adapter."""
    for module in model.modules():
        if getattr(module, "q_bias", None) is not None and hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = separate
