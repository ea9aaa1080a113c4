"""Random numbers, dropout and optimizers: CUDA's (emulated) are the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn

pytestmark = pytest.mark.usefixtures("cuda_device")

SIZES = [(0,), (1,), (15,), (16,), (63,), (64,), (129,), (300, 7)]


def both(fill: Any, shape: tuple[int, ...], dtype: Any, strided: bool) -> list[np.ndarray]:
    results = []
    for device in ("cpu", "cuda"):
        grebe.manual_seed(7)
        t = grebe.zeros(*shape, dtype=dtype, device=device)
        if strided:
            t = grebe.zeros(2 * shape[0], *shape[1:], dtype=dtype, device=device)[::2]
        fill(t)
        assert t.device.type == device
        results.append(t.cpu().numpy())
    return results


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [grebe.float32, grebe.float64])
@pytest.mark.parametrize("shape", SIZES)
def test_the_same_bits(shape: tuple[int, ...], dtype: Any, strided: bool) -> None:
    for fill in (
        lambda t: t.uniform_(),
        lambda t: t.uniform_(-3, 1e-3),
        lambda t: t.bernoulli_(0.3),
    ):
        cpu, cuda = both(fill, shape, dtype, strided)
        np.testing.assert_array_equal(cpu, cuda)
    cpu, cuda = both(lambda t: t.normal_(2, 3), shape, dtype, strided)
    np.testing.assert_allclose(cuda, cpu, rtol=1e-5, atol=2e-6)
    assert np.isfinite(cuda).all()


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [grebe.float32, grebe.float64, grebe.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (127,), (128,), (130, 5)])
def test_dropout(shape: tuple[int, ...], dtype: Any, p: float) -> None:
    x = grebe.randn(*shape).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        grebe.manual_seed(5)
        leaf = x.to(device).detach().requires_grad_()
        y = nn.functional.dropout(leaf, p)
        y.backward(grebe.ones_like(y))
        assert leaf.grad is not None
        results.append([t.detach().cpu().float().numpy() for t in (y, leaf.grad)])
    for cpu, cuda in zip(*results, strict=True):
        np.testing.assert_array_equal(cpu, cuda)


@pytest.mark.parametrize("with_bias, with_residual", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(3, 5), (40, 64)])
def test_bias_dropout_add(shape: tuple[int, int], with_bias: bool, with_residual: bool) -> None:
    arrays = [np.random.default_rng(0).standard_normal(s) for s in (shape, shape[1:], shape)]
    results = []
    for device in ("cpu", "cuda"):
        x, bias, residual = (grebe.tensor(a, dtype=grebe.float32, device=device) for a in arrays)
        kernels = grebe.backend.kernels(x.array)
        y, sums = grebe.empty_like(x), grebe.empty_like(bias)
        kernels.bias_dropout_add(
            x.array, bias.array if with_bias else None, residual.array if with_residual else None,
            y.array, None if with_bias else sums.array, 0.3, 11, 3,
        )  # fmt: skip
        results.append([y.cpu().numpy()] + ([] if with_bias else [sums.cpu().numpy()]))
    for cpu, cuda in zip(*results, strict=True):
        np.testing.assert_allclose(cuda, cpu, rtol=1e-5, atol=1e-5)


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "maximize": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("Adagrad", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True}),
    ("Adamax", {}),
    ("NAdam", {}),
    ("RAdam", {"betas": (0.9, 0.9)}),
    ("Adadelta", {}),
]


@pytest.mark.parametrize("dtype", [grebe.float32, grebe.float64])
@pytest.mark.parametrize("name, options", OPTIMIZERS)
def test_optimizer(name: str, options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    # One tensor beyond a chunk, an empty one, and more than a launch takes.
    shapes = [(), (0,), (1,), (33,), (91, 100), *[(3,)] * 60]
    start = [rng.standard_normal(s) for s in shapes]
    gradients = [[rng.standard_normal(s) for s in shapes] for _ in range(3)]
    results = []
    for device in ("cpu", "cuda"):
        params = [grebe.tensor(a, dtype=dtype, device=device, requires_grad=True) for a in start]
        optimizer = getattr(grebe.optim, name)(params, **options)
        for arrays in gradients:
            for p, g in zip(params, arrays, strict=True):
                p.grad = grebe.tensor(g, dtype=dtype, device=device)
            norm = nn.utils.clip_grad_norm_(params, 10.0)
            optimizer.step()
        assert all(p.device.type == device for p in params)
        states = [v for s in optimizer.state.values() for v in s.values() if grebe.is_tensor(v)]
        assert all(v.device.type == device for v in states if v.ndim or v.numel() > 1)
        results.append([p.detach().cpu().numpy() for p in params] + [norm.cpu().numpy()])
    tolerance = 1e-5 if dtype == grebe.float32 else 1e-12
    for cpu, cuda in zip(*results, strict=True):
        np.testing.assert_allclose(cuda, cpu, rtol=tolerance, atol=tolerance)


def test_clip_grad_value() -> None:
    p = grebe.zeros(5, device="cuda", requires_grad=True)
    p.grad = grebe.tensor([-3.0, -0.1, 0.0, 0.2, 7.0], device="cuda")
    nn.utils.clip_grad_value_([p], 0.5)
    np.testing.assert_allclose(p.grad.cpu().numpy(), [-0.5, -0.1, 0, 0.2, 0.5])
