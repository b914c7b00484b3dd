"""The linear head: one linear layer on the encoder's tokens."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .windows import IGNORE_INDEX


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
        """The loss of each image (B,), fp32; it has no parts and draws nothing."""
        return cross_entropy_per_image(logits, labels), {}

    def outputs(self, logits: Tensor, loss: Tensor | None, parts: dict[str, Tensor], auxiliary: bool):
        """The model's output: logits (B, C, h, w) at token resolution."""
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @staticmethod
    def semantic_logits(outputs, size: Sequence[int]) -> Tensor:
        """Class logits (B, C, *size), fp32: upsampled bilinearly."""
        return F.interpolate(outputs["logits"].float().contiguous(), tuple(size), mode="bilinear")


def cross_entropy_per_image(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, averaged over its labelled pixels alone.

    A mean over all pixels of a batch would weigh images by how much of them is labelled, and change with the split of
    a step over processes.

    Args:
        logits: (B, C, h, w), upsampled bilinearly to the labels' size in fp32.
        labels: (B, H, W) integers, IGNORE_INDEX where there is no label.

    Returns:
        (B,) fp32; 0 for an image without a labelled pixel.
    """
    logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")  # (B, H, W)
    labelled = (labels != IGNORE_INDEX).sum(dim=(1, 2))
    return loss.sum(dim=(1, 2)) / labelled.clamp(min=1)
