"""Mask2Former's loss for semantic segmentation, for all layers and images of a step together.

Cheng et al., arXiv 2112.01527, sections 3.3 and 4.1: a bipartite matching between queries and the classes of an image,
then class, mask and dice losses, the latter two at sampled points. Every image is normalised by itself, and its points
are keyed by (seed, position in the sample stream): its loss does not depend on the images beside it.

All layers and masks of an image share its random points, where Mask2Former draws new ones for each: every mask's
points are distributed alike, and what depends on the points alone is computed once.

Memory: sampled logits are held for a few images and layers at once, at most three buffers of CHUNK_ELEMENTS floats (on
a CPU fewer), or, where that is more, of one image's layer when matching (Q * num_points) and of one layer in the mask
losses (3 * M * num_points, M being the classes of all images together). For the backward pass stay
4 * L * M * num_points floats. With the number of tokens grow only the mask logits: B * Q * tokens a layer, and
those of matched queries, L * M * tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ModelError
from .mask2former_points import PointLosses, draw_points, sample, sample_labels, softplus_sum
from .windows import IGNORE_INDEX

CHUNK_ELEMENTS = 2**26
CPU_CHUNK_ELEMENTS = 2**21  # what a CPU's cache holds
USUAL_CLASSES = 32  # Matching makes room for so many; where an image holds more it is done again, with a second copy.


class Mask2FormerPredictions(NamedTuple):
    """What every layer predicts: before each of the L - 1 blocks and after the last.

    Mask logits are the products of mask embeddings and mask features; the loss and evaluation make those they need.
    """

    class_logits: Tensor
    """(L, B, Q, num_labels + 1); the last class is "no object"."""
    mask_embeddings: Tensor
    """(L, B, Q, hidden_size)"""
    mask_features: Tensor
    """(B, hidden_size, grid_height, grid_width), or (L, B, ...) where each layer has features of its own"""

    def mask_logits(self, layer: int = -1) -> Tensor:
        """The mask logits (B, Q, grid_height, grid_width) of one layer, by default the last."""
        features = self.mask_features if self.mask_features.ndim == 4 else self.mask_features[layer]
        return torch.einsum("bqe,behw->bqhw", self.mask_embeddings[layer], features)


class Matching(NamedTuple):
    """One query for each class of each image, in every layer; M is the number of classes of all images together."""

    images: Tensor
    """(M,), int64, ascending"""
    places: Tensor
    """(M,), int64: which of its image's classes"""
    classes: Tensor
    """(M,), int64"""
    queries: Tensor
    """(L, M), int64"""
    max_classes: int
    """the most classes of an image, at least 1"""


def mask2former_loss(
    predictions: Mask2FormerPredictions,
    labels: Tensor,
    positions: Tensor | None = None,
    *,
    seed: int,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
    no_object_weight: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each image, summed over layers, and its parts.

    Args:
        predictions: of L layers, Q queries and C classes; any floating dtype.
        labels: (B, H, W), integers: 0 .. C - 1, or 255 = ignore.
        positions: (B,), int64, each image's position in the sample stream; by default 0 .. B - 1.
        seed: 0 .. 2**31 - 1; decides, with the position, an image's points.

    Returns: (B,), fp32, at least 0; exactly 0 for an image without a labelled pixel. The parts "class", "mask" and
    "dice", weighted, have the same shape, no gradient, and the loss as their sum.

    Raises:
        ModelError: predictions are not finite, or an image holds a class that the model lacks, or more classes than
            there are queries.
    """
    if positions is None:
        positions = torch.arange(len(labels), device=labels.device)
    num_uncertain = int(importance_sample_ratio * num_points)
    num_candidates = int(oversample_ratio * num_points)
    num_queries, num_labels = predictions.class_logits.shape[2], predictions.class_logits.shape[3] - 1
    with torch.autocast(labels.device.type, enabled=False):
        predictions = Mask2FormerPredictions(*(tensor.float() for tensor in predictions))
        points = draw_points(seed, positions, num_points + num_candidates + num_points - num_uncertain)
        present = present_classes(labels)
        for limit in (USUAL_CLASSES, num_queries):
            classes = present[:, : min(limit, num_labels)]
            targets = sample_labels(labels, classes, points)  # (B, T, all points)
            mask, dice = mask_costs(predictions, points[:, :num_points], targets[..., :num_points])
            costs = class_weight * class_costs(predictions.class_logits, classes)
            matching = match(costs + mask_weight * mask + dice_weight * dice, present, num_labels)
            if matching is not None:
                break

        mask, dice = mask_losses(
            predictions, matching, points[:, num_points:], targets[..., num_points:], num_candidates, num_uncertain
        )
        of_image = matching.images == torch.arange(len(labels), device=labels.device)[:, None]  # (B, M)
        num_masks = of_image.sum(1)
        of_image, divisor = of_image.float(), num_masks.clamp(min=1)
        mask_loss = of_image @ (mask_weight * mask + dice_weight * dice) / divisor
        class_loss = class_losses(predictions.class_logits, matching, no_object_weight)
        class_loss = class_weight * class_loss.where(num_masks > 0, 0)
        mask_part = of_image @ (mask_weight * mask.detach()) / divisor
        parts = {"class": class_loss.detach(), "mask": mask_part, "dice": mask_loss.detach() - mask_part}
        return mask_loss + class_loss, parts


@torch.no_grad()
def present_classes(labels: Tensor) -> Tensor:
    """The labels that occur in each image of (B, H, W), ascending: (B, 256), int64, filled up with 255."""
    found = torch.zeros(len(labels), 256, dtype=torch.bool, device=labels.device)
    found.scatter_(1, labels.flatten(1).long(), True)
    return torch.arange(256, device=labels.device).where(found, IGNORE_INDEX).sort(1).values


@torch.no_grad()
def class_costs(class_logits: Tensor, classes: Tensor) -> Tensor:
    """Minus the probability of each of an image's classes: (L, B, Q, T), for classes (B, T).

    Where the row of classes is filled up with 255, the costs are finite and mean nothing.
    """
    num_layers, _, num_queries, num_outputs = class_logits.shape
    columns = classes.clamp(max=num_outputs - 2)[:, None].expand(num_layers, -1, num_queries, -1)
    return -class_logits.softmax(-1).gather(-1, columns)


@torch.no_grad()
def mask_costs(predictions: Mask2FormerPredictions, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice costs (L, B, Q, T) of each query with each of targets (B, T, P), at points (B, P, 2).

    Cross-entropy is the mean of softplus(x) - x t, so that pairs need nothing but matrix products.
    """
    _, embeddings, features = predictions
    num_layers, batch_size, num_queries, _ = embeddings.shape
    if features.ndim == 5:
        single = zip(predictions.class_logits.split(1), embeddings.split(1), features, strict=True)
        found = [mask_costs(Mask2FormerPredictions(*layer), points, targets) for layer in single]
        return tuple(torch.cat(costs) for costs in zip(*found, strict=True))
    rows, tokens, columns = embeddings.transpose(0, 1).flatten(1, 2), features.flatten(2), targets.mT
    num_logits, device = num_queries * points.shape[1], points.device  # of one image in one layer
    parts = []
    for images in _chunks(batch_size, num_logits, device):
        its_rows, its_tokens, its_points, its_columns = (each[images] for each in (rows, tokens, points, columns))
        sums = []
        for layers in _chunks(num_layers, (images.stop - images.start) * num_logits, device):
            maps = torch.bmm(its_rows[:, layers.start * num_queries : layers.stop * num_queries], its_tokens)
            logits = sample(maps.unflatten(2, features.shape[2:]), its_points)  # (b, layers * Q, P)
            softplus, products = softplus_sum(logits), torch.bmm(logits, its_columns)
            probabilities = logits.sigmoid_()
            sums.append((softplus, products, probabilities.sum(-1), torch.bmm(probabilities, its_columns)))
        parts.append([torch.cat(chunks, dim=1) for chunks in zip(*sums, strict=True)])

    softplus, products, sizes, overlaps = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
    cross_entropy = (softplus[..., None] - products) / points.shape[1]
    dice = 1 - (2 * overlaps + 1) / (sizes[..., None] + targets.sum(-1)[:, None] + 1)
    return tuple(costs.unflatten(1, (num_layers, num_queries)).transpose(0, 1) for costs in (cross_entropy, dice))


def match(costs: Tensor, classes: Tensor, num_labels: int) -> Matching | None:
    """Solve the assignment problems of all layers and images, after the loss's only copy from the device to the host.

    Args: costs (L, B, Q, T); classes (B, 256), see `present_classes`. Returns: None where an image has more than T.
    """
    try:  # transformers asks for what is imported outside of a `try` when it loads a model: inference needs no SciPy
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ModelError("The Mask2Former loss needs SciPy: pip install scipy.") from None

    host = torch.cat([costs.flatten(), classes.flatten().float()]).cpu().numpy()
    host_costs = host[: costs.numel()].reshape(costs.shape)
    host_classes = host[costs.numel() :].reshape(classes.shape).astype(np.int64)
    present = host_classes != IGNORE_INDEX
    num_classes = present.sum(1)
    _check_problems(host_costs, host_classes[present], num_classes.max(), num_labels)
    if num_classes.max() > costs.shape[-1]:
        return None

    queries = [
        np.concatenate([linear_sum_assignment(cost[:, :n].T)[1] for cost, n in zip(layer, num_classes, strict=True)])
        for layer in host_costs
    ]
    packed = torch.from_numpy(np.stack([*present.nonzero(), host_classes[present], *queries]))
    packed = packed.to(costs.device, non_blocking=True)
    return Matching(packed[0], packed[1], packed[2], packed[3:], max(1, int(num_classes.max())))


def _check_problems(costs: np.ndarray, classes: np.ndarray, max_classes: int, num_labels: int) -> None:
    num_queries = costs.shape[2]
    if classes.max(initial=0) >= num_labels:
        raise ModelError(
            f"A label map holds class {classes.max()} but the model knows 0 to {num_labels - 1}; "
            f"give the model the dataset's number of labels, or mark such pixels {IGNORE_INDEX}."
        )
    if max_classes > num_queries:
        raise ModelError(
            f"An image holds {max_classes} classes but the Mask2Former head has {num_queries} queries; "
            f"give it at least as many queries as a crop can hold classes."
        )
    if not np.isfinite(costs).all():
        raise ModelError(
            "The Mask2Former head's predictions are not finite, so training has diverged; "
            "lower the learning rate, or train in bf16 or fp32 where it was fp16."
        )


def mask_losses(
    predictions: Mask2FormerPredictions,
    matching: Matching,
    points: Tensor,
    targets: Tensor,
    num_candidates: int,
    num_uncertain: int,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice losses (M,) of the matched masks, summed over layers.

    Args: targets (B, T, S) at points (B, S, 2). A mask's losses are taken at the `num_uncertain` of the first
    `num_candidates` points where its logits are nearest to 0, and at all further ones.
    """
    points, targets = points[matching.images], targets[matching.images, matching.places]  # (M, S, 2), (M, S)
    mask_logits = matched_mask_logits(predictions, matching)  # (M, L, h, w)
    losses = []
    for layers in _chunks(mask_logits.shape[1], len(points) * num_candidates, points.device):
        maps = mask_logits[:, layers]
        chosen = choose_points(maps.detach(), points, num_candidates, num_uncertain)  # (M, layers, P)
        shape = chosen.shape
        chosen_points = points[:, None].expand(-1, shape[1], -1, -1).gather(2, chosen[..., None].expand(*shape, 2))
        chosen_targets = targets[:, None].expand(-1, shape[1], -1).gather(2, chosen)
        chosen_logits = sample(maps.flatten(0, 1)[:, None], chosen_points.flatten(0, 1)).view(shape)
        losses.append(PointLosses.apply(chosen_logits, chosen_targets))
    return tuple(torch.cat(parts, dim=1).sum(1) for parts in zip(*losses, strict=True))


def matched_mask_logits(predictions: Mask2FormerPredictions, matching: Matching) -> Tensor:
    """The mask logits of the matched queries: (M, L, h, w)."""
    _, embeddings, features = predictions
    num_layers, batch_size, _, hidden_size = embeddings.shape
    # One matrix product an image, for which images with fewer classes than others are filled up with query 0.
    queries = matching.queries.new_zeros(num_layers, batch_size, matching.max_classes)
    queries[:, matching.images, matching.places] = matching.queries
    matched = embeddings.gather(2, queries[..., None].expand(-1, -1, -1, hidden_size))  # (L, B, T, E)
    if features.ndim == 5:
        maps = torch.einsum("lbte,lbehw->btlhw", matched, features)
        return maps[matching.images, matching.places]
    maps = torch.bmm(matched.permute(1, 2, 0, 3).flatten(1, 2), features.flatten(2))
    return maps.view(batch_size, -1, num_layers, *features.shape[2:])[matching.images, matching.places]


def choose_points(mask_logits: Tensor, points: Tensor, num_candidates: int, num_uncertain: int) -> Tensor:
    """Which of points (M, S, 2) count for each of mask_logits (M, L, h, w), see `mask_losses`: (M, L, P), int64."""
    distances = sample(mask_logits, points[:, :num_candidates]).abs_()
    uncertain = distances.topk(num_uncertain, largest=False, sorted=False).indices
    others = torch.arange(num_candidates, points.shape[1], device=points.device)
    return torch.cat([uncertain, others.expand(*mask_logits.shape[:2], -1)], dim=-1)


def class_losses(class_logits: Tensor, matching: Matching, no_object_weight: float) -> Tensor:
    """Weighted mean over queries of the class cross-entropy, summed over layers: (B,).

    A query without a mask has the last class as its target, with weight `no_object_weight`; all others weigh 1.
    """
    num_layers, batch_size, num_queries, num_outputs = class_logits.shape
    targets = matching.queries.new_full((num_layers, batch_size, num_queries), num_outputs - 1)
    matched = matching.images * num_queries + matching.queries
    targets.view(num_layers, -1).scatter_(1, matched, matching.classes.expand(num_layers, -1))
    weights = torch.where(targets == num_outputs - 1, no_object_weight, 1.0)
    losses = F.cross_entropy(class_logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)
    return ((weights * losses).sum(-1) / weights.sum(-1)).sum(0)


def _chunks(count: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Cut layers or images, of `elements` sampled logits each, into runs of what the device has at once, or of one."""
    step = max(1, (CPU_CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS) // max(1, elements))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
