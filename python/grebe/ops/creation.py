"""Making tensors: from data, filled, in steps. D2L section 2.1."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from .._cpu import Node, TensorBase, record, wrap
from ..backend import Array, bfloat16, empty_on, on_host, place
from ..backend import empty as empty_array
from ..dtypes import as_dtype, get_default_dtype, result_dtype
from ..tensor import Tensor, check_device, expect_tensor, method

__all__ = [
    "arange", "as_tensor", "asarray", "cartesian_prod", "diag", "diag_embed", "diagflat",
    "empty", "empty_like", "eye", "from_dlpack", "from_numpy", "full", "full_like", "linspace",
    "logspace", "meshgrid", "ones", "ones_like", "tensor", "tril", "tril_indices", "triu",
    "triu_indices", "zeros", "zeros_like",
]  # fmt: skip


def sizes(name: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of ``f(2, 3)`` or ``f((2, 3))``; TypeError or RuntimeError for bad sizes."""
    if len(size) == 1 and not isinstance(size[0], (int, np.integer, TensorBase)):
        size = size[0]
    try:
        shape = tuple(operator.index(s) for s in size)
    except TypeError:
        raise TypeError(f"{name}: sizes must be integers, got {size!r}") from None
    if any(s < 0 for s in shape):
        raise RuntimeError(f"{name}: sizes must not be negative, got {list(shape)}")
    if len(shape) > 16:
        raise RuntimeError(f"{name}: at most 16 dimensions are supported, got {len(shape)}")
    return shape


def finish(array: Array, requires_grad: bool, device: str = "cpu") -> Tensor:
    """`array` as a new leaf on `device`."""
    result = wrap(place(array, device))
    if requires_grad:
        result.requires_grad_()
    return result


def _from_data(name: str, data: Any, dtype: Any, copy: bool) -> Array:
    """Python numbers take the default dtypes; arrays keep theirs."""
    if isinstance(data, TensorBase):
        array = on_host(data.array)
    elif isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
    else:
        array = _from_sequence(name, data)
        if dtype is None and array.dtype == np.float64 and not _holds_arrays(data):
            dtype = get_default_dtype()
    wanted = as_dtype(name, array.dtype) if dtype is None else as_dtype(name, dtype)
    if array.dtype == wanted and not copy and array.dtype.isnative:
        return array
    result = empty_array(array.shape, wanted)
    with np.errstate(all="ignore"):
        np.copyto(result, array, casting="unsafe")
    return result


def _from_sequence(name: str, data: Any) -> Array:
    if isinstance(data, (list, tuple)) and any(isinstance(d, TensorBase) for d in data):
        data = [d.array if isinstance(d, TensorBase) else d for d in data]
    try:
        array = np.array(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: data is no regular array of numbers: {error}") from None
    if array.dtype.kind not in "biufV" or (array.dtype.kind == "V" and array.dtype != bfloat16):
        raise TypeError(
            f"{name}: expected numbers or nested sequences of numbers, got {type(data).__name__} "
            f"that makes dtype {array.dtype}"
        )
    return array


def _holds_arrays(data: Any) -> bool:
    """Do NumPy scalars or arrays (which keep their dtype) stand in nested lists?"""
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return isinstance(data, (np.ndarray, np.generic))


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """A new tensor with a copy of `data`: nested sequences, numbers, an array or a tensor.

    Python floats give the default dtype (float32), ints int64, bools bool. Raises ValueError for
    ragged data, TypeError for other things than numbers.
    """
    where = check_device("tensor", device)
    return finish(_from_data("tensor", data, dtype, copy=True), requires_grad, where)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` as a tensor, sharing memory and history where possible."""
    where = check_device("as_tensor", device)
    if isinstance(data, Tensor):
        return data.to(
            data.device if device is None else where, data.dtype if dtype is None else dtype
        )
    return finish(_from_data("as_tensor", data, dtype, copy=False), False, where)


def asarray(
    obj: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`obj` as a tensor; copy: True always copies."""
    if copy:
        return tensor(obj, dtype=dtype, device=device, requires_grad=requires_grad)
    result = as_tensor(obj, dtype, device)
    return result.requires_grad_() if requires_grad else result


def from_numpy(ndarray: Any) -> Tensor:
    """A tensor on the array's own memory: writes to one are seen in the other."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: expected a numpy.ndarray, got {type(ndarray).__name__}")
    as_dtype("from_numpy", ndarray.dtype)
    if not ndarray.dtype.isnative:
        raise ValueError("from_numpy: the array's byte order is not the machine's")
    return wrap(ndarray)


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor on the memory of any object that speaks DLPack."""
    if not hasattr(ext_tensor, "__dlpack__"):
        raise TypeError(f"from_dlpack: {type(ext_tensor).__name__} does not speak DLPack")
    try:
        array = np.from_dlpack(ext_tensor)
    except BufferError as error:
        raise ValueError(f"from_dlpack: {error}") from None
    as_dtype("from_dlpack", array.dtype)
    return wrap(array)


def _filled(
    name: str, shape: tuple[int, ...], value: Any, dtype: Any, requires_grad: bool, where: str
) -> Tensor:
    result = empty_on(where, shape, as_dtype(name, dtype))
    result.fill(value)
    return finish(result, requires_grad, where)


def zeros(
    *shape: Any, size: Any = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Zeros of shape ``(2, 3)`` or ``2, 3`` (default dtype float32)."""
    where = check_device("zeros", device)
    return _filled(
        "zeros",
        sizes("zeros", shape if size is None else (size,)),
        0,
        dtype or get_default_dtype(),
        requires_grad,
        where,
    )


def ones(
    *shape: Any, size: Any = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Ones of shape ``(2, 3)`` or ``2, 3`` (default dtype float32)."""
    where = check_device("ones", device)
    return _filled(
        "ones",
        sizes("ones", shape if size is None else (size,)),
        1,
        dtype or get_default_dtype(),
        requires_grad,
        where,
    )


def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`fill_value` in shape `size`; without dtype, that of the value."""
    where = check_device("full", device)
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    if not isinstance(value, (bool, int, float, np.generic)):
        raise TypeError(f"full: fill_value must be a number, got {type(value).__name__}")
    if dtype is None:
        dtype = result_dtype(value.item() if isinstance(value, np.generic) else value)
    return _filled("full", sizes("full", (size,)), value, dtype, requires_grad, where)


def empty(
    *shape: Any, size: Any = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uninitialised memory of shape ``(2, 3)`` or ``2, 3``."""
    where = check_device("empty", device)
    shape = sizes("empty", shape if size is None else (size,))
    return finish(
        empty_on(where, shape, as_dtype("empty", dtype or get_default_dtype())),
        requires_grad,
        where,
    )


def _like(
    name: str, input: Any, value: Any, dtype: Any, device: Any, requires_grad: bool
) -> Tensor:
    x = expect_tensor(name, "input", input)
    where = check_device(name, input.device if device is None else device)
    result = np.empty_like(x, dtype=as_dtype(name, x.dtype if dtype is None else dtype))
    if value is not None:
        result.fill(value)
    return finish(result, requires_grad, where)


def zeros_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Zeros in the shape and memory format of `input`."""
    return _like("zeros_like", input, 0, dtype, device, requires_grad)


def ones_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Ones in the shape and memory format of `input`."""
    return _like("ones_like", input, 1, dtype, device, requires_grad)


def full_like(
    input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`fill_value` in the shape and memory format of `input`."""
    return _like("full_like", input, fill_value, dtype, device, requires_grad)


def empty_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Uninitialised memory in the shape and memory format of `input`."""
    return _like("empty_like", input, None, dtype, device, requires_grad)


def _new(name: str, make: Any) -> None:
    def function(self: Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        result: Tensor = make(*args, dtype=self.dtype if dtype is None else dtype, **kwargs)
        return result

    function.__name__ = name
    function.__doc__ = f"`{make.__name__}` with this tensor's dtype unless another is given."
    method(function)


for _name, _make in (("new_zeros", zeros), ("new_ones", ones), ("new_empty", empty),
                     ("new_full", full), ("new_tensor", tensor)):  # fmt: skip
    _new(_name, _make)


def _number(name: str, argument: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if not isinstance(value, (bool, int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    return value


def arange(
    start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """start, start + step, ... below `end`; int64 for integers, else the default float."""
    where = check_device("arange", device)
    if end is None:
        start, end = 0, start
    start, end, step = (
        _number("arange", a, v) for a, v in (("start", start), ("end", end), ("step", step))
    )
    if step == 0:
        raise RuntimeError("arange: step must not be 0")
    if (end - start) * step < 0:
        raise RuntimeError(f"arange: step {step} leads away from end ({start} to {end})")
    if dtype is None:
        dtype = result_dtype(start + 0, end + 0, step + 0)
    count = max(0, math.ceil((end - start) / step))
    wanted = as_dtype("arange", dtype)
    integral = all(isinstance(v, (int, np.integer)) for v in (start, end, step))
    values = np.arange(count, dtype=np.int64 if integral else np.float64) * step + start
    return finish(values.astype(wanted), requires_grad, where)


def linspace(
    start: Any, end: Any, steps: int, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`steps` evenly spaced values from `start` to `end`, both included."""
    where = check_device("linspace", device)
    start, end = _number("linspace", "start", start), _number("linspace", "end", end)
    if operator.index(steps) < 0:
        raise RuntimeError(f"linspace: steps must not be negative, got {steps}")
    wanted = as_dtype("linspace", dtype or get_default_dtype())
    return finish(
        np.linspace(start, end, operator.index(steps)).astype(wanted), requires_grad, where
    )


def logspace(
    start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Base ** linspace(start, end, steps)."""
    where = check_device("logspace", device)
    start, end = _number("logspace", "start", start), _number("logspace", "end", end)
    wanted = as_dtype("logspace", dtype or get_default_dtype())
    values = np.logspace(start, end, operator.index(steps), base=base)
    return finish(values.astype(wanted), requires_grad, where)


def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """The n x m matrix with ones on the diagonal."""
    where = check_device("eye", device)
    rows, columns = sizes("eye", (n, n if m is None else m))
    wanted = as_dtype("eye", dtype or get_default_dtype())
    return finish(np.eye(rows, columns, dtype=wanted), requires_grad, where)


# ---- triangles and diagonals ----


class Triangle(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        keep, diagonal = self.saved
        return keep(grad, diagonal)


def _triangle(name: str, function: Any, keep: Any, input: Tensor, diagonal: int) -> Tensor:
    x = expect_tensor(name, "input", input)
    if x.ndim < 2:
        raise RuntimeError(f"{name}: input must have at least 2 dimensions, got {x.ndim}")
    return record(Triangle, function(x, diagonal), (input,), (keep, diagonal))


@method
def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangles of a batch of matrices, zero above `diagonal`."""
    return _triangle("tril", np.tril, tril, input, diagonal)


@method
def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangles of a batch of matrices, zero below `diagonal`."""
    return _triangle("triu", np.triu, triu, input, diagonal)


def tril_indices(row: int, col: int, offset: int = 0) -> Tensor:
    """Row and column numbers of the lower triangle, [2, count]."""
    return wrap(np.stack(np.tril_indices(row, offset, col)).astype(np.int64))


def triu_indices(row: int, col: int, offset: int = 0) -> Tensor:
    """Row and column numbers of the upper triangle, [2, count]."""
    return wrap(np.stack(np.triu_indices(row, offset, col)).astype(np.int64))


@method
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices with the last dimension of `input` on diagonal `offset`, zero elsewhere."""
    x = expect_tensor("diag_embed", "input", input)
    n = x.shape[-1] + abs(offset)
    result = zeros((*x.shape[:-1], n, n), dtype=x.dtype)
    rows = np.arange(x.shape[-1]) + max(-offset, 0)
    columns = np.arange(x.shape[-1]) + max(offset, 0)
    filled = result.index_put((Ellipsis, wrap(rows), wrap(columns)), input)
    return filled.movedim((-2, -1), (dim1, dim2))


@method
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix with the given vector on its diagonal."""
    x = expect_tensor("diag", "input", input)
    if x.ndim == 1:
        return diag_embed(input, diagonal)
    if x.ndim != 2:
        raise RuntimeError(f"diag: input must have 1 or 2 dimensions, got {x.ndim}")
    return input.diagonal(diagonal).clone()


@method
def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """The flattened input on the diagonal of a matrix."""
    expect_tensor("diagflat", "input", input)
    return diag_embed(input.reshape(-1), offset)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinate grids of 1-D tensors; indexing "ij" (default) or "xy"."""
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = tuple(tensors[0])
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f"meshgrid: indexing must be 'ij' or 'xy', got {indexing!r}")
    lines = list(tensors)
    for line in lines:
        if expect_tensor("meshgrid", "tensors", line).ndim > 1:
            raise RuntimeError(f"meshgrid: tensors must have at most 1 dimension, got {line.ndim}")
    if indexing == "xy" and len(lines) > 1:
        lines[0], lines[1] = lines[1], lines[0]
    shape = tuple(t.array.size for t in lines)
    grids = []
    for axis, line in enumerate(lines):
        view = line.reshape((1,) * axis + (-1,) + (1,) * (len(lines) - axis - 1))
        grids.append(view.expand(shape))
    if indexing == "xy" and len(grids) > 1:
        grids[0], grids[1] = grids[1], grids[0]
    return tuple(grids)


def cartesian_prod(*tensors: Tensor) -> Tensor:
    """All combinations of elements of 1-D tensors, one a row."""
    for item in tensors:
        expect_tensor("cartesian_prod", "tensors", item)
    if not tensors:
        raise RuntimeError("cartesian_prod: expected at least one tensor")
    if len(tensors) == 1:
        return tensors[0]
    from .shape import stack

    return stack([g.reshape(-1) for g in meshgrid(*tensors)], dim=1)
