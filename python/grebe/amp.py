"""Automatic mixed precision: products in bfloat16, sums and losses in float32.

`lowered` and `raised` are called by the operations that PyTorch's CPU lists name. What is in
neither list runs in the dtype that it gets, and bfloat16 with float32 gives float32.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ._cpu import TensorBase, grad_enabled
from .backend import bfloat16

__all__ = ["autocast", "get_autocast_dtype", "is_autocast_available", "is_autocast_enabled"]

F = TypeVar("F", bound=Callable[..., Any])

_FLOAT32 = np.dtype(np.float32)


class _State(threading.local):
    """Of one thread."""

    def __init__(self) -> None:
        self.dtype: np.dtype[Any] | None = None  # what products are cast to; None: off
        self.cache: dict[tuple[int, bool], tuple[Any, int, Any]] | None = None


STATE = _State()


class autocast:
    """Within it (or in a function that it decorates) products run in bfloat16.

    Matrix products, linear layers, convolutions and attention cast their float32 inputs; losses
    and `prod` cast theirs back. A parameter is cast once, until the outermost `autocast` ends.
    Gradients of parameters are float32. Backward needs no `autocast`.

    Args:
        device_type: "cpu".
        dtype: bfloat16.
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
        if device_type != "cpu":
            raise RuntimeError(f"autocast: device_type must be 'cpu', got {device_type!r}")
        if dtype is not None and np.dtype(dtype) != bfloat16:
            raise RuntimeError(f"autocast: dtype must be bfloat16 on the CPU, got {dtype}")
        self.dtype = bfloat16 if enabled else None
        self.cached = cache_enabled is None or bool(cache_enabled)
        self._before: list[tuple[Any, Any]] = []

    def __enter__(self) -> autocast:
        self._before.append((STATE.dtype, STATE.cache))
        STATE.dtype = self.dtype
        if not self.cached:
            STATE.cache = None
        elif STATE.cache is None:
            STATE.cache = {}
        return self

    def __exit__(self, *_: object) -> None:
        STATE.dtype, STATE.cache = self._before.pop()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def current_autocast() -> autocast:
    """A context in which casts are made as they are now."""
    return autocast("cpu", enabled=STATE.dtype is not None, cache_enabled=STATE.cache is not None)


def is_autocast_available(device_type: str) -> bool:
    """Can `autocast` be used on this device?"""
    return device_type == "cpu"


def is_autocast_enabled(device_type: str = "cpu") -> bool:
    """Are products cast at the moment?"""
    return device_type == "cpu" and STATE.dtype is not None


def get_autocast_dtype(device_type: str = "cpu") -> np.dtype[Any]:
    """What products are cast to on that device."""
    if device_type != "cpu":
        raise RuntimeError(f"get_autocast_dtype: device_type must be 'cpu', got {device_type!r}")
    return bfloat16


# ---- for the operations ----


def lowered(tensor: Any) -> Any:
    """A float32 tensor as bfloat16; anything else as it is. Leaves are cast once and kept."""
    if not isinstance(tensor, TensorBase) or tensor.array.dtype != _FLOAT32:
        return tensor
    cache = STATE.cache
    if cache is None or tensor._node is not None or not tensor._requires_grad:
        return tensor.to(bfloat16)  # type: ignore[attr-defined]
    key, version = (id(tensor), grad_enabled()), tensor._version
    found = cache.get(key)
    if found is None or found[1] != version:
        found = cache[key] = (tensor, version, tensor.to(bfloat16))  # type: ignore[attr-defined]
    return found[2]


def raised(tensor: Any) -> Any:
    """A bfloat16 tensor as float32; anything else as it is."""
    if isinstance(tensor, TensorBase) and tensor.array.dtype == bfloat16:
        return tensor.to(_FLOAT32)  # type: ignore[attr-defined]
    return tensor


def _of_all(cast: Callable[[Any], Any], value: Any) -> Any:
    """`value`, or the items of a plain list or tuple, cast."""
    return type(value)(map(cast, value)) if type(value) in (list, tuple) else cast(value)


def _casting(function: F, cast: Callable[[Any], Any]) -> F:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = STATE.dtype
        if dtype is None:
            return function(*args, **kwargs)
        args = tuple(_of_all(cast, value) for value in args)
        kwargs = {name: _of_all(cast, value) for name, value in kwargs.items()}
        STATE.dtype = None  # what the operation is made of runs in the dtype that it got
        try:
            return function(*args, **kwargs)
        finally:
            STATE.dtype = dtype

    return call  # type: ignore[return-value]


def low_precision(function: F) -> F:
    """Decorator of an operation that runs in bfloat16 under `autocast`."""
    return _casting(function, lowered)


def full_precision(function: F) -> F:
    """Decorator of an operation that runs in float32 under `autocast`."""
    return _casting(function, raised)
