"""Scaled dot product attention. Kernels: csrc/cpu/attention.cpp and
csrc/cuda/attention.cu. D2L sections 11.1 to 11.5.

The composite form, made of differentiable ops, serves ``create_graph=True`` and whoever wants the
weights, which the kernel never holds in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import autograd
from .._cpu import Node, grad_enabled, record, wrap
from ..amp import low_precision
from ..backend import Array, contiguous, empty, is_on_cuda, is_plain, kernels, like, xp
from ..tensor import Tensor, expect_tensor
from .dropout import check_p, dropout_mask
from .matmul import matmul
from .random import default_generator
from .softmax import check_floating, is_half, softmax

__all__ = ["scaled_dot_product_attention"]


# ---- what may be done to the scores ----


@dataclass(frozen=True)
class SoftCap:
    """score = cap tanh(score / cap): no score beyond `cap`. Gemma 2, 2024."""

    cap: float

    def __post_init__(self) -> None:
        if not 0 < self.cap < math.inf:
            raise ValueError(f"SoftCap: cap must be positive and finite, got {self.cap}")


@dataclass(frozen=True, eq=False)
class ALiBi:
    """score -= slopes[head] |key - query|. Press et al., 2022.

    Args:
        slopes: one number for each query head. They get no gradient.
    """

    slopes: Tensor

    @classmethod
    def of_heads(cls, heads: int) -> ALiBi:
        """The paper's slopes: 2^(-8 / heads), its square, its cube, ..."""
        return cls(wrap(np.exp2(-8 / heads * np.arange(1, heads + 1)).astype(np.float32)))


ScoreMod = SoftCap | ALiBi


@dataclass(frozen=True, eq=False)
class Options:
    """What all forms of one call share."""

    scale: float
    softcap: float
    slopes: Array | None  # [H]
    lengths: Array | None  # [B], int64
    first: int  # query i sees the keys i + first ... i + end - 1
    end: int
    shift: int  # and stands at key i + shift
    dropout: float
    seed: int = 0
    offset: int = 0

    def arguments(self) -> tuple[Any, ...]:
        return (self.scale, self.softcap, self.first, self.end, self.shift, self.dropout,
                self.seed, self.offset)  # fmt: skip


# ---- the kernel ----


def dense_rows(array: Array) -> Array:
    """`array`, or a copy if its last dimension is not dense."""
    dense = array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    odd = any(s % array.itemsize for s in array.strides)
    if dense and not odd and is_plain(array):
        return array
    return contiguous(array.copy() if odd else array)


def empty_rows(x: Array, size: int) -> Array:
    """[B, H, L, size] with heads and positions in memory in the order of `x`."""
    b, h, n, _ = x.shape
    if x.strides[1] < x.strides[2]:
        return empty((b, n, h, size), x.dtype, x).swapaxes(1, 2)
    return empty((b, h, n, size), x.dtype, x)


def lacks_kernel(array: Array) -> bool:
    """float16 on the CPU."""
    return bool(array.dtype == np.float16) and not is_on_cuda(array)


def wide(array: Array) -> Array:
    """`array`, bfloat16 on the CPU as float32: its backward has no kernel for it."""
    narrow = is_half(array.dtype) and not is_on_cuda(array)
    return wrap(array).to(np.float32).array if narrow else array


def gradient_of_mask(mask: Tensor | None) -> Array | None:
    """Zeros to which the kernel adds; None without an additive mask."""
    if mask is None or mask.array.dtype == bool:
        return None
    zeros = empty(mask.array.shape, mask.array.dtype, mask.array)
    zeros.fill(0)
    return zeros


class Attention(Node):
    """dS = P (dP - sum(P dP)) with dP = dY V^T; dQ = scale dS K, dK = scale dS^T Q, dV = P^T dY."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, y, lse, options = self.saved
        if grad_enabled():

            def output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
                return composite(q, k, v, mask, options)[0]

            return gradients_of(output, (query, key, value, mask), self.edges, grad)
        q, k, v, g, out = (dense_rows(wide(t.array)) for t in (query, key, value, grad, y))
        dq, dk, dv = (empty_rows(x, x.shape[-1]) for x in (q, k, v))
        wanted = mask if self.edges[3] is not None else None
        dmask = gradient_of_mask(wanted)
        kernels(q).attention_backward(
            g, q, k, v, mask_array(mask), options.lengths, options.slopes, out, lse, dq, dk, dv,
            dmask, *options.arguments(),
        )  # fmt: skip
        gq, gk, gv = (wrap(x).to(query.dtype) for x in (dq, dk, dv))
        return gq, gk, gv, None if dmask is None else wrap(dmask)


def gradients_of(
    function: Any, inputs: tuple[Tensor | None, ...], edges: Any, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Differentiable gradients of ``function(*inputs)``, for those inputs that have an edge."""
    # Aliases, so that one input that depends on another does not count twice.
    aliases: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [i for i, edge in enumerate(edges) if edge is not None]
    found = autograd.grad([function(*aliases)], [aliases[i] for i in wanted], [grad],
                          create_graph=True, allow_unused=True)  # fmt: skip
    result: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        result[i] = gradient
    return tuple(result)


def score_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if is_half(dtype) else dtype


def mask_array(mask: Tensor | None) -> Array | None:
    return None if mask is None else dense_rows(mask.array)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options
) -> Tensor:
    q, k, v = (dense_rows(t.array) for t in (query, key, value))
    y = empty_rows(q, v.shape[-1])
    lse = empty(q.shape[:3], score_dtype(q.dtype), q)
    kernels(q).attention(q, k, v, mask_array(mask), options.lengths, options.slopes, y, lse,
                         *options.arguments())  # fmt: skip
    saved = (query, key, value, mask, y, lse, options)
    return record(Attention, y, (query, key, value, mask), saved)


# ---- the composite form ----


def _hidden(options: Options, scores: Array) -> Array | None:
    """Which of the scores [B, H, L, S] do not count, broadcastable."""
    b, _, n, s = scores.shape
    library = xp(scores)
    keys, queries = library.arange(s), library.arange(n)[:, None]
    hidden: Array | None = None
    if options.first > -n or options.end < s:
        hidden = (keys < queries + options.first) | (keys >= queries + options.end)
    if options.lengths is not None:
        behind = keys >= options.lengths.reshape(b, 1, 1, 1)
        hidden = behind if hidden is None else hidden | behind
    return hidden


def composite(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Output and weights (before dropout) from differentiable ops; arrays as for the kernel."""
    dtype = query.array.dtype
    if is_half(dtype):
        query, key, value = (t.to(np.float32) for t in (query, key, value))
    group = query.shape[1] // max(key.shape[1], 1)
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = matmul(query * options.scale, key.transpose(-2, -1))
    if options.softcap:
        scores = (scores / options.softcap).tanh() * options.softcap
    if options.slopes is not None:
        *_, n, s = scores.array.shape
        library = xp(scores.array)
        distance = abs(library.arange(s) - library.arange(n)[:, None] - options.shift)
        scores = scores - wrap(options.slopes[:, None, None] * distance.astype(query.array.dtype))
    if mask is not None and mask.array.dtype == bool:
        scores = scores.masked_fill(mask.logical_not(), -math.inf)
    elif mask is not None:
        scores = scores + mask
    hidden = _hidden(options, scores.array)
    if hidden is not None:
        scores = scores.masked_fill(wrap(hidden), -math.inf)
    dead = wrap((scores.array == -math.inf).all(-1, keepdims=True))
    weights = softmax(scores.masked_fill(dead, 0.0), -1).masked_fill(dead, 0.0)
    output = matmul(_dropped(weights, options), value)
    return output.to(dtype), weights.to(dtype)


def _dropped(weights: Tensor, options: Options) -> Tensor:
    """The kernel's mask: every row has a stream of whole groups of 64."""
    if not options.dropout:
        return weights
    array = weights.array
    *rows, s = array.shape
    whole = (*rows, -(-s // 64) * 64)
    mask = dropout_mask(whole, array.dtype, options.dropout, options.seed, options.offset)
    return weights * wrap(like(mask, array)[..., :s])


# ---- arguments ----


def _check_shapes(q: Array, k: Array, v: Array, enable_gqa: bool) -> None:
    name = "scaled_dot_product_attention"
    got = f"query {list(q.shape)}, key {list(k.shape)}, value {list(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 2 or (enable_gqa and not q.ndim == k.ndim == v.ndim):
        raise RuntimeError(f"{name}: expected [..., L, E], [..., S, E] and [..., S, Ev], got {got}")
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise RuntimeError(
            f"{name}: query and key must agree in the last dimension, key and value in the one "
            f"before, got {got}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"{name}: expected query, key and value of one dtype, got {q.dtype}, {k.dtype} and "
            f"{v.dtype}"
        )
    heads = (q.shape[-3], k.shape[-3], v.shape[-3]) if q.ndim > 2 else (1, 1, 1)
    if enable_gqa and (q.ndim < 3 or heads[1] != heads[2] or heads[0] % max(heads[1], 1)):
        raise RuntimeError(
            f"{name}: enable_gqa=True needs as many heads in key as in value, and in query a "
            f"multiple of them, got {got}"
        )


def _leading(q: Array, k: Array, v: Array, enable_gqa: bool) -> tuple[int, ...]:
    """The leading dimensions of the result."""
    if enable_gqa:
        return q.shape[:-2]
    try:
        return np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    except ValueError as error:
        raise RuntimeError(
            "scaled_dot_product_attention: leading dimensions do not broadcast: query "
            f"{list(q.shape)}, key {list(k.shape)}, value {list(v.shape)}"
        ) from error


def _to_four(tensor: Tensor, lead: tuple[int, ...]) -> Tensor:
    """[*lead, n, d] as [B, H, n, d], broadcasting."""
    shape = tuple(tensor.shape)
    if shape[:-2] != lead:
        tensor = tensor.expand(*lead, *shape[-2:])
    if len(lead) == 2:
        return tensor
    heads = lead[-1] if lead else 1
    return tensor.reshape(math.prod(lead[:-1]), heads, *shape[-2:])


def _mask_of_four(mask: Tensor, query: Tensor, lead: tuple[int, ...], n: int, s: int) -> Tensor:
    """The mask as [B or 1, H or 1, L or 1, S]."""
    name = "scaled_dot_product_attention"
    array = expect_tensor(name, "attn_mask", mask)
    if array.dtype != bool and array.dtype != query.array.dtype:
        raise TypeError(
            f"{name}: attn_mask must be bool or of query's dtype {query.array.dtype}, got "
            f"{array.dtype}"
        )
    full = (*lead, n, s)
    sizes = (1,) * (len(full) - array.ndim) + array.shape
    if array.ndim > len(full) or any(a not in (1, b) for a, b in zip(sizes, full, strict=True)):
        raise RuntimeError(
            f"{name}: attn_mask {list(array.shape)} does not broadcast to {list(full)}"
        )
    mask = mask.reshape(*sizes)
    if sizes[-1] != s:
        mask = mask.expand(*sizes[:-1], s)
    if len(lead) < 2:
        return mask.reshape(*(1,) * (2 - len(lead)), *mask.shape)
    if len(lead) > 2:
        mask = mask.expand(*lead[:-1], *mask.shape[len(lead) - 1 :])
        return mask.reshape(math.prod(lead[:-1]), *mask.shape[len(lead) - 1 :])
    return mask


def _lengths(lengths: Tensor | None, batch: int, query: Array) -> Array | None:
    if lengths is None:
        return None
    name = "scaled_dot_product_attention"
    array = expect_tensor(name, "key_lengths", lengths)
    if array.dtype.kind not in "iu" or array.shape != (batch,):
        raise RuntimeError(
            f"{name}: key_lengths must be whole numbers [{batch}], got {array.dtype} "
            f"{list(array.shape)}"
        )
    return like(contiguous(array.astype(np.int64)), query)


def _slopes(score_mod: ScoreMod | None, heads: int, query: Array) -> Array | None:
    name = "scaled_dot_product_attention"
    if score_mod is None or isinstance(score_mod, SoftCap):
        return None
    if not isinstance(score_mod, ALiBi):
        raise TypeError(
            f"{name}: score_mod must be a SoftCap or an ALiBi, got {type(score_mod).__name__}"
        )
    array = expect_tensor(name, "score_mod.slopes", score_mod.slopes)
    if array.shape != (heads,):
        raise RuntimeError(
            f"{name}: expected one slope for each of {heads} heads, got {list(array.shape)}"
        )
    return like(contiguous(array.astype(score_dtype(query.dtype))), query)


def _window(window: int | tuple[int, int] | None) -> tuple[int | None, int | None]:
    """How many keys before and behind its own a query sees; None: all."""
    if window is None:
        return None, None
    sides = window if isinstance(window, (tuple, list)) else (window, window)
    if len(sides) != 2 or any(isinstance(w, bool) or not isinstance(w, int) for w in sides):
        raise TypeError(
            f"scaled_dot_product_attention: window must be an int or two, got {window!r}"
        )
    return tuple(None if w < 0 else w for w in sides)  # type: ignore[return-value]


@low_precision
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    key_lengths: Tensor | None = None,
    causal_offset: int = 0,
    window: int | tuple[int, int] | None = None,
    score_mod: ScoreMod | None = None,
    need_weights: bool = False,
) -> Any:
    """softmax(scale Q K^T + mask) V. Vaswani et al. 2017; D2L section 11.3.

    In blocks: memory grows with L + S, not with L S (Dao et al. 2022). The arguments up to
    `enable_gqa` are PyTorch's; unlike there, a mask and `is_causal` may come together, and a query
    that sees no key gets zeros and a gradient of zero.

    Args:
        query: [..., L, E]; the last of the leading dimensions are the heads.
        key: [..., S, E].
        value: [..., S, Ev].
        attn_mask: broadcastable to [..., L, S]; bool, True: takes part, or of query's dtype, to be
            added to the scores; then it gets a gradient.
        dropout_p: probability of a weight to be zeroed, the others times ``1 / (1 - p)``.
        is_causal: query i sees the keys up to i + `causal_offset`.
        scale: default ``1 / sqrt(E)``.
        enable_gqa: H query heads share G key heads, H a multiple of G.
        key_lengths: whole numbers, one for each item of the batch: keys behind do not count. The
            batch are all leading dimensions but the last.
        causal_offset: the key at which query 0 stands; S - L when the queries are the last ones.
        window: query i sees the keys from ``i + causal_offset - window[0]`` to ``i +
            causal_offset + window[1]``; one number stands for both sides, -1 for no limit.
        score_mod: `grebe.nn.attention.SoftCap` or `ALiBi`.
        need_weights: return the weights too, by a form that holds them in memory.

    Returns:
        [..., L, Ev]; with `need_weights` a pair with the weights [..., L, S] before dropout.

    Raises:
        RuntimeError: shapes that do not fit.
        TypeError: dtypes that differ or are not floating point.
        ValueError: `dropout_p` outside [0, 1].
    """
    name = "scaled_dot_product_attention"
    arguments = {"query": query, "key": key, "value": value}
    q, k, v = (expect_tensor(name, n, t) for n, t in arguments.items())
    check_floating(name, "query", q)
    _check_shapes(q, k, v, enable_gqa)
    check_p(name, dropout_p)
    n, s, lead = q.shape[-2], k.shape[-2], _leading(q, k, v, enable_gqa)
    if lacks_kernel(q):
        halves = [t.to(np.float32) for t in (query, key, value)]
        if attn_mask is not None and attn_mask.array.dtype == np.float16:
            attn_mask = attn_mask.to(np.float32)
        result = scaled_dot_product_attention(
            halves[0], halves[1], halves[2], attn_mask, dropout_p, is_causal, scale, enable_gqa,
            key_lengths=key_lengths, causal_offset=causal_offset, window=window,
            score_mod=score_mod, need_weights=need_weights,
        )  # fmt: skip
        return tuple(t.to(q.dtype) for t in result) if need_weights else result.to(q.dtype)
    before, behind = _window(window)
    first = -n if before is None else causal_offset - before
    end = s if behind is None else causal_offset + behind + 1
    if is_causal:
        end = min(end, causal_offset + 1)
    mask = None if attn_mask is None else _mask_of_four(attn_mask, query, lead, n, s)
    if mask is not None and is_half(mask.array.dtype):
        mask = mask.to(np.float32)
    query = _to_four(query, lead)
    batch, heads = query.shape[:2]
    kv_lead = (*lead[:-1], k.shape[-3]) if enable_gqa else lead
    key, value = _to_four(key, kv_lead), _to_four(value, kv_lead)
    stream = default_generator.take(batch * heads * n * (-(-s // 64) * 64)) if dropout_p else (0, 0)
    options = Options(
        1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else float(scale),
        score_mod.cap if isinstance(score_mod, SoftCap) else 0.0,
        _slopes(score_mod, heads, q),
        _lengths(key_lengths, batch, q),
        first, end, causal_offset, float(dropout_p), *stream,
    )  # fmt: skip
    if not need_weights:
        y = _fused(query, key, value, mask, options)
        return y if len(lead) == 2 else y.reshape(*lead, n, v.shape[-1])
    y, weights = composite(query, key, value, mask, options)
    return y.reshape(*lead, n, v.shape[-1]), weights.reshape(*lead, n, s)
