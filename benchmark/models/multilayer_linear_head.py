"""A linear layer on the tokens of the last four layers, each normalised: the "+ms" head's features of DINOv2."""

import torch
from torch import Tensor

from .encoder import Encoder
from .errors import ModelError
from .linear_head import LinearHead

LAYERS = 4


class MultilayerHead(LinearHead):
    """Class logits (B, C, grid height, grid width) from the last four layers' tokens.

    Each layer's tokens pass the encoder's final norm and are put side by side, (B, N, 4 D), as for the multi-scale
    probes of Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (TMLR 2024, section 7.4).
    There is no batch norm, which would make the loss depend on how a step is split.
    """

    title = "multi-layer linear"
    takes_encoder = True

    def __init__(self, embed_dim: int, num_labels: int, grid_size: tuple[int, int]):
        super().__init__(LAYERS * embed_dim, num_labels, grid_size)

    def attach(self, encoder: Encoder) -> None:
        """Raise ModelError where the encoder has too few layers."""
        if len(encoder.blocks) < LAYERS:
            raise ModelError(
                f"The multilayer_linear head takes {LAYERS} layers and {encoder.name} has {len(encoder.blocks)}: "
                "set model.head to linear."
            )

    def forward(self, encoder: Encoder, pixel_values: Tensor, *_) -> Tensor:  # type: ignore[override]
        layers = encoder.layers(pixel_values, LAYERS)
        return super().forward(torch.cat([encoder.final_norm(tokens) for tokens in layers], dim=-1))
