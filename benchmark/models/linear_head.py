"""The linear head: one linear layer on the encoder's tokens."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """Class logits (B, C, grid height, grid width) from tokens (B, N, D)."""

    def __init__(self, embed_dim: int, num_labels: int, grid_size: tuple[int, int]):
        super().__init__()
        self.grid_size = grid_size
        self.classifier = nn.Linear(embed_dim, num_labels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(tokens).transpose(1, 2).unflatten(2, self.grid_size)


def cross_entropy_per_image(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy of each image, averaged over its labelled pixels alone.

    A mean over all pixels of a batch would weigh images by how much of them is labelled, and change with the split of
    a step over processes.

    Args:
        logits: (B, C, h, w), upsampled bilinearly to the labels' size in fp32.
        labels: (B, H, W) integers, `ignore_index` where there is no label.

    Returns:
        (B,) fp32; 0 for an image without a labelled pixel.
    """
    logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    loss = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none")  # (B, H, W)
    labelled = (labels != ignore_index).sum(dim=(1, 2))
    return loss.sum(dim=(1, 2)) / labelled.clamp(min=1)
