"""The sections of heads that have options of their own; each is named as its head is."""

from dataclasses import dataclass

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmark.errors import UserError
from benchmark.recipe.key import key


@dataclass(frozen=True)
class MaskLoss:
    """The loss of heads that predict masks."""

    num_points: PositiveInt = key(12544, "points at which the loss samples a mask")
    oversample_ratio: PositiveFloat = key(3.0, "candidates for uncertain points, as a multiple of num_points")
    importance_sample_ratio: ClosedUnitInterval = key(0.75, "share of the points that are uncertain ones")
    class_weight: NonNegativeFloat = key(2.0, "of the class loss")
    mask_weight: NonNegativeFloat = key(5.0, "of the masks' cross-entropy")
    dice_weight: NonNegativeFloat = key(5.0, "of the masks' dice loss")
    no_object_weight: NonNegativeFloat = key(0.1, "of queries without a mask, in the class loss")

    def __post_init__(self) -> None:
        if self.importance_sample_ratio > self.oversample_ratio:
            section = type(self).__name__.lower()
            raise UserError(f"model.{section}.importance_sample_ratio must not be above oversample_ratio.")


@dataclass(frozen=True)
class Mask2Former(MaskLoss):
    """The Mask2Former head and its loss; counts only where model.head is mask2former."""

    num_queries: PositiveInt = key(100, "masks that the head predicts")
    num_blocks: PositiveInt = key(9, "decoder blocks")
    hidden_size: PositiveInt = key(256, "width of the decoder")
    num_heads: PositiveInt = key(8, "attention heads")
    ffn_size: PositiveInt = key(2048, "width inside the feed-forward layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(
                f"model.mask2former.hidden_size {self.hidden_size} must be a multiple of 4 and of num_heads "
                f"{self.num_heads}."
            )


@dataclass(frozen=True)
class Eomt(MaskLoss):
    """The EoMT head and its loss; counts only where model.head is eomt."""

    num_queries: PositiveInt = key(100, "masks that the head predicts")
    num_blocks: PositiveInt = key(3, "last blocks of the encoder that queries go through: 3 of base size, 4 of large")
    num_upscale_blocks: NonNegativeInt = key(2, "blocks that each double the masks' resolution; 1 for patches of 8x8")
