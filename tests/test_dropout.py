"""Dropout: share of zeros, scale, the same mask in backward, whole channels, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import grebe
from grebe.ops.dropout import bias_dropout_add, dropout, dropout1d, dropout2d


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_and_scale(p: float) -> None:
    x = grebe.ones(300, 333, requires_grad=True)
    y = dropout(x, p)
    y.backward(grebe.ones(300, 333))
    values = y.detach().numpy()
    assert abs((values == 0).mean() - p) < 4 * math.sqrt(p * (1 - p) / values.size)
    np.testing.assert_allclose(values[values != 0], 1 / (1 - p), rtol=1e-6)
    assert (x.grad.numpy() == values).all()
    assert not (dropout(x, p).detach().numpy() == values).all()
    grebe.manual_seed(0)
    assert (dropout(x, p).detach().numpy() == values).all()


def test_ends_and_evaluation() -> None:
    x = grebe.ones(5)
    assert dropout(x, 1.0).tolist() == [0] * 5
    assert dropout(x, 0.0) is x and dropout(x, 0.5, training=False) is x
    y = x * 1
    assert dropout(y, 0.5, inplace=True) is y


@pytest.mark.parametrize("shape", [(8, 16, 9), (16, 9)])
def test_whole_channels(shape: tuple[int, ...]) -> None:
    y = dropout1d(grebe.ones(*shape), 0.5).numpy()
    assert (y == y[..., :1]).all() and set(np.unique(y)) == {0, 2}
    y = dropout2d(grebe.ones(*shape, 3), 0.5).numpy()
    assert (y == y[..., :1, :1]).all() and set(np.unique(y)) == {0, 2}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    "shape", [(5,), (3, 5), (0, 5), (7, 128), (40, 300), (3, 7, 10), (700, 96), (300, 1000)]
)
def test_bias_dropout_add(shape: tuple[int, ...], biased: bool, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(dtype) for s in (shape, shape[-1:], shape, shape)]
    grad = grebe.from_numpy(arrays.pop())
    results = []
    for threads in (1, 2, 1):
        grebe.set_num_threads(threads)
        x, b, r = (grebe.from_numpy(a).requires_grad_() for a in arrays)
        grebe.manual_seed(3)
        if len(results) < 2:
            y = bias_dropout_add(x, b if biased else None, r, 0.3)
        else:
            y = dropout(x + b if biased else x, 0.3) + r
        y.backward(grad)
        leaves = (x, b, r) if biased else (x, r)
        results.append([y.detach().numpy()] + [leaf.grad.numpy() for leaf in leaves])
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for one, two, want in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes() and one.dtype == dtype
        np.testing.assert_allclose(one, want, rtol=tolerance, atol=tolerance * 10)


def test_bias_dropout_add_further() -> None:
    x, b = grebe.ones(4, 6, requires_grad=True), grebe.ones(6, requires_grad=True)
    assert (bias_dropout_add(x, b, x, 0.5, training=False).detach().numpy() == 3).all()
    assert (bias_dropout_add(x, b, x, 1.0).detach().numpy() == 1).all()
    y = bias_dropout_add(x, b, grebe.zeros(4, 6), 0.5)
    gx, gb = grebe.autograd.grad(y.sum(), (x, b), create_graph=True)
    np.testing.assert_array_equal(gx.detach().numpy() * 2, y.detach().numpy())
    np.testing.assert_array_equal(gb.detach().numpy(), gx.detach().numpy().sum(0))
    with pytest.raises(ValueError, match=r"bias of shape \[6\], got \[4, 6\]"):
        bias_dropout_add(x, x, x)
    with pytest.raises(ValueError, match=r"residual of shape \[4, 6\], got \[6\]"):
        bias_dropout_add(x, b, b)
    with pytest.raises(TypeError, match="residual of dtype float32, got float64"):
        bias_dropout_add(x, b, x.double())


@pytest.mark.parametrize("p", [1e-4, 3 / 2**17])
def test_small_probabilities(p: float) -> None:
    zeros = (dropout(grebe.ones(4_000_000), p).numpy() == 0).sum()
    assert abs(zeros - 4e6 * p) < 5 * math.sqrt(4e6 * p)


def test_errors() -> None:
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
            dropout(grebe.ones(2), p)
    with pytest.raises(TypeError, match="floating point dtype, got int64"):
        dropout(grebe.tensor([1, 2]))
    with pytest.raises(ValueError, match="expected 3-D or 4-D input, got 2-D"):
        dropout2d(grebe.ones(2, 2))
