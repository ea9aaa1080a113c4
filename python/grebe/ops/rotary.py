"""Rotary positions. Kernels: csrc/cpu/rotary.cpp, csrc/cuda/rotary.cu. Su et al. 2021."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._cpu import Node, record, wrap
from ..backend import Array, contiguous, kernels, like
from ..dtypes import as_dtype, get_default_dtype, is_floating
from ..tensor import Tensor, expect_tensor
from .attention import dense_rows, empty_rows
from .softmax import check_floating, is_half

__all__: list[str] = []


class Rotary(Node):
    """A turn's gradient is the turn back."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        cosine, sine, interleaved, back = self.saved
        return _turned(grad, cosine, sine, interleaved, not back)


def _turned(x: Tensor, cosine: Array, sine: Array, interleaved: bool, back: bool) -> Tensor:
    array = dense_rows(x.array)
    y = empty_rows(array, array.shape[-1])
    kernels(array).rotary(array, cosine, sine, y, interleaved, back)
    return record(Rotary, y, (x,), (cosine, sine, interleaved, back))


def _table(argument: str, table: Any, x: Array) -> Array:
    """cos or sin as [B, L, R / 2] in the dtype that the kernel computes in."""
    array = expect_tensor("rotary", argument, table)
    if table.requires_grad:
        raise ValueError(f"rotary: {argument} gets no gradient; detach it")
    lead = ((x.shape[2],), (x.shape[0], x.shape[2]))
    if array.shape[:-1] not in lead or 2 * array.shape[-1] > x.shape[-1]:
        raise RuntimeError(
            f"rotary: expected {argument} [{x.shape[2]}, R / 2] or [{x.shape[0]}, {x.shape[2]}, "
            f"R / 2] with R up to {x.shape[-1]}, got {list(array.shape)}"
        )
    dtype = np.float32 if is_half(x.dtype) else x.dtype
    dense = like(contiguous(array.astype(dtype, copy=False)), x)
    return np.broadcast_to(dense, (x.shape[0], *dense.shape[-2:]))


def rotary(input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turns pairs of features by angles that grow with the position. Su et al. 2021 (RoPE).

    ``y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin``, so that the product of a query and a key depends
    on their distance only.

    Args:
        input: [B, H, L, D], queries or keys.
        cos: [L, R / 2], or [B, L, R / 2] if positions differ between the items of the batch; from
            `rotary_tables`. Features from R on stay.
        sin: likewise.
        interleaved: pairs are features 2 i and 2 i + 1 (GPT-J) instead of i and i + R / 2 (LLaMA).

    Returns:
        Tensor of the input's shape, in its memory order.

    Raises:
        RuntimeError: shapes that do not fit.
        TypeError: not floating point.
        ValueError: a table that wants a gradient.
    """
    x = expect_tensor("rotary", "input", input)
    check_floating("rotary", "input", x)
    if x.ndim != 4:
        raise RuntimeError(f"rotary: expected input [B, H, L, D], got {list(x.shape)}")
    c, s = _table("cos", cos, x), _table("sin", sin, x)
    if c.shape != s.shape:
        raise RuntimeError(
            f"rotary: cos and sin must have one shape, got {list(cos.shape)} and {list(sin.shape)}"
        )
    if is_half(x.dtype):
        return _turned(input.to(np.float32), c, s, bool(interleaved), False).to(x.dtype)
    return _turned(input, c, s, bool(interleaved), False)


def rotary_tables(
    length: int, dim: int, base: float = 10000.0, offset: int = 0, dtype: Any = None
) -> tuple[Tensor, Tensor]:
    """cos and sin [length, dim / 2] of ``(offset + position) base^(-2 i / dim)``, for `rotary`.

    Args:
        length: how many positions.
        dim: R, how many features are turned; even.
        base: the slowest pair takes about 2 pi `base` positions for a turn.
        offset: the first position.
        dtype: default float32.

    Raises:
        ValueError: `dim` odd or not positive, or `length` negative.
        TypeError: `dtype` is not floating point.
    """
    if dim <= 0 or dim % 2 or length < 0:
        raise ValueError(
            f"rotary_tables: dim must be positive and even and length not negative, got {dim} and "
            f"{length}"
        )
    wanted = get_default_dtype() if dtype is None else as_dtype("rotary_tables", dtype)
    if not is_floating(wanted):
        raise TypeError(f"rotary_tables: dtype must be floating point, got {wanted}")
    speeds = np.exp(-math.log(base) * np.arange(0, dim, 2) / dim)
    angles = np.outer(np.arange(offset, offset + length), speeds)
    return wrap(np.cos(angles).astype(wanted)), wrap(np.sin(angles).astype(wanted))
