"""The translating Transformer. Vaswani et al. 2017; D2L section 11.7."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import Tensor, from_numpy, nn
from .cache import KVCache, attend, self_attend, split_heads
from .layers import Checkpointed, encoder_layer, feed_forward, padding_mask
from .positions import PositionalEncoding
from .seq2seq import Translator


class TransformerState(NamedTuple):
    """What a decoder knows: keys and values of the target so far, and per layer of the source.

    memory: keys and values [B, H, S, D] of each layer; seen: bool [B, 1, 1, S], False at padding.
    """

    cache: KVCache
    memory: list[tuple[Tensor, Tensor]]
    seen: Tensor

    def select(self, rows: Tensor) -> TransformerState:
        """The state of the given sentences, which may repeat."""
        memory = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.memory]
        return TransformerState(self.cache.select(rows), memory, self.seen.index_select(0, rows))


class TransformerSeq2Seq(Translator, Checkpointed):
    """Encoder and decoder of Transformer layers, trained by teacher forcing. D2L section 11.7.

    Args:
        source_size: tokens of the source's vocabulary.
        target_size: tokens of the target's.
        num_hiddens: E, features of a token.
        ffn_num_hiddens: features inside each layer's network.
        num_heads: heads of each attention.
        num_layers: layers of the encoder, and of the decoder.
        dropout: on embeddings, attention weights and before each residual sum.
        max_len: the longest sentence.

    Weights start by Xavier's rule, embeddings from N(0, 1 / E), since they are multiplied by
    sqrt(E).

    Shape: source [B, S], lengths [B] (1 ... S), target [B, T] -> logits [B, T, target_size]. In the
    loss, leave padding out: ``cross_entropy(logits.flatten(0, 1), labels.flatten(),
    ignore_index=pad)``.
    """

    causal: Tensor

    def __init__(
        self,
        source_size: int,
        target_size: int,
        num_hiddens: int = 256,
        ffn_num_hiddens: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.2,
        max_len: int = 256,
    ) -> None:
        super().__init__()
        self.size, self.heads, self.max_len = num_hiddens, num_heads, max_len
        self.source_embedding = nn.Embedding(source_size, num_hiddens)
        self.target_embedding = nn.Embedding(target_size, num_hiddens)
        self.positions = PositionalEncoding(num_hiddens, dropout, max_len)
        self.encoder = nn.ModuleList(
            [
                encoder_layer(num_hiddens, num_heads, ffn_num_hiddens, dropout, "relu")
                for _ in range(num_layers)
            ]
        )
        self.decoder = nn.ModuleList(
            [
                _decoder_layer(num_hiddens, num_heads, ffn_num_hiddens, dropout)
                for _ in range(num_layers)
            ]
        )
        self.linear = nn.Linear(num_hiddens, target_size)
        hidden = np.triu(np.ones((max_len, max_len), bool), 1)
        self.register_buffer("causal", from_numpy(hidden), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, 0.0, self.size**-0.5)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """The source's tokens [B, S] in their context: [B, S, E]."""
        x = self.positions(self.source_embedding(source) * self.size**0.5)
        padding = padding_mask(lengths, source.shape[1])
        for layer in self.encoder:
            x = self.run(layer, x, src_key_padding_mask=padding)
        return x

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        memory, steps = self.encode(source, lengths), target.shape[1]
        padding = padding_mask(lengths, source.shape[1])
        x = self.positions(self.target_embedding(target) * self.size**0.5)
        for layer in self.decoder:
            x = self.run(
                layer,
                x,
                memory,
                self.causal[:steps, :steps],
                memory_key_padding_mask=padding,
                tgt_is_causal=True,
            )
        result: Tensor = self.linear(x)
        return result

    def start(self, source: Tensor, lengths: Tensor) -> TransformerState:
        encoded = self.encode(source, lengths)
        memory, size = [], self.size
        for layer in self.decoder:
            attention: Any = layer.multihead_attn
            projected = nn.functional.linear(
                encoded, attention.in_proj_weight[size:], attention.in_proj_bias[size:]
            )
            key, value = split_heads(projected, 2, self.heads)
            memory.append((key, value))
        cache = KVCache(
            len(self.decoder), len(source), self.heads, self.max_len, size // self.heads,
            encoded,
        )  # fmt: skip
        padding = padding_mask(lengths, source.shape[1])
        assert padding is not None
        return TransformerState(cache, memory, padding.logical_not().unsqueeze(1).unsqueeze(1))

    def step(self, tokens: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """As `Translator.step`, in evaluation mode only; the state given is used up."""
        cache = state.cache
        x = self.positions(self.target_embedding(tokens) * self.size**0.5, cache.length)
        for i, layer in enumerate(self.decoder):
            x = _with_cache(layer, x, state, i)
        cache.length += tokens.shape[1]
        return self.linear(x), state


def _decoder_layer(size: int, heads: int, hidden: int, dropout: float) -> Any:
    layer = nn.TransformerDecoderLayer(size, heads, hidden, dropout, batch_first=True)
    layer.dropout.p = 0.0
    return layer


def _with_cache(layer: Any, x: Tensor, state: TransformerState, index: int) -> Tensor:
    """A post-norm decoder layer in evaluation mode for the tokens that follow those so far."""
    x = layer.norm1(x + self_attend(layer.self_attn, x, state.cache, index))
    attention, (keys, values) = layer.multihead_attn, state.memory[index]
    size = x.shape[2]
    query = nn.functional.linear(x, attention.in_proj_weight[:size], attention.in_proj_bias[:size])
    (q,) = split_heads(query, 1, attention.num_heads)
    x = layer.norm2(x + attend(attention, q, keys, values, attn_mask=state.seen))
    result: Tensor = layer.norm3(x + feed_forward(layer, x))
    return result
