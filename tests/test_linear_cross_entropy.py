"""Projection and cross entropy in one: against the two in turn, in one chunk and in many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.nn.functional import cross_entropy, linear, linear_cross_entropy
from grebe.ops import cross_entropy as module

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"label_smoothing": 0.1},
    {"ignore_index": 2, "label_smoothing": 0.1},
    {"ignore_index": 2, "reduction": "none"},
]


def draw(n: int, d: int, classes: int, dtype: Any) -> tuple[list[grebe.Tensor], grebe.Tensor]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((n, d), (classes, d), (classes,))]
    tensors = [grebe.from_numpy(a).requires_grad_() for a in arrays]
    return tensors, grebe.from_numpy(rng.integers(0, classes, n))


@pytest.mark.parametrize("chunk", [1 << 24, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_two_steps(
    dtype: Any, options: dict[str, Any], weighted: bool, bias: bool, chunk: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)  # 64: 16 rows at a time
    (x, w, b), labels = draw(50, 8, 11, dtype)
    weight = grebe.from_numpy(np.linspace(0.5, 2, 11).astype(dtype)) if weighted else None
    leaves = (x, w, b) if bias else (x, w)
    results = []
    for threads in (1, 2, 1):
        grebe.set_num_threads(threads)
        for leaf in leaves:
            leaf.grad = None
        if len(results) < 2:
            y = linear_cross_entropy(
                x, w, labels, linear_bias=b if bias else None, weight=weight, **options
            )
        else:
            y = cross_entropy(linear(x, w, b if bias else None), labels, weight, **options)
        y.backward(grebe.ones(*y.shape, dtype=y.dtype) * 0.5)
        results.append([y.detach().numpy()] + [leaf.grad.numpy().copy() for leaf in leaves])
    for one, two, want in zip(*results, strict=True):
        assert one.dtype == dtype and one.tobytes() == two.tobytes()
        tolerance = 3e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(one, want, rtol=tolerance, atol=tolerance)


def test_gradients_of_gradients() -> None:
    (x, w, b), labels = draw(4, 3, 5, np.float64)
    for reduction in ("mean", "none"):

        def loss(x: Any, w: Any, b: Any, how: str = reduction) -> grebe.Tensor:
            return linear_cross_entropy(x, w, labels, linear_bias=b, reduction=how)

        assert gradcheck(loss, (x, w, b))
        assert gradgradcheck(loss, (x, w, b))


def test_without_gradients_and_rows() -> None:
    (x, w, _), labels = draw(20, 3, 5, np.float32)
    want = cross_entropy(linear(x, w), labels).item()
    with grebe.no_grad():
        assert linear_cross_entropy(x, w, labels).item() == pytest.approx(want, rel=1e-6)
    only = linear_cross_entropy(x.detach(), w, labels)
    only.backward()
    assert x.grad is None and w.grad is not None
    (x, w, _), labels = draw(0, 3, 5, np.float32)
    y = linear_cross_entropy(x, w, labels, reduction="sum")
    y.backward()
    assert y.item() == 0 and not w.grad.numpy().any()
    half = linear_cross_entropy(*(t.to(np.float16) for t in draw(4, 3, 5, np.float32)[0][:2]),
                                grebe.tensor([0, 1, 2, 3]))  # fmt: skip
    assert half.dtype == np.float16


def test_errors() -> None:
    (x, w, b), labels = draw(40, 3, 5, np.float32)
    with pytest.raises(ValueError, match=r"\[N, D\].*\[C, D\], got \[40, 3\] and \[3, 5\]"):
        linear_cross_entropy(x, w.t(), labels)
    with pytest.raises(ValueError, match=r"linear_bias of shape \[5\], got \[40, 3\]"):
        linear_cross_entropy(x, w, labels, linear_bias=x)
    with pytest.raises(TypeError, match="linear_weight of dtype float32, got float64"):
        linear_cross_entropy(x, w.double(), labels)
    with pytest.raises(ValueError, match="label_smoothing must be between 0 and 1, got 2"):
        linear_cross_entropy(x, w, labels, label_smoothing=2)
    bad = labels.clone()
    bad[37] = 5
    with pytest.raises(IndexError, match=r"Target 5 is out of bounds.*position \[37\]"):
        linear_cross_entropy(x, w, bad, linear_bias=b)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_backward_twice(reduction: str) -> None:
    rng = np.random.default_rng(0)
    x = grebe.tensor(rng.standard_normal((5, 4)), requires_grad=True)
    w = grebe.tensor(rng.standard_normal((7, 4)), requires_grad=True)
    loss = linear_cross_entropy(x, w, grebe.tensor([0, 6, 2, 3, 3]), reduction=reduction) * 3
    loss.backward(retain_graph=True)
    assert x.grad is not None and w.grad is not None
    once = [x.grad.numpy().copy(), w.grad.numpy().copy()]
    loss.backward()
    for first, both in zip(once, (x.grad, w.grad), strict=True):
        np.testing.assert_allclose(both.numpy(), 2 * first, rtol=1e-12)
