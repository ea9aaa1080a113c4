"""Arrays of the emulated GPU, which runs the CUDA kernels on the CPU: for tests without a GPU.

They behave as CuPy's do where the two differ from NumPy: they never turn into NumPy arrays unasked,
never mix with them, and reductions give 0-d arrays instead of numbers. So code that works here
works on CuPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

__all__ = ["EmulatedArray", "Library", "empty"]


class _Memory:
    """What CuPy calls a MemoryPointer."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class EmulatedArray(NDArrayOperatorsMixin):
    """Memory of the emulated GPU, of the shape, strides and dtype of the NumPy array behind it."""

    __slots__ = ("__weakref__", "_host", "base")

    def __init__(self, host: np.ndarray[Any, Any], owned: bool = False) -> None:
        self._host = host
        self.base = None if owned else host.base  # not None: a view

    @property
    def data(self) -> _Memory:
        return _Memory(self._host.__array_interface__["data"][0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._host.dtype

    def get(self) -> np.ndarray[Any, Any]:
        """A copy on the CPU."""
        return self._host.copy(order="K")

    def set(self, array: np.ndarray[Any, Any]) -> None:
        """Copies a CPU array of the same shape and dtype into this one."""
        self._host[...] = array

    def item(self, *index: Any) -> Any:
        return self._host.item(*index)

    def tolist(self) -> Any:
        return self._host.tolist()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a GPU array is not turned into a NumPy array unasked; use .get()")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _on_device(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _on_device(function, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy must not find its own protocols here
            raise AttributeError(name)
        value = getattr(self._host, name)
        if callable(value):
            return lambda *args, **kwargs: _on_device(value, args, kwargs)
        return _wrap(value)

    def __getitem__(self, index: Any) -> Any:
        found = self._host[_unwrap(index)]
        if isinstance(found, np.generic):  # CuPy gives 0-d views where NumPy gives numbers
            parts = index if isinstance(index, tuple) else (index,)
            found = self._host[_unwrap(parts) + (...,)]
        return EmulatedArray(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_unwrap(index)] = _unwrap(value)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __index__(self) -> int:
        return self._host.__index__()

    def __repr__(self) -> str:
        return repr(self._host)


def _unwrap(value: Any) -> Any:
    """The NumPy arrays behind `value`; TypeError for arrays of the CPU."""
    if isinstance(value, EmulatedArray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: an array of the CPU")
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrap(v) for v in value)
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return EmulatedArray(np.asarray(value))
    if isinstance(value, (tuple, list)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(_wrap(v) for v in value)
    return value


def _on_device(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    out = kwargs.get("out")
    arguments = {name: _unwrap(value) for name, value in kwargs.items()}
    result = function(*_unwrap(tuple(args)), **arguments)
    return _wrap(result) if out is None else (out[0] if isinstance(out, tuple) else out)


def empty(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Any:
    """An uninitialised array; floating memory is full of NaN, so that unwritten results show."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    memory = np.full(max(size, 1), 0xFF, np.uint8)
    return EmulatedArray(np.ndarray(shape, dtype, memory, strides=strides), owned=True)


class Library:
    """NumPy for these arrays: ``Library().arange(3)`` and all else that makes or takes them."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        return lambda *args, **kwargs: _on_device(function, args, kwargs)
