"""Losses between tensors: values, gradients (also where a composed form fails), errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.ops import loss as L

Loss = Callable[..., grebe.Tensor]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def huber(d: Any, delta: float) -> Any:
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


def kl(x: Any, t: Any) -> Any:
    return np.where(t > 0, t * np.log(np.where(t > 0, t, 1)), 0) - t * x


# loss, arguments, elementwise formula, domain of (input, target)
CASES: list[tuple[Loss, dict[str, Any], Callable[[Any, Any], Any], str]] = [
    (L.mse_loss, {}, lambda x, t: (x - t) ** 2, "real"),
    (L.l1_loss, {}, lambda x, t: np.abs(x - t), "real"),
    (L.smooth_l1_loss, {}, lambda x, t: huber(np.abs(x - t), 1.0), "real"),
    (L.smooth_l1_loss, {"beta": 0.3}, lambda x, t: huber(np.abs(x - t), 0.3) / 0.3, "real"),
    (L.smooth_l1_loss, {"beta": 0.0}, lambda x, t: np.abs(x - t), "real"),
    (L.huber_loss, {"delta": 0.7}, lambda x, t: huber(np.abs(x - t), 0.7), "real"),
    (
        L.binary_cross_entropy,
        {},
        lambda x, t: -(t * np.log(x) + (1 - t) * np.log(1 - x)),
        "probability",
    ),
    (
        L.binary_cross_entropy_with_logits,
        {},
        lambda x, t: -(t * np.log(sigmoid(x)) + (1 - t) * np.log(1 - sigmoid(x))),
        "logit",
    ),
    (L.kl_div, {}, kl, "logit"),
    (L.kl_div, {"log_target": True}, lambda x, t: np.exp(t) * (t - x), "real"),
    (L.poisson_nll_loss, {}, lambda x, t: np.exp(x) - t * x, "real"),
    (
        L.poisson_nll_loss,
        {"log_input": False},
        lambda x, t: x - t * np.log(x + 1e-8),
        "probability",
    ),
]
IDS = [f"{c[0].__name__}{c[1] or ''}" for c in CASES]


def draw(domain: str, shape: tuple[int, ...] = (3, 5)) -> list[Any]:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, *shape))
    return [
        sigmoid(x) if domain == "probability" else x,
        t if domain == "real" else sigmoid(t),
    ]


@pytest.mark.parametrize(("loss", "options", "formula", "domain"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values(
    loss: Loss, options: dict[str, Any], formula: Callable[..., Any], domain: str, dtype: Any
) -> None:
    x, t = (a.astype(dtype) for a in draw(domain))
    each = formula(x.astype(np.float64), t.astype(np.float64))
    want = {"none": each, "mean": each.mean(), "sum": each.sum()}
    for reduction, expected in want.items():
        y = loss(grebe.from_numpy(x), grebe.from_numpy(t), reduction=reduction, **options).numpy()
        assert y.dtype == dtype and y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=3e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(("loss", "options", "formula", "domain"), CASES, ids=IDS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradients(
    loss: Loss, options: dict[str, Any], formula: Any, domain: str, reduction: str
) -> None:
    x, t = (grebe.from_numpy(a).requires_grad_() for a in draw(domain))
    assert gradcheck(lambda a, b: loss(a, b, reduction=reduction, **options), (x, t))
    assert gradgradcheck(lambda a, b: loss(a, b, reduction=reduction, **options), (x, t))


@pytest.mark.parametrize(
    "loss", [L.binary_cross_entropy, L.binary_cross_entropy_with_logits, L.mse_loss, L.huber_loss]
)
def test_weights(loss: Loss) -> None:
    x, t = (grebe.from_numpy(a) for a in draw("probability"))
    w = grebe.from_numpy(np.random.default_rng(2).uniform(0.5, 2, (3, 5)))
    each = loss(x, t, reduction="none") * w
    np.testing.assert_allclose(loss(x, t, weight=w, reduction="none").numpy(), each.numpy())
    total = w.sum().item() if loss in (L.mse_loss, L.huber_loss) else 15
    np.testing.assert_allclose(loss(x, t, weight=w).item(), each.sum().item() / total, rtol=1e-12)


def test_positive_weight() -> None:
    x, t = (grebe.from_numpy(a).requires_grad_() for a in draw("logit"))
    p = grebe.from_numpy(np.random.default_rng(2).uniform(0.5, 3, 5))
    y = L.binary_cross_entropy_with_logits(x, t, pos_weight=p, reduction="none")
    a, b, q = x.detach().numpy(), t.detach().numpy(), p.numpy()
    want = -(q * b * np.log(sigmoid(a)) + (1 - b) * np.log(1 - sigmoid(a)))
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-12)
    assert gradcheck(lambda u, v: L.binary_cross_entropy_with_logits(u, v, pos_weight=p), (x, t))
    assert gradgradcheck(
        lambda u, v: L.binary_cross_entropy_with_logits(u, v, pos_weight=p), (x, t)
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "weight", "positive"),
    [
        ((700, 3), (3,), None),  # the repeated weights are shorter than their least size
        ((40, 7, 5, 3), None, (7, 1, 1)),
        ((6, 1500), (6, 1), (1500,)),
        ((3, 2000), None, (2000,)),  # rows, and blocks that end within a row
        ((30, 33), (), (30, 33)),
        ((0, 3), (3,), (3,)),
    ],
)
def test_repeated_weights(shape: tuple[int, ...], weight: Any, positive: Any, threads: int) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal(shape).astype(np.float32), rng.random(shape).astype(np.float32)
    w, q = (
        None if s is None else rng.uniform(0.5, 2, s).astype(np.float32) for s in (weight, positive)
    )
    wide_w, wide_q = (1.0 if f is None else f.astype(np.float64) for f in (w, q))
    each = ((1 - t) * x + (1 + (wide_q - 1) * t) * np.log1p(np.exp(-x.astype(np.float64)))) * wide_w
    slope = (1 - t - (1 + (wide_q - 1) * t) * sigmoid(-x.astype(np.float64))) * wide_w
    grebe.set_num_threads(threads)
    input = grebe.from_numpy(x).requires_grad_()
    factors = {
        name: None if f is None else grebe.from_numpy(f)
        for name, f in (("weight", w), ("pos_weight", q))
    }
    target = grebe.from_numpy(t)
    y = L.binary_cross_entropy_with_logits(input, target, reduction="sum", **factors)
    np.testing.assert_allclose(y.item(), each.sum(), rtol=1e-5)
    y.backward()
    np.testing.assert_allclose(input.grad.numpy(), slope, rtol=1e-5, atol=1e-6)
    y = L.binary_cross_entropy_with_logits(input, target, reduction="none", **factors)
    np.testing.assert_allclose(y.detach().numpy(), each, rtol=1e-5, atol=1e-6)


def test_weight_that_wants_a_gradient() -> None:
    x, t = (grebe.from_numpy(a).requires_grad_() for a in draw("probability"))
    w = grebe.from_numpy(np.random.default_rng(2).uniform(0.5, 2, (3, 5))).requires_grad_()
    for loss in (L.mse_loss, L.huber_loss, L.binary_cross_entropy):
        assert gradcheck(lambda a, b, c, f=loss: f(a, b, weight=c), (x, t, w))


def test_mixed_dtypes_and_layouts() -> None:
    x = grebe.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 5)))
    images = x.to(memory_format=grebe.channels_last).requires_grad_()
    L.mse_loss(images, x * 0.5).backward()
    assert images.grad.is_contiguous(memory_format=grebe.channels_last)
    np.testing.assert_allclose(images.grad.numpy(), x.numpy() / x.numel(), rtol=1e-12)
    assert L.mse_loss(x.float(), x).dtype == np.float64
    assert L.l1_loss(x.to(np.float16), x.to(np.float16) * 2).dtype == np.float16
    with pytest.raises(TypeError, match="mse_loss: input must have a floating point dtype"):
        L.mse_loss(grebe.tensor([1]), grebe.tensor([2]))
    with pytest.raises(ValueError, match=r"pos_weight of shape \[4\] does not broadcast"):
        L.binary_cross_entropy_with_logits(x, x, pos_weight=grebe.ones(4))


def test_binary_cross_entropy_at_the_ends() -> None:
    x = grebe.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    y = L.binary_cross_entropy(x, grebe.tensor([0.0, 1.0, 1.0, 0.0]), reduction="none")
    assert y.tolist() == [0, 0, 100, 100]
    y.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    z = grebe.tensor([0.0, 1e4, -1e4], requires_grad=True)
    y = L.binary_cross_entropy_with_logits(z, grebe.tensor([1.0, 0.0, 0.0]), reduction="none")
    np.testing.assert_allclose(y.detach().numpy(), [math.log(2), 1e4, 0], rtol=1e-6)
    y.sum().backward()
    assert z.grad.tolist() == [-0.5, 1, 0]


def test_batchmean_and_ranking() -> None:
    x, t = (grebe.from_numpy(a) for a in draw("logit"))
    want = L.kl_div(x, t, reduction="sum").item() / 3
    np.testing.assert_allclose(L.kl_div(x, t, reduction="batchmean").item(), want, rtol=1e-12)
    a, b = grebe.tensor([1.0, 2.0]), grebe.tensor([2.0, 0.0])
    sign = grebe.tensor([1.0, 1.0])
    assert L.margin_ranking_loss(a, b, sign, 0.5, reduction="none").tolist() == [1.5, 0]
    assert L.hinge_embedding_loss(a, -sign, 1.5, reduction="none").tolist() == [0.5, 0]


@pytest.mark.parametrize("loss", [c[0] for c in CASES[:9]])
def test_errors(loss: Loss) -> None:
    x = grebe.full((2, 3), 0.5)
    with pytest.raises(ValueError, match="'avg' is not a valid value for reduction"):
        loss(x, x, reduction="avg")
    with pytest.raises(TypeError, match="target must be a Tensor, got int"):
        loss(x, 3)
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2\]|\[2\].*\[2, 3\]"):
        loss(x, grebe.zeros(2))


def test_broadcast_warns() -> None:
    with pytest.warns(UserWarning, match=r"target size \[4\] .* input size \[4, 1\]"):
        assert L.mse_loss(grebe.zeros(4, 1), grebe.ones(4)).item() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        L.mse_loss(grebe.zeros(4, 1), grebe.ones(4, 1))


def test_domain_errors() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got values from -1\.0 to 2\.0"):
        L.binary_cross_entropy(grebe.tensor([-1.0, 2.0]), grebe.zeros(2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        L.binary_cross_entropy(grebe.tensor([math.nan]), grebe.zeros(1))
    with pytest.raises(ValueError, match="beta >= 0, got -1"):
        L.smooth_l1_loss(grebe.zeros(2), grebe.zeros(2), beta=-1)
    with pytest.raises(ValueError, match="delta > 0, got 0"):
        L.huber_loss(grebe.zeros(2), grebe.zeros(2), delta=0)
