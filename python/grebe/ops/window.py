"""What convolution and pooling share: arguments per spatial dimension, and memory formats."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, empty, empty_channels_last, is_plain, kernels
from ..dtypes import is_floating
from ..tensor import Tensor, expect_tensor

Sizes = tuple[int, ...]  # one for each spatial dimension
_SIZES = {1: "L", 2: "HW", 3: "DHW"}  # names of the spatial dimensions


def as_ints(name: str, argument: str, value: Any, count: int, least: int) -> Sizes:
    """`value`, an int or `count` ints, as `count` ints; TypeError or ValueError otherwise."""
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(items) == 1:
        items *= count
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            raise TypeError(
                f"{name}: {argument} must be an int or a tuple of {count} ints, got {value!r}"
            )
        if not least <= item < 1 << 31:
            bound = "positive" if least == 1 else "non-negative"
            raise ValueError(f"{name}: {argument} must be {bound} and below 2**31, got {value!r}")
    if len(items) != count:
        raise ValueError(f"{name}: {argument} must be an int or {count} ints, got {value!r}")
    return tuple(int(item) for item in items)


def check_image(name: str, input: Tensor, spatial: int) -> Array:
    """The array of a floating [N, C, ...] or [C, ...] tensor with `spatial` further dimensions."""
    x = expect_tensor(name, "input", input)
    if not is_floating(x.dtype):
        raise TypeError(f"{name}: input must have a floating point dtype, got {x.dtype}")
    if x.ndim not in (spatial + 1, spatial + 2):
        sizes = "".join(f", {s}" for s in _SIZES[spatial])
        raise ValueError(
            f"{name}: expected input of shape [N, C{sizes}] or [C{sizes}], got {list(x.shape)}"
        )
    if 0 in x.shape[-spatial - 1 :]:
        raise ValueError(
            f"{name}: input may be empty only in its batch dimension, got {list(x.shape)}"
        )
    return x


def is_half(dtype: np.dtype[Any]) -> bool:
    """A 16-bit floating dtype, which the kernels here leave to float32?"""
    return dtype.itemsize == 2 and is_floating(dtype)


def is_channels_last(x: Array) -> bool:
    """Does `x` [N, C, ...] lie densely in memory as [N, ..., C], and not as [N, C, ...]?"""
    return not x.flags.c_contiguous and bool(
        x.transpose(0, *range(2, x.ndim), 1).flags.c_contiguous
    )


def new_image(shape: tuple[int, ...], dtype: np.dtype[Any], like: Array, last: bool) -> Array:
    """An uninitialised array [N, C, ...], channels-last or contiguous, on the device of `like`."""
    return empty_channels_last(shape, dtype, like) if last else empty(shape, dtype, like)


def in_format(x: Array, last: bool) -> Array:
    """`x` channels-last or contiguous: itself or a copy."""
    wanted = x.transpose(0, 2, 3, 1) if last else x
    if wanted.flags.c_contiguous and is_plain(x):
        return x
    copy = new_image(x.shape, x.dtype, x, last)
    copy[...] = x
    return copy


def with_strides(x: Array, strides: tuple[int, ...]) -> Array:
    """`x` with `strides` (in bytes, of a dense array of the same shape): itself or a copy."""
    if x.strides == strides and is_plain(x):
        return x
    copy: Array = kernels(x).empty(x.shape, x.dtype, strides)
    copy[...] = x
    return copy


def useful_step(step: int, positions: int) -> int:
    """A stride or dilation as the kernels take it: 1 where there is nothing to step over."""
    return step if positions > 1 else 1
