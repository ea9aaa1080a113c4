"""Products of vectors, matrices and batches of them. Kernel: csrc/cpu/matmul.cpp.

One kernel does all of it: it takes any strides (a transpose is a view), broadcasts leading
dimensions and adds a bias. Every backward is again made of products, so these ops can be
differentiated any number of times. D2L sections 2.3 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _cpu
from .._cpu import Node, TensorBase, grad_enabled, record, wrap
from ..amp import STATE, lowered
from ..backend import (
    Array,
    allow_tf32,
    as_storage,
    bfloat16,
    contiguous,
    empty,
    is_on_cuda,
    kernels,
    readable,
)
from ..tensor import Tensor, expect_tensor, method
from .elementwise import add, mul, unbroadcast

__all__ = [
    "addmm", "addmv", "baddbmm", "bmm", "dot", "einsum", "get_float32_matmul_precision", "inner",
    "matmul", "mm", "mv", "outer", "set_float32_matmul_precision", "tensordot", "vdot",
]  # fmt: skip

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_DTYPES = (_FLOAT32, _FLOAT64, bfloat16)  # the kernel's
_NO_ACTIVATION = 0


# ---- precision ----

_precision = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """How a GPU reads the float32 operands of matrix products and convolutions.

    "highest", the default: with all their digits. "high" or "medium": rounded to TF32 (10 bits of
    mantissa) on tensor cores, several times as fast. The CPU always keeps all digits.
    """
    global _precision
    if precision not in ("highest", "high", "medium"):
        raise ValueError(
            "set_float32_matmul_precision: precision must be 'highest', 'high' or 'medium', got "
            f"{precision!r}"
        )
    _precision = precision
    allow_tf32(precision != "highest")


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` has set."""
    return _precision


# ---- arrays ----


def _multiply(a: Array, b: Array, bias: Array | None, y: Array, beta: float = 0.0) -> None:
    """Computes y = a @ b + bias + beta * y for arrays that fit."""
    kernel = kernels(a).matmul
    try:
        kernel(a, b, bias, y, _NO_ACTIVATION, beta)
    except TypeError:  # memory that the kernel refuses: unaligned, odd strides
        kernel(readable(a), readable(b), bias, y, _NO_ACTIVATION, beta)


def multiply_into(
    a: Array, b: Array, y: Array, bias: Array | None = None, beta: float = 0.0
) -> None:
    """Computes y = a @ b + bias + beta * y for float arrays that fit, y with dense rows."""
    _multiply(a, b, bias, y, beta)


def _output_shape(a: Array, b: Array) -> tuple[int, ...]:
    """The shape of a @ b; ValueError if they don't fit."""
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-1 if b.ndim == 1 else -2]:
        raise ValueError
    rows = a.shape[-2:-1]  # () for a vector
    columns = b.shape[-1:] if b.ndim > 1 else ()
    lead, other = a.shape[:-2], b.shape[:-2]
    if lead != other and other:
        lead = np.broadcast_shapes(lead, other)
    return lead + rows + columns


def _product(a: Array, b: Array) -> Array:
    """The product a @ b of float arrays that fit."""
    y = empty(_output_shape(a, b), a.dtype, a)
    _multiply(a, b, None, y)
    return y


def _product_2d(a: Array, b: Array) -> Array:
    y = _cpu.product(a, b)
    return _product(a, b) if y is NotImplemented else y


def _has_kernel(array: Array) -> bool:
    """Does the kernel of the array's device take its dtype? float16 is for CUDA."""
    return array.dtype in _DTYPES or (array.dtype == np.float16 and is_on_cuda(array))


def _shapes(*arrays: Array) -> str:
    return " and ".join(str(list(a.shape)) for a in arrays)


def _check_dtypes(name: str, *arrays: Array) -> None:
    """RuntimeError unless all dtypes are the same, TypeError unless the kernel has it."""
    first = arrays[0].dtype
    if any(a.dtype != first for a in arrays):
        found = ", ".join(str(a.dtype) for a in arrays)
        raise RuntimeError(f"{name}: all operands must have the same dtype, got {found}")
    if not _has_kernel(arrays[0]):
        raise TypeError(
            f"{name}: dtype {first} is not supported; expected float32, float64, bfloat16 or an "
            "integer"
        )


# ---- matmul ----


class Matmul(Node):
    """y = a @ b for operands of any number of dimensions."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = self.saved
        to_a, to_b = self.edges
        if grad_enabled() or a.array.ndim != 2 or b.array.ndim != 2:
            return (
                None if to_a is None else _gradient_left(grad, a, b),
                None if to_b is None else _gradient_right(grad, a, b),
            )
        g = grad.array
        return (
            None if to_a is None else wrap(_product_2d(g, b.array.T)),
            None if to_b is None else wrap(_product_2d(a.array.T, g)),
        )


def _as_matrices(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors among a and b as matrices, and `grad` with the dimensions that they now have."""
    if a.array.ndim == 1:
        a, grad = a.unsqueeze(0), grad.unsqueeze(-1 if b.array.ndim == 1 else -2)
    if b.array.ndim == 1:
        b, grad = b.unsqueeze(1), grad.unsqueeze(-1)
    return grad, a, b


def _gradient_left(grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
    g, left, right = _as_matrices(grad, a, b)
    product = matmul(g, right.transpose(-2, -1))
    result: Tensor = unbroadcast(product, left.array.shape).reshape(a.array.shape)
    return result


def _gradient_right(grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
    g, left, right = _as_matrices(grad, a, b)
    if right.array.ndim == 2 and left.array.ndim > 2:  # one product over the flattened batch
        left = left.flatten(0, -2)
        g = g.flatten(0, -2)
    product = matmul(left.transpose(-2, -1), g)
    result: Tensor = unbroadcast(product, right.array.shape).reshape(b.array.shape)
    return result


@method
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product ``input @ other``.

    Two vectors [K] give their dot product; a matrix and a vector the matrix-vector product;
    otherwise [..., M, K] times [..., K, N] gives [..., M, N] with the leading dimensions broadcast.
    float32, float64 and bfloat16 run on grebe's kernel, integers in NumPy; both operands must have
    the same dtype. bfloat16 is summed in float32 and rounded once. D2L section 2.3.

    Raises:
        RuntimeError: the shapes don't fit, or the dtypes differ.
        TypeError: an operand is no Tensor or has an unsupported dtype.
    """
    if STATE.active:
        input, other = lowered(input), lowered(other)
    if isinstance(input, TensorBase) and isinstance(other, TensorBase):
        y = _cpu.product(input.array, other.array)
        if y is not NotImplemented:
            result: Tensor = record(Matmul, y, (input, other), (input, other))
            return result
    return _matmul("matmul", input, other)


Tensor.__matmul__ = matmul  # type: ignore[method-assign]


def _matmul(name: str, input: Tensor, other: Tensor) -> Tensor:
    """The general case of `matmul`, with errors under the caller's name."""
    if STATE.active and name not in ("mv", "dot"):
        input, other = lowered(input), lowered(other)
    a, b = expect_tensor(name, "input", input), expect_tensor(name, "other", other)
    dtype = a.dtype
    known = dtype is b.dtype and _has_kernel(a)
    integers = not known and dtype == b.dtype and dtype.kind in "iu"
    if not known and not integers:
        _check_dtypes(name, a, b)
    try:
        _output_shape(a, b)
    except ValueError:
        raise RuntimeError(
            f"{name}: shapes {_shapes(a, b)} can't be multiplied: expected [..., M, K] and "
            "[..., K, N] (or a vector [K]) with the same K and leading dimensions that broadcast"
        ) from None
    y = as_storage(np.matmul(a, b)) if integers else _product(a, b)
    result: Tensor = record(Matmul, y, (input, other), (input, other))
    return result


def _expect_dims(name: str, argument: str, value: Any, ndim: int) -> None:
    array = expect_tensor(name, argument, value)
    if array.ndim != ndim:
        raise RuntimeError(
            f"{name}: {argument} must have {ndim} dimensions, got shape {list(array.shape)}"
        )


@method
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices, [M, K] and [K, N]; no broadcasting. See `matmul`."""
    _expect_dims("mm", "input", input, 2)
    _expect_dims("mm", "mat2", mat2, 2)
    return _matmul("mm", input, mat2)


@method
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """Products of corresponding matrices, [B, M, K] and [B, K, N]; no broadcasting.

    See `matmul`.
    """
    _expect_dims("bmm", "input", input, 3)
    _expect_dims("bmm", "mat2", mat2, 3)
    if input.array.shape[0] != mat2.array.shape[0]:
        raise RuntimeError(
            "bmm: input and mat2 must hold the same number of matrices, got shapes "
            f"{_shapes(input.array, mat2.array)}"
        )
    return _matmul("bmm", input, mat2)


@method
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix [M, K] and a vector [K]. See `matmul`."""
    _expect_dims("mv", "input", input, 2)
    _expect_dims("mv", "vec", vec, 1)
    return _matmul("mv", input, vec)


@method
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The dot product of two vectors [K]: a 0-d tensor. See `matmul`."""
    _expect_dims("dot", "input", input, 1)
    _expect_dims("dot", "tensor", tensor, 1)
    return _matmul("dot", input, tensor)


@method
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """The dot product of two vectors [K]; for real numbers the same as `dot`."""
    return dot(input, other)


@method
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The outer product of vectors [M] and [N]: ``y[i, j] = input[i] * vec2[j]``."""
    _expect_dims("outer", "input", input, 1)
    _expect_dims("outer", "vec2", vec2, 1)
    return mul(input.unsqueeze(1), vec2)


@method
def inner(input: Tensor, other: Tensor) -> Tensor:
    """Sums of products over the last dimensions: [..., K] and [*, K] give [..., *]."""
    a, b = expect_tensor("inner", "input", input), expect_tensor("inner", "other", other)
    if a.ndim == 0 or b.ndim == 0:
        return mul(input, other)
    if a.shape[-1] != b.shape[-1]:
        raise RuntimeError(f"inner: the last dimensions of {_shapes(a, b)} must be equal")
    return tensordot(input, other, dims=([-1], [-1]))


# ---- sums with products ----


class AddProduct(Node):
    """y = beta * input + a @ b, `input` broadcast to y."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, b, shape, beta = self.saved
        want_input, want_a, want_b = (edge is not None for edge in self.edges)
        return (
            unbroadcast(grad if beta == 1 else mul(grad, beta), shape) if want_input else None,
            _gradient_left(grad, a, b) if want_a else None,
            _gradient_right(grad, a, b) if want_b else None,
        )


def _add_product(
    name: str, input: Tensor, first: Tensor, second: Tensor, beta: float, alpha: float
) -> Tensor:
    """The sum beta * input + alpha * (first @ second); the caller has checked dimensions."""
    if STATE.active and name != "addmv":
        input, first, second = lowered(input), lowered(first), lowered(second)
    c, a, b = expect_tensor(name, "input", input), first.array, second.array
    if a.dtype.kind in "iu":
        return add(mul(input, beta), mul(_matmul(name, first, second), alpha))
    _check_dtypes(name, c, a, b)
    try:
        shape = _output_shape(a, b)
        if np.broadcast_shapes(shape, c.shape) != shape:
            raise ValueError
    except ValueError:
        raise RuntimeError(
            f"{name}: expected shapes that multiply, and an input that broadcasts to the product; "
            f"got input {list(c.shape)}, operands {_shapes(a, b)}"
        ) from None
    if alpha != 1:
        first = mul(first, alpha)
        a = first.array
    y = empty(shape, a.dtype, a)
    if beta == 1 and b.ndim > 1 and c.shape == shape[-1:]:
        _multiply(a, b, contiguous(c), y)
    else:
        if beta != 0:  # 0 ignores `input`, NaN included
            y[...] = c
        _multiply(a, b, None, y, float(beta))
    result: Tensor = record(AddProduct, y, (input, first, second), (first, second, c.shape, beta))
    return result


@method
def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """``beta * input + alpha * (mat1 @ mat2)``: [M, K] times [K, N], `input` broadcast to [M, N].

    With ``beta=0`` `input` is ignored, NaN in it too.

    Raises:
        RuntimeError: the shapes don't fit, or the dtypes differ.
        TypeError: an operand is no Tensor or has an unsupported dtype.
    """
    _expect_dims("addmm", "mat1", mat1, 2)
    _expect_dims("addmm", "mat2", mat2, 2)
    return _add_product("addmm", input, mat1, mat2, beta, alpha)


@method
def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * (mat @ vec)``: [M, K] times [K], `input` broadcast to [M].

    Raises: see `addmm`.
    """
    _expect_dims("addmv", "mat", mat, 2)
    _expect_dims("addmv", "vec", vec, 1)
    return _add_product("addmv", input, mat, vec, beta, alpha)


@method
def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """``beta * input + alpha * (batch1 @ batch2)``: [B, M, K] times [B, K, N].

    Raises: see `addmm`.
    """
    _expect_dims("baddbmm", "batch1", batch1, 3)
    _expect_dims("baddbmm", "batch2", batch2, 3)
    return _add_product("baddbmm", input, batch1, batch2, beta, alpha)


# ---- linear ----


class Linear(Node):
    """y = input @ weight^T + bias."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = self.saved
        want_x, want_weight, want_bias = (edge is not None for edge in self.edges)
        flat, rows = grad, x
        if x.array.ndim != 2:
            count = math.prod(x.array.shape[:-1])
            flat = grad.reshape(count, weight.array.shape[0])
            rows = x.reshape(count, weight.array.shape[1])
        dx = dweight = dbias = None
        if want_x:
            dx = matmul(grad, weight)
        if want_weight and grad_enabled():
            dweight = matmul(flat.transpose(0, 1), rows)
        elif want_weight:
            dweight = wrap(_product_2d(flat.array.T, rows.array))
        if want_bias:
            dbias = flat.sum(0)
        return dx, dweight, dbias


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``: the fully connected layer. D2L section 3.1.

    Args:
        input: [..., in_features], float32, float64 or bfloat16.
        weight: [out_features, in_features] (or [in_features]: then the last dimension of the
            result is gone), of the same dtype.
        bias: [out_features] (or a 0-d tensor where weight is a vector), or None.

    Returns:
        [..., out_features].

    Raises:
        RuntimeError: the shapes don't fit, or the dtypes differ.
        TypeError: an operand is no Tensor or has an unsupported dtype.
    """
    if STATE.active:
        input, weight, bias = lowered(input), lowered(weight), lowered(bias)
    x, w = expect_tensor("linear", "input", input), expect_tensor("linear", "weight", weight)
    b = None if bias is None else expect_tensor("linear", "bias", bias)
    if w.ndim == 1:
        product = _matmul("linear", input, weight)
        return product if bias is None else add(product, bias)
    shape = x.shape
    if w.ndim != 2 or not shape or shape[-1] != w.shape[1]:
        raise RuntimeError(
            "linear: expected input [..., in_features] and weight [out_features, in_features], "
            f"got {_shapes(x, w)}"
        )
    outputs = w.shape[0]
    dtype = x.dtype
    if not _has_kernel(x) or w.dtype is not dtype or (b is not None and b.dtype is not dtype):
        _check_dtypes("linear", *((x, w) if b is None else (x, w, b)))
    if b is not None:
        if b.shape != (outputs,):
            raise RuntimeError(
                f"linear: expected bias [{outputs}] for weight {list(w.shape)}, got {list(b.shape)}"
            )
        b = contiguous(b)
    y = kernels(input.array).empty((*shape[:-1], outputs), dtype)
    _multiply(x, w.T, b, y)
    result: Tensor = record(Linear, y, (input, weight, bias), (input, weight))
    return result


# ---- contractions ----


def _contracted(name: str, dims: Any, a: Array, b: Array) -> tuple[list[int], list[int]]:
    """The dimensions of a and of b over which to sum, none negative."""
    if isinstance(dims, (int, np.integer)):
        n = int(dims)
        if not 0 <= n <= min(a.ndim, b.ndim):
            raise RuntimeError(f"{name}: dims={n} is out of range for shapes {_shapes(a, b)}")
        return list(range(a.ndim - n, a.ndim)), list(range(n))
    try:
        left, right = ([d] if isinstance(d, int) else [int(i) for i in d] for d in dims)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: dims must be an int or two lists of ints, got {dims!r}") from None
    for which, array in ((left, a), (right, b)):
        if any(not -array.ndim <= d < array.ndim for d in which):
            raise IndexError(f"{name}: dims {which} are out of range for shape {list(array.shape)}")
    left, right = [d % a.ndim for d in left], [d % b.ndim for d in right]
    if len(left) != len(right) or len(set(left)) != len(left) or len(set(right)) != len(right):
        raise RuntimeError(f"{name}: dims must pair different dimensions, got {left} and {right}")
    return left, right


@method
def tensordot(
    a: Tensor, b: Tensor, dims: int | Sequence[Sequence[int]] | Sequence[int] = 2
) -> Tensor:
    """Sums products over pairs of dimensions of a and b.

    Args:
        a: one tensor.
        b: the other, of the same dtype.
        dims: how many last dimensions of a and first ones of b to sum over, or two lists: the
            dimensions of a and those of b that belong together.

    Returns:
        The dimensions of a that are left, then those of b.

    Raises:
        RuntimeError: sizes of paired dimensions differ, or dims do not pair up.
        IndexError: a dimension is out of range.
    """
    x, y = expect_tensor("tensordot", "a", a), expect_tensor("tensordot", "b", b)
    left, right = _contracted("tensordot", dims, x, y)
    for i, j in zip(left, right, strict=True):  # a size of 1 is broadcast
        if 1 in (x.shape[i], y.shape[j]) and x.shape[i] != y.shape[j]:
            a, b = (a, b.sum(j, keepdim=True)) if x.shape[i] == 1 else (a.sum(i, keepdim=True), b)
            x, y = a.array, b.array
    if [x.shape[d] for d in left] != [y.shape[d] for d in right]:
        raise RuntimeError(
            f"tensordot: shapes {_shapes(x, y)} differ in the dimensions {left} and {right}"
        )
    keep_a = [d for d in range(x.ndim) if d not in left]
    keep_b = [d for d in range(y.ndim) if d not in right]
    shape_a, shape_b = [x.shape[d] for d in keep_a], [y.shape[d] for d in keep_b]
    summed = math.prod(x.shape[d] for d in left)
    rows = a.permute(*keep_a, *left).reshape(math.prod(shape_a), summed)
    columns = b.permute(*right, *keep_b).reshape(summed, math.prod(shape_b))
    result: Tensor = _matmul("tensordot", rows, columns).reshape(*shape_a, *shape_b)
    return result


class _Labelled:
    """A tensor whose dimensions have labels: letters, and numbers for those of an ellipsis."""

    __slots__ = ("labels", "tensor")

    def __init__(self, tensor: Tensor, labels: list[str]) -> None:
        self.tensor, self.labels = tensor, labels

    def sizes(self) -> dict[str, int]:
        return dict(zip(self.labels, self.tensor.array.shape, strict=True))

    def take_diagonals(self, equation: str) -> None:
        """Repeated labels: keeps the diagonal, which `diagonal` puts last."""
        for label in dict.fromkeys(self.labels):
            while self.labels.count(label) > 1:
                first = self.labels.index(label)
                second = self.labels.index(label, first + 1)
                shape = self.tensor.array.shape
                if shape[first] != shape[second]:
                    raise RuntimeError(
                        f"einsum: equation {equation!r}: label {label!r} is repeated for sizes "
                        f"{shape[first]} and {shape[second]} of one operand"
                    )
                self.tensor = self.tensor.diagonal(0, first, second)
                del self.labels[second], self.labels[first]
                self.labels.append(label)

    def sum_all_but(self, keep: set[str]) -> None:
        dims = tuple(d for d, label in enumerate(self.labels) if label not in keep)
        if dims:
            self.tensor = self.tensor.sum(dims)
            self.labels = [label for label in self.labels if label in keep]

    def drop_ones(self, other: dict[str, int]) -> None:
        """Dimensions of size 1 that the other operand repeats: broadcasting."""
        for d in reversed(range(len(self.labels))):
            if self.tensor.array.shape[d] == 1 and other.get(self.labels[d], 1) != 1:
                self.tensor = self.tensor.squeeze(d)
                del self.labels[d]

    def arrange(self, labels: list[str]) -> Tensor:
        order = [self.labels.index(label) for label in labels]
        same = order == list(range(len(order)))
        result: Tensor = self.tensor if same else self.tensor.permute(*order)
        return result


def _contract_pair(a: _Labelled, b: _Labelled, keep: set[str]) -> _Labelled:
    """Multiplies a and b and sums over the labels not in `keep`: one batched product."""
    a_sizes, b_sizes = a.sizes(), b.sizes()
    a.drop_ones(b_sizes)
    b.drop_ones(a_sizes)
    a.sum_all_but(keep | set(b.labels))
    b.sum_all_but(keep | set(a.labels))
    sizes = {**a.sizes(), **b.sizes()}
    both = [label for label in a.labels if label in b.labels]
    batch = [label for label in both if label in keep]
    summed = [label for label in both if label not in keep]
    left = [label for label in a.labels if label not in both]
    right = [label for label in b.labels if label not in both]

    def count(labels: list[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    lead = [sizes[label] for label in batch]
    x = a.arrange(batch + left + summed).reshape(*lead, count(left), count(summed))
    y = b.arrange(batch + summed + right).reshape(*lead, count(summed), count(right))
    labels = batch + left + right
    product = _matmul("einsum", x, y).reshape(*(sizes[label] for label in labels))
    return _Labelled(product, labels)


def _split_term(equation: str, term: str, ellipsis: list[str]) -> list[str]:
    """The labels of one term, "..." replaced."""
    before, dots, after = term.partition("...")
    if not all(x.isalpha() and x.isascii() for x in before + after):
        raise RuntimeError(f"einsum: equation {equation!r}: bad labels {term!r}; expected letters")
    return [*before, *(ellipsis if dots else []), *after]


def _operand_labels(equation: str, term: str, array: Array) -> list[str]:
    """One label per dimension; those of an ellipsis are numbered from the right."""
    letters = len(term.replace("...", "", 1))
    extra = array.ndim - letters
    if extra < 0 or (extra > 0 and "..." not in term):
        raise RuntimeError(
            f"einsum: equation {equation!r}: {term!r} has {letters} labels for shape "
            f"{list(array.shape)}"
        )
    return _split_term(equation, term, [str(d) for d in range(extra - 1, -1, -1)])


def _parse_equation(equation: str, operands: Sequence[Tensor]) -> tuple[list[_Labelled], list[str]]:
    """The labelled operands and the labels of the output."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands):
        raise RuntimeError(
            f"einsum: equation {equation!r} has {len(terms)} operands, got {len(operands)}"
        )
    labelled = []
    for i, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        array = expect_tensor("einsum", f"operand {i}", operand)
        labelled.append(_Labelled(operand, _operand_labels(equation, term, array)))
    names = [label for operand in labelled for label in operand.labels]
    ellipsis = sorted({x for x in names if x.isdigit()}, key=int, reverse=True)
    if not arrow:
        return labelled, ellipsis + sorted(x for x in names if x.isalpha() and names.count(x) == 1)
    result = _split_term(equation, output, ellipsis)
    if len(set(result)) != len(result) or not set(result) <= set(names):
        raise RuntimeError(
            f"einsum: equation {equation!r}: output labels must differ and occur in an operand"
        )
    return labelled, result


def _check_sizes(equation: str, operands: list[_Labelled]) -> None:
    """RuntimeError where a label stands for two sizes, neither of them 1."""
    sizes: dict[str, int] = {}
    for operand in operands:
        for label, size in zip(operand.labels, operand.tensor.array.shape, strict=True):
            known = sizes.get(label, 1)
            if known != size and known != 1 and size != 1:
                raise RuntimeError(
                    f"einsum: equation {equation!r}: label {label!r} stands for sizes {known} and "
                    f"{size}; shapes {_shapes(*(o.tensor.array for o in operands))}"
                )
            sizes[label] = size if known == 1 else known


def einsum(equation: str, *operands: Any) -> Tensor:
    """Sums of products by Einstein's convention, such as ``einsum("bij,bjk->bik", a, b)``.

    Each operand's dimensions are named by letters; a letter that is missing after ``->`` is summed
    over, a letter repeated within an operand means its diagonal, ``...`` stands for dimensions that
    broadcast. Without ``->`` the output has the letters that occur once, in alphabetic order.
    Operands are contracted from left to right, each pair as one batched matrix product.

    Args:
        equation: the labels.
        operands: tensors of the same dtype (or one list of them).

    Raises:
        RuntimeError: the equation is malformed or does not fit the shapes.
        TypeError: an operand is no Tensor or has an unsupported dtype.
    """
    if not isinstance(equation, str):
        raise TypeError(f"einsum: equation must be a str, got {type(equation).__name__}")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    labelled, output = _parse_equation(equation, operands)
    _check_sizes(equation, labelled)
    for operand in labelled:
        operand.take_diagonals(equation)
    result = labelled[0]
    for i in range(1, len(labelled)):
        later = {label for operand in labelled[i + 1 :] for label in operand.labels}
        result = _contract_pair(result, labelled[i], later | set(output))
    result.sum_all_but(set(output))
    return result.arrange(output)
