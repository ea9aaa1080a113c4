"""Casts between float32 and bfloat16, by the kernel and, where arrays are not dense, by NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import grebe

Array = np.ndarray[Any, np.dtype[Any]]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, 1.00390625, 1.01171875]


def bits(x: Array) -> Array:
    """The bits of bfloat16 numbers, all NaN alike."""
    return np.where(np.isnan(x), 0x7FC0, x.view(np.uint16)).astype(np.uint16)


def numbers(n: int) -> Array:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-38, 38, n)).astype(np.float32)
    x[: len(SPECIAL)] = np.array(SPECIAL, np.float32)[:n]
    return x


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 33, 1000, 32768, 32769, 100_003])
def test_rounding(n: int, threads: int) -> None:
    before = grebe.get_num_threads()
    grebe.set_num_threads(threads)
    try:
        x = numbers(n)
        with np.errstate(all="ignore"):
            want = x.astype(ml_dtypes.bfloat16)
        narrow = grebe.tensor(x).to(grebe.bfloat16)
        np.testing.assert_array_equal(bits(narrow.numpy()), bits(want))
        np.testing.assert_array_equal(narrow.float().numpy(), want.astype(np.float32))
    finally:
        grebe.set_num_threads(before)


@pytest.mark.parametrize("shape", [(), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_layouts(shape: tuple[int, ...], layout: str) -> None:
    x = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32)
    if layout == "F" and shape:
        x = np.asfortranarray(x)
    elif layout == "strided" and shape:
        x = np.repeat(x, 2, -1)[..., ::2]
    y = grebe.from_numpy(x).to(grebe.bfloat16)
    np.testing.assert_array_equal(bits(y.numpy()), bits(x.astype(ml_dtypes.bfloat16)))
    assert y.shape == shape and (
        y.numpy().flags.c_contiguous == x.flags.c_contiguous or layout == "strided"
    )


def test_gradient_is_cast_back() -> None:
    x = grebe.randn(20, requires_grad=True)
    (x.to(grebe.bfloat16) * 3.0).sum().backward()
    assert x.grad.dtype == grebe.float32
    np.testing.assert_array_equal(x.grad.numpy(), np.full(20, 3, np.float32))
