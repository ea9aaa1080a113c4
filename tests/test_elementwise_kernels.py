"""Elementwise kernels on arrays: formulas, strides, broadcasting, outputs, threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from grebe import _cpu
from reference import erf

F = Callable[..., np.ndarray]
DTYPES = [np.float32, np.float64]
SQRT_HALF, TANH_SCALE = 0.5**0.5, (2 / np.pi) ** 0.5


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def density(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(TANH_SCALE * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t * t) * TANH_SCALE * (1 + 3 * 0.044715 * x * x)


UNARY: dict[str, tuple[F, tuple[float, ...]]] = {
    "neg": (lambda x: -x, ()),
    "abs": (np.abs, ()),
    "exp": (np.exp, ()),
    "expm1": (np.expm1, ()),
    "log": (np.log, ()),
    "log1p": (np.log1p, ()),
    "log2": (np.log2, ()),
    "sqrt": (np.sqrt, ()),
    "rsqrt": (lambda x: 1 / np.sqrt(x), ()),
    "reciprocal": (lambda x: 1 / x, ()),
    "square": (np.square, ()),
    "sin": (np.sin, ()),
    "cos": (np.cos, ()),
    "tanh": (np.tanh, ()),
    "sigmoid": (sigmoid, ()),
    "relu": (lambda x: np.maximum(x, 0), ()),
    "gelu": (lambda x: x / 2 * (1 + erf(x * SQRT_HALF)), ()),
    "gelu_tanh": (lambda x: x / 2 * (1 + np.tanh(TANH_SCALE * (x + 0.044715 * x**3))), ()),
    "silu": (lambda x: x * sigmoid(x), ()),
    "elu": (lambda x, p: np.where(x > 0, x, p * np.expm1(x)), (0.7,)),
    "leaky_relu": (lambda x, p: np.where(x > 0, x, p * x), (0.1,)),
    "erf": (erf, ()),
    "logsigmoid": (lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))), ()),
    "clamp": (lambda x, p, q: np.clip(x, p, q), (-0.5, 1.25)),
    "sign": (np.sign, ()),
    "affine": (lambda x, p, q: p * x + q, (2.5, -0.75)),
}

BINARY: dict[str, tuple[F, tuple[float, ...]]] = {
    "add": (np.add, ()),
    "sub": (np.subtract, ()),
    "mul": (np.multiply, ()),
    "div": (np.divide, ()),
    "maximum": (np.maximum, ()),
    "minimum": (np.minimum, ()),
    "tanh_backward": (lambda g, y: g * (1 - y * y), ()),
    "sigmoid_backward": (lambda g, y: g * y * (1 - y), ()),
    "relu_backward": (lambda g, y: np.where(y > 0, g, 0), ()),
    "sqrt_backward": (lambda g, y: g / (2 * y), ()),
    "rsqrt_backward": (lambda g, y: -0.5 * g * y**3, ()),
    "reciprocal_backward": (lambda g, y: -g * y * y, ()),
    "gelu_backward": (lambda g, x: g * ((1 + erf(x * SQRT_HALF)) / 2 + x * density(x)), ()),
    "gelu_tanh_backward": (lambda g, x: g * gelu_tanh_slope(x), ()),
    "silu_backward": (lambda g, x: g * sigmoid(x) * (1 + x * (1 - sigmoid(x))), ()),
    "elu_backward": (lambda g, x, p: np.where(x > 0, g, g * p * np.exp(x)), (0.7,)),
    "leaky_relu_backward": (lambda g, x, p: np.where(x > 0, g, p * g), (0.1,)),
    "logsigmoid_backward": (lambda g, x: g * sigmoid(-x), ()),
    "clamp_backward": (lambda g, x, p, q: np.where((x >= p) & (x <= q), g, 0), (-0.5, 1.25)),
    "abs_backward": (lambda g, x: g * np.sign(x), ()),
    "erf_backward": (lambda g, x: g * 2 / np.sqrt(np.pi) * np.exp(-x * x), ()),
    "log1p_backward": (lambda g, x: g / (1 + x), ()),
    "sin_backward": (lambda g, x: g * np.cos(x), ()),
    "cos_backward": (lambda g, x: -g * np.sin(x), ()),
}

POSITIVE = {"log", "log2", "sqrt", "rsqrt", "log1p", "log1p_backward", "sqrt_backward"}


def values(name: str, shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape) * 2
    return np.asarray(np.abs(x) + 0.125 if name in POSITIVE else x, dtype)


def check(got: np.ndarray, reference: F, *args: object) -> None:
    """Within twice the error of NumPy in the same dtype, plus a few units of rounding."""
    wide = [a.astype(np.longdouble) if isinstance(a, np.ndarray) else a for a in args]
    exact = np.asarray(reference(*wide), dtype=np.float64)
    plain = np.asarray(reference(*args), dtype=np.float64)
    eps = float(np.finfo(got.dtype).eps)
    floor = 4 * eps * (1 + float(np.max(np.abs(exact), initial=0)))
    error = float(np.max(np.abs(got - exact), initial=0))
    assert error <= 2 * float(np.max(np.abs(plain - exact), initial=0)) + floor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: type) -> None:
    reference, params = UNARY[name]
    kernel = _cpu.__dict__[name]
    for n in (0, 1, 3, 10, 16, 17, 1000):
        x = values(name, (n,), dtype)
        check(kernel(x, None, *params), reference, x, *params)
    x = values(name, (6, 7, 20), dtype)
    for view in (x[::2, :, ::3], x.transpose(2, 0, 1), x[:, ::-1], x[:, :1]):
        check(kernel(view, None, *params), reference, view, *params)
    out = np.full((6, 40), 7, dtype)[:, ::2]
    kernel(x[:, 0], out, *params)
    check(out, reference, x[:, 0], *params)
    assert (out.base[:, 1::2] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, dtype: type) -> None:
    reference, params = BINARY[name]
    kernel = _cpu.__dict__[name]
    shapes = [((n,), (n,)) for n in (0, 1, 9, 16, 33, 1000)]
    shapes += [((5, 40), (40,)), ((5, 1), (1, 40)), ((4, 5, 6), (5, 1)), ((3, 1), (3, 700))]
    shapes += [((), (3,)), ((), ())]
    for left, right in shapes:
        a, b = values("", left, dtype, 1), values(name, right, dtype, 2)
        check(kernel(a, b, None, *params), reference, a, b, *params)
    a, b = values("", (8, 9, 10), dtype, 1), values(name, (8, 9, 10), dtype, 2)
    for view in (np.s_[::2, ::-1, ::3], np.s_[:, 4], np.s_[:, :, 3:4]):
        check(kernel(a[view], b[view], None, *params), reference, a[view], b[view], *params)
    check(kernel(a, b.T.copy().T, None, *params), reference, a, b, *params)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(dtype: type) -> None:
    """NaN passes, infinities and huge values give limits."""
    x = np.array([np.nan, np.inf, 1e30, -1e30, -np.inf], dtype)
    for name in ("relu", "clamp", "tanh", "sigmoid", "elu", "leaky_relu", "logsigmoid", "erf"):
        y = _cpu.__dict__[name](x, None, *UNARY[name][1])
        assert np.isnan(y[0]) and not np.isnan(y[1:]).any(), name
    one = np.ones(5, dtype)
    for name in ("gelu_backward", "gelu_tanh_backward", "silu_backward"):
        y = _cpu.__dict__[name](one, x)
        assert np.isnan(y[0])
        np.testing.assert_array_equal(y[1:], [1, 1, 0, 0])
    for name in ("maximum", "minimum"):
        for a, b in ((x, one), (one, x)):
            assert np.isnan(_cpu.__dict__[name](a, b)[0])


def test_memory_format_is_kept() -> None:
    x = np.ones((2, 3, 4, 5), np.float32).transpose(0, 3, 1, 2)
    assert _cpu.relu(x).strides == x.strides
    assert _cpu.add(x, np.float32(1) * np.ones((5, 1, 1), np.float32)).strides == x.strides


@pytest.mark.parametrize("name", ["exp", "relu", "sigmoid"])
def test_large_and_threads(name: str) -> None:
    """Past the size where outputs are streamed: aligned, unaligned, in place; 1 and 2 threads."""
    x = values(name, (5_000_003,), np.float32)
    kernel, threads = _cpu.__dict__[name], _cpu.num_threads()
    results = []
    try:
        for n in (1, 2):
            _cpu.set_num_threads(n)
            results.append(kernel(x))
            shifted = np.empty(x.size + 1, np.float32)[1:]
            kernel(x, shifted)
            inplace = x.copy()
            kernel(inplace, inplace)
            np.testing.assert_array_equal(results[-1], shifted)
            np.testing.assert_array_equal(results[-1], inplace)
    finally:
        _cpu.set_num_threads(threads)
    np.testing.assert_array_equal(*results)
    check(results[0], UNARY[name][0], x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ones", [(0,), (1,), (0, 1), ()])
def test_copies_of_repeated_elements_are_dense(ones: tuple[int, ...], dtype: type) -> None:
    shape = (5, 1300)
    small = tuple(1 if d in ones else n for d, n in enumerate(shape))
    x = np.random.default_rng(0).standard_normal(small).astype(dtype)
    repeated = np.broadcast_to(x, shape)
    y = _cpu.copy(repeated)
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y, repeated)
    across = np.full((1300, 5), np.nan, dtype).T
    _cpu.neg(repeated, across)
    np.testing.assert_array_equal(across, -repeated)
