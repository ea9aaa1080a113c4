"""softmax, log_softmax and logsumexp. Kernels: csrc/cpu/softmax.cpp,
csrc/cuda/softmax.cu. D2L sections 4.1 and 4.5.

The composite forms, made of differentiable ops, serve `create_graph=True`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..backend import Array, contiguous, is_on_cuda, is_plain, kernels
from ..dtypes import get_default_dtype, is_floating
from ..tensor import Tensor, expect_tensor, method

__all__ = ["log_softmax", "logsumexp", "softmax"]

Layout = tuple[int, int, int]  # sizes before, along and after the reduced dimension, in memory


# ---- layouts and checks ----


def check_dim(name: str, dim: int, ndim: int) -> int:
    """`dim` counted from the front; IndexError if a tensor of `ndim` dimensions lacks it."""
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{name}: dim must be an int, got {type(dim).__name__}")
    span = max(ndim, 1)
    if not -span <= dim < span:
        raise IndexError(
            f"{name}: Dimension out of range (expected to be in range of [{-span}, {span - 1}], "
            f"but got {dim})"
        )
    return int(dim) % span


def is_innermost(x: Array, dim: int) -> bool:
    """Is `x`, though not C-contiguous, dense with `dim` running fastest, as channels-last is?"""
    if x.flags.c_contiguous or not is_plain(x):
        return False
    return bool(np.moveaxis(x, dim, -1).flags.c_contiguous)


def layout(x: Array, dim: int) -> tuple[Array, Layout]:
    """`x` as [outer, n, inner] in memory, n along `dim`. Copied unless dense in such an order."""
    shape = x.shape or (1,)
    n = shape[dim]
    if is_innermost(x, dim):
        return x, (x.size // max(n, 1), n, 1)
    return contiguous(x), (math.prod(shape[:dim]), n, math.prod(shape[dim + 1 :]))


def empty_like(x: Array) -> Array:
    """An uninitialised array with the strides of the dense array `x`."""
    result: Array = kernels(x).empty(x.shape, x.dtype, x.strides)
    return result


def in_layout_of(x: Array, array: Array) -> Array:
    """`array` with the strides of the dense array `x` of equal shape: itself, or a copy."""
    if array.strides == x.strides and is_plain(array):
        return array
    copy = empty_like(x)
    copy[...] = array
    return copy


def is_half(dtype: np.dtype[Any]) -> bool:
    """A 16-bit floating dtype?"""
    return dtype.itemsize == 2 and is_floating(dtype)


def needs_float32(x: Array) -> bool:
    """Of a 16-bit dtype, which the CPU's kernels here leave to float32?"""
    return is_half(x.dtype) and not is_on_cuda(x)


def check_floating(name: str, argument: str, x: Array) -> None:
    """TypeError unless `x` has a floating point dtype."""
    if not is_floating(x.dtype):
        raise TypeError(f"{name}: {argument} must have a floating point dtype, got {x.dtype}")


# ---- softmax ----


class Softmax(Node):
    """y = exp(x) / sum(exp(x)): dx = y (dy - sum(y dy))."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        y, dim, sizes = self.saved
        if grad_enabled():
            return y * (grad - (y * grad).sum(dim, keepdim=True))
        return _softmax_backward(grad, y, sizes, False)


class LogSoftmax(Node):
    """y = x - log(sum(exp(x))): dx = dy - exp(y) sum(dy)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        y, dim, sizes = self.saved
        if grad_enabled():
            return grad - y.exp() * grad.sum(dim, keepdim=True)
        return _softmax_backward(grad, y, sizes, True)


def _softmax_backward(grad: Tensor, y: Tensor, sizes: Layout, logarithm: bool) -> Tensor:
    gx = empty_like(y.array)
    g = in_layout_of(y.array, grad.array)
    kernels(g).softmax_backward(g, y.array, gx, *sizes, logarithm)
    return wrap(gx)


def _softmax(name: str, input: Tensor, dim: int, dtype: Any, logarithm: bool) -> Tensor:
    x = expect_tensor(name, "input", input)
    if dtype is not None and np.dtype(dtype) != x.dtype:
        return _softmax(name, input.to(dtype), dim, None, logarithm)
    check_floating(name, "input", x)
    dim = check_dim(name, dim, x.ndim)
    if needs_float32(x):
        return _softmax(name, input.to(np.float32), dim, None, logarithm).to(x.dtype)
    x, sizes = layout(x, dim)
    y = empty_like(x)
    kernels(x).softmax(x, y, *sizes, logarithm)
    return record(LogSoftmax if logarithm else Softmax, y, (input,), (y, dim, sizes))


@method
def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Softmax along one dimension: ``exp(x) / exp(x).sum(dim)``, without overflow. D2L 4.1.

    Args:
        input: floating point tensor of any shape.
        dim: the dimension whose slices sum to 1.
        dtype: cast the input to this dtype first.

    Returns:
        Tensor of the input's shape. A slice of -inf only gives NaN.

    Raises:
        TypeError: not a floating point tensor.
        IndexError: no such dimension.
    """
    return _softmax("softmax", input, dim, dtype, False)


@method
def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Logarithm of the softmax along one dimension: ``x - logsumexp(x, dim)``. D2L 4.1, 4.5.

    Args:
        input: floating point tensor of any shape.
        dim: the dimension whose slices are log-probabilities.
        dtype: cast the input to this dtype first.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: not a floating point tensor.
        IndexError: no such dimension.
    """
    return _softmax("log_softmax", input, dim, dtype, True)


def softmin(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """``softmax(-input, dim)``."""
    return softmax(-input, dim, dtype)


# ---- logsumexp ----


class LogSumExp(Node):
    """y = log(sum(exp(x))): dx = exp(x - y) dy."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        input, y, dim, keepdim, sizes = self.saved
        if grad_enabled():
            if not keepdim and input.ndim:
                grad, y = grad.unsqueeze(dim), y.unsqueeze(dim)
            return (input - y).exp() * grad
        x, _ = layout(input.array, dim)
        gx = empty_like(x)
        g = contiguous(grad.array)
        kernels(x).logsumexp_backward(g, x, y.array, gx, *sizes)
        return wrap(gx)


@method
def logsumexp(input: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """``log(exp(x).sum(dim))`` without overflow. D2L section 4.5.

    Args:
        input: tensor of any shape; integers are converted to the default dtype.
        dim: dimension or dimensions to reduce.
        keepdim: keep the reduced dimensions with size 1.

    Returns:
        Tensor without the reduced dimensions. A slice of -inf only gives -inf.

    Raises:
        TypeError: `input` is no tensor.
        IndexError: no such dimension.
    """
    x = expect_tensor("logsumexp", "input", input)
    if not is_floating(x.dtype):
        return logsumexp(input.to(get_default_dtype()), dim, keepdim)
    if needs_float32(x):
        return logsumexp(input.to(np.float32), dim, keepdim).to(x.dtype)
    if not isinstance(dim, int):
        return _logsumexp_dims(input, tuple(dim), keepdim)
    dim = check_dim("logsumexp", dim, x.ndim)
    x, sizes = layout(x, dim)
    rest = x.shape[:dim] + ((1,) if keepdim and x.ndim else ()) + x.shape[dim + 1 :]
    y = kernels(x).empty(rest, x.dtype)
    kernels(x).logsumexp(x, y, *sizes)
    return record(LogSumExp, y, (input,), (input, y, dim, keepdim, sizes))


def _logsumexp_dims(input: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    found = [check_dim("logsumexp", d, input.ndim) for d in dims]
    if len(set(found)) != len(found):
        raise RuntimeError(f"logsumexp: dim {list(dims)} names a dimension twice")
    if input.ndim == 0:
        return logsumexp(input, 0)
    kept = [d for d in range(input.ndim) if d not in found]
    sizes = [input.shape[d] for d in kept]
    merged = input.permute(*kept, *found).reshape(*sizes, -1)
    y = logsumexp(merged, -1)
    if keepdim:
        y = y.reshape(*[1 if d in found else input.shape[d] for d in range(input.ndim)])
    return y
