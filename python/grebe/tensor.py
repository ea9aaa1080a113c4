"""Tensor: a NumPy (or CuPy) array with a gradient.

The C half (csrc/tape.cpp) holds the array and the link to the tape; here are the properties, views,
in-place writes and conversions. Every other method is a function of `grebe.ops`, bound by
`@method`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from . import _cpu, autograd
from ._cpu import Node, TensorBase, bump, grad_enabled, record, share, wrap
from .backend import Array, as_storage, is_on_cuda, load_cuda, on_host, place
from .backend import copy as copy_array

__all__ = ["Size", "Tensor", "device", "is_tensor"]

F = TypeVar("F", bound=Callable[..., Any])


class Size(tuple[int, ...]):
    """A shape: a tuple of ints that prints like PyTorch's."""

    __slots__ = ()

    def numel(self) -> int:
        """The number of elements of a tensor of this shape."""
        n = 1
        for size in self:
            n *= size
        return n

    def __repr__(self) -> str:
        return f"grebe.Size({list(self)})"

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return Size(item) if isinstance(index, slice) else item


class device:
    """Where a tensor lives: ``device("cpu")``, ``device("cuda", 0)`` or ``device("cuda:0")``."""

    __slots__ = ("index", "type")
    type: str
    index: int | None

    def __init__(self, type: str | int | device, index: int | None = None) -> None:
        if isinstance(type, device):
            self.type, self.index = type.type, type.index
            return
        name, _, number = (f"cuda:{type}" if isinstance(type, int) else str(type)).partition(":")
        if name not in ("cpu", "cuda") or (number and not number.isdigit()):
            raise RuntimeError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {type!r}")
        self.type = name
        self.index = int(number) if number else index

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            other = device(other)
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        if self.index is None:
            return f"device(type='{self.type}')"
        return f"device(type='{self.type}', index={self.index})"


_CPU, _CUDA = device("cpu"), device("cuda", 0)
_default_device = _CPU


def get_default_device() -> device:
    """Where new tensors and layers are made unless they are told."""
    return _default_device


def set_default_device(device: Any) -> None:
    """Makes new tensors and layers on `device` (None: the CPU) unless they are told otherwise.

    Tensors of existing arrays (`from_numpy`) stay where these are.
    """
    global _default_device
    where = check_device("set_default_device", _CPU if device is None else device)
    _default_device = _CPU if where == "cpu" else _CUDA


def check_device(name: str, where: Any) -> str:
    """The kind of the device `where` (None: the default device), "cpu" or "cuda".

    Raises RuntimeError unless it can be used here.
    """
    if where is None:
        where = _default_device
    if where is _CPU:
        return "cpu"
    kind = device(where).type
    if kind == "cuda" and (missing := load_cuda()):
        raise RuntimeError(
            f"{name}: device {str(device(where))!r} is not available ({missing}); expected 'cpu'"
        )
    return kind


class Tensor(TensorBase):
    """A multi-dimensional array that can require a gradient. D2L section 2.1.

    Make one by `grebe.tensor(data)`, `grebe.zeros(...)` or the like. ``Tensor(2, 3)`` is an
    uninitialised float32 tensor of that shape and ``Tensor([1, 2])`` a float32 copy, as in PyTorch.
    """

    __slots__ = ()
    __array_priority__ = 1000

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the functions bound by @method

        # The operators, which the ops modules set.
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __iadd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __isub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __imul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __itruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __ifloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __imod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __ipow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __iand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __ior__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __ixor__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...

    def __new__(cls, *args: Any, device: Any = None) -> Tensor:
        where = check_device("Tensor", device)
        self: Tensor = super().__new__(cls)
        if len(args) == 1 and not isinstance(args[0], (int, np.integer)):
            data = on_host(args[0].array) if isinstance(args[0], TensorBase) else args[0]
            self.array = np.array(data, dtype=np.float32)
        else:
            shape = args if args else (0,)
            if not all(isinstance(s, (int, np.integer)) and s >= 0 for s in shape):
                raise TypeError(f"Tensor: expected sizes or a sequence, got {args!r}")
            self.array = _cpu.empty(tuple(int(s) for s in shape), np.dtype(np.float32))
        self.array = place(self.array, where)
        return self

    # ---- what it is ----

    @property
    def shape(self) -> Size:
        return Size(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def device(self) -> device:
        return _CUDA if is_on_cuda(self.array) else _CPU

    @property
    def ndim(self) -> int:
        ndim: int = self.array.ndim
        return ndim

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        nbytes: int = self.array.nbytes
        return nbytes

    @property
    def is_cuda(self) -> bool:
        return is_on_cuda(self.array)

    @property
    def layout(self) -> str:
        return "strided"

    @property
    def requires_grad(self) -> bool:
        flag: bool = self._requires_grad
        return flag

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Starts or stops recording for this leaf. Floating point only."""
        if not requires_grad and self._node is not None:
            raise RuntimeError(
                "requires_grad: can be switched off only for leaf tensors; use detach()"
            )
        if requires_grad and self.dtype.kind not in "fV":
            raise RuntimeError(
                "requires_grad: only floating point tensors can require gradients, got "
                f"{self.dtype}"
            )
        self._requires_grad = bool(requires_grad)
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient collected by `backward`, or None."""
        gradient: Tensor | None = self._grad
        return gradient

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad: expected a Tensor or None, got {type(value).__name__}")
            if value.array.shape != self.array.shape or value.dtype != self.dtype:
                raise RuntimeError(
                    f"grad: expected shape {list(self.shape)} and dtype {self.dtype}, got "
                    f"{list(value.shape)} and {value.dtype}"
                )
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self._grad = None

    @property
    def grad_fn(self) -> Node | None:
        node: Node | None = self._node
        return node

    @property
    def is_leaf(self) -> bool:
        return self._node is None

    @property
    def data(self) -> Tensor:
        """The same memory without history; writes through it are not tracked."""
        return _same_kind(self, wrap(self.array))

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"data: expected a Tensor, got {type(value).__name__}")
        self.array = value.array

    # ---- autograd ----

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Adds d self / d leaf to every leaf's ``.grad``. See `grebe.autograd.backward`."""
        autograd.backward(
            (self,), None if gradient is None else (gradient,), retain_graph, create_graph, inputs
        )

    def detach(self) -> Tensor:
        """The same memory outside the graph; in-place writes are seen by both."""
        out = wrap(self.array)
        share(out, self)
        result: Tensor = out
        return result

    def detach_(self) -> Tensor:
        """Takes this tensor itself out of the graph."""
        if self._base is not None:
            raise RuntimeError("detach_: a view can't be detached in place; use detach()")
        self._node = None
        self._requires_grad = False
        return self

    def retain_grad(self) -> None:
        """Keeps the gradient of this non-leaf tensor in ``.grad`` during backward."""
        if not self._requires_grad:
            raise RuntimeError("retain_grad: the tensor does not require grad")
        if self._node is None or self._retains_grad:
            return
        self._retains_grad = True
        owner = weakref.ref(self)

        def keep(gradient: Tensor) -> None:
            tensor = owner()
            if tensor is not None:
                before = tensor._grad
                tensor._grad = gradient.clone() if before is None else before + gradient

        self.register_hook(keep)

    @property
    def retains_grad(self) -> bool:
        flag: bool = self._retains_grad
        return flag

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> autograd.RemovableHandle:
        """Calls `hook(gradient)` whenever this tensor's gradient is known; it may replace it."""
        if not self._requires_grad:
            raise RuntimeError("register_hook: the tensor does not require grad")
        owner = self if self._node is None else self._node
        name = "_hooks" if owner is self else "hooks"
        hooks = getattr(owner, name)
        if hooks is None:
            hooks = {}
            setattr(owner, name, hooks)
        return autograd.add_hook(hooks, hook)

    # ---- out of grebe ----

    def numpy(self, *, force: bool = False) -> Array:
        """The NumPy array of a CPU tensor, without a copy."""
        if self._requires_grad and not force:
            raise RuntimeError("numpy: the tensor requires grad; use tensor.detach().numpy()")
        if not isinstance(self.array, np.ndarray):
            raise TypeError(f"numpy: the tensor is on {self.device}; use tensor.cpu() first")
        array: Array = self.array
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError("__array__: a cast needs a copy, but copy=False")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self._requires_grad:
            raise BufferError("__dlpack__: the tensor requires grad; export tensor.detach()")
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def item(self) -> Any:
        """The only element as a Python number."""
        if self.array.size != 1:
            raise RuntimeError(
                f"item: a tensor with {self.array.size} elements is no scalar; shape "
                f"{list(self.shape)}"
            )
        value = self.array.item()
        return float(value) if self.array.dtype.kind == "V" else value

    def tolist(self) -> Any:
        """Nested lists of Python numbers; a number for a 0-d tensor."""
        array = on_host(self.array)
        return (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.array.size != 1 or self.array.dtype.kind not in "iub":
            raise TypeError("only integer tensors of a single element can be an index")
        return int(self.array.item())

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise RuntimeError(
                f"bool: the truth of a tensor with {self.array.size} elements is ambiguous"
            )
        return bool(self.array.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __len__(self) -> int:
        if self.array.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return len(self.array)

    def __iter__(self) -> Iterator[Tensor]:
        if self.array.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self.unbind(0))

    def __contains__(self, element: Any) -> bool:
        return bool((self == element).array.any())

    __hash__ = object.__hash__

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.array.ndim == 0 else object.__format__(self, spec)

    def __repr__(self) -> str:
        from .printing import tensor_string

        return tensor_string(self)

    # ---- copies ----

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise RuntimeError(
                "deepcopy: only leaf tensors can be deep-copied; use detach() or clone()"
            )
        if id(self) in memo:
            known: Tensor = memo[id(self)]
            return known
        result = _same_kind(self, wrap(copy_array(self.array)))
        memo[id(self)] = result
        result._requires_grad = self._requires_grad
        result._grad = copy.deepcopy(self._grad, memo)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._node is not None:
            raise RuntimeError("pickle: only leaf tensors can be pickled; use detach()")
        device = "cuda" if is_on_cuda(self.array) else "cpu"
        return _rebuild, (type(self), on_host(self.array), self._requires_grad, device)


def _same_kind(like: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` as the class of `like` (a Parameter stays one)."""
    if type(like) is Tensor:
        return tensor
    result: Tensor = TensorBase.__new__(type(like))
    result.array = tensor.array
    return result


def _rebuild(kind: type[Tensor], array: Array, requires_grad: bool, device: str = "cpu") -> Tensor:
    tensor: Tensor = TensorBase.__new__(kind)
    tensor.array = place(array, device)
    tensor._requires_grad = requires_grad
    return tensor


_cpu.set_classes(Tensor, np.ndarray, as_storage)


def method(function: F) -> F:
    """Makes a function of ops/ also a method of Tensor; its first argument is self."""
    setattr(Tensor, function.__name__, function)
    return function


def is_tensor(obj: Any) -> bool:
    """Is `obj` a Tensor?"""
    return isinstance(obj, Tensor)


def expect_tensor(name: str, argument: str, value: Any) -> Array:
    """The array of `value`; TypeError naming function and argument if it is no Tensor."""
    if not isinstance(value, TensorBase):
        raise TypeError(f"{name}: {argument} must be a Tensor, got {type(value).__name__}")
    return value.array


def expect_float(name: str, argument: str, value: Any) -> Array:
    """The array of `value`; TypeError if it is no float32 or float64 Tensor."""
    array = expect_tensor(name, argument, value)
    if array.dtype != np.float32 and array.dtype != np.float64:
        raise TypeError(f"{name}: {argument} must have dtype float32 or float64, got {array.dtype}")
    return array


# ---- views ----


def record_view(
    node_class: type[Node], array: Array, tensor: Tensor, saved: tuple[Any, ...]
) -> Tensor:
    """Like `record` for a result that shares memory with `tensor`."""
    return link_view(record(node_class, array, (tensor,), saved), tensor)


def link_view(out: Tensor, tensor: Tensor) -> Tensor:
    """Marks `out` as a view of `tensor`."""
    root = tensor if tensor._base is None else tensor._base
    out._base = root
    share(out, tensor)
    if grad_enabled() and not (root._requires_grad and root._node is None):
        _remember(root, out)
    return out


def _remember(root: Tensor, view: Tensor) -> None:
    """Keeps a weak reference to `view`: a write to the memory changes its history too."""
    views = root._views
    if views is None:
        views = root._views = []
    elif len(views) >= 8 and len(views) & (len(views) - 1) == 0:  # prune at powers of two
        views[:] = [v for v in views if v() is not None]
    views.append(weakref.ref(view))


# ---- in-place writes ----


def check_writable(name: str, tensor: Tensor) -> None:
    """Raises unless `tensor` may be written in place now."""
    if grad_enabled() and tensor._requires_grad:
        root = tensor if tensor._base is None else tensor._base
        if root._requires_grad and root._node is None:
            kind = "a leaf" if root is tensor else "a view of a leaf"
            raise RuntimeError(
                f"{name}: {kind} tensor that requires grad can't be written in place; "
                "do it under no_grad()"
            )
    array = tensor.array
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise RuntimeError(f"{name}: the tensor's memory is read-only; clone() it first")
    if (
        array.size
        and 0 in array.strides
        and any(
            stride == 0 and size > 1
            for stride, size in zip(array.strides, array.shape, strict=True)
        )
    ):
        raise RuntimeError(
            f"{name}: several elements share one memory location (an expanded tensor); "
            "clone() it first"
        )


def snapshot(tensor: Tensor) -> Tensor:
    """The tensor as it is now: a copy with the same history."""
    out: Tensor = wrap(copy_array(tensor.array))
    out._node = tensor._node
    out._requires_grad = tensor._requires_grad
    return out


def assign(name: str, tensor: Tensor, value: Tensor) -> Tensor:
    """Writes `value` (same shape) into `tensor`, which takes over its history."""
    check_writable(name, tensor)
    source = value.array
    if source.shape != tensor.array.shape:
        raise RuntimeError(
            f"{name}: the result has shape {list(source.shape)}, which does not fit the tensor's "
            f"shape {list(tensor.array.shape)}"
        )
    if source.dtype.kind in "fV" and tensor.array.dtype.kind in "iub":
        raise RuntimeError(
            f"{name}: the result has dtype {source.dtype}, which can't be written into a tensor "
            f"of dtype {tensor.array.dtype}"
        )
    np.copyto(tensor.array, source, casting="unsafe")
    bump(tensor)
    if grad_enabled() and (value._requires_grad or tensor._requires_grad):
        if value.array.dtype != tensor.array.dtype:
            value = value.to(tensor.array.dtype)
        _rebase(tensor, value)
    return tensor


def _rebase(tensor: Tensor, value: Tensor) -> None:
    """The history of `tensor`, its base and their other views after a write of `value`."""
    root = tensor if tensor._base is None else tensor._base
    before: Tensor = wrap(root.array)
    before._node, before._requires_grad = root._node, root._requires_grad
    if tensor is root:
        root._node, root._requires_grad = value._node, value._requires_grad
    else:
        positions = _positions(root.array, tensor.array)
        flat = before.reshape(-1).index_put((wrap(positions.ravel()),), value.reshape(-1))
        whole = flat.reshape(root.array.shape)
        root._node, root._requires_grad = whole._node, whole._requires_grad
    twin: Tensor = wrap(root.array)
    twin._node, twin._requires_grad = root._node, root._requires_grad
    for reference in root._views or ():
        view = reference()
        if view is not None:
            positions = _positions(root.array, view.array)
            now = twin.reshape(-1)[wrap(positions)]
            view._node, view._requires_grad = now._node, now._requires_grad


def _positions(base: Array, view: Array) -> Array:
    """For each element of `view` its index in the flattened `base` whose memory it shares."""

    def offsets(array: Array) -> Array:
        total = np.zeros(array.shape, dtype=np.int64)
        for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
            steps = np.arange(size, dtype=np.int64) * stride
            total += steps.reshape((-1,) + (1,) * (array.ndim - axis - 1))
        return total

    def address(array: Array) -> int:
        return int(array.__array_interface__["data"][0])

    of_base = offsets(base).ravel()
    order = np.argsort(of_base, kind="stable")
    wanted = offsets(view) + (address(view) - address(base))
    result: Array = order[np.searchsorted(of_base[order], wanted)]
    return result
