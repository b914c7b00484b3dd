"""The linear head: one linear layer on the encoder's tokens, and its loss.

The loss is the cross-entropy of logits that are upsampled bilinearly, without ever holding them at full size. Between
two rows of tokens every pixel's logits are a mix of the same two rows, so that a band of pixel rows is made, turned
into its loss and its gradient, and forgotten. The gradient of the upsampling is the two mixes, transposed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .upsampling import bands, bilinear_mix, upsample
from .windows import IGNORE_INDEX

# Logits of a band that are made at once: what a CPU's cache holds, and what keeps a GPU busy.
CPU_ELEMENTS, GPU_ELEMENTS = 2**19, 2**26


class LinearHead(nn.Module):
    """Class logits (B, C, grid height, grid width) from tokens (B, N, D)."""

    title = "linear"
    main_output = "logits"
    class_layer_name = "classifier"
    class_weights: Sequence[float] | None = None

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

        Each image's own mean over its labelled pixels, weighted by `class_weights` where there are some: a mean over
        all pixels of a batch would weigh images by how much of them is labelled, and change with the split of a step
        over processes.
        """
        return upsampled_cross_entropy(logits, labels, self.class_weights), {}

    def outputs(self, logits: Tensor, loss: Tensor | None, parts: dict[str, Tensor], auxiliary: bool):
        """The model's output: logits (B, C, h, w) at token resolution."""
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @staticmethod
    def semantic_logits(outputs, size: Sequence[int], rows: slice | None = None) -> Tensor:
        """Class logits (B, C, *size), fp32: upsampled bilinearly; with `rows` only those rows, without gradient."""
        return upsample(outputs["logits"], size, rows)


def upsampled_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Sequence[float] | None = None) -> Tensor:
    """Each image's cross-entropy, averaged over its labelled pixels, of bilinearly upsampled logits.

    The same as F.cross_entropy(F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear"), ...) within rounding,
    and so are its gradients; a second derivative is not defined.

    Args:
        logits: (B, C, h, w), of any float type; computed in fp32.
        labels: (B, H, W) integers, IGNORE_INDEX where there is no label.
        class_weights: C numbers, at least 0: the average is then weighted, as with F.cross_entropy(weight=...).

    Returns:
        (B,) fp32; 0 for an image without a labelled pixel, or where all of them weigh 0.
    """
    weights = None
    if class_weights is not None:
        weights = torch.zeros(256, device=logits.device)  # of every label; IGNORE_INDEX weighs nothing
        weights[: len(class_weights)] = torch.tensor(class_weights, dtype=torch.float32)
    return _UpsampledCrossEntropy.apply(logits.float(), labels, weights)


def inverse_frequencies(pixels: Sequence[int]) -> list[float]:
    """Weights of classes from their pixels: all pixels / (classes that have any * pixels of the class).

    Their mean over pixels is 1; scikit-learn calls them balanced. A class without a pixel has no part in a loss, and
    weighs 0.
    """
    present = sum(count > 0 for count in pixels)
    return [sum(pixels) / (present * count) if count else 0.0 for count in pixels]


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Computes the gradient with the loss, because both need the same probabilities."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        with torch.autocast(logits.device.type, enabled=False):
            loss = _loss_and_gradient(logits, labels, weights, gradient)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None, None], None, None


def _pixel_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    """What each of the labels (...) counts: whether it is one, or its class's weight."""
    return labels != IGNORE_INDEX if weights is None else weights[labels.long()]


def _loss_and_gradient(logits: Tensor, labels: Tensor, weights: Tensor | None, gradient: Tensor | None) -> Tensor:
    """Each image's loss (B,); its gradient, (B, C, h, w), is written to `gradient`.

    Args:
        weights: (256,), of each label; None where all but IGNORE_INDEX count alike.
    """
    batch, classes, height, width = logits.shape
    columns = torch.zeros(width, labels.shape[2], device=logits.device)
    across = bilinear_mix(width, labels.shape[2], logits.device)
    pixels = torch.arange(labels.shape[2], device=logits.device)
    columns[across.first, pixels] += 1 - across.share
    columns[across.second, pixels] += across.share  # at the border both are one token

    down = bilinear_mix(height, labels.shape[1], logits.device)
    limit = CPU_ELEMENTS if logits.device.type == "cpu" else GPU_ELEMENTS
    row = classes * labels.shape[2]
    images = max(1, min(batch, limit // (row * -(-labels.shape[1] // height))))
    losses = torch.zeros(batch, device=logits.device)
    labelled = torch.stack([_pixel_weights(label_map, weights).sum() for label_map in labels])
    labelled = torch.where(labelled > 0, labelled, 1)
    for start in range(0, batch, images):
        some = slice(start, start + images)
        wide = logits[some] @ columns  # (b, C, h, W)
        wide_gradient = torch.zeros_like(wide) if gradient is not None else None
        for top, end, first, second in bands(height, labels.shape[1], max(1, limit // (row * images))):
            share = down.share[top:end]
            band = torch.lerp(wide[:, :, first, None], wide[:, :, second, None], share[:, None])  # (b, C, rows, W)
            losses[some] += _band(band, labels[some, top:end], labelled[some], weights)
            if wide_gradient is not None:
                mixes = torch.stack([1 - share, share]) @ band  # (b, C, 2, W)
                wide_gradient[:, :, first] += mixes[:, :, 0]
                wide_gradient[:, :, second] += mixes[:, :, 1]
        if gradient is not None and wide_gradient is not None:
            gradient[some] = wide_gradient @ columns.T
    return losses / labelled


def _band(band: Tensor, labels: Tensor, labelled: Tensor, weights: Tensor | None) -> Tensor:
    """Each image's sum of cross-entropies in a band (b,); `band`, (b, C, rows, W), becomes the mean's gradient.

    Args:
        labels: (b, rows, W).
        labelled: (b,), pixels of the whole image, or the sum of their weights.
        weights: as in `_loss_and_gradient`.
    """
    counts = _pixel_weights(labels, weights)
    target = torch.where(labels != IGNORE_INDEX, labels, 0).long()[:, None]
    band -= band.amax(dim=1, keepdim=True)
    chosen = band.gather(1, target)
    total = band.exp_().sum(dim=1, keepdim=True)
    loss = ((total.log() - chosen)[:, 0] * counts).sum(dim=(1, 2))
    scale = counts[:, None] / labelled[:, None, None, None]  # an ignored pixel has no gradient
    band *= scale / total
    band.scatter_(1, target, band.gather(1, target) - scale)
    return loss
