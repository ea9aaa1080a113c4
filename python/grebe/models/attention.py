"""Attention by a small network instead of a product. D2L sections 11.3 and 11.4."""

from __future__ import annotations

from .. import Tensor, arange, nn


def masked_softmax(scores: Tensor, valid_lens: Tensor | None) -> Tensor:
    """Softmax over the first positions only. D2L section 11.3.2.

    Args:
        scores: [B, Q, K].
        valid_lens: how many of the K keys count, whole numbers [B] or [B, Q]; None: all.

    Returns:
        Weights [B, Q, K], 0 behind the valid length; equal weights where that length is 0.

    Raises:
        ValueError: other shapes.
        TypeError: valid_lens is no Tensor.
    """
    if scores.ndim != 3:
        raise ValueError(f"masked_softmax: expected scores [B, Q, K], got {list(scores.shape)}")
    if valid_lens is None:
        return nn.functional.softmax(scores, -1)
    batch, queries, keys = scores.shape
    if not isinstance(valid_lens, Tensor):
        raise TypeError(
            f"masked_softmax: valid_lens must be a Tensor, got {type(valid_lens).__name__}"
        )
    if tuple(valid_lens.shape) not in ((batch,), (batch, queries)):
        raise ValueError(
            f"masked_softmax: expected valid_lens [{batch}] or [{batch}, {queries}], got "
            f"{list(valid_lens.shape)}"
        )
    lengths = valid_lens.reshape(batch, -1, 1)
    return nn.functional.softmax(scores.masked_fill(arange(keys) >= lengths, -1e6), -1)


class AdditiveAttention(nn.Module):
    """a(q, k) = w_v . tanh(W_q q + W_k k). Bahdanau et al. 2015, D2L section 11.3.4.

    Args:
        query_size: features of a query.
        key_size: features of a key.
        num_hiddens: rows of W_q and W_k.
        dropout: on the weights.

    Shape: queries [B, Q, query_size], keys [B, K, key_size], values [B, K, v], valid_lens as for
    `masked_softmax` -> [B, Q, v].

    Attributes:
        attention_weights: those of the last call [B, Q, K], without their history.
    """

    attention_weights: Tensor

    def __init__(
        self, query_size: int, key_size: int, num_hiddens: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.W_q = nn.Linear(query_size, num_hiddens, bias=False)
        self.W_k = nn.Linear(key_size, num_hiddens, bias=False)
        self.w_v = nn.Linear(num_hiddens, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, valid_lens: Tensor | None = None
    ) -> Tensor:
        return self.attend(queries, self.W_k(keys), values, valid_lens)

    def attend(
        self, queries: Tensor, projected: Tensor, values: Tensor, valid_lens: Tensor | None
    ) -> Tensor:
        """`forward` with W_k k at hand: a decoder asks for the same keys again and again."""
        features = (self.W_q(queries).unsqueeze(2) + projected.unsqueeze(1)).tanh()
        weights = masked_softmax(self.w_v(features).squeeze(-1), valid_lens)
        self.attention_weights = weights.detach()
        return self.dropout(weights).bmm(values)
