"""BERT: Hugging Face's weights against NumPy, heads, padding, the two tasks' data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grebe
from grebe.masking import SPECIAL, SentencePairs, mask_tokens, read_sentences, words_of
from grebe.models import (
    BERT,
    BERTConfig,
    BERTForPreTraining,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
)
from grebe.nn.functional import cross_entropy
from grebe.serialization import load_file, save_file
from grebe.text import Vocab

Array = np.ndarray[Any, np.dtype[Any]]
CONFIG = BERTConfig(17, 16, 2, 4, 24, 0.1, 12)


# ---- Hugging Face's files ----


def bert_tensors(prefix: str, old: bool) -> dict[str, Array]:
    """Random weights under the names of BERT's files, old ones with gamma and beta."""
    rng, e = np.random.default_rng(1), CONFIG.hidden_size
    linear: dict[str, tuple[int, int]] = {prefix + "pooler.dense": (e, e)}
    norms = [prefix + "embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for i in range(CONFIG.num_hidden_layers):
        layer = f"{prefix}encoder.layer.{i}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{layer}attention.{part}"] = (e, e)
        linear[layer + "intermediate.dense"], linear[layer + "output.dense"] = (24, e), (e, 24)
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
    linear["cls.predictions.transform.dense"] = (e, e)
    linear["cls.seq_relationship"] = (2, e)
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.{name}_embeddings.weight": (n, e)
        for name, n in (("word", 17), ("position", 12), ("token_type", 2))
    }
    for name, shape in linear.items():
        shapes[name + ".weight"], shapes[name + ".bias"] = shape, shape[:1]
    for name in norms:
        shapes[name + (".gamma" if old else ".weight")] = (e,)
        shapes[name + (".beta" if old else ".bias")] = (e,)
    shapes["cls.predictions.bias"] = (17,)
    return {n: rng.standard_normal(s).astype(np.float32) * 0.5 for n, s in shapes.items()}


def bert_forward(w: dict[str, Array], x: Array, segments: Array, lengths: Array) -> list[Array]:
    """Encoded, pooled, and the logits of both tasks, in float64; names without prefix."""
    w = {n.replace("gamma", "weight").replace("beta", "bias"): v.astype(np.float64)
         for n, v in w.items()}  # fmt: skip
    (batch, n), heads = x.shape, CONFIG.num_attention_heads

    def norm(y: Array, name: str) -> Array:
        y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-12)
        return y * w[name + ".weight"] + w[name + ".bias"]

    def linear(y: Array, name: str) -> Array:
        return y @ w[name + ".weight"].T + w[name + ".bias"]

    def gelu(y: Array) -> Array:
        return y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))

    h = w["embeddings.word_embeddings.weight"][x] + w["embeddings.position_embeddings.weight"][:n]
    h = norm(h + w["embeddings.token_type_embeddings.weight"][segments], "embeddings.LayerNorm")
    for i in range(CONFIG.num_hidden_layers):
        layer = f"encoder.layer.{i}."
        q, k, v = (
            linear(h, f"{layer}attention.self.{part}").reshape(batch, n, heads, -1).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1])
        scores += np.where(np.arange(n) < lengths[:, None], 0, -np.inf)[:, None, None]
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(h.shape)
        h = norm(h + linear(y, layer + "attention.output.dense"),
                 layer + "attention.output.LayerNorm")  # fmt: skip
        y = linear(gelu(linear(h, layer + "intermediate.dense")), layer + "output.dense")
        h = norm(h + y, layer + "output.LayerNorm")
    pooled = np.tanh(linear(h[:, 0], "pooler.dense"))
    y = gelu(linear(h, "cls.predictions.transform.dense"))
    y = norm(y, "cls.predictions.transform.LayerNorm")
    words = y @ w["embeddings.word_embeddings.weight"].T + w["cls.predictions.bias"]
    return [h, pooled, words, linear(pooled, "cls.seq_relationship")]


def write(folder: Path, tensors: dict[str, Array], **changes: Any) -> None:
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "bert", "hidden_act": "gelu", "vocab_size": 17, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "hidden_dropout_prob": 0.1, "max_position_embeddings": 12, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def inputs() -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    lengths = np.array([12, 5, 9])
    return rng.integers(0, 17, (3, 12)), rng.integers(0, 2, (3, 12)), lengths


@pytest.mark.parametrize(("prefix", "old"), [("bert.", False), ("bert.", True)])
def test_hugging_face_weights(prefix: str, old: bool, tmp_path: Path) -> None:
    tensors = bert_tensors(prefix, old)
    extra = {
        prefix + "embeddings.position_ids": np.arange(12)[None],
        "cls.predictions.decoder.weight": tensors[prefix + "embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    write(tmp_path, {**tensors, **extra})
    net = BERTForPreTraining.from_pretrained(tmp_path)
    assert net.config == CONFIG
    x, segments, lengths = inputs()
    plain = {n.removeprefix(prefix): v for n, v in tensors.items()}
    encoded, pooled, words, following = bert_forward(plain, x, segments, lengths)
    tensor = [grebe.from_numpy(array) for array in (x, segments, lengths)]
    seen = np.arange(12) < lengths[:, None]
    got = net.bert(*tensor)
    np.testing.assert_allclose(got[0].detach().numpy()[seen], encoded[seen], atol=1e-4)
    np.testing.assert_allclose(got[1].detach().numpy(), pooled, atol=1e-4)
    got = net(*tensor)
    np.testing.assert_allclose(got[0].detach().numpy()[seen], words[seen], atol=2e-4)
    np.testing.assert_allclose(got[1].detach().numpy(), following, atol=1e-4)
    positions = np.array([0, 3, 14, 30])
    some, _ = net(*tensor, grebe.from_numpy(positions))
    np.testing.assert_allclose(some.detach().numpy(), words.reshape(36, 17)[positions], atol=2e-4)


def test_fine_tuning_starts_from_the_encoder(tmp_path: Path) -> None:
    tensors = bert_tensors("", False)
    write(tmp_path, tensors)
    net = BERTForSequenceClassification.from_pretrained(tmp_path, 5)
    assert net.load_bert(load_file(tmp_path / "model.safetensors")) == [
        "classifier.bias", "classifier.weight",
    ]  # fmt: skip
    x, segments, lengths = inputs()
    _, pooled, _, _ = bert_forward(tensors, x, segments, lengths)
    tensor = [grebe.from_numpy(array) for array in (x, segments, lengths)]
    weight = net.classifier.weight.detach().numpy()
    np.testing.assert_allclose(net(*tensor).detach().numpy(), pooled @ weight.T, atol=1e-4)


def test_wrong_hugging_face_files(tmp_path: Path) -> None:
    tensors = bert_tensors("bert.", False)
    write(tmp_path, tensors, hidden_act="relu")
    with pytest.raises(ValueError, match=r"'bert' with hidden_act 'gelu', got 'bert' with 'relu'"):
        BERT_FOR_TEST(tmp_path)
    name = "bert.encoder.layer.1.attention.self.key.bias"
    write(tmp_path, {n: v for n, v in tensors.items() if n != name})
    with pytest.raises(RuntimeError, match=r"lacks bert\.layers\.1\.self_attn\.in_proj_bias"):
        BERT_FOR_TEST(tmp_path)
    write(tmp_path, tensors, hidden_size=32)
    with pytest.raises(RuntimeError, match=r"word_embeddings\.weight"):
        BERT_FOR_TEST(tmp_path)
    head = {"cls.predictions.decoder.weight": np.zeros((17, 16), np.float32)}
    write(tmp_path, {**tensors, **head})
    with pytest.raises(ValueError, match="to be the embedding"):
        BERT_FOR_TEST(tmp_path)


BERT_FOR_TEST = BERTForPreTraining.from_pretrained


# ---- models ----


def test_padding_changes_nothing_and_dropout_stops_in_evaluation() -> None:
    net = BERTForTokenClassification(CONFIG, 3)
    x, _, _ = inputs()
    tokens = grebe.from_numpy(x)
    assert not np.array_equal(net(tokens).detach(), net(tokens).detach())
    net.eval()
    short = net(tokens[1:2, :5]).detach().numpy()
    padded = net(tokens, None, grebe.tensor([12, 5, 9])).detach().numpy()
    np.testing.assert_allclose(padded[1:2, :5], short, atol=1e-6)


@pytest.mark.parametrize("kind", ["sequence", "token", "span"])
def test_heads_learn(kind: str) -> None:
    grebe.manual_seed(0)
    config = BERTConfig(9, 16, 1, 2, 32, 0.0, 8)
    nets: dict[str, Any] = {
        "sequence": BERTForSequenceClassification(config, 3),
        "token": BERTForTokenClassification(config, 3),
        "span": BERTForQuestionAnswering(config),
    }
    net = nets[kind]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (32, 8))
    x[:, 0] = rng.integers(0, 3, 32)
    tokens = grebe.from_numpy(x)
    optimizer = grebe.optim.AdamW(net.parameters(), lr=0.02)
    for _ in range(40):
        y = net(tokens)
        if kind == "sequence":
            loss = cross_entropy(y, grebe.from_numpy(x[:, 0]))
        elif kind == "token":
            loss = cross_entropy(y.flatten(0, 1), grebe.from_numpy(x % 3).flatten())
        else:
            loss = cross_entropy(y[0], grebe.from_numpy(x[:, 0]))
            loss = loss + cross_entropy(y[1], grebe.from_numpy(x[:, 0] + 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_state_dict_round_trip(tmp_path: Path) -> None:
    net, other = BERTForPreTraining(CONFIG).eval(), BERTForPreTraining(CONFIG).eval()
    save_file(net.state_dict(), tmp_path / "w")
    other.load_state_dict(load_file(tmp_path / "w"))
    tokens = grebe.from_numpy(inputs()[0])
    assert np.array_equal(net(tokens)[0].detach(), other(tokens)[0].detach())


def test_wrong_arguments() -> None:
    net = BERT(CONFIG)
    for shape in ((3,), (1, 13), (1, 0)):
        with pytest.raises(ValueError, match=r"T from 1 to 12, got"):
            net(grebe.zeros(*shape, dtype=grebe.int64))
    with pytest.raises(IndexError):
        net(grebe.tensor([[17]]))
    with pytest.raises(ValueError, match="divisible by num_attention_heads"):
        BERTConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        BERTConfig(0)


# ---- data ----

TEXT = "One two. Three four five!\n\nSix, seven? Eight nine ten. One <mask> two.\n\nAlone here."


def test_sentences() -> None:
    assert words_of("Don't go; 3 <MASK>s_") == ["don't", "go", ";", "3", "<mask>", "s"]
    assert read_sentences(TEXT) == [
        [["one", "two", "."], ["three", "four", "five", "!"]],
        [["six", ",", "seven", "?"], ["eight", "nine", "ten", "."], ["one", "<mask>", "two", "."]],
    ]


def vocab_of(paragraphs: Any) -> Vocab:
    return Vocab([w for p in paragraphs for s in p for w in s], 0, SPECIAL)


def test_pairs() -> None:
    paragraphs = [[[f"w{i}"] * (2 + (i + j) % 5) + [f"s{j}"] for j in range(6)] for i in range(30)]
    vocab = vocab_of(paragraphs)
    pairs = SentencePairs.draw(paragraphs, vocab, 12, np.random.default_rng(0))
    assert len(pairs) == 150
    assert 0.35 < pairs.follows.mean() < 0.65
    for tokens, segments, n, follows in zip(
        pairs.tokens, pairs.segments, pairs.lengths, pairs.follows, strict=True
    ):
        words = vocab.to_tokens(tokens[:n])
        assert (words[0], words[-1], words.count("<sep>")) == ("<cls>", "<sep>", 2)
        assert (tokens[n:] == vocab["<pad>"]).all()
        middle = words.index("<sep>")
        assert segments.tolist() == [0] * (middle + 1) + [1] * (n - middle - 1) + [0] * (12 - n)
        if follows:
            assert words[1] == words[middle + 1]  # of one paragraph
    with pytest.raises(ValueError, match="two sentences"):
        SentencePairs.draw([], vocab, 12, np.random.default_rng(0))
    with pytest.raises(ValueError, match="lacks <pad>, <cls>, <sep>, <mask>"):
        SentencePairs.draw(paragraphs, Vocab(["a"]), 12, np.random.default_rng(0))
    with pytest.raises(ValueError, match="max_len"):
        SentencePairs.draw(paragraphs, vocab, 4, np.random.default_rng(0))


def test_masking() -> None:
    vocab = Vocab([f"w{i}" for i in range(50)], 0, SPECIAL)
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, len(vocab), (200, 42))
    tokens[:, 0], tokens[:, -1] = vocab["<cls>"], vocab["<sep>"]
    read, positions, hidden = mask_tokens(tokens, vocab, rng)
    assert len(positions) == 200 * 6  # 15% of 40
    assert (np.diff(positions) > 0).all()
    assert np.array_equal(hidden, tokens.reshape(-1)[positions])
    assert hidden.min() >= 5
    shown = read.reshape(-1)[positions]
    assert (shown == vocab["<mask>"]).mean() == pytest.approx(0.8, abs=0.04)
    assert (shown == hidden).mean() == pytest.approx(0.1, abs=0.03)
    untouched = np.ones(tokens.size, bool)
    untouched[positions] = False
    assert np.array_equal(read.reshape(-1)[untouched], tokens.reshape(-1)[untouched])
    assert len(mask_tokens(tokens[:1, :3], vocab, rng)[1]) == 1
    assert len(mask_tokens(tokens[:1, :1], vocab, rng)[1]) == 0
