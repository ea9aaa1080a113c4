"""Random kernels: the Philox stream, distributions, layouts, threads."""

from __future__ import annotations

import numpy as np
import pytest

from grebe import _cpu

DTYPES = [np.float32, np.float64]


def philox(seed: int, low: np.ndarray, high: int) -> np.ndarray:
    """Philox4x32-10 of Salmon et al. on counters (low, high): words of shape [4, blocks]."""
    mask = np.uint64(0xFFFFFFFF)
    low = low.astype(np.uint64)
    tops = [np.full_like(low, high & 0xFFFFFFFF), np.full_like(low, high >> 32)]
    c = [low & mask, low >> np.uint64(32), *tops]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]),
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]),
            p0 & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c)


def words(seed: int, offset: int, n: int) -> np.ndarray:
    """The word of elements 0 to n - 1, as random.h defines it."""
    i = np.arange(n)
    return philox(seed, i // 64 * 16 + i % 16, offset)[i % 64 // 16, i]


def double_units(seed: int, offset: int, n: int) -> np.ndarray:
    i = np.arange(n)
    block, word = philox(seed, i // 32 * 16 + i % 16, offset), 2 * (i % 32 // 16)
    bits = (block[word, i] << np.uint64(32)) | block[word + 1, i]
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def test_philox_known_answers() -> None:
    """Vectors of Random123's kat_vectors: zero, and all ones."""
    zero = philox(0, np.zeros(1, np.int64), 0)[:, 0]
    assert [hex(int(w)) for w in zero] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    ones = philox(2**64 - 1, np.array([2**64 - 1], np.uint64), 2**64 - 1)[:, 0]
    assert [hex(int(w)) for w in ones] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000, 100_000])
def test_uniform(n: int) -> None:
    seed, offset = 0x123456789ABCDEF, 7
    y = np.empty(n, np.float32)
    _cpu.random_uniform(y, seed, offset, 0.0, 1.0)
    expected = (words(seed, offset, n) >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    np.testing.assert_array_equal(y, expected)
    _cpu.random_uniform(y, seed, offset, -3.1, 0.7)
    scaled = expected.astype(np.float64) * np.float32(0.7 + 3.1) + np.float32(-3.1)
    np.testing.assert_array_equal(y, scaled.astype(np.float32))
    z = np.empty(n)
    _cpu.random_uniform(z, seed, offset, -3.1, 0.7)
    np.testing.assert_array_equal(z, double_units(seed, offset, n) * (0.7 + 3.1) - 3.1)


def test_uniform_stays_below_high() -> None:
    y = np.empty(2_000_000, np.float32)
    _cpu.random_uniform(y, 1, 0, 1e6, 1e6 + 1)
    assert y.min() >= 1e6 and y.max() < 1e6 + 1
    _cpu.random_uniform(y[:100], 1, 0, 2.0, 2.0)
    assert (y[:100] == 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal(dtype: type) -> None:
    n = 1_000_000
    y = np.empty(n, dtype)
    _cpu.random_normal(y, 3, 1, 0.0, 1.0)
    assert np.isfinite(y).all()
    moments = [np.mean(y.astype(np.float64) ** k) for k in (1, 2, 3, 4, 6)]
    spread = np.array([1, 2, 15, 96, 10170]) ** 0.5 / n**0.5
    assert (np.abs(np.array(moments) - [0, 1, 0, 3, 15]) < 5 * spread).all()
    assert abs(np.corrcoef(y[:-16], y[16:])[0, 1]) < 5 / n**0.5
    if dtype is np.float64:
        i = np.arange(0, n // 32 * 32).reshape(-1, 2, 16)
        u, turn = double_units(3, 1, i.size).reshape(i.shape).transpose(1, 0, 2)
        r = np.sqrt(-2 * np.log(u + 2.0**-54))
        expected = np.stack([r * np.cos(2 * np.pi * turn), r * np.sin(2 * np.pi * turn)], axis=1)
        np.testing.assert_allclose(y[: i.size].reshape(i.shape), expected, 1e-13, 1e-14)
    z = np.empty(100, dtype)
    _cpu.random_normal(z, 3, 1, -2.0, 0.5)
    np.testing.assert_allclose(z, y[:100] * 0.5 - 2, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_dropout(dtype: type, p: float) -> None:
    n = 70_001
    x = np.random.default_rng(0).standard_normal(n).astype(dtype)
    y = np.full(n, np.nan, dtype)
    _cpu.dropout(x, y, p, 11, 5)
    group, j = np.divmod(np.arange(n), 128)
    word = words(11, 5, n)[group * 64 + j // 32 * 16 + j % 16]
    half = np.where(j % 32 < 16, word & 0xFFFF, word >> 16)
    limit, rest = divmod(int(p * 2**48), 2**32)
    keep = half >= limit
    for i in np.flatnonzero(half == limit):  # a stream apart decides
        apart = np.array([(1 << 63) | int(i)], np.uint64)
        keep[i] = philox(11, apart, 5)[0, 0] >= rest
    scale = dtype(1 / (1 - p)) if p < 1 else dtype(0)
    np.testing.assert_array_equal(y, np.where(keep, x * scale, 0))
    assert abs(keep.mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-9
    ones = np.empty(n, dtype)
    _cpu.random_bernoulli(ones, 11, 5, p)
    np.testing.assert_array_equal(ones, words(11, 5, n) < np.uint64(int(p * 2**32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_do_not_depend_on_strides(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((3, 7, 5, 11)).astype(dtype)
    flat = np.empty_like(x)
    _cpu.dropout(x, flat, 0.4, 1, 2)
    for order in [(0, 2, 3, 1), (3, 2, 1, 0)]:
        back = np.argsort(order)
        moved = np.ascontiguousarray(x.transpose(order)).transpose(back)
        y = np.zeros(tuple(2 * s for s in x.shape), dtype)[::2, ::2, ::2, ::2]
        _cpu.dropout(moved, y, 0.4, 1, 2)
        np.testing.assert_array_equal(y, flat)
        z = np.empty_like(moved)
        _cpu.random_normal(z, 9, 2, 0.0, 1.0)
        w = np.empty_like(x)
        _cpu.random_normal(w, 9, 2, 0.0, 1.0)
        np.testing.assert_array_equal(z, w)


def test_threads_agree_to_the_bit() -> None:
    before = _cpu.num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            _cpu.set_num_threads(n)
            y = np.empty((3, 100_003), np.float32)
            _cpu.random_uniform(y[0], 1, 2, 0.0, 1.0)
            _cpu.random_normal(y[1], 1, 2, 0.0, 1.0)
            _cpu.dropout(y[0], y[2], 0.3, 1, 3)
            results.append(y)
    finally:
        _cpu.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
