"""Shapes, views, joining and splitting, copies and casts.

A view shares memory with its input and is tracked by `record_view`: a later in-place write to
either changes the history of both. D2L sections 2.1 and 2.3.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from .._cpu import Node, TensorBase, record, wrap
from ..autograd import record_many
from ..backend import cast as cast_array
from ..backend import contiguous as contiguous_array
from ..backend import copy as copy_array
from ..backend import empty as empty_array
from ..backend import expand as expand_array
from ..backend import is_on_cuda, load_cuda, on_host, pin, place, xp
from ..backend import is_pinned as is_pinned_array
from ..dtypes import as_dtype, is_floating, promote_types
from ..tensor import (
    Size,
    Tensor,
    assign,
    check_device,
    check_writable,
    expect_tensor,
    link_view,
    method,
    record_view,
)  # fmt: skip
from ..tensor import (
    device as device_type,
)

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "broadcast_to", "cat", "chunk",
    "clone", "column_stack", "concat", "concatenate", "detach", "diagonal", "dstack", "flatten",
    "flip", "fliplr", "flipud", "hstack", "moveaxis", "movedim", "narrow", "numel", "permute",
    "ravel", "repeat_interleave", "reshape", "roll", "rot90", "row_stack", "split", "squeeze",
    "stack", "swapaxes", "swapdims", "t", "tensor_split", "tile", "transpose", "unbind",
    "unflatten", "unsqueeze", "vstack",
]  # fmt: skip


# ---- checks ----


def dimension(name: str, dim: Any, ndim: int, argument: str = "dim") -> int:
    """`dim` counted from the front; TypeError or IndexError if it is no dimension of the tensor."""
    try:
        index = operator.index(dim)
    except TypeError:
        raise TypeError(f"{name}: {argument} must be an int, got {type(dim).__name__}") from None
    bound = max(ndim, 1)
    if not -bound <= index < bound:
        raise IndexError(
            f"{name}: {argument} out of range: expected {-bound} to {bound - 1}, got {index}"
        )
    return index % bound


def dimensions(name: str, dims: Any, ndim: int) -> tuple[int, ...]:
    """Several distinct dimensions counted from the front."""
    if isinstance(dims, (int, np.integer)):
        dims = (dims,)
    result = tuple(dimension(name, d, ndim) for d in dims)
    if len(set(result)) != len(result):
        raise RuntimeError(f"{name}: a dimension appears twice in {tuple(dims)}")
    return result


def _sizes(name: str, shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The sizes of ``f(2, 3)`` or ``f((2, 3))``; -1 allowed."""
    if len(shape) == 1 and not isinstance(shape[0], (int, np.integer, TensorBase)):
        shape = shape[0]
    try:
        return tuple(operator.index(s) for s in shape)
    except TypeError:
        raise TypeError(f"{name}: sizes must be integers, got {shape!r}") from None


def _resolve(name: str, sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """`sizes` with -1 replaced, for `count` elements."""
    unknown = [i for i, s in enumerate(sizes) if s == -1]
    if len(unknown) > 1 or any(s < -1 for s in sizes):
        raise RuntimeError(f"{name}: invalid shape {list(sizes)}: at most one -1, none below it")
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if unknown and known and count % known == 0:
        sizes = tuple(count // known if s == -1 else s for s in sizes)
    elif unknown or known != count:
        raise RuntimeError(f"{name}: shape {list(sizes)} does not fit {count} elements")
    return sizes


# ---- reshaping ----


class Reshape(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return reshape(grad, self.saved[0])


def _reshaped(name: str, input: Tensor, sizes: tuple[int, ...], view_only: bool) -> Tensor:
    x = expect_tensor(name, "input", input)
    y = x.reshape(_resolve(name, sizes, x.size))
    saved = (x.shape,)
    if np.may_share_memory(x, y) or x.size == 0:
        return record_view(Reshape, y, input, saved)
    if view_only:
        raise RuntimeError(
            f"{name}: shape {list(y.shape)} does not fit the strides of a tensor of shape "
            f"{list(x.shape)}; use reshape()"
        )
    return record(Reshape, y, (input,), saved)


@method
def reshape(input: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape: a view where strides allow it, else a copy. One size
    may be -1.
    """
    if len(shape) == 1 and type(shape[0]) is tuple and input.array.flags.c_contiguous:
        sizes = shape[0]
        if -1 not in sizes:  # the short way of the engine
            try:
                return record_view(Reshape, input.array.reshape(sizes), input, (input.array.shape,))
            except ValueError:
                pass
    return _reshaped("reshape", input, _sizes("reshape", shape), view_only=False)


@method
def view(self: Tensor, *shape: Any) -> Tensor:
    """A view in another shape; RuntimeError where strides don't allow it. A dtype reinterprets the
    bytes.
    """
    if len(shape) == 1 and isinstance(shape[0], (np.dtype, type)):
        return wrap(self.array.view(as_dtype("view", shape[0])))
    return _reshaped("view", self, _sizes("view", shape), view_only=True)


@method
def view_as(self: Tensor, other: Tensor) -> Tensor:
    """`view` in the shape of `other`."""
    return view(self, other.array.shape)


@method
def reshape_as(self: Tensor, other: Tensor) -> Tensor:
    """`reshape` to the shape of `other`."""
    return reshape(self, other.array.shape)


@method
def ravel(input: Tensor) -> Tensor:
    """All elements in one dimension."""
    expect_tensor("ravel", "input", input)
    return reshape(input, (-1,))


@method
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim to end_dim merged into one."""
    shape = expect_tensor("flatten", "input", input).shape
    if not shape:
        return reshape(input, (1,))
    start = dimension("flatten", start_dim, len(shape), "start_dim")
    end = dimension("flatten", end_dim, len(shape), "end_dim")
    if start > end:
        raise RuntimeError(f"flatten: start_dim {start} comes after end_dim {end}")
    merged = 1
    for size in shape[start : end + 1]:
        merged *= size
    return reshape(input, shape[:start] + (merged,) + shape[end + 1 :])


@method
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` split into `sizes`."""
    shape = expect_tensor("unflatten", "input", input).shape
    at = dimension("unflatten", dim, len(shape))
    return reshape(
        input, shape[:at] + _resolve("unflatten", tuple(sizes), shape[at]) + shape[at + 1 :]
    )


@method
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Without dimensions of size 1: all of them, or only those in `dim`."""
    shape = expect_tensor("squeeze", "input", input).shape
    wanted = range(len(shape)) if dim is None else dimensions("squeeze", dim, len(shape))
    kept = tuple(s for d, s in enumerate(shape) if s != 1 or d not in wanted)
    return _reshaped("squeeze", input, kept, view_only=False)


@method
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new dimension of size 1 at `dim`."""
    shape = expect_tensor("unsqueeze", "input", input).shape
    at = dimension("unsqueeze", dim, len(shape) + 1)
    return record_view(Reshape, np.expand_dims(input.array, at), input, (shape,))


# ---- the order of dimensions ----


class Permute(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        order = self.saved[0]
        return permute(grad, tuple(sorted(range(len(order)), key=order.__getitem__)))


@method
def permute(input: Tensor, *dims: Any) -> Tensor:
    """A view whose dimension i is dimension dims[i] of `input`."""
    x = expect_tensor("permute", "input", input)
    wanted = _sizes("permute", dims)
    if len(wanted) != x.ndim and not (x.ndim == 0 and wanted in ((0,), (-1,))):
        raise RuntimeError(f"permute: expected {x.ndim} dimensions, got {list(wanted)}")
    wanted = wanted[: x.ndim]
    order = dimensions("permute", wanted, x.ndim)
    return record_view(Permute, x.transpose(order), input, (order,))


@method
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """A view with two dimensions swapped."""
    x = expect_tensor("transpose", "input", input)
    order = list(range(x.ndim))
    a = dimension("transpose", dim0, x.ndim, "dim0")
    b = dimension("transpose", dim1, x.ndim, "dim1")
    if x.ndim:
        order[a], order[b] = order[b], order[a]
    return record_view(Permute, x.transpose(order), input, (tuple(order),))


@method
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and scalars as they are."""
    x = expect_tensor("t", "input", input)
    if x.ndim > 2:
        raise RuntimeError(f"t: expected at most 2 dimensions, got {x.ndim}")
    return record_view(Permute, x.T, input, ((1, 0),)) if x.ndim == 2 else input


@method
def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions `source` moved to positions `destination`, the others in order."""
    x = expect_tensor("movedim", "input", input)
    start, end = dimensions("movedim", source, x.ndim), dimensions("movedim", destination, x.ndim)
    if len(start) != len(end):
        raise RuntimeError(f"movedim: {len(start)} sources but {len(end)} destinations")
    rest = iter(d for d in range(x.ndim) if d not in start)
    place = dict(zip(end, start, strict=True))
    return permute(input, tuple(place[d] if d in place else next(rest) for d in range(x.ndim)))


def _matrix_transpose(self: Tensor) -> Tensor:
    if self.array.ndim < 2:
        raise RuntimeError(f"mT: expected at least 2 dimensions, got {self.array.ndim}")
    return transpose(self, -2, -1)


def _all_reversed(self: Tensor) -> Tensor:
    x = self.array
    return record_view(Permute, x.T, self, (tuple(range(x.ndim - 1, -1, -1)),))


Tensor.T = property(_all_reversed)  # type: ignore[attr-defined]
Tensor.mT = Tensor.H = property(_matrix_transpose)  # type: ignore[attr-defined]


# ---- repetition ----


class Expand(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        from .elementwise import unbroadcast

        return unbroadcast(grad, self.saved[0])


@method
def expand(self: Tensor, *sizes: Any) -> Tensor:
    """A view that repeats dimensions of size 1 (stride 0); -1 keeps a size."""
    wanted, shape = _sizes("expand", sizes), self.array.shape
    if -1 in wanted:
        lead = len(wanted) - len(shape)
        wanted = tuple(
            shape[i - lead] if s == -1 and i >= lead else s for i, s in enumerate(wanted)
        )
    try:
        y = expand_array(self.array, wanted)
    except ValueError:
        raise RuntimeError(
            f"expand: shape {list(shape)} can't be expanded to {list(wanted)}"
        ) from None
    return record_view(Expand, y, self, (shape,))


@method
def expand_as(self: Tensor, other: Tensor) -> Tensor:
    """`expand` to the shape of `other`."""
    return expand(self, other.array.shape)


@method
def broadcast_to(input: Tensor, size: Any) -> Tensor:
    """`expand` to `size`."""
    expect_tensor("broadcast_to", "input", input)
    return expand(input, tuple(size))


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors expanded to their common shape."""
    from .elementwise import check_broadcast

    arrays = [expect_tensor("broadcast_tensors", "tensors", x) for x in tensors]
    check_broadcast("broadcast_tensors", *arrays)
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    return tuple(expand(x, shape) for x in tensors)


@method
def repeat(self: Tensor, *repeats: Any) -> Tensor:
    """Copies of the tensor, repeats[i] times along dimension i."""
    counts = _sizes("repeat", repeats)
    if len(counts) < self.array.ndim or any(c < 0 for c in counts):
        raise RuntimeError(
            f"repeat: expected at least {self.array.ndim} counts, none negative, got {list(counts)}"
        )
    shape = (1,) * (len(counts) - self.array.ndim) + self.array.shape
    inner = tuple(x for s in shape for x in (1, s))
    outer = tuple(x for c, s in zip(counts, shape, strict=True) for x in (c, s))
    result = expand(reshape(self, inner), outer)
    return reshape(result, tuple(c * s for c, s in zip(counts, shape, strict=True)))


@method
def tile(input: Tensor, *dims: Any) -> Tensor:
    """`repeat` with missing leading counts taken as 1."""
    counts = _sizes("tile", dims)
    ndim = expect_tensor("tile", "input", input).ndim
    return repeat(input, (1,) * (ndim - len(counts)) + counts)


@method
def repeat_interleave(
    input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Each element (along `dim`; default: of the flattened tensor) repeated `repeats` times.

    output_size is accepted for compatibility; the size is computed anyway.
    """
    x = expect_tensor("repeat_interleave", "input", input)
    if dim is None:
        input, dim = reshape(input, (-1,)), 0
        x = input.array
    at = dimension("repeat_interleave", dim, x.ndim)
    counts = on_host(repeats.array) if isinstance(repeats, TensorBase) else np.asarray(repeats)
    if counts.dtype.kind not in "iu" or np.any(counts < 0):
        raise RuntimeError("repeat_interleave: repeats must be non-negative integers")
    if counts.size not in (1, x.shape[at]):
        raise RuntimeError(
            f"repeat_interleave: got {counts.size} repeats for {x.shape[at]} elements"
        )
    index = np.repeat(np.arange(x.shape[at]), counts.ravel() if counts.size > 1 else int(counts))
    return input.index_select(at, wrap(place(index, "cuda" if is_on_cuda(x) else "cpu")))


# ---- joining ----


class Cat(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        sizes, dim = self.saved
        result, start = [], 0
        for edge, size in zip(self.edges, sizes, strict=True):
            result.append(None if edge is None else narrow(grad, dim, start, size))
            start += size
        return tuple(result)


def _tensor_list(name: str, tensors: Any) -> list[Tensor]:
    items = list(tensors)
    if not items:
        raise RuntimeError(f"{name}: expected a non-empty sequence of tensors")
    for index, item in enumerate(items):
        expect_tensor(name, f"tensors[{index}]", item)
    dtype = items[0].array.dtype
    if any(i.array.dtype != dtype for i in items):
        for item in items:
            dtype = promote_types(dtype, item.array.dtype)
        items = [i.to(dtype) for i in items]
    return items


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one behind the other along `dim`; other sizes must be equal."""
    items = _tensor_list("cat", tensors)
    items = [i for i in items if i.array.shape != (0,)] or items[:1]
    arrays = [i.array for i in items]
    at = dimension("cat", dim, arrays[0].ndim)
    first = arrays[0].shape
    for index, array in enumerate(arrays):
        if (
            array.ndim != len(first)
            or array.shape[:at] + array.shape[at + 1 :] != first[:at] + first[at + 1 :]
        ):
            raise RuntimeError(
                f"cat: sizes must match except in dimension {at}: tensors[0] has shape "
                f"{list(first)}, tensors[{index}] {list(array.shape)}"
            )
    if not first:
        raise RuntimeError("cat: 0-d tensors can't be joined; use stack()")
    sizes = tuple(a.shape[at] for a in arrays)
    out = empty_array(first[:at] + (sum(sizes),) + first[at + 1 :], arrays[0].dtype, arrays[0])
    np.concatenate(arrays, axis=at, out=out)
    return record(Cat, out, tuple(items), (sizes, at))


concat = concatenate = cat


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new dimension `dim`."""
    items = _tensor_list("stack", tensors)
    at = dimension("stack", dim, items[0].array.ndim + 1)
    for index, item in enumerate(items):
        if item.array.shape != items[0].array.shape:
            raise RuntimeError(
                f"stack: shapes must be equal: tensors[0] has {list(items[0].shape)}, "
                f"tensors[{index}] {list(item.shape)}"
            )
    return cat([unsqueeze(i, at) for i in items], at)


def _each(name: str, function: Any, tensors: tuple[Any, ...]) -> Any:
    """`function` of one tensor, or a tuple of results for several."""
    if len(tensors) == 1 and isinstance(tensors[0], TensorBase):
        return function(tensors[0])
    items = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    for item in items:
        expect_tensor(name, "tensors", item)
    return tuple(function(x) for x in items)


def atleast_1d(*tensors: Any) -> Any:
    """The tensor (or each of several) with at least one dimension."""
    return _each("atleast_1d", lambda x: x if x.array.ndim else reshape(x, (1,)), tensors)


def atleast_2d(*tensors: Any) -> Any:
    """The tensor (or each of several) with at least two dimensions, new ones in front."""
    return _each(
        "atleast_2d", lambda x: x if x.array.ndim >= 2 else unsqueeze(atleast_1d(x), 0), tensors
    )


def atleast_3d(*tensors: Any) -> Any:
    """The tensor (or each of several) with at least three dimensions."""
    return _each(
        "atleast_3d", lambda x: x if x.array.ndim >= 3 else unsqueeze(atleast_2d(x), -1), tensors
    )


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along dimension 1 (0 for vectors)."""
    items = list(atleast_1d(list(tensors)))
    return cat(items, 0 if items and items[0].array.ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along dimension 0, vectors as rows."""
    return cat(atleast_2d(list(tensors)), 0)


row_stack = vstack


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along dimension 2."""
    return cat(atleast_3d(list(tensors)), 2)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Vectors as columns, joined along dimension 1."""
    columns = atleast_1d(list(tensors))
    return hstack([unsqueeze(x, 1) if x.array.ndim == 1 else x for x in columns])


# ---- splitting ----


def _library(grads: Sequence[Any]) -> Any:
    """What makes arrays where those of the gradients are that are not None."""
    return xp(next(g.array for g in grads if g is not None))


class Unbind(Node):
    __slots__ = ()

    def backward(self, *grads: Any) -> Any:
        dim, shape, dtype = self.saved
        lib = _library(grads)
        parts = [wrap(lib.zeros(shape, dtype)) if g is None else g for g in grads]
        return stack(parts, dim)


@method
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`, without that dimension."""
    x = expect_tensor("unbind", "input", input)
    if x.ndim == 0:
        raise RuntimeError("unbind: a 0-d tensor has no dimension to take apart")
    at = dimension("unbind", dim, x.ndim)
    lead = (slice(None),) * at
    arrays = [x[lead + (slice(i, i + 1),)].squeeze(at) for i in range(x.shape[at])]
    rest = x.shape[:at] + x.shape[at + 1 :]
    results = record_many(Unbind, arrays, (input,), (at, rest, x.dtype))
    return tuple(link_view(r, input) for r in results)


class Split(Node):
    __slots__ = ()

    def backward(self, *grads: Any) -> Any:
        dim, shapes, dtype = self.saved
        lib = _library(grads)
        parts = [
            wrap(lib.zeros(s, dtype)) if g is None else g
            for g, s in zip(grads, shapes, strict=True)
        ]
        return cat(parts, dim)


@method
def split(input: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces along `dim`: of one size (the last may be smaller), or of the listed sizes."""
    x = expect_tensor("split", "input", input)
    at = dimension("split", dim, x.ndim)
    total = x.shape[at] if x.ndim else 0
    if isinstance(split_size_or_sections, (int, np.integer)):
        size = int(split_size_or_sections)
        if size <= 0:
            raise RuntimeError(f"split: the size must be positive, got {size}")
        sections = [min(size, total - s) for s in range(0, total, size)] or [0]
    else:
        sections = [operator.index(s) for s in split_size_or_sections]
        if sum(sections) != total or any(s < 0 for s in sections):
            raise RuntimeError(f"split: sizes {sections} don't add up to {total} of dimension {at}")
    arrays, start = [], 0
    for size in sections:
        arrays.append(x[(slice(None),) * at + (slice(start, start + size),)])
        start += size
    shapes = tuple(a.shape for a in arrays)
    results = record_many(Split, arrays, (input,), (at, shapes, x.dtype))
    return tuple(link_view(r, input) for r in results)


@method
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` pieces of equal size along `dim`."""
    x = expect_tensor("chunk", "input", input)
    if chunks <= 0:
        raise RuntimeError(f"chunk: chunks must be positive, got {chunks}")
    total = x.shape[dimension("chunk", dim, x.ndim)]
    return split(input, max(1, -(-total // chunks)), dim)


@method
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Nearly equal pieces, or cut before the given indices."""
    x = expect_tensor("tensor_split", "input", input)
    total = x.shape[dimension("tensor_split", dim, x.ndim)]
    if isinstance(indices_or_sections, TensorBase):
        indices_or_sections = indices_or_sections.tolist()  # type: ignore[attr-defined]
    if isinstance(indices_or_sections, int):
        if indices_or_sections <= 0:
            raise RuntimeError(
                f"tensor_split: sections must be positive, got {indices_or_sections}"
            )
        base, extra = divmod(total, indices_or_sections)
        sections = [base + (i < extra) for i in range(indices_or_sections)]
    else:
        at = dimension("tensor_split", dim, x.ndim)
        cuts = [0, *(slice(i).indices(total)[1] for i in indices_or_sections), total]
        lead = (slice(None),) * at
        return tuple(slice_of(input, (*lead, slice(a, b))) for a, b in pairwise(cuts))
    return split(input, sections, dim)


# ---- parts ----


class Slice(Node):
    """A basic index; the gradient is zero outside it."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return embed(grad, *self.saved)


class Embed(Node):
    """Zeros of a shape with a tensor written at a basic index."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return slice_of(grad, self.saved[0])


def slice_of(input: Tensor, index: Any) -> Tensor:
    """input[index] for a checked basic index: a view."""
    y = input.array[index]
    if isinstance(y, np.generic):  # NumPy gives scalars for full integer indices
        y = input.array[tuple(slice(i, i + 1 or None) for i in index)].reshape(())
    return record_view(Slice, y, input, (index, input.array.shape))


def embed(grad: Tensor, index: Any, shape: tuple[int, ...]) -> Tensor:
    """Zeros of `shape` with `grad` at `index`."""
    y = empty_array(shape, grad.array.dtype, grad.array)
    y.fill(0)
    y[index] = grad.array
    return record(Embed, y, (grad,), (index,))


@method
def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """The view of `length` elements from `start` along `dim`."""
    x = expect_tensor("narrow", "input", input)
    at = dimension("narrow", dim, x.ndim)
    size = x.shape[at]
    first = int(start) + size if start < 0 else int(start)
    if first < 0 or length < 0 or first + length > size:
        raise RuntimeError(
            f"narrow: start {start} and length {length} exceed size {size} of dim {at}"
        )
    return slice_of(input, (slice(None),) * at + (slice(first, first + length),))


@method
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """The view of slice `index` along `dim`, without that dimension."""
    x = expect_tensor("select", "input", input)
    at = dimension("select", dim, x.ndim)
    if x.ndim == 0 or not -x.shape[at] <= index < x.shape[at]:
        raise IndexError(
            f"select: index {index} out of range for dimension {at} of {list(x.shape)}"
        )
    return slice_of(input, (slice(None),) * at + (int(index) % x.shape[at],))


class Diagonal(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        shape, offset, dim1, dim2 = self.saved
        base = wrap(xp(grad.array).zeros(shape, grad.array.dtype)).movedim((dim1, dim2), (-2, -1))
        n = grad.array.shape[-1]
        rows, columns = np.arange(n) + max(-offset, 0), np.arange(n) + max(offset, 0)
        filled = base.index_put((Ellipsis, wrap(rows), wrap(columns)), grad)
        return filled.movedim((-2, -1), (dim1, dim2))


@method
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The view of the diagonal of dimensions dim1 and dim2, as last dimension."""
    x = expect_tensor("diagonal", "input", input)
    a, b = dimensions("diagonal", (dim1, dim2), x.ndim)
    y = x.diagonal(offset, a, b)
    if input.array.flags.writeable:
        y.flags.writeable = True
    return record_view(Diagonal, y, input, (x.shape, offset, a, b))


class Flip(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return flip(grad, self.saved[0])


@method
def flip(input: Tensor, *axes: Any, dims: Any = None) -> Tensor:
    """A copy with the order of dimensions reversed: ``flip(x, (0, 1))`` or ``x.flip(0, 1)``."""
    x = expect_tensor("flip", "input", input)
    wanted = _sizes("flip", axes if dims is None else (dims,))
    axes = dimensions("flip", wanted, x.ndim)
    return record(Flip, np.flip(x, axes).copy(), (input,), (axes,))


def fliplr(input: Tensor) -> Tensor:
    """`flip` of dimension 1."""
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    """`flip` of dimension 0."""
    return flip(input, 0)


@method
def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Rotated by k quarter turns in the plane of `dims`."""
    a, b = dimensions("rot90", tuple(dims), expect_tensor("rot90", "input", input).ndim)
    turns = k % 4
    if turns == 0:
        return clone(input)
    if turns == 2:
        return flip(input, a, b)
    return flip(transpose(input, a, b), a) if turns == 1 else transpose(flip(input, a), a, b)


class Roll(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        shifts, dims = self.saved
        return roll(grad, tuple(-s for s in shifts), dims)


@method
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Elements shifted by `shifts` along `dims`, wrapping around; flattened without dims."""
    x = expect_tensor("roll", "input", input)
    moves = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if dims is None:
        return reshape(roll(reshape(input, (-1,)), moves, 0), x.shape)
    axes = tuple(dimension("roll", d, x.ndim) for d in ((dims,) if isinstance(dims, int) else dims))
    if len(axes) != len(moves):
        raise RuntimeError(f"roll: got {len(moves)} shifts for {len(axes)} dims")
    return record(Roll, np.roll(x, moves, axes), (input,), (moves, axes))


# ---- copies and casts ----


class Clone(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return grad


class Cast(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return grad.to(self.saved[0])


class Move(Node):
    """To another device; the gradient moves back."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return grad.to(self.saved[0])


@method
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy in the same memory format, with gradient."""
    x = expect_tensor("clone", "input", input)
    return record(Clone, copy_array(x), (input,), ())


@method
def contiguous(self: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor itself if it is C-contiguous, else such a copy."""
    if memory_format == "channels_last":
        return _channels_last(self)
    y = contiguous_array(self.array)
    return self if y is self.array else record(Clone, y, (self,), ())


def _channels_last(self: Tensor) -> Tensor:
    x = self.array
    if x.ndim != 4:
        raise RuntimeError(f"contiguous: channels_last needs 4 dimensions, got {x.ndim}")
    y = contiguous_array(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return self if y.strides == x.strides else record(Clone, y, (self,), ())


@method
def is_contiguous(self: Tensor, memory_format: Any = None) -> bool:
    """Do the strides run in C order (or channels-last)?"""
    x = self.array
    if memory_format == "channels_last":
        return x.ndim == 4 and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)
    return bool(x.flags.c_contiguous)


@method
def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Cast and moved: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``, ``to(other)``; with
    copy=True always a copy. non_blocking=True: from pinned memory the copy to the GPU may still be
    going on; what is done with the result waits for it.
    """
    dtype, where, copy = kwargs.get("dtype"), kwargs.get("device"), kwargs.get("copy", False)
    unknown = set(kwargs) - {"dtype", "device", "copy", "non_blocking", "memory_format"}
    if unknown:
        raise TypeError(f"to: unexpected argument {sorted(unknown)[0]!r}")
    flags: list[bool] = []  # by position: non_blocking, copy
    for arg in args:
        if isinstance(arg, Tensor):
            dtype, where = arg.dtype, arg.device
        elif isinstance(arg, device_type) or (
            isinstance(arg, str) and arg.partition(":")[0] in ("cpu", "cuda")
        ):
            where = arg
        elif isinstance(arg, bool):
            flags.append(arg)
        elif arg is not None:
            dtype = arg
    non_blocking = kwargs.get("non_blocking", bool(flags) and flags[0])
    copy = copy or (len(flags) > 1 and flags[1])
    x = self.array
    here = "cuda" if is_on_cuda(x) else "cpu"
    there = here if where is None else check_device("to", where)
    if there != here:
        self = record(Move, place(x, there, non_blocking), (self,), (here,))
        x, copy = self.array, False
    wanted = x.dtype if dtype is None else as_dtype("to", dtype)
    memory_format = kwargs.get("memory_format")
    if memory_format == "channels_last":
        self = _channels_last(self)
        x = self.array
    if x.dtype == wanted:
        return clone(self) if copy else self
    y = cast_array(x, wanted)
    if not is_floating(wanted):
        return wrap(y)
    return record(Cast, y, (self,), (x.dtype,))


def _define_cast(name: str, dtype: Any) -> None:
    def function(self: Tensor, memory_format: Any = None) -> Tensor:
        return to(self, dtype, memory_format=memory_format)

    function.__name__ = name
    function.__doc__ = f"The tensor as {np.dtype(dtype)}."
    method(function)


for _name, _dtype in (
    ("float", np.float32), ("double", np.float64), ("half", np.float16), ("int", np.int32),
    ("long", np.int64), ("short", np.int16), ("char", np.int8), ("byte", np.uint8),
    ("bool", np.bool_), ("bfloat16", as_dtype("bfloat16", __import__("ml_dtypes").bfloat16)),
):  # fmt: skip
    _define_cast(_name, _dtype)


def _type(self: Tensor, dtype: Any = None) -> Any:
    """The dtype's name, or the tensor cast to `dtype`."""
    return f"grebe.{self.dtype}" if dtype is None else to(self, dtype)


Tensor.type = _type  # type: ignore[attr-defined]


@method
def type_as(self: Tensor, other: Tensor) -> Tensor:
    """Cast to the dtype of `other`."""
    return to(self, other.array.dtype)


@method
def cpu(self: Tensor) -> Tensor:
    """The tensor on the CPU; itself if it is there."""
    return to(self, "cpu")


def through_host(function: F) -> F:
    """Decorator of what has no kernels on a GPU: its tensors come to the CPU, results go back.

    So do gradients. RuntimeError for tensors of both devices.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, TensorBase)]
        on_cuda = [is_on_cuda(t.array) for t in tensors]
        if not any(on_cuda):
            return function(*args, **kwargs)
        if not all(on_cuda):
            raise RuntimeError(
                f"{function.__name__}: expected all tensors on the same device, got cuda:0 and cpu"
            )

        def moved(value: Any, device: str) -> Any:
            return to(value, device) if isinstance(value, Tensor) else value

        here = [moved(a, "cpu") for a in args]
        result = function(*here, **{name: moved(a, "cpu") for name, a in kwargs.items()})
        if not isinstance(result, tuple):
            return moved(result, "cuda")
        parts = [moved(r, "cuda") for r in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)

    return run  # type: ignore[return-value]


@method
def cuda(self: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
    """The tensor on a GPU; RuntimeError where there is none."""
    return to(self, "cuda" if device is None else device, non_blocking=non_blocking)


def detach(input: Tensor) -> Tensor:
    """`Tensor.detach` as a function."""
    expect_tensor("detach", "input", input)
    return input.detach()


# ---- facts ----


@method
def size(self: Tensor, dim: int | None = None) -> Any:
    """The shape, or the size of one dimension."""
    if dim is None:
        return Size(self.array.shape)
    if self.array.ndim == 0:
        raise IndexError("size: a 0-d tensor has no dimensions")
    return self.array.shape[dimension("size", dim, self.array.ndim)]


@method
def numel(input: Tensor) -> int:
    """The number of elements."""
    return int(expect_tensor("numel", "input", input).size)


@method
def dim(self: Tensor) -> int:
    """The number of dimensions."""
    return int(self.array.ndim)


@method
def stride(self: Tensor, dim: int | None = None) -> Any:
    """The strides in elements, or that of one dimension."""
    strides = tuple(s // self.array.itemsize for s in self.array.strides)
    return strides if dim is None else strides[dimension("stride", dim, self.array.ndim)]


@method
def element_size(self: Tensor) -> int:
    """Bytes of one element."""
    return int(self.array.itemsize)


@method
def data_ptr(self: Tensor) -> int:
    """The address of the first element."""
    return int(self.array.__array_interface__["data"][0])


@method
def is_floating_point(self: Tensor) -> bool:
    """Is the dtype a floating point one?"""
    return is_floating(self.array.dtype)


@method
def storage_offset(self: Tensor) -> int:
    """Elements between the start of the viewed tensor's memory and this one's first element."""
    if self._base is None:
        return 0
    return (data_ptr(self) - data_ptr(self._base)) // int(self.array.itemsize)


@method
def is_pinned(self: Tensor) -> bool:
    """Is this memory of the CPU page-locked?"""
    return is_pinned_array(self.array)


@method
def pin_memory(self: Tensor) -> Tensor:
    """The tensor in page-locked memory, from which copies to the GPU need nobody's help.

    Without a GPU, or for a tensor that is there already, the tensor itself.
    """
    if is_on_cuda(self.array):
        raise RuntimeError("pin_memory: expected a tensor on the CPU, got one on cuda")
    if load_cuda() or is_pinned_array(self.array):
        return self
    return wrap(pin(self.array))


# ---- writes ----


@method
def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Writes `src`, broadcast and cast, into this tensor."""
    source = src if isinstance(src, Tensor) else wrap(np.asarray(src)).to(self.device)
    try:
        value = expand(source, self.array.shape)
    except RuntimeError:
        raise RuntimeError(
            f"copy_: shape {list(source.shape)} can't be broadcast to {list(self.shape)}"
        ) from None
    if value.array.dtype != self.array.dtype:
        value = to(value, self.array.dtype)
    if value.device != self.device:
        value = to(value, self.device)
    elif np.may_share_memory(value.array, self.array):
        value = clone(value)
    return assign("copy_", self, record(Clone, value.array, (value,), ()))


@method
def fill_(self: Tensor, value: Any) -> Tensor:
    """Writes one number everywhere."""
    source = value if isinstance(value, Tensor) else wrap(np.asarray(value)).to(self.device)
    if source.array.size != 1:
        raise RuntimeError(f"fill_: expected a single value, got shape {list(source.shape)}")
    return copy_(self, reshape(source, ()))


@method
def zero_(self: Tensor) -> Tensor:
    """Writes zeros."""
    check_writable("zero_", self)
    return fill_(self, 0)


swapaxes = swapdims = transpose
moveaxis = movedim
for _alias, _function in {"swapaxes": transpose, "swapdims": transpose, "moveaxis": movedim,
                          "nelement": numel, "ndimension": dim}.items():  # fmt: skip
    setattr(Tensor, _alias, _function)
