"""Positions, kernel pooling, dot-product attention: against the formulas, with gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.autograd import gradcheck, gradgradcheck
from grebe.models import (
    DotProductAttention,
    LearnedPositionalEncoding,
    PositionalEncoding,
    RelativePositionBias,
    masked_softmax,
    nadaraya_watson,
)
from grebe.nn.attention import rotary, rotary_tables

Array = np.ndarray[Any, np.dtype[Any]]


def tensor(*shape: int, seed: int = 0, dtype: Any = np.float64) -> grebe.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return grebe.tensor(values, requires_grad=True)


def plain(t: grebe.Tensor) -> Array:
    return t.detach().numpy()


# ---- rotary ----


def turned(x: Array, width: int, interleaved: bool, first: int = 0) -> Array:
    """The pairs as complex numbers, times exp(i angle)."""
    steps = np.arange(first, first + x.shape[-2])[:, None]
    factor = np.exp(1j * steps * 10000.0 ** (-np.arange(0, width, 2) / width))
    y, half = x.copy(), width // 2
    one, two = (slice(0, width, 2), slice(1, width, 2)) if interleaved else (
        slice(half), slice(half, width))  # fmt: skip
    z = (x[..., one] + 1j * x[..., two]) * factor
    y[..., one], y[..., two] = z.real, z.imag
    return y


SHAPES = [(2, 3, 5, 8), (1, 1, 1, 2), (2, 2, 70, 66), (3, 5, 9, 33), (0, 2, 3, 4), (2, 6, 300, 64)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", ["heads first", "positions first", "strided", "fastest last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotary(shape: Any, layout: str, interleaved: bool, dtype: Any) -> None:
    b, h, n, d = shape
    x = tensor(b, h, n, d, dtype=dtype)
    if layout == "positions first":
        x = tensor(b, n, h, d, dtype=dtype).transpose(1, 2)
    elif layout == "strided":
        x = tensor(b, n, h, 2 * d, dtype=dtype)[..., d:].transpose(1, 2)
    elif layout == "fastest last":
        x = tensor(d, h, n, b, dtype=dtype).permute(3, 1, 2, 0)
    x = x.detach().requires_grad_()
    width = d // 2 * 2 if h < 3 else max(d // 4 * 2, 2)
    cos, sin = rotary_tables(n, width, offset=3, dtype=getattr(grebe, np.dtype(dtype).name))
    results = []
    before = grebe.get_num_threads()
    for threads in (1, 2):
        grebe.set_num_threads(threads)
        y = rotary(x, cos, sin, interleaved)
        upstream = tensor(*y.shape, seed=4, dtype=dtype).detach()
        (g,) = grebe.autograd.grad([y], [x], [upstream])
        results.append((np.array(plain(y)), np.array(plain(g))))
        plain(y).fill(np.nan)
    grebe.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    want = turned(plain(x).astype(np.float64), width, interleaved, 3)
    np.testing.assert_allclose(results[0][0], want, rtol=0, atol=tolerance)
    # A turn: the products with the upstream gradient tell the transpose.
    back = (results[0][1] * plain(x)).sum() - (plain(upstream) * want).sum()
    assert abs(back) <= 100 * tolerance * max(np.sqrt(want.size), 1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_gradients(interleaved: bool) -> None:
    cos, sin = rotary_tables(5, 4, dtype=grebe.float64)
    x = tensor(2, 3, 5, 7)
    assert gradcheck(lambda x: rotary(x, cos, sin, interleaved), [x])
    assert gradgradcheck(lambda x: rotary(x, cos, sin, interleaved), [x])


def test_rotary_scores_depend_on_the_distance() -> None:
    q, k = tensor(1, 1, 1, 16), tensor(1, 1, 1, 16, seed=1)
    scores = []
    for at in (0, 7, 100):
        a, b = (rotary_tables(1, 16, offset=o, dtype=grebe.float64) for o in (at + 5, at))
        scores.append(float((rotary(q, *a) * rotary(k, *b)).sum().detach()))
    np.testing.assert_allclose(scores, scores[0], rtol=1e-12)


def test_rotary_tables_per_item() -> None:
    """Positions that differ between the items of a batch."""
    tables = [rotary_tables(5, 8, offset=o, dtype=grebe.float64) for o in (0, 3)]
    cos, sin = (grebe.stack([t[i] for t in tables]) for i in (0, 1))
    x = tensor(2, 3, 5, 8)
    y = plain(rotary(x, cos, sin))
    for item, offset in enumerate((0, 3)):
        np.testing.assert_allclose(y[item], turned(plain(x)[item], 8, False, offset), atol=1e-12)


def test_rotary_of_bfloat16() -> None:
    cos, sin = rotary_tables(5, 8)
    x = tensor(2, 3, 5, 8, dtype=np.float32)
    y = rotary(x.to(grebe.bfloat16), cos, sin)
    assert y.dtype == grebe.bfloat16
    np.testing.assert_allclose(plain(y.float()), turned(plain(x), 8, False), atol=0.05)


TABLES = rotary_tables(5, 8)
WRONG: list[tuple[str, type[Exception], Any]] = [
    ("input \\[B, H, L, D\\]", RuntimeError, lambda: rotary(tensor(5, 8), *TABLES)),
    ("cos \\[4, R / 2\\]", RuntimeError, lambda: rotary(tensor(1, 1, 4, 8), *TABLES)),
    ("R up to 6", RuntimeError, lambda: rotary(tensor(1, 1, 5, 6), *TABLES)),
    ("one shape", RuntimeError, lambda: rotary(tensor(1, 1, 5, 8), TABLES[0], TABLES[1][:, :2])),
    ("sin must be a Tensor", TypeError, lambda: rotary(tensor(1, 1, 5, 8), TABLES[0], 1)),
    ("no gradient", ValueError, lambda: rotary(tensor(1, 1, 5, 8), tensor(5, 4), TABLES[1])),
    ("even", ValueError, lambda: rotary_tables(5, 7)),
    ("floating", TypeError, lambda: rotary_tables(5, 8, dtype=grebe.int64)),
    ("offset \\+ T at most 4", ValueError,
     lambda: PositionalEncoding(6, max_len=4)(tensor(2, 3, 6), 2)),
    ("an input \\[B, T, 6\\]", ValueError, lambda: PositionalEncoding(6)(tensor(2, 3, 5))),
    ("num_buckets of at least 4", ValueError, lambda: RelativePositionBias(2, 3)),
    ("max_distance", ValueError, lambda: RelativePositionBias(2, 32, 8)),
    ("a kernel of", ValueError,
     lambda: nadaraya_watson(tensor(3), tensor(4), tensor(4), "triangle")),
    ("queries \\[Q\\]", ValueError, lambda: nadaraya_watson(tensor(3), tensor(4, 1), tensor(4))),
    ("valid_lens \\[2\\]", ValueError,
     lambda: DotProductAttention()(*[tensor(2, 3, 4)] * 3, grebe.tensor([1, 2, 3]))),
]  # fmt: skip


@pytest.mark.parametrize("message, error, call", WRONG)
def test_errors(message: str, error: type[Exception], call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- encodings ----


@pytest.mark.parametrize("width", [6, 7, 1])
@pytest.mark.parametrize("offset", [0, 4])
def test_sinusoidal(width: int, offset: int) -> None:
    x = tensor(2, 5, width, dtype=np.float32)
    module = PositionalEncoding(width)
    assert not module.state_dict()
    added = plain(module(x, offset)) - plain(x)
    for t in range(5):
        for i in range(width):
            angle = (t + offset) / 10000 ** (i // 2 * 2 / width)
            want = math.cos(angle) if i % 2 else math.sin(angle)
            np.testing.assert_allclose(added[:, t, i], want, atol=1e-6)


def test_learned() -> None:
    module, x = LearnedPositionalEncoding(6, max_len=9), tensor(2, 5, 6, dtype=np.float32)
    y = module(x, 3)
    np.testing.assert_array_equal(plain(y), plain(x) + plain(module.P)[3:8])
    y.sum().backward()
    want = np.zeros((9, 6))
    want[3:8] = 2
    np.testing.assert_array_equal(module.P.grad.numpy(), want)


@pytest.mark.parametrize("module", [PositionalEncoding, LearnedPositionalEncoding])
def test_dropout_after_positions(module: Any) -> None:
    encode = module(8, 0.5)
    zeros = (plain(encode(tensor(20, 10, 8, dtype=np.float32))) == 0).mean()
    assert 0.4 < zeros < 0.6


# ---- relative positions ----


def t5_bucket(distance: int, bidirectional: bool, buckets: int, longest: int) -> int:
    """Mesh TensorFlow's rule, one number at a time."""
    bucket, n = 0, -distance
    if bidirectional:
        buckets //= 2
        bucket += buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return bucket + n
    share = math.log(n / exact) / math.log(longest / exact)
    return bucket + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("sizes", [(32, 128), (8, 20), (4, 3)])
@pytest.mark.parametrize("offset", [0, 11])
def test_buckets(sizes: Any, bidirectional: bool, offset: int) -> None:
    module = RelativePositionBias(2, *sizes, bidirectional)
    got = module.buckets(30, 300, offset).numpy()
    for i in range(30):
        row = [t5_bucket(j - i - offset, bidirectional, *sizes) for j in range(300)]
        assert got[i].tolist() == row


def test_exact_powers_fall_into_their_own_bucket() -> None:
    row = RelativePositionBias(1, bidirectional=False).buckets(1, 1, 0)
    assert row.numpy().tolist() == [[0]]
    ends = RelativePositionBias(1).buckets(129, 1).numpy()[[8, 16, 32, 64, 127, 128], 0]
    assert ends.tolist() == [8, 10, 12, 14, 15, 15]


def test_relative_bias_learns() -> None:
    module = RelativePositionBias(3, 8, 20)
    q, k, v = (tensor(2, 3, n, 4, seed=n, dtype=np.float32) for n in (6, 9, 9))
    bias = module(6, 9)
    assert bias.shape == (1, 3, 6, 9)
    y = nn.functional.scaled_dot_product_attention(q, k, v, bias)
    y.pow(2).sum().backward()
    table = module.embedding.weight
    step, direction = 1e-2, np.random.default_rng(0).standard_normal(table.shape)

    def loss(t: float) -> float:
        with grebe.no_grad():
            table.array[...] += (t * direction).astype(np.float32)
            y = nn.functional.scaled_dot_product_attention(q, k, v, module(6, 9))
            table.array[...] -= (t * direction).astype(np.float32)
            return float(y.double().pow(2).sum())

    slope = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose((table.grad.numpy() * direction).sum(), slope, rtol=1e-2)


# ---- kernel pooling and dot products ----


@pytest.mark.parametrize("kernel", ["gaussian", "boxcar", "constant", "epanechikov"])
@pytest.mark.parametrize("features", [0, 3])
def test_kernel_pooling(kernel: str, features: int) -> None:
    more = (features,) if features else ()
    queries, keys, values = tensor(7, *more), tensor(9, *more, seed=1), tensor(9, *more, seed=2)
    y, weights = nadaraya_watson(queries, keys, values, kernel, 1.7)
    apart = (plain(queries)[:, None] - plain(keys)) / 1.7
    u = np.abs(apart) if not features else np.sqrt((apart**2).sum(-1))
    near = {"gaussian": np.exp(-u * u / 2), "boxcar": (u < 1) * 1.0, "constant": u * 0 + 1,
            "epanechikov": np.maximum(1 - u, 0)}[kernel]  # fmt: skip
    total = near.sum(1, keepdims=True)
    want = np.divide(near, total, where=total > 0, out=np.zeros_like(near))
    np.testing.assert_allclose(plain(weights), want, atol=1e-12)
    np.testing.assert_allclose(plain(y), want @ plain(values), atol=1e-12)


def test_kernel_pooling_far_from_all_keys() -> None:
    values = tensor(4)
    far = grebe.tensor([100.0], dtype=grebe.float64)
    keys = grebe.tensor([0.0, 1.0, 2.0, 3.0], dtype=grebe.float64)
    y, _ = nadaraya_watson(far, keys, values)
    np.testing.assert_allclose(plain(y), plain(values)[3:], rtol=1e-12)  # exp(-97^2 / 2) = 0
    y, weights = nadaraya_watson(far, keys, values, "boxcar")
    assert not plain(y).any() and not plain(weights).any()


def test_kernel_pooling_gradient() -> None:
    leaves = [tensor(5), tensor(6, seed=1), tensor(6, seed=2)]
    assert gradcheck(lambda *x: nadaraya_watson(*x, width=0.7)[0], leaves)


@pytest.mark.parametrize("keep_weights", [False, True])
@pytest.mark.parametrize("lens", [None, [3, 6], [[1, 2, 3, 4], [6, 5, 4, 3]]])
def test_dot_product_attention(lens: Any, keep_weights: bool) -> None:
    queries, keys, values = tensor(2, 4, 5), tensor(2, 6, 5, seed=1), tensor(2, 6, 3, seed=2)
    valid = None if lens is None else grebe.tensor(lens)
    module = DotProductAttention(keep_weights=keep_weights)
    y = module(queries, keys, values, valid)
    weights = masked_softmax(queries @ keys.transpose(1, 2) / math.sqrt(5), valid)
    np.testing.assert_allclose(plain(y), plain(weights @ values), atol=1e-12)
    if keep_weights:
        np.testing.assert_allclose(plain(module.attention_weights), plain(weights), atol=1e-12)
    else:
        assert module.attention_weights is None
    assert gradcheck(lambda *x: module(*x, valid), [queries, keys, values])


def test_dot_product_attention_drops_weights_in_training() -> None:
    module, x = DotProductAttention(0.5), tensor(2, 40, 5)
    assert not np.array_equal(plain(module(x, x, x)), plain(module(x, x, x)))
    module.eval()
    np.testing.assert_array_equal(plain(module(x, x, x)), plain(module(x, x, x)))
