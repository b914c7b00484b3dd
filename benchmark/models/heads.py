"""The heads by name. A saved model's copy of this file lists its own head alone."""

from .eomt_head import EomtHead
from .linear_head import LinearHead
from .mask2former_head import Mask2FormerHead
from .multilayer_linear_head import MultilayerHead

HEADS = {"linear": LinearHead, "multilayer_linear": MultilayerHead, "mask2former": Mask2FormerHead, "eomt": EomtHead}
