"""Products, convolutions and pooling at many shapes, so that every tile and remainder is met.

The operands are small integers: every order of summation gives the same, exact result. Shapes are
swept where kernels take them apart into tiles, and drawn at random (the same in every run) where
they choose between ways of working.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.random import Generator

import grebe
import grebe.nn.functional as F
from reference import REFERENCES

Array = np.ndarray[Any, np.dtype[Any]]
FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def integers(rng: Generator, shape: tuple[int, ...], dtype: Any, largest: int = 2) -> Array:
    return rng.integers(-largest, largest + 1, shape).astype(dtype)


def leaf(array: Array) -> Any:
    return grebe.from_numpy(array).requires_grad_()


def equal(got: Any, want: Array, *what: Any) -> None:
    values = got.detach().numpy()
    assert np.array_equal(values.astype(np.float64), want), what


# ---- products ----


def product(rng: Generator, m: int, k: int, n: int, layout: str, dtype: Any) -> None:
    largest = 1 if dtype == ml_dtypes.bfloat16 else 2
    a, b = integers(rng, (m, k), dtype, largest), integers(rng, (k, n), dtype, largest)
    want = a.astype(np.float64) @ b.astype(np.float64)
    if dtype == ml_dtypes.bfloat16:
        want = want.astype(dtype).astype(np.float64)
    x, y = (
        grebe.from_numpy(v if how == "N" else v.T.copy().T)
        for v, how in zip((a, b), layout, strict=True)
    )
    equal(x @ y, want, m, k, n, layout)


@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_products_of_all_small_sizes(dtype: Any, layout: str) -> None:
    rng = np.random.default_rng(0)
    for m in range(1, 32):
        for n in (*range(1, 70), 80, 81, 95, 96, 97, 112, 113, 128, 129):
            product(rng, m, 1 + (7 * m + 3 * n) % 43, n, layout, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_products_of_any_sizes(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        m, k, n = (2 ** rng.uniform(0, 10.5, 3)).astype(int)
        product(rng, m, k, n, "".join(rng.choice(["N", "T"], 2)), dtype)
    deep = [(9, 5000, 3), (9, 5000, 17), (40, 9000, 33), (5, 9000, 64), (9, 90_000, 4)]
    deep += [(28, 9000, 256), (63, 3000, 511)]
    for size in (*deep, (300, 1030, 700), (4100, 400, 90)):  # the last two: copied in blocks
        for layout in ("NN", "TN", "TT"):
            product(rng, *size, layout, dtype)


@FLOATS
def test_linear_layers(dtype: Any) -> None:
    """With a bias, from a weight that is stored by output."""
    rng = np.random.default_rng(2)
    for m in (1, 2, 5, 6, 7, 13, 70):
        for n in (*range(1, 36), 63, 64, 65, 200):
            for k in (1, 17, 130):
                x, w, b = (integers(rng, s, dtype) for s in ((m, k), (n, k), (n,)))
                y = F.linear(*map(grebe.from_numpy, (x, w, b)))
                equal(y, (x @ w.T + b).astype(np.float64), m, k, n)


# ---- convolution ----


def differentiated(op: str, call: Any, arrays: list[Array], kwargs: Any) -> None:
    """Results and gradients of `call` equal those of the reference."""
    reference = REFERENCES[op]
    wide = [a.astype(np.float64) for a in arrays]
    leaves = [leaf(a) for a in arrays]
    y = call(*leaves, **kwargs)
    shapes = [a.shape for a in arrays]
    want = np.asarray(reference.forward(*wide, **kwargs))
    equal(y, want, op, shapes, kwargs)
    grad = integers(np.random.default_rng(3), want.shape, arrays[0].dtype)
    if y.array.ndim == 4 and not y.array.flags.c_contiguous:
        grad = last(grad)
    y.backward(grebe.from_numpy(grad))
    assert reference.backward
    grads = reference.backward(grad.astype(np.float64), *wide, **kwargs)
    for i, (t, g) in enumerate(zip(leaves, grads, strict=True)):
        equal(t.grad, g, op, f"gradient {i}", shapes, kwargs)


def last(x: Array) -> Array:
    """The same values, stored channels-last."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def convolve(rng: Generator, x: tuple[int, ...], w: tuple[int, ...], dtype: Any, **kw: Any) -> None:
    arrays = [integers(rng, s, dtype) for s in (x, w, w[:1])]
    if rng.random() < 0.5:
        arrays[0] = last(arrays[0])
    differentiated("conv2d", grebe.conv2d, arrays, kw)


@FLOATS
def test_convolutions_of_few_channels(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    for channels in range(1, 8):
        for filters in range(1, 15):
            for width in (3, 5, 9, 17, 30, 47, 64):
                if (channels + filters + width) % 3 == 0:
                    x, w = (2, channels, 4, width), (filters, channels, 3, 3)
                    convolve(rng, x, w, dtype, padding=1)


@FLOATS
def test_convolutions_of_many_channels(dtype: Any) -> None:
    rng = np.random.default_rng(5)
    for filters in (32, 33, 48, 49, 64, 65, 80, 96, 113, 128, 150):
        for size in ((1, 1), (1, 3), (2, 2), (5, 1), (3, 4), (7, 7)):
            kernel = 1 if sum(size) % 2 else 3
            w = (filters, 32 + filters % 5, kernel, kernel)
            convolve(rng, (2, w[1], *size), w, dtype, padding=kernel // 2)
            convolve(rng, (3, w[1], *size), w, dtype, padding=kernel // 2, stride=2)


@FLOATS
def test_convolutions_of_any_shape(dtype: Any) -> None:
    rng = np.random.default_rng(6)
    for _ in range(150):
        groups = int(rng.choice([1, 1, 2, 3]))
        depthwise = rng.random() < 0.3
        channels = 1 if depthwise else int(rng.choice([1, 2, 3, 8, 40]))
        filters = int(rng.choice([1, 2])) if depthwise else int(rng.choice([1, 3, 8, 40]))
        groups = int(rng.choice([2, 5, 16])) if depthwise else groups
        kernel = tuple(map(int, rng.integers(1, 5, 2)))
        padding = tuple(map(int, rng.integers(0, 4, 2)))
        dilation = tuple(map(int, rng.choice([1, 1, 1, 2], 2)))
        stride = tuple(map(int, rng.choice([1, 1, 2, 3], 2)))
        least = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
        size = [max(n, int(s)) for n, s in zip(least, 2 ** rng.uniform(0, 6, 2), strict=True)]
        convolve(
            rng, (int(rng.choice([1, 2, 3, 20])), channels * groups, *size),
            (filters * groups, channels, *kernel), dtype,
            stride=stride, padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip


# ---- pooling ----


@FLOATS
@pytest.mark.parametrize("large", [False, True])
def test_maxima_of_any_windows(dtype: Any, large: bool) -> None:
    """Windows of up to 256 cells number them in bytes, larger ones in 32 bits."""
    rng = np.random.default_rng(7)
    for _ in range(60):
        kernel = (17, int(rng.integers(16, 20))) if large else tuple(rng.choice([1, 2, 3, 5], 2))
        kernel = tuple(map(int, kernel))
        stride = tuple(map(int, rng.choice([1, 2, 3], 2)))
        padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
        dilation = (1, 1) if large else tuple(map(int, rng.choice([1, 1, 2], 2)))
        size = [
            max((k - 1) * d + 1, int(s))
            for k, d, s in zip(kernel, dilation, 2 ** rng.uniform(0, 6.5, 2), strict=True)
        ]
        channels = int(rng.choice([1, 3, 17, 40, 70]))
        # All different, so that every maximum is alone in its window.
        x = rng.permutation(2 * channels * size[0] * size[1]).reshape(2, channels, *size)
        x = x.astype(dtype)
        differentiated(
            "max_pool2d", grebe.max_pool2d, [last(x) if rng.random() < 0.5 else x],
            {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation},
        )  # fmt: skip


# ---- rows ----


def ways(op: str) -> tuple[Any, Any]:
    """A function along the last dimension, and its NumPy form."""

    def shifted(x: Array) -> Array:
        return x - x.max(-1, keepdims=True)

    def logarithm(x: Array) -> Array:
        return shifted(x) - np.log(np.exp(shifted(x)).sum(-1, keepdims=True))

    def normalized(x: Array) -> Array:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    return {
        "softmax": (lambda x: F.softmax(x, -1), lambda x: np.exp(logarithm(x))),
        "log_softmax": (lambda x: F.log_softmax(x, -1), logarithm),
        "logsumexp": (lambda x: x.logsumexp(-1), lambda x: x.max(-1) - logarithm(x).max(-1)),
        "layer_norm": (lambda x: F.layer_norm(x, x.shape[-1:]), normalized),
        "sum": (lambda x: x.sum(-1), lambda x: x.sum(-1)),
        "amax": (lambda x: x.amax(-1), lambda x: x.max(-1)),
        "var": (lambda x: x.var(-1, correction=0), lambda x: x.var(-1)),
        "argmax": (lambda x: x.argmax(-1), lambda x: x.argmax(-1)),
    }[op]


@FLOATS
@pytest.mark.parametrize(
    "op", ["softmax", "log_softmax", "logsumexp", "layer_norm", "sum", "amax", "var", "argmax"]
)
def test_rows_of_any_length(op: str, dtype: Any) -> None:
    """Rows that share a vector, with a tail, in pieces, and in the pieces of the longest."""
    rng = np.random.default_rng(8)
    call, reference = ways(op)
    shapes = [(37, n) for n in (*range(1, 70), 127, 128, 129, 255, 256, 257, 1000, 5000)]
    for shape in [*shapes, (2, 65535), (2, 65537), (1, 2_200_000)]:
        x = rng.standard_normal(shape).astype(dtype)
        got, want = call(grebe.from_numpy(x)).numpy(), reference(x.astype(np.float64))
        limit = 100 * float(np.finfo(dtype).eps) * max(np.abs(want).max(), np.log(shape[1]))
        np.testing.assert_allclose(got, want, rtol=0, atol=limit, err_msg=f"{op} {shape}")
