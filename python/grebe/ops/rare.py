"""Elementwise functions left to NumPy: powers, and what networks rarely need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._cpu import Node, TensorBase, record, wrap
from ..backend import as_storage
from ..dtypes import get_default_dtype, is_floating, result_dtype
from ..tensor import Tensor, expect_tensor, method
from .compare import eq, where
from .elementwise import (
    Number,
    add,
    cast,
    check_broadcast,
    clamp,
    cos,
    div,
    erf,
    exp,
    log,
    log1p,
    maximum,
    mul,
    named,
    neg,
    operand,
    reciprocal,
    rsqrt,
    scalar_like,
    sqrt,
    square,
    sub,
    unbroadcast,
)

__all__ = [
    "acos",
    "acosh",
    "addcdiv",
    "addcmul",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cosh",
    "deg2rad",
    "erfc",
    "exp2",
    "heaviside",
    "hypot",
    "lerp",
    "log10",
    "logaddexp",
    "logit",
    "nan_to_num",
    "pow",
    "rad2deg",
    "sinh",
    "tan",
    "xlogy",
]  # fmt: skip


# ---- one operand ----


class Derived(Node):
    """y = f(x) by NumPy; saved: x and the function of Tensors that gives dy/dx."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, derivative = self.saved
        return mul(grad, derivative(x))


def _define_rare(name: str, ufunc: Any, doc: str, derivative: Callable[[Tensor], Tensor]) -> Any:
    def function(input: Tensor) -> Tensor:
        x = expect_tensor(name, "input", input)
        if not is_floating(x.dtype):
            input = input.to(get_default_dtype())
            x = input.array
        with np.errstate(all="ignore"):
            y = as_storage(ufunc(x)).astype(x.dtype, copy=False)
        return record(Derived, y, (input,), (input, derivative))

    return named(name, f"{doc}, elementwise.", function)


def _per_degree(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: scalar_like(x, factor)


tan: Any = _define_rare("tan", np.tan, "The tangent", lambda x: reciprocal(square(cos(x))))
asin: Any = _define_rare("asin", np.arcsin, "The arc sine", lambda x: rsqrt(sub(1, mul(x, x))))
acos: Any = _define_rare(
    "acos", np.arccos, "The arc cosine", lambda x: neg(rsqrt(sub(1, mul(x, x))))
)
atan: Any = _define_rare(
    "atan", np.arctan, "The arc tangent", lambda x: reciprocal(add(mul(x, x), 1))
)
sinh: Any = _define_rare("sinh", np.sinh, "The hyperbolic sine", lambda x: cosh(x))
cosh: Any = _define_rare("cosh", np.cosh, "The hyperbolic cosine", lambda x: sinh(x))
asinh: Any = _define_rare(
    "asinh", np.arcsinh, "Inverse of sinh", lambda x: rsqrt(add(mul(x, x), 1))
)
acosh: Any = _define_rare(
    "acosh", np.arccosh, "Inverse of cosh", lambda x: rsqrt(sub(mul(x, x), 1))
)
atanh: Any = _define_rare(
    "atanh", np.arctanh, "Inverse of tanh", lambda x: reciprocal(1 - mul(x, x))
)
exp2: Any = _define_rare("exp2", np.exp2, "2^x", lambda x: mul(exp2(x), math.log(2)))
log10: Any = _define_rare(
    "log10", np.log10, "The logarithm to base 10", lambda x: reciprocal(mul(x, math.log(10)))
)
deg2rad: Any = _define_rare("deg2rad", np.deg2rad, "Degrees to radians", _per_degree(math.pi / 180))
rad2deg: Any = _define_rare("rad2deg", np.rad2deg, "Radians to degrees", _per_degree(180 / math.pi))


@method
def erfc(input: Tensor) -> Tensor:
    """1 - erf(x)."""
    return sub(1, erf(input))


@method
def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)), x first limited to [eps, 1 - eps] if eps is given."""
    if eps is not None:
        input = clamp(input, eps, 1 - eps)
    return sub(log(input), log1p(neg(input)))


@method
def nan_to_num(
    input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """NaN and infinities replaced by `nan`, `posinf`, `neginf` (default: the largest numbers)."""
    x = expect_tensor("nan_to_num", "input", input)
    y = as_storage(np.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf))
    if not input._requires_grad:
        return wrap(y)
    return where(wrap(np.isfinite(x)), input, wrap(y))


# ---- powers ----


class Pow(Node):
    """d a^b = b a^(b-1) da + a^b log(a) db."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b = self.saved
        to_a, to_b = self.edges
        grad_a = grad_b = None
        if to_a is not None:
            safe = where(eq(b, 0), scalar_like(b, 1.0), b)
            slope = where(eq(b, 0), scalar_like(b, 0.0), mul(b, pow(a, sub(safe, 1))))
            grad_a = unbroadcast(mul(grad, slope), a.array.shape)
        if to_b is not None:
            positive = where(eq(a, 0), scalar_like(a, 1.0), a)
            slope = where(eq(a, 0), scalar_like(a, 0.0), mul(pow(a, b), log(positive)))
            grad_b = unbroadcast(mul(grad, slope), b.array.shape)
        return grad_a, grad_b


class PowNumber(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, exponent = self.saved
        if exponent == 0:
            return wrap(np.zeros_like(grad.array))
        return mul(mul(grad, exponent), pow(x, exponent - 1))


@method
def pow(input: Any, exponent: Any) -> Tensor:
    """Input ** exponent, broadcast; either may be a number."""
    a, b = operand("pow", "input", input), operand("pow", "exponent", exponent)
    if isinstance(b, Number) and isinstance(input, TensorBase):
        return _pow_number(input, b)  # type: ignore[arg-type]
    check_broadcast("pow", a, b)
    dtype = result_dtype(a, b)
    if not is_floating(dtype):
        if np.any(b < 0):
            raise RuntimeError("pow: integers to negative integer powers are not allowed")
        return wrap(as_storage(np.power(a, b, dtype=dtype)))
    beside = input if isinstance(input, TensorBase) else exponent
    if not isinstance(beside, TensorBase):  # NumPy arrays
        beside = wrap(np.asarray(beside))
    base, power = (
        cast(v, dtype) if isinstance(v, TensorBase) else scalar_like(beside, v, dtype)
        for v in (input, exponent)
    )
    with np.errstate(all="ignore"):
        y = as_storage(np.power(base.array, power.array)).astype(dtype, copy=False)
    return record(Pow, y, (base, power), (base, power))


_POWERS: dict[float, Callable[[Tensor], Tensor]] = {
    1: lambda x: mul(x, 1), 2: square, 0.5: sqrt, -0.5: rsqrt, -1: reciprocal,
}  # fmt: skip


def _pow_number(input: Tensor, exponent: float) -> Tensor:
    x = input.array
    if not is_floating(x.dtype):
        if isinstance(exponent, float):
            return _pow_number(input.to(get_default_dtype()), exponent)
        if exponent < 0:
            raise RuntimeError("pow: integers to negative integer powers are not allowed")
        return wrap(as_storage(np.power(x, exponent)))
    special = _POWERS.get(exponent)
    if special is not None:
        return special(input)
    with np.errstate(all="ignore"):
        y = as_storage(np.power(x, x.dtype.type(exponent)))
    return record(PowNumber, y, (input,), (input, exponent))


# ---- two operands ----


class Atan2(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b = self.saved
        scaled = div(grad, add(mul(a, a), mul(b, b)))
        return (
            unbroadcast(mul(scaled, b), a.array.shape),
            unbroadcast(neg(mul(scaled, a)), b.array.shape),
        )


@method
def atan2(input: Tensor, other: Tensor) -> Tensor:
    """The angle of the point (other, input)."""
    a, b = expect_tensor("atan2", "input", input), expect_tensor("atan2", "other", other)
    check_broadcast("atan2", a, b)
    dtype = result_dtype(a, b)
    dtype = dtype if is_floating(dtype) else get_default_dtype()
    input, other = cast(input, dtype), cast(other, dtype)
    y = as_storage(np.arctan2(input.array, other.array))
    return record(Atan2, y, (input, other), (input, other))


@method
def hypot(input: Tensor, other: Tensor) -> Tensor:
    """sqrt(input^2 + other^2)."""
    return sqrt(add(mul(input, input), mul(other, other)))


@method
def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(e^input + e^other), stable."""
    high = maximum(input, other).array
    shift = wrap(np.where(np.isfinite(high), high, 0).astype(high.dtype))
    return add(log(add(exp(sub(input, shift)), exp(sub(other, shift)))), shift)


@method
def xlogy(input: Any, other: Any) -> Tensor:
    """Input * log(other), 0 where input is 0 (and other is not nan)."""
    if not isinstance(input, Tensor) and not isinstance(other, Tensor):
        raise TypeError(f"xlogy: expected a Tensor among the operands, got {input!r}, {other!r}")
    dtype = result_dtype(operand("xlogy", "input", input), operand("xlogy", "other", other))
    if not is_floating(dtype):
        dtype = get_default_dtype()
    x, y = cast(input, dtype), cast(other, dtype)
    x = x if isinstance(x, Tensor) else scalar_like(y, x)
    y = y if isinstance(y, Tensor) else scalar_like(x, y)
    nothing = wrap((x.array == 0) & (y.array <= 0))  # nan is not: it stays
    return mul(x, log(where(nothing, scalar_like(y, 1.0), y)))


@method
def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """Input + weight * (end - input)."""
    return add(input, mul(sub(end, input), weight))


@method
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """Input + value * tensor1 * tensor2."""
    return add(input, mul(tensor1, tensor2), alpha=value)


@method
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """Input + value * tensor1 / tensor2."""
    return add(input, div(tensor1, tensor2), alpha=value)


@method
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 for negative, `values` for 0, 1 for positive elements."""
    a = expect_tensor("heaviside", "input", input)
    b = expect_tensor("heaviside", "values", values)
    check_broadcast("heaviside", a, b)
    return wrap(as_storage(np.heaviside(a, b)))
