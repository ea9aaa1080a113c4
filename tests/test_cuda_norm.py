"""Normalisation: CUDA's kernels (emulated) against the CPU's, every branch of both files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import check
import grebe
from grebe.ops.norm import batch_norm, group_norm, layer_norm, rms_norm

pytestmark = pytest.mark.usefixtures("cuda_device")

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def draw(shape: tuple[int, ...], dtype: Any, offset: float = 0.0) -> tuple[Any, Any]:
    """The input and the gradient from above."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal(shape) + offset, rng.standard_normal(shape)
    return x.astype(dtype), g.astype(dtype)


def parameters(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    wide = np.float64 if dtype == np.float64 else np.float32
    return rng.uniform(0.5, 2, shape).astype(wide), rng.standard_normal(shape).astype(wide)


def last(t: Any) -> Any:
    """The same values in channels-last memory."""
    order = (0, *range(2, t.ndim), 1)
    return t.permute(*order).contiguous().permute(0, t.ndim - 1, *range(1, t.ndim - 1))


def shifted(t: Any) -> Any:
    """The same values in memory that begins at no multiple of 16 bytes."""
    room = grebe.zeros(t.numel() + 1, dtype=t.dtype, device=t.device)
    view = room[1:].reshape(*t.shape)
    view.copy_(t)
    return view


def results(
    device: str, function: Callable[..., Any], arrays: list[Any], g: Any, layout: Any = None
) -> list[Any]:
    """Output and gradients of a function of tensors; None arrays stay None."""
    leaves: list[Any] = []
    for k, a in enumerate(arrays):
        t = None if a is None else grebe.from_numpy(a).to(device)
        if t is not None and layout and k == 0:
            t = layout(t)
        leaves.append(None if t is None else t.detach().requires_grad_())
    y = function(*leaves)
    assert y.device.type == device and y.dtype == leaves[0].dtype
    y.backward(grebe.from_numpy(g).to(device))
    found = [y.detach(), *(v.grad for v in leaves if v is not None)]
    return [t.to("cpu", grebe.float64).numpy() for t in found]


def agree(got: list[Any], want: list[Any], dtype: Any, terms: int) -> None:
    """Equal but for rounding; the parameters' gradients are sums of `terms`."""
    eps = float(ml_dtypes.finfo(dtype).eps)
    small = eps if dtype == np.float64 else float(np.finfo(np.float32).eps)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert np.isfinite(b).all()
        size = max(np.abs(b).max(initial=0), 1e-30)
        of_sums = 4 * small * max(terms, 4) ** 0.5 * size
        atol = (eps if k < 2 else 0) * size + 64 * small * size + (of_sums if k >= 2 else 0)
        np.testing.assert_allclose(a, b, rtol=eps if k < 2 else 0, atol=atol)


def compare(
    function: Callable[..., Any], arrays: list[Any], g: Any, layout: Any = None, terms: int = 1
) -> None:
    want = results("cpu", function, arrays, g, layout if layout is last else None)
    got = results("cuda", function, arrays, g, layout)
    agree(got, want, arrays[0].dtype, terms)


# ---- layer and RMS norm ----

# Eight lanes, a warp and a block hold the row, backward and forward, or nobody does.
COLUMNS = [1, 3, 31, 32, 64, 65, 68, 128, 257, 260, 512, 516, 1023, 1024, 1028, 4096, 4100, 4104]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("n", COLUMNS)
def test_layer_norm(n: int, dtype: Any) -> None:
    rows = 70 if n < 100 else 19 if n < 2000 else 9
    x, g = draw((rows, n), dtype, 1.0)
    w, b = parameters((n,), dtype)
    if n == 1:
        x, g = x * 0 + np.asarray(2, dtype), g * 0
    compare(lambda *v: layer_norm(v[0], n, v[1], v[2]), [x, w, b], g, terms=rows)
    compare(lambda *v: rms_norm(v[0], n, v[1]), [x, w], g, terms=rows)


@pytest.mark.parametrize(
    "dtype, n",
    [("float32", 8196), ("float32", 16384), ("float32", 16385), ("float32", 20000),
     ("float64", 4097), ("float64", 8200), ("bfloat16", 8200), ("float16", 17000)],
)  # fmt: skip
def test_long_rows(dtype: str, n: int) -> None:
    x, g = draw((3, n), DTYPES[dtype], 1.0)
    w, b = parameters((n,), DTYPES[dtype])
    for arrays in ([x, w, b], [x, None, None]):
        compare(lambda *v: layer_norm(v[0], n, v[1], v[2]), arrays, g, terms=8)
        compare(lambda *v: rms_norm(v[0], n, v[1]), arrays[:2], g, terms=8)


@pytest.mark.parametrize("n", [24, 200, 1000, 3000, 10000])
def test_layer_norm_options(n: int) -> None:
    x, g = draw((21, n), np.float32)
    w, b = parameters((n,), np.float32)
    for arrays in ([x, w, None], [x, None, b], [x, None, None]):
        compare(lambda *v: layer_norm(v[0], n, v[1], v[2], 1e-3), arrays, g, terms=21)
    compare(lambda v: rms_norm(v, n, None, 1e-3), [x], g)
    compare(lambda *v: layer_norm(v[0], n, v[1], v[2]), [x, w, b], g, shifted, 21)


@pytest.mark.parametrize("n", [40, 300, 2000, 9000])
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_layer_norm_some_gradients(n: int, wanted: tuple[int, ...]) -> None:
    x, g = draw((33, n), np.float32)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [grebe.from_numpy(a).to(device) for a in (x, *parameters((n,), np.float32))]
        for leaf, want in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(bool(want))
        layer_norm(leaves[0], n, leaves[1], leaves[2]).backward(grebe.from_numpy(g).to(device))
        found.append([v.grad.cpu().numpy() for v in leaves if v.grad is not None])
    assert len(found[0]) == len(found[1]) == sum(wanted)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rows_are_shared_out_over_blocks() -> None:
    for rows, n in [(3000, 16), (9000, 4), (700, 132), (300, 520)]:
        x, g = draw((rows, n), np.float32)
        w, b = parameters((n,), np.float32)
        compare(lambda *v, n=n: layer_norm(v[0], n, v[1], v[2]), [x, w, b], g, terms=rows)


def test_special_rows() -> None:
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    x[1, 3], x[2, 39], x[3, 0], x[4] = np.nan, np.inf, -np.inf, 7.5
    for n in (40, 280, 2000, 20000):
        row = np.repeat(x, n // 40, axis=1)
        for function in (layer_norm, rms_norm):
            want = function(grebe.from_numpy(row), n).numpy()
            got = function(grebe.from_numpy(row).cuda(), n).cpu().numpy()
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
            assert np.isnan(got[1]).all() and np.isfinite(got[[0, 4, 5]]).all()


def test_empty() -> None:
    x = grebe.zeros(0, 4, device="cuda", requires_grad=True)
    w = grebe.ones(4, device="cuda", requires_grad=True)
    y = layer_norm(x, 4, w, w)
    y.backward(grebe.ones_like(y))
    assert x.grad is not None and x.grad.shape == (0, 4)
    assert w.grad is not None and w.grad.tolist() == [0, 0, 0, 0]
    for shape in [(0, 4), (0, 4, 2, 2)]:
        x = grebe.zeros(*shape, device="cuda", requires_grad=True)
        w = grebe.ones(4, device="cuda", requires_grad=True)
        ones = grebe.ones(4, device="cuda")
        y = batch_norm(x, ones, ones, w, ones) + group_norm(x, 2, w, ones)
        y.backward(grebe.ones_like(y))
        assert x.grad is not None and x.grad.shape == shape
        assert w.grad is not None and w.grad.tolist() == [0, 0, 0, 0]


# ---- batch norm ----

IMAGES: list[tuple[int, ...]] = [
    (9, 1),  # one channel: a plane
    (2, 3),
    (300, 10),
    (5000, 5),  # segments of rows
    (9000, 8),  # the same, 16 bytes at a time
    (40, 160),  # tiles of channels
    (4, 3, 7),
    (4, 6, 5, 5),
    (8, 4, 16, 16),
    (3, 70, 8, 8),
    (2, 2, 80, 81),  # chunks of planes
    (1, 2, 128, 130),
    (3, 2, 64, 64),
    (9, 3, 2, 2, 2),
]


@pytest.mark.parametrize("layout", [None, last, shifted], ids=["planes", "last", "shifted"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_batch_norm(shape: tuple[int, ...], dtype: Any, layout: Any) -> None:
    x, g = draw(shape, dtype, 1.5)
    w, b = parameters((shape[1],), dtype)
    terms = x.size // shape[1]
    compare(lambda *v: batch_norm(v[0], None, None, *v[1:], True), [x, w, b], g, layout, terms)


@pytest.mark.parametrize("layout", [None, last], ids=["planes", "last"])
@pytest.mark.parametrize("shape", [(30, 8), (4, 3, 7), (3, 8, 6, 6)], ids=str)
def test_batch_norm_options(shape: tuple[int, ...], layout: Any) -> None:
    x, g = draw(shape, np.float32, 1.5)
    w, b = parameters((shape[1],), np.float32)
    moved: list[Any] = []

    def norm(training: bool, momentum: float) -> Callable[..., Any]:
        def run(x: Any, w: Any = None, b: Any = None) -> Any:
            mean = grebe.full((shape[1],), 0.5, device=x.device)
            var = grebe.full((shape[1],), 2.0, device=x.device)
            y = batch_norm(x, mean, var, w, b, training, momentum, 1e-3)
            moved.append([mean.cpu().numpy(), var.cpu().numpy()])
            return y

        return run

    for training, momentum in [(True, 0.1), (True, 0.75), (False, 0.1)]:
        for arrays in ([x, w, b], [x, w, None], [x, None, None]):
            compare(norm(training, momentum), arrays, g, layout, x.size // shape[1])
            np.testing.assert_allclose(moved[-1], moved[-2], rtol=1e-6)
            assert (moved[-1][0] != 0.5).all() == training


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_batch_norm_some_gradients(wanted: tuple[int, ...], training: bool) -> None:
    shape = (5, 6, 4, 4)
    x, g = draw(shape, np.float32)
    for norm in ("batch", "group"):
        found = []
        for device in ("cpu", "cuda"):
            leaves = [grebe.from_numpy(a).to(device) for a in (x, *parameters((6,), np.float32))]
            for leaf, want in zip(leaves, wanted, strict=True):
                leaf.requires_grad_(bool(want))
            if norm == "group":
                y = group_norm(leaves[0], 2, leaves[1], leaves[2])
            else:
                ones = grebe.ones(6, device=device)
                y = batch_norm(leaves[0], ones, ones, leaves[1], leaves[2], training)
            y.backward(grebe.from_numpy(g).to(device))
            found.append([v.grad.cpu().numpy() for v in leaves if v.grad is not None])
        assert len(found[1]) == 1
        np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [None, last], ids=["planes", "last"])
def test_variance_does_not_cancel(layout: Any) -> None:
    x, _ = draw((6, 4, 40, 40), np.float32, 3000.0)
    t = grebe.from_numpy(x).cuda()
    exact = x.astype(np.float64)
    for groups in (None, 2):
        flat = exact.reshape(6, 2, -1) if groups else exact.transpose(1, 0, 2, 3).reshape(4, -1)
        want = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, keepdims=True) + 1e-5)
        s = layout(t) if layout else t
        y = group_norm(s, 2) if groups else batch_norm(s, None, None, training=True)
        got = y.cpu().numpy()
        got = got.reshape(6, 2, -1) if groups else got.transpose(1, 0, 2, 3).reshape(4, -1)
        np.testing.assert_allclose(got, want, atol=5e-4)
    constant = grebe.full((4, 4, 9, 9), 0.1, device="cuda")
    y = batch_norm(layout(constant) if layout else constant, None, None, training=True)
    assert (y.cpu().numpy() == 0).all()


# ---- group norm ----

GROUPS: list[tuple[tuple[int, ...], int]] = [
    ((2, 24), 3),
    ((2, 6, 5, 7), 1),
    ((2, 6, 5, 7), 6),
    ((3, 8, 4, 4), 2),
    ((5, 70, 3, 5), 7),
    ((1, 8, 70, 72), 2),  # rows that do not fit
    ((2, 4, 96, 97), 1),
    ((1, 2, 256, 512), 1),  # a channel of many chunks
    ((40, 4, 3), 2),
    ((2, 32, 60, 60), 8),
    ((1, 6, 5000), 3),
]


@pytest.mark.parametrize("layout", [None, last, shifted], ids=["planes", "last", "shifted"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape, groups", GROUPS, ids=str)
def test_group_norm(shape: tuple[int, ...], groups: int, dtype: Any, layout: Any) -> None:
    if dtype in (np.float64, np.float16) and max(shape) > 200:
        pytest.skip("the other dtypes take the same way")
    x, g = draw(shape, dtype, 1.5)
    w, b = parameters((shape[1],), dtype)
    terms = x.size // shape[1]
    compare(lambda *v: group_norm(v[0], groups, *v[1:]), [x, w, b], g, layout, terms)
    compare(lambda v: group_norm(v, groups), [x], g, layout)


# ---- all of them ----


def everything() -> list[bytes]:
    found = []
    for n in (24, 300, 600, 9000, 17000):
        x, g = draw((9, n), np.float32)
        w, b = parameters((n,), np.float32)
        found += results("cuda", lambda *v, n=n: layer_norm(v[0], n, *v[1:]), [x, w, b], g)
    for shape in [(3, 4, 40, 40), (2, 6, 5, 5)]:
        x, g = draw(shape, np.float32)
        w, b = parameters((shape[1],), np.float32)
        for layout in (None, last):
            for norm in (
                lambda *v: batch_norm(v[0], None, None, *v[1:], True),
                lambda *v: group_norm(v[0], 2, *v[1:]),
            ):
                found += results("cuda", norm, [x, w, b], g, layout)
    return [a.tobytes() for a in found]


def test_the_order_of_threads_changes_no_bit() -> None:
    want = everything()
    for lazy, seed in [(False, 0), (True, 1), (False, 2)]:
        check.set_emulator(lazy=lazy, seed=seed)
        assert everything() == want


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_second_derivatives(dtype: Any) -> None:
    x, g = draw((3, 4, 5), dtype)
    w, b = parameters((4,), dtype)
    norms: list[Callable[..., Any]] = [
        lambda x, w, b: batch_norm(x, None, None, w, b, True),
        lambda x, w, b: group_norm(x, 2, w, b),
        lambda x, w, b: layer_norm(x.permute(0, 2, 1), 4, w, b).permute(0, 2, 1),
        lambda x, w, b: rms_norm(x.permute(0, 2, 1), 4, w).permute(0, 2, 1) + b.reshape(4, 1),
    ]
    for norm in norms:
        found = []
        for device in ("cpu", "cuda"):
            leaves = [grebe.from_numpy(a).to(device).requires_grad_() for a in (x, w, b)]
            y = norm(*leaves)
            cotangent = grebe.from_numpy(g).to(device).to(y.dtype)
            (gx,) = grebe.autograd.grad((y,), leaves[:1], (cotangent,), create_graph=True)
            assert gx.dtype == leaves[0].dtype
            (gx * gx).backward(cotangent)
            found.append([v.grad.to("cpu", grebe.float64).numpy() for v in leaves[:2]])
        for cuda, cpu in zip(found[1], found[0], strict=True):
            eps = float(ml_dtypes.finfo(dtype).eps)
            np.testing.assert_allclose(cuda, cpu, rtol=0, atol=16 * eps * np.abs(cpu).max())
