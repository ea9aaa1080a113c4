"""Softmax and losses over labels: CUDA's kernels (emulated) against float64, all kinds of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import check
import grebe
from grebe.nn import functional as F

pytestmark = pytest.mark.usefixtures("cuda_device")

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
# Eight lanes, a warp, a block, a cluster of 2, 4, 8 blocks hold the row, or it is read twice.
COLUMNS = [1, 7, 8, 64, 65, 128, 129, 1000, 1024, 1025, 4097, 16384, 16385, 40000, 131072, 131080]


def draw(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    """Logits with some large and some -inf, and the gradient from above."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal(shape) * 3, rng.standard_normal(shape)
    x[rng.random(shape) < 0.1] += 40
    x[rng.random(shape) < 0.1] = -np.inf
    if x.size:
        x[:, 0] = 1  # not all -inf
    return x.astype(dtype), g.astype(dtype)


def reference(x: Any, g: Any, dim: int) -> dict[str, tuple[Any, Any]]:
    """Results and gradients in float64."""
    x, g = x.astype(np.float64), g.astype(np.float64)
    top = x.max(dim, keepdims=True)
    lse = top + np.log(np.exp(x - top).sum(dim, keepdims=True))
    p, row = np.exp(x - lse), g.sum(dim, keepdims=True)
    return {
        "softmax": (p, p * (g - (p * g).sum(dim, keepdims=True))),
        "log_softmax": (x - lse, g - p * row),
        "logsumexp": (lse.squeeze(dim), p * row),
    }


def run(function: Callable[..., Any], x: Any, g: Any) -> tuple[Any, Any]:
    t = grebe.from_numpy(x).to("cuda").requires_grad_()
    y = function(t)
    assert y.dtype == t.dtype and y.device.type == "cuda"
    y.backward(grebe.from_numpy(g).to("cuda"))
    return y.detach().to("cpu").numpy(), t.grad.to("cpu").numpy()


def agree(got: Any, want: Any, dtype: Any, size: float = 1.0) -> None:
    eps = float(ml_dtypes.finfo(dtype).eps)
    kept = 1e-13 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=2 * eps + kept, atol=(eps + kept) * size
    )


def compare(x: Any, g: Any, dim: int) -> None:
    want = reference(x, g, dim)
    for name in ("softmax", "log_softmax"):
        y, gx = run(lambda t, name=name: getattr(F, name)(t, dim), x, g)
        # The gradient starts from the rounded result, so errors scale with the row's sum.
        agree(y, want[name][0], x.dtype)
        agree(gx, want[name][1], x.dtype, size=2 * np.abs(g.astype(np.float64).sum(dim)).max() + 2)
    row = g.sum(dim)
    y, gx = run(lambda t: grebe.logsumexp(t, dim), x, row)
    agree(y, want["logsumexp"][0], x.dtype)
    p = want["softmax"][0] * np.expand_dims(row.astype(np.float64), dim)
    eps = float(ml_dtypes.finfo(x.dtype).eps)
    near = eps * np.abs(want["logsumexp"][0]).max() * np.abs(p).max() * 2  # of the rounded lse
    agree(gx, p, x.dtype, size=1 + near / max(eps, 1e-13))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("n", COLUMNS)
def test_rows(n: int, dtype: Any) -> None:
    rows = 70 if n < 100 else 5 if n < 20000 else 2
    x, g = draw((rows, n), dtype)
    compare(x, g, 1)


@pytest.mark.parametrize("capability", [75, 80])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_long_rows_without_clusters(capability: int, dtype: Any) -> None:
    check.set_emulator(lazy=True, seed=1, capability=capability)
    x, g = draw((2, 20001), dtype)
    compare(x, g, 1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_inner_dimensions(dtype: Any) -> None:
    for shape in [(3, 5, 7), (2, 1, 33), (1, 40, 2), (300, 3, 2)]:
        x, g = draw(shape, dtype)
        compare(x, g, 1)


def test_rows_at_odd_places() -> None:
    room = grebe.from_numpy(np.arange(4 * 128 + 1, dtype=np.float32) % 13).to("cuda")
    x = room[1:].reshape(4, 128)  # not at a multiple of 16 bytes
    want = reference(x.to("cpu").numpy(), np.zeros((4, 128)), 1)["softmax"][0]
    agree(F.softmax(x, 1).to("cpu").numpy(), want, np.float32)


@pytest.mark.parametrize("n", [3, 100, 5000, 20000, 140000])
def test_rows_without_a_largest_element(n: int) -> None:
    x = np.zeros((4, n), np.float32)
    x[0] = -np.inf
    x[1, n // 2] = np.nan
    x[2, n // 2] = np.inf
    y = F.softmax(grebe.from_numpy(x).to("cuda"), 1).to("cpu").numpy()
    assert np.isnan(y[:2]).all() and np.isnan(y[2, n // 2])
    np.testing.assert_allclose(y[3], 1 / n, rtol=1e-5)
    lse = grebe.logsumexp(grebe.from_numpy(x).to("cuda"), 1).to("cpu").numpy()
    np.testing.assert_allclose(lse, [-np.inf, np.nan, np.inf, np.log(n)], rtol=1e-5)


def test_no_elements() -> None:
    for shape in [(0, 4), (0, 4, 3)]:
        x = grebe.zeros(shape, device="cuda")
        assert F.softmax(x, 1).shape == shape
    lse = grebe.logsumexp(grebe.zeros((3, 0), device="cuda"), 1)
    assert (lse.to("cpu").numpy() == -np.inf).all()


def cross_entropy_reference(
    x: Any, labels: Any, w: Any, smoothing: float, ignored: int
) -> tuple[Any, Any]:
    """Loss of each row and its gradient, in float64."""
    x = x.astype(np.float64)
    lse = reference(x, np.zeros_like(x), 1)["logsumexp"][0]
    target = np.zeros_like(x)
    used = labels != ignored
    target[used] = smoothing / x.shape[1] * w
    target[np.nonzero(used)[0], labels[used]] += (1 - smoothing) * w[labels[used]]
    with np.errstate(invalid="ignore"):
        terms = np.where(target == 0, 0, target * (lse[:, None] - x))
    p = np.exp(x - lse[:, None])
    return terms.sum(1), p * target.sum(1, keepdims=True) - target


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("n", [2, 10, 100, 1001, 4096, 16500, 140000])
def test_cross_entropy(n: int, dtype: Any, smoothing: float) -> None:
    rows = 40 if n < 5000 else 3
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((rows, n)) * 2).astype(dtype)
    labels = rng.integers(0, n, rows)
    labels[1] = -100
    wide = np.float64 if dtype == np.float64 else np.float32
    w = rng.uniform(0.5, 2, n).astype(wide)
    g = rng.standard_normal(rows).astype(dtype)
    losses, slopes = cross_entropy_reference(x, labels, w, smoothing, -100)
    weight, target = (grebe.from_numpy(a).to("cuda") for a in (w, labels))

    def loss(t: Any, reduction: str = "none") -> Any:
        return F.cross_entropy(t, target, weight, label_smoothing=smoothing, reduction=reduction)

    y, gx = run(loss, x, g)
    agree(y, losses, dtype)
    agree(gx, slopes * g.astype(np.float64)[:, None], dtype)
    total = w[labels[labels >= 0]].sum(dtype=np.float64)
    y, gx = run(lambda t: loss(t, "mean"), x, np.ones((), dtype))
    agree(y, losses.sum() / total, dtype)
    agree(gx, slopes / total, dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_nll_loss(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((6, 5, 3)).astype(dtype), rng.integers(0, 5, (6, 3))
    labels[0, 0] = 4
    target = grebe.from_numpy(labels).to("cuda")
    y, gx = run(lambda t: F.nll_loss(t, target, ignore_index=4), x, np.ones((), dtype))
    used = labels != 4
    picked = np.take_along_axis(x.astype(np.float64), labels[:, None], 1)[:, 0]
    want = np.zeros((6, 5, 3))
    np.put_along_axis(want, labels[:, None], (used / -used.sum())[:, None], 1)
    agree(y, -picked[used].mean(), dtype)
    agree(gx, want, dtype)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_modes(seed: int) -> None:
    check.set_emulator(lazy=seed < 2, seed=seed)
    for n in (20, 700, 9000, 33000):
        x, g = draw((2, n), np.float32)
        compare(x, g, 1)
