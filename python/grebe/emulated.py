"""Arrays of the emulated GPU, which runs the CUDA kernels on the CPU: for tests without a GPU.

They behave as CuPy's do where the two differ from NumPy: they never turn into NumPy arrays unasked,
never mix with them, and reductions give 0-d arrays instead of numbers. So code that works here
works on CuPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    @property
    def _values(self) -> np.ndarray[Any, Any]:
        """The host's array for whoever looks at its values."""
        if _captured is not None:
            raise RuntimeError("values on the GPU can't be read while a graph is captured")
        return self._host

    def get(self) -> np.ndarray[Any, Any]:
        """A copy on the CPU."""
        return self._values.copy(order="K")

    def set(self, array: np.ndarray[Any, Any]) -> None:
        """Copies a CPU array of the same shape and dtype into this one."""
        self._values[...] = array

    def item(self, *index: Any) -> Any:
        return self._values.item(*index)

    def tolist(self) -> Any:
        return self._values.tolist()

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
        return _wrap(value)  # a view such as T

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if ... not in [p for p in parts if not isinstance(p, EmulatedArray)]:
            parts = (*parts, ...)  # CuPy gives 0-d views where NumPy gives numbers
        return _on_device(self._host.__getitem__, (parts,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        _on_device(self._host.__setitem__, (index, value), {})

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __index__(self) -> int:
        return self._values.__index__()

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


# Functions that write into an argument instead of returning an array.
_IN_PLACE = {
    "__setitem__", "at", "copyto", "fill", "fill_diagonal", "partition", "place", "put",
    "put_along_axis", "putmask", "sort",
}  # fmt: skip


def _on_device(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    out = kwargs.get("out")
    inputs = _unwrap(tuple(args))
    options = {name: _unwrap(value) for name, value in kwargs.items()}

    def run() -> Any:
        return function(*inputs, **options)

    if out is None and not (_captured is not None and _is_in_place(function)):
        result = _wrap(run())
        if _captured is not None:
            _note_result(run, result, (getattr(function, "__self__", None), *inputs))
        return result
    if _captured is None:
        run()
    else:
        _captured.append(run)
    return out[0] if isinstance(out, tuple) else out


# ---- graphs ----

_captured: list[Callable[[], Any]] | None = None  # the work of the graph that is being made


def _is_in_place(function: Callable[..., Any]) -> bool:
    name = function.__name__
    copies = name in ("sort", "partition") and function in (np.sort, np.partition)
    return name in _IN_PLACE and not copies


def _note_result(run: Callable[[], Any], result: Any, inputs: tuple[Any, ...]) -> None:
    """On replay the result is computed again, into the same memory; views need nothing."""
    assert _captured is not None
    if not isinstance(result, EmulatedArray):
        return
    host = result._host
    arrays = [a for a in inputs if isinstance(a, np.ndarray)]
    arrays += [a for part in inputs if isinstance(part, tuple | list) for a in part]
    if not any(isinstance(a, np.ndarray) and np.may_share_memory(host, a) for a in arrays):
        _captured.append(lambda: np.copyto(host, run()))


class _Kernels:
    """The module of kernels while a graph is made: writes into given arrays wait for the replay."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._module, name)
        if name == "empty" or not callable(kernel):
            return kernel
        signature = kernel.__doc__ or ""
        inputs = 1 if "(x, out=None" in signature else 2 if "(a, b, out=None" in signature else 0

        def call(*args: Any) -> Any:
            assert _captured is not None
            if inputs and (len(args) <= inputs or args[inputs] is None):
                result = kernel(*args)
                if result is not NotImplemented:
                    again = (*args[:inputs], result, *args[inputs + 1 :])
                    _captured.append(lambda: kernel(*again))
                return result
            _captured.append(lambda: kernel(*args))
            return args[inputs] if inputs else None

        return call


@contextmanager
def capture(device: Any) -> Iterator[Callable[[], None]]:
    """What `device` is asked to do inside the ``with`` is noted, not done; gives what does it."""
    global _captured
    work: list[Callable[[], Any]] = []

    def replay() -> None:
        for call in work:
            call()

    module, device.kernels = device.kernels, _Kernels(device.kernels)
    _captured = work
    try:
        yield replay
    finally:
        _captured, device.kernels = None, module


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
