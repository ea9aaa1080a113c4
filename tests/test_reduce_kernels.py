"""Reduction kernels: every layout and set of dimensions, accuracy, NaN, ties, threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from grebe import _cpu

DTYPES = [np.float32, np.float64]


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = _cpu.num_threads()
    _cpu.set_num_threads(n)
    try:
        yield
    finally:
        _cpu.set_num_threads(before)


def run(name: str, x: np.ndarray, axes: tuple[int, ...], *params: float) -> np.ndarray:
    kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    y = np.full(kept, np.nan, x.dtype)
    assert _cpu.__dict__[name](x, y, *params) is None
    return y


def expected(name: str, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    wide = x.astype(np.longdouble)
    if name == "reduce_sum_squares":
        return (wide * wide).sum(axis=axes, keepdims=True)
    method = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min"}[name]
    return getattr(wide, method)(axis=axes, keepdims=True)


def views(dtype: type) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(3)
    for shape in [
        (1,),
        (7,),
        (40,),
        (3, 5),
        (5, 3),
        (2, 130),
        (300, 3),
        (40, 50),
        (4, 9, 33),
        (2, 3, 4, 21),
    ]:
        x = rng.standard_normal(shape).astype(dtype)
        yield x
        yield x.T
        yield x[::-1]
        if x.ndim > 1:
            yield x[:, ::2]
            yield np.broadcast_to(x[:, :1], shape)
    yield rng.standard_normal((2, 4, 5, 24)).astype(dtype).transpose(0, 3, 1, 2)  # channels-last
    yield rng.standard_normal((70, 200)).astype(dtype)


def subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    for mask in range(2**ndim):
        yield tuple(d for d in range(ndim) if mask >> d & 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_sum_squares", "reduce_max", "reduce_min"])
def test_layouts(name: str, dtype: type) -> None:
    params = (0.5,) if "sum" in name else ()
    for x in views(dtype):
        for axes in subsets(x.ndim):
            exact = expected(name, x, axes) * (0.5 if params else 1)
            got = run(name, x, axes, *params)
            if "sum" in name:
                magnitude = np.abs(x.astype(np.float64)).sum(axis=axes, keepdims=True) + 1
                tolerance = 4 * np.finfo(dtype).eps * magnitude
                assert (np.abs(got - exact) <= tolerance * (1 + np.abs(x).max())).all(), axes
            else:
                np.testing.assert_array_equal(got, exact.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_max", "reduce_min"])
def test_lengths_at_the_boundaries_of_paths(name: str, dtype: type) -> None:
    """Small integers, whose sums are exact: rows by the group, wide columns, rows together."""
    rng = np.random.default_rng(0)
    sizes = [(19, n) for n in (127, 128, 129, 145, 2047, 2049, 4095, 4096, 4097)]
    sizes += [(m, n) for n in (64, 65, 129, 130, 513, 1024, 1025) for m in (7, 8, 9, 127, 137)]
    for shape in sizes:
        x = rng.integers(-9, 9, (shape[0], shape[1] + 1)).astype(dtype)
        for view in (x[:, 1:], x[:, :-1].copy()):
            for axis in (0, 1):
                want = getattr(view, name[7:])(axis=axis, keepdims=True)
                got = []
                for threads in (1, 2):
                    _cpu.set_num_threads(threads)
                    got.append(run(name, view, (axis,), *((1.0,) if "sum" in name else ())))
                np.testing.assert_array_equal(got[0], want)
                np.testing.assert_array_equal(got[1], want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_wide_columns_and_grouped_rows(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((137, 1030)).astype(dtype) + dtype(3)
    for axis in (0, 1):
        mean = np.full([1 if d == axis else n for d, n in enumerate(x.shape)], np.nan, dtype)
        var = mean.copy()
        _cpu.reduce_moments(x, mean, var, 1.0)
        wide, eps = x.astype(np.longdouble), np.finfo(dtype).eps
        np.testing.assert_allclose(mean, wide.mean(axis=axis, keepdims=True), 8 * eps)
        np.testing.assert_allclose(var, wide.var(axis=axis, ddof=1, keepdims=True), 32 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(dtype: type) -> None:
    for x in views(dtype):
        x = x + dtype(3)
        for axes in subsets(x.ndim):
            kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
            mean, var = np.full(kept, np.nan, dtype), np.full(kept, np.nan, dtype)
            _cpu.reduce_moments(x, mean, var, 0.0)
            wide = x.astype(np.longdouble)
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(mean, wide.mean(axis=axes, keepdims=True), 4 * eps, 8 * eps)
            np.testing.assert_allclose(var, wide.var(axis=axes, keepdims=True), 8 * eps, 32 * eps)
    one, out = np.ones((1, 3), dtype), np.empty((2, 1, 3), dtype)
    _cpu.reduce_moments(one, out[0], out[1], 1.0)
    assert (out[0] == 1).all() and np.isnan(out[1]).all()
    large = (np.random.default_rng(0).standard_normal((3, 5000)) + 1e4).astype(dtype)
    mean, var = np.empty((2, 3, 1), dtype)
    _cpu.reduce_moments(large, mean, var, 1.0)
    wide = large.astype(np.longdouble)
    np.testing.assert_allclose(var, wide.var(axis=1, keepdims=True, ddof=1), 1e-5)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_sum_is_as_accurate_as_pairwise(axes: tuple[int, ...]) -> None:
    for seed, shape in enumerate([(3000, 1000), (1_000_000, 3), (2, 1_500_000), (4_000_000, 1)]):
        x = np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
        exact = x.astype(np.float64).sum(axis=axes, keepdims=True)
        got = run("reduce_sum", x, axes, 1.0)
        plain = x.sum(axis=axes, keepdims=True, dtype=np.float32)
        limit = 2 * np.abs(plain - exact).max() + np.finfo(np.float32).eps * np.abs(exact).max()
        assert np.abs(got - exact).max() <= limit


def test_sum_of_doubles_is_compensated() -> None:
    x = np.random.default_rng(1).uniform(0, 1, 2_000_000)
    exact = x.astype(np.longdouble).sum()
    assert abs(run("reduce_sum", x, (0,), 1.0)[0] - exact) <= 2 * np.spacing(float(exact))


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_nan_and_empty(dtype: type) -> None:
    for n in (3, 40, 10_000):
        for at in (0, n // 2, n - 1):
            x = np.ones((n, 2), dtype)
            x[at, 0] = np.inf
            np.testing.assert_array_equal(run("reduce_sum", x, (0,), 1.0), [[np.inf, n]])
            np.testing.assert_array_equal(run("reduce_max", x, (0,)), [[np.inf, 1]])
            x[at, 0] = np.nan
            for axes in ((0,), (1,), (0, 1)):
                for name in ("reduce_max", "reduce_min"):
                    np.testing.assert_array_equal(run(name, x, axes), expected(name, x, axes))
                    flipped = np.asfortranarray(x)
                    np.testing.assert_array_equal(run(name, flipped, axes), expected(name, x, axes))
    assert run("reduce_sum", np.empty((0, 3), dtype), (0,), 1.0).tolist() == [[0, 0, 0]]
    assert run("reduce_sum", np.empty((3, 0), dtype), (0,), 1.0).shape == (1, 0)
    assert np.isnan(run("reduce_sum", np.empty((0,), dtype), (0,), np.nan)).all()
    assert run("reduce_sum", np.array(2.5, dtype), (), 1.0) == 2.5


def arg(x: np.ndarray, axis: int, largest: bool) -> np.ndarray:
    kept = tuple(1 if d == axis else n for d, n in enumerate(x.shape))
    index = np.full(kept, -1, np.int64)
    _cpu.argmax(x, index, axis, largest)
    return index


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_argmax(dtype: type, largest: bool) -> None:
    choose = np.argmax if largest else np.argmin
    rng = np.random.default_rng(0)
    for x in views(dtype):
        coarse = np.round(x)  # many ties
        holes = np.where(rng.random(x.shape) < 0.05, np.nan, coarse).astype(dtype)
        for v in (x, coarse, holes, np.asfortranarray(holes)):
            for axis in range(v.ndim):
                np.testing.assert_array_equal(arg(v, axis, largest), choose(v, axis, keepdims=True))
    for value in (np.inf, -np.inf, np.nan, 0.0):
        x = np.full((3, 33), value, dtype)
        assert not arg(x, 1, largest).any() and not arg(x.T, 0, largest).any()
    x = rng.integers(0, 1000, 400_000).astype(dtype)
    np.testing.assert_array_equal(arg(x, 0, largest), choose(x, 0, keepdims=True))
    x[300_000] = np.nan
    np.testing.assert_array_equal(arg(x, 0, largest), [300_000])


@pytest.mark.parametrize("shape", [(1_000_003,), (300_000, 10), (10, 300_000), (500, 4000)])
def test_threads_agree_to_the_bit(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for axes in list(subsets(x.ndim))[1:]:
        results = []
        for n in (1, 2, 3):
            with threads(n):
                results.append(run("reduce_sum", x, axes, 1.0))
                results.append(run("reduce_max", x, axes))
        for i in range(2, 6):
            np.testing.assert_array_equal(results[i], results[i % 2])
