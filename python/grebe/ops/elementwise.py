"""Elementwise ops with broadcasting. Kernels: csrc/cpu/elementwise.cpp.

A call on same-dtype float arrays goes straight to the kernel, which broadcasts, allocates and
computes; it answers NotImplemented to everything else, and then Python promotes dtypes, names
errors, and gives integers to NumPy. Derivatives: D2L section 22.4 and the activation sections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _cpu
from .._cpu import Node, TensorBase, bump, grad_enabled, record, wrap
from ..backend import Array, kernels, readable
from ..dtypes import get_default_dtype, is_floating, result_dtype
from ..tensor import Tensor, assign, check_writable, expect_tensor, method, snapshot

__all__ = [
    "abs",
    "absolute",
    "acos",
    "acosh",
    "add",
    "addcdiv",
    "addcmul",
    "allclose",
    "arccos",
    "arcsin",
    "arctan",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "clamp",
    "clip",
    "cos",
    "cosh",
    "deg2rad",
    "div",
    "divide",
    "eq",
    "equal",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "floor_divide",
    "fmod",
    "frac",
    "ge",
    "greater",
    "greater_equal",
    "gt",
    "heaviside",
    "hypot",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "lerp",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logit",
    "lt",
    "maximum",
    "minimum",
    "mul",
    "multiply",
    "nan_to_num",
    "ne",
    "neg",
    "negative",
    "not_equal",
    "pow",
    "rad2deg",
    "reciprocal",
    "relu",
    "remainder",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "sub",
    "subtract",
    "tan",
    "tanh",
    "true_divide",
    "trunc",
    "where",
    "xlogy",
]  # fmt: skip

Number = (bool, int, float)


# ---- what all ops here share ----


def unbroadcast(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums `gradient` over the dimensions along which an operand of `shape` was repeated."""
    have = gradient.array.shape
    if have == shape:
        return gradient
    lead = len(have) - len(shape)
    repeated = [lead + d for d, size in enumerate(shape) if size == 1 and have[lead + d] != 1]
    dims = tuple(range(lead)) + tuple(repeated)
    if dims:
        gradient = gradient.sum(dims, keepdim=True)
    return gradient.reshape(shape)


def operand(name: str, argument: str, value: Any) -> Any:
    """The array or Python number of an operand; TypeError for anything else."""
    if isinstance(value, TensorBase):
        return value.array
    if isinstance(value, Number):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    raise TypeError(f"{name}: {argument} must be a Tensor or a number, got {type(value).__name__}")


def check_broadcast(name: str, *operands: Any) -> None:
    """RuntimeError naming the shapes unless they broadcast."""
    shapes = [o.shape for o in operands if not isinstance(o, Number)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise RuntimeError(
            f"{name}: shapes {' and '.join(str(list(s)) for s in shapes)} can't be broadcast "
            "together: from the right, sizes must be equal or 1"
        ) from None


def _run(name: str, operands: list[Any], params: tuple[float, ...], dtype: Any) -> Array:
    """Casts the operands to the floating `dtype` and runs the kernel, 16-bit ones in float32."""
    work = dtype if dtype.itemsize >= 4 else np.dtype(np.float32)
    ready = [
        float(o) if isinstance(o, Number) else readable(o.astype(work, copy=False))
        for o in operands
    ]
    like = next(o for o in ready if not isinstance(o, float))
    y = getattr(kernels(like), name)(*ready, None, *params)
    if y is NotImplemented:
        raise TypeError(f"{name}: no kernel for {[getattr(o, 'dtype', o) for o in operands]}")
    result: Array = y if work == dtype else y.astype(dtype)
    return result


def cast(value: Any, dtype: Any) -> Any:
    """A Tensor operand as a (differentiable) Tensor of `dtype`; a number as it is."""
    if isinstance(value, TensorBase) and value.array.dtype != dtype:
        return value.to(dtype)  # type: ignore[attr-defined]
    return value


def unary(name: str, node: type[Node], input: Tensor, *params: float) -> Tensor:
    """An op of one operand whose node saves that operand. Integers become the default float."""
    x = expect_tensor(name, "input", input)
    y = getattr(_cpu, name)(x, None, *params)
    if y is NotImplemented:
        if not is_floating(x.dtype):
            return unary(name, node, input.to(get_default_dtype()), *params)
        y = _run(name, [x], params, x.dtype)
    return record(node, y, (input,), (input, *params))


def unary_from_output(name: str, node: type[Node], input: Tensor, *params: float) -> Tensor:
    """Like `unary` for an op whose derivative needs only the result."""
    x = expect_tensor(name, "input", input)
    y = getattr(_cpu, name)(x, None, *params)
    if y is NotImplemented:
        if not is_floating(x.dtype):
            return unary_from_output(name, node, input.to(get_default_dtype()), *params)
        y = _run(name, [x], params, x.dtype)
    return record(node, y, (input,), (y, *params))


def backward_kernel(name: str, grad: Tensor, saved: Tensor, *params: float) -> Tensor:
    """One fused kernel f(grad, saved; params), outside the graph."""
    y = getattr(_cpu, name)(grad.array, saved.array, None, *params)
    if y is NotImplemented:
        y = _run(name, [grad.array, saved.array], params, saved.array.dtype)
    return wrap(y)


def _scalar_like(tensor: Tensor, value: float) -> Tensor:
    return wrap(np.asarray(value, tensor.array.dtype))


def _named(name: str, doc: str, function: Any) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return method(function)


# ---- arithmetic ----


class Add(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        shape, other = self.saved
        if shape == other == grad.array.shape:
            return grad, grad
        return unbroadcast(grad, shape), unbroadcast(grad, other)


class Sub(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        shape, other = self.saved
        left = unbroadcast(grad, shape)
        return left, None if self.edges[1] is None else neg(unbroadcast(grad, other))


class Mul(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b = self.saved
        to_a, to_b = self.edges
        return (
            None if to_a is None else unbroadcast(mul(grad, b), a.array.shape),
            None if to_b is None else unbroadcast(mul(grad, a), b.array.shape),
        )


class Div(Node):
    """d(a/b) = da / b - (a/b) db / b."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b = self.saved
        to_a, to_b = self.edges
        scaled = div(grad, b)
        return (
            None if to_a is None else unbroadcast(scaled, a.array.shape),
            None if to_b is None else unbroadcast(neg(mul(scaled, div(a, b))), b.array.shape),
        )


class Scale(Node):
    """y = factor * x + constant."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        factor = self.saved[0]
        return mul(grad, factor) if factor != 1 else grad


class DivideBy(Node):
    """y = x / number."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return div(grad, self.saved[0])


class NumberOver(Node):
    """y = number / x."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, number = self.saved
        return neg(div(mul(grad, number), mul(x, x)))


_BINARY_NODES = {"add": Add, "sub": Sub, "mul": Mul, "div": Div}
_INTEGER_UFUNCS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
_add: Any = _cpu.add
_sub: Any = _cpu.sub
_mul: Any = _cpu.mul
_div: Any = _cpu.div


def _record_binary(name: str, y: Array, input: Any, other: Any) -> Tensor:
    if isinstance(input, TensorBase) and isinstance(other, TensorBase):
        if name in ("add", "sub"):
            saved: tuple[Any, ...] = (input.array.shape, other.array.shape)
        else:
            saved = (input, other)
        return record(_BINARY_NODES[name], y, (input, other), saved)
    if isinstance(input, TensorBase):
        if name == "div":
            return record(DivideBy, y, (input,), (other,))
        return record(Scale, y, (input,), (other if name == "mul" else 1,))
    if name == "div":
        return record(NumberOver, y, (other,), (other, input))
    return record(Scale, y, (other,), ({"add": 1, "sub": -1, "mul": input}[name],))


def _binary_slow(name: str, input: Any, other: Any) -> Tensor:
    """What the kernel's fast path leaves: promotion, integers, errors."""
    a, b = operand(name, "input", input), operand(name, "other", other)
    if isinstance(a, Number) and isinstance(b, Number):
        raise TypeError(f"{name}: at least one operand must be a Tensor, got two numbers")
    check_broadcast(name, a, b)
    dtype = result_dtype(a, b)
    if not is_floating(dtype):
        if name != "div":
            return wrap(_integer_arithmetic(name, a, b, dtype))
        dtype = get_default_dtype()
    if isinstance(input, (np.ndarray, np.generic)):
        input = wrap(a)
    if isinstance(other, (np.ndarray, np.generic)):
        other = wrap(b)
    input, other = cast(input, dtype), cast(other, dtype)
    operands = [operand(name, "input", input), operand(name, "other", other)]
    return _record_binary(name, _run(name, operands, (), dtype), input, other)


def _integer_arithmetic(name: str, a: Any, b: Any, dtype: Any) -> Array:
    if dtype.kind == "b" and name == "sub":
        raise RuntimeError("sub: subtraction of bool tensors is not supported; use logical_xor")
    a, b = (o.astype(dtype) if isinstance(o, np.ndarray) else dtype.type(o) for o in (a, b))
    return np.asarray(_INTEGER_UFUNCS[name](a, b, dtype=dtype))


def _scaled(other: Any, alpha: float) -> Any:
    return mul(other, alpha) if isinstance(other, Tensor) else other * alpha


@method
def add(input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """Input + alpha * other, broadcast."""
    if alpha != 1:
        other = _scaled(other, alpha)
    if isinstance(input, TensorBase):
        a = input.array
        if isinstance(other, TensorBase):
            b = other.array
            y = _add(a, b)
            if y is not NotImplemented:
                if not (input._requires_grad or other._requires_grad):
                    return wrap(y)
                return record(Add, y, (input, other), (a.shape, b.shape))
        else:
            y = _add(a, other)
            if y is not NotImplemented and type(other) in Number:
                return record(Scale, y, (input,), (1,))
    return _binary_slow("add", input, other)


@method
def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """Input - alpha * other, broadcast."""
    if alpha != 1:
        other = _scaled(other, alpha)
    if isinstance(input, TensorBase) and isinstance(other, (TensorBase, *Number)):
        y = _sub(input.array, other.array if isinstance(other, TensorBase) else other)
        if y is not NotImplemented:
            return _record_binary("sub", y, input, other)
    return _binary_slow("sub", input, other)


@method
def mul(input: Tensor, other: Any) -> Tensor:
    """Input * other, broadcast."""
    if isinstance(input, TensorBase):
        if isinstance(other, TensorBase):
            y = _mul(input.array, other.array)
            if y is not NotImplemented:
                return record(Mul, y, (input, other), (input, other))
        else:
            y = _mul(input.array, other)
            if y is not NotImplemented and type(other) in Number:
                return record(Scale, y, (input,), (other,))
    return _binary_slow("mul", input, other)


@method
def div(input: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """Input / other, broadcast; integers divide to the default float.

    rounding_mode: None, "trunc" (towards zero) or "floor".
    """
    if rounding_mode is not None:
        return _rounded_division(input, other, rounding_mode)
    if isinstance(input, TensorBase) and isinstance(other, (TensorBase, *Number)):
        y = _div(input.array, other.array if isinstance(other, TensorBase) else other)
        if y is not NotImplemented:
            return _record_binary("div", y, input, other)
    return _binary_slow("div", input, other)


def _rounded_division(input: Any, other: Any, mode: str) -> Tensor:
    if mode not in ("trunc", "floor"):
        raise ValueError(f"div: rounding_mode must be None, 'trunc' or 'floor', got {mode!r}")
    a, b = operand("div", "input", input), operand("div", "other", other)
    check_broadcast("div", a, b)
    dtype = result_dtype(a, b)
    if is_floating(dtype):
        quotient = div(input, other)
        return floor(quotient) if mode == "floor" else trunc(quotient)
    if np.any(np.asarray(b) == 0):
        raise RuntimeError("div: integer division by zero")
    quotient_array = np.asarray(np.floor_divide(a, b, dtype=dtype))
    if mode == "trunc":
        inexact = np.remainder(a, b) != 0
        quotient_array = quotient_array + (inexact & (quotient_array < 0)).astype(dtype)
    return wrap(quotient_array)


@method
def floor_divide(input: Any, other: Any) -> Tensor:
    """floor(input / other)."""
    return _rounded_division(input, other, "floor")


class Modulo(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b, mode = self.saved
        to_a, to_b = self.edges
        return (
            None if to_a is None else unbroadcast(grad, a.array.shape),
            None
            if to_b is None
            else unbroadcast(neg(mul(grad, div(a, b, rounding_mode=mode))), b.array.shape),
        )


def _modulo(name: str, ufunc: Any, mode: str, input: Any, other: Any) -> Tensor:
    a, b = operand(name, "input", input), operand(name, "other", other)
    check_broadcast(name, a, b)
    dtype = result_dtype(a, b)
    if not is_floating(dtype) and np.any(np.asarray(b) == 0):
        raise RuntimeError(f"{name}: integer division by zero")
    input, other = (
        cast(v, dtype) if isinstance(v, TensorBase) else wrap(np.asarray(v, dtype))
        for v in (input, other)
    )
    with np.errstate(all="ignore"):
        y = np.asarray(ufunc(input.array, other.array))
    return record(Modulo, y, (input, other), (input, other, mode))


@method
def remainder(input: Any, other: Any) -> Tensor:
    """Input - other * floor(input / other): the sign of `other`, as Python's %."""
    return _modulo("remainder", np.remainder, "floor", input, other)


@method
def fmod(input: Any, other: Any) -> Tensor:
    """Input - other * trunc(input / other): the sign of `input`, as C's fmod."""
    return _modulo("fmod", np.fmod, "trunc", input, other)


class Neg(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return neg(grad)


@method
def neg(input: Tensor) -> Tensor:
    """-input."""
    x = expect_tensor("neg", "input", input)
    y = _cpu.neg(x)
    if y is NotImplemented:
        if x.dtype.kind == "b":
            raise RuntimeError("neg: bool tensors have no negative; use logical_not")
        y = np.asarray(np.negative(x))
    return record(Neg, y, (input,), ())


# ---- functions of one variable ----


class Exp(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return mul(grad, self.saved[0])


class Expm1(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return mul(grad, add(self.saved[0], 1))


class Log(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return div(grad, self.saved[0])


class Log1p(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if grad_enabled():
            return div(grad, add(x, 1))
        return backward_kernel("log1p_backward", grad, x)


class Log2(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return div(grad, mul(self.saved[0], math.log(2)))


class Sqrt(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = self.saved[0]
        if grad_enabled():
            return div(grad, mul(y, 2))
        return backward_kernel("sqrt_backward", grad, y)


class Rsqrt(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = self.saved[0]
        if grad_enabled():
            return mul(mul(grad, -0.5), mul(mul(y, y), y))
        return backward_kernel("rsqrt_backward", grad, y)


class Reciprocal(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = self.saved[0]
        if grad_enabled():
            return neg(mul(grad, mul(y, y)))
        return backward_kernel("reciprocal_backward", grad, y)


class Square(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return mul(mul(grad, 2), self.saved[0])


class Sin(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if grad_enabled():
            return mul(grad, cos(x))
        return backward_kernel("sin_backward", grad, x)


class Cos(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if grad_enabled():
            return neg(mul(grad, sin(x)))
        return backward_kernel("cos_backward", grad, x)


class Tanh(Node):
    """dy/dx = 1 - y^2."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = self.saved[0]
        if grad_enabled():
            return mul(grad, sub(1, mul(y, y)))
        return backward_kernel("tanh_backward", grad, y)


class Sigmoid(Node):
    """dy/dx = y (1 - y)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = self.saved[0]
        if grad_enabled():
            return mul(grad, mul(y, sub(1, y)))
        return backward_kernel("sigmoid_backward", grad, y)


class ReLU(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        y = self.saved[0]
        if grad_enabled():
            return mul(grad, _indicator(y.array > 0, y))
        return backward_kernel("relu_backward", grad, y)


class Abs(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if grad_enabled():
            return mul(grad, sign(x))
        return backward_kernel("abs_backward", grad, x)


class Erf(Node):
    """dy/dx = 2 / sqrt(pi) exp(-x^2)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if grad_enabled():
            return mul(grad, mul(exp(neg(mul(x, x))), 2 / math.sqrt(math.pi)))
        return backward_kernel("erf_backward", grad, x)


def _indicator(condition: Array, like: Tensor) -> Tensor:
    return wrap(condition.astype(like.array.dtype))


_relu: Any = _cpu.relu


@method
def relu(input: Tensor) -> Tensor:
    """max(input, 0); the gradient at 0 is 0. D2L section 5.1."""
    x = expect_tensor("relu", "input", input)
    y = _relu(x)
    if y is NotImplemented:
        if not is_floating(x.dtype):
            return wrap(np.asarray(np.maximum(x, x.dtype.type(0))))
        y = _run("relu", [x], (), x.dtype)
    return record(ReLU, y, (input,), (y,))


@method
def abs(input: Tensor) -> Tensor:
    """The absolute value; the gradient at 0 is 0."""
    x = expect_tensor("abs", "input", input)
    if not is_floating(x.dtype):
        return wrap(np.asarray(np.abs(x)))
    return unary("abs", Abs, input)


@method
def square(input: Tensor) -> Tensor:
    """Input ** 2."""
    x = expect_tensor("square", "input", input)
    if not is_floating(x.dtype):
        return mul(input, input)
    return unary("square", Square, input)


def _define(name: str, formula: str, node: type[Node], run: Any = unary) -> Any:
    doc = f"{formula}, elementwise. Integers give the default float dtype."
    return _named(name, doc, lambda input: run(name, node, input))


exp: Any = _define("exp", "e^x", Exp, unary_from_output)
expm1: Any = _define("expm1", "e^x - 1, exact near 0", Expm1, unary_from_output)
log: Any = _define("log", "The natural logarithm", Log)
log1p: Any = _define("log1p", "log(1 + x), exact near 0", Log1p)
log2: Any = _define("log2", "The logarithm to base 2", Log2)
sqrt: Any = _define("sqrt", "The square root", Sqrt, unary_from_output)
rsqrt: Any = _define("rsqrt", "1 / sqrt(x)", Rsqrt, unary_from_output)
reciprocal: Any = _define("reciprocal", "1 / x", Reciprocal, unary_from_output)
sin: Any = _define("sin", "The sine", Sin)
cos: Any = _define("cos", "The cosine", Cos)
tanh: Any = _define("tanh", "The hyperbolic tangent", Tanh, unary_from_output)
sigmoid: Any = _define("sigmoid", "1 / (1 + e^-x)", Sigmoid, unary_from_output)
erf: Any = _define("erf", "The error function", Erf)


# ---- activations of nn.functional ----


class GELU(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, tanh_form = self.saved
        if not grad_enabled():
            return backward_kernel("gelu_tanh_backward" if tanh_form else "gelu_backward", grad, x)
        if tanh_form:
            c, k = math.sqrt(2 / math.pi), 0.044715
            t = tanh(mul(add(x, mul(mul(mul(x, x), x), k)), c))
            inner = mul(add(mul(mul(x, x), 3 * k), 1), c)
            bend = mul(mul(mul(x, 0.5), sub(1, mul(t, t))), inner)
            return mul(grad, add(mul(add(t, 1), 0.5), bend))
        cdf = mul(add(erf(mul(x, math.sqrt(0.5))), 1), 0.5)
        density = mul(exp(mul(mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
        return mul(grad, add(cdf, mul(x, density)))


@method
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """X Phi(x), Phi the normal CDF; "tanh": its tanh approximation (Hendrycks, Gimpel 2016)."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    tanh_form = approximate == "tanh"
    x = expect_tensor("gelu", "input", input)
    if not is_floating(x.dtype):
        raise TypeError(f"gelu: input must be floating point, got {x.dtype}")
    name = "gelu_tanh" if tanh_form else "gelu"
    y = getattr(_cpu, name)(x)
    if y is NotImplemented:
        y = _run(name, [x], (), x.dtype)
    return record(GELU, y, (input,), (input, tanh_form))


class SiLU(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if not grad_enabled():
            return backward_kernel("silu_backward", grad, x)
        s = sigmoid(x)
        return mul(grad, mul(s, add(mul(x, sub(1, s)), 1)))


@method
def silu(input: Tensor) -> Tensor:
    """X sigmoid(x) (swish)."""
    return unary("silu", SiLU, input)


class ELU(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, alpha = self.saved
        if not grad_enabled():
            return backward_kernel("elu_backward", grad, x, alpha)
        slope = mul(exp(clamp(x, max=0)), alpha)
        return mul(grad, where(wrap(x.array > 0), 1.0, slope))


@method
def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """X for x > 0, alpha (e^x - 1) otherwise."""
    return unary("elu", ELU, input, float(alpha))


class LeakyReLU(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, slope = self.saved
        if not grad_enabled():
            return backward_kernel("leaky_relu_backward", grad, x, slope)
        return mul(grad, where(wrap(x.array > 0), _scalar_like(x, 1.0), slope))


@method
def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """X for x > 0, negative_slope * x otherwise."""
    return unary("leaky_relu", LeakyReLU, input, float(negative_slope))


class LogSigmoid(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x = self.saved[0]
        if not grad_enabled():
            return backward_kernel("logsigmoid_backward", grad, x)
        return mul(grad, sigmoid(neg(x)))


@method
def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), stable for large negative x."""
    return unary("logsigmoid", LogSigmoid, input)


class Softplus(Node):
    """dy/dx = sigmoid(beta x)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, beta, threshold = self.saved
        if not grad_enabled():
            return backward_kernel("softplus_backward", grad, x, beta, threshold)
        slope = sigmoid(mul(x, beta))
        return mul(grad, where(wrap(beta * x.array > threshold), _scalar_like(x, 1.0), slope))


@method
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, a smooth relu; x itself where beta x > threshold."""
    if beta == 0:
        raise ValueError("softplus: beta must not be 0")
    return unary("softplus", Softplus, input, float(beta), float(threshold))


class Clamp(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, low, high = self.saved
        if not grad_enabled():
            return backward_kernel("clamp_backward", grad, x, low, high)
        return mul(grad, _indicator((x.array >= low) & (x.array <= high), x))


@method
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Elements limited to [min, max]; either may be None, a number or a Tensor. NaN stays NaN."""
    x = expect_tensor("clamp", "input", input)
    if min is None and max is None:
        raise ValueError("clamp: at least one of min and max must be given")
    if isinstance(min, TensorBase) or isinstance(max, TensorBase):
        if min is not None:
            low = min if isinstance(min, Tensor) else _scalar_like(input, min)
            input = maximum(input, low)
        if max is not None:
            high = max if isinstance(max, Tensor) else _scalar_like(input, max)
            input = minimum(input, high)
        return input
    for argument, value in (("min", min), ("max", max)):
        if value is not None and not isinstance(value, (*Number, np.generic)):
            raise TypeError(f"clamp: {argument} must be a number, got {type(value).__name__}")
    if not is_floating(x.dtype):
        if isinstance(min, float) or isinstance(max, float):
            return clamp(input.to(get_default_dtype()), min, max)
        return wrap(np.asarray(np.clip(x, min, max)))
    lowest = -math.inf if min is None else float(min)
    highest = math.inf if max is None else float(max)
    return unary("clamp", Clamp, input, lowest, highest)


# ---- functions left to NumPy: rounding and tests without gradient, rare functions with one ----


class ZeroGradient(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return wrap(np.zeros_like(grad.array))


def _define_step(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Tensor) -> Tensor:
        x = expect_tensor(name, "input", input)
        integral = x.dtype.kind in "iub" and name != "sign"
        y = x.copy() if integral else np.asarray(ufunc(x)).astype(x.dtype, copy=False)
        return record(ZeroGradient, y, (input,), ())

    return _named(name, f"{doc}; the gradient is 0.", function)


floor: Any = _define_step("floor", np.floor, "The largest integer not above x")
ceil: Any = _define_step("ceil", np.ceil, "The smallest integer not below x")
trunc: Any = _define_step("trunc", np.trunc, "x without its fraction")
sign: Any = _define_step("sign", np.sign, "-1, 0 or 1")


@method
def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest integer (half to even), or with `decimals` digits; the gradient is 0."""
    x = expect_tensor("round", "input", input)
    return record(ZeroGradient, np.asarray(np.round(x, decimals)), (input,), ())


@method
def frac(input: Tensor) -> Tensor:
    """X - trunc(x)."""
    return sub(input, trunc(input))


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
            y = np.asarray(ufunc(x), dtype=x.dtype)
        return record(Derived, y, (input,), (input, derivative))

    return _named(name, f"{doc}, elementwise.", function)


def _per_degree(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: _scalar_like(x, factor)


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
    y = np.asarray(np.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf))
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
            safe = where(eq(b, 0), _scalar_like(b, 1.0), b)
            slope = where(eq(b, 0), _scalar_like(b, 0.0), mul(b, pow(a, sub(safe, 1))))
            grad_a = unbroadcast(mul(grad, slope), a.array.shape)
        if to_b is not None:
            positive = where(eq(a, 0), _scalar_like(a, 1.0), a)
            slope = where(eq(a, 0), _scalar_like(a, 0.0), mul(pow(a, b), log(positive)))
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
        if np.any(np.asarray(b) < 0):
            raise RuntimeError("pow: integers to negative integer powers are not allowed")
        return wrap(np.asarray(np.power(a, b, dtype=dtype)))
    base, power = (
        cast(v, dtype) if isinstance(v, TensorBase) else wrap(np.asarray(v, dtype))
        for v in (input, exponent)
    )
    with np.errstate(all="ignore"):
        y = np.asarray(np.power(base.array, power.array), dtype=dtype)
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
        return wrap(np.asarray(np.power(x, exponent)))
    special = _POWERS.get(exponent)
    if special is not None:
        return special(input)
    with np.errstate(all="ignore"):
        y = np.asarray(np.power(x, x.dtype.type(exponent)))
    return record(PowNumber, y, (input,), (input, exponent))


# ---- two operands ----


class Extremum(Node):
    """maximum, minimum: ties share the gradient."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        a, b, largest = self.saved
        dtype = grad.array.dtype
        ahead = (a.array > b.array) if largest else (a.array < b.array)
        share = wrap(ahead.astype(dtype) + (a.array == b.array) * dtype.type(0.5))
        return (
            unbroadcast(mul(grad, share), a.array.shape),
            unbroadcast(mul(grad, sub(1, share)), b.array.shape),
        )


def _extremum(name: str, ufunc: Any, input: Tensor, other: Tensor) -> Tensor:
    a, b = expect_tensor(name, "input", input), expect_tensor(name, "other", other)
    y = getattr(_cpu, name)(a, b)
    if y is NotImplemented:
        check_broadcast(name, a, b)
        dtype = result_dtype(a, b)
        input, other = cast(input, dtype), cast(other, dtype)
        y = np.asarray(ufunc(input.array, other.array))
    return record(Extremum, y, (input, other), (input, other, name == "maximum"))


@method
def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of the two, broadcast; NaN if either is NaN."""
    return _extremum("maximum", np.maximum, input, other)


@method
def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of the two, broadcast; NaN if either is NaN."""
    return _extremum("minimum", np.minimum, input, other)


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
    y = np.asarray(np.arctan2(input.array, other.array))
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
    """Input * log(other), 0 where input is 0."""
    if not isinstance(other, Tensor):
        return mul(input, math.log(other))
    if not isinstance(input, Tensor):
        return mul(log(other), input)
    return mul(input, log(where(eq(input, 0), _scalar_like(other, 1.0), other)))


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


class Where(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        condition, shape, other = self.saved
        zero = _scalar_like(grad, 0.0)
        return (
            None,
            None if self.edges[1] is None else unbroadcast(where(condition, grad, zero), shape),
            None if self.edges[2] is None else unbroadcast(where(condition, zero, grad), other),
        )


def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """`input` where `condition`, else `other`, broadcast. One argument: `nonzero` as a tuple."""
    c = expect_tensor("where", "condition", condition)
    if input is None and other is None:
        return tuple(wrap(i) for i in np.nonzero(np.atleast_1d(c)))
    a, b = operand("where", "input", input), operand("where", "other", other)
    check_broadcast("where", c, a, b)
    dtype = result_dtype(a, b)
    input, other = cast(input, dtype), cast(other, dtype)
    a, b = (np.asarray(operand("where", "input", v), dtype) for v in (input, other))
    y = np.asarray(np.where(c.astype(bool, copy=False), a, b))
    return record(Where, y, (condition, input, other), (condition, a.shape, b.shape))


@method
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 for negative, `values` for 0, 1 for positive elements."""
    a = expect_tensor("heaviside", "input", input)
    b = expect_tensor("heaviside", "values", values)
    check_broadcast("heaviside", a, b)
    return wrap(np.asarray(np.heaviside(a, b)))


# ---- comparisons and logic: no gradient ----


def _define_comparison(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Any, other: Any) -> Tensor:
        a, b = operand(name, "input", input), operand(name, "other", other)
        try:
            return wrap(np.asarray(ufunc(a, b)))
        except ValueError:
            check_broadcast(name, a, b)
            raise

    return _named(name, f"{doc}, elementwise with broadcasting; a bool tensor.", function)


eq: Any = _define_comparison("eq", np.equal, "input == other")
ne: Any = _define_comparison("ne", np.not_equal, "input != other")
lt: Any = _define_comparison("lt", np.less, "input < other")
le: Any = _define_comparison("le", np.less_equal, "input <= other")
gt: Any = _define_comparison("gt", np.greater, "input > other")
ge: Any = _define_comparison("ge", np.greater_equal, "input >= other")
logical_and: Any = _define_comparison("logical_and", np.logical_and, "Both are nonzero")
logical_or: Any = _define_comparison("logical_or", np.logical_or, "Either is nonzero")
logical_xor: Any = _define_comparison("logical_xor", np.logical_xor, "Just one is nonzero")


def _define_bitwise(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Any, other: Any) -> Tensor:
        a, b = operand(name, "input", input), operand(name, "other", other)
        check_broadcast(name, a, b)
        if is_floating(result_dtype(a, b)):
            raise RuntimeError(f"{name}: expected integers or bools, got {result_dtype(a, b)}")
        return wrap(np.asarray(ufunc(a, b)))

    return _named(name, f"{doc} of integers or bools, elementwise.", function)


bitwise_and: Any = _define_bitwise("bitwise_and", np.bitwise_and, "Bitwise and")
bitwise_or: Any = _define_bitwise("bitwise_or", np.bitwise_or, "Bitwise or")
bitwise_xor: Any = _define_bitwise("bitwise_xor", np.bitwise_xor, "Bitwise exclusive or")


def _define_test(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Tensor) -> Tensor:
        return wrap(np.asarray(ufunc(expect_tensor(name, "input", input))))

    return _named(name, f"{doc}, elementwise.", function)


isnan: Any = _define_test("isnan", np.isnan, "Is it NaN?")
isinf: Any = _define_test("isinf", np.isinf, "Is it infinite?")
isfinite: Any = _define_test("isfinite", np.isfinite, "Is it neither infinite nor NaN?")
logical_not: Any = _define_test("logical_not", np.logical_not, "Is it zero?")


@method
def bitwise_not(input: Tensor) -> Tensor:
    """Bitwise complement of integers; logical not of bools."""
    x = expect_tensor("bitwise_not", "input", input)
    if is_floating(x.dtype):
        raise RuntimeError(f"bitwise_not: expected integers or bools, got {x.dtype}")
    return wrap(np.asarray(np.invert(x)))


@method
def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol |other|, elementwise."""
    a, b = expect_tensor("isclose", "input", input), expect_tensor("isclose", "other", other)
    check_broadcast("isclose", a, b)
    return wrap(np.asarray(np.isclose(a, b, rtol, atol, equal_nan)))


@method
def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Is `isclose` true everywhere?"""
    return bool(isclose(input, other, rtol, atol, equal_nan).array.all())


@method
def equal(input: Tensor, other: Tensor) -> bool:
    """Same shape and same elements?"""
    a, b = expect_tensor("equal", "input", input), expect_tensor("equal", "other", other)
    return a.shape == b.shape and bool(np.array_equal(a, b))


# ---- in-place forms ----


def define_inplace(function: Any, kernel: Any = None) -> None:
    """Tensor.<name>_: through `kernel` straight into the memory when nothing is recorded."""
    name = function.__name__ + "_"

    def inplace(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_writable(name, self)
        recording = grad_enabled() and any(
            isinstance(a, TensorBase) and a._requires_grad for a in (self, *args, *kwargs.values())
        )
        if recording:
            return assign(name, self, function(snapshot(self), *args, **kwargs))
        if kernel is not None and len(args) <= 1 and not kwargs:
            operands = [a.array if isinstance(a, TensorBase) else a for a in args]
            if kernel(self.array, *operands, self.array) is not NotImplemented:
                bump(self)
                return self
        return assign(name, self, function(self, *args, **kwargs))

    _named(name, f"`{function.__name__}` written into this tensor.", inplace)


for _function, _kernel in (
    (add, _add), (sub, _sub), (mul, _mul), (div, _div), (relu, _relu), (neg, _cpu.neg),
    (exp, _cpu.exp), (sqrt, _cpu.sqrt), (tanh, _cpu.tanh), (sigmoid, _cpu.sigmoid),
):  # fmt: skip
    define_inplace(_function, _kernel)
for _function in (
    abs, square, log, log1p, log2, expm1, rsqrt, reciprocal, sin, cos, erf, clamp, floor, ceil,
    round, trunc, sign, pow, floor_divide, remainder, fmod, lerp, addcmul, addcdiv, leaky_relu, elu,
    nan_to_num, logical_not, logical_and, logical_or, bitwise_and, bitwise_or, bitwise_xor,
    bitwise_not, eq, ne, lt, le, gt, ge,
):  # fmt: skip
    define_inplace(_function)


# ---- PyTorch's other names, and the operators ----

absolute, negative, divide, true_divide, multiply, subtract = abs, neg, div, div, mul, sub
clip, greater, greater_equal, less, less_equal, not_equal = clamp, gt, ge, lt, le, ne
arccos, arcsin, arctan = acos, asin, atan
for _alias in ("absolute", "negative", "divide", "true_divide", "multiply", "subtract", "clip",
               "greater", "greater_equal", "less", "less_equal", "not_equal", "arccos", "arcsin",
               "arctan"):  # fmt: skip
    setattr(Tensor, _alias, globals()[_alias])

_OPERANDS = (TensorBase, bool, int, float, np.ndarray, np.generic)


def _operator(function: Any) -> Any:
    """`function` as a binary operator: NotImplemented for operands that no Tensor can take."""
    return lambda self, other: (
        function(self, other) if isinstance(other, _OPERANDS) else NotImplemented
    )


def _reflected(function: Any) -> Any:
    return lambda self, other: (
        function(other, self) if isinstance(other, _OPERANDS) else NotImplemented
    )


def _equality(function: Any, otherwise: bool) -> Any:
    return lambda self, other: function(self, other) if isinstance(other, _OPERANDS) else otherwise


for _name, _function in {
    "sub": sub, "truediv": div, "floordiv": floor_divide, "mod": remainder, "pow": pow,
    "and": bitwise_and, "or": bitwise_or, "xor": bitwise_xor, "add": add, "mul": mul,
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _operator(_function))
    setattr(Tensor, f"__r{_name}__", _reflected(_function))
    setattr(Tensor, f"__i{_name}__", getattr(Tensor, _function.__name__ + "_"))
# The two hottest operators skip the look at the other operand: the functions check it themselves.
for _name, _function in {
    "add": add, "mul": mul, "neg": neg, "abs": abs, "invert": bitwise_not, "lt": _operator(lt),
    "le": _operator(le), "gt": _operator(gt), "ge": _operator(ge), "eq": _equality(eq, False),
    "ne": _equality(ne, True), "pos": lambda self: self,
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _function)
