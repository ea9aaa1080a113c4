"""Pooling: CUDA's kernels (emulated) against the CPU's, every branch of pool.cu."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import check
import grebe
from grebe.ops.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)

pytestmark = pytest.mark.usefixtures("cuda_device")

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def last(t: Any) -> Any:
    """The same values in channels-last memory."""
    return t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def strided(t: Any) -> Any:
    """The same values with gaps between them."""
    room = grebe.zeros(t.shape[0], t.shape[1], 2 * t.shape[2], 3 * t.shape[3], dtype=t.dtype)
    view = room.to(t.device)[:, :, ::2, ::3]
    view.copy_(t)
    return view


def results(device: str, pool: Any, x: Any, layout: Any = None) -> list[Any]:
    """Output, indices if there are any, and the gradient of x."""
    t = grebe.from_numpy(x).to(device)
    leaf = (layout(t) if layout else t).detach().requires_grad_()
    found = pool(leaf)
    y, *indices = found if isinstance(found, tuple) else (found,)
    rng = np.random.default_rng(1)
    g = rng.standard_normal(tuple(y.shape)).astype(x.dtype)
    y.backward(grebe.from_numpy(g).to(device))
    assert y.device.type == leaf.grad.device.type == device
    assert y.dtype == leaf.grad.dtype == x.dtype
    if layout is last and x.shape[1] > 1 and y.shape[2] * y.shape[3] > 1:
        assert y.is_contiguous(memory_format=grebe.channels_last)
    floating = [v.detach().to("cpu", grebe.float64).numpy() for v in (y, leaf.grad)]
    return [*floating, *(i.cpu().numpy() for i in indices)]


def compare(pool: Any, x: Any, layout: Any = None) -> None:
    want = results("cpu", pool, x, layout)
    got = results("cuda", pool, x, layout)
    # A mean is the CPU's but for the order of additions, rounded to 16 bits at most once.
    eps = float(ml_dtypes.finfo(x.dtype).eps)
    for a, b in zip(got[:2], want[:2], strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=4 * eps, atol=8 * eps * np.abs(b).max(initial=0))
    for a, b in zip(got[2:], want[2:], strict=True):
        np.testing.assert_array_equal(a, b)


WINDOWS: dict[str, dict[str, Any]] = {
    "2": {"kernel_size": 2},
    "3 overlapping": {"kernel_size": 3, "stride": 1, "padding": 1},
    "3 by 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "gaps": {"kernel_size": 2, "stride": 3},
    "uneven": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
    "4": {"kernel_size": 4, "stride": 2, "padding": 2},
    "long row": {"kernel_size": (1, 11), "stride": (1, 2), "padding": (0, 5)},
    "large": {"kernel_size": (7, 9), "stride": (2, 1), "padding": 3, "ceil_mode": True},
    "whole": {"kernel_size": (10, 13)},
}
AVERAGES: list[dict[str, Any]] = [{}, {"count_include_pad": False}, {"divisor_override": 5}]


@pytest.mark.parametrize("layout", [None, last, strided], ids=["planes", "last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_pool2d(window: dict[str, Any], dtype: Any, layout: Any) -> None:
    for channels in (1, 3, 8, 20):
        x = np.random.default_rng(0).standard_normal((2, channels, 10, 13)).astype(dtype)
        compare(lambda t: max_pool2d(t, **window, return_indices=True), x, layout)
        for more in AVERAGES:
            compare(lambda t, more=more: avg_pool2d(t, **window, **more), x, layout)


@pytest.mark.parametrize("layout", [None, last], ids=["planes", "last"])
@pytest.mark.parametrize("dilation", [2, (1, 3)])
@pytest.mark.parametrize("kernel", [2, 3, (4, 2)])
def test_dilation(kernel: Any, dilation: Any, layout: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 11, 14)).astype(np.float32)
    for stride, padding in [(1, 1), (2, 0), (3, 1)]:
        compare(
            lambda t, s=stride, p=padding: max_pool2d(
                t, kernel, s, p, dilation, return_indices=True
            ),
            x,
            layout,
        )


@pytest.mark.parametrize("layout", [None, last], ids=["planes", "last"])
@pytest.mark.parametrize("size", [1, 3, (5, 2), (7, 10), (13, 4), (10, 13)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_adaptive(dtype: Any, size: Any, layout: Any) -> None:
    for channels in (1, 6, 16):
        x = np.random.default_rng(0).standard_normal((2, channels, 10, 13)).astype(dtype)
        if isinstance(size, int) or size[0] <= 10:
            compare(lambda t: adaptive_max_pool2d(t, size, return_indices=True), x, layout)
        compare(lambda t: adaptive_avg_pool2d(t, size), x, layout)


def test_positions_beyond_a_byte() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 30, 34)).astype(np.float32)
    for layout in (None, last):
        compare(lambda t: max_pool2d(t, (20, 15), 3, 5, return_indices=True), x, layout)
        compare(lambda t: adaptive_max_pool2d(t, (1, 3), return_indices=True), x, layout)


@pytest.mark.parametrize("layout", [None, last], ids=["planes", "last"])
def test_special_values(layout: Any) -> None:
    x = np.random.default_rng(0).integers(-2, 3, (2, 4, 9, 8)).astype(np.float32)
    x[0, 0, 2, 3], x[0, 1, 4:6] = np.nan, np.nan
    x[1, 0, 0], x[1, 1], x[1, 2, 3] = np.inf, -np.inf, -np.inf
    for window in (WINDOWS["2"], WINDOWS["3 by 2"], WINDOWS["4"]):
        found = []
        for device in ("cpu", "cuda"):
            t = grebe.from_numpy(x).to(device)
            t = layout(t) if layout else t
            y, index = max_pool2d(t, **window, return_indices=True)
            found.append((y.cpu().numpy(), index.cpu().numpy()))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        np.testing.assert_array_equal(found[0][1], found[1][1])


def test_one_and_three_dimensions() -> None:
    row = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32)
    volume = np.random.default_rng(0).standard_normal((2, 3, 5, 8, 7)).astype(np.float32)
    for dtype in (np.float32, np.float16):
        compare(lambda t: max_pool1d(t, 3, 2, 1, return_indices=True), row.astype(dtype))
        compare(lambda t: avg_pool1d(t, 5, 2, 1), row.astype(dtype))
        compare(lambda t: adaptive_avg_pool1d(t, 7), row.astype(dtype))
        compare(lambda t: max_pool3d(t, 2, 1, 1, return_indices=True), volume.astype(dtype))
        compare(lambda t: avg_pool3d(t, (2, 3, 3), 2, 1), volume.astype(dtype))
        compare(lambda t: adaptive_avg_pool3d(t, (2, 3, 4)), volume.astype(dtype))
        compare(
            lambda t: adaptive_max_pool3d(t, (2, 3, 4), return_indices=True), volume.astype(dtype)
        )


def test_second_derivatives() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 7))
    pools = (
        lambda t: max_pool2d(t, 3, 2, 1),
        lambda t: avg_pool2d(t, 3, 2, 1),
        lambda t: adaptive_max_pool2d(t, (4, 3)),
    )
    for pool in pools:
        found = []
        for device in ("cpu", "cuda"):
            leaf = grebe.from_numpy(x).to(device).requires_grad_()
            y = pool(leaf)
            g = grebe.from_numpy(np.random.default_rng(1).standard_normal(tuple(y.shape)))
            g = g.to(device).requires_grad_()
            (gx,) = grebe.autograd.grad((y,), [leaf], (g,), create_graph=True)
            gx.backward(grebe.from_numpy(x).to(device))
            assert g.grad is not None
            found.append(g.grad.cpu().numpy())
        np.testing.assert_allclose(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_memory_that_begins_at_no_multiple_of_16_bytes() -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 7)).astype(np.float32)

    def shifted(t: Any) -> Any:
        room = grebe.zeros(t.numel() + 1).to(t.device)
        view = room[1:].reshape(2, 6, 7, 8).permute(0, 3, 1, 2)
        view.copy_(t)
        return view

    compare(lambda t: max_pool2d(t, 2, return_indices=True), x, shifted)
    compare(lambda t: avg_pool2d(t, 3, 2, 1), x, shifted)


def test_empty() -> None:
    for pool in (lambda t: max_pool2d(t, 2), lambda t: avg_pool2d(t, 2)):
        compare(pool, np.zeros((0, 3, 4, 4), np.float32))


def test_the_order_of_threads_changes_no_bit() -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 10, 13)).astype(np.float32)

    def everything() -> list[bytes]:
        return [
            a.tobytes()
            for window in WINDOWS.values()
            for layout in (None, last)
            for pool in (max_pool2d, avg_pool2d)
            for a in results("cuda", lambda t, p=pool, w=window: p(t, **w), x, layout)
        ]

    want = everything()
    for lazy, seed in [(False, 0), (True, 1), (False, 2)]:
        check.set_emulator(lazy=lazy, seed=seed)
        assert everything() == want
