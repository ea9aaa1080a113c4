"""From an array to what handles it: its kernel module and its array library.

CPU arrays are ``numpy.ndarray`` and go to ``_cpu``; a CUDA array is a ``cupy.ndarray`` and goes to
``_cuda``, loaded on first use.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from . import _cpu

Array = NDArray[Any]

bfloat16 = np.dtype(ml_dtypes.bfloat16)
_cpu.set_bfloat16(bfloat16.num)


def as_storage(value: Any) -> Array:
    """`value` as something a Tensor can hold: NumPy scalars become 0-d arrays."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    raise TypeError(f"a Tensor holds arrays, got {type(value).__name__}")


def kernels(array: Array) -> Any:
    """The module whose kernels take `array`."""
    if isinstance(array, np.ndarray):
        return _cpu
    raise TypeError(f"no kernels for arrays of type {type(array).__name__}")


def xp(array: Array) -> Any:
    """The NumPy-like library of `array`: numpy or cupy."""
    if isinstance(array, np.ndarray):
        return np
    raise TypeError(f"no array library for {type(array).__name__}")


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], like: Array | None = None) -> Array:
    """An uninitialised C-ordered array on pooled memory, on the device of `like` (default: CPU)."""
    result: Array = (_cpu if like is None else kernels(like)).empty(shape, dtype)
    return result


def empty_channels_last(shape: tuple[int, ...], dtype: np.dtype[Any], like: Array) -> Array:
    """Like `empty` for a shape [N, C, ...] whose strides run channels-last."""
    n, c, *spatial = shape
    strides, step = [0] * len(shape), dtype.itemsize
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        strides[axis] = step
        step *= max(shape[axis], 1)
    result: Array = kernels(like).empty(shape, dtype, tuple(strides))
    return result


def copy(array: Array) -> Array:
    """A dense copy in the same memory format, on pooled memory."""
    result = kernels(array).copy(array)
    return array.copy(order="K") if result is NotImplemented else result


_CAST = {(bfloat16, np.dtype(np.float32)), (np.dtype(np.float32), bfloat16)}


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """A copy in another dtype, in the same memory format."""
    if (array.dtype, dtype) not in _CAST or not array.flags.c_contiguous or not array.flags.aligned:
        with np.errstate(all="ignore"):
            return array.astype(dtype)
    result = empty(array.shape, dtype, array)
    kernels(array).cast_bfloat16(array, result)
    return result


def readable(array: Array) -> Array:
    """`array`, or a copy where strides, alignment or byte order keep kernels from reading it."""
    flags = array.flags
    if not flags.aligned or not array.dtype.isnative:
        return contiguous(array.copy())
    if not flags.c_contiguous and any(s % array.itemsize for s in array.strides):
        return contiguous(array.copy())
    return array


def contiguous(array: Array) -> Array:
    """`array` itself if it is C-contiguous, aligned and native, else a copy that is."""
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    result = empty(array.shape, array.dtype.newbyteorder("="), array)
    assign(result, array)
    return result


def assign(to: Array, value: Array) -> None:
    """Writes `value` over `to`, of the same shape and dtype but for the byte order."""
    if kernels(value).copy(value, to) is NotImplemented:
        to[...] = value
