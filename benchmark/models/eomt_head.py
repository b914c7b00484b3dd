"""The Encoder-only Mask Transformer: queries join the tokens in the encoder's last blocks; there is no decoder.

Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025 (arXiv 2503.19108). Its loss is
Mask2Former's, on the predictions before each of the last blocks and after them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .encoder import Encoder
from .errors import ModelError
from .mask2former_loss import Mask2FormerPredictions
from .mask2former_points import draw_points
from .mask_head import MaskHead

ANNEALING_POWER = 0.9  # as the authors' code has it; the paper names the schedule "polynomial" (section 3.3)


class EomtHead(MaskHead):
    """Class logits and masks of `num_queries` queries that go through the last `num_blocks` blocks of the encoder.

    While it trains, a query attends in each of these blocks only to tokens inside the mask that it has before the
    block. Masks are taken away block by block until there are none (`anneal`), so that a trained model needs no
    predictions before the last one, and no masks.

    Args:
        num_upscale_blocks: each doubles the resolution of the masks; 2 from patches of 16x16 gives a quarter of the
            image's.
        mask_shares: of each of the last blocks, the share of queries that are still masked, in 0..1; none by default.
        loss_options: as of `MaskHead`.
    """

    title = "EoMT"
    takes_encoder = True

    def __init__(
        self,
        embed_dim: int,
        num_labels: int,
        grid_size: tuple[int, int],
        *,
        num_queries: int = 100,
        num_blocks: int = 3,
        num_upscale_blocks: int = 2,
        mask_shares: Sequence[float] | None = None,
        **loss_options: float,
    ):
        super().__init__(**loss_options)
        self.grid_size, self.num_blocks = grid_size, num_blocks
        self.mask_shares = list(mask_shares or [0.0] * num_blocks)
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.class_layer = nn.Linear(embed_dim, num_labels + 1)
        self.mask_mlp = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
        )
        self.upscale = nn.Sequential(*(UpscaleBlock(embed_dim) for _ in range(num_upscale_blocks)))

    def attach(self, encoder: Encoder) -> None:
        """Let the encoder's last blocks take queries in front of their tokens.

        Raises:
            ModelError: its attention knows no mask or depends on a window, or it has too few blocks.
        """
        if not isinstance(encoder.backbone, VisionTransformer | Eva):
            raise ModelError(
                f"{encoder.name} cannot carry the eomt head, because its attention takes no further tokens: "
                "set model.head to mask2former, or name another encoder."
            )
        if len(encoder.blocks) <= self.num_blocks:
            raise ModelError(
                f"{encoder.name} has {len(encoder.blocks)} blocks: set model.eomt.num_blocks below that, not to "
                f"{self.num_blocks}."
            )
        for block in encoder.blocks[-self.num_blocks :]:
            if hasattr(block.attn, "num_prefix_tokens"):  # in front of the tokens that rotary embeddings turn
                block.attn.num_prefix_tokens += len(self.queries)

    def anneal(self, progress: float) -> dict[str, list[float]]:
        """Set, and return, `mask_shares` for a training of which a share `progress` in 0..1 is over.

        Training has num_blocks + 2 phases of one length: in the first all queries are masked in all blocks, then one
        block after the other loses its masks, by (1 - share of its phase) ** 0.9, and in the last there are none.
        """
        phases = [progress * (self.num_blocks + 2) - number for number in range(1, self.num_blocks + 1)]
        self.mask_shares = [min(1.0, max(0.0, 1 - over)) ** ANNEALING_POWER for over in phases]
        return {"mask_shares": self.mask_shares}

    def forward(
        self, encoder: Encoder, pixel_values: Tensor, positions: Tensor | None = None, seed: int = 0
    ) -> Mask2FormerPredictions:
        """Predictions for images (B, 3, H, W).

        While training: before each of the last blocks and after them. Else: before those blocks that still have
        masks, and after all.

        Args:
            positions: (B,) int64; they decide with the seed which queries lose their masks. None: all images alike.
        """
        first = len(encoder.blocks) - self.num_blocks
        (tokens,) = encoder.layers(pixel_values, [first - 1], keep_prefix_tokens=True)
        tokens = torch.cat([self.queries.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        predictions, arguments = [], block_arguments(encoder)
        for number, share in enumerate(self.mask_shares):
            mask = None
            if self.training or share > 0:
                predictions.append(self._predict(encoder.final_norm(tokens)))
                if share > 0:
                    kept = masked_queries(share, len(self.queries), number, positions, seed, tokens)
                    mask = self._attention_mask(predictions[-1], tokens, kept)
            tokens = encoder.blocks[first + number](tokens, attn_mask=mask, **arguments[first + number])
        predictions.append(self._predict(encoder.final_norm(tokens)))
        return Mask2FormerPredictions(*(torch.stack(layers) for layers in zip(*predictions, strict=True)))

    def _predict(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, Q, C + 1), mask embeddings (B, Q, D) and features (B, D, h, w) of normalised tokens."""
        queries, image = tokens[:, : len(self.queries)], tokens[:, -self.grid_size[0] * self.grid_size[1] :]
        features = self.upscale(image.transpose(1, 2).unflatten(2, self.grid_size))
        return self.class_layer(queries), self.mask_mlp(queries), features

    @torch.no_grad()
    def _attention_mask(self, prediction: tuple[Tensor, Tensor, Tensor], tokens: Tensor, masked: Tensor) -> Tensor:
        """Where attention may go, bool (B, 1, S, S), S = Q + prefix + N: a masked query, to tokens inside its mask.

        Args:
            masked: (B or 1, Q) bool, which queries are masked.
        """
        _, embeddings, features = prediction
        logits = torch.einsum("bqe,behw->bqhw", embeddings, features)
        inside = F.interpolate(logits.float(), self.grid_size, mode="bilinear").flatten(2) > 0
        allowed = tokens.new_ones((tokens.shape[0], 1, tokens.shape[1], tokens.shape[1]), dtype=torch.bool)
        allowed[:, 0, : inside.shape[1], -inside.shape[2] :] = inside | ~masked[..., None]
        return allowed


class UpscaleBlock(nn.Sequential):
    """Features (B, D, h, w) at twice the resolution."""

    def __init__(self, embed_dim: int):
        super().__init__(
            nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, kernel_size=3, padding=1, groups=embed_dim, bias=False),
            ChannelNorm(embed_dim, eps=1e-6),
        )


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of (B, D, h, w)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def masked_queries(
    share: float, num_queries: int, block: int, positions: Tensor | None, seed: int, like: Tensor
) -> Tensor:
    """Which queries are masked in the `block`-th of the last blocks: bool (B, Q), or (1, Q) without positions.

    Each query is masked with probability `share`; the draw depends on the seed, the position, the block and the query
    alone.
    """
    if positions is None:
        positions = torch.zeros(1, dtype=torch.int64, device=like.device)
    # The loss draws its points at the positions themselves; those below 0 are of no sample.
    drawn = draw_points(seed, -1 - positions, num_queries * (block + 1))[:, -num_queries:, 0]
    return (drawn + 1) / 2 < share


def block_arguments(encoder: Encoder) -> list[dict[str, Any]]:
    """What each block of the encoder takes beside tokens and a mask: its rotary embedding, where there is one."""
    rope, count = getattr(encoder.backbone, "rope", None), len(encoder.blocks)
    if rope is None:
        return [{}] * count
    embedding = rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=encoder.grid_size)
    by_block = embedding if getattr(encoder.backbone, "rope_mixed", False) else [embedding] * count
    return [{"rope": own} for own in by_block]
