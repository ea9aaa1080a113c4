"""From an array to what handles it: its kernel module and its array library.

CPU arrays are ``numpy.ndarray`` and go to ``_cpu``; a CUDA array is a ``cupy.ndarray`` and goes to
``_cuda``, loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any
from weakref import WeakValueDictionary

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from . import _cpu

Array = NDArray[Any]

bfloat16 = np.dtype(ml_dtypes.bfloat16)
_cpu.set_bfloat16(bfloat16.num)


def _memory_order(array: Any) -> list[int]:
    """The dimensions from the largest stride to the smallest: dense arrays are C-ordered in it."""
    order = sorted(range(array.ndim), key=lambda d: (-array.strides[d], array.shape[d] == 1))
    return list(range(array.ndim)) if array.flags.c_contiguous else order


class Cuda:
    """The kernels and the arrays of the GPU: CuPy's."""

    emulated = False
    capturing = False  # is a graph of the work being made? (cuda.graph)

    def __init__(self) -> None:
        self.xp: Any = importlib.import_module("cupy")
        self._on_the_way: list[tuple[Any, Array]] = []  # events and what they wait for
        self.kernels = importlib.import_module("grebe._cuda")
        self.xp.cuda.runtime.getDeviceCount()  # raises without a driver
        self.array: Any = self.xp.ndarray
        self.kernels.set_device(self._empty, lambda: self.xp.cuda.get_current_stream().ptr)

    def _empty(self, shape: tuple[int, ...], dtype: Any, strides: Any = None) -> Any:
        if strides is None:
            return self.xp.ndarray(shape, dtype)
        size = dtype.itemsize  # CuPy makes arrays of given strides on given memory only
        for n in shape:
            size *= n
        return self.xp.ndarray(shape, dtype, self.xp.cuda.alloc(size), strides)

    def to_device(self, array: Array, non_blocking: bool = False) -> Any:
        """A copy of a NumPy array, in the same memory format.

        non_blocking: from pinned memory, the copy may still be going on.
        """
        order = _memory_order(array)
        if non_blocking and is_pinned(array) and array.transpose(order).flags.c_contiguous:
            dense = array.transpose(order)
            copy = self.xp.empty(dense.shape, dense.dtype)
            stream = self.xp.cuda.get_current_stream()
            copy.set(dense, stream=stream)
            self._on_the_way = [(e, kept) for e, kept in self._on_the_way if not e.done]
            self._on_the_way.append((stream.record(), array))
        else:
            copy = self.xp.array(array.transpose(order), order="C")
        return copy.transpose(np.argsort(order).tolist())

    def pin(self, array: Array) -> Array:
        """A copy in page-locked memory."""
        pinned: Array = importlib.import_module("cupyx").empty_like_pinned(array)
        pinned[...] = array
        return pinned

    def to_host(self, array: Any) -> Array:
        """A NumPy copy, in the same memory format."""
        order = _memory_order(array)
        host: Array = array.transpose(order).get(order="C")
        return host.transpose(np.argsort(order))


class EmulatedCuda(Cuda):
    """The same kernels run by the CPU, on `grebe.emulated` arrays."""

    emulated = True

    def __init__(self) -> None:
        from . import emulated

        self.xp = emulated.Library()
        self.kernels = importlib.import_module("grebe._emulated")
        self.array = emulated.EmulatedArray
        self.kernels.set_device(emulated.empty, None)

    def to_device(self, array: Array, non_blocking: bool = False) -> Any:
        make: Any = self.array
        return make(array.copy(order="K"))

    def pin(self, array: Array) -> Array:
        return array.copy(order="K")

    def capture(self) -> Any:
        """See `emulated.capture`."""
        from . import emulated

        return emulated.capture(self)

    def to_host(self, array: Any) -> Array:
        host: Array = array.get()
        return host


_cuda: Cuda | None = None
_no_cuda = ""  # why there is none, once looked for


def load_cuda(kind: type[Cuda] = Cuda) -> str:
    """Gets the GPU ready; returns what is missing ("": nothing)."""
    global _cuda, _no_cuda
    if (_cuda is None and not _no_cuda) or kind is not Cuda:
        try:
            _cuda, _no_cuda = kind(), ""
            _cuda.kernels.set_bfloat16(bfloat16.num)
            _cuda.kernels.allow_tf32(_tf32)
        except Exception as error:  # CuPy has errors of its own for a driver that does not answer
            _no_cuda = f"{type(error).__name__}: {error}"
    return _no_cuda


_tf32 = False


def allow_tf32(allowed: bool) -> None:
    """May a GPU read float32 operands of products as TF32? Holds for GPUs found later, too."""
    global _tf32
    _tf32 = allowed
    if _cuda is not None:
        _cuda.kernels.allow_tf32(allowed)


def unload_cuda() -> None:
    """Forgets the GPU, so that the next use looks for it again."""
    global _cuda, _no_cuda
    _cuda, _no_cuda = None, ""


def cuda() -> Cuda:
    """The GPU; RuntimeError if there is none."""
    if missing := load_cuda():
        raise RuntimeError(f"no CUDA device is available ({missing})")
    assert _cuda is not None
    return _cuda


def is_on_cuda(array: Any) -> bool:
    """Is `array` memory of the GPU?"""
    return _cuda is not None and isinstance(array, _cuda.array)


def is_array(value: Any) -> bool:
    """Is `value` an array of either device?"""
    return isinstance(value, np.ndarray) or is_on_cuda(value)


def is_plain(array: Array) -> bool:
    """Aligned and of the machine's byte order? Arrays of the GPU always are."""
    return is_on_cuda(array) or bool(array.flags.aligned and array.dtype.isnative)


def place(array: Array, device: str, non_blocking: bool = False) -> Array:
    """`array` itself if it is on `device` ("cpu" or "cuda"), else a copy there."""
    here = "cuda" if is_on_cuda(array) else "cpu"
    if here == device:
        return array
    if device == "cuda":
        moved: Array = cuda().to_device(array, non_blocking)
        return moved
    return cuda().to_host(array)


# The arrays that own page-locked memory, by id.
_pinned: WeakValueDictionary[int, Array] = WeakValueDictionary()


def _root(array: Array) -> Array:
    """The array that `array` is a view of, or itself."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def pin(array: Array) -> Array:
    """`array` in page-locked memory: itself if it is there."""
    if is_pinned(array):
        return array
    pinned = cuda().pin(array)
    root = _root(pinned)
    _pinned[id(root)] = root
    return pinned


def is_pinned(array: Array) -> bool:
    """Is this memory of the CPU page-locked, so that the GPU can copy it by itself?"""
    return isinstance(array, np.ndarray) and id(_root(array)) in _pinned


def is_capturing() -> bool:
    """Is a CUDA graph being made? Then nothing may be read back from the GPU."""
    return _cuda is not None and _cuda.capturing


def as_storage(value: Any) -> Array:
    """`value` as something a Tensor can hold: NumPy scalars become 0-d arrays."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if is_on_cuda(value):
        array: Array = value
        return array
    raise TypeError(f"a Tensor holds arrays, got {type(value).__name__}")


def kernels(array: Array) -> Any:
    """The module whose kernels take `array`."""
    if isinstance(array, np.ndarray):
        return _cpu
    if _cuda is not None and isinstance(array, _cuda.array):
        return _cuda.kernels
    raise TypeError(f"no kernels for arrays of type {type(array).__name__}")


def xp(array: Array) -> Any:
    """The NumPy-like library that makes arrays on the device of `array`; those that take one or
    more such arrays can be called in NumPy itself.
    """
    return np if isinstance(array, np.ndarray) else cuda().xp


def on_host(array: Array) -> Array:
    """A NumPy array of the values of `array`: itself, or a copy from the GPU."""
    return array if isinstance(array, np.ndarray) else cuda().to_host(array)


def like(array: Array, other: Array) -> Array:
    """`array` on the device of `other`."""
    return place(array, "cuda" if is_on_cuda(other) else "cpu")


def expand(array: Array, shape: tuple[int, ...]) -> Array:
    """A view that repeats dimensions of size 1; new ones in front."""
    if isinstance(array, np.ndarray):
        view: Array = kernels(array).expand(array, shape)
        return view
    return np.broadcast_to(array, shape)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], like: Array | None = None) -> Array:
    """An uninitialised C-ordered array on pooled memory, on the device of `like` (default: CPU)."""
    result: Array = (_cpu if like is None else kernels(like)).empty(shape, dtype)
    return result


def empty_on(device: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised C-ordered array on "cpu" or "cuda"."""
    result: Array = (_cpu if device == "cpu" else cuda().kernels).empty(shape, dtype)
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
    if (
        (array.dtype, dtype) not in _CAST
        or not array.flags.c_contiguous
        or not (is_on_cuda(array) or array.flags.aligned)
    ):
        with np.errstate(all="ignore"):
            return array.astype(dtype)
    result = empty(array.shape, dtype, array)
    kernels(array).cast_bfloat16(array, result)
    return result


def readable(array: Array) -> Array:
    """`array`, or a copy where strides, alignment or byte order keep kernels from reading it."""
    if not isinstance(array, np.ndarray):
        return array
    flags = array.flags
    if not flags.aligned or not array.dtype.isnative:
        return contiguous(array.copy())
    if not flags.c_contiguous and any(s % array.itemsize for s in array.strides):
        return contiguous(array.copy())
    return array


def contiguous(array: Array) -> Array:
    """`array` itself if it is C-contiguous, aligned and native, else a copy that is."""
    flags = array.flags
    if flags.c_contiguous and (
        not isinstance(array, np.ndarray) or (flags.aligned and array.dtype.isnative)
    ):
        return array
    result = empty(array.shape, array.dtype.newbyteorder("="), array)
    assign(result, array)
    return result


def assign(to: Array, value: Array) -> None:
    """Writes `value` over `to`, of the same shape and dtype but for the byte order."""
    if kernels(value).copy(value, to) is NotImplemented:
        to[...] = value
