"""The activations of nn.functional. Kernels: csrc/cpu/elementwise.cpp."""

from __future__ import annotations

import math
from typing import Any

from .. import _cpu
from .._cpu import Node, grad_enabled, record, wrap
from ..dtypes import is_floating
from ..tensor import Tensor, expect_tensor, method
from .compare import where
from .elementwise import (
    add,
    backward_kernel,
    clamp,
    erf,
    exp,
    mul,
    neg,
    run_kernel,
    scalar_like,
    sigmoid,
    sub,
    tanh,
    unary,
)

__all__ = ["elu", "gelu", "leaky_relu", "logsigmoid", "silu", "softplus"]


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
        y = run_kernel(name, [x], (), x.dtype)
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
        return mul(grad, where(wrap(x.array > 0), scalar_like(x, 1.0), slope))


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
        return mul(grad, where(wrap(beta * x.array > threshold), scalar_like(x, 1.0), slope))


@method
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, a smooth relu; x itself where beta x > threshold."""
    if beta == 0:
        raise ValueError("softplus: beta must not be 0")
    return unary("softplus", Softplus, input, float(beta), float(threshold))
