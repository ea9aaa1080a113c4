"""Batch, layer, instance and group normalisation against float64; statistics, layouts, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.ops.norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm

SHAPES = [(9, 1), (5, 70), (300, 10), (4, 3, 7), (4, 6, 5, 5), (3, 65, 9, 9), (64, 17, 3, 3)]
SHAPES += [(2, 3, 100, 101), (100, 2, 64), (1, 5, 4, 4), (9, 3, 2, 2, 2)]


def moments(x: Any, dims: tuple[int, ...]) -> tuple[Any, Any]:
    mean = x.mean(dims, keepdims=True)
    return mean, ((x - mean) ** 2).mean(dims, keepdims=True)


def expected(x: Any, g: Any, w: Any, b: Any, dims: tuple[int, ...], eps: float = 1e-5) -> list[Any]:
    """y, dx, and dy * xhat, dy to be summed to dw, db; all in float64."""
    mean, var = moments(x, dims)
    s = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * s
    h = g * w
    dx = s * (h - h.mean(dims, keepdims=True) - xhat * (h * xhat).mean(dims, keepdims=True))
    return [xhat * w + b, dx, g * xhat, g]


def draw(shape: tuple[int, ...], dtype: Any, offset: float = 0.0) -> list[Any]:
    rng = np.random.default_rng(0)
    x = (2 * rng.standard_normal(shape) + offset).astype(dtype)
    g = rng.standard_normal(shape).astype(dtype)
    w, b = rng.uniform(0.5, 2, shape[1]).astype(dtype), rng.standard_normal(shape[1]).astype(dtype)
    return [x, g, w, b]


def last(a: Any) -> Any:
    """The same array in channels-last memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def run_batch_norm(x: Any, g: Any, w: Any, b: Any, **kwargs: Any) -> list[Any]:
    leaves = [grebe.from_numpy(a).requires_grad_() for a in (x, w, b)]
    kwargs.setdefault("training", True)
    stats = kwargs.pop("stats", (None, None))
    y = batch_norm(leaves[0], *stats, leaves[1], leaves[2], **kwargs)
    y.backward(grebe.from_numpy(g))
    return [y.detach().numpy(), *[v.grad.numpy() for v in leaves]]


def close(got: Any, want: Any, eps: float, size: float = 32.0) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=size * eps * max(np.abs(want).max(), 1e-30))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "last", "strided"])
def test_batch_norm(shape: tuple[int, ...], dtype: Any, memory: str) -> None:
    x, g, w, b = draw(shape, dtype)
    eps = np.finfo(dtype).eps
    dims = (0, *range(2, len(shape)))
    per_channel = (1, -1) + (1,) * (len(shape) - 2)
    want = expected(*(a.astype(np.float64) for a in (x, g)), w.reshape(per_channel),
                    b.reshape(per_channel), dims)  # fmt: skip
    if memory == "last":
        x = last(x)
    elif memory == "strided":
        x = np.repeat(x, 2, axis=0)[::2]
    y, dx, dw, db = run_batch_norm(x, g, w, b)
    n = x.size // shape[1]
    close(y, want[0], eps)
    close(dx, want[1], eps, 64)
    close(dw, want[2].sum(dims), eps, 8 * n**0.5 + 16)
    close(db, want[3].sum(dims), eps, 8 * n**0.5 + 16)
    if memory == "last":
        assert np.moveaxis(y, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("memory", ["contiguous", "last"])
def test_variance_does_not_cancel(memory: str) -> None:
    x, g, w, b = draw((16, 5, 12, 12), np.float32, offset=3000.0)
    want = expected(x.astype(np.float64), g, 1.0, 0.0, (0, 2, 3))
    y = run_batch_norm(last(x) if memory == "last" else x, g, np.ones_like(w), np.zeros_like(b))[0]
    np.testing.assert_allclose(y, want[0], atol=5e-4)
    constant = np.full((4, 2, 8, 8), 1e4, np.float32)
    y = batch_norm(grebe.from_numpy(constant), None, None, training=True).numpy()
    assert (y == 0).all()


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 5)])
def test_running_statistics(shape: tuple[int, ...]) -> None:
    x, g, w, b = draw(shape, np.float32, 1.5)
    dims = (0, *range(2, len(shape)))
    mean, var = grebe.zeros(3), grebe.ones(3)
    batch_norm(grebe.from_numpy(x), mean, var, training=True, momentum=0.25)
    want = x.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), 0.25 * want.mean(dims), rtol=1e-6)
    np.testing.assert_allclose(var.numpy(), 0.75 + 0.25 * want.var(dims, ddof=1), rtol=1e-6)
    assert mean._version == var._version == 1
    y, dx, dw, db = run_batch_norm(x, g, w, b, training=False, stats=(mean, var))
    per_channel = (1, -1) + (1,) * (len(shape) - 2)
    s = (1 / np.sqrt(var.numpy().astype(np.float64) + 1e-5)).reshape(per_channel)
    xhat = (want - mean.numpy().reshape(per_channel)) * s
    w, b = w.reshape(per_channel), b.reshape(per_channel)
    close(y, xhat * w + b, 2e-7)
    close(dx, g * s * w, 2e-7)
    close(dw, (g * xhat).sum(dims), 2e-7)
    close(db, g.astype(np.float64).sum(dims), 2e-7)
    assert mean._version == 1


@pytest.mark.parametrize("shape", [(300, 10), (70, 33, 6, 6), (5, 3, 64, 64)])
def test_threads_change_no_bit(shape: tuple[int, ...]) -> None:
    x, g, w, b = draw(shape, np.float32)
    found = []
    for threads in (1, 2):
        grebe.set_num_threads(threads)
        parts = run_batch_norm(x, g, w, b)
        if len(shape) == 4:
            parts += run_batch_norm(last(x), g, w, b)
        parts += run_layer_norm(x.reshape(shape[0], -1), g.reshape(shape[0], -1))
        found.append(b"".join(p.tobytes() for p in parts))
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 2, 2, 3)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_gradients(shape: tuple[int, ...], training: bool, affine: bool) -> None:
    rng = np.random.default_rng(0)
    channels = shape[1]
    x = grebe.from_numpy(rng.standard_normal(shape)).requires_grad_()
    w = grebe.from_numpy(rng.uniform(0.5, 2, channels)).requires_grad_()
    b = grebe.from_numpy(rng.standard_normal(channels)).requires_grad_()

    def f(*v: grebe.Tensor) -> grebe.Tensor:
        mean, var = grebe.zeros(channels, dtype=grebe.float64), grebe.ones(channels).double()
        return batch_norm(v[0], mean, var, *v[1:], training=training)

    inputs = (x, w, b) if affine else (x,)
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


# ---- layer norm ----


def run_layer_norm(x: Any, g: Any) -> list[Any]:
    rng = np.random.default_rng(1)
    size = x.shape[-1]
    w, b = rng.uniform(0.5, 2, size).astype(x.dtype), rng.standard_normal(size).astype(x.dtype)
    leaves = [grebe.from_numpy(a).requires_grad_() for a in (x, w, b)]
    y = layer_norm(leaves[0], size, leaves[1], leaves[2])
    y.backward(grebe.from_numpy(g))
    return [y.detach().numpy(), *[v.grad.numpy() for v in leaves]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 7), (70, 17), (2, 33, 768), (3, 5000), (1000, 64), (2, 70_001)], ids=str
)
def test_layer_norm(shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal(shape).astype(dtype) + 3, rng.standard_normal(shape).astype(dtype))
    y, dx, dw, db = run_layer_norm(x, g)
    rng = np.random.default_rng(1)
    w = rng.uniform(0.5, 2, shape[-1]).astype(dtype)
    b = rng.standard_normal(shape[-1]).astype(dtype)
    want = expected(x.astype(np.float64), g.astype(np.float64), w, b, (-1,))
    eps, rows = np.finfo(dtype).eps, x.size // shape[-1]
    outer = tuple(range(len(shape) - 1))
    close(y, want[0], eps)
    close(dx, want[1], eps, 64)
    close(dw, want[2].sum(outer), eps, 8 * rows**0.5 + 16)
    close(db, want[3].sum(outer), eps, 8 * rows**0.5 + 16)


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_gradients(affine: bool) -> None:
    rng = np.random.default_rng(0)
    x = grebe.from_numpy(rng.standard_normal((3, 2, 4))).requires_grad_()
    w, b = (grebe.from_numpy(rng.standard_normal((2, 4))).requires_grad_() for _ in range(2))
    inputs = (x, w, b) if affine else (x,)
    assert gradcheck(lambda *v: layer_norm(v[0], (2, 4), *v[1:]), inputs)
    assert gradgradcheck(lambda *v: layer_norm(v[0], (2, 4), *v[1:]), inputs)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = grebe.zeros(shape, requires_grad=True)
    y = batch_norm(x, grebe.zeros(3), grebe.ones(3))
    y.backward(grebe.ones(shape))
    assert y.shape == x.grad.shape == shape
    assert layer_norm(grebe.zeros(0, 4), 4).shape == (0, 4)


# ---- instance and group norm ----


def test_instance_and_group_norm() -> None:
    x, _, w, b = draw((3, 6, 4, 5), np.float64)
    channels = (1, -1, 1, 1)
    mean, var = moments(x, (2, 3))
    want = (x - mean) / np.sqrt(var + 1e-5) * w.reshape(channels) + b.reshape(channels)
    t, tw, tb = (grebe.from_numpy(a) for a in (x, w, b))
    running_mean, running_var = grebe.zeros(6).double(), grebe.ones(6).double()
    y = instance_norm(t, running_mean, running_var, tw, tb)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(running_mean.numpy(), 0.1 * x.mean((0, 2, 3)), rtol=1e-9)
    groups = x.reshape(3, 2, 3, 4, 5)
    mean, var = moments(groups, (2, 3, 4))
    want = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    want = want * w.reshape(channels) + b.reshape(channels)
    np.testing.assert_allclose(group_norm(t, 2, tw, tb).numpy(), want, rtol=1e-9, atol=1e-9)


# ---- errors ----


def test_errors() -> None:
    x = grebe.zeros(2, 3)
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*\[1, 3\]"):
        batch_norm(grebe.zeros(1, 3), None, None, training=True)
    with pytest.raises(ValueError, match="running_mean and running_var when not training"):
        batch_norm(x, None, None)
    with pytest.raises(ValueError, match=r"running_mean of shape \[3\].*got \[4\]"):
        batch_norm(x, grebe.zeros(4), grebe.ones(3))
    with pytest.raises(ValueError, match=r"weight of shape \[3\].*got \[2\]"):
        batch_norm(x, None, None, grebe.ones(2), training=True)
    with pytest.raises(TypeError, match="weight of dtype float32, got float64"):
        batch_norm(x, None, None, grebe.ones(3, dtype=grebe.float64), training=True)
    with pytest.raises(ValueError, match=r"\[N, C, ...\], got \[3\]"):
        batch_norm(grebe.zeros(3), None, None, training=True)
    with pytest.raises(TypeError, match="floating point dtype, got int64"):
        batch_norm(grebe.tensor([[1, 2]]), None, None, training=True)
    with pytest.raises(ValueError, match=r"\[\*, 4\], got \[2, 3\]"):
        layer_norm(x, 4)
    with pytest.raises(ValueError, match=r"bias of shape \[3\], got \[1\]"):
        layer_norm(x, (3,), None, grebe.zeros(1))
    with pytest.raises(ValueError, match="divide 3 channels, got 2"):
        group_norm(x, 2)


def test_second_gradients_of_group_and_rms_norm() -> None:
    rng = np.random.default_rng(0)
    x, w, b = (
        grebe.from_numpy(rng.standard_normal(shape)).requires_grad_()
        for shape in ((2, 4, 3), (4,), (4,))
    )
    v = grebe.from_numpy(rng.standard_normal(3)).requires_grad_()
    for f, inputs in (
        (lambda x, w, b: group_norm(x, 2, w, b), [x, w, b]),
        (lambda x, w, b: instance_norm(x, weight=w, bias=b), [x, w, b]),
        (lambda x, v: rms_norm(x, 3, v, 1e-3), [x, v]),
        (lambda x: group_norm(x, 4), [x]),
        (lambda x: rms_norm(x, (4, 3)), [x]),
    ):
        assert gradcheck(f, inputs) and gradgradcheck(f, inputs)


def test_layers_of_groups_and_instances() -> None:
    x = grebe.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32))
    layer = grebe.nn.GroupNorm(2, 4)
    assert {n: p.shape for n, p in layer.named_parameters()} == {"weight": (4,), "bias": (4,)}
    np.testing.assert_array_equal(layer(x).detach().numpy(), group_norm(x, 2).numpy())
    assert grebe.nn.GroupNorm(2, 4, bias=False).bias is None
    assert not list(grebe.nn.GroupNorm(2, 4, affine=False).parameters())
    plain = grebe.nn.InstanceNorm2d(4)
    assert not plain.state_dict() and not list(plain.parameters())
    np.testing.assert_array_equal(plain(x).numpy(), instance_norm(x).numpy())
    np.testing.assert_array_equal(plain(x[0]).numpy(), plain(x).numpy()[0])
    np.testing.assert_array_equal(plain.eval()(x).numpy(), instance_norm(x).numpy())
    tracking = grebe.nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    y = tracking(x.reshape(2, 4, 15))
    assert tracking.running_mean.numpy().any()
    assert (
        np.abs(tracking.eval()(x.reshape(2, 4, 15)).detach().numpy() - y.detach().numpy()).max()
        > 1e-3
    )
    scaled = grebe.nn.RMSNorm(5)
    np.testing.assert_array_equal(scaled(x).detach().numpy(), rms_norm(x, 5).numpy())
    assert scaled.eps is None and grebe.nn.InstanceNorm3d(2)(grebe.ones(1, 2, 2, 2, 2)).ndim == 5


def test_errors_of_groups_and_rms() -> None:
    x = grebe.ones(2, 4, 3)
    with pytest.raises(ValueError, match="divisible by num_groups"):
        grebe.nn.GroupNorm(3, 4)
    with pytest.raises(ValueError, match="expected weight of shape"):
        group_norm(x, 2, grebe.ones(3))
    with pytest.raises(ValueError, match="rms_norm: expected input of shape"):
        rms_norm(x, 4)
    with pytest.raises(ValueError, match="more than 1 value per example"):
        instance_norm(grebe.ones(2, 4, 1))
    with pytest.raises(ValueError, match="expected 5 channels"):
        grebe.nn.InstanceNorm1d(5, affine=True)(x)


def layer(x: Any, w: Any, b: Any) -> Any:
    return layer_norm(x, x.shape[-1:], w, b)


def rms(x: Any, w: Any, _: Any) -> Any:
    return rms_norm(x, x.shape[-1:], w)


def channels_last(x: Any) -> Any:
    return x.contiguous(memory_format=grebe.channels_last)


@pytest.mark.parametrize("size", [(40, 30), (80, 70)], ids=str)  # one part per channel, or several
def test_group_norm_keeps_the_layout(size: tuple[int, int]) -> None:
    x, grad, w, b = draw((3, 6, *size), np.float64)
    results = []
    for place in (lambda t: t, channels_last):
        leaf = place(grebe.from_numpy(x + 100)).requires_grad_()
        y = group_norm(leaf, 2, grebe.from_numpy(w), grebe.from_numpy(b))
        assert y.stride() == leaf.stride()
        y.backward(grebe.from_numpy(grad))
        results.append((y.detach().numpy(), leaf.grad.numpy()))
    for mine, want in zip(*results, strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-9, atol=1e-9)


def statistics(x: Any) -> tuple[Any, Any]:
    return grebe.zeros(x.shape[1], dtype=x.dtype), grebe.ones(x.shape[1], dtype=x.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("call", "shape", "channels"),
    [
        (layer, (300, 33), 33),
        (rms, (300, 33), 33),
        (lambda x, w, b: batch_norm(x, None, None, w, b, True), (9, 5, 6, 7), 5),
        (lambda x, w, b: batch_norm(x, *statistics(x), w, b), (9, 5, 6, 7), 5),
        (lambda x, w, b: group_norm(x, 3, w, b), (4, 6, 5, 7), 6),
        (lambda x, w, b: group_norm(channels_last(x), 3, w, b), (4, 6, 5, 7), 6),
    ],
    ids=["layer", "rms", "batch", "batch, evaluation", "group", "group, channels-last"],
)
def test_gradients_that_nobody_wants(call: Any, shape: Any, channels: int, dtype: Any) -> None:
    """Any part of input, weight and bias gets the gradient that it gets when all do."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(dtype) for s in (shape, (channels,), (channels,))]
    grad = grebe.from_numpy(rng.standard_normal(shape).astype(dtype))

    def gradients(wanted: tuple[bool, ...]) -> list[Any]:
        leaves = [
            grebe.from_numpy(a).requires_grad_(yes) for a, yes in zip(arrays, wanted, strict=True)
        ]
        y = call(*leaves)
        if y.requires_grad:
            y.backward(grad)
        return [leaf.grad for leaf in leaves]

    whole = gradients((True, True, True))
    for wanted in np.ndindex(2, 2, 2):
        part = gradients(tuple(map(bool, wanted)))
        for got, want, yes in zip(part, whole, wanted, strict=True):
            assert (got is not None) == (bool(yes) and want is not None)
            if got is not None:
                np.testing.assert_array_equal(got.numpy(), want.numpy())
