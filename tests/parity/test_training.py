"""Whole models: the same weights and data give the same losses as in PyTorch, step by step."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import grebe

STEPS, BATCH = 10, 64


def softmax_regression(nn: Any) -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def mlp(nn: Any) -> Any:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def lenet(nn: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def normalised(nn: Any) -> Any:
    # No bias before batch norm: its gradient is rounding noise, which Adam scales to full steps.
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 14 * 14, 10),
    )


OPTIMIZERS: dict[str, Callable[[Any, Any], Any]] = {
    "sgd": lambda optim, p: optim.SGD(p, lr=0.1),
    "momentum": lambda optim, p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "nesterov": lambda optim, p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda optim, p: optim.Adam(p, lr=1e-3),
    "adamw": lambda optim, p: optim.AdamW(p, lr=1e-3),
    "adagrad": lambda optim, p: optim.Adagrad(p, lr=1e-2),
}


def losses(lib: ModuleType, model: Any, optimizer: str) -> list[float]:
    """The loss before each of STEPS updates."""
    rng = np.random.default_rng(0)
    stepper = OPTIMIZERS[optimizer](lib.optim, model.parameters())
    curve = []
    for _ in range(STEPS):
        x = lib.from_numpy(rng.random((BATCH, 1, 28, 28), np.float32))
        y = lib.from_numpy(rng.integers(0, 10, BATCH))
        stepper.zero_grad()
        loss = lib.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        stepper.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", [softmax_regression, mlp, lenet, normalised])
def test_losses(build: Callable[[Any], Any], optimizer: str) -> None:
    torch.manual_seed(0)
    theirs, ours = build(torch.nn), build(grebe.nn)
    state = {name: grebe.from_numpy(t.numpy().copy()) for name, t in theirs.state_dict().items()}
    ours.load_state_dict(state)
    expected = losses(torch, theirs, optimizer)
    np.testing.assert_allclose(losses(grebe, ours, optimizer), expected, rtol=1e-4)
    for name, weight in ours.state_dict().items():
        reference = theirs.state_dict()[name].numpy()
        np.testing.assert_allclose(weight.numpy(), reference, rtol=1e-2, atol=1e-4, err_msg=name)
