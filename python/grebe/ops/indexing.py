"""Indexing by integers, slices, integer and boolean tensors, and the gather/scatter family.

Every index is checked against the shape before memory is touched. Gradients of integer indices add
up where a row is used twice. D2L sections 2.1.2 and 2.3.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np

from .._cpu import Node, TensorBase, bump, grad_enabled, record, wrap
from ..backend import Array, as_storage, contiguous, is_array, is_on_cuda, kernels, like, xp
from ..backend import empty as empty_array
from ..tensor import Tensor, assign, check_writable, expect_tensor, method, snapshot
from .compare import where
from .elementwise import add, check_broadcast, mul, unbroadcast
from .inplace import define_inplace
from .shape import dimension, reshape, slice_of

__all__ = [
    "argwhere", "gather", "index_add", "index_copy", "index_fill", "index_put", "index_select",
    "masked_fill", "masked_scatter", "masked_select", "nonzero", "scatter", "scatter_add",
    "scatter_reduce", "take", "take_along_dim",
]  # fmt: skip


# ---- indices ----


def _item(index: Any) -> Any:
    """One part of an index as NumPy wants it."""
    if index is None or index is Ellipsis or isinstance(index, (bool, np.bool_)):
        return index
    if isinstance(index, slice):
        if index.step is not None and operator.index(index.step) <= 0:
            raise ValueError(f"index: slice steps must be positive, got {index.step}")
        return slice(*(None if p is None else operator.index(p)
                       for p in (index.start, index.stop, index.step)))  # fmt: skip
    if isinstance(index, (int, np.integer)):
        return int(index)
    if isinstance(index, (list, tuple, range)):
        index = [i.array if isinstance(i, TensorBase) else i for i in index]
        index = np.asarray(index) if len(index) else np.zeros(0, np.int64)
    array = index.array if isinstance(index, TensorBase) else index
    if is_array(array):
        if array.dtype.kind == "b":
            return array
        if array.dtype.kind in "iu":
            return int(array) if array.ndim == 0 else array
        raise IndexError(
            f"index: tensors used as indices must be integer or bool, got {array.dtype}"
        )
    raise IndexError(
        f"index: expected ints, slices, ..., None, integer or bool tensors, got "
        f"{type(index).__name__}"
    )


def _normal(x: Array, index: Any) -> tuple[tuple[Any, ...], bool]:
    """The index as a tuple of NumPy's parts, and whether it is basic (gives a view)."""
    if isinstance(index, list) and any(
        isinstance(i, (slice, type(None), type(...))) for i in index
    ):
        index = tuple(index)
    parts = tuple(_item(i) for i in index) if isinstance(index, tuple) else (_item(index),)
    basic = not any(isinstance(p, (bool, np.bool_)) or is_array(p) for p in parts)
    if not basic and is_on_cuda(x):
        parts = tuple(like(p, x) if isinstance(p, np.ndarray) else p for p in parts)
    return parts, basic


def _shape_error(index: tuple[Any, ...], shape: tuple[int, ...], error: Exception) -> IndexError:
    def show(part: Any) -> str:
        if is_array(part):
            return f"{part.dtype}{list(part.shape)}"
        return "..." if part is Ellipsis else str(part)

    return IndexError(
        f"index [{', '.join(show(p) for p in index)}] does not fit shape {list(shape)}: {error}"
    )


class Index(Node):
    """y = x[index] with integer or bool arrays; the gradient adds up over repeated elements."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        index, shape = self.saved
        return _index_sum(grad, index, shape)


class IndexSum(Node):
    """Zeros of a shape with a tensor added at an index: the transpose of `Index`."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return _take(grad, self.saved[0])


def _take(input: Tensor, index: tuple[Any, ...]) -> Tensor:
    x = input.array
    try:
        if len(index) == 1 and is_array(index[0]) and index[0].dtype.kind != "b":
            y = np.take(x, index[0], axis=0)
        else:
            y = as_storage(x[index])
    except IndexError as error:
        raise _shape_error(index, x.shape, error) from None
    return record(Index, y, (input,), (index, x.shape))


def _index_sum(grad: Tensor, index: tuple[Any, ...], shape: tuple[int, ...]) -> Tensor:
    y = empty_array(shape, grad.array.dtype, grad.array)
    y.fill(0)
    _add_at(y, index, grad.array)
    return record(IndexSum, y, (grad,), (index,))


def _add_at(target: Array, index: tuple[Any, ...], values: Array) -> None:
    """target[index] += values, repeated indices counted each time.

    Rows of one integer index are sorted and summed run by run: np.add.at works element by element
    and is many times slower on wide rows.
    """
    if is_on_cuda(target) and target.dtype.kind == "f":
        _add_on_cuda(target, index, values)
        return
    rows, dim = index[-1], len(index) - 1
    only_rows = is_array(rows) and rows.dtype.kind in "iu"
    along = all(isinstance(part, slice) and part == slice(None) for part in index[:-1])
    if dim and along and only_rows and rows.ndim == 1:
        _add_at(np.moveaxis(target, dim, 0), (rows,), np.moveaxis(values, dim, 0))
        return
    if dim or not only_rows or rows.size == 0 or target.ndim < 2:
        np.add.at(target, index, values)
        return
    flat = np.where(rows < 0, rows + target.shape[0], rows).ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    wide = values.reshape(flat.size, *target.shape[1:])
    if starts.size == flat.size:  # no index twice
        target[flat] += wide
        return
    target[ordered[starts]] += np.add.reduceat(wide[order], starts, axis=0)


def _add_on_cuda(target: Array, index: tuple[Any, ...], values: Array) -> None:
    """As `_add_at`, in a fixed order: through the numbers of the rows that the index picks."""
    lead = sum(part.ndim if is_array(part) and part.dtype.kind == "b" else 1 for part in index)
    count, width = math.prod(target.shape[:lead]), math.prod(target.shape[lead:])
    numbers = xp(target).arange(count).reshape(target.shape[:lead])[index]
    rows = np.broadcast_to(values, numbers.shape + target.shape[lead:])
    sums = empty_array((count, width), target.dtype, target)
    kernels(target).sum_rows(
        contiguous(rows).reshape(-1, width), None, contiguous(numbers).reshape(-1), None, sums
    )
    target += sums.reshape(target.shape)


def _getitem(self: Tensor, index: Any) -> Tensor:
    parts, basic = _normal(self.array, index)
    if not basic:
        return _take(self, parts)
    try:
        return slice_of(self, parts)
    except IndexError as error:
        raise _shape_error(parts, self.array.shape, error) from None


class SetIndex(Node):
    """x with x[index] = value."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        index, shape = self.saved
        to_x, to_value = self.edges
        kept = None
        if to_x is not None:
            kept = _set(grad, index, wrap(xp(grad.array).zeros((), grad.array.dtype)))
        value = None
        if to_value is not None:
            value = unbroadcast(_take(grad, index), shape)
        return kept, value


def _set(input: Tensor, index: tuple[Any, ...], value: Tensor) -> Tensor:
    y = input.array.copy(order="K")
    try:
        y[index] = value.array
    except (IndexError, ValueError) as error:
        raise _write_error(index, input.array, value.array, error) from None
    return record(SetIndex, y, (input, value), (index, value.array.shape))


def _write_error(
    index: tuple[Any, ...], target: Array, value: Array, error: Exception
) -> Exception:
    if isinstance(error, IndexError):
        return _shape_error(index, target.shape, error)
    return RuntimeError(
        f"index: a value of shape {list(value.shape)} can't be written at the index of a tensor of "
        f"shape {list(target.shape)}: {error}"
    )


def _as_value(self: Tensor, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        if not isinstance(value, (bool, int, float, np.ndarray, np.generic, list, tuple)):
            raise TypeError(f"index: can't write a value of type {type(value).__name__}")
        value = wrap(np.asarray(value)).to(self.device)
    if value.array.dtype == self.array.dtype:
        return value
    if value.array.dtype.kind in "fV" and self.array.dtype.kind in "iub" and value._requires_grad:
        raise RuntimeError("index: a differentiable value can't be written into an integer tensor")
    result: Tensor = value.to(self.array.dtype)
    return result


def _setitem(self: Tensor, index: Any, value: Any) -> None:
    parts, _ = _normal(self.array, index)
    source = _as_value(self, value)
    check_writable("index", self)
    if grad_enabled() and (self._requires_grad or source._requires_grad):
        assign("index", self, _set(snapshot(self), parts, source))
        return
    target, data = self.array, source.array
    if np.may_share_memory(target, data):
        data = data.copy()
    try:
        target[parts] = data
    except (IndexError, ValueError) as error:
        raise _write_error(parts, target, data, error) from None
    bump(self)


def _delitem(self: Tensor, index: Any) -> None:
    raise TypeError("Tensor does not support deleting items")


Tensor.__getitem__ = _getitem  # type: ignore[method-assign]
Tensor.__setitem__ = _setitem  # type: ignore[method-assign]
Tensor.__delitem__ = _delitem  # type: ignore[attr-defined]


@method
def index_put(
    input: Tensor, indices: tuple[Any, ...], values: Tensor, accumulate: bool = False
) -> Tensor:
    """A copy with ``copy[indices] = values``, or += with accumulate."""
    expect_tensor("index_put", "input", input)
    parts, _ = _normal(input.array, tuple(indices))
    value = _as_value(input, values)
    if not accumulate:
        return _set(input, parts, value)
    shape = _take(input.detach(), parts).array.shape
    return add(input, _index_sum(value.expand(shape), parts, input.array.shape))


# ---- along a dimension ----


def _index_array(name: str, index: Any, size: int, what: str) -> Array:
    """Integer indices, checked to lie in [-size, size)."""
    array = expect_tensor(name, "index", index)
    if array.dtype.kind not in "iu":
        raise RuntimeError(f"{name}: index must be an integer tensor (int64), got {array.dtype}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= size):
        bad = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise IndexError(f"{name}: index {bad} out of range for {what} of size {size}")
    return array


def _along(dim: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * dim + (index,)


@method
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices of `input` along `dim` that the 1-D `index` names, in its order."""
    x = expect_tensor("index_select", "input", input)
    if x.ndim == 0:
        return reshape(index_select(reshape(input, (1,)), dim, index), ())
    at = dimension("index_select", dim, x.ndim)
    rows = _index_array("index_select", index, x.shape[at], f"dimension {at}")
    if rows.ndim > 1:
        raise IndexError(f"index_select: index must have at most 1 dimension, got {rows.ndim}")
    return _take(input, _along(at, rows.reshape(-1)))


def _open_grid(shape: tuple[int, ...], dim: int, index: Array) -> tuple[Any, ...]:
    """The full integer index of gather and scatter: positions in all dimensions, `index` in dim."""
    grid = [like(g, index) for g in np.ogrid[tuple(slice(s) for s in index.shape)]]
    grid[dim] = index
    return tuple(grid)


def _gather_index(name: str, input: Any, dim: int, index: Any) -> tuple[Any, ...]:
    x = expect_tensor(name, "input", input)
    at = dimension(name, dim, x.ndim)
    rows = _index_array(name, index, x.shape[at] if x.ndim else 1, f"dimension {at}")
    if rows.size == 0 and rows.ndim <= 1:
        rows = rows.reshape((0,) * x.ndim)
    if rows.ndim != x.ndim:
        raise RuntimeError(
            f"{name}: index must have as many dimensions as input: got {list(rows.shape)} for "
            f"{list(x.shape)}"
        )
    for d, size in enumerate(rows.shape):
        if d != at and size > x.shape[d]:
            raise RuntimeError(
                f"{name}: index shape {list(rows.shape)} exceeds input shape {list(x.shape)} in "
                f"dimension {d}"
            )
    return _open_grid(x.shape, at, rows)


def _on_vectors(function: Any) -> Any:
    """For 0-d tensors, runs `function` on 1-d ones and drops the dimension again."""

    @functools.wraps(function)
    def wrapped(input: Tensor, dim: Any, index: Any, *args: Any, **kwargs: Any) -> Tensor:
        if expect_tensor(function.__name__, "input", input).ndim:
            return function(input, dim, index, *args, **kwargs)
        args = tuple(
            reshape(a, (-1,)) if isinstance(a, Tensor) and not a.array.ndim else a for a in args
        )
        expect_tensor(function.__name__, "index", index)
        flat = function(reshape(input, (1,)), dim, reshape(index, (-1,)), *args, **kwargs)
        return reshape(flat, index.array.shape if function.__name__ == "gather" else ())

    return wrapped


@method
@_on_vectors
def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """out[i][j] = input[index[i][j]][j] for dim 0, and so on."""
    expect_tensor("gather", "index", index)
    if index.array.size == 0 and index.array.dtype.kind in "iu":
        return _take(reshape(input, (-1,)), (index.array,))
    return _take(input, _gather_index("gather", input, dim, index))


@method
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather` with broadcasting of the other dimensions; flattened without dim."""
    expect_tensor("take_along_dim", "input", input)
    expect_tensor("take_along_dim", "indices", indices)
    if dim is None:
        return gather(reshape(input, (-1,)), 0, reshape(indices, (-1,)))
    if input.array.ndim != indices.array.ndim:
        raise RuntimeError(
            f"take_along_dim: input and indices must have as many dimensions, got "
            f"{list(input.shape)} and {list(indices.shape)}"
        )
    at = dimension("take_along_dim", dim, input.array.ndim)
    rows = expect_tensor("take_along_dim", "indices", indices)
    indices = wrap(np.where(rows < 0, rows + input.array.shape[at], rows))
    shape = list(np.broadcast_shapes(
        input.array.shape[:at] + (1,) + input.array.shape[at + 1 :],
        indices.array.shape[:at] + (1,) + indices.array.shape[at + 1 :],
    ))  # fmt: skip
    wide = input.expand(shape[:at] + [input.array.shape[at]] + shape[at + 1 :])
    return gather(
        wide, at, indices.expand(shape[:at] + [indices.array.shape[at]] + shape[at + 1 :])
    )


@method
def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of the flattened input."""
    x, rows = expect_tensor("take", "input", input), expect_tensor("take", "index", index)
    if rows.dtype.kind not in "iu":
        raise RuntimeError(f"take: index must be an integer tensor, got {rows.dtype}")
    if x.size == 0 and rows.size:
        raise IndexError("take: input has no elements")
    flat = _take(reshape(input, (-1,)), (rows.reshape(-1),))
    return reshape(flat, rows.shape)


def _source(name: str, input: Tensor, index: Tensor, src: Any) -> Tensor:
    """The values at the places of `index`: `src` cut to its shape, or a number."""
    shape = index.array.shape
    if not isinstance(src, Tensor):
        return wrap(np.full(shape, src, dtype=input.array.dtype))
    if src.array.dtype != input.array.dtype:
        raise RuntimeError(
            f"{name}: src has dtype {src.array.dtype}, expected that of self, {input.array.dtype}"
        )
    if src.array.ndim != len(shape) or any(
        a > b for a, b in zip(shape, src.array.shape, strict=True)
    ):
        raise RuntimeError(
            f"{name}: index shape {list(shape)} exceeds src shape {list(src.array.shape)}"
        )
    return src if src.array.shape == shape else slice_of(src, tuple(slice(s) for s in shape))


@method
@_on_vectors
def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any, *, reduce: str | None = None
) -> Tensor:
    """A copy of `input` with src written where `gather` would read; reduce: "add", "multiply"."""
    if reduce == "add":
        return scatter_add(input, dim, index, _source("scatter", input, index, src))
    if reduce == "multiply":
        return scatter_reduce(input, dim, index, _source("scatter", input, index, src), "prod")
    if reduce is not None:
        raise RuntimeError(f"scatter: reduce must be 'add' or 'multiply', got {reduce!r}")
    grid = _gather_index("scatter", input, dim, index)
    return _set(input, grid, _source("scatter", input, index, src))


@method
@_on_vectors
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy of `input` with src added where `gather` would read."""
    grid = _gather_index("scatter_add", input, dim, index)
    source = _source("scatter_add", input, index, src)
    return add(input, _index_sum(source, grid, input.array.shape))


_REDUCTIONS: dict[str, tuple[Any, Any]] = {
    "sum": (np.add, 0), "prod": (np.multiply, 1), "amax": (np.maximum, -np.inf),
    "amin": (np.minimum, np.inf),
}  # fmt: skip


@method
@_on_vectors
def scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """`scatter` with the values of a place combined by sum, mean, prod, amax or amin.

    Differentiable but for prod; equal extremes share the gradient.
    """
    grid = _gather_index("scatter_reduce", input, dim, index)
    source = _source("scatter_reduce", input, index, src)
    touched = np.zeros(input.array.shape, dtype=bool)
    touched[grid] = True
    start = input
    if not include_self and reduce in ("sum", "mean"):
        start = where(wrap(touched), wrap(np.zeros((), input.array.dtype)), input)
    if reduce in ("sum", "mean"):
        total = add(start, _index_sum(source, grid, input.array.shape))
        if reduce == "sum":
            return total
        count = np.zeros(input.array.shape, input.array.dtype)
        np.add.at(count, grid, 1)
        return total / wrap(np.maximum(count + (1 if include_self else 0), 1))
    if reduce not in _REDUCTIONS:
        raise RuntimeError(
            f"scatter_reduce: reduce must be sum, mean, prod, amax or amin, got {reduce!r}"
        )
    if reduce == "prod" and grad_enabled() and (input._requires_grad or src._requires_grad):
        raise NotImplementedError("scatter_reduce: reduce='prod' has no gradient")
    ufunc, neutral = _REDUCTIONS[reduce]
    y = input.array.copy()
    if not include_self:
        y[touched] = neutral
    ufunc.at(y, grid, source.array)
    if reduce == "prod":
        return wrap(y)
    kept = input.array if include_self else np.where(touched, np.nan, input.array)
    return record(ScatterExtreme, y, (input, source), (grid, kept == y, source.array == y[grid]))


class ScatterExtreme(Node):
    """amax, amin of scatter_reduce: the elements equal to the extreme share its gradient."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        grid, from_input, from_source = self.saved
        dtype = grad.array.dtype
        count = from_input.astype(dtype)
        np.add.at(count, grid, from_source)
        shared = mul(grad, wrap(1 / np.maximum(count, 1)))
        return (
            mul(shared, wrap(from_input.astype(dtype))),
            mul(_take(shared, grid), wrap(from_source.astype(dtype))),
        )


def _rows(name: str, input: Tensor, dim: int, index: Tensor) -> tuple[Any, ...]:
    at = dimension(name, dim, expect_tensor(name, "input", input).ndim)
    size = input.array.shape[at] if input.array.ndim else 1
    return _along(at, _index_array(name, index, size, f"dimension {at}").reshape(-1))


@method
@_on_vectors
def index_add(
    input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1
) -> Tensor:
    """A copy with alpha * source added to the slices along `dim` that `index` names."""
    parts = _rows("index_add", input, dim, index)
    expect_tensor("index_add", "source", source)
    value = mul(source, alpha) if alpha != 1 else source
    expected = input.array[parts].shape
    if value.array.shape != expected:
        raise RuntimeError(
            f"index_add: source has shape {list(value.array.shape)}, expected {list(expected)}"
        )
    return add(input, _index_sum(value, parts, input.array.shape))


@method
@_on_vectors
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """A copy with source written to the slices along `dim` that `index` names."""
    return _set(input, _rows("index_copy", input, dim, index), _as_value(input, source))


@method
@_on_vectors
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """A copy with a number written to the slices along `dim` that `index` names."""
    *lead, rows = _rows("index_fill", input, dim, index)
    return _set(input, (*lead, np.unique(rows)), _as_value(input, value))


# ---- masks ----


def _mask(name: str, input: Any, mask: Any) -> Array:
    x, m = expect_tensor(name, "input", input), expect_tensor(name, "mask", mask)
    if m.dtype != np.bool_:
        raise RuntimeError(f"{name}: mask must be a bool tensor, got {m.dtype}")
    check_broadcast(name, x, m)
    return m


@method
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`value` where the bool `mask` (broadcast) is true, else `input`."""
    m = _mask("masked_fill", input, mask)
    source = _as_value(input, value)
    if source.array.size != 1:
        raise RuntimeError(f"masked_fill: value must be a number, got shape {list(source.shape)}")
    return where(wrap(m), reshape(source, ()), input)


@method
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where the bool `mask` is true, in one dimension."""
    m = _mask("masked_select", input, mask)
    shape = np.broadcast_shapes(input.array.shape, m.shape)
    return _take(input.expand(shape), (np.broadcast_to(m, shape),))


@method
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """A copy with elements of `source`, in order, where the bool `mask` is true."""
    m = _mask("masked_scatter", input, mask)
    input = input.expand(np.broadcast_shapes(input.array.shape, m.shape))
    m = np.broadcast_to(m, input.array.shape)
    count = int(m.sum())
    if source.array.size < count:
        raise RuntimeError(f"masked_scatter: {count} places but {source.array.size} values")
    return _set(input, (m,), slice_of(reshape(source, (-1,)), (slice(count),)))


@method
def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Positions of the nonzero elements: [count, dimensions], or a tuple of index tensors."""
    x = expect_tensor("nonzero", "input", input)
    if as_tuple:
        return tuple(wrap(f) for f in np.nonzero(np.atleast_1d(x)))
    return wrap(np.argwhere(x))


argwhere = nonzero


for _function in (scatter, scatter_add, scatter_reduce, index_add, index_copy, index_fill,
                  index_put, masked_fill, masked_scatter):  # fmt: skip
    define_inplace(_function)
