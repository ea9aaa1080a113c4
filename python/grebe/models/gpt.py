"""GPT: a language model of Transformer layers. Radford et al. 2019 (GPT-2); D2L section 11.9.3."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import Tensor, arange, as_tensor, from_numpy, nn
from .cache import KVCache, self_attend
from .layers import Checkpointed, encoder_layer, feed_forward
from .sampling import check_sampling, evaluation, pick

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
_HF_NAMES = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.c_proj": "self_attn.out_proj",
    "mlp.c_fc": "linear1",
    "mlp.c_proj": "linear2",
}


@dataclass(frozen=True)
class GPTConfig:
    """The size of a `GPT`; the defaults are GPT-2's smallest (124 million parameters).

    Args:
        vocab_size: V, tokens that there are.
        n_positions: the longest text.
        n_embd: E, features of a token.
        n_layer: layers.
        n_head: heads of each attention.
        n_inner: features inside each layer's network; None: 4 E.
        dropout: on embeddings, attention weights and before each residual sum.
        layer_norm_epsilon: eps of the LayerNorms.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    dropout: float = 0.1
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"GPTConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"GPTConfig: n_embd must be divisible by n_head, got {self.n_embd} and "
                f"{self.n_head}"
            )

    @classmethod
    def of_hugging_face(cls, content: Mapping[str, Any]) -> GPTConfig:
        """From what a GPT-2's config.json says.

        Raises:
            ValueError: it is of another kind of model.
        """
        kind, activation = content.get("model_type"), content.get("activation_function", "gelu_new")
        if kind != "gpt2" or activation not in _TANH_GELU:
            raise ValueError(
                "GPTConfig: expected model_type 'gpt2' with activation_function 'gelu_new', got "
                f"{kind!r} with {activation!r}"
            )
        names = (
            "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
            "layer_norm_epsilon",
        )  # fmt: skip
        found = {name: content[name] for name in names if name in content}
        return cls(**found, dropout=content.get("resid_pdrop", 0.1))


class GPT(Checkpointed):
    """Embeddings of tokens and positions, pre-norm layers, and the embedding as output layer.

    Args:
        config: sizes.

    Weights start from N(0, 0.02), those before a residual sum divided by sqrt(2 n_layer); biases
    at 0.

    Shape: tokens [B, T], T <= n_positions -> logits [B, T, V].
    """

    causal: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        size = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, size)
        self.wpe = nn.Embedding(config.n_positions, size)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([_layer(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(size, config.layer_norm_epsilon)
        hidden = np.triu(np.ones((config.n_positions, config.n_positions), bool), 1)
        self.register_buffer("causal", from_numpy(hidden), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        scaled = 0.02 / (2 * self.config.n_layer) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                before_sum = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(parameter, 0.0, scaled if before_sum else 0.02)

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache of `capacity` (default: n_positions) tokens for `forward`."""
        c = self.config
        room = c.n_positions if capacity is None else capacity
        size = c.n_embd // c.n_head
        return KVCache(c.n_layer, batch, c.n_head, room, size, self.wte.weight)

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the output layer gets: [B, T, E]. Arguments as for `forward`."""
        if tokens.ndim != 2:
            raise ValueError(f"GPT: expected tokens [B, T], got shape {list(tokens.shape)}")
        start, steps = 0 if cache is None else cache.length, tokens.shape[1]
        room = self.config.n_positions if cache is None else cache.capacity
        if not 0 < steps <= room - start:
            raise ValueError(f"GPT: expected 1 to {room - start} more tokens, got {steps}")
        if cache is not None and self.training:
            raise ValueError("GPT: a cache is for evaluation mode: call eval() first")
        positions = arange(start, start + steps, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        mask = self.causal[:steps, :steps] if cache is None else None
        for i, layer in enumerate(self.h):
            x = (
                self.run(layer, x, mask, is_causal=True)
                if cache is None
                else _with_cache(layer, x, cache, i)
            )
        if cache is not None:
            cache.length += steps
        result: Tensor = self.ln_f(x)
        return result

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each one.

        Args:
            tokens: [B, T].
            cache: of `new_cache`: `tokens` continue those that it has seen, and are added to it.
                In evaluation mode and without gradients only.

        Raises:
            ValueError: another shape, more tokens than there are positions, or a cache in training.
            IndexError: a token outside 0 ... V - 1.
        """
        return nn.functional.linear(self.features(tokens, cache), self.wte.weight)

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the labels [B, T], tokens one step later; -100 does not count."""
        features = self.features(tokens).flatten(0, 1)
        return nn.functional.linear_cross_entropy(features, self.wte.weight, labels.flatten())

    def stream(
        self,
        prefix: Sequence[int],
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: Any = None,
        capacity: int | None = None,
    ) -> Iterator[int]:
        """Token after token that continues `prefix`, without an end.

        Arguments and errors as for `generate`. capacity: how many tokens the cache takes, at most
        and by default n_positions. When it is full, its later half is read again into an empty one:
        the text may be longer than n_positions.
        """
        check_sampling("GPT.generate", temperature, top_k, top_p)
        if not len(prefix):
            raise ValueError("GPT.generate: expected a prefix of at least one token")
        limit = self.config.n_positions
        return self._stream(
            [int(token) for token in prefix],
            limit if capacity is None else min(capacity, limit),
            (temperature, np.random.default_rng(seed), top_k, top_p),
        )

    def _stream(self, known: list[int], room: int, how: tuple[Any, ...]) -> Iterator[int]:
        cache, new = self.new_cache(1, room), known[-room:]
        while True:
            if cache.length + len(new) > room:
                cache.length, new = 0, known[-max(1, room // 2) :]
            with evaluation(self):
                tokens = as_tensor([new], device=self.wte.weight.device)
                features = self.features(tokens, cache)
                logits = nn.functional.linear(features[:, -1], self.wte.weight)
            new = [pick(logits[0].cpu().numpy(), *how)]
            known += new
            yield new[0]

    def generate(
        self,
        prefix: Sequence[int],
        length: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: Any = None,
    ) -> list[int]:
        """`length` tokens that continue `prefix`, each by one row of attention to a cache.

        Args:
            prefix: at least one token number; of more than n_positions the last ones count.
            length: how many to add.
            temperature: 0 takes the likeliest token; otherwise it is drawn from
                softmax(logits / temperature).
            top_k: draw among the k likeliest only.
            top_p: draw among the fewest likeliest that have the probability p together.
            seed: of the draws: a number or a numpy Generator.

        Raises:
            ValueError: an empty prefix, a negative length or temperature, top_k below 1, or top_p
                not in (0, 1].
            IndexError: a token outside 0 ... V - 1.
        """
        if length < 0:
            raise ValueError(f"GPT.generate: length must be at least 0, got {length}")
        tokens = self.stream(prefix, temperature, top_k, top_p, seed, max(1, len(prefix) + length))
        return [token for _, token in zip(range(length), tokens, strict=False)]

    def load_gpt2(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights of a Hugging Face GPT-2, by its names.

        Names may start with `transformer.`; its linear layers are stored transposed.

        Raises:
            RuntimeError: names or shapes that do not fit.
            ValueError: an output layer that is not the embedding.
        """
        self.load_state_dict(_from_gpt2(tensors))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GPT:
        """The model in a Hugging Face folder with config.json and model.safetensors, to evaluate.

        Raises:
            OSError: a file cannot be read.
            ValueError, RuntimeError: what they hold is no GPT-2.
        """
        from ..serialization import load_file

        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = GPTConfig.of_hugging_face(json.load(file))
        net = cls(config)
        net.load_gpt2(load_file(os.path.join(folder, "model.safetensors")))
        return net.eval()


def _layer(config: GPTConfig) -> Any:
    return encoder_layer(
        config.n_embd,
        config.n_head,
        config.n_inner or 4 * config.n_embd,
        config.dropout,
        functools.partial(nn.functional.gelu, approximate="tanh"),
        config.layer_norm_epsilon,
        norm_first=True,
    )


def _with_cache(layer: Any, x: Tensor, cache: KVCache, index: int) -> Tensor:
    """A pre-norm layer in evaluation mode for the tokens that follow those in the cache."""
    x = x + self_attend(layer.self_attn, layer.norm1(x), cache, index)
    return x + feed_forward(layer, layer.norm2(x))


def _from_gpt2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names; the causal masks that old files hold are left out."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
            continue
        found = re.fullmatch(r"(h\.\d+\.)(.+)\.(weight|bias)", name)
        if found is None:
            state[name] = tensor
            continue
        layer, part, kind = found.groups()
        if part == "attn.c_attn":
            name = f"{layer}self_attn.in_proj_{kind}"
        else:
            name = f"{layer}{_HF_NAMES.get(part, part)}.{kind}"
        conv1d = kind == "weight" and "ln_" not in part
        state[name] = tensor.t().contiguous() if conv1d and tensor.ndim == 2 else tensor
    head, embedding = tensors.get("lm_head.weight"), state.get("wte.weight")
    if head is not None and embedding is not None and not np.array_equal(head, embedding):
        raise ValueError("GPT.load_gpt2: expected lm_head.weight to be wte.weight, but it differs")
    return state
