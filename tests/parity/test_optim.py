"""A hundred steps of every optimizer and schedule give PyTorch's parameters and learning rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import grebe
import grebe.optim

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.5, "weight_decay": 0.1}),
    ("Adamax", {}),
    ("Adamax", {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"lr": 0.05, "weight_decay": 0.1, "momentum_decay": 0.1}),
    ("NAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_parameters(name: str, options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(s).astype(dtype) for s in [(33, 7), (100,), (2, 3, 4)]]
    ours = [grebe.from_numpy(a.copy()).requires_grad_() for a in start]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in start]
    a = getattr(grebe.optim, name)(ours, **options)
    b = getattr(torch.optim, name)(theirs, **options)
    for _ in range(100):
        for p, q in zip(ours, theirs, strict=True):
            g = rng.standard_normal(p.shape).astype(dtype)
            p.grad, q.grad = grebe.from_numpy(g), torch.from_numpy(g)
        a.step()
        b.step()
    # PyTorch keeps NAdam's product of momenta in float32.
    tolerance = 1e-6 if dtype == np.float32 or name == "NAdam" else 1e-13
    for p, q in zip(ours, theirs, strict=True):
        got, want = p.detach().numpy(), q.detach().numpy()
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max() * 2


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("problem", ["rosenbrock", "logistic"])
def test_lbfgs(problem: str, search: str | None) -> None:
    rng = np.random.default_rng(0)
    data, labels = rng.standard_normal((40, 6)), rng.integers(0, 2, 40).astype(np.float64)
    # Without a search the valley of Rosenbrock's function needs short steps.
    rate = 1.0 if search else 0.001 if problem == "rosenbrock" else 0.1
    paths = []
    for lib in (grebe, torch):
        start = np.array([-1.2, 1.0, 0.5, 2.0]) if problem == "rosenbrock" else np.zeros(6)
        x = lib.from_numpy(start).requires_grad_()
        inputs, wanted = lib.from_numpy(data), lib.from_numpy(labels)

        def loss(x: Any = x, inputs: Any = inputs, wanted: Any = wanted) -> Any:
            if problem == "rosenbrock":
                a, b = x[:-1], x[1:]
                return (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum()
            z = inputs @ x
            return ((1 + z.exp()).log() - wanted * z).sum() + 0.1 * (x**2).sum()

        optimizer = lib.optim.LBFGS([x], lr=rate, max_iter=5, history_size=4, line_search_fn=search)

        def closure(optimizer: Any = optimizer, loss: Any = loss) -> Any:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value.detach()

        path = []
        for _ in range(20):
            before = optimizer.step(closure)
            path.append([float(before), *x.detach().numpy().tolist()])
        paths.append(path)
        assert optimizer.state[x]["func_evals"] > 5
    np.testing.assert_allclose(paths[0], paths[1], rtol=1e-6, atol=1e-8)


def _sequence(lib: Any, optimizer: Any) -> Any:
    s = lib.optim.lr_scheduler
    parts = [s.LinearLR(optimizer, 0.1, 1.0, 3), s.CosineAnnealingLR(optimizer, 6, 0.01)]
    return s.SequentialLR(optimizer, [*parts, s.StepLR(optimizer, 2)], [3, 9])


SCHEDULES: dict[str, Any] = {
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [2, 5, 5], 0.5),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda t: 0.95**t),
    "LinearLR": lambda s, o: s.LinearLR(o, 0.2, 0.9, 5),
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.2, 3),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 5, 0.01),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*SCHEDULES, "SequentialLR"])
def test_rates(name: str) -> None:
    rates: list[list[float]] = []
    for lib in (grebe, torch):
        optimizer = lib.optim.SGD([lib.ones(2, requires_grad=True)], lr=0.4)
        if name == "SequentialLR":
            scheduler = _sequence(lib, optimizer)
        else:
            scheduler = SCHEDULES[name](lib.optim.lr_scheduler, optimizer)
        found = []
        for _ in range(16):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        rates.append(found)
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-12)
