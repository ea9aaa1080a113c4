"""Kernel pooling, dot-product and additive attention. D2L sections 11.2 to 11.4."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

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
    return nn.functional.softmax(
        scores.masked_fill(arange(keys, device=scores.device) >= lengths, -1e6), -1
    )


# ---- kernel pooling ----

# Of the distance u in units of the kernel's width. D2L section 11.2.1.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "boxcar": lambda u: (u.abs() < 1.0).to(u.dtype),
    "constant": lambda u: u * 0.0 + 1.0,
    "epanechikov": lambda u: (1.0 - u.abs()).clamp(min=0.0),
}


def nadaraya_watson(
    queries: Tensor, keys: Tensor, values: Tensor, kernel: str = "gaussian", width: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The mean of the values, weighted by how near their keys are. D2L section 11.2.

    ``y(q) = sum_i K(|q - k_i| / width) v_i / sum_j K(|q - k_j| / width)``; Nadaraya 1964,
    Watson 1964.

    Args:
        queries: [Q], or [Q, d].
        keys: [K], or [K, d].
        values: [K], or [K, v].
        kernel: "gaussian" exp(-u^2 / 2), "boxcar" |u| < 1, "constant" 1, or "epanechikov"
            max(1 - |u|, 0).
        width: of the kernel.

    Returns:
        Estimates [Q] or [Q, v], and the weights [Q, K]. Where the kernel sees no key both are 0.

    Raises:
        ValueError: shapes that do not fit, an unknown kernel, or a width that is not positive.
    """
    name = "nadaraya_watson"
    fits = queries.ndim == keys.ndim and queries.shape[1:] == keys.shape[1:] and keys.ndim in (1, 2)
    if not fits or values.ndim not in (1, 2) or values.shape[0] != keys.shape[0]:
        raise ValueError(
            f"{name}: expected queries [Q] or [Q, d], keys [K] or [K, d] and values [K] or [K, v], "
            f"got {list(queries.shape)}, {list(keys.shape)} and {list(values.shape)}"
        )
    if (kernel != "gaussian" and kernel not in KERNELS) or not width > 0:
        raise ValueError(
            f"{name}: expected a positive width and a kernel of {['gaussian', *KERNELS]}, got "
            f"{width} and {kernel!r}"
        )
    apart = (queries.unsqueeze(1) - keys.unsqueeze(0)) / width
    squares = apart * apart
    if apart.ndim == 3:
        squares = squares.sum(-1)
    if kernel == "gaussian":  # exp may underflow everywhere, softmax cannot
        weights = nn.functional.softmax(squares * -0.5, -1)
    else:
        distances = apart.abs() if apart.ndim == 2 else squares.sqrt()
        near = KERNELS[kernel](distances)
        weights = near / near.sum(-1, keepdim=True).clamp(min=1e-30)
    return weights @ values, weights


# ---- attention ----


class DotProductAttention(nn.Module):
    """softmax(q . k / sqrt(d)) v. D2L section 11.3.3.

    Args:
        dropout: on the weights.
        keep_weights: keep them in `attention_weights`; slower, for they must be held in memory.

    Shape: queries [B, Q, d], keys [B, K, d], values [B, K, v], valid_lens [B] or [B, Q] (how many
    keys count; None: all) -> [B, Q, v], 0 where no key counts.

    Attributes:
        attention_weights: of the last call, before dropout [B, Q, K]; None without keep_weights.
    """

    attention_weights: Tensor | None = None

    def __init__(self, dropout: float = 0.0, keep_weights: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.keep_weights = keep_weights

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, valid_lens: Tensor | None = None
    ) -> Tensor:
        lengths = mask = None
        if valid_lens is not None:
            batch, count = queries.shape[:2]
            if tuple(valid_lens.shape) not in ((batch,), (batch, count)):
                raise ValueError(
                    f"DotProductAttention: expected valid_lens [{batch}] or [{batch}, {count}], "
                    f"got {list(valid_lens.shape)}"
                )
            lengths = valid_lens if valid_lens.ndim == 1 else None
            if lengths is None:
                positions = arange(keys.shape[1], device=keys.device)
                mask = (positions < valid_lens.unsqueeze(-1)).unsqueeze(1)
        result = nn.functional.scaled_dot_product_attention(
            queries.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), mask,
            self.dropout.p if self.training else 0.0, key_lengths=lengths,
            need_weights=self.keep_weights,
        )  # fmt: skip
        if self.keep_weights:
            self.attention_weights = result[1].detach().squeeze(1)
            result = result[0]
        output: Tensor = result.squeeze(1)
        return output


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


# ---- heat maps ----


@contextlib.contextmanager
def attention_maps(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it every `nn.MultiheadAttention` of `net` leaves its weights in the dictionary.

    By the layer's name, [B, H, L, S], those of its last call. Attention holds all weights in memory
    meanwhile. D2L section 11.7.6.
    """
    found: dict[str, Tensor] = {}
    layers: list[tuple[str, Any]] = [
        (n, m) for n, m in net.named_modules() if isinstance(m, nn.MultiheadAttention)
    ]
    for name, layer in layers:
        layer.forward = _recorded(name, layer.forward, found)
    try:
        yield found
    finally:
        for _, layer in layers:
            del layer.forward


def _recorded(name: str, forward: Any, found: dict[str, Tensor]) -> Any:
    def recorded(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        y, weights = forward(query, key, value, key_padding_mask, True, attn_mask, False, is_causal)
        found[name] = weights.detach()
        if need_weights and average_attn_weights:
            weights = weights.mean(1)
        return y, weights if need_weights else None

    return recorded
