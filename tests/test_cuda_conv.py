"""Convolution: CUDA's kernels (emulated) against float64, on the tiles of every generation."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import check
import grebe
from grebe.nn import functional as F

pytestmark = pytest.mark.usefixtures("cuda_device")

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Batch, channels, outputs, image, kernel, stride, padding, dilation.
SHAPES = {
    "3x3": (2, 64, 64, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    "wide": (3, 128, 136, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": (2, 64, 72, (17, 19), (3, 3), (2, 2), (1, 1), (1, 1)),
    "1x1": (1, 192, 64, (12, 13), (1, 1), (1, 1), (0, 0), (1, 1)),
    "5x3": (1, 64, 128, (16, 15), (5, 3), (1, 2), (2, 0), (1, 1)),
    "dilated": (1, 64, 64, (15, 18), (3, 3), (1, 1), (3, 2), (3, 2)),
    "padded": (1, 64, 64, (9, 10), (2, 2), (1, 1), (3, 3), (1, 1)),
    "no multiple of 64": (2, 48, 80, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    "far taps": (1, 64, 64, (150, 2), (2, 1), (1, 1), (0, 0), (140, 1)),
}


def images(a: Any, last: bool) -> Any:
    t = grebe.from_numpy(a).to("cuda")
    return t.contiguous(memory_format=grebe.channels_last) if last else t


def reference(x: Any, w: Any, b: Any, g: Any, options: tuple[Any, ...]) -> list[Any]:
    """Result and gradients in float64 on the CPU."""
    leaves = [grebe.from_numpy(a.astype(np.float64)).requires_grad_() for a in (x, w, b)]
    y = F.conv2d(*leaves, *options)
    y.backward(grebe.from_numpy(g.astype(np.float64)))
    return [t.detach().numpy() for t in (y, *(v.grad for v in leaves))]


def run(name: str, dtype: Any, last: bool) -> None:
    n, channels, outputs, size, kernel, *options = SHAPES[name]
    rng = np.random.default_rng(0)
    stride, padding, dilation = options
    out = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    x = rng.standard_normal((n, channels, *size)).astype(dtype)
    w = rng.standard_normal((outputs, channels, *kernel)).astype(dtype)
    b = rng.standard_normal(outputs).astype(dtype)
    g = rng.standard_normal((n, outputs, *out)).astype(dtype)
    leaves = [t.requires_grad_() for t in (images(x, last), images(w, False), images(b, False))]
    y = F.conv2d(*leaves, *options)
    y.backward(images(g, last))
    want = reference(x, w, b, g, tuple(options))
    eps = float(ml_dtypes.finfo(dtype).eps)
    for found, expected in zip((y.detach(), *(v.grad for v in leaves)), want, strict=True):
        got = found.cpu().double().numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=eps, atol=(eps / 8 + 2e-6) * scale)


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_on_sm90(name: str, dtype: Any, last: bool) -> None:
    run(name, dtype, last)


@pytest.mark.parametrize("capability", [75, 80])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["3x3", "strided", "dilated"])
def test_on_older_devices(name: str, dtype: Any, capability: int) -> None:
    check.set_emulator(lazy=True, seed=1, capability=capability)
    run(name, dtype, last=True)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_modes(lazy: bool, seed: int) -> None:
    check.set_emulator(lazy=lazy, seed=seed)
    for name in ("3x3", "strided"):
        run(name, ml_dtypes.bfloat16, last=True)
