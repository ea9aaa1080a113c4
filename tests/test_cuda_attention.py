"""Attention, rotary positions and casts: the CUDA kernels, emulated, give what the CPU's give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import check
import grebe
from grebe.nn.attention import ALiBi, SoftCap
from grebe.nn.functional import scaled_dot_product_attention as sdpa
from grebe.ops.multihead import Layout, multihead_attention
from grebe.ops.rotary import rotary, rotary_tables

pytestmark = pytest.mark.usefixtures("cuda_device")

Array = np.ndarray[Any, np.dtype[Any]]
F32, F64, BF16, F16 = grebe.float32, grebe.float64, grebe.bfloat16, grebe.float16
# Forward and backward round differently in 16 bits: the CPU's backward is in float32.
TOLERANCE = {F32: 2e-5, F64: 1e-12, BF16: 4e-2, F16: 5e-3}


def normal(shape: tuple[int, ...], seed: int, dtype: Any = F32) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return grebe.tensor(values).to(dtype)


def heads(b: int, h: int, g: int, n: int, s: int, d: int, e: int, dtype: Any) -> list[Any]:
    shapes = (b, h, n, d), (b, g, s, d), (b, g, s, e)
    return [normal(shape, seed, dtype) for seed, shape in enumerate(shapes)]


def moved(value: Any, device: str) -> Any:
    if isinstance(value, ALiBi):
        return ALiBi(value.slopes.to(device))
    return value.to(device) if isinstance(value, grebe.Tensor) else value


def results(call: Any, tensors: list[Any], device: str) -> list[Array]:
    """The output of ``call(*tensors)`` and the gradients of the floating tensors."""
    grebe.manual_seed(5)
    leaves = [t.to(device).detach() for t in tensors]
    wanted = [t.requires_grad_() for t in leaves if t.dtype.kind != "b"]
    y = call(*leaves)
    upstream = normal(tuple(y.shape), 9).to(y.dtype).to(device)
    gradients = grebe.autograd.grad([y], wanted, [upstream])
    assert all(t.device.type == device for t in (y, *gradients))
    assert all(g.dtype == t.dtype for g, t in zip(gradients, wanted, strict=True))
    return [t.detach().cpu().double().numpy() for t in (y, *gradients)]


def agree(call: Any, tensors: list[Any], dtype: Any) -> None:
    for want, got in zip(
        results(call, tensors, "cpu"), results(call, tensors, "cuda"), strict=True
    ):
        assert np.isfinite(want).all()
        scale = max(1.0, np.abs(want).max(initial=0))
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * scale)


def agree_on_attention(tensors: list[Any], dtype: Any, **options: Any) -> None:
    def call(*args: Any) -> Any:
        device = args[0].device.type
        here = {name: moved(value, device) for name, value in options.items()}
        return sdpa(*args, enable_gqa=True, **here)

    agree(call, tensors, dtype)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "lengths": {"key_lengths": grebe.tensor([70, 0, 3])},
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


# One query and few of them, cut caches, several tiles and cut rows; packs and single elements.
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize(
    "shape",
    [(3, 4, 4, 1, 70, 16, 16), (3, 4, 2, 3, 300, 17, 5), (3, 4, 2, 39, 70, 16, 24),
     (3, 4, 4, 9, 530, 8, 13)],
)  # fmt: skip
def test_options(name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    agree_on_attention(heads(*shape, dtype), dtype, **OPTIONS[name])


# Tiles of 64 rows, columns of 64, 128 and more in parts, owned rows in shared memory or not.
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 64, 64, 64, 64), (1, 1, 1, 65, 63, 96, 72), (1, 2, 1, 33, 129, 128, 8),
     (1, 1, 1, 10, 70, 24, 136), (1, 1, 1, 10, 70, 256, 256), (1, 1, 1, 9, 65, 264, 16),
     (1, 2, 2, 1, 1100, 40, 264), (1, 1, 1, 1, 70, 1040, 3), (1, 9, 1, 1, 20, 8, 8),
     (1, 1, 1, 9, 1, 1, 1)],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "dropout_p": 0.2}])
def test_sizes(dtype: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    agree_on_attention(heads(*shape, dtype), dtype, **options)


# Tiles of 128 queries and keys, two of them on the way; on sm_80 the same by other kernels.
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "lengths"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 4, 2, 130, 515, 64, 40), BF16), ((2, 4, 4, 65, 128, 72, 128), F16)]
)
def test_wide_tiles(name: str, capability: int, shape: tuple[int, ...], dtype: Any) -> None:
    check.set_emulator(lazy=True, seed=1, capability=capability)
    agree_on_attention(heads(*shape, dtype), dtype, **OPTIONS[name])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lazy", [False, True])
def test_wide_tiles_in_every_order_of_the_threads(lazy: bool, seed: int) -> None:
    check.set_emulator(lazy=lazy, seed=seed)
    for d, options in [(64, {"dropout_p": 0.2}), (64, {}), (128, {})]:
        agree_on_attention(heads(1, 4, 2, 200, 330, d, d, BF16), BF16, is_causal=True, **options)


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize(
    "mask",
    [(2, 4, 33, 70), (33, 70), (2, 1, 1, 70), (4, 33, 70), (4, 1, 70), (1, 70), (2, 1, 33, 1)],
)
@pytest.mark.parametrize("n", [33, 2])
def test_masks(dtype: Any, kind: str, mask: tuple[int, ...], n: int) -> None:
    shape = tuple(n if size == 33 else size for size in mask)
    numbers = normal(shape, 7, dtype)
    attn_mask = numbers if kind == "added" else grebe.tensor(numbers.float().numpy() < 0.8)
    tensors = [*heads(2, 4, 2, n, 70, 16, 16, dtype), attn_mask]
    agree_on_attention(tensors, dtype, is_causal=True, causal_offset=40, dropout_p=0.1)


def test_mask_shared_by_many_tiles() -> None:
    tensors = heads(3, 2, 2, 130, 70, 8, 8, F32)
    agree_on_attention([*tensors, normal((1, 70), 7)], F32, score_mod=SoftCap(2.0))
    agree_on_attention([*tensors, normal((130, 70), 7)], F32, window=40)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_in_every_order_of_the_threads(lazy: bool, seed: int, dtype: Any) -> None:
    check.set_emulator(lazy=lazy, seed=seed)
    mask = normal((2, 1, 1, 130), 7, dtype)
    for d, e in [(40, 24), (72, 80)]:
        agree_on_attention([*heads(2, 2, 1, 70, 130, d, e, dtype), mask], dtype, is_causal=True,
                           causal_offset=60)  # fmt: skip
    agree_on_attention(heads(1, 2, 1, 2, 300, 16, 16, dtype), dtype)


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_strides(dtype: Any) -> None:
    def swapped(*args: Any) -> Any:
        return sdpa(*(x.transpose(1, 2) for x in args)).transpose(1, 2)

    def sliced(*args: Any) -> Any:
        return sdpa(*(x[:, :, 1::2, 3:] for x in args))

    agree(swapped, [normal((2, 40, 3, 16), i, dtype) for i in range(3)], dtype)
    agree(sliced, [normal((2, 3, 40, 19), i, dtype) for i in range(3)], dtype)


@pytest.mark.parametrize(
    "shape", [(2, 2, 2, 0, 3, 4, 4), (0, 2, 2, 3, 3, 4, 4), (1, 2, 2, 3, 0, 4, 4)]
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nothing(shape: tuple[int, ...], dtype: Any) -> None:
    agree_on_attention(heads(*shape, dtype), dtype)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize("kind", ["bool", "added", "lengths"])
def test_query_without_keys_gives_zeros(n: int, kind: str, dtype: Any) -> None:
    tensors = heads(2, 2, 2, n, 130, 8, 8, dtype)
    dead = np.zeros((2, 1, n, 1), bool)
    dead[0] = True
    dead[1, 0, 1] = kind != "lengths"
    if kind == "lengths":
        options: dict[str, Any] = {"key_lengths": grebe.tensor([0, 130]).cuda()}
    elif kind == "bool":
        options = {"attn_mask": grebe.tensor(~dead & np.ones((1, 1, 1, 130), bool)).cuda()}
    else:
        added = np.where(dead, -np.inf, np.zeros((1, 1, 1, 130))).astype(np.float32)
        options = {"attn_mask": grebe.tensor(added).to(dtype).cuda()}
    y, dq, dk, dv = results(lambda *a: sdpa(*a, **options), tensors, "cuda")
    rows = np.broadcast_to(dead[..., 0], y.shape[:3])
    assert not y[rows].any() and not dq[rows].any()
    assert not dk[0].any() and not dv[0].any()
    assert all(np.isfinite(a).all() for a in (y, dq, dk, dv))
    assert y[~rows].all()


@pytest.mark.parametrize("n", [3, 40])
def test_huge_scores_and_minus_infinity(n: int) -> None:
    q, k, v = (x.cuda() for x in heads(1, 1, 1, n, 40, 4, 3, F32))
    mask = np.zeros((n, 40), np.float32)
    mask[:, 7:] = -np.inf
    y = sdpa(q * 1e18, k * 1e18, v, grebe.tensor(mask).cuda()).cpu().numpy()
    scores = q.cpu().numpy()[0, 0] @ k.cpu().numpy()[0, 0, :7].T
    np.testing.assert_array_equal(y[0, 0], v.cpu().numpy()[0, 0][scores.argmax(-1)])
    plain = sdpa(q * 1e18, k[:, :, :7] * 1e18, v[:, :, :7]).cpu().numpy()
    np.testing.assert_array_equal(plain, y)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("n", [2, 70])
def test_nan_stays_in_its_rows(dtype: Any, n: int) -> None:
    q, k, v = heads(1, 2, 2, n, 300, 8, 8, dtype)
    q[0, 1, 1, 2] = math.nan
    y = sdpa(q.cuda(), k.cuda(), v.cuda()).cpu().float().numpy()
    assert np.isnan(y[0, 1, 1]).all() and np.isnan(y).sum() == 8


def test_the_weights_of_hidden_keys_may_be_anything() -> None:
    for n in (3, 40):
        q, k, v = heads(1, 2, 2, n, 70, 8, 8, F32)
        want = sdpa(q, k, v, key_lengths=grebe.tensor([20])).numpy()
        k[:, :, 20:], v[:, :, 20:] = math.nan, math.nan
        got = sdpa(q.cuda(), k.cuda(), v.cuda(), key_lengths=grebe.tensor([20]))
        np.testing.assert_allclose(got.cpu().numpy(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_heads_of_joint_projections(batch_first: bool, dtype: Any) -> None:
    shapes = [(2, 33, 32), (2, 40, 64)] if batch_first else [(33, 2, 32), (40, 2, 64)]
    tensors = [normal(shape, i, dtype) for i, shape in enumerate(shapes)]

    def call(*sources: Any) -> Any:
        layout = Layout((1, 2), 4, batch_first)
        return multihead_attention(list(sources), layout, None, None, True, 0.1, False)[0]

    agree(call, tensors, dtype)


# ---- rotary positions ----


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 3, 5, 16), 16), ((1, 2, 7, 13), 6), ((2, 2, 3, 40), 24), ((2, 0, 3, 4), 4)],
)
def test_rotary(dtype: Any, interleaved: bool, shape: tuple[int, ...], size: int) -> None:
    tables = rotary_tables(shape[2], size, dtype=F64 if dtype == F64 else F32)

    def call(x: Any) -> Any:
        return rotary(x, *tables, interleaved)

    def swapped(x: Any) -> Any:
        return rotary(x.transpose(1, 2), *tables, interleaved)

    agree(call, [normal(shape, 0, dtype)], dtype)
    b, h, n, d = shape
    agree(swapped, [normal((b, n, h, d), 0, dtype)], dtype)


def test_rotary_of_other_positions_in_each_row() -> None:
    cos, sin = (grebe.cat([t[None], t[None] * 0.5]) for t in rotary_tables(5, 8))
    for device in ("cpu", "cuda"):
        x = normal((2, 3, 5, 8), 0)
        got = rotary(x.to(device), cos.to(device), sin.to(device)).cpu().numpy()
        a, b = x.numpy()[..., :4], x.numpy()[..., 4:]
        c, s = cos.numpy()[:, None], sin.numpy()[:, None]
        np.testing.assert_allclose(
            got, np.concatenate([a * c - b * s, b * c + a * s], -1), 1e-5, 1e-6
        )


# ---- casts ----


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 1027])
@pytest.mark.parametrize("start", [0, 1])
def test_casts(n: int, start: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, n + start, np.uint64).astype(np.uint32)
    x = grebe.tensor(bits.view(np.float32))
    for source in (x, x.to(BF16)):
        there = F32 if source.dtype == BF16 else BF16
        want = source[start:].to(there).numpy().astype(np.float32)
        got = source.cuda()[start:].to(there).cpu().numpy().astype(np.float32)
        np.testing.assert_array_equal(got, want)
