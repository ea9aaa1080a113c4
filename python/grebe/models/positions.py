"""Where a token stands: encodings added to it, or a bias of the attention's scores. D2L 11.6."""

from __future__ import annotations

import math

import numpy as np

from .. import Tensor, as_tensor, from_numpy, nn


def _behind(name: str, x: Tensor, offset: int, table: Tensor) -> Tensor:
    """The rows of the table for the positions of x [B, T, H] from `offset` on."""
    steps, width = table.shape
    if x.ndim < 2 or x.shape[-1] != width or not 0 <= offset <= steps - x.shape[-2]:
        raise ValueError(
            f"{name}: expected an input [B, T, {width}] with offset + T at most {steps}, got "
            f"{list(x.shape)} and offset {offset}"
        )
    return table[offset : offset + x.shape[-2]]


class PositionalEncoding(nn.Module):
    """x + P, P[t, 2 i] = sin(t / 10000^(2 i / H)), P[t, 2 i + 1] = cos of the same; then dropout.

    Vaswani et al. 2017, D2L section 11.6.3.

    Args:
        num_hiddens: H.
        dropout: of the sum.
        max_len: positions that there are.

    Shape: x [B, T, H], offset (the first one's position) -> [B, T, H].
    """

    P: Tensor

    def __init__(self, num_hiddens: int, dropout: float = 0.0, max_len: int = 1000) -> None:
        super().__init__()
        speeds = 10000.0 ** (-np.arange(0, num_hiddens, 2) / num_hiddens)
        angles = np.outer(np.arange(max_len), speeds)
        table = np.empty((max_len, num_hiddens), np.float32)
        table[:, 0::2] = np.sin(angles)
        table[:, 1::2] = np.cos(angles)[:, : num_hiddens // 2]
        self.register_buffer("P", from_numpy(table), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        result: Tensor = self.dropout(x + _behind("PositionalEncoding", x, offset, self.P))
        return result


class LearnedPositionalEncoding(nn.Module):
    """x + P with P learned, as in BERT and GPT; then dropout. D2L section 15.8.4.

    Arguments as for `PositionalEncoding`. P [max_len, H] starts from N(0, 0.02^2).

    Shape: x [B, T, H], offset (the first one's position) -> [B, T, H].
    """

    def __init__(self, num_hiddens: int, dropout: float = 0.0, max_len: int = 1000) -> None:
        super().__init__()
        self.P = nn.Parameter(from_numpy(np.zeros((max_len, num_hiddens), np.float32)))
        nn.init.normal_(self.P, 0.0, 0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        result: Tensor = self.dropout(x + _behind("LearnedPositionalEncoding", x, offset, self.P))
        return result


class RelativePositionBias(nn.Module):
    """A learned number for each head and distance, to be added to the scores. Raffel et al. 2020.

    Distances share num_buckets numbers: the short ones have one each, longer ones up to
    max_distance share them on a logarithmic scale, those beyond have the last. T5's rule.

    Args:
        num_heads: H.
        num_buckets: numbers per head.
        max_distance: from here on all distances are one.
        bidirectional: half of the buckets for keys behind the query; else these are distance 0.

    Shape: -> [1, H, L, S], an attn_mask for `scaled_dot_product_attention`.

    Raises:
        ValueError: num_buckets or max_distance too small for the rule.
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        sides = 2 if bidirectional else 1
        if num_buckets < 2 * sides or max_distance <= num_buckets // sides // 2:
            raise ValueError(
                f"RelativePositionBias: expected num_buckets of at least {2 * sides} and "
                f"max_distance above half of a side's, got {num_buckets} and {max_distance}"
            )
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.bidirectional = bidirectional
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def buckets(self, query_length: int, key_length: int, offset: int = 0) -> Tensor:
        """The bucket of each pair [L, S]; query i stands at key i + offset."""
        distance = np.arange(key_length) - (np.arange(query_length)[:, None] + offset)
        count = self.num_buckets
        first = np.zeros(distance.shape, np.int64)
        if self.bidirectional:
            count //= 2
            first += count * (distance > 0)
            distance = np.abs(distance)
        else:
            distance = -np.minimum(distance, 0)
        exact = count // 2
        far = np.log(np.maximum(distance, 1) / exact) / math.log(self.max_distance / exact)
        shared = exact + np.trunc(far * (count - exact) + 1e-9).astype(np.int64)
        bucket = np.where(distance < exact, distance, np.minimum(shared, count - 1))
        return as_tensor(first + bucket, device=self.embedding.weight.device)

    def forward(self, query_length: int, key_length: int, offset: int = 0) -> Tensor:
        bias = self.embedding(self.buckets(query_length, key_length, offset))
        return bias.permute(2, 0, 1).unsqueeze(0)
