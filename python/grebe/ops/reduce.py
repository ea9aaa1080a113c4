"""Reductions: sums, means, extrema, variances, norms. Kernels: csrc/cpu/reduce.cpp.

`dim` may be None (all), an int or several; `keepdim` keeps reduced dimensions with size 1.
D2L sections 2.3.6 and 2.3.10.
"""

from __future__ import annotations

import builtins
import math
from typing import Any, NamedTuple

import numpy as np

from .._cpu import Node, TensorBase, grad_enabled, record, wrap
from ..amp import full_precision
from ..backend import Array, as_storage, kernels, readable, xp
from ..backend import empty as empty_array
from ..dtypes import as_dtype, is_floating
from ..tensor import Tensor, expect_tensor, method
from .compare import where
from .elementwise import div, maximum, minimum, mul, sub, unbroadcast
from .shape import dimension, dimensions, reshape

__all__ = [
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "count_nonzero", "max", "mean",
    "min", "nanmean", "nansum", "prod", "std", "std_mean", "sum", "var", "var_mean",
]  # fmt: skip

_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)


class Extremes(NamedTuple):
    """Result of max, min and the like along a dimension."""

    values: Tensor
    indices: Tensor


# ---- shapes ----


def _axes(name: str, dim: Any, ndim: int) -> tuple[int, ...]:
    if type(dim) is int and -ndim <= dim < ndim:
        return (dim % ndim,)
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(ndim))
    return dimensions(name, dim, ndim) if ndim else (dimensions(name, dim, 0) and ())


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with reduced dimensions of size 1."""
    if len(axes) == 1:
        return (*shape[: axes[0]], 1, *shape[axes[0] + 1 :])
    return tuple(1 if d in axes else s for d, s in enumerate(shape))


def _dropped(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    if len(axes) == 1:
        return shape[: axes[0]] + shape[axes[0] + 1 :]
    return tuple(s for d, s in enumerate(shape) if d not in axes)


def reduced_float(name: str, x: Array, axes: tuple[int, ...], *params: float) -> Array:
    """Runs a kernel (In x, Out y, *params) into an array with x's dimensions; 16 bit in float32."""
    work = x if x.dtype in (_F32, _F64) else x.astype(np.float32)
    work = readable(work)
    y = empty_array(_kept(x.shape, axes), work.dtype, work)
    getattr(kernels(work), name)(work, y, *params)
    return y if y.dtype == x.dtype else y.astype(x.dtype)


# ---- sums ----


class Sum(Node):
    """The gradient is `scale` times grad, repeated over the reduced dimensions."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        shape, kept, scale = self.saved
        if scale != 1:
            grad = mul(grad, scale)
        if kept is not None:  # None: all dimensions were reduced to a 0-d result
            grad = reshape(grad, kept)
        return grad.expand(shape)


def _scaled_sum(name: str, input: Tensor, dim: Any, keepdim: bool, mean: bool) -> Tensor:
    x = input.array
    axes = _axes(name, dim, x.ndim)
    kept = _kept(x.shape, axes)
    scale = 1.0
    if mean:
        count = math.prod(x.shape[d] for d in axes)
        scale = 1.0 / count if count else math.nan
    y = reduced_float("reduce_sum", x, axes, scale)
    if not keepdim:
        y = y.reshape(_dropped(x.shape, axes))
    return record(Sum, y, (input,), (x.shape, kept, scale))


@method
def sum(
    input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, axis: Any = None,
    keepdims: bool = False,
) -> Tensor:  # fmt: skip
    """The sum over `dim` (default: all). bool and small integers are summed as int64."""
    x = expect_tensor("sum", "input", input)
    if dim is None and x.dtype is _F32 and dtype is axis is None and not keepdim and not keepdims:
        y = kernels(x).empty((), _F32)  # the commonest call, short
        kernels(x).reduce_sum(x, y, 1.0)
        return record(Sum, y, (input,), (x.shape, None, 1.0))
    if dtype is not None:
        input = input.to(as_dtype("sum", dtype))
        x = input.array
    if dim is None:
        dim = axis
    if not is_floating(x.dtype):
        axes = _axes("sum", dim, x.ndim)
        wanted = x.dtype if dtype is not None and x.dtype.kind != "b" else np.int64
        return wrap(as_storage(x.sum(axis=axes, keepdims=keepdim or keepdims, dtype=wanted)))
    return _scaled_sum("sum", input, dim, keepdim or keepdims, mean=False)


@method
def mean(
    input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, axis: Any = None,
    keepdims: bool = False,
) -> Tensor:  # fmt: skip
    """The mean over `dim` (default: all); NaN for no elements. Floating point only."""
    x = expect_tensor("mean", "input", input)
    if dtype is not None:
        input = input.to(as_dtype("mean", dtype))
        x = input.array
    if not is_floating(x.dtype):
        raise RuntimeError(f"mean: input must be floating point, got {x.dtype}; cast it first")
    return _scaled_sum("mean", input, axis if dim is None else dim, keepdim or keepdims, mean=True)


@method
def nansum(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """`sum` with NaN taken as 0."""
    x = expect_tensor("nansum", "input", input)
    return sum(where(wrap(np.isnan(x)), wrap(xp(x).zeros((), x.dtype)), input), dim, keepdim)


@method
def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """`mean` of the elements that are not NaN."""
    x = expect_tensor("nanmean", "input", input)
    valid = wrap((~np.isnan(x)).astype(x.dtype))
    return div(nansum(input, dim, keepdim), sum(valid, dim, keepdim))


@method
def sum_to_size(self: Tensor, *size: Any) -> Tensor:
    """Summed down to a shape that broadcasts to the tensor's."""
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
    try:
        fits = np.broadcast_shapes(self.array.shape, shape) == self.array.shape
    except ValueError:
        fits = False
    if not fits:
        raise RuntimeError(
            f"sum_to_size: shape {list(self.array.shape)} can't be summed to {list(shape)}"
        )
    return unbroadcast(self, shape)


class Prod(Node):
    """d prod / d x_i: the product of all others, exact also with zeros."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, y, dim = self.saved
        if not grad_enabled() and np.all(x.array != 0):
            return mul(grad, div(y, x))
        return mul(grad, _product_of_others(x, dim))


def _product_of_others(x: Tensor, dim: int) -> Tensor:
    """By prefix and suffix products, so that zeros need no division."""
    from .shape import cat

    n = x.array.shape[dim]
    parts = [x.narrow(dim, i, 1) for i in range(n)]
    one = wrap(np.ones_like(parts[0].array)) if n else x
    prefix, suffix = [one], [one]
    for i in range(n - 1):
        prefix.append(mul(prefix[-1], parts[i]))
        suffix.append(mul(suffix[-1], parts[n - 1 - i]))
    return cat([mul(a, b) for a, b in zip(prefix, reversed(suffix), strict=True)], dim) if n else x


@method
@full_precision
def prod(
    input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The product over all elements or one dimension."""
    x = expect_tensor("prod", "input", input)
    if dtype is not None:
        input = input.to(as_dtype("prod", dtype))
        x = input.array
    if not is_floating(x.dtype):
        wanted = x.dtype if dtype is not None else np.int64
        axis = None if dim is None else dimension("prod", dim, x.ndim)
        return wrap(as_storage(x.prod(axis=axis, keepdims=keepdim, dtype=wanted)))
    if dim is None:
        return prod(reshape(input, (-1,)), 0)
    at = dimension("prod", dim, x.ndim)
    if x.ndim == 0:
        return input.clone()
    y = x.prod(axis=at, keepdims=True)
    result = record(Prod, y, (input,), (input, y, at))
    return result if keepdim else reshape(result, _dropped(x.shape, (at,)))


# ---- extrema ----


class Chosen(Node):
    """One element chosen per row along `dim`: its gradient goes there."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        index, dim, shape = self.saved
        zeros = wrap(xp(grad.array).zeros(shape, grad.array.dtype))
        return zeros.scatter(dim, wrap(index), reshape(grad, index.shape))


class SharedExtreme(Node):
    """amax, amin: equal extremes share the gradient."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, extreme, axes = self.saved
        hits = (x.array == extreme.array).astype(x.array.dtype)
        share = wrap(hits / hits.sum(axis=axes, keepdims=True))
        return mul(share, reshape(grad, extreme.array.shape))


def _check_not_empty(name: str, x: Array, axes: tuple[int, ...]) -> None:
    if builtins.any(x.shape[d] == 0 for d in axes) or (x.size == 0 and not axes):
        raise IndexError(f"{name}: shape {list(x.shape)} has no elements to choose from")


def _index_of(x: Array, dim: int, largest: bool) -> Array:
    """First index of the extreme along `dim`, kept with size 1; NaN wins."""
    if x.ndim == 0:
        return xp(x).zeros((), np.int64)
    if x.dtype in (_F32, _F64):
        index = empty_array(_kept(x.shape, (dim,)), np.dtype(np.int64), x)
        kernels(x).argmax(readable(x), index, dim, largest)
        return index
    choose = np.argmax if largest else np.argmin
    wide = x.astype(np.float32) if x.dtype.kind == "V" else x
    return choose(wide, axis=dim, keepdims=True)


def _extreme(name: str, input: Tensor, dim: Any, keepdim: bool, largest: bool) -> Any:
    x = expect_tensor(name, "input", input)
    if dim is None:
        return _shared(name, input, None, False, largest)
    if isinstance(dim, TensorBase):
        return maximum(input, dim) if largest else minimum(input, dim)  # type: ignore[arg-type]
    at = dimension(name, dim, x.ndim)
    _check_not_empty(name, x, (at,) if x.ndim else ())
    index = _index_of(x, at, largest)
    y = np.take_along_axis(x, index, at) if x.ndim else x.copy()
    values: Tensor = record(Chosen, y, (input,), (index, at, x.shape)) if x.ndim else input.clone()
    indices = wrap(index)
    if not keepdim and x.ndim:
        shape = _dropped(x.shape, (at,))
        values, indices = reshape(values, shape), wrap(index.reshape(shape))
    return Extremes(values, indices)


def _shared(name: str, input: Tensor, dim: Any, keepdim: bool, largest: bool) -> Tensor:
    x = expect_tensor(name, "input", input)
    axes = _axes(name, dim, x.ndim)
    _check_not_empty(name, x, axes)
    if is_floating(x.dtype):
        y = reduced_float("reduce_max" if largest else "reduce_min", x, axes)
    else:
        y = as_storage((np.max if largest else np.min)(x, axis=axes, keepdims=True))
    extreme = wrap(y)
    result = record(SharedExtreme, y, (input,), (input, extreme, axes))
    return result if keepdim else reshape(result, _dropped(x.shape, axes))


@method
def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; with `dim` a pair (values, indices); with a Tensor `maximum`."""
    return _extreme("max", input, dim, keepdim, largest=True)


@method
def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; with `dim` a pair (values, indices); with a Tensor `minimum`."""
    return _extreme("min", input, dim, keepdim, largest=False)


@method
def amax(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """The largest elements over `dim`; equal ones share the gradient."""
    return _shared("amax", input, dim, keepdim, largest=True)


@method
def amin(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """The smallest elements over `dim`; equal ones share the gradient."""
    return _shared("amin", input, dim, keepdim, largest=False)


class MinMax(NamedTuple):
    """Result of `aminmax`."""

    min: Tensor
    max: Tensor


@method
def aminmax(input: Tensor, *, dim: Any = None, keepdim: bool = False) -> MinMax:
    """`amin` and `amax`."""
    dims = () if dim is None else dim
    return MinMax(amin(input, dims, keepdim), amax(input, dims, keepdim))


def _arg(name: str, input: Tensor, dim: Any, keepdim: bool, largest: bool) -> Tensor:
    x = expect_tensor(name, "input", input)
    if x.dtype.kind == "b":
        raise RuntimeError(f"{name}: bool tensors have no order; cast them first")
    if dim is None:
        _check_not_empty(name, x, tuple(range(x.ndim)))
        index = _index_of(x.reshape(-1), 0, largest)
        return wrap(index.reshape((1,) * x.ndim if keepdim else ()))
    at = dimension(name, dim, x.ndim)
    _check_not_empty(name, x, (at,) if x.ndim else ())
    index = _index_of(x, at, largest)
    return wrap(index if keepdim or not x.ndim else index.reshape(_dropped(x.shape, (at,))))


@method
def argmax(input: Tensor, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Tensor:
    """Index of the largest element (the first of equals), of all or along `dim`."""
    return _arg("argmax", input, axis if dim is None else dim, keepdim, largest=True)


@method
def argmin(input: Tensor, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Tensor:
    """Index of the smallest element (the first of equals), of all or along `dim`."""
    return _arg("argmin", input, axis if dim is None else dim, keepdim, largest=False)


# ---- spread ----


class Variance(Node):
    """d var / dx = 2 (x - mean) / (n - correction)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, axes, degrees, kept = self.saved
        centred = sub(x, mean(x, axes, True))
        return mul(mul(centred, reshape(grad, kept)), 2 / degrees if degrees else math.nan)


def _moments(
    name: str, input: Tensor, dim: Any, correction: float, keepdim: bool
) -> tuple[Tensor, Tensor]:
    x = expect_tensor(name, "input", input)
    if not is_floating(x.dtype):
        raise RuntimeError(f"{name}: input must be floating point, got {x.dtype}")
    axes = _axes(name, dim, x.ndim)
    count = math.prod(x.shape[d] for d in axes)
    work = x if x.dtype in (_F32, _F64) else x.astype(np.float32)
    kept = _kept(x.shape, axes)
    average, variance = empty_array(kept, work.dtype, work), empty_array(kept, work.dtype, work)
    kernels(work).reduce_moments(work, average, variance, float(correction))
    average, variance = average.astype(x.dtype, copy=False), variance.astype(x.dtype, copy=False)
    shape = kept if keepdim else _dropped(x.shape, axes)
    degrees = builtins.max(count - correction, 0)
    saved = (input, axes, degrees, kept)
    scale = 1.0 / count if count else math.nan
    return (
        record(Variance, variance.reshape(shape), (input,), saved),
        record(Sum, average.reshape(shape), (input,), (x.shape, kept, scale)),
    )


def _arguments(dim: Any, unbiased: Any, correction: Any) -> tuple[Any, float]:
    """`var(x, False)` means unbiased=False, as in PyTorch."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    return dim, correction


@method
def var(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *,
    correction: float | None = None,
) -> Tensor:  # fmt: skip
    """The variance over `dim`, divided by n - correction (default 1)."""
    dim, correction = _arguments(dim, unbiased, correction)
    return _moments("var", input, dim, correction, keepdim)[0]


@method
def std(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *,
    correction: float | None = None,
) -> Tensor:  # fmt: skip
    """The standard deviation: sqrt of `var`."""
    dim, correction = _arguments(dim, unbiased, correction)
    return _moments("std", input, dim, correction, keepdim)[0].sqrt()


@method
def var_mean(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`var` and `mean` in one pass over the data."""
    dim, correction = _arguments(dim, unbiased, correction)
    return _moments("var_mean", input, dim, correction, keepdim)


@method
def std_mean(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`std` and `mean` in one pass over the data."""
    variance, average = var_mean(input, dim, unbiased, keepdim, correction=correction)
    return variance.sqrt(), average


# ---- truth and counts ----


def _truth(name: str, ufunc: Any, input: Tensor, dim: Any, keepdim: bool) -> Tensor:
    x = expect_tensor(name, "input", input)
    return wrap(as_storage(ufunc(x, axis=_axes(name, dim, x.ndim), keepdims=keepdim)))


@method
def all(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Are all elements nonzero?"""
    return _truth("all", np.all, input, dim, keepdim)


@method
def any(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Is any element nonzero?"""
    return _truth("any", np.any, input, dim, keepdim)


@method
def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    """The number of nonzero elements."""
    x = expect_tensor("count_nonzero", "input", input)
    return wrap(as_storage(np.count_nonzero(x, axis=_axes("count_nonzero", dim, x.ndim))))
