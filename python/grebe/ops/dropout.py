"""Dropout. The mask is a function of (seed, offset, position): backward makes it again.

Kernel: `dropout` in csrc/cpu/random.cpp. Srivastava et al., 2014; D2L section 5.6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import Node, record, wrap
from ..backend import Array, contiguous, empty, kernels
from ..tensor import Tensor, assign, expect_tensor
from .random import default_generator
from .softmax import check_floating, is_half

__all__ = ["dropout"]


class Dropout(Node):
    """y = x mask / (1 - p): dx = dy mask / (1 - p), the same kernel on the gradient."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        p, seed, offset = self.saved
        return _masked(grad, p, seed, offset)


def _masked(input: Tensor, p: float, seed: int, offset: int) -> Tensor:
    x = contiguous(input.array)
    y = empty(x.shape, x.dtype, x)
    kernels(x).dropout(x, y, p, seed, offset)
    return record(Dropout, y, (input,), (p, seed, offset))


def check_p(name: str, p: float) -> None:
    """ValueError unless `p` is a probability."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: dropout probability has to be between 0 and 1, but got {p}")


def dropout_mask(
    shape: tuple[int, ...], dtype: np.dtype[Any], p: float, seed: int, offset: int
) -> Array:
    """What `dropout` multiplies by."""
    ones = np.ones(shape, dtype)
    kernels(ones).dropout(ones, ones, p, seed, offset)
    return ones


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zeroes elements with probability `p` and scales the others by ``1 / (1 - p)``.

    Args:
        input: floating point tensor of any shape.
        p: probability of an element to be zeroed.
        training: False returns the input.
        inplace: write the result into `input`.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: `p` outside [0, 1].
    """
    x = expect_tensor("dropout", "input", input)
    check_floating("dropout", "input", x)
    check_p("dropout", p)
    if not training or p == 0:
        return input
    if is_half(x.dtype):
        y = dropout(input.to(np.float32), p).to(x.dtype)
    else:
        y = _masked(input, p, *default_generator.take(x.size))
    return assign("dropout", input, y) if inplace else y


def _feature_dropout(
    name: str, input: Tensor, p: float, training: bool, inplace: bool, ndims: tuple[int, int]
) -> Tensor:
    """Dropout of whole channels: of dimension 1, or 0 for a single example."""
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    check_p(name, p)
    if x.ndim not in ndims:
        raise ValueError(f"{name}: expected {ndims[0]}-D or {ndims[1]}-D input, got {x.ndim}-D")
    if not training or p == 0:
        return input
    kept = x.ndim - (ndims[1] - 2)
    ones = wrap(np.ones(x.shape[:kept] + (1,) * (x.ndim - kept), x.dtype))
    y = input * dropout(ones, p)
    return assign(name, input, y) if inplace else y


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels of input [N, C, L] or [C, L]. Arguments as for `dropout`."""
    return _feature_dropout("dropout1d", input, p, training, inplace, (2, 3))


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels of input [N, C, H, W] or [C, H, W]. Arguments as for `dropout`."""
    return _feature_dropout("dropout2d", input, p, training, inplace, (3, 4))
