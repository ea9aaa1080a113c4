"""A language model: one-hot tokens, recurrent layers. D2L 9.4 to 9.7, 10.1 to 10.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import Tensor, as_tensor, nn
from .sampling import evaluation, pick

RECURRENT: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNNLM(nn.Module):
    """One-hot tokens, recurrent layers, a linear layer to the logits of the next token.

    Args:
        vocab_size: V.
        num_hiddens: H.
        kind: 'rnn' (tanh), 'gru' or 'lstm'.
        num_layers: recurrent layers, one on another.
        dropout: between the layers.

    Shape: tokens [B, T], state of the layers or None -> logits [B, T, V], state after T steps.

    There is no bidirectional variant: it would see the token that it has to predict (D2L 10.4).
    """

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int = 256,
        kind: str = "gru",
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in RECURRENT:
            raise ValueError(f"RNNLM: kind must be 'rnn', 'gru' or 'lstm', got {kind!r}")
        self.vocab_size = vocab_size
        self.rnn = RECURRENT[kind](vocab_size, num_hiddens, num_layers, dropout=dropout)
        self.linear = nn.Linear(num_hiddens, vocab_size)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, T, V] and the state that continues the sequences."""
        if tokens.ndim != 2:
            raise ValueError(f"RNNLM: expected tokens [B, T], got shape {list(tokens.shape)}")
        one_hot = nn.functional.one_hot(tokens.transpose(0, 1), self.vocab_size)
        outputs, state = self.rnn(one_hot.to(self.linear.weight.dtype), state)
        return self.linear(outputs).transpose(0, 1), state

    def generate(
        self, prefix: Sequence[int], length: int, temperature: float = 0.0, seed: Any = None
    ) -> list[int]:
        """`length` tokens that continue `prefix`, which warms up the state. D2L section 9.5.4.

        Args:
            prefix: at least one token number.
            length: how many to add.
            temperature: 0 takes the likeliest token; otherwise it is drawn from
                softmax(logits / temperature).
            seed: of the draws: a number or a numpy Generator.

        Raises:
            ValueError: an empty prefix, a negative length or temperature.
            IndexError: a token outside 0 ... V - 1.
        """
        if not len(prefix) or length < 0 or not temperature >= 0:
            raise ValueError(
                "RNNLM.generate: expected a prefix of at least one token, and length and "
                f"temperature of at least 0; got {len(prefix)} tokens, {length} and {temperature}"
            )
        rng, added = np.random.default_rng(seed), []
        with evaluation(self):
            tokens, state, device = list(prefix), None, next(self.parameters()).device
            for _ in range(length):
                logits, state = self(as_tensor([tokens], device=device), state)
                tokens = [pick(logits[0, -1].cpu().numpy(), temperature, rng)]
                added += tokens
        return added
