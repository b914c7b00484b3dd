"""The linear head: one linear layer on the encoder's tokens, and its loss.

The loss is the cross-entropy of logits that are upsampled bilinearly, without ever holding them at full size. Between
two rows of tokens every pixel's logits are a mix of the same two rows, so that a band of pixel rows is made, turned
into its loss and its gradient, and forgotten. The gradient of the upsampling is the two mixes, transposed.

On a GPU all bands are one expression, of which a compiler makes kernels that keep a band in registers.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .head import Head
from .upsampling import bands, bilinear_mix, upsample
from .windows import IGNORE_INDEX

# Logits of a band that are made at once: what a CPU's cache holds, and what keeps a GPU busy.
CPU_ELEMENTS, GPU_ELEMENTS = 2**19, 2**26


class LinearHead(Head):
    """Class logits (B, C, grid height, grid width) from tokens (B, N, D)."""

    title = "linear"
    main_output = "logits"
    class_layer_name = "classifier"
    capturable = True
    weighs_classes = True

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
        return upsampled_cross_entropy(logits, labels, self.class_weights, self.compiled), {}

    def outputs(self, logits: Tensor, loss: Tensor | None, parts: dict[str, Tensor], auxiliary: bool):
        """The model's output: logits (B, C, h, w) at token resolution."""
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    @staticmethod
    def semantic_logits(outputs, size: Sequence[int], rows: slice | None = None) -> Tensor:
        """Class logits (B, C, *size), fp32: upsampled bilinearly; with `rows` only those rows, without gradient."""
        return upsample(outputs["logits"], size, rows)


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Sequence[float] | None = None, compiled: bool = False
) -> Tensor:
    """Each image's cross-entropy, averaged over its labelled pixels, of bilinearly upsampled logits.

    The same as F.cross_entropy(F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear"), ...) within rounding,
    and so are its gradients; a second derivative is not defined.

    Args:
        logits: (B, C, h, w), of any float type; computed in fp32.
        labels: (B, H, W) integers, IGNORE_INDEX where there is no label.
        class_weights: C numbers, at least 0: the average is then weighted, as with F.cross_entropy(weight=...).
        compiled: let a GPU compute all rows in a few compiled kernels, where h divides H.

    Returns:
        (B,) fp32; 0 for an image without a labelled pixel, or where all of them weigh 0.
    """
    weights = None
    if class_weights is not None:
        # Of every label; IGNORE_INDEX weighs nothing.
        weights = torch.tensor([*class_weights, *[0] * (256 - len(class_weights))], dtype=torch.float32)
        weights = weights.to(logits.device, non_blocking=True)
    return _UpsampledCrossEntropy.apply(logits.float(), labels, weights, compiled)


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
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor | None, compiled: bool) -> Tensor:
        whole = compiled and logits.device.type != "cpu" and labels.shape[1] % logits.shape[2] == 0
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] and not whole else None
        with torch.autocast(logits.device.type, enabled=False):
            if whole:
                loss, gradient = _loss_and_gradient_at_once(logits, labels, weights, _compiled_rows())
            else:
                loss = _loss_and_gradient(logits, labels, weights, gradient)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None, None], None, None, None


def _mix_of_columns(tokens: int, pixels: int, device: torch.device) -> Tensor:
    """What each token (a row) counts in each pixel (a column): (tokens, pixels)."""
    columns, mix = torch.zeros(tokens, pixels, device=device), bilinear_mix(tokens, pixels, device)
    numbers = torch.arange(pixels, device=device)
    columns[mix.first, numbers] += 1 - mix.share
    columns[mix.second, numbers] += mix.share  # at the border both are one token
    return columns


def _labelled(labels: Tensor, weights: Tensor | None) -> Tensor:
    """What the pixels of each image (B, H, W) count together, at least above 0: (B,)."""
    labelled = torch.stack([_pixel_weights(label_map, weights).sum() for label_map in labels])
    return torch.where(labelled > 0, labelled, 1)


def _pixel_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    """What each of the labels (...) counts: whether it is one, or its class's weight."""
    return labels != IGNORE_INDEX if weights is None else weights[labels.long()]


def _loss_and_gradient(logits: Tensor, labels: Tensor, weights: Tensor | None, gradient: Tensor | None) -> Tensor:
    """Each image's loss (B,); its gradient, (B, C, h, w), is written to `gradient`.

    Args:
        weights: (256,), of each label; None where all but IGNORE_INDEX count alike.
    """
    batch, classes, height, width = logits.shape
    columns = _mix_of_columns(width, labels.shape[2], logits.device)
    down = bilinear_mix(height, labels.shape[1], logits.device)
    limit = CPU_ELEMENTS if logits.device.type == "cpu" else GPU_ELEMENTS
    row = classes * labels.shape[2]
    images = max(1, min(batch, limit // (row * -(-labels.shape[1] // height))))
    losses = torch.zeros(batch, device=logits.device)
    labelled = _labelled(labels, weights)
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


def _rows(
    wide: Tensor, labels: Tensor, labelled: Tensor, weights: Tensor | None, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each image's loss (B,) and its gradient with respect to the rows above and below each band, (B, C, n, W) each.

    Without a compiler it holds logits of full size several times.

    Args:
        wide: (B, C, n + 1, W), the n + 1 rows of which n bands lie between two each.
        labels: (B, n, rows, W).
        labelled: (B,), as `_labelled` returns it.
        weights: as in `_loss_and_gradient`.
        share: (rows, 1), of the row below in each row of a band.
    """
    counts = _pixel_weights(labels, weights).float()
    # For which F.cross_entropy ends the process.
    is_unknown = (labels < 0) | ((labels >= wide.shape[1]) & (labels != IGNORE_INDEX))
    bands = torch.lerp(wide[:, :, :-1, None], wide[:, :, 1:, None], share)  # (B, C, n, rows, W)
    classes = torch.arange(wide.shape[1], device=wide.device)[:, None, None, None]
    is_target = labels[:, None] == classes
    most = bands.amax(dim=1)
    log_total = (bands - most[:, None]).exp().sum(dim=1).log()
    chosen = torch.where(is_target, bands, 0).sum(dim=1) - most
    losses = ((log_total - chosen) * torch.where(is_unknown, torch.nan, counts)).sum(dim=(1, 2, 3))
    # The weighted probabilities need one number of each pixel: infinity where it counts nothing.
    offset = most + log_total - counts.log()
    target = (
        is_target.float() if weights is None else torch.where(is_target, weights[: len(classes), None, None, None], 0)
    )
    gradient = (bands - offset[:, None]).exp() - target
    above, below = (gradient * (1 - share)).sum(dim=3), (gradient * share).sum(dim=3)
    labelled = labelled[:, None, None, None]
    return losses / labelled[:, 0, 0, 0], above / labelled, below / labelled


@lru_cache(maxsize=1)
def _compiled_rows():
    return torch.compile(_rows, dynamic=False)


def _loss_and_gradient_at_once(
    logits: Tensor, labels: Tensor, weights: Tensor | None, rows: Callable = _rows
) -> tuple[Tensor, Tensor]:
    """Each image's loss (B,) and its gradient (B, C, h, w), where h divides H.

    Each pair of neighbouring token rows, the first and last of which are repeated at the border, has the same number of
    pixel rows between them, so that all bands have one shape.

    Args:
        weights: as in `_loss_and_gradient`.
        rows: `_rows`, or what a compiler made of it.
    """
    (_, _, height, width), (pixels, width_in_pixels) = logits.shape, labels.shape[1:]
    patch = pixels // height
    columns = _mix_of_columns(width, width_in_pixels, logits.device)
    wide = torch.cat([logits[:, :, :1], logits, logits[:, :, -1:]], dim=2) @ columns  # (B, C, h + 2, W)
    # The first band has the pixel rows above the centre of the first token row, and as many that are no pixels.
    padded = F.pad(labels.to(torch.int16), (0, 0, patch - patch // 2, patch // 2), value=IGNORE_INDEX)
    share = ((torch.arange(patch, device=logits.device) + patch // 2 + 0.5) / patch - 0.5)[:, None]
    losses, above, below = rows(
        wide, padded.unflatten(1, (height + 1, patch)), _labelled(labels, weights), weights, share
    )
    mixed = F.pad(above @ columns.T, (0, 0, 0, 1)) + F.pad(below @ columns.T, (0, 0, 1, 0))  # (B, C, h + 2, w)
    gradient = mixed[:, :, 1:-1].contiguous()
    gradient[:, :, 0] += mixed[:, :, 0]
    gradient[:, :, -1] += mixed[:, :, -1]
    return losses, gradient
