"""Elementwise ops with broadcasting. Kernels: csrc/cpu/elementwise.cpp.

A call on same-dtype float arrays goes straight to the kernel, which broadcasts, allocates and
computes; it answers NotImplemented to everything else, and then Python promotes dtypes, names
errors, and gives integers to NumPy. Derivatives: D2L section 22.4 and the activation sections.

Activations are in activation.py, comparisons in compare.py, functions without a kernel in rare.py,
in-place forms and operators in inplace.py.
"""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from .. import _cpu
from .._cpu import Node, TensorBase, grad_enabled, record, wrap
from ..backend import Array, as_storage, is_on_cuda, kernels, readable
from ..backend import cast as cast_array
from ..backend import like as like_array
from ..dtypes import get_default_dtype, is_floating, result_dtype
from ..tensor import Tensor, expect_tensor, method

__all__ = [
    "abs",
    "add",
    "ceil",
    "clamp",
    "cos",
    "div",
    "erf",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "fmod",
    "frac",
    "log",
    "log1p",
    "log2",
    "maximum",
    "minimum",
    "mul",
    "neg",
    "reciprocal",
    "relu",
    "remainder",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sqrt",
    "square",
    "sub",
    "tanh",
    "trunc",
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


def one_device(name: str, operands: list[Any]) -> list[Any]:
    """The operands with 0-d CPU arrays as numbers beside arrays of the GPU; RuntimeError for other
    mixtures.
    """
    arrays = [o for o in operands if not isinstance(o, Number)]
    if not builtins.any(is_on_cuda(a) for a in arrays):
        return operands
    found = [o.item() if isinstance(o, np.ndarray) and o.ndim == 0 else o for o in operands]
    if builtins.any(isinstance(o, np.ndarray) for o in found):
        raise RuntimeError(f"{name}: expected all tensors on the same device, got cuda:0 and cpu")
    return found


def as_array(value: Any, beside: Array, dtype: Any) -> Array:
    """A Python number as a 0-d array of `dtype` where `beside` is; an array as it is."""
    if isinstance(value, Number):
        return like_array(np.asarray(value, dtype), beside)
    return value


def run_kernel(name: str, operands: list[Any], params: tuple[float, ...], dtype: Any) -> Array:
    """Casts the operands to the floating `dtype` and runs the kernel, on the CPU 16-bit ones in
    float32.
    """
    operands = one_device(name, operands)
    on_cuda = builtins.any(is_on_cuda(o) for o in operands)
    work = dtype if dtype.itemsize >= 4 or on_cuda else np.dtype(np.float32)
    ready = [
        float(o)
        if isinstance(o, Number)
        else readable(o if o.dtype == work else cast_array(o, work))
        for o in operands
    ]
    like = next(o for o in ready if not isinstance(o, float))
    y = getattr(kernels(like), name)(*ready, None, *params)
    if y is NotImplemented:
        raise TypeError(f"{name}: no kernel for {[getattr(o, 'dtype', o) for o in operands]}")
    result: Array = y if work == dtype else cast_array(y, dtype)
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
        y = run_kernel(name, [x], params, x.dtype)
    return record(node, y, (input,), (input, *params))


def unary_from_output(name: str, node: type[Node], input: Tensor, *params: float) -> Tensor:
    """Like `unary` for an op whose derivative needs only the result."""
    x = expect_tensor(name, "input", input)
    y = getattr(_cpu, name)(x, None, *params)
    if y is NotImplemented:
        if not is_floating(x.dtype):
            return unary_from_output(name, node, input.to(get_default_dtype()), *params)
        y = run_kernel(name, [x], params, x.dtype)
    return record(node, y, (input,), (y, *params))


def backward_kernel(name: str, grad: Tensor, saved: Tensor, *params: float) -> Tensor:
    """One fused kernel f(grad, saved; params), outside the graph."""
    y = getattr(_cpu, name)(grad.array, saved.array, None, *params)
    if y is NotImplemented:
        y = run_kernel(name, [grad.array, saved.array], params, saved.array.dtype)
    return wrap(y)


def scalar_like(tensor: TensorBase, value: Any, dtype: Any = None) -> Tensor:
    """A 0-d tensor on the device of `tensor`."""
    return wrap(like_array(np.asarray(value, dtype or tensor.array.dtype), tensor.array))


def named(name: str, doc: str, function: Any) -> Any:
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
    return _record_binary(name, run_kernel(name, operands, (), dtype), input, other)


def _integer_arithmetic(name: str, a: Any, b: Any, dtype: Any) -> Array:
    if dtype.kind == "b" and name == "sub":
        raise RuntimeError("sub: subtraction of bool tensors is not supported; use logical_xor")
    a, b = (dtype.type(o) if isinstance(o, Number) else o.astype(dtype) for o in (a, b))
    return as_storage(_INTEGER_UFUNCS[name](a, b, dtype=dtype))


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
    if np.any(b == 0):
        raise RuntimeError("div: integer division by zero")
    quotient_array = as_storage(np.floor_divide(a, b, dtype=dtype))
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
    if not is_floating(dtype) and np.any(b == 0):
        raise RuntimeError(f"{name}: integer division by zero")
    beside = input if isinstance(input, TensorBase) else other
    input, other = (
        cast(v, dtype)
        if isinstance(v, TensorBase)
        else scalar_like(beside, v, dtype)
        if isinstance(beside, TensorBase)
        else wrap(np.asarray(v, dtype))
        for v in (input, other)
    )
    with np.errstate(all="ignore"):
        y = as_storage(ufunc(input.array, other.array))
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
        y = as_storage(np.negative(x))
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
            return wrap(as_storage(np.maximum(x, x.dtype.type(0))))
        y = run_kernel("relu", [x], (), x.dtype)
    return record(ReLU, y, (input,), (y,))


@method
def abs(input: Tensor) -> Tensor:
    """The absolute value; the gradient at 0 is 0."""
    x = expect_tensor("abs", "input", input)
    if not is_floating(x.dtype):
        return wrap(as_storage(np.abs(x)))
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
    return named(name, doc, lambda input: run(name, node, input))


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


# ---- rounding and sign, by NumPy: the gradient is 0 ----


class ZeroGradient(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        return wrap(np.zeros_like(grad.array))


def _define_step(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Tensor) -> Tensor:
        x = expect_tensor(name, "input", input)
        integral = x.dtype.kind in "iub" and name != "sign"
        y = x.copy() if integral else as_storage(ufunc(x)).astype(x.dtype, copy=False)
        return record(ZeroGradient, y, (input,), ())

    return named(name, f"{doc}; the gradient is 0.", function)


floor: Any = _define_step("floor", np.floor, "The largest integer not above x")
ceil: Any = _define_step("ceil", np.ceil, "The smallest integer not below x")
trunc: Any = _define_step("trunc", np.trunc, "x without its fraction")
sign: Any = _define_step("sign", np.sign, "-1, 0 or 1")


@method
def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest integer (half to even), or with `decimals` digits; the gradient is 0."""
    x = expect_tensor("round", "input", input)
    return record(ZeroGradient, as_storage(np.round(x, decimals)), (input,), ())


@method
def frac(input: Tensor) -> Tensor:
    """X - trunc(x)."""
    return sub(input, trunc(input))


# ---- limits ----


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
            low = min if isinstance(min, Tensor) else scalar_like(input, min)
            input = maximum(input, low)
        if max is not None:
            high = max if isinstance(max, Tensor) else scalar_like(input, max)
            input = minimum(input, high)
        return input
    for argument, value in (("min", min), ("max", max)):
        if value is not None and not isinstance(value, (*Number, np.generic)):
            raise TypeError(f"clamp: {argument} must be a number, got {type(value).__name__}")
    if not is_floating(x.dtype):
        if isinstance(min, float) or isinstance(max, float):
            return clamp(input.to(get_default_dtype()), min, max)
        return wrap(as_storage(np.clip(x, min, max)))
    lowest = -math.inf if min is None else float(min)
    highest = math.inf if max is None else float(max)
    return unary("clamp", Clamp, input, lowest, highest)


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
        y = as_storage(ufunc(input.array, other.array))
    return record(Extremum, y, (input, other), (input, other, name == "maximum"))


@method
def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of the two, broadcast; NaN if either is NaN."""
    return _extremum("maximum", np.maximum, input, other)


@method
def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of the two, broadcast; NaN if either is NaN."""
    return _extremum("minimum", np.minimum, input, other)
