"""The Mask2Former decoder on a plain ViT: one scale, no pixel decoder, masked cross-attention.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022 (arXiv 2112.01527), in the
single-scale form of Kerssies et al. (arXiv 2404.12172).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mask2former_loss import Mask2FormerPredictions
from .mask_head import MaskHead


class Mask2FormerHead(MaskHead):
    """Turn a grid of tokens into class logits and masks of `num_queries` queries, once a layer.

    `blocks` is the list to compile block by block. The forward pass has no host synchronisation and no graph break.

    Args:
        loss_options: as of `MaskHead`.
    """

    title = "Mask2Former"
    capturable = True

    def __init__(
        self,
        embed_dim: int,
        num_labels: int,
        grid_size: tuple[int, int],
        *,
        num_queries: int = 100,
        num_blocks: int = 9,
        hidden_size: int = 256,
        num_heads: int = 8,
        ffn_size: int = 2048,
        **loss_options: float,
    ):
        super().__init__(**loss_options)
        self.grid_size = grid_size
        self.projection = nn.Linear(embed_dim, hidden_size)
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size))
        self.query_positions = nn.Parameter(torch.randn(num_queries, hidden_size))
        self.blocks = nn.ModuleList(Mask2FormerBlock(hidden_size, num_heads, ffn_size) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.class_layer = nn.Linear(hidden_size, num_labels + 1)
        self.mask_mlp = nn.Sequential(
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, tokens: Tensor) -> Mask2FormerPredictions:
        """Decode tokens (B, grid_height * grid_width, embed_dim), in rows from the top left."""
        values = self.projection(tokens)  # (B, N, hidden)
        positions = sine_positions(self.grid_size, values.shape[-1], values.device)
        keys = (values + positions).to(values.dtype)
        queries = self.queries.expand(tokens.shape[0], -1, -1)  # (B, Q, hidden)

        predictions = [self._predict(queries)]
        for block in self.blocks:
            attended = attended_tokens(predictions[-1][1], values)
            queries = block(queries, self.query_positions, keys, values, attended)
            predictions.append(self._predict(queries))

        class_logits, mask_embeddings = (torch.stack(layers) for layers in zip(*predictions, strict=True))
        return Mask2FormerPredictions(class_logits, mask_embeddings, values.mT.unflatten(-1, self.grid_size))

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm(queries)
        return self.class_layer(queries), self.mask_mlp(queries)


class Mask2FormerBlock(nn.Module):
    """Masked cross-attention to the tokens, self-attention among the queries, and an FFN; each with post-norm."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_size: int):
        super().__init__()
        self.cross_attention = Attention(hidden_size, num_heads)
        self.cross_attention.reset_as_multihead_attention()
        self.cross_attention_norm = nn.LayerNorm(hidden_size)
        self.self_attention = Attention(hidden_size, num_heads)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        self.ffn = nn.Sequential(nn.Linear(hidden_size, ffn_size), nn.ReLU(), nn.Linear(ffn_size, hidden_size))
        self.ffn_norm = nn.LayerNorm(hidden_size)

    def forward(
        self, queries: Tensor, query_positions: Tensor, keys: Tensor, values: Tensor, attended: Tensor
    ) -> Tensor:
        """Update queries (B, Q, hidden) from keys and values (B, N, hidden), where `attended` (B, Q, N) is True."""
        update = self.cross_attention(queries + query_positions, keys, values, attended)
        queries = self.cross_attention_norm(queries + update)
        placed = queries + query_positions
        queries = self.self_attention_norm(queries + self.self_attention(placed, placed, queries))
        return self.ffn_norm(queries + self.ffn(queries))


class Attention(nn.Module):
    """Multi-head attention through `scaled_dot_product_attention`."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    @torch.no_grad()
    def reset_as_multihead_attention(self) -> None:
        """Initialise as `nn.MultiheadAttention` does: Xavier over the three stacked projections, biases zero."""
        hidden_size = self.query.in_features
        bound = math.sqrt(6 / (hidden_size + 3 * hidden_size))
        for projection in (self.query, self.key, self.value):
            projection.weight.uniform_(-bound, bound)
            projection.bias.zero_()
        self.output.bias.zero_()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attended: Tensor | None = None) -> Tensor:
        """Attend from query (B, Q, hidden) to key and value (B, N, hidden), where `attended` (B, Q, N) is True."""
        query, key, value = (
            projection(tensor).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, Q or N, head size)
            for projection, tensor in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = None if attended is None else attended.unsqueeze(1)
        return self.output(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


@torch.no_grad()
def attended_tokens(mask_embeddings: Tensor, features: Tensor) -> Tensor:
    """Which tokens each query may attend to: those inside its mask, or all of them where its mask is empty.

    Args: mask_embeddings (B, Q, E); features (B, N, E). Returns: (B, Q, N), bool.
    """
    outside = mask_embeddings @ features.mT < 0
    return ~outside | outside.all(-1, keepdim=True)


def sine_positions(grid_size: tuple[int, int], hidden_size: int, device: torch.device) -> Tensor:
    """Sine position embedding (grid_height * grid_width, hidden_size) in fp32: first half rows, second half columns.

    DETR's normalised form (Carion et al., ECCV 2020, section A.4): coordinates 1..n scaled to (0, 2 pi], temperature
    10,000, sine and cosine interleaved. Computed each time: a buffer would have to travel with every checkpoint.
    """
    channels = torch.arange(hidden_size // 4, device=device)
    frequencies = 10_000.0 ** (-4 * channels / hidden_size)  # (hidden / 4,)

    def encode(length: int) -> Tensor:
        places = torch.arange(1, length + 1, device=device) * (2 * math.pi / (length + 1e-6))
        angles = places[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (length, hidden / 2)

    height, width = grid_size
    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
