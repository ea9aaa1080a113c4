"""Translation by encoder and decoder, without and with attention. D2L 10.6 to 10.8 and 11.4."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import Tensor, as_tensor, cat, nn, stack
from .attention import AdditiveAttention
from .sampling import evaluation


class State(NamedTuple):
    """What a decoder knows: its hidden state [L, B, H], and of the source what it needs.

    Without attention, context is [B, H]. With attention it is the encoder's outputs [B, S, D], keys
    are their projections [B, S, H], and lengths [B] tell where padding begins.
    """

    hidden: Tensor
    context: Tensor
    keys: Tensor | None = None
    lengths: Tensor | None = None

    def select(self, rows: Tensor) -> State:
        """The state of the given sentences, which may repeat."""

        def taken(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.index_select(0, rows)

        hidden = self.hidden.index_select(1, rows)
        return State(hidden, taken(self.context), taken(self.keys), taken(self.lengths))


class Seq2SeqEncoder(nn.Module):
    """Embedding and GRU over packed sentences: padding costs nothing and changes nothing.

    Args:
        vocab_size: tokens that there are.
        embed_size: features of a token.
        num_hiddens: H.
        num_layers: L.
        dropout: between the layers.
        bidirectional: two GRUs per layer; tanh(W [forward; backward]) becomes the decoder's state.

    Shape: tokens [B, S], lengths [B] -> outputs [B, S, D] with D = H or 2 H, state [L, B, H].
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int = 256,
        num_hiddens: int = 256,
        num_layers: int = 2,
        dropout: float = 0.2,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_size)
        self.rnn = nn.GRU(
            embed_size, num_hiddens, num_layers, dropout=dropout, bidirectional=bidirectional
        )
        self.bridge = nn.Linear(2 * num_hiddens, num_hiddens) if bidirectional else None
        self.output_size = num_hiddens * (2 if bidirectional else 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.embedding(tokens.transpose(0, 1))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, enforce_sorted=False)
        outputs, hidden = self.rnn(packed)
        outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, total_length=tokens.shape[1])
        if self.bridge is not None:
            pairs = [cat([hidden[i], hidden[i + 1]], 1) for i in range(0, len(hidden), 2)]
            hidden = self.bridge(stack(pairs)).tanh()
        return outputs.transpose(0, 1), hidden


class Seq2SeqDecoder(nn.Module):
    """GRU over each token's embedding joined with the source's final state. D2L section 10.7.3.

    Arguments as for `Seq2SeqEncoder`.

    Shape: tokens [B, T], State -> logits [B, T, V], State.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int = 256,
        num_hiddens: int = 256,
        num_layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_size)
        self.rnn = nn.GRU(embed_size + num_hiddens, num_hiddens, num_layers, dropout=dropout)
        self.linear = nn.Linear(num_hiddens, vocab_size)

    def init_state(self, outputs: Tensor, hidden: Tensor, lengths: Tensor) -> State:
        """The state before the first token, from the encoder's results."""
        return State(hidden, hidden[-1])

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        embedded = self.embedding(tokens.transpose(0, 1))
        context = state.context.expand(len(embedded), -1, -1)
        outputs, hidden = self.rnn(cat([embedded, context], -1), state.hidden)
        return self.linear(outputs).transpose(0, 1), state._replace(hidden=hidden)


class AttentionDecoder(nn.Module):
    """At each step the hidden state asks for the part of the source that is needed now.

    Bahdanau et al. 2015, D2L section 11.4. Arguments as for `Seq2SeqDecoder`, and encoder_size: the
    features D of the encoder's outputs.

    Shape: tokens [B, T], State -> logits [B, T, V], State.

    Attributes:
        attention_weights: of the last call, [B, T, S].
    """

    attention_weights: Tensor

    def __init__(
        self,
        vocab_size: int,
        embed_size: int = 256,
        num_hiddens: int = 256,
        num_layers: int = 2,
        dropout: float = 0.2,
        encoder_size: int | None = None,
    ) -> None:
        super().__init__()
        source = num_hiddens if encoder_size is None else encoder_size
        self.attention = AdditiveAttention(num_hiddens, source, num_hiddens, dropout)
        self.embedding = nn.Embedding(vocab_size, embed_size)
        self.rnn = nn.GRU(embed_size + source, num_hiddens, num_layers, dropout=dropout)
        self.linear = nn.Linear(num_hiddens, vocab_size)

    def init_state(self, outputs: Tensor, hidden: Tensor, lengths: Tensor) -> State:
        """The state before the first token, from the encoder's results."""
        return State(hidden, outputs, self.attention.W_k(outputs), lengths)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, memory, keys, lengths = state
        if keys is None:
            raise ValueError("AttentionDecoder: expected a state made by its own init_state")
        outputs, weights = [], []
        for embedded in self.embedding(tokens.transpose(0, 1)).unbind(0):
            query = hidden[-1].unsqueeze(1)
            context = self.attention.attend(query, keys, memory, lengths)
            weights.append(self.attention.attention_weights)
            joined = cat([embedded, context.squeeze(1)], 1)
            output, hidden = self.rnn(joined.unsqueeze(0), hidden)
            outputs.append(output)
        self.attention_weights = cat(weights, 1)
        return self.linear(cat(outputs)).transpose(0, 1), state._replace(hidden=hidden)


class Translator(nn.Module):
    """What search needs of an encoder and a decoder; a state can be asked for rows by `select`."""

    def start(self, source: Tensor, lengths: Tensor) -> Any:
        """The decoder's state before the first token."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits [B, T, V] after each of the next tokens [B, T], and the state behind them."""
        raise NotImplementedError

    def greedy(
        self, source: Tensor, lengths: Tensor, bos: int, eos: int, max_steps: int
    ) -> list[list[int]]:
        """The likeliest token at each step, for all sentences at once. D2L section 10.8.1.

        Returns:
            For each sentence its tokens up to but without `eos`, at most `max_steps`.
        """
        with evaluation(self):
            state = self.start(source, lengths)
            chosen: list[NDArray[np.int64]] = []
            last = np.full(len(source), bos)
            ended = np.zeros(len(source), bool)
            while len(chosen) < max_steps and not ended.all():
                logits, state = self.step(as_tensor(last[:, None], device=source.device), state)
                last = logits[:, -1].cpu().numpy().argmax(1)
                chosen.append(last)
                ended |= last == eos
        rows = np.stack(chosen, 1).tolist() if chosen else [[] for _ in ended]
        return [row[: row.index(eos)] if eos in row else row for row in rows]

    def beam_search(
        self,
        source: Tensor,
        lengths: Tensor,
        bos: int,
        eos: int,
        max_steps: int,
        beam_size: int = 4,
        alpha: float = 0.75,
    ) -> list[int]:
        """The best of the sentences that are among the `beam_size` likeliest at each step.

        D2L section 10.8.3: the best has the largest log p / L**alpha, L its length with `eos`. The
        search ends when `beam_size` sentences have ended.

        Args:
            source: one sentence [1, S].
            lengths: its length [1].
            bos: the number of that token.
            eos: likewise.
            max_steps: the longest result.
            beam_size: 1 is greedy search.
            alpha: 0 prefers short sentences, 1 compares mean log p.

        Returns:
            Its tokens without `eos`.

        Raises:
            ValueError: more than one sentence, or a beam_size below 1.
        """
        if source.shape[0] != 1 or beam_size < 1:
            raise ValueError(
                "beam_search: expected one sentence and a beam_size of at least 1, got source "
                f"{list(source.shape)} and {beam_size}"
            )
        with evaluation(self):
            beam = _Beam(beam_size, alpha, bos, eos)
            state = self.start(source, lengths)
            for _ in range(max_steps):
                last = as_tensor([[row[-1]] for row in beam.alive], device=source.device)
                logits, state = self.step(last, state)
                rows = beam.extend(logits[:, -1].cpu().numpy())
                if beam.ended():
                    break
                state = state.select(as_tensor(rows, device=source.device))
        return beam.best()


class Seq2Seq(Translator):
    """An encoder and a decoder of GRUs, trained by teacher forcing. D2L section 10.7.

    Args:
        source_size: tokens of the source's vocabulary.
        target_size: tokens of the target's.
        embed_size: features of a token.
        num_hiddens: units of each GRU.
        num_layers: layers of each GRU.
        dropout: between layers, and on attention weights.
        attention: `AttentionDecoder` instead of `Seq2SeqDecoder`.
        bidirectional: of the encoder.

    Weights start by Xavier's rule, as in the book, embeddings from N(0, 1), biases of linear layers
    at zero.

    Shape: source [B, S], lengths [B] (1 ... S), target [B, T] -> logits [B, T, target_size]. In the
    loss, leave padding out: ``cross_entropy(logits.flatten(0, 1), labels.flatten(),
    ignore_index=pad)``.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        embed_size: int = 256,
        num_hiddens: int = 256,
        num_layers: int = 2,
        dropout: float = 0.2,
        attention: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        sizes = (embed_size, num_hiddens, num_layers, dropout)
        self.encoder = Seq2SeqEncoder(source_size, *sizes, bidirectional=bidirectional)
        self.decoder: Any = (
            AttentionDecoder(target_size, *sizes, encoder_size=self.encoder.output_size)
            if attention
            else Seq2SeqDecoder(target_size, *sizes)
        )
        self.apply(init_seq2seq)

    def start(self, source: Tensor, lengths: Tensor) -> State:
        state: State = self.decoder.init_state(*self.encoder(source, lengths), lengths)
        return state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = self.decoder(tokens, state)
        return logits, state

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        logits, _ = self.decoder(target, self.start(source, lengths))
        return logits


class _Beam:
    """The sentences under way, each with `bos` in front, and those that have ended."""

    def __init__(self, size: int, alpha: float, bos: int, eos: int) -> None:
        self.size, self.alpha, self.eos = size, alpha, eos
        self.alive: list[list[int]] = [[bos]]
        self.scores: NDArray[np.float64] = np.zeros(1)
        self.complete: list[tuple[float, list[int]]] = []

    def extend(self, logits: NDArray[Any]) -> list[int]:
        """Take in the logits [alive, V] of the next token; which row each survivor comes from."""
        x = logits.astype(np.float64)
        x -= x.max(1, keepdims=True)
        total = self.scores[:, None] + x - np.log(np.exp(x).sum(1, keepdims=True))
        best = np.argsort(-total, axis=None, kind="stable")[: self.size]
        rows, alive, scores = [], [], []
        for row, token in zip(*np.unravel_index(best, total.shape), strict=True):
            sentence, score = self.alive[row], float(total[row, token])
            if token == self.eos:
                self.complete.append((score / len(sentence) ** self.alpha, sentence[1:]))
                continue
            rows.append(int(row))
            alive.append([*sentence, int(token)])
            scores.append(score)
        self.alive, self.scores = alive, np.array(scores)
        return rows

    def ended(self) -> bool:
        """Are there enough complete sentences, or none left to continue?"""
        return not self.alive or len(self.complete) >= self.size

    def best(self) -> list[int]:
        """The best of all, complete or not."""
        rest = [
            (float(score) / max(1, len(row) - 1) ** self.alpha, row[1:])
            for score, row in zip(self.scores, self.alive, strict=True)
        ]
        return max(self.complete + rest, key=lambda item: item[0])[1]


def init_seq2seq(module: nn.Module) -> None:
    """Draws weights of linear and GRU layers by Xavier's rule. D2L section 10.7.4."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.GRU):
        for name, weight in module.named_parameters():
            if "weight" in name:
                nn.init.xavier_uniform_(weight)
