"""The heads by name. A saved model's copy of this file lists its own head alone."""

from .eomt_head import EomtHead
from .linear_head import LinearHead
from .mask2former_head import Mask2FormerHead
from .multilayer_linear_head import MultilayerHead

# A head has `title`, `main_output` (the first key of its outputs), `class_layer_name` (of the layer with a row for each
# class), forward (tokens to predictions), loss, outputs and semantic_logits, as LinearHead documents them, and `blocks`
# where it has blocks to compile one by one. A head that takes more than the last layer's tokens has `attach`, which is
# called once with the encoder and raises ModelError where it cannot carry the head; the head's forward then takes
# encoder, pixel values, positions and seed. A head that changes while it trains has `anneal` and `mask_shares`. One
# whose forward has static shapes, draws nothing and never waits for the host has `capturable = True`.
HEADS = {"linear": LinearHead, "multilayer_linear": MultilayerHead, "mask2former": Mask2FormerHead, "eomt": EomtHead}
