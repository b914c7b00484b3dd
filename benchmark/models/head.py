"""What every head has."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from .encoder import Encoder


class Head(nn.Module):
    """A head owns its layers, its loss, its outputs and the way from these to class logits.

    Its constructor takes embed_dim, num_labels, grid_size (rows and columns of tokens) and, as keywords, the options of
    its section of the recipe. Its forward takes the encoder's tokens (B, N, embed_dim), row by row, or, with
    `takes_encoder`, the encoder, normalised images (B, 3, H, W), positions (B,) or None, and the seed; what it returns,
    its predictions, goes to `loss` and `outputs`. It may have `blocks`, which are compiled one by one.

    Attributes:
        title: its name in tables and on cards.
        main_output: the first key of its outputs; heads that share it turn outputs into class logits alike.
        class_layer_name: of the layer that has a row for each class.
        takes_encoder: whether it uses more than the last layer's tokens.
        capturable: its forward has static shapes, draws nothing and never waits for the host: it may be a CUDA graph.
        weighs_classes: whether its loss takes `class_weights`.
        class_weights: one number a class, which its pixels weigh in the loss; None: 1 each.
        compiled: whether a GPU computes the loss by compiled kernels, where there are some.
    """

    title: ClassVar[str]
    main_output: ClassVar[str]
    class_layer_name: ClassVar[str]
    takes_encoder: ClassVar[bool] = False
    capturable: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    class_weights: Sequence[float] | None = None
    compiled: bool = False

    def attach(self, encoder: Encoder) -> None:
        """Prepare the encoder for this head, once; ModelError where it cannot carry it."""

    def anneal(self, progress: float) -> dict[str, Any]:
        """Change as a training goes on, of which a share `progress`, in 0..1, is over; return the changed options."""
        return {}

    def loss(
        self, predictions: Any, labels: Tensor, positions: Tensor | None, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each image's loss, (B,) fp32, and by name its parts, (B,) each.

        Args:
            labels: (B, H, W) integers, 255 = ignore.
            positions: (B,) int64, of the samples in the training stream; with `seed` they key what the loss draws.
        """
        raise NotImplementedError

    def outputs(self, predictions: Any, loss: Tensor | None, parts: dict[str, Tensor], auxiliary: bool) -> ModelOutput:
        """The model's output, of tensors whose first axis is the image; `auxiliary` asks for earlier layers' too."""
        raise NotImplementedError

    @staticmethod
    def semantic_logits(outputs: Any, size: Sequence[int], rows: slice | None = None) -> Tensor:
        """Class logits (B, C, *size), fp32, of outputs; with `rows` only those rows, without gradient."""
        raise NotImplementedError
