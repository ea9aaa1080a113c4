"""The gradients of convolutions as functions of their own."""

from ..ops.conv import conv2d_input, conv2d_weight

__all__ = ["conv2d_input", "conv2d_weight"]
