"""Keys and values of the tokens so far, so that each new token costs one row of attention."""

from __future__ import annotations

from typing import Any

from .. import Tensor, nn, zeros


class KVCache:
    """Preallocated keys and values [B, H, capacity, D] of each layer.

    Args:
        layers: how many.
        batch: B.
        heads: H.
        capacity: the most tokens that it takes.
        size: D.
        like: a tensor of the model, of whose dtype and on whose device they are.

    Attributes:
        length: tokens so far, in all layers but the one that is being computed.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, capacity: int, size: int, like: Tensor
    ) -> None:
        shape = (batch, heads, capacity, size)
        kind = {"dtype": like.dtype, "device": like.device}
        self.keys = [zeros(shape, **kind) for _ in range(layers)]
        self.values = [zeros(shape, **kind) for _ in range(layers)]
        self.capacity, self.length = capacity, 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, H, n, D] behind what `layer` has; all its keys and values so far, as views."""
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> KVCache:
        """The cache of the given items of the batch, which may repeat."""
        taken: KVCache = object.__new__(KVCache)
        taken.keys = [t.index_select(0, rows) for t in self.keys]
        taken.values = [t.index_select(0, rows) for t in self.values]
        taken.capacity, taken.length = self.capacity, self.length
        return taken


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, T, parts * E] as `parts` tensors [B, heads, T, E / heads]."""
    batch, steps, width = x.shape
    split = x.reshape(batch, steps, parts, heads, width // (parts * heads))
    return tuple(split.permute(2, 0, 3, 1, 4).unbind(0))


def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Output [B, T, E] of a `nn.MultiheadAttention` whose projections [B, H, ., D] are given."""
    y = nn.functional.scaled_dot_product_attention(query, key, value, **options)
    joined: Tensor = attention.out_proj(y.transpose(1, 2).flatten(2))
    return joined


def self_attend(attention: Any, x: Tensor, cache: KVCache, layer: int) -> Tensor:
    """Causal self-attention of the next tokens [B, T, E] to those in the cache and themselves."""
    projected = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = split_heads(projected, 3, attention.num_heads)
    keys, values = cache.extend(layer, k, v)
    several = x.shape[1] > 1  # one token sees all
    offset = {"causal_offset": cache.length} if several and cache.length else {}
    return attend(attention, q, keys, values, is_causal=several, **offset)
