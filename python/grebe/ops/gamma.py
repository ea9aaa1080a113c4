"""The logarithm of the gamma function and its derivatives, by NumPy and the C library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._cpu import Node, record
from ..backend import Array
from ..dtypes import get_default_dtype, is_floating
from ..tensor import Tensor, expect_tensor, method
from .elementwise import mul
from .shape import through_host

__all__ = ["digamma", "lgamma", "polygamma"]

# Bernoulli's numbers B2, B4, ...
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def _log_gamma(x: float) -> float:
    try:
        return math.lgamma(x)
    except (ValueError, OverflowError):  # a pole; beyond 2.5e305
        return math.inf


def _lgamma(x: Array) -> Array:
    return np.asarray(np.frompyfunc(_log_gamma, 1, 1)(x), np.float64)


def _hurwitz_zeta(s: int, x: Array) -> Array:
    """sum over k >= 0 of (x + k)^-s for x > 0, s > 1: ten terms, then Euler and Maclaurin."""
    total = sum((x + k) ** -s for k in range(10))
    a = x + 10
    total = total + a ** (1 - s) / (s - 1) + 0.5 * a**-s
    factor = 1.0
    for j, b in enumerate(_BERNOULLI, start=1):
        factor *= s if j == 1 else (s + 2 * j - 3) * (s + 2 * j - 2)
        total = total + b / math.factorial(2 * j) * factor * a ** (1 - s - 2 * j)
    return np.asarray(total)


def _digamma(x: Array) -> Array:
    """Recurrence up to 10 and the asymptotic series; by reflection below 0."""
    mirrored = x < 0
    a = np.where(mirrored, 1 - x, x)
    shift = sum(1 / (a + k) for k in range(10))
    a = a + 10
    y = np.log(a) - 0.5 / a - shift
    for j, b in enumerate(_BERNOULLI, start=1):
        y = y - b / (2 * j) * a ** (-2 * j)
    y = np.where(mirrored, y - np.pi / np.tan(np.pi * x), y)
    y = np.where(x == 0, -np.copysign(np.inf, x), y)
    return np.where(mirrored & (x == np.floor(x)), np.nan, np.where(x == np.inf, x, y))


def _polygamma(n: int, x: Array) -> Array:
    if n == 0:
        return _digamma(x)
    positive = np.where(x > 0, x, np.nan)
    y = (-1) ** (n + 1) * math.factorial(n) * _hurwitz_zeta(n + 1, positive)
    if n == 1:  # by reflection
        mirror = (np.pi / np.sin(np.pi * x)) ** 2 - _hurwitz_zeta(2, np.where(x > 0, 1.0, 1 - x))
        y = np.where(x > 0, y, np.where(x == np.floor(x), np.inf, mirror))
    return np.where(x == np.inf, 0.0, y)


class Gamma(Node):
    """y = lgamma(x) has order -1, digamma 0; the derivative is polygamma of the next order."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        x, order = self.saved
        return mul(grad, _of_order(x, order + 1))


@through_host
def _of_order(input: Tensor, order: int) -> Tensor:
    x = input.array
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        y = _lgamma(wide) if order < 0 else _polygamma(order, wide)
    return record(Gamma, np.asarray(y).astype(x.dtype), (input,), (input, order))


def _floating(name: str, input: Tensor) -> Tensor:
    x = expect_tensor(name, "input", input)
    return input if is_floating(x.dtype) else input.to(get_default_dtype())


@method
def lgamma(input: Tensor) -> Tensor:
    """log |Gamma(x)|, elementwise."""
    return _of_order(_floating("lgamma", input), -1)


@method
def digamma(input: Tensor) -> Tensor:
    """The derivative of `lgamma`, elementwise."""
    return _of_order(_floating("digamma", input), 0)


def polygamma(n: int, input: Tensor) -> Tensor:
    """The n-th derivative of `digamma`, elementwise; nan for x <= 0 and n > 1.

    Raises:
        RuntimeError: n is no whole number >= 0.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise RuntimeError(f"polygamma: n must be a whole number >= 0, got {n!r}")
    return _of_order(_floating("polygamma", input), n)
