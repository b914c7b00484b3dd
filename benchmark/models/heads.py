"""The heads by name. A saved model's copy of this file lists its own head alone."""

from .linear_head import LinearHead
from .mask2former_head import Mask2FormerHead

# A head has `title`, `main_output` (the first key of its outputs), `class_layer_name` (of the layer with a row for each
# class), forward (tokens to predictions), loss, outputs and semantic_logits, as LinearHead documents them, and `blocks`
# where it has blocks to compile one by one.
HEADS = {"linear": LinearHead, "mask2former": Mask2FormerHead}
