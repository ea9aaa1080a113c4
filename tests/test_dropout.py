"""Dropout: share of zeros, scale, the same mask in backward, whole channels, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import grebe
from grebe.ops.dropout import dropout, dropout1d, dropout2d


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


def test_errors() -> None:
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
            dropout(grebe.ones(2), p)
    with pytest.raises(TypeError, match="floating point dtype, got int64"):
        dropout(grebe.tensor([1, 2]))
    with pytest.raises(ValueError, match="expected 3-D or 4-D input, got 2-D"):
        dropout2d(grebe.ones(2, 2))
