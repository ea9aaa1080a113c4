"""Dropout. The mask is a function of (seed, offset, position): backward makes it again.

Kernel: `dropout` in csrc/cpu/random.cpp. Srivastava et al., 2014; D2L section 5.6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
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
    """0 with probability `p`, else 1 / (1 - p), as in the tiles of attention."""
    dropped = np.empty(shape, dtype)
    kernels(dropped).random_bernoulli(dropped, seed, offset, p)
    return (1 - dropped) * dtype.type(1 / (1 - p) if p < 1 else 0)


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


class BiasDropoutAdd(Node):
    """y = (x + b) mask / (1 - p) + r: dx = dy mask / (1 - p), db its sum over rows, dr = dy."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        p, seed, offset, columns = self.saved
        gx = gb = None
        if grad_enabled():
            gx = _masked(grad, p, seed, offset)
            gb = gx.reshape(-1, columns).sum(0)
        elif self.edges[0] is not None or self.edges[1] is not None:
            g = contiguous(grad.array)
            y = empty(g.shape, g.dtype, g)
            sums = None if self.edges[1] is None else empty((columns,), g.dtype, g)
            kernels(g).bias_dropout_add(g, None, None, y, sums, p, seed, offset)
            gx, gb = wrap(y), None if sums is None else wrap(sums)
        return gx, gb, grad


def bias_dropout_add(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    p: float = 0.5,
    training: bool = True,
) -> Tensor:
    """``dropout(input + bias, p) + residual`` in one pass: the end of a transformer's sublayer.

    Args:
        input: floating point tensor of shape [..., n], what a linear layer without bias gave.
        bias: shape [n], or None for 0.
        residual: tensor of the input's shape.
        p: probability of an element of ``input + bias`` to be zeroed.
        training: False: nothing is zeroed.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: not floating point tensors of one dtype.
        ValueError: shapes do not fit, or `p` outside [0, 1].
    """
    name = "bias_dropout_add"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    check_p(name, p)
    if x.ndim == 0:
        raise ValueError(f"{name}: expected input of shape [..., n], got []")
    wanted = {"bias": (bias, x.shape[-1:]), "residual": (residual, x.shape)}
    for argument, (value, shape) in wanted.items():
        if value is None and argument == "bias":
            continue
        a = expect_tensor(name, argument, value)
        if a.shape != shape:
            raise ValueError(
                f"{name}: expected {argument} of shape {list(shape)}, got {list(a.shape)}"
            )
        if a.dtype != x.dtype:
            raise TypeError(f"{name}: expected {argument} of dtype {x.dtype}, got {a.dtype}")
    if not training or p == 0 or is_half(x.dtype):
        y = input if bias is None else input + bias
        return dropout(y, p, training) + residual
    b = None if bias is None else contiguous(bias.array)
    x, r = contiguous(x), contiguous(residual.array)
    stream = default_generator.take(x.size)
    y_array = empty(x.shape, x.dtype, x)
    kernels(x).bias_dropout_add(x, b, r, y_array, None, p, *stream)
    saved = (p, *stream, x.shape[-1])
    return record(BiasDropoutAdd, y_array, (input, bias, residual), saved)


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
