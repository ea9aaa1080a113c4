"""Lookup of rows: embedding and bags of embeddings. Kernels: csrc/cpu/embedding.cpp. D2L 15.4.

Two linear maps, each the other's transpose: `gather_rows` copies rows, `sum_rows` adds rows up. All
gradients, of any order, are made of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import Node, record, wrap
from ..autograd import no_grad
from ..backend import (
    Array,
    contiguous,
    empty,
    is_capturing,
    is_on_cuda,
    kernels,
    like,
    on_host,
    xp,
)
from ..tensor import Tensor, expect_tensor
from .compare import where
from .elementwise import mul
from .indexing import _take

__all__: list[str] = []  # PyTorch has these names in nn.functional

_KERNEL_DTYPES = (np.float32, np.float64)
MODES = ("sum", "mean", "max")


# ---- checks ----


def indices(name: str, input: Any, argument: str = "input") -> Array:
    """The array of `input`, which must hold integers."""
    array = expect_tensor(name, argument, input)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: {argument} must hold integers, got {array.dtype}")
    return array


def check_range(name: str, index: Array, count: int) -> None:
    """IndexError unless all of `index` lie in 0 ... count - 1."""
    if index.size == 0 or (is_on_cuda(index) and is_capturing()):  # then the kernels write NaN
        return
    if index.dtype == np.int64 and index.flags.c_contiguous:
        if index.view(np.uint64).max() < count:  # negative numbers are the largest
            return
    elif index.min() >= 0 and index.max() < count:
        return
    wrong = index[(index < 0) | (index >= count)].flat[0]
    raise IndexError(f"{name}: index {wrong} is out of range, expected 0 to {count - 1}")


def _table(name: str, weight: Any) -> Array:
    table = expect_tensor(name, "weight", weight)
    if table.ndim != 2:
        raise RuntimeError(f"{name}: weight must have 2 dims, got shape {list(table.shape)}")
    return table


def _padding(name: str, padding_idx: int | None, count: int) -> int:
    """The number of the padding row, -1 if there is none."""
    if padding_idx is None:
        return -1
    if not -count <= padding_idx < count:
        raise IndexError(f"{name}: padding_idx {padding_idx} is out of range for {count} rows")
    return padding_idx % count


def _limit_norms(weight: Tensor, index: Array, max_norm: float, norm_type: float) -> None:
    """Rescales the rows of `weight` that are looked up to at most max_norm, in place."""
    rows = np.unique(index)
    with no_grad():
        values = weight.array[rows]
        norms = np.linalg.norm(values, norm_type, axis=1, keepdims=True)
        factors = np.where(norms > max_norm, max_norm / (norms + 1e-7), 1)
        weight[wrap(rows)] = wrap((values * factors).astype(values.dtype))


# ---- the two maps ----


class GatherRows(Node):
    """y[k] = x[index[k]]: dx[r] is the sum of factor[k] dy[k] over k with target[k] = r."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        index, padding, by_frequency, rows = self.saved
        target = index.array.reshape(-1)
        factor = _inverse_counts(target, rows, grad.array.dtype) if by_frequency else None
        if padding >= 0:
            target = np.where(target == padding, -1, target)
        return sum_rows(grad.reshape(target.size, grad.array.shape[-1]), None, target, factor, rows)


class SumRows(Node):
    """y[target[k]] += factor[k] x[source[k]]: dx[source[k]] += back[k] dy[target[k]]."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        source, target, back, rows = self.saved
        to = xp(target).arange(target.size) if source is None else source
        return sum_rows(grad, target, np.where(target < 0, -1, to), back, rows)


def _inverse_counts(index: Array, rows: int, dtype: np.dtype[Any]) -> Array:
    """One over how often index[k] occurs in `index`, for every k."""
    counts = np.bincount(index, minlength=rows)
    return (1 / np.maximum(counts, 1)).astype(dtype)[index]


def gather_rows(input: Tensor, index: Tensor, padding: int, by_frequency: bool) -> Tensor:
    """input[index] for an int64 index in range; the options concern the gradient."""
    x, rows = contiguous(input.array), contiguous(index.array)
    y = empty((*rows.shape, x.shape[1]), x.dtype, x)
    kernels(x).gather_rows(x, rows, y)
    return record(GatherRows, y, (input,), (index, padding, by_frequency, x.shape[0]))


def sum_rows(
    input: Tensor,
    source: Array | None,
    target: Array,
    factor: Array | None,
    rows: int,
    back: Array | None = None,
) -> Tensor:
    """y [rows, D] with y[target[k]] += factor[k] input[source[k]]; negative targets don't count.

    `source` None stands for 0, 1, 2, ..., `factor` None for ones. `back` takes the place of
    `factor` in the gradient.
    """
    x = contiguous(input.array)
    y = empty((rows, x.shape[1]), x.dtype, x)
    kernels(x).sum_rows(
        x,
        None if source is None else contiguous(source),
        contiguous(target),
        None if factor is None else contiguous(factor),
        y,
    )
    saved = (source, target, factor if back is None else back, x.shape[0])
    return record(SumRows, y, (input,), saved)


# ---- the functions ----


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """y[..., :] = weight[input[...], :] for weight [N, D]. D2L section 15.4.

    Args:
        input: integers of any shape [*].
        weight: table [N, D].
        padding_idx: this row gets no gradient.
        max_norm: rows looked up are first rescaled, in place, to at most this norm.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide a row's gradient by its number of lookups.
        sparse: not supported.

    Returns:
        Tensor [*, D] of the table's dtype.

    Raises:
        IndexError: an index outside 0 ... N - 1.
        TypeError: `input` does not hold integers.
        RuntimeError: `weight` is not 2-D.
    """
    index = indices("embedding", input)
    table = _table("embedding", weight)
    if sparse:
        raise NotImplementedError("embedding: sparse gradients are not supported")
    check_range("embedding", index, table.shape[0])
    padding = _padding("embedding", padding_idx, table.shape[0])
    if max_norm is not None:
        _limit_norms(weight, index, max_norm, norm_type)
    if table.dtype not in _KERNEL_DTYPES:
        if padding >= 0 or scale_grad_by_freq:
            y = embedding(input, weight.to(np.float32), padding, None, 2.0, scale_grad_by_freq)
            return y.to(table.dtype)
        return _take(weight, (index,))
    if index.dtype != np.int64:
        input = wrap(index.astype(np.int64))
    return gather_rows(weight, input, padding, scale_grad_by_freq)


def _bags(
    name: str, index: Array, offsets: Tensor | None, include_last_offset: bool
) -> tuple[Array, Array]:
    """The flat indices, and where each bag starts and the last one ends [B + 1]."""
    if index.ndim == 2:
        if offsets is not None:
            raise ValueError(f"{name}: offsets must be None for a 2-D input, whose rows are bags")
        return index.reshape(-1), xp(index).arange(index.shape[0] + 1) * index.shape[1]
    if index.ndim != 1:
        raise ValueError(f"{name}: input must be 1-D or 2-D, got shape {list(index.shape)}")
    if offsets is None:
        raise ValueError(f"{name}: offsets must be given for a 1-D input")
    starts = indices(name, offsets, "offsets").astype(np.int64, copy=False)
    if starts.ndim != 1:
        raise ValueError(f"{name}: offsets must be 1-D, got shape {list(starts.shape)}")
    if include_last_offset and starts.size == 0:
        raise ValueError(f"{name}: include_last_offset=True needs at least one offset, got none")
    bounds = starts if include_last_offset else np.append(starts, index.size)
    if bounds[0] != 0 or bounds[-1] > index.size or (np.diff(bounds) < 0).any():
        raise ValueError(
            f"{name}: offsets must start at 0, not decrease and end at most at {index.size}, got "
            f"{starts.tolist()}"
        )
    return index[: bounds[-1]], bounds


def _largest(weight: Tensor, index: Array, bounds: Array, padding: int) -> Tensor:
    """The largest element per bag and column; 0 for bags without any."""
    x = contiguous(weight.array)
    arg: Array = empty((bounds.size - 1, x.shape[1]), np.dtype(np.int64), x)
    kernels(x).bag_argmax(x, index, contiguous(bounds), arg, padding)
    found = arg >= 0
    if x.shape[0] == 0:
        return wrap(xp(x).zeros(arg.shape, x.dtype))
    columns = np.broadcast_to(xp(x).arange(x.shape[1]), arg.shape)
    return where(wrap(found), _take(weight, (np.where(found, arg, 0), columns)), 0.0)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima over bags of rows of `weight`, without the rows in between.

    Args:
        input: integers [B, L], a bag per row, or [n] with `offsets`.
        weight: table [N, D].
        offsets: where each bag starts in a 1-D input.
        max_norm: as for `embedding`.
        norm_type: as for `embedding`.
        scale_grad_by_freq: as for `embedding`; not for "max".
        mode: "sum", "mean" or "max".
        sparse: not supported.
        per_sample_weights: factors of the rows, of the shape of `input`; only for "sum".
        include_last_offset: the last offset is the end of the last bag.
        padding_idx: indices that do not count, nor get a gradient.

    Returns:
        Tensor [B, D]; zeros for an empty bag.

    Raises:
        IndexError: an index outside 0 ... N - 1.
        TypeError: `input` or `offsets` do not hold integers; `weight` is not float32 or float64.
        ValueError: wrong shapes, offsets or mode.
    """
    name = "embedding_bag"
    table = _table(name, weight)
    if sparse:
        raise NotImplementedError(f"{name}: sparse gradients are not supported")
    if mode not in MODES:
        raise ValueError(f"{name}: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if table.dtype not in _KERNEL_DTYPES:
        raise TypeError(f"{name}: weight must be float32 or float64, got {table.dtype}")
    raw = indices(name, input)
    factors = _sample_weights(name, per_sample_weights, raw.shape, table.dtype, mode)
    index, bounds = _bags(name, raw, offsets, include_last_offset)
    index = contiguous(index.astype(np.int64, copy=False))
    check_range(name, index, table.shape[0])
    padding = _padding(name, padding_idx, table.shape[0])
    if max_norm is not None:
        _limit_norms(weight, index, max_norm, norm_type)
    if mode == "max":
        if scale_grad_by_freq:
            raise ValueError(f"{name}: scale_grad_by_freq is not supported for mode 'max'")
        return _largest(weight, index, bounds, padding)
    count = bounds.size - 1
    bag = like(np.repeat(np.arange(count), np.diff(on_host(bounds))), index)
    if padding >= 0:
        bag = np.where(index == padding, -1, bag)
    if factors is not None:
        factors = factors.reshape(-1)[: index.size]
        rows = gather_rows(weight, wrap(index), padding, scale_grad_by_freq)
        return sum_rows(mul(rows, factors.unsqueeze(1)), None, bag, None, count)
    factor = None
    if mode == "mean":
        sizes = np.bincount(bag[bag >= 0], minlength=count)
        factor = (1 / np.maximum(sizes, 1)).astype(table.dtype)[bag]
    back = None
    if scale_grad_by_freq:
        back = _inverse_counts(index, table.shape[0], table.dtype)
        back = back if factor is None else back * factor
    return sum_rows(weight, index, bag, factor, count, back)


def _sample_weights(
    name: str, weights: Tensor | None, shape: tuple[int, ...], dtype: np.dtype[Any], mode: str
) -> Tensor | None:
    if weights is None:
        return None
    array = expect_tensor(name, "per_sample_weights", weights)
    if mode != "sum":
        raise NotImplementedError(f"{name}: per_sample_weights need mode 'sum', got {mode!r}")
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{name}: per_sample_weights must have shape {list(shape)} and dtype {dtype}, got "
            f"{list(array.shape)} and {array.dtype}"
        )
    return weights
