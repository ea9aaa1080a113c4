"""Pooling beyond the cases of test_ops.py: formats, NaN, indices, adaptive windows, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.ops.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)


def rand(*shape: int, dtype: Any = np.float64) -> Any:
    return grebe.from_numpy(np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype))


def channels_last(x: Any) -> Any:
    return grebe.from_numpy(np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))).permute(
        0, 3, 1, 2
    )


POOLS = {
    "max": lambda x: max_pool2d(x, 3, 2, 1),
    "max large": lambda x: max_pool2d(x, (5, 7), 1, 2, ceil_mode=True),
    "max dilated": lambda x: max_pool2d(x, 2, 2, 1, (1, 3)),
    "max tiles": lambda x: max_pool2d(x, 2),
    "avg": lambda x: avg_pool2d(x, 2),
    "avg global": lambda x: adaptive_avg_pool2d(x, 1),
    "avg padded": lambda x: avg_pool2d(x, 3, 2, 1, True, False),
    "adaptive max": lambda x: adaptive_max_pool2d(x, (3, 4)),
    "adaptive avg": lambda x: adaptive_avg_pool2d(x, (5, 2)),
    "adaptive even": lambda x: adaptive_avg_pool2d(x, 3),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 5, 37, 70])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_channels_last_keeps_its_format_and_the_values(
    pool: Any, channels: int, dtype: Any
) -> None:
    x = rand(2, channels, 9, 12, dtype=dtype)
    plain, last = x.clone().requires_grad_(), channels_last(x).requires_grad_()
    y, z = pool(plain), pool(last)
    if channels > 1:
        assert z.array.transpose(0, 2, 3, 1).flags.c_contiguous
    assert y.array.flags.c_contiguous
    eps = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=eps, atol=eps)
    grad = rand(*y.shape, dtype=dtype)
    y.backward(grad)
    z.backward(channels_last(grad))
    np.testing.assert_allclose(plain.grad.numpy(), last.grad.numpy(), rtol=eps, atol=eps)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_first_and_second_gradients(pool: Any) -> None:
    x = grebe.from_numpy(np.random.default_rng(0).permutation(6 * 9).astype(np.float64))
    x = x.reshape(1, 1, 6, 9).detach().requires_grad_()
    assert gradcheck(pool, [x]) and gradgradcheck(pool, [x])


def windows(n: int, out: int) -> list[slice]:
    return [slice(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]


@pytest.mark.parametrize("out", [(1, 1), (3, 4), (5, 7), (9, 12), (11, 20)])
def test_adaptive(out: tuple[int, int]) -> None:
    x = rand(2, 3, 9, 12)
    cells = [[x.numpy()[..., h, w] for w in windows(12, out[1])] for h in windows(9, out[0])]
    for pool, f in ((adaptive_avg_pool2d, np.mean), (adaptive_max_pool2d, np.max)):
        expected = np.array([[f(c, (-2, -1)) for c in row] for row in cells]).transpose(2, 3, 0, 1)
        np.testing.assert_allclose(pool(x, out).numpy(), expected, rtol=1e-12)
    assert adaptive_avg_pool2d(x, (None, 4)).shape == (2, 3, 9, 4)


@pytest.mark.parametrize("form", [lambda x: x, channels_last])
def test_indices_point_at_the_maxima(form: Any) -> None:
    x = form(rand(2, 3, 10, 23))
    for pool in (
        lambda x: max_pool2d(x, (3, 2), (2, 3), 1, return_indices=True),
        lambda x: max_pool2d(x, 3, 2, 1, (2, 3), return_indices=True),
        lambda x: max_pool2d(x, (17, 17), 1, 8, return_indices=True),
        lambda x: adaptive_max_pool2d(x, (3, 7), return_indices=True),
    ):
        y, index = pool(x)
        assert index.dtype == grebe.int64 and index.shape == y.shape
        flat = np.ascontiguousarray(x.numpy()).reshape(2, 3, -1)
        found = np.take_along_axis(flat, index.numpy().reshape(2, 3, -1), 2)
        np.testing.assert_array_equal(found.reshape(y.shape), y.numpy())


@pytest.mark.parametrize("form", [lambda x: x, channels_last])
def test_nan_and_minus_infinity(form: Any) -> None:
    x = np.full((1, 2, 6, 40), -np.inf, np.float32)
    x[0, 0, 2, 5] = np.nan
    x[0, 0, 2, 4] = 1e30
    y, index = max_pool2d(form(grebe.from_numpy(x)), 2, return_indices=True)
    expected = np.full((1, 2, 3, 20), -np.inf, np.float32)
    expected[0, 0, 1, 2] = np.nan
    np.testing.assert_array_equal(y.numpy(), expected)
    assert index.numpy()[0, 0, 1, 2] == 2 * 40 + 5
    padded, index = max_pool2d(form(grebe.from_numpy(x)), 3, 2, 1, return_indices=True)
    assert index.numpy().min() >= 0, "a maximum in the padding"
    assert index.numpy().max() < 6 * 40


@pytest.mark.parametrize("width", [4, 10, 40, 70])
@pytest.mark.parametrize("form", [lambda x: x, channels_last])
def test_every_nan_is_found(form: Any, width: int) -> None:
    x = np.zeros((1, 2, 4, width), np.float32)
    for i in range(0, x.size, 3):
        x[...] = -np.inf
        x.ravel()[i] = np.nan
        for window in ((2,), (3, 2, 1)):
            leaf = form(grebe.from_numpy(x)).detach().requires_grad_()
            y = max_pool2d(leaf, *window)
            nans = np.isnan(y.detach().numpy())
            assert nans.any()
            y.backward(grebe.ones(*y.shape))
            assert leaf.grad.numpy().ravel()[i] == nans.sum(), "the gradient goes elsewhere"


def test_ties_go_to_the_first() -> None:
    x = grebe.zeros(1, 1, 4, 4).requires_grad_()
    max_pool2d(x, 2).sum().backward()
    assert x.grad.numpy()[0, 0].nonzero()[0].tolist() == [0, 0, 2, 2]


def test_one_dimension_and_unbatched() -> None:
    x = rand(2, 3, 17)
    image = x.unsqueeze(2)
    pairs = [
        (max_pool1d(x, 3, 2, 1), max_pool2d(image, (1, 3), (1, 2), (0, 1))),
        (avg_pool1d(x, 4, padding=2), avg_pool2d(image, (1, 4), padding=(0, 2))),
        (adaptive_avg_pool1d(x, 5), adaptive_avg_pool2d(image, (1, 5))),
        (adaptive_max_pool1d(x, 4), adaptive_max_pool2d(image, (1, 4))),
        (max_pool1d(x[0], 2), max_pool2d(image[:1], (1, 2)).squeeze(0)),
    ]
    for one, two in pairs:
        np.testing.assert_array_equal(one.numpy(), two.squeeze(-2).numpy())
    y, index = max_pool1d(x, 2, return_indices=True)
    np.testing.assert_array_equal(np.take_along_axis(x.numpy(), index.numpy(), 2), y.numpy())
    assert max_pool2d(rand(3, 6, 7), 2).shape == (3, 3, 3)


VOLUMES = {
    "max": lambda x: max_pool3d(x, (2, 3, 2), 2, 1, (2, 1, 1)),
    "avg": lambda x: avg_pool3d(x, 3, 2, 1, True, False),
    "avg divided": lambda x: avg_pool3d(x, 2, divisor_override=3),
    "adaptive max": lambda x: adaptive_max_pool3d(x, (3, 2, 4)),
    "adaptive avg": lambda x: adaptive_avg_pool3d(x, (None, 3, 2)),
}


@pytest.mark.parametrize("pool", VOLUMES.values(), ids=VOLUMES)
def test_volumes_have_first_and_second_gradients(pool: Any) -> None:
    values = np.random.default_rng(0).permutation(2 * 5 * 4 * 5).astype(np.float64)
    x = grebe.from_numpy(values.reshape(1, 2, 5, 4, 5)).requires_grad_()
    assert gradcheck(pool, [x]) and gradgradcheck(pool, [x])


def test_volume_indices_point_at_the_maxima() -> None:
    x = rand(2, 3, 5, 6, 7)
    for pool in (
        lambda x: max_pool3d(x, (2, 3, 2), 2, 1, (2, 1, 1), return_indices=True),
        lambda x: adaptive_max_pool3d(x, (2, 4, 3), return_indices=True),
    ):
        y, index = pool(x)
        found = np.take_along_axis(x.numpy().reshape(2, 3, -1), index.numpy().reshape(2, 3, -1), 2)
        np.testing.assert_array_equal(found.reshape(y.shape), y.numpy())
        single, other = pool(x[1])
        np.testing.assert_array_equal(single.numpy(), y.numpy()[1])
        np.testing.assert_array_equal(other.numpy(), index.numpy()[1])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "too large", lambda: max_pool2d(rand(1, 1, 4, 4), 5)),
        (ValueError, "at most half", lambda: avg_pool2d(rand(1, 1, 4, 4), 2, padding=2)),
        (ValueError, "stride must be positive", lambda: max_pool2d(rand(1, 1, 4, 4), 2, 0)),
        (ValueError, "kernel_size must be positive", lambda: avg_pool2d(rand(1, 1, 4, 4), 0)),
        (TypeError, "kernel_size must be an int", lambda: avg_pool2d(rand(1, 1, 4, 4), "2")),
        (ValueError, "expected input of shape", lambda: max_pool2d(rand(4, 4), 2)),
        (
            ValueError,
            "divisor_override",
            lambda: avg_pool2d(rand(1, 1, 4, 4), 2, divisor_override=0),
        ),
        (TypeError, "floating", lambda: max_pool2d(grebe.ones(1, 1, 4, 4, dtype=grebe.int64), 2)),
        (ValueError, "output_size", lambda: adaptive_avg_pool2d(rand(1, 1, 4, 4), 0)),
        (ValueError, "output_size", lambda: adaptive_max_pool2d(rand(1, 1, 4, 4), (1, 2, 3))),
        (ValueError, r"\[N, C, D, H, W\]", lambda: max_pool3d(rand(1, 4, 4), 2)),
        (ValueError, "too large", lambda: avg_pool3d(rand(1, 1, 4, 4, 4), (5, 1, 1))),
        (ValueError, "or 3 of int", lambda: adaptive_avg_pool3d(rand(1, 1, 4, 4, 4), (1, 2))),
        (TypeError, "must be a Tensor", lambda: max_pool1d(np.ones((1, 1, 4)), 2)),
    ],
)
def test_errors(error: Any, message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()
