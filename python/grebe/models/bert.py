"""BERT: an encoder that is trained to fill gaps. Devlin et al. 2019; D2L 15.8 and 15.10."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import Tensor, arange, cat, from_numpy, nn
from .layers import Checkpointed, encoder_layer, padding_mask

_HF_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}
_HF_OTHER = {
    "embeddings.LayerNorm": "norm",
    "embeddings.word_embeddings": "word_embeddings",
    "embeddings.position_embeddings": "position_embeddings",
    "embeddings.token_type_embeddings": "token_type_embeddings",
    "pooler.dense": "pooler",
    "cls.predictions.transform.dense": "transform",
    "cls.predictions.transform.LayerNorm": "transform_norm",
    "cls.predictions": "output",
    "cls.seq_relationship": "next_sentence",
}


@dataclass(frozen=True)
class BERTConfig:
    """The size of a `BERT`; the defaults are those of BERT-base (110 million parameters).

    Args:
        vocab_size: V, tokens that there are.
        hidden_size: E, features of a token.
        num_hidden_layers: layers.
        num_attention_heads: heads of each attention.
        intermediate_size: features inside each layer's network.
        dropout: on embeddings, attention weights, before each residual sum and before the heads.
        max_position_embeddings: the longest text.
        type_vocab_size: segments that there are.
        layer_norm_eps: eps of the LayerNorms.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"BERTConfig: {name} must be at least 1, got {value}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                "BERTConfig: hidden_size must be divisible by num_attention_heads, got "
                f"{self.hidden_size} and {self.num_attention_heads}"
            )

    @classmethod
    def of_hugging_face(cls, content: Mapping[str, Any]) -> BERTConfig:
        """From what a BERT's config.json says.

        Raises:
            ValueError: it is of another kind of model.
        """
        kind, activation = content.get("model_type"), content.get("hidden_act", "gelu")
        if (kind, activation) != ("bert", "gelu"):
            raise ValueError(
                "BERTConfig: expected model_type 'bert' with hidden_act 'gelu', got "
                f"{kind!r} with {activation!r}"
            )
        names = set(cls.__dataclass_fields__) & set(content)
        dropout = content.get("hidden_dropout_prob", 0.1)
        return cls(**{name: content[name] for name in names if name != "dropout"}, dropout=dropout)


class BERT(Checkpointed):
    """Embeddings of tokens, positions and segments, and post-norm layers that see both ways.

    Args:
        config: sizes.

    Weights start from N(0, 0.02), biases at 0.

    Shape: tokens [B, T], segments [B, T] or None (all 0), lengths [B] or None (all T) -> encoded
    [B, T, E], pooled [B, E]: tanh of a linear layer on each first token.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([_layer(config) for _ in range(config.num_hidden_layers)])
        self.pooler = nn.Linear(size, size)
        self.apply(_init)

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encoded and pooled.

        Raises:
            ValueError: another shape, or more tokens than there are positions.
            IndexError: a token or segment that there is not.
        """
        most = self.config.max_position_embeddings
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= most:
            raise ValueError(
                f"BERT: expected tokens [B, T] with T from 1 to {most}, got {list(tokens.shape)}"
            )
        x = self.word_embeddings(tokens) + self.position_embeddings(
            arange(tokens.shape[1], device=tokens.device)
        )
        x = x + self.token_type_embeddings(tokens * 0 if segments is None else segments)
        x = self.dropout(self.norm(x))
        padding = padding_mask(lengths, tokens.shape[1])
        for layer in self.layers:
            x = self.run(layer, x, src_key_padding_mask=padding)
        return x, self.pooler(x[:, 0]).tanh()


class _WithBERT(nn.Module):
    """A BERT with heads. Weights can be read from Hugging Face's files by their names."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BERT(config)
        self.dropout = nn.Dropout(config.dropout)

    def load_bert(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Take the weights of a Hugging Face BERT, by its names, with `bert.` in front or without.

        What other heads have in the file is left out.

        Returns:
            The parameters of the heads and of the pooler that the file lacks: they stay as they
            are, to be learned.

        Raises:
            RuntimeError: the encoder is not complete, or shapes that do not fit.
            ValueError: an output layer that is not the embedding.
        """
        state, own = _from_bert(tensors), set(self.state_dict())
        missing = sorted(own - set(state))
        lost = [n for n in missing if n.startswith("bert.") and not n.startswith("bert.pooler.")]
        if lost:
            raise RuntimeError(f"load_bert: the file lacks {', '.join(lost)}")
        self.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)
        return missing

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *args: Any) -> Any:
        """The model in a Hugging Face folder with config.json and model.safetensors, to evaluate.

        Args:
            folder: the folder.
            args: what the class takes behind `config`.

        Raises:
            OSError: a file cannot be read.
            ValueError, RuntimeError: what they hold is no BERT.
        """
        from ..serialization import load_file

        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = BERTConfig.of_hugging_face(json.load(file))
        net = cls(config, *args)
        net.load_bert(load_file(os.path.join(folder, "model.safetensors")))
        return net.eval()


class BERTForPreTraining(_WithBERT):
    """Masked language modelling and next sentence prediction. D2L section 15.8.5.

    Args:
        config: sizes.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.transform = nn.Linear(size, size)
        self.transform_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.output = _Bias(config.vocab_size)
        self.next_sentence = nn.Linear(size, 2)
        for layer in (self.transform, self.next_sentence):
            _init(layer)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of the tokens, and of whether the second segment is the next sentence.

        Args:
            tokens: [B, T].
            segments: [B, T], or None.
            lengths: [B], or None.
            positions: whole numbers [M] into the B T tokens: only their logits are computed.

        Returns:
            [M, V] (without positions [B, T, V]), and [B, 2]: column 0 for the next sentence, as in
            Hugging Face's models.
        """
        encoded, pooled = self.bert(tokens, segments, lengths)
        if positions is not None:
            encoded = encoded.flatten(0, 1).index_select(0, positions)
        x = self.transform_norm(nn.functional.gelu(self.transform(encoded)))
        weight = self.bert.word_embeddings.weight
        logits = nn.functional.linear(x, weight, self.output.bias)
        return logits, self.next_sentence(pooled)


class BERTForSequenceClassification(_WithBERT):
    """One of `num_labels` for a text or a pair of texts. D2L sections 16.6 and 16.7.

    Shape: arguments of `BERT` -> logits [B, num_labels].
    """

    def __init__(self, config: BERTConfig, num_labels: int = 2) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        _init(self.classifier)

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        _, pooled = self.bert(tokens, segments, lengths)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class BERTForTokenClassification(_WithBERT):
    """One of `num_labels` for each token. D2L section 16.6.

    Shape: arguments of `BERT` -> logits [B, T, num_labels].
    """

    def __init__(self, config: BERTConfig, num_labels: int = 2) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        _init(self.classifier)

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        encoded, _ = self.bert(tokens, segments, lengths)
        logits: Tensor = self.classifier(self.dropout(encoded))
        return logits


class BERTForQuestionAnswering(_WithBERT):
    """Where in a text an answer begins and ends. D2L section 16.6.

    Shape: arguments of `BERT` -> logits [B, T] of the begin, and of the end.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        _init(self.qa_outputs)

    def forward(
        self, tokens: Tensor, segments: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        encoded, _ = self.bert(tokens, segments, lengths)
        logits: Tensor = self.qa_outputs(encoded)
        return logits[:, :, 0], logits[:, :, 1]


class _Bias(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(from_numpy(np.zeros(size, np.float32)))


def _layer(config: BERTConfig) -> Any:
    return encoder_layer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, config.dropout,
        "gelu", config.layer_norm_eps,
    )  # fmt: skip


def _init(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        nn.init.normal_(module.in_proj_weight, 0.0, 0.02)


def _renamed(name: str) -> str:
    """Our name for a parameter that is no query, key or value."""
    part, _, kind = name.rpartition(".")
    part = part.removeprefix("bert.")
    kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)  # in old files
    found = re.fullmatch(r"encoder\.(layer)\.(\d+)\.(.+)", part)
    if found:
        return f"bert.layers.{found[2]}.{_HF_LAYER.get(found[3], found[3])}.{kind}"
    head = not part.startswith(("embeddings.", "pooler."))
    return f"{'' if head else 'bert.'}{_HF_OTHER.get(part, part)}.{kind}"


def _from_bert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names, query, key and value joined."""
    state: dict[str, Tensor] = {}
    joint: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(
            r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.self\.(\w+)\.(weight|bias)", name
        )
        if found:
            joined = f"bert.layers.{found[1]}.self_attn.in_proj_{found[3]}"
            joint.setdefault(joined, {})[found[2]] = tensor
        else:
            state[_renamed(name)] = tensor
    for name, parts in joint.items():
        if set(parts) == {"query", "key", "value"}:
            state[name] = cat([parts["query"], parts["key"], parts["value"]])
    head, embedding = tensors.get("cls.predictions.decoder.weight"), "bert.word_embeddings.weight"
    if head is not None and embedding in state and not np.array_equal(head, state[embedding]):
        raise ValueError(
            "load_bert: expected cls.predictions.decoder.weight to be the embedding, but it differs"
        )
    return state
