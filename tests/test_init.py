"""Initialisers: distributions, shapes, errors, reproducibility."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.nn import init


def values(tensor: Any) -> Any:
    return tensor.detach().numpy()


@pytest.mark.parametrize(
    ("fill", "mean", "std", "bound"),
    [
        (lambda t: init.uniform_(t, -1, 3), 1.0, 4 / math.sqrt(12), 3.0),
        (lambda t: init.normal_(t, 2, 0.5), 2.0, 0.5, math.inf),
        (lambda t: init.xavier_uniform_(t, 2), 0.0, 2 * math.sqrt(2 / 500), 2 * math.sqrt(6 / 500)),
        (lambda t: init.xavier_normal_(t), 0.0, math.sqrt(2 / 500), math.inf),
        (lambda t: init.kaiming_uniform_(t, a=math.sqrt(5)), 0.0, math.sqrt(1 / 900),
         math.sqrt(1 / 300)),
        (lambda t: init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"), 0.0,
         math.sqrt(2 / 200), math.inf),
        (lambda t: init.trunc_normal_(t), 0.0, 0.8796, 2.0),
        (lambda t: init.trunc_normal_(t, 0.0, 1.0, 3.0, 5.0), 3.2827, 0.2642, 5.0),
    ],
)  # fmt: skip
def test_distributions(fill: Any, mean: float, std: float, bound: float) -> None:
    t = grebe.empty(200, 300)
    assert fill(t) is t
    a = values(t).astype(np.float64)
    assert abs(a.mean() - mean) < 5 * std / math.sqrt(a.size)
    assert abs(a.std() / std - 1) < 0.02
    assert np.abs(a).max() <= bound * (1 + 1e-6)


def test_truncated_tail_and_both_ends() -> None:
    t = init.trunc_normal_(grebe.empty(10000), 0, 1, -8.0, -6.0)
    assert values(t).min() >= -8 and values(t).max() <= -6
    upper = init.trunc_normal_(grebe.empty(10000), 0, 1, 6.0, 8.0)
    assert values(upper).min() >= 6 and values(upper).max() <= 8
    assert abs(values(upper).mean() + values(t).mean()) < 0.02


def test_fixed_values() -> None:
    assert (values(init.constant_(grebe.empty(2, 3), 4)) == 4).all()
    assert (values(init.ones_(grebe.empty(3))) == 1).all()
    assert (values(init.zeros_(grebe.empty(3))) == 0).all()
    assert (values(init.eye_(grebe.empty(2, 3))) == np.eye(2, 3)).all()
    assert (values(init.eye_(grebe.empty(5, 2))) == np.eye(5, 2)).all()


def test_dirac_copies_channels() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    init.dirac_(conv.weight)
    x = grebe.randn(1, 3, 5, 5)
    assert np.allclose(values(conv(x)), values(x))
    grouped = init.dirac_(grebe.empty(4, 2, 3), groups=2)
    assert values(grouped).sum() == 4 and values(grouped)[2, 0, 1] == 1


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (3, 2, 2)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    t = init.orthogonal_(grebe.empty(*shape), gain=2)
    a = values(t).reshape(shape[0], -1)
    gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    assert np.allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_sparse() -> None:
    t = init.sparse_(grebe.empty(20, 6), 0.3, std=1.0)
    assert ((values(t) == 0).sum(axis=0) == 6).all()


def test_gain() -> None:
    assert init.calculate_gain("linear") == init.calculate_gain("sigmoid") == 1
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("leaky_relu", 0.2) == math.sqrt(2 / 1.04)
    assert init.calculate_gain("selu") == 0.75
    with pytest.raises(ValueError, match="unsupported nonlinearity 'abs'"):
        init.calculate_gain("abs")
    with pytest.raises(ValueError, match="negative_slope"):
        init.calculate_gain("leaky_relu", True)


def test_seed_repeats() -> None:
    grebe.manual_seed(3)
    a = values(nn.Linear(4, 4).weight).copy()
    grebe.manual_seed(3)
    assert (values(nn.Linear(4, 4).weight) == a).all()


def test_parameters_stay_leaves() -> None:
    p = nn.Parameter(grebe.empty(3, 3))
    for fill in (init.normal_, init.orthogonal_, init.trunc_normal_, init.eye_, init.ones_):
        assert fill(p) is p and p.is_leaf and p.requires_grad


def test_writes_are_seen_by_the_tape() -> None:
    p = nn.Parameter(grebe.ones(3, 3))
    y = (p * p).sum()
    init.orthogonal_(p)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        y.backward()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: init.zeros_([1]), TypeError, "zeros_: tensor must be a Tensor, got list"),
        (lambda: init.xavier_normal_(grebe.empty(3)), ValueError, "fewer than 2 dimensions"),
        (lambda: init.kaiming_normal_(grebe.empty(3, 3), mode="x"), ValueError, "'fan_out', got"),
        (lambda: init.eye_(grebe.empty(3)), ValueError, "only tensors with 2 dimensions"),
        (lambda: init.dirac_(grebe.empty(3, 3)), ValueError, "3 or 4 or 5 dimensions"),
        (lambda: init.dirac_(grebe.empty(3, 3, 3), 2), ValueError, "divisible by groups"),
        (lambda: init.orthogonal_(grebe.empty(3)), ValueError, "at least 2 dimensions"),
        (lambda: init.sparse_(grebe.empty(3, 3), 2), ValueError, "between 0 and 1"),
        (lambda: init.trunc_normal_(grebe.empty(3), 0, 1, 2, 1), ValueError, "expected a < b"),
        (lambda: init.ones_(nn.LazyLinear(3).weight), ValueError, "no shape or values yet"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
