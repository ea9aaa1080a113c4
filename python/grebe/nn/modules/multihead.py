"""Multi-head attention. D2L section 11.5; Vaswani et al. 2017."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._cpu import wrap
from ...amp import STATE
from ...backend import Array, is_on_cuda
from ...dtypes import is_floating
from ...ops.creation import empty, zeros
from ...ops.multihead import Layout, multihead_attention
from ...ops.shape import cat
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .checks import factory, real, whole
from .linear import NonDynamicallyQuantizableLinear
from .module import Module

__all__ = ["MultiheadAttention"]


def canonical_mask(layer: str, name: str, mask: Any, dtype: np.dtype[Any]) -> Tensor | None:
    """`mask` as it is; TypeError unless it is None, bool or of `dtype`."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"{layer}: {name} must be a Tensor, got {type(mask).__name__}")
    mixed = STATE.active and is_floating(mask.dtype)
    if mask.dtype != bool and mask.dtype != dtype and not mixed:
        raise TypeError(
            f"{layer}: {name} must be bool or of the query's dtype {dtype}, got {mask.dtype}"
        )
    return mask


def additive(mask: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """-inf where a bool mask is True, else 0; other masks as they are."""
    if mask.dtype != bool:
        return mask
    return wrap(np.where(mask.array, -np.inf, 0).astype(dtype))


def _lengths(padding: Array) -> Array | None:
    """How many keys come before the padding, where it is at the end of each row.

    On the GPU nobody looks: that would wait for all work before it.
    """
    if is_on_cuda(padding):
        return None
    size = padding.shape[1]
    lengths = size - padding.sum(1, dtype=np.int64)
    at_end: bool = np.array_equal(padding, np.arange(size) >= lengths[:, None])
    return lengths if at_end else None


class MultiheadAttention(Module):
    """softmax(Q_h K_h^T / sqrt(D) + mask) V_h for heads h, joined and projected.

    Q = query W_q^T + b_q and so on, cut in num_heads heads of D = embed_dim / num_heads features.
    One matrix product makes all three where query, key and value are one tensor.

    Args:
        embed_dim: E, features of the query and the output.
        num_heads: H.
        dropout: probability of a weight to be zeroed in training.
        bias: of all four projections.
        add_bias_kv: one more key and value, learned.
        add_zero_attn: one more key and value, zero.
        kdim: features of the key, default E.
        vdim: features of the value, default E.
        batch_first: [N, L, E] instead of [L, N, E].
        device: "cpu".
        dtype: of the parameters.

    Parameters: in_proj_weight [3 E, E], or q_proj_weight, k_proj_weight and v_proj_weight if kdim
    or vdim is another size; in_proj_bias [3 E]; out_proj; bias_k and bias_v [1, 1, E]. Weights
    start by Xavier's rule, biases at 0.

    Raises:
        ValueError: a size below 1, or embed_dim not divisible by num_heads.
    """

    in_proj_weight: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.embed_dim = e = whole(name, "embed_dim", embed_dim)
        self.num_heads = whole(name, "num_heads", num_heads)
        self.head_dim = e // self.num_heads
        if e % self.num_heads:
            raise ValueError(
                f"{name}: embed_dim must be divisible by num_heads, got {e} and {num_heads}"
            )
        self.kdim = e if kdim is None else whole(name, "kdim", kdim)
        self.vdim = e if vdim is None else whole(name, "vdim", vdim)
        self.dropout = real(name, "dropout", dropout)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"{name}: dropout must be a number from 0 to 1, got {dropout!r}")
        self.batch_first, self.add_zero_attn = bool(batch_first), bool(add_zero_attn)
        self._qkv_same_embed_dim = self.kdim == e and self.vdim == e
        joint = self._qkv_same_embed_dim
        wanted = factory(name, device, dtype)
        shapes: list[tuple[str, tuple[int, ...] | None]] = [
            ("in_proj_weight", (3 * e, e) if joint else None),
            ("q_proj_weight", None if joint else (e, e)),
            ("k_proj_weight", None if joint else (e, self.kdim)),
            ("v_proj_weight", None if joint else (e, self.vdim)),
            ("in_proj_bias", (3 * e,) if bias else None),
            ("bias_k", (1, 1, e) if add_bias_kv else None),
            ("bias_v", (1, 1, e) if add_bias_kv else None),
        ]
        for parameter, shape in shapes:
            value = None if shape is None else Parameter(empty(shape, **wanted))
            self.register_parameter(parameter, value)
        self.out_proj = NonDynamicallyQuantizableLinear(e, e, bias, **wanted)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for weight in (
            self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight,
        ):  # fmt: skip
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for vector in (self.bias_k, self.bias_v):
            if vector is not None:
                init.xavier_normal_(vector)

    # ---- projections ----

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """The projections, those of the same input by one product."""
        weight, bias, e = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if weight is not None and query is key and key is value:
            return [F.linear(query, weight, bias)]
        if weight is not None and key is value:
            return [
                F.linear(x, w, b)
                for x, w, b in zip(
                    (query, key),
                    weight.split([e, 2 * e]),
                    (None, None) if bias is None else bias.split([e, 2 * e]),
                    strict=True,
                )
            ]
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if weight is None
            else weight.split(e)
        )
        biases = (None, None, None) if bias is None else bias.split(e)
        return [
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]

    def _with_more_keys(self, sources: list[Tensor]) -> list[Tensor]:
        """Query, key and value apart, with the rows of add_bias_kv and add_zero_attn behind."""
        e, dim = self.embed_dim, 1 if self.batch_first else 0
        q, k, v = [part for source in sources for part in source.split(e, -1)]
        shape = (k.shape[0], 1, e) if self.batch_first else (1, k.shape[1], e)
        for_k, for_v = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            for_k.append(self.bias_k.expand(*shape).to(k.dtype))
            for_v.append(self.bias_v.expand(*shape).to(k.dtype))
        if self.add_zero_attn:
            nothing = zeros(shape, dtype=k.dtype, device=k.device)
            for_k.append(nothing)
            for_v.append(nothing)
        return [q, cat(for_k, dim), cat(for_v, dim)]

    # ---- checks ----

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        name = type(self).__name__
        sizes = (self.embed_dim, self.kdim, self.vdim)
        for argument, x, size in zip(
            ("query", "key", "value"), (query, key, value), sizes, strict=True
        ):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}: {argument} must be a Tensor, got {type(x).__name__}")
            if x.array.ndim not in (2, 3) or x.array.ndim != query.array.ndim:
                raise RuntimeError(
                    f"{name}: expected query, key and value of 2 or of 3 dimensions, got "
                    f"{argument} {list(x.shape)} for query {list(query.shape)}"
                )
            if x.array.shape[-1] != size:
                raise RuntimeError(
                    f"{name}: expected {argument} whose last dimension is {size}, got "
                    f"{list(x.shape)}"
                )
        batch = 0 if self.batch_first else 1
        same_batch = query.array.ndim == 2 or query.array.shape[batch] == key.array.shape[batch]
        if key.array.shape[:-1] != value.array.shape[:-1] or not same_batch:
            raise RuntimeError(
                f"{name}: expected one batch size, and key and value of one length, got query "
                f"{list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
            )

    def _mask_of_four(self, mask: Tensor, sizes: tuple[int, int, int], more: int) -> Tensor:
        """attn_mask as [1 or B, 1 or H, L, S], `more` keys seen by all behind."""
        b, n, s = sizes
        if tuple(mask.shape) not in ((n, s), (b * self.num_heads, n, s)):
            raise RuntimeError(
                f"{type(self).__name__}: expected attn_mask [{n}, {s}] or "
                f"[{b * self.num_heads}, {n}, {s}], got {list(mask.shape)}"
            )
        mask = (
            mask.unsqueeze(0).unsqueeze(0)
            if mask.ndim == 2
            else mask.reshape(b, self.num_heads, n, s)
        )
        return F.pad(mask, (0, more)) if more else mask

    def _padding_of_four(self, padding: Tensor, sizes: tuple[int, int, int], more: int) -> Tensor:
        b, _, s = sizes
        if tuple(padding.shape) != (b, s):
            raise RuntimeError(
                f"{type(self).__name__}: expected key_padding_mask [{b}, {s}], got "
                f"{list(padding.shape)}"
            )
        padding = F.pad(padding, (0, more)) if more else padding
        return padding.unsqueeze(1).unsqueeze(1)

    def _masks(
        self, attn: Tensor | None, padding: Tensor | None, sizes: tuple[int, int, int], more: int
    ) -> tuple[Tensor | None, Array | None]:
        """Both masks as one for the kernel, where bool means seen, and the lengths of the keys."""
        lengths = None
        if attn is not None:
            attn = self._mask_of_four(attn, sizes, more)
        if padding is not None:
            padding = self._padding_of_four(padding, sizes, more)
            if padding.dtype == bool and not more:
                lengths = _lengths(padding.array[:, 0, 0])
            if lengths is not None:
                padding = None
        if attn is None or padding is None:
            mask = padding if attn is None else attn
        elif attn.dtype == bool and padding.dtype == bool:
            mask = wrap(attn.array | padding.array)
        else:
            dtype = padding.dtype if attn.dtype == bool else attn.dtype
            mask = additive(attn, dtype) + additive(padding, dtype)
        if mask is not None and mask.dtype == bool:
            mask = wrap(np.logical_not(mask.array))
        return mask, lengths

    # ---- forward ----

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Each query attends to the keys.

        Args:
            query: [L, N, E], [N, L, E] with batch_first, or [L, E] for one sequence.
            key: [S, N, kdim], likewise.
            value: [S, N, vdim].
            key_padding_mask: [N, S] ([S] for one sequence), bool, True: not seen; or added to the
                scores. Padding at the end costs nothing.
            need_weights: return the weights too; slower, since they must be held in memory.
            attn_mask: [L, S] or [N * num_heads, L, S], bool, True: not seen; or added.
            average_attn_weights: over the heads.
            is_causal: attn_mask is the causal one, so that it need not be read.

        Returns:
            Output of the query's shape, and None or the weights before dropout: [N, L, S], or
            [N, H, L, S] unless average_attn_weights; without N for one sequence. S counts the keys
            of add_bias_kv and add_zero_attn. A query that sees no key gets out_proj's bias.

        Raises:
            RuntimeError: shapes that do not fit, or is_causal without attn_mask.
            TypeError: no tensors, or dtypes that differ.
        """
        self._check_inputs(query, key, value)
        name, dtype = type(self).__name__, query.array.dtype
        attn_mask = canonical_mask(name, "attn_mask", attn_mask, dtype)
        padding = canonical_mask(name, "key_padding_mask", key_padding_mask, dtype)
        if is_causal and attn_mask is None:
            raise RuntimeError(
                f"{name}: is_causal says that attn_mask is causal, and needs attn_mask; see "
                "Transformer.generate_square_subsequent_mask"
            )
        batched = query.array.ndim == 3
        if not batched:
            dim = 0 if self.batch_first else 1
            same_key, same_value = key is query, value is key
            query = query.unsqueeze(dim)
            key = query if same_key else key.unsqueeze(dim)
            value = key if same_value else value.unsqueeze(dim)
            padding = None if padding is None else padding.unsqueeze(0)
        more = (self.bias_k is not None) + self.add_zero_attn
        causal = is_causal and not need_weights and not more
        first, second = (0, 1) if self.batch_first else (1, 0)
        sizes = query.array.shape[first], query.array.shape[second], key.array.shape[second]
        mask, lengths = self._masks(None if causal else attn_mask, padding, sizes, more)
        sources = self._project(query, key, value)
        if more:
            sources = self._with_more_keys(sources)
        parts = {1: (3,), 2: (1, 2), 3: (1, 1, 1)}[len(sources)]
        y, weights = multihead_attention(
            sources, Layout(parts, self.num_heads, self.batch_first), mask, lengths, causal,
            self.dropout if self.training else 0.0, need_weights,
        )  # fmt: skip
        y = F.linear(y, self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return y.squeeze(first), None if weights is None else weights.squeeze(0)
        return y, weights
