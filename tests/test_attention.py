"""Attention beyond tests/cases.py: the arguments PyTorch lacks, dead rows, dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import grebe
from grebe.autograd import gradcheck, gradgradcheck
from grebe.nn.attention import ALiBi, SoftCap
from grebe.nn.functional import scaled_dot_product_attention as sdpa

Array = np.ndarray[Any, np.dtype[Any]]


def heads(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape)
    return grebe.tensor(values.astype(dtype), requires_grad=True)


def inputs(b: int, h: int, g: int, n: int, s: int, d: int, e: int, dtype: Any = np.float64) -> Any:
    return [heads(b, h, n, d, dtype=dtype), heads(b, g, s, d, seed=1, dtype=dtype),
            heads(b, g, s, e, seed=2, dtype=dtype)]  # fmt: skip


def gradients(output: Any, leaves: list[Any]) -> list[Array]:
    upstream = heads(*output.shape, seed=9, dtype=output.dtype).detach()
    return [g.numpy() for g in grebe.autograd.grad([output], leaves, [upstream])]


OPTIONS: dict[str, dict[str, Any]] = {
    "lengths": {"key_lengths": grebe.tensor([70, 0, 3])},
    "offset": {"is_causal": True, "causal_offset": 31},
    "offset below": {"is_causal": True, "causal_offset": -10},
    "window": {"window": 5},
    "window behind": {"window": (-1, 2), "causal_offset": 20},
    "causal window": {"window": (20, 0), "is_causal": True, "causal_offset": 30},
    "negative scale": {"scale": -0.5, "is_causal": True, "causal_offset": 31},
    "soft cap": {"score_mod": SoftCap(1.5)},
    "ALiBi": {"score_mod": ALiBi.of_heads(4), "is_causal": True, "causal_offset": 31},
    "dropout": {"dropout_p": 0.3},
    "all dropped": {"dropout_p": 1.0},
    "dropout, causal": {"dropout_p": 0.3, "is_causal": True, "causal_offset": 10},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("n", "s"), [(39, 70), (1, 70), (3, 1100), (100, 230)])
def test_options_agree_with_the_composite_form(name: str, kv_heads: int, n: int, s: int) -> None:
    leaves = inputs(3, 4, kv_heads, n, s, 12, 20)
    results = []
    for need_weights in (False, True):
        grebe.manual_seed(5)
        y = sdpa(*leaves, enable_gqa=True, need_weights=need_weights, **OPTIONS[name])
        y = y[0] if need_weights else y
        results.append([y.detach().numpy(), *gradients(y, leaves)])
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-12)


def test_weights() -> None:
    q, k, v = inputs(2, 3, 3, 4, 5, 6, 7)
    y, weights = sdpa(q, k, v, is_causal=True, need_weights=True)
    assert weights.shape == (2, 3, 4, 5)
    np.testing.assert_allclose(weights.detach().numpy().sum(-1), 1, rtol=1e-12)
    assert not np.triu(weights.detach().numpy(), 1).any()
    np.testing.assert_allclose(y.detach().numpy(), (weights @ v).detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize("kind", ["bool", "added", "lengths"])
def test_query_without_keys_gives_zeros(n: int, kind: str) -> None:
    leaves = inputs(2, 2, 2, n, 300, 8, 8, np.float32)
    dead = np.zeros((2, 1, n, 1), bool)
    dead[0] = True
    dead[1, 0, 1] = kind != "lengths"
    options: dict[str, Any] = {}
    if kind == "lengths":
        options["key_lengths"] = grebe.tensor([0, 300])
    elif kind == "bool":
        options["attn_mask"] = grebe.tensor(~dead & np.ones((1, 1, 1, 300), bool))
    else:
        added = np.where(dead, -np.inf, np.zeros((1, 1, 1, 300))).astype(np.float32)
        options["attn_mask"] = grebe.tensor(added)
    y = sdpa(*leaves, **options)
    dq, dk, dv = gradients(y, leaves)
    rows = np.broadcast_to(dead[..., 0], y.shape[:3])
    assert not y.detach().numpy()[rows].any() and not dq[rows].any()
    assert not dk[0].any() and not dv[0].any()
    assert np.isfinite(np.concatenate([a.ravel() for a in (y.detach().numpy(), dq, dk, dv)])).all()
    assert y.detach().numpy()[~rows].all()


def test_huge_scores_and_minus_infinity() -> None:
    q, k, v = inputs(1, 1, 1, 5, 40, 4, 3, np.float32)
    mask = np.zeros((5, 40), np.float32)
    mask[:, 7:] = -np.inf
    y = sdpa(q * 1e18, k * 1e18, v, grebe.tensor(mask))
    scores = q.detach().numpy()[0, 0] @ k.detach().numpy()[0, 0, :7].T
    want = v.detach().numpy()[0, 0][scores.argmax(-1)]
    np.testing.assert_array_equal(y.detach().numpy()[0, 0], want)


def test_nan_stays_in_its_rows() -> None:
    q, k, v = (x.detach() for x in inputs(1, 2, 2, 9, 300, 4, 3, np.float32))
    q[0, 1, 4, 2] = math.nan
    y = sdpa(q, k, v).numpy()
    assert np.isnan(y[0, 1, 4]).all() and np.isnan(y).sum() == 3


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"score_mod": SoftCap(2.0)}])
def test_derivatives(options: dict[str, Any]) -> None:
    q, k, v = inputs(1, 2, 1, 3, 4, 2, 3)
    mask = heads(3, 4, seed=3)

    def call(*args: Any) -> Any:
        return sdpa(*args, enable_gqa=True, **options)

    assert gradcheck(call, (q, k, v, mask))
    assert gradgradcheck(call, (q, k, v, mask))


def test_dropout_statistics_and_scale() -> None:
    p, n, s = 0.25, 200, 333
    q, k = grebe.zeros(2, 2, n, 8), grebe.zeros(2, 2, s, 8)
    v = grebe.eye(s).expand(2, 2, s, s)  # the output is the weights
    weights = sdpa(q, k, v, dropout_p=p).numpy() * s
    kept = weights != 0
    np.testing.assert_allclose(weights[kept], 1 / (1 - p), rtol=1e-5)
    count = kept.size
    assert abs(kept.sum() - count * (1 - p)) < 5 * math.sqrt(count * p * (1 - p))
    rows = kept.sum(-1)  # binomial: no row or column is special
    assert abs(rows.var() / (s * p * (1 - p)) - 1) < 0.2
    assert abs(np.corrcoef(kept[0, 0].ravel(), kept[0, 1].ravel())[0, 1]) < 0.02
    assert not np.array_equal(sdpa(q, k, v, dropout_p=p).numpy() != 0, kept)


def test_mask_of_one_column_changes_nothing() -> None:
    leaves = [*inputs(2, 2, 2, 40, 30, 16, 16), heads(2, 1, 40, 1, seed=4)]
    y = sdpa(*leaves)
    np.testing.assert_allclose(y.detach().numpy(), sdpa(*leaves[:3]).detach().numpy(), 1e-12, 1e-12)
    np.testing.assert_allclose(gradients(y, leaves)[3], 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 8), (5, 6, 8), (2, 3, 4, 6, 8)])
def test_other_numbers_of_dimensions(shape: tuple[int, ...]) -> None:
    q, k, v = (heads(*shape, seed=i) for i in range(3))
    mask = heads(*shape[-3:-2], 6, 6, seed=4)
    y = sdpa(q, k, v, mask)
    scores = q @ k.transpose(-1, -2) / math.sqrt(8) + mask
    plain = grebe.nn.functional.softmax(scores, -1) @ v
    np.testing.assert_allclose(y.detach().numpy(), plain.detach().numpy(), rtol=1e-12)
    for a, b in zip(gradients(y, [q, mask]), gradients(plain, [q, mask]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_output_keeps_the_order_of_heads_and_positions() -> None:
    q, k, v = (heads(2, 7, 3, 4, seed=i).transpose(1, 2) for i in range(3))
    assert sdpa(q, k, v).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [grebe.bfloat16, grebe.float16])
@pytest.mark.parametrize(
    "shape", [(4, 40, 70, 16, 16), (2, 40, 301, 17, 33), (2, 1, 1100, 40, 8), (4, 5, 31, 9, 7)]
)
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "causal_offset": 29}, {"mask": True}])
def test_half_precision(dtype: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    g, n, s, d, e = shape
    options = dict(options)
    narrow = [x.detach().to(dtype).requires_grad_() for x in inputs(2, 4, g, n, s, d, e)]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    if options.pop("mask", False):
        mask = heads(n, s, seed=8).detach().to(dtype)
        y = sdpa(*narrow, mask, enable_gqa=True)
        want = sdpa(*wide, mask.double(), enable_gqa=True)
    else:
        y, want = (sdpa(*leaves, enable_gqa=True, **options) for leaves in (narrow, wide))
    assert y.dtype == dtype
    bound = 2e-2 if dtype == grebe.bfloat16 else 2e-3
    np.testing.assert_allclose(y.detach().double().numpy(), want.detach().numpy(), bound, bound)
    y.double().sum().backward()
    want.sum().backward()
    for a, b in zip(narrow, wide, strict=True):
        assert a.grad.dtype == dtype
        np.testing.assert_allclose(a.grad.double().numpy(), b.grad.numpy(), bound, 4 * bound)


def test_memory_grows_with_the_length() -> None:
    q, k, v = (grebe.zeros(1, 1, 8192, 16, requires_grad=True) for _ in range(3))
    sdpa(q, k, v).sum().backward()
    grebe._cpu.reset_peak_memory_stats()
    sdpa(q, k, v).sum().backward()
    assert grebe._cpu.memory_stats()["peak"] < 8192 * 8192  # bytes: a quarter of the scores


def broken(**changes: Any) -> dict[str, Any]:
    q, k, v = (grebe.zeros(2, 4, 5, 8) for _ in range(3))
    return {"query": q, "key": k, "value": v} | changes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (broken(query=None), TypeError, "query"),
        (broken(query=grebe.zeros(8)), RuntimeError, "expected"),
        (broken(key=grebe.zeros(2, 4, 5, 9)), RuntimeError, "last dimension"),
        (broken(value=grebe.zeros(2, 4, 6, 8)), RuntimeError, "one before"),
        (broken(key=grebe.zeros(2, 4, 5, 8, dtype=grebe.float64)), TypeError, "one dtype"),
        (broken(query=grebe.zeros(2, 4, 5, 8, dtype=grebe.int64)), TypeError, "floating"),
        (broken(key=grebe.zeros(3, 4, 5, 8)), RuntimeError, "broadcast"),
        (broken(key=grebe.zeros(2, 3, 5, 8), value=grebe.zeros(2, 3, 5, 8), enable_gqa=True),
         RuntimeError, "multiple"),
        (broken(attn_mask=grebe.zeros(5, 6)), RuntimeError, "attn_mask"),
        (broken(attn_mask=grebe.zeros(5, 5, dtype=grebe.int64)), TypeError, "attn_mask"),
        (broken(dropout_p=1.5), ValueError, "probability"),
        (broken(key_lengths=grebe.tensor([5])), RuntimeError, "key_lengths"),
        (broken(key_lengths=grebe.tensor([5.0, 2.0])), RuntimeError, "key_lengths"),
        (broken(window=1.5), TypeError, "window"),
        (broken(score_mod="softcap"), TypeError, "score_mod"),
        (broken(score_mod=ALiBi.of_heads(3)), RuntimeError, "slope"),
    ],
)  # fmt: skip
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sdpa(**arguments)


def test_soft_cap_must_be_positive() -> None:
    with pytest.raises(ValueError, match="SoftCap"):
        SoftCap(0.0)
