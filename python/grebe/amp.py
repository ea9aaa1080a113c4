"""Automatic mixed precision: products in 16 bits, sums and losses in float32.

`lowered` and `raised` are called by the operations that PyTorch's CPU lists name. What is in
neither list runs in the dtype that it gets, and bfloat16 with float32 gives float32.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from ._cpu import TensorBase, grad_enabled
from .backend import bfloat16, is_on_cuda

__all__ = ["autocast", "get_autocast_dtype", "is_autocast_available", "is_autocast_enabled"]

F = TypeVar("F", bound=Callable[..., Any])

_FLOAT32 = np.dtype(np.float32)
# What may be cast to on a device, the usual one first.
_LOW = {"cpu": (bfloat16,), "cuda": (np.dtype(np.float16), bfloat16)}


class _State(threading.local):
    """Of one thread."""

    def __init__(self) -> None:
        self.active = False  # is anything cast?
        self.dtypes: dict[str, np.dtype[Any]] = {}  # what products are cast to, by device
        self.cache: dict[tuple[int, bool], tuple[Any, int, Any]] | None = None


STATE = _State()


class autocast:
    """Within it (or in a function that it decorates) products run in 16 bits.

    Matrix products, linear layers, convolutions and attention cast their float32 inputs; losses
    and `prod` cast theirs back. A parameter is cast once, until the outermost `autocast` ends.
    Gradients of parameters are float32. Backward needs no `autocast`.

    Args:
        device_type: "cpu" or "cuda": whose tensors are cast.
        dtype: bfloat16 on the CPU; on CUDA float16 (the default) or bfloat16.
        enabled: False switches an outer one off.
        cache_enabled: keep the casts of parameters.

    Raises:
        RuntimeError: another device or dtype.
    """

    def __init__(
        self,
        device_type: str = "cpu",
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        possible = _possible("autocast", device_type)
        self.device_type = device_type
        self.dtype = possible[0] if dtype is None else np.dtype(dtype)
        if self.dtype not in possible:
            names = " or ".join(map(str, possible))
            raise RuntimeError(f"autocast: dtype must be {names} on {device_type}, got {dtype}")
        self.enabled = enabled
        self.cached = cache_enabled is None or bool(cache_enabled)
        self._before: list[tuple[Any, Any]] = []

    def __enter__(self) -> autocast:
        self._before.append((STATE.dtypes, STATE.cache))
        dtypes = {k: v for k, v in STATE.dtypes.items() if k != self.device_type}
        if self.enabled:
            dtypes[self.device_type] = self.dtype
        _set(dtypes)
        if not self.cached:
            STATE.cache = None
        elif STATE.cache is None:
            STATE.cache = {}
        return self

    def __exit__(self, *_: object) -> None:
        dtypes, STATE.cache = self._before.pop()
        _set(dtypes)

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def _set(dtypes: dict[str, np.dtype[Any]]) -> None:
    STATE.dtypes, STATE.active = dtypes, bool(dtypes)


def _possible(name: str, device_type: str) -> tuple[np.dtype[Any], ...]:
    if device_type not in _LOW:
        raise RuntimeError(f"{name}: device_type must be 'cpu' or 'cuda', got {device_type!r}")
    return _LOW[device_type]


@contextmanager
def same_autocast(dtypes: dict[str, np.dtype[Any]], cached: bool) -> Iterator[None]:
    """Casts as they were made when STATE had these `dtypes`."""
    before = STATE.dtypes, STATE.cache
    _set(dtypes)
    STATE.cache = {} if cached and before[1] is None else before[1] if cached else None
    try:
        yield
    finally:
        _set(before[0])
        STATE.cache = before[1]


def is_autocast_available(device_type: str) -> bool:
    """Can `autocast` be used on this device?"""
    return device_type in _LOW


def is_autocast_enabled(device_type: str = "cpu") -> bool:
    """Are products cast at the moment?"""
    return STATE.active and device_type in STATE.dtypes


def get_autocast_dtype(device_type: str = "cpu") -> np.dtype[Any]:
    """What products are cast to on that device."""
    usual = _possible("get_autocast_dtype", device_type)[0]
    return STATE.dtypes.get(device_type, usual)


# ---- for the operations ----


def lowered(tensor: Any) -> Any:
    """A float32 tensor in its device's 16 bits; else as it is. Leaves are cast once and kept."""
    if not isinstance(tensor, TensorBase) or tensor.array.dtype != _FLOAT32:
        return tensor
    low = STATE.dtypes.get("cuda" if is_on_cuda(tensor.array) else "cpu")
    if low is None:
        return tensor
    cache = STATE.cache
    if cache is None or tensor._node is not None or not tensor._requires_grad:
        return tensor.to(low)  # type: ignore[attr-defined]
    key, version = (id(tensor), grad_enabled()), tensor._version
    found = cache.get(key)
    if found is None or found[1] != version:
        found = cache[key] = (tensor, version, tensor.to(low))  # type: ignore[attr-defined]
    return found[2]


def raised(tensor: Any) -> Any:
    """A 16-bit tensor as float32; anything else as it is."""
    if isinstance(tensor, TensorBase) and tensor.array.dtype in _LOW["cuda"]:
        device = "cuda" if is_on_cuda(tensor.array) else "cpu"
        if device in STATE.dtypes and tensor.array.dtype in _LOW[device]:
            return tensor.to(_FLOAT32)  # type: ignore[attr-defined]
    return tensor


def _of_all(cast: Callable[[Any], Any], value: Any) -> Any:
    """`value`, or the items of a plain list or tuple, cast."""
    return type(value)(map(cast, value)) if type(value) in (list, tuple) else cast(value)


def _casting(function: F, cast: Callable[[Any], Any]) -> F:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not STATE.active:
            return function(*args, **kwargs)
        args = tuple(_of_all(cast, value) for value in args)
        kwargs = {name: _of_all(cast, value) for name, value in kwargs.items()}
        dtypes = STATE.dtypes
        _set({})  # what the operation is made of runs in the dtype that it got
        try:
            return function(*args, **kwargs)
        finally:
            _set(dtypes)

    return call  # type: ignore[return-value]


def low_precision(function: F) -> F:
    """Decorator of an operation that runs in 16 bits under `autocast`."""
    return _casting(function, lowered)


def full_precision(function: F) -> F:
    """Decorator of an operation that runs in float32 under `autocast`."""
    return _casting(function, raised)
