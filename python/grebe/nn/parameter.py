"""Tensors with a role in a module: trained parameters, buffers, and both without a shape yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _cpu
from .._cpu import TensorBase, share, wrap
from ..backend import empty_on
from ..tensor import Tensor, check_device

__all__ = [
    "Buffer",
    "Parameter",
    "UninitializedBuffer",
    "UninitializedParameter",
    "is_lazy",
]

_raw: Any = TensorBase.array  # the array itself, whatever a subclass makes of the name


def _make(cls: type[Any], name: str, data: Any) -> Any:
    """An instance of `cls` on the memory of `data` (None: an empty float32 tensor)."""
    if data is None:
        data = wrap(_cpu.empty((0,), np.dtype(np.float32)))
    if not isinstance(data, TensorBase):
        raise TypeError(f"{name}: data must be a Tensor or None, got {type(data).__name__}")
    result = TensorBase.__new__(cls)
    _raw.__set__(result, _raw.__get__(data))
    share(result, data)
    return result


class Parameter(Tensor):
    """A tensor that a `Module` lists among its parameters once assigned to an attribute.

    Shares the memory of `data`, without its history. Raises TypeError if `data` is no tensor, and
    RuntimeError if `requires_grad` is wanted for a dtype that is not floating point. D2L 6.1.
    """

    __slots__ = ()

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> Parameter:
        self: Parameter = _make(cls, cls.__name__, data)
        if requires_grad:
            self.requires_grad_()
        return self

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor that a `Module` keeps but does not train, once assigned to an attribute.

    persistent: whether it is part of the module's `state_dict`.
    """

    __slots__ = ("persistent",)
    persistent: bool

    def __new__(cls, data: Any = None, *, persistent: bool = True) -> Buffer:
        self: Buffer = _make(cls, cls.__name__, data)
        self.persistent = persistent
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        result = super().__deepcopy__(memo)
        result.persistent = self.persistent  # type: ignore[attr-defined]
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild_buffer, (wrap(_raw.__get__(self)), self.persistent)


def _rebuild_buffer(data: Tensor, persistent: bool) -> Buffer:
    return Buffer(data, persistent=persistent)


class _Uninitialized(Tensor):
    """A tensor whose shape is not known yet.

    Its storage is an empty array of a structured dtype: no op takes it, so that using it by mistake
    is an error everywhere. The field is the dtype that it will get.
    """

    __slots__ = ()
    _becomes: type[Tensor]

    @property
    def array(self) -> Any:
        """There is none yet: raises ValueError."""
        raise ValueError(
            f"an {type(self).__name__} has no shape or values yet: run a forward pass through the "
            "lazy module first, so that it can infer them, or call materialize(shape)"
        )

    @array.setter
    def array(self, value: Any) -> None:
        _raw.__set__(self, value)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that the tensor will have."""
        dtype: np.dtype[Any] = _raw.__get__(self).dtype[0]
        return dtype

    @property
    def data(self) -> Tensor:
        """An empty tensor: initialising it does nothing, as in PyTorch."""
        return wrap(np.empty(0, self.dtype))

    @data.setter
    def data(self, value: Tensor) -> None:
        _raw.__set__(self, _raw.__get__(value))

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        """Turns self into an uninitialised tensor of `shape`, keeping its identity.

        shape: ints. dtype: None keeps the dtype given at creation.
        """
        where = check_device(f"{type(self).__name__}.materialize", device)
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        _raw.__set__(self, empty_on(where, tuple(int(size) for size in shape), wanted))
        self.__class__ = self._becomes  # type: ignore[assignment]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """A tensor without shape, of the dtype that ``Tensor.to`` with these arguments gives."""
        sample = wrap(np.zeros(0, self.dtype)).to(*args, **kwargs)
        return self._twin(sample.dtype)

    def float(self) -> Any:
        """The same as float32."""
        return self.to(np.dtype(np.float32))

    def double(self) -> Any:
        """The same as float64."""
        return self.to(np.dtype(np.float64))

    def _twin(self, dtype: np.dtype[Any]) -> Any:
        twin = TensorBase.__new__(type(self))
        _raw.__set__(twin, np.empty(0, [("uninitialized", dtype)]))
        twin._requires_grad = self._requires_grad
        return twin

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = self._twin(self.dtype)
        result: Tensor = memo[id(self)]
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self._requires_grad, None, self.dtype)


def _uninitialized(cls: type[Any], device: Any, dtype: Any) -> Any:
    check_device(cls.__name__, device)
    wanted = np.dtype(np.float32 if dtype is None else dtype)
    self = TensorBase.__new__(cls)
    _raw.__set__(self, np.empty(0, [("uninitialized", wanted)]))
    return self


class UninitializedParameter(_Uninitialized, Parameter):
    """A `Parameter` whose shape a lazy module infers from its first input."""

    __slots__ = ()
    _becomes = Parameter

    def __new__(
        cls, requires_grad: bool = True, device: Any = None, dtype: Any = None
    ) -> UninitializedParameter:
        self: UninitializedParameter = _uninitialized(cls, device, dtype)
        self._requires_grad = bool(requires_grad)
        return self


class UninitializedBuffer(_Uninitialized):
    """A buffer whose shape a lazy module infers from its first input."""

    __slots__ = ()
    _becomes = Tensor

    def __new__(
        cls, requires_grad: bool = False, device: Any = None, dtype: Any = None
    ) -> UninitializedBuffer:
        self: UninitializedBuffer = _uninitialized(cls, device, dtype)
        self._requires_grad = bool(requires_grad)
        return self


def is_lazy(tensor: Any) -> bool:
    """Whether `tensor` still has no shape."""
    return isinstance(tensor, _Uninitialized)
