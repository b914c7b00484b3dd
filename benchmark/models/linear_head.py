"""The linear head: one linear layer on the encoder's tokens."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .upsampled_cross_entropy import upsampled_cross_entropy


class LinearHead(nn.Module):
    """Class logits (B, C, grid height, grid width) from tokens (B, N, D)."""

    title = "linear"
    main_output = "logits"
    class_layer_name = "classifier"

    def __init__(self, embed_dim: int, num_labels: int, grid_size: tuple[int, int]):
        super().__init__()
        self.grid_size = grid_size
        self.classifier = nn.Linear(embed_dim, num_labels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(tokens).transpose(1, 2).unflatten(2, self.grid_size)

    def loss(
        self, logits: Tensor, labels: Tensor, positions: Tensor | None, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image (B,), fp32; it has no parts and draws nothing.

        Each image's own mean over its labelled pixels: a mean over all pixels of a batch would weigh images by how much
        of them is labelled, and change with the split of a step over processes.
        """
        return upsampled_cross_entropy(logits, labels), {}

    def outputs(self, logits: Tensor, loss: Tensor | None, parts: dict[str, Tensor], auxiliary: bool):
        """The model's output: logits (B, C, h, w) at token resolution."""
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @staticmethod
    def semantic_logits(outputs, size: Sequence[int]) -> Tensor:
        """Class logits (B, C, *size), fp32: upsampled bilinearly."""
        return F.interpolate(outputs["logits"].float().contiguous(), tuple(size), mode="bilinear")
