"""Sorting, selecting, searching, counting, and running sums along a dimension.

NumPy or CuPy does the work, but for the top few (csrc/cpu/sort.cpp, csrc/cuda/sort.cu); what CuPy
lacks goes by way of the CPU. NaN counts as the largest number, as in PyTorch. What sorts or selects
is differentiable through the positions that it found, the running operations through each other.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import numpy as np

from .._cpu import Node, TensorBase, grad_enabled, record, wrap
from ..amp import full_precision
from ..backend import Array, contiguous, empty, kernels, xp
from ..dtypes import as_dtype, is_floating
from ..tensor import Tensor, expect_tensor, method
from .compare import logical_xor, where
from .elementwise import add, exp, mul, scalar_like, sub
from .indexing import gather
from .shape import cat, dimension, flip, narrow, reshape, through_host, unsqueeze

__all__ = [
    "argsort", "bincount", "bucketize", "cummax", "cummin", "cumprod", "cumsum", "diff", "histc",
    "isin", "kthvalue", "logcumsumexp", "median", "mode", "msort", "nanmedian", "quantile",
    "searchsorted", "sort", "topk", "unique", "unique_consecutive",
]  # fmt: skip


class Selected(NamedTuple):
    """Elements along a dimension, and their positions in it (int64)."""

    values: Tensor
    indices: Tensor


# ---- taking elements by position ----


class Pick(Node):
    """y = x at one position per element of `index` along a dimension; no position twice."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        index, dim, shape = self.saved
        y = xp(grad.array).zeros(shape, grad.array.dtype)
        np.put_along_axis(y, index, grad.array, dim)
        return record(Place, y, (grad,), (index, dim))


class Place(Node):
    """Zeros with elements put at the positions of `index`: the transpose of `Pick`."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        index, dim = self.saved
        return _pick(grad, index, dim)


def _pick(input: Tensor, index: Array, dim: int) -> Tensor:
    x = input.array
    result: Tensor = record(
        Pick, np.take_along_axis(x, index, dim), (input,), (index, dim, x.shape)
    )
    return result


def _selected(input: Tensor, index: Array, dim: int, keepdim: bool) -> Selected:
    """The elements at `index`, which has size 1 along `dim`."""
    values, indices = _pick(input, index, dim), wrap(index)
    if keepdim:
        return Selected(values, indices)
    shape = index.shape[:dim] + index.shape[dim + 1 :]
    return Selected(reshape(values, shape), reshape(indices, shape))


def _of_scalar(input: Tensor) -> Selected:
    return Selected(input.clone(), wrap(xp(input.array).zeros((), np.int64)))


def _keys(x: Array) -> Array:
    """Numbers in the order of `x` that NumPy can sort."""
    return x.astype(np.float32) if x.dtype.kind == "V" or x.dtype == np.float16 else x


def _is_nan(x: Array) -> Array:
    return np.isnan(x) if is_floating(x.dtype) else xp(x).zeros(x.shape, np.bool_)


# ---- sorting ----


def _order(x: Array, dim: int, descending: bool) -> Array:
    """Positions in sorted order, equal elements in the order of `x`."""
    keys = _keys(x)
    if not descending:
        return np.argsort(keys, axis=dim, kind="stable")
    # Sorting the mirrored array keeps equal elements in order when mirrored again.
    mirrored = np.argsort(np.flip(keys, dim), axis=dim, kind="stable")
    return np.flip(x.shape[dim] - 1 - mirrored, dim)


@method
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Selected:
    """The elements along `dim` in order, and their positions: (values, indices).

    Equal elements keep their order whatever `stable` says; NaN counts as the largest.
    """
    x = expect_tensor("sort", "input", input)
    at = dimension("sort", dim, x.ndim)
    if x.ndim == 0:
        return _of_scalar(input)
    index = _order(x, at, descending)
    return Selected(_pick(input, index, at), wrap(contiguous(index)))


@method
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The positions that sort `input` along `dim`; int64."""
    x = expect_tensor("argsort", "input", input)
    at = dimension("argsort", dim, x.ndim)
    if x.ndim == 0:
        return wrap(xp(input.array).zeros((), np.int64))
    return wrap(contiguous(_order(x, at, descending)))


@method
def msort(input: Tensor) -> Tensor:
    """`input` sorted along its first dimension."""
    return sort(input, 0).values


def _count(name: str, k: Any, low: int, size: int) -> int:
    try:
        count = operator.index(k)
    except TypeError:
        raise TypeError(f"{name}: k must be an int, got {type(k).__name__}") from None
    if not low <= count <= size:
        raise RuntimeError(f"{name}: k must be in [{low}, {size}], got {count}")
    return count


_SMALL = 64  # from here on, partitioning beats the kernel's insertion


def _topk_of_rows(x: Array, k: int, largest: bool) -> tuple[Array, Array]:
    shape = (*x.shape[:-1], k)
    values, index = empty(shape, x.dtype, x), empty(shape, np.dtype(np.int64), x)
    rows = math.prod(x.shape[:-1])
    kernels(x).topk(x, values, index, rows, x.shape[-1], k, largest)
    return values, index


@method
def topk(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Selected:
    """The k largest (or smallest) elements along `dim`, in order, and their positions.

    Of equal elements any may be chosen. Raises RuntimeError unless 0 <= k <= size.
    """
    x = expect_tensor("topk", "input", input)
    at = dimension("topk", dim, x.ndim)
    count = _count("topk", k, 0, x.shape[at] if x.ndim else 1)
    if x.ndim == 0:
        return _of_scalar(input)
    if x.dtype in (np.float32, np.float64) and 0 < count <= _SMALL:
        y, chosen = _topk_of_rows(contiguous(np.moveaxis(x, at, -1)), count, largest)
        y, chosen = (contiguous(np.moveaxis(a, -1, at)) for a in (y, chosen))
        return Selected(record(Pick, y, (input,), (chosen, at, x.shape)), wrap(chosen))
    keys, size = np.moveaxis(_keys(x), at, -1), x.shape[at]
    if 0 < count < size:
        cut = size - count if largest else count - 1
        parted = np.argpartition(keys, cut, axis=-1)
        chosen = parted[..., cut:] if largest else parted[..., :count]
    else:
        chosen = np.broadcast_to(np.arange(count), keys.shape[:-1] + (count,))
    order = _order(np.take_along_axis(keys, chosen, -1), keys.ndim - 1, largest)
    index = contiguous(np.moveaxis(np.take_along_axis(chosen, order, -1), -1, at))
    return Selected(_pick(input, index, at), wrap(index))


def _ranked(x: Array, rank: Array | int, dim: int) -> Array:
    """Position of the element of a rank (0: the smallest) per row, with size 1 along `dim`."""
    if isinstance(rank, int):
        return np.take(np.argpartition(_keys(x), rank, axis=dim), [rank], axis=dim)
    return np.take_along_axis(_order(x, dim, descending=False), rank, dim)


@method
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Selected:
    """The k-th smallest element along `dim` (k = 1: the smallest) and its position."""
    x = expect_tensor("kthvalue", "input", input)
    at = dimension("kthvalue", dim, x.ndim)
    rank = _count("kthvalue", k, 1, x.shape[at] if x.ndim else 1) - 1
    if x.ndim == 0:
        return _of_scalar(input)
    return _selected(input, _ranked(x, rank, at), at, keepdim)


def _median(name: str, input: Tensor, dim: int | None, keepdim: bool, skip_nan: bool) -> Any:
    x = expect_tensor(name, "input", input)
    if dim is None:
        if x.size == 0:
            if not is_floating(x.dtype):
                _no_elements(name)
            return wrap(np.full((), math.nan, x.dtype))
        return _median(name, reshape(input, (-1,)), 0, False, skip_nan).values
    at = dimension(name, dim, x.ndim)
    if x.ndim == 0:
        return _of_scalar(input)
    if x.shape[at] == 0:
        _no_elements(name)
    missing = _is_nan(x)
    if skip_nan:
        valid = x.shape[at] - missing.sum(axis=at, keepdims=True)
        index = _ranked(x, np.maximum(valid - 1, 0) // 2, at)
    else:
        index = _ranked(x, (x.shape[at] - 1) // 2, at)
        if missing.any():
            first = missing.argmax(axis=at, keepdims=True)
            index = np.where(missing.any(axis=at, keepdims=True), first, index)
    return _selected(input, index, at, keepdim)


def _no_elements(name: str) -> Any:
    raise IndexError(f"{name}: no elements to choose from")


@method
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The median, the lower one of an even number; NaN if there is a NaN. With `dim` also where."""
    return _median("median", input, dim, keepdim, skip_nan=False)


@method
def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """`median` of the elements that are not NaN."""
    return _median("nanmedian", input, dim, keepdim, skip_nan=True)


@method
@full_precision
@through_host
def quantile(
    input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear",
) -> Tensor:  # fmt: skip
    """The values below which fractions `q` (a number or 1-D tensor) of the elements lie.

    interpolation between the two nearest elements: linear, lower, higher, midpoint or nearest.
    Raises RuntimeError for q outside [0, 1] and for integer inputs.
    """
    x = expect_tensor("quantile", "input", input)
    if x.dtype not in (np.float32, np.float64):
        raise RuntimeError(f"quantile: input must be float32 or float64, got {x.dtype}")
    fractions = np.asarray(q.array if isinstance(q, TensorBase) else q, np.float64)
    if fractions.ndim > 1 or not ((fractions >= 0) & (fractions <= 1)).all():
        raise RuntimeError("quantile: q must be a number or a 1-D tensor of numbers in [0, 1]")
    if dim is None or x.ndim == 0:
        out = quantile(reshape(input, (-1,)), q, 0, interpolation=interpolation)
        return reshape(out, fractions.shape + (1,) * x.ndim) if keepdim else out
    at = dimension("quantile", dim, x.ndim)
    if x.shape[at] == 0:
        _no_elements("quantile")
    ordered = sort(input, at).values
    low, high, weight = _between(fractions.reshape(-1), x.shape[at], interpolation)
    shape = tuple(-1 if d == at else 1 for d in range(x.ndim))
    weights = wrap(weight.reshape(shape).astype(x.dtype))
    if isinstance(q, Tensor) and q._requires_grad and interpolation == "linear":
        position = q.reshape(-1).to(x.dtype) * (x.shape[at] - 1)
        weights = (position - wrap(low.astype(x.dtype))).reshape(shape)
    below, above = ordered.index_select(at, wrap(low)), ordered.index_select(at, wrap(high))
    result = add(below, mul(sub(above, below), weights))
    missing = np.isnan(x).any(axis=at, keepdims=True)
    if missing.any():
        result = where(wrap(missing), scalar_like(input, math.nan), result)
    result = result.movedim(at, 0)
    kept = x.shape[:at] + (1,) * keepdim + x.shape[at + 1 :]
    return reshape(result, fractions.shape + kept)


def _between(q: Array, size: int, interpolation: str) -> tuple[Array, Array, Array]:
    """The two ranks around each fraction and the weight of the upper one."""
    position = q * (size - 1)
    low, high = np.floor(position), np.ceil(position)
    weights = {
        "linear": position - low, "lower": np.zeros_like(q), "higher": np.ones_like(q),
        "midpoint": np.full_like(q, 0.5), "nearest": np.round(position) - low,
    }  # fmt: skip
    if interpolation not in weights:
        raise RuntimeError(
            f"quantile: interpolation must be one of {', '.join(weights)}, got {interpolation!r}"
        )
    return low.astype(np.int64), high.astype(np.int64), weights[interpolation]


@method
@through_host
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Selected:
    """The commonest element along `dim`, the smallest of equally common ones, and a position."""
    x = expect_tensor("mode", "input", input)
    at = dimension("mode", dim, x.ndim)
    if x.ndim == 0:
        return _of_scalar(input)
    if x.shape[at] == 0:
        _no_elements("mode")
    rows = np.moveaxis(_keys(x), at, -1)
    index = np.empty(rows.shape[:-1], np.int64)
    for row in np.ndindex(index.shape):
        values, counts = np.unique(rows[row], return_counts=True)
        index[row] = np.flatnonzero(rows[row] == values[counts.argmax()])[-1:].sum()
    return _selected(input, np.expand_dims(index, at), at, keepdim)


# ---- distinct elements ----


def _packed(parts: list[Array], wanted: tuple[bool, ...]) -> Any:
    """The first part alone, or a tuple with the wanted others."""
    chosen = parts[:1] + [p for p, w in zip(parts[1:], wanted, strict=True) if w]
    tensors = tuple(wrap(p) for p in chosen)
    return tensors if len(tensors) > 1 else tensors[0]


@method
def unique(
    input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False,
    dim: int | None = None,
) -> Any:  # fmt: skip
    """The distinct elements in order (or distinct slices along `dim`).

    Returns a Tensor, or a tuple with `inverse` (for each element its position among the distinct
    ones) and `counts` as asked for.
    """
    x = expect_tensor("unique", "input", input)
    axis = None if dim is None else dimension("unique", dim, x.ndim)
    values, inverse, counts = np.unique(
        _keys(x), return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    inverse = inverse.reshape(x.shape if axis is None else -1).astype(np.int64)
    parts = [values.astype(x.dtype, copy=False), inverse, counts.astype(np.int64)]
    return _packed(parts, (return_inverse, return_counts))


@method
@through_host
def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False,
    dim: int | None = None,
) -> Any:  # fmt: skip
    """One of every run of equal elements (or of equal slices along `dim`); returns as `unique`."""
    x = expect_tensor("unique_consecutive", "input", input)
    at = 0 if dim is None else dimension("unique_consecutive", dim, x.ndim)
    values = x.reshape(-1) if dim is None else x
    size = values.shape[at]
    rows = np.moveaxis(values, at, 0).reshape(size, -1) if values.size else np.zeros((size, 0))
    first = np.ones(size, np.bool_)
    first[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    inverse = np.cumsum(first, dtype=np.int64) - 1
    counts = np.diff(np.append(starts, size)).astype(np.int64)
    if dim is None:
        inverse = inverse.reshape(x.shape)
    return _packed([np.take(values, starts, at), inverse, counts], (return_inverse, return_counts))


@through_host
def isin(
    elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False
) -> Tensor:
    """For each element: does it occur in `test_elements`? One of the two may be a number."""
    a, b = (
        np.asarray(v.array if isinstance(v, TensorBase) else v) for v in (elements, test_elements)
    )
    found = np.isin(_keys(a), _keys(b), assume_unique=assume_unique, invert=invert)
    return wrap(np.asarray(found))


# ---- searching and counting ----


def _side(name: str, right: bool, side: str | None) -> Any:
    if side not in (None, "left", "right") or (side == "left" and right):
        raise RuntimeError(
            f"{name}: side must be 'left' or 'right' and agree with right={right}, got {side!r}"
        )
    return "right" if right or side == "right" else "left"


@through_host
def searchsorted(
    sorted_sequence: Tensor, input: Any, *, out_int32: bool = False, right: bool = False,
    side: str | None = None, sorter: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where to insert each element of `input` so that the last dimension stays in order.

    sorted_sequence: [n], or [..., n] with the leading sizes of `input` [..., m]. right: after equal
    elements instead of before them. sorter: positions that sort `sorted_sequence`. int64 (int32).
    """
    s = expect_tensor("searchsorted", "sorted_sequence", sorted_sequence)
    v = input.array if isinstance(input, TensorBase) else np.asarray(input)
    where_equal = _side("searchsorted", right, side)
    if s.ndim == 0 or (s.ndim > 1 and s.shape[:-1] != v.shape[:-1]):
        raise RuntimeError(
            f"searchsorted: sorted_sequence of shape {list(s.shape)} does not fit input of shape "
            f"{list(v.shape)}: expected one dimension, or the same leading sizes"
        )
    if sorter is not None:
        s = _apply_sorter(s, expect_tensor("searchsorted", "sorter", sorter))
    s, v = _keys(s), _keys(v)
    dtype = np.int32 if out_int32 else np.int64
    if s.ndim == 1:
        return wrap(np.asarray(np.searchsorted(s, v, where_equal), dtype))
    found = np.empty(v.shape, dtype)
    for row in np.ndindex(s.shape[:-1]):
        found[row] = np.searchsorted(s[row], v[row], where_equal)
    return wrap(found)


def _apply_sorter(s: Array, order: Array) -> Array:
    if order.shape != s.shape or order.dtype != np.int64:
        raise RuntimeError(
            f"searchsorted: sorter must be int64 of shape {list(s.shape)}, got {order.dtype} of "
            f"shape {list(order.shape)}"
        )
    if order.size and not (order.min() >= 0 and order.max() < s.shape[-1]):
        raise RuntimeError("searchsorted: sorter has positions outside sorted_sequence")
    return np.take_along_axis(s, order, -1)


def bucketize(
    input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Tensor:
    """For each element its bucket between the 1-D `boundaries`; see `searchsorted`."""
    if expect_tensor("bucketize", "boundaries", boundaries).ndim != 1:
        raise RuntimeError(f"bucketize: boundaries must be 1-D, got {boundaries.ndim} dimensions")
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


@method
@through_host
def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each of 0, 1, 2, ... occurs in the 1-D `input`; with weights: their sums."""
    x = expect_tensor("bincount", "input", input)
    if x.ndim != 1 or x.dtype.kind not in "iu" or (x.size and x.min() < 0):
        raise RuntimeError(
            f"bincount: input must be 1-D of integers >= 0, got dtype {x.dtype} and shape "
            f"{list(x.shape)}"
        )
    if minlength < 0:
        raise RuntimeError(f"bincount: minlength must not be negative, got {minlength}")
    if weights is None:
        return wrap(np.bincount(x, minlength=minlength).astype(np.int64))
    w = expect_tensor("bincount", "weights", weights)
    if w.shape != x.shape:
        raise RuntimeError(
            f"bincount: weights of shape {list(w.shape)} do not fit input of shape {list(x.shape)}"
        )
    dtype = np.float32 if w.dtype == np.float32 else np.float64
    sums = np.bincount(x, w.astype(np.float64), minlength)
    return wrap(sums.astype(dtype))


@method
@through_host
def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many elements fall in each of `bins` equal intervals of [min, max]; default: all.

    Elements outside and NaN are not counted. In the dtype of `input`, which is floating point.
    """
    x = expect_tensor("histc", "input", input)
    if not is_floating(x.dtype):
        raise RuntimeError(f"histc: input must be floating point, got {x.dtype}")
    if operator.index(bins) <= 0 or max < min:
        raise RuntimeError(f"histc: expected bins > 0 and min <= max, got {bins}, {min} and {max}")
    values = x.astype(np.float64).ravel()
    low, high = float(min), float(max)
    if low == high and values.size:
        low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 1, high + 1
    if not math.isfinite(high - low):
        raise RuntimeError(f"histc: the range [{low}, {high}] is not finite")
    counts, _ = np.histogram(values[~np.isnan(values)], bins, (low, high))
    return wrap(counts.astype(x.dtype))


# ---- running operations ----


def _running(name: str, input: Tensor, dim: int, dtype: Any) -> tuple[Tensor, int]:
    """The input, cast as asked for (integers to int64), and the dimension."""
    x = expect_tensor(name, "input", input)
    if dtype is not None:
        input = input.to(as_dtype(name, dtype))
    elif not is_floating(x.dtype):
        input = input.to(np.dtype(np.int64))
    return input, dimension(name, dim, x.ndim)


def _accumulate(ufunc: np.ufunc, x: Array, dim: int) -> Array:
    """Running values along `dim`, 16-bit floats in float32."""
    if x.ndim == 0:
        return np.array(x)
    if x.dtype.kind == "b":
        return np.asarray(ufunc.accumulate(x.astype(np.int64), axis=dim), np.bool_)
    work = x.astype(np.float32) if x.dtype.itemsize == 2 and is_floating(x.dtype) else x
    with np.errstate(all="ignore"):
        y: Array = ufunc.accumulate(work, axis=dim, dtype=work.dtype)
    return y.astype(x.dtype, copy=False)


class CumSum(Node):
    """The gradient sums up from the other end."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return _sum_from_end(grad, self.saved[0])


def _sum_from_end(x: Tensor, dim: int) -> Tensor:
    return flip(cumsum(flip(x, dim), dim), dim) if x.array.ndim else x


@method
def cumsum(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Running sums along `dim`; integers and bools give int64."""
    input, at = _running("cumsum", input, dim, dtype)
    return record(CumSum, _accumulate(np.add, input.array, at), (input,), (at,))


class CumProd(Node):
    """With s_i = g_i + x_{i+1} s_{i+1}, the gradient is x_1 ... x_{i-1} s_i: no division by x."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, y, dim = self.saved
        if x.array.size == 0 or x.array.ndim == 0:
            return grad
        if not grad_enabled() and (x.array != 0).all():
            return _sum_from_end(mul(grad, y), dim) / x
        size = x.array.shape[dim]
        steps = [narrow(grad, dim, size - 1, 1)]
        for i in range(size - 2, -1, -1):
            steps.append(add(narrow(grad, dim, i, 1), mul(narrow(x, dim, i + 1, 1), steps[-1])))
        one = wrap(np.ones_like(steps[0].array))
        before = cat([one, narrow(y, dim, 0, size - 1)], dim)
        return mul(before, cat(steps[::-1], dim))


@method
def cumprod(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Running products along `dim`; integers and bools give int64."""
    input, at = _running("cumprod", input, dim, dtype)
    y = _accumulate(np.multiply, input.array, at)
    return record(CumProd, y, (input,), (input, y, at))


class LogCumSumExp(Node):
    """dy_j / dx_i = exp(x_i - y_j) for i <= j."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, y, dim = self.saved
        if x.array.ndim == 0:
            return grad
        size = x.array.shape[dim]
        behind = (1,) * (x.array.ndim - dim - 1)
        lower = np.tri(size, dtype=np.bool_).T.reshape((size, size) + behind)
        ends = unsqueeze(y, dim)
        allowed = wrap(lower & np.isfinite(ends.array))
        zero, low = (scalar_like(y, v) for v in (0, -math.inf))
        exponent = sub(unsqueeze(x, dim + 1), where(allowed, ends, zero))
        slope = exp(where(allowed, exponent, low))
        return mul(slope, unsqueeze(grad, dim)).sum(dim + 1)


@method
@through_host
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """Running log of the sum of exponentials along `dim`, stable. Floating point only."""
    x = expect_tensor("logcumsumexp", "input", input)
    if not is_floating(x.dtype):
        raise RuntimeError(f"logcumsumexp: input must be floating point, got {x.dtype}")
    at = dimension("logcumsumexp", dim, x.ndim)
    y = _accumulate(np.logaddexp, x, at)
    return record(LogCumSumExp, y, (input,), (input, y, at))


def _running_extreme(name: str, ufunc: np.ufunc, input: Tensor, dim: int) -> Selected:
    x = expect_tensor(name, "input", input)
    at = dimension(name, dim, x.ndim)
    if x.ndim == 0:
        return _of_scalar(input)
    keys = _keys(x)
    reached = (keys == ufunc.accumulate(keys, axis=at)) | _is_nan(keys)
    shape = tuple(-1 if d == at else 1 for d in range(x.ndim))
    positions = np.where(reached, np.arange(x.shape[at]).reshape(shape), 0)
    indices = wrap(np.maximum.accumulate(positions, axis=at))
    return Selected(gather(input, at, indices), indices)


@method
@through_host
def cummax(input: Tensor, dim: int) -> Selected:
    """The largest element so far along `dim` and its position (the last of equals)."""
    return _running_extreme("cummax", np.maximum, input, dim)


@method
@through_host
def cummin(input: Tensor, dim: int) -> Selected:
    """The smallest element so far along `dim` and its position (the last of equals)."""
    return _running_extreme("cummin", np.minimum, input, dim)


@method
def diff(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The n-th differences of neighbours along `dim`; bools give whether neighbours differ."""
    x = expect_tensor("diff", "input", input)
    if x.ndim == 0:
        raise RuntimeError("diff: input must have at least 1 dimension")
    if operator.index(n) < 0:
        raise RuntimeError(f"diff: n must not be negative, got {n}")
    at = dimension("diff", dim, x.ndim)
    if n == 0:
        return input.clone()
    parts = [part for part in (prepend, input, append) if part is not None]
    result = cat(parts, at) if len(parts) > 1 else input
    for _ in range(n):
        size = max(result.array.shape[at] - 1, 0)
        later, earlier = narrow(result, at, min(1, size), size), narrow(result, at, 0, size)
        result = logical_xor(later, earlier) if x.dtype.kind == "b" else sub(later, earlier)
    return result
