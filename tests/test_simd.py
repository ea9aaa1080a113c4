"""Vector functions against wider precision: at most 2 ulp over every magnitude."""

from __future__ import annotations

import numpy as np
import pytest

from grebe import _cpu

MAX_ULP = 2.0


def specials(dtype: type) -> np.ndarray:
    info = np.finfo(dtype)
    tiny, small = info.smallest_subnormal, info.smallest_normal
    values = [0, tiny, 3 * tiny, small, info.eps, info.eps / 2, 0.5, 0.625, 0.927734375, 1, np.pi]
    values += [np.pi / 2, np.log(2) / 2, 2**0.5, 20, 88.72, 88.73, 103.9, 104, 709.7, 709.8, 745.2]
    values += [1e6, 1.0000001e6, info.max, np.inf, np.nan, 1 - info.epsneg, 1 + info.eps]
    with np.errstate(over="ignore"):
        x = np.array(values, dtype=dtype)
    return np.concatenate([x, -x, np.nextafter(x, 0), np.nextafter(-x, 0)])


def sweep(dtype: type, size: int) -> np.ndarray:
    """Bit patterns of every exponent and sign, the ranges where functions bend, and edge values."""
    rng = np.random.default_rng(5)
    bits, unsigned = (32, np.uint32) if dtype is np.float32 else (64, np.uint64)
    patterns = rng.integers(0, 2**bits, size // 2, dtype=unsigned).view(dtype)
    ranges = [rng.uniform(-r, r, size // 10) for r in (1, 4, 20, 110, 750)]
    return np.concatenate([specials(dtype), patterns, *(r.astype(dtype) for r in ranges)])


def wide_sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def wide_erf(x: np.ndarray) -> np.ndarray:
    """erf in long double: Maclaurin series below 3, continued fraction of erfc above."""
    x = np.asarray(x, dtype=np.longdouble)
    a = np.minimum(np.abs(x), 12)
    near = np.minimum(a, 3)
    term, total = near.copy(), near.copy()
    for k in range(1, 90):  # sum of 2^k x^(2k+1) / (2k+1)!!, all terms positive
        term = term * (2 * near * near) / (2 * k + 1)
        total = total + term
    sqrt_pi = np.longdouble("1.7724538509055160273")
    series = 2 / sqrt_pi * np.exp(-near * near) * total
    far = np.maximum(a, 3)
    fraction = far.copy()
    for k in range(120, 0, -1):
        fraction = far + np.longdouble(k) / 2 / fraction
    tail = 1 - np.exp(-far * far) / (sqrt_pi * fraction)
    return np.where(np.isnan(x), x, np.copysign(np.where(a < 3, series, tail), x))


FUNCTIONS = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "tanh": np.tanh,
    "sigmoid": wide_sigmoid,
    "erf": wide_erf,
    "sin": np.sin,
    "cos": np.cos,
}


def ulp_error(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of `exact`; infinity where NaN or infinity differ."""
    info = np.finfo(got.dtype)
    wide = exact.dtype.type
    _, exponent = np.frexp(exact)
    lowest = np.frexp(wide(info.smallest_subnormal))[1] - 1
    unit = np.ldexp(wide(1), np.maximum(exponent - info.nmant - 1, lowest))
    # An overflow to infinity is as far off as the next number above the largest would be.
    top = wide(info.max) + np.ldexp(wide(1), np.frexp(wide(info.max))[1] - info.nmant - 1)
    finite_got = np.clip(got.astype(wide), -top, top)
    error = np.abs(finite_got - np.clip(exact, -top, top)) / unit
    same = (np.isnan(got) & np.isnan(exact)) | (got == exact)
    return np.where(same, 0, np.where(np.isnan(error), np.inf, error))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_in_ulp(name: str, dtype: type) -> None:
    single = dtype is np.float32
    if not single and np.finfo(np.longdouble).nmant < 60:
        pytest.skip("long double is no wider than double here")
    x = sweep(dtype, 2_000_000 if single else 300_000)
    if name == "erf":
        x = x[:: 8 if single else 4]
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64 if single and name != "erf" else np.longdouble))
    got = _cpu.__dict__[name](x)
    error = ulp_error(got, exact)
    worst = int(np.argmax(error))
    assert error[worst] <= MAX_ULP, f"{name}({x[worst]!r}) = {got[worst]!r}, exact {exact[worst]!r}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_exponent(dtype: type) -> None:
    """One value of every exponent and sign through exp, log and sqrt."""
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    x = np.ldexp(dtype(1.0), exponents)
    np.testing.assert_array_equal(_cpu.log2(x), exponents.astype(dtype))
    np.testing.assert_array_equal(_cpu.sqrt(x), np.sqrt(x))
    assert np.isnan(_cpu.log(-x)).all()


@pytest.mark.parametrize("name", ["expm1", "log1p", "tanh", "erf", "sin", "neg", "sqrt"])
def test_sign_of_zero(name: str) -> None:
    for dtype in (np.float32, np.float64):
        y = _cpu.__dict__[name](np.array([0.0, -0.0], dtype))
        assert not y.any()
        assert np.signbit(y).tolist() == ([True, False] if name == "neg" else [False, True])
