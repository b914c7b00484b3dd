"""Points at which Mask2Former's loss samples masks: how they are drawn and sampled, and the losses there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .windows import IGNORE_INDEX


def draw_points(seed: int, positions: Tensor, num_points: int) -> Tensor:
    """Uniform points (B, num_points, 2) in [-1, 1), x before y: a pure function of `seed` and each of `positions` (B,).

    SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), in int64
    arithmetic that wraps: the same on every device, with neither a generator's state nor a copy from the host.
    """
    streams = _split_mix(positions + (seed << 32))
    counters = torch.arange(num_points, device=positions.device)
    bits = _split_mix(streams[:, None] + counters * _GOLDEN_GAMMA)
    return torch.stack([bits >> 40, bits >> 16], dim=-1).bitwise_and_(2**24 - 1) * 2.0**-23 - 1


_GOLDEN_GAMMA, _FIRST_FACTOR, _SECOND_FACTOR = (
    unsigned - 2**64 for unsigned in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _split_mix(state: Tensor) -> Tensor:
    """SplitMix64's output after `state`; both are int64 that stand for 64 unsigned bits."""
    state = state + _GOLDEN_GAMMA
    state = (state ^ _shift_right(state, 30)) * _FIRST_FACTOR
    state = (state ^ _shift_right(state, 27)) * _SECOND_FACTOR
    return state ^ _shift_right(state, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    return (bits >> count).bitwise_and_(2 ** (64 - count) - 1)  # `>>` alone repeats the sign bit


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps (N, C, h, w) bilinearly at points (N, P, 2) in [-1, 1]: (N, C, P). Beyond the borders all is 0."""
    if maps.requires_grad and maps.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return _sample_by_gathering(maps, points)
    return F.grid_sample(maps, points[:, None], align_corners=False).squeeze(2)


def _sample_by_gathering(maps: Tensor, points: Tensor) -> Tensor:
    """`sample` by means whose gradient is deterministic on a GPU; grid_sample's is not."""
    pixels, weights = _corners(points, maps.shape[2:])  # (N, 4, P) each
    bordered = F.pad(maps, (1, 1, 1, 1)).flatten(2)  # (N, C, (h + 2) * (w + 2))
    corners = bordered.gather(2, pixels.flatten(1)[:, None].expand(-1, maps.shape[1], -1))
    return (corners.unflatten(2, (4, -1)) * weights[:, None]).sum(2)


def sample_labels(labels: Tensor, classes: Tensor, points: Tensor) -> Tensor:
    """What `sample` gives for the binary masks of each image's classes, without the masks being made.

    Args: labels (B, H, W), integers in 0 .. 255; classes (B, T), int64, filled up with 255; points (B, P, 2).
    Returns: (B, T, P), fp32: the bilinear weights of the class's pixels among the four around a point.
    """
    batch_size, height, width = labels.shape
    places = torch.arange(classes.shape[1], device=labels.device).expand_as(classes)
    place_of_label = places.new_full((batch_size, 256), classes.shape[1]).scatter_(1, classes, places)
    place_of_label[:, IGNORE_INDEX] = classes.shape[1]

    pixels, weights = _corners(points, (height, width))
    bordered = F.pad(labels, (1, 1, 1, 1), value=IGNORE_INDEX).flatten(1)
    rows = place_of_label.gather(1, bordered.gather(1, pixels.flatten(1)).long()).view_as(weights)
    targets = points.new_zeros(batch_size, classes.shape[1] + 1, points.shape[1])
    return targets.scatter_add_(1, rows, weights)[:, :-1]


def _corners(points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The four pixels around each of points (B, P, 2), counted in a flat map of `size` with a border of one pixel, and
    their bilinear weights: (B, 4, P) each.
    """
    (height, width), (x, y) = size, points.unbind(-1)
    x, y = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2  # in grid_sample's order, to round alike
    left, top = x.floor(), y.floor()
    x, y = x - left, y - top
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], dim=1)
    pixel, stride = (top.long() + 1) * (width + 2) + left.long() + 1, width + 2
    return torch.stack([pixel, pixel + 1, pixel + stride, pixel + stride + 1], dim=1), weights


class PointLosses(torch.autograd.Function):
    """Mean cross-entropy and dice loss (...) of masks from their logits and targets (..., P) at points.

    By hand, as autograd would keep and pass over these largest tensors of the loss many times.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy = (softplus_sum(logits) - torch.linalg.vecdot(logits, targets)) / logits.shape[-1]
        probabilities = logits.sigmoid()
        overlap = 2 * torch.linalg.vecdot(probabilities, targets) + 1
        size = probabilities.sum(-1) + targets.sum(-1) + 1
        ctx.save_for_backward(probabilities, targets, overlap / size, size)
        return cross_entropy, 1 - overlap / size

    @staticmethod
    @once_differentiable
    def backward(ctx, cross_entropy_grad: Tensor, dice_grad: Tensor) -> tuple[Tensor, None]:
        probabilities, targets, similarity, size = ctx.saved_tensors
        # d dice / d p = (similarity - 2 t) / size, and d p / d x = p (1 - p).
        grad = (probabilities * probabilities).sub_(probabilities)
        grad *= (2 * targets).sub_(similarity[..., None])
        grad *= (dice_grad / size)[..., None]
        grad += (probabilities - targets).mul_(cross_entropy_grad[..., None] / targets.shape[-1])
        return grad, None


def softplus_sum(logits: Tensor) -> Tensor:
    """The sum of softplus over the last dimension."""
    if logits.device.type != "cpu":
        return F.softplus(logits).sum(-1)
    # max(x, 0) + log(1 + exp(-|x|)): on the CPU torch's log is ten times faster than the log1p of its softplus.
    magnitudes = logits.abs()
    twice_positive = logits.sum(-1) + magnitudes.sum(-1)
    return torch.add(magnitudes.neg_().exp_().add_(1).log_().sum(-1), twice_positive, alpha=0.5)
