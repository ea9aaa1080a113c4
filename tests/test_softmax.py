"""softmax, log_softmax, logsumexp, cross entropy: special values, layouts, gradients, errors.

Plain accuracy over shapes is tested by test_ops.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.ops.cross_entropy import cross_entropy, nll_loss
from grebe.ops.softmax import log_softmax, logsumexp, softmax

INF, NAN = float("inf"), float("nan")
OPS = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}


def double(rng: np.random.Generator, *shape: int) -> grebe.Tensor:
    return grebe.from_numpy(rng.standard_normal(shape)).requires_grad_()


def reference(x: Any, labels: Any, weight: Any, smoothing: float, ignored: int) -> Any:
    """Cross entropy per position in float64, classes in dimension 1."""
    x = x.astype(np.longdouble)
    top = x.max(1, keepdims=True)
    logp = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    classes = x.shape[1]
    w = np.ones(classes) if weight is None else weight.astype(np.float64)
    shape = [1, -1] + [1] * (x.ndim - 2)
    used = labels != ignored
    index = np.where(used, labels, 0)
    picked = np.take_along_axis(logp, np.expand_dims(index, 1), 1).squeeze(1)
    loss = -(1 - smoothing) * w[index] * picked
    loss -= smoothing / classes * (logp * w.reshape(shape)).sum(1)
    return np.where(used, loss, 0), np.where(used, w[index], 0)


# ---- special values ----


def test_rows_of_minus_infinity() -> None:
    x = grebe.tensor([[-INF, -INF, -INF], [0.0, -INF, 1.0]])
    assert np.isnan(softmax(x, 1).numpy()[0]).all()
    assert softmax(x, 1).numpy()[1, 1] == 0
    assert np.isnan(log_softmax(x, 1).numpy()[0]).all()
    assert log_softmax(x, 1).numpy()[1, 1] == -INF
    assert logsumexp(x, 1).numpy()[0] == -INF
    for n in (3, 40, 5000, 70000):
        row = np.full((2, n), -INF, np.float32)
        row[1, n // 2] = 7
        assert logsumexp(grebe.from_numpy(row), 1).tolist() == [-INF, 7.0]
        one_hot = softmax(grebe.from_numpy(row), 1).numpy()[1]
        assert one_hot[n // 2] == 1 and one_hot.sum() == 1


@pytest.mark.parametrize("n", [2, 33, 5000, 70000])
def test_infinity_and_nan(n: int) -> None:
    x = np.zeros((2, n), np.float32)
    x[0, n - 1], x[1, 0] = INF, NAN
    assert np.isnan(softmax(grebe.from_numpy(x), 1).numpy()).all()
    y = logsumexp(grebe.from_numpy(x), 1).numpy()
    assert y[0] == INF and np.isnan(y[1])
    y = logsumexp(grebe.from_numpy(np.ascontiguousarray(x.T)), 0).numpy()
    assert y[0] == INF and np.isnan(y[1])


def test_huge_logits_keep_the_loss_exact() -> None:
    x = np.array([[10000.0, 10001.0, -10000.0], [1e4, 1e4, 1e4]], np.float32)
    leaf = grebe.from_numpy(x).requires_grad_()
    loss = cross_entropy(leaf, grebe.tensor([0, 2]), reduction="none")
    want = [np.log1p(np.exp(1.0)), np.log(3.0)]
    np.testing.assert_allclose(loss.detach().numpy(), want, rtol=1e-6)
    loss.sum().backward()
    p = np.exp(-np.log1p(np.exp(1.0)))
    np.testing.assert_allclose(leaf.grad.numpy()[0], [p - 1, 1 - p, 0], rtol=1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4), ()])
def test_empty_and_scalar(op: str, shape: tuple[int, ...]) -> None:
    x = grebe.zeros(shape, requires_grad=True)
    y = OPS[op](x, 0)
    assert y.shape == (shape if op != "logsumexp" else shape[1:])
    y.sum().backward()
    assert x.grad.shape == shape


# ---- layouts, dimensions, dtypes ----


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
def test_layouts_agree(op: str, dim: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 70)).astype(np.float32)
    want = OPS[op](grebe.from_numpy(x), dim).numpy()
    room = np.zeros((6, 5, 14, 70), np.float32)
    room[::2, :, ::2] = x
    layouts = {
        "strided": room[::2, :, ::2],
        "channels last": np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        "fortran": np.asfortranarray(x),
        "negative": np.ascontiguousarray(x[::-1])[::-1],
    }
    for name, a in layouts.items():
        leaf = grebe.from_numpy(a.copy() if name == "negative" else a).requires_grad_()
        y = OPS[op](leaf, dim)
        np.testing.assert_allclose(y.detach().numpy(), want, rtol=2e-6, atol=1e-6, err_msg=name)
        y.backward(grebe.ones(y.shape))
        assert not np.isnan(leaf.grad.numpy()).any()


@pytest.mark.parametrize("op", OPS)
def test_half_precision_and_integers(op: str) -> None:
    x = grebe.tensor([[1.0, 2.0, 3.0]])
    assert OPS[op](x.to(grebe.bfloat16), 1).dtype == grebe.bfloat16
    assert softmax(x, 1, dtype=grebe.float64).dtype == grebe.float64
    assert logsumexp(grebe.tensor([1, 2]), 0).dtype == grebe.float32


def test_logsumexp_dims() -> None:
    x = double(np.random.default_rng(0), 3, 4, 5)
    want = np.log(np.exp(x.detach().numpy()).sum((0, 2)))
    np.testing.assert_allclose(logsumexp(x, (0, 2)).detach().numpy(), want, rtol=1e-12)
    assert logsumexp(x, (0, -1), keepdim=True).shape == (1, 4, 1)
    assert logsumexp(x, 1, keepdim=True).shape == (3, 1, 5)


@pytest.mark.parametrize("shape", [(300, 10), (7, 4097), (3, 70001), (64, 21, 33), (2, 300, 5)])
def test_threads_change_no_bit(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    found = []
    for threads in (1, 2):
        grebe.set_num_threads(threads)
        leaf = grebe.from_numpy(x.copy()).requires_grad_()
        loss = cross_entropy(leaf, grebe.from_numpy(labels), label_smoothing=0.1)
        loss.backward()
        parts = [loss.detach(), leaf.grad]
        for op in OPS.values():
            leaf = grebe.from_numpy(x.copy()).requires_grad_()
            y = op(leaf, 1)
            (y * y).sum().backward()
            parts += [y.detach(), leaf.grad]
        found.append(b"".join(p.numpy().tobytes() for p in parts))
    assert found[0] == found[1]


# ---- gradients ----


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [0, 1])
def test_gradients(op: str, dim: int) -> None:
    x = double(np.random.default_rng(0), 3, 5)
    assert gradcheck(lambda v: OPS[op](v, dim), (x,))
    assert gradgradcheck(lambda v: OPS[op](v, dim), (x,))


@pytest.mark.parametrize("shape", [(4, 5), (5,), (2, 3, 4)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_gradients(
    shape: tuple[int, ...], reduction: str, smoothing: float, weighted: bool
) -> None:
    rng = np.random.default_rng(0)
    x = double(rng, *shape)
    classes = shape[0] if len(shape) == 1 else shape[1]
    target = np.asarray(rng.integers(0, classes, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    if target.ndim:
        target.flat[1] = -100
    weight = grebe.from_numpy(rng.uniform(0.5, 2, classes)) if weighted else None

    def loss(v: grebe.Tensor) -> grebe.Tensor:
        return cross_entropy(
            v,
            grebe.from_numpy(target),
            weight,
            reduction=reduction,
            label_smoothing=smoothing,
        )

    assert gradcheck(loss, (x,))
    assert gradgradcheck(loss, (x,))
    assert gradcheck(
        lambda v: nll_loss(v, grebe.from_numpy(target), weight, reduction=reduction), (x,)
    )
    assert gradgradcheck(
        lambda v: nll_loss(v, grebe.from_numpy(target), weight, reduction=reduction) ** 2, (x,)
    )


def test_soft_targets() -> None:
    rng = np.random.default_rng(0)
    x = double(rng, 4, 5)
    t = softmax(double(rng, 4, 5).detach(), 1).requires_grad_()
    assert gradcheck(lambda a, b: cross_entropy(a, b, label_smoothing=0.1), (x, t))
    labels = np.array([0, 4, 2, 2])
    hard = cross_entropy(x, grebe.from_numpy(labels), label_smoothing=0.2)
    soft = cross_entropy(x, grebe.from_numpy(np.eye(5)[labels]), label_smoothing=0.2)
    np.testing.assert_allclose(hard.item(), soft.item(), rtol=1e-12)


# ---- cross entropy against the reference ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 2), (256, 10), (33, 1000), (5, 5003), (2, 70001), (3, 10, 65), (2, 300, 5, 3)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(
    dtype: Any, shape: tuple[int, ...], smoothing: float, weighted: bool
) -> None:
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(0, shape[1], shape[:1] + shape[2:])
    if labels.size > 3:
        labels.flat[3] = -1
    weight = rng.uniform(0.5, 2, shape[1]).astype(dtype) if weighted else None
    each, used = reference(x, labels, weight, smoothing, -1)
    want = {"none": each, "sum": each.sum(), "mean": each.sum() / used.sum()}
    w = None if weight is None else grebe.from_numpy(weight)
    eps = np.finfo(dtype).eps
    for reduction, expected in want.items():
        y = cross_entropy(
            grebe.from_numpy(x),
            grebe.from_numpy(labels),
            w,
            ignore_index=-1,
            reduction=reduction,
            label_smoothing=smoothing,
        ).numpy()
        assert y.dtype == dtype and y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=16 * eps, atol=16 * eps * each.max())
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    leaf = grebe.from_numpy(np.moveaxis(last, -1, 1)).requires_grad_()
    y = cross_entropy(leaf, grebe.from_numpy(labels), w, ignore_index=-1, label_smoothing=smoothing)
    np.testing.assert_allclose(y.item(), want["mean"], rtol=16 * eps)
    y.backward()
    other = grebe.from_numpy(x).requires_grad_()
    cross_entropy(
        other, grebe.from_numpy(labels), w, ignore_index=-1, label_smoothing=smoothing
    ).backward()
    np.testing.assert_allclose(leaf.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=8 * eps)


def test_all_ignored() -> None:
    x = grebe.ones(2, 3, requires_grad=True)
    labels = grebe.tensor([-100, -100])
    loss = cross_entropy(x, labels)
    assert np.isnan(loss.item())
    loss.backward()
    assert (x.grad.numpy() == 0).all()
    assert cross_entropy(x, labels, reduction="sum").item() == 0


# ---- errors ----


def test_dim_errors() -> None:
    x = grebe.zeros(2, 3)
    for op in OPS.values():
        with pytest.raises(IndexError, match=r"range of \[-2, 1\], but got 2"):
            op(x, 2)
    with pytest.raises(TypeError, match="dim must be an int"):
        softmax(x, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating point dtype, got int64"):
        softmax(grebe.tensor([1, 2]), 0)
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        softmax([1.0], 0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="twice"):
        logsumexp(x, (0, -2))


@pytest.mark.parametrize("loss", [cross_entropy, nll_loss])
def test_loss_errors(loss: Any) -> None:
    x, y = grebe.zeros(2, 3), grebe.tensor([0, 1])
    for bad in (3, -1, -(2**40)):
        with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds.* position \[1\]"):
            loss(x, grebe.tensor([0, bad]))
    with pytest.raises(ValueError, match=r"target of shape \[2\].*got \[3\]"):
        loss(x, grebe.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"weight of shape \[3\].*got \[2\]"):
        loss(x, y, grebe.ones(2))
    with pytest.raises(ValueError, match="'avg' is not a valid value for reduction"):
        loss(x, y, reduction="avg")
    with pytest.raises(TypeError, match="target must be a Tensor, got list"):
        loss(x, [0, 1])
    with pytest.raises(TypeError, match="floating point dtype, got int64"):
        loss(y, y)
    with pytest.raises(ValueError, match=r"got \[\]"):
        loss(grebe.tensor(1.0), grebe.tensor(0))
    with pytest.raises(TypeError, match="integer class labels, got dtype bool"):
        loss(x, grebe.tensor([True, False]))


def test_cross_entropy_errors() -> None:
    x = grebe.zeros(2, 3)
    with pytest.raises(ValueError, match=r"label_smoothing must be between 0 and 1, got 1\.5"):
        cross_entropy(x, grebe.tensor([0, 1]), label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"input's shape \[2, 3\], got \[2\]"):
        cross_entropy(x, grebe.zeros(2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss(dtype: Any, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((70, 9)).astype(dtype), rng.integers(-1, 9, 70)
    weight = rng.uniform(0.5, 2, 9).astype(dtype) if weighted else np.ones(9, dtype)
    leaf = grebe.from_numpy(x).requires_grad_()
    given = grebe.from_numpy(weight) if weighted else None
    loss = nll_loss(leaf, grebe.from_numpy(labels), given, ignore_index=-1)
    loss.backward()
    kept = np.where(labels >= 0, weight[labels], 0)
    want = np.zeros((70, 9))
    want[np.arange(70), labels] = -kept / kept.sum()
    eps = 32 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(loss.item(), (want * x).sum(), rtol=eps, atol=eps)
    np.testing.assert_allclose(leaf.grad.numpy(), want, rtol=0, atol=eps)
