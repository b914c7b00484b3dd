"""How fast the parts are on this machine: data, training steps, evaluation, the Mask2Former loss."""
