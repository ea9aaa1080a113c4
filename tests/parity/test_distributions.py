"""Distributions and functions of gamma beside PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import distributions as theirs

import grebe
from grebe import distributions as ours

# Name, parameters, values for log_prob, values for cdf.
CASES: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("Normal", {"loc": [0.5, -2.0], "scale": [1.0, 3.0]}, [[0.1, -7.0], [3.0, 2.0]], [0.1, 9.0]),
    ("LogNormal", {"loc": [0.5, -2.0], "scale": [1.0, 0.3]}, [0.1, 7.0], [0.1, 9.0]),
    ("Laplace", {"loc": [0.5, -2.0], "scale": [1.0, 3.0]}, [0.1, -7.0], [0.1, -9.0]),
    ("Uniform", {"low": [0.0, -2.0], "high": [1.0, 3.0]}, [0.25, -2.0], [0.25, 2.0]),
    ("Exponential", {"rate": [0.5, 2.0]}, [0.25, 3.0], [0.25, 3.0]),
    ("Gamma", {"concentration": [0.5, 4.0], "rate": [1.0, 3.0]}, [0.25, 3.0], None),
    ("Beta", {"concentration1": [0.5, 4.0], "concentration0": [1.0, 3.0]}, [0.25, 0.7], None),
    ("Dirichlet", {"concentration": [[0.5, 4.0, 1.0], [1.0, 1.0, 2.0]]}, [0.2, 0.5, 0.3], None),
    ("Bernoulli", {"probs": [0.05, 0.3, 1.0]}, [0.0, 1.0, 1.0], None),
    ("Bernoulli", {"logits": [-3.0, 0.3]}, [[0.0], [1.0]], None),
    ("Geometric", {"probs": [0.1, 0.7]}, [0.0, 4.0], None),
    ("Binomial", {"total_count": 7, "probs": [0.1, 0.7]}, [0.0, 4.0], None),
    ("Binomial", {"total_count": 7, "logits": [0.1, 0.7]}, [0.0, 4.0], None),
    ("Categorical", {"probs": [[1.0, 2.0, 3.0], [1.0, 0.0, 1.0]]}, [2, 0], None),
    ("Categorical", {"logits": [0.1, 0.7, -2.0]}, [[2, 0], [1, 1]], None),
    ("OneHotCategorical", {"probs": [0.2, 0.3, 0.5]}, [0.0, 1.0, 0.0], None),
    ("Multinomial", {"total_count": 5, "probs": [0.2, 0.3, 0.5]}, [1.0, 0.0, 4.0], None),
    ("Poisson", {"rate": [0.5, 4.0]}, [0.0, 7.0], None),
]  # fmt: skip


def made(lib: Any, module: Any, name: str, parameters: dict[str, Any]) -> Any:
    arguments = {
        k: v if isinstance(v, int) else lib.tensor(v, dtype=lib.float64, requires_grad=True)
        for k, v in parameters.items()
    }
    return getattr(module, name)(**arguments), [a for a in arguments.values() if hasattr(a, "grad")]


def same(a: Any, b: Any) -> None:
    x, y = a.detach().numpy(), b.detach().numpy()
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "parameters", "values", "points"), CASES)
def test_distribution(name: str, parameters: dict[str, Any], values: Any, points: Any) -> None:
    a, a_leaves = made(grebe, ours, name, parameters)
    b, b_leaves = made(torch, theirs, name, parameters)
    assert tuple(a.batch_shape) == tuple(b.batch_shape)
    assert tuple(a.event_shape) == tuple(b.event_shape)
    same(a.log_prob(grebe.tensor(values)), b.log_prob(torch.tensor(values)))
    a.log_prob(grebe.tensor(values)).sum().backward()
    b.log_prob(torch.tensor(values)).sum().backward()
    for x, y in zip(a_leaves, b_leaves, strict=True):
        same(x.grad, y.grad)
    for what in ("mean", "variance", "stddev"):
        if name != "Categorical":
            same(getattr(a, what), getattr(b, what))
    if type(a).entropy is not ours.Distribution.entropy:
        same(a.entropy(), b.entropy())
    if points is not None:
        same(a.cdf(grebe.tensor(points)), b.cdf(torch.tensor(points)))


@pytest.mark.parametrize(("name", "parameters", "values", "points"), CASES)
def test_samples_have_the_moments(
    name: str, parameters: dict[str, Any], values: Any, points: Any
) -> None:
    grebe.manual_seed(3)
    a, leaves = made(grebe, ours, name, parameters)
    x = a.sample((20_000,))
    assert tuple(x.shape) == (20_000, *a.batch_shape, *a.event_shape) and not x.requires_grad
    assert tuple(a.sample((2, 3)).shape) == (2, 3, *a.batch_shape, *a.event_shape)
    assert tuple(a.sample().shape) == (*a.batch_shape, *a.event_shape)
    if name == "Categorical":
        counts = np.stack([(x.numpy() == k).mean(0) for k in range(3)], -1)
        np.testing.assert_allclose(counts, a.probs.detach().numpy(), atol=0.02)
        return
    mean, std = a.mean.detach().numpy(), a.stddev.detach().numpy()
    assert (np.abs(x.numpy().mean(0) - mean) <= 5 * std / 20_000**0.5 + 1e-12).all()
    if name != "LogNormal":
        np.testing.assert_allclose(x.numpy().std(0), std, rtol=0.06, atol=1e-12)
    if a.has_rsample:
        a.rsample((5,)).sum().backward()
        assert all(p.grad is not None for p in leaves)


def test_kl_divergence() -> None:
    for name, parameters, *_ in CASES:
        if getattr(ours, name) not in ours._KL or "logits" in parameters:
            continue
        if name in ("Bernoulli", "Categorical"):
            parameters = {"probs": [[0.2, 0.3, 0.5], [0.1, 0.3, 0.6]]}
        shifted = {
            k: (np.roll(v, 1, -1) * 1.0).tolist() if k not in ("low", "high") else v
            for k, v in parameters.items()
        }
        pairs = [
            (made(lib, module, name, parameters)[0], made(lib, module, name, shifted)[0])
            for lib, module in ((grebe, ours), (torch, theirs))
        ]
        same(ours.kl_divergence(*pairs[0]), theirs.kl_divergence(*pairs[1]))
    with pytest.raises(NotImplementedError, match="Normal and Poisson"):
        ours.kl_divergence(ours.Normal(0.0, 1.0), ours.Poisson(1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.Normal(0.0, -1.0), "scale must be positive"),
        (lambda: ours.Uniform(1.0, 0.0), "below"),
        (lambda: ours.Bernoulli(1.5), "a probability"),
        (lambda: ours.Bernoulli(), "Either"),
        (lambda: ours.Bernoulli(0.5, 0.5), "Either"),
        (lambda: ours.Categorical(grebe.tensor([-1.0, 2.0])), "not negative"),
        (lambda: ours.Categorical(grebe.tensor([1.0, 2.0])).log_prob(grebe.tensor(2)), "below 2"),
        (lambda: ours.Poisson(1.0).log_prob(grebe.tensor(0.5)), "whole number"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("n", [-1, 0, 1, 2, 3])
def test_gamma_functions(n: int) -> None:
    values = [1e-8, 0.1, 0.5, 1.0, 1.5, 2.0, 3.7, 9.9, 10.0, 33.3, 1e5, float("inf"), float("nan")]
    if n < 2:
        values += [-0.5, -3.3, -20.7]
    if n < 1:
        values += [-1.0, 0.0]
    else:
        values.remove(float("inf"))  # PyTorch's is nan
    a, b = grebe.tensor(values, dtype=grebe.float64), torch.tensor(values, dtype=torch.float64)
    a.requires_grad_()
    b.requires_grad_()

    def call(lib: Any, x: Any) -> Any:
        return lib.lgamma(x) if n < 0 else lib.digamma(x) if n == 0 else lib.polygamma(n, x)

    x, y = call(grebe, a), call(torch, b)
    np.testing.assert_allclose(
        x.detach().numpy(), y.detach().numpy(), rtol=1e-8 if n == 1 else 1e-11, atol=1e-14
    )
    finite = slice(0, 11)  # positive ones
    x[finite].sum().backward()
    y[finite].sum().backward()
    np.testing.assert_allclose(a.grad.numpy()[finite], b.grad.numpy()[finite], rtol=1e-8)
