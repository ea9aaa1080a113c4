"""Language model, additive attention, encoder and decoder, greedy and beam search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import grebe
import grebe.nn.functional as F
from grebe import nn, optim
from grebe.models import RNNLM, AdditiveAttention, Seq2Seq, TransformerSeq2Seq, masked_softmax
from grebe.models.sampling import pick

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(autouse=True)
def seed() -> None:
    grebe.manual_seed(0)


# ---- language model ----


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 3])
def test_state_continues_a_sequence(kind: str, layers: int) -> None:
    model = RNNLM(7, 12, kind, layers, dropout=0.5 if layers > 1 else 0).eval()
    tokens = grebe.randint(0, 7, (3, 10))
    whole, _ = model(tokens)
    first, state = model(tokens[:, :4])
    second, _ = model(tokens[:, 4:], state)
    assert whole.shape == (3, 10, 7)
    assert np.allclose(whole.detach(), grebe.cat([first, second], 1).detach(), atol=1e-6)


def test_generation() -> None:
    model = RNNLM(5, 8, "lstm")
    model.train()
    made = model.generate([3, 1], 6)
    assert model.training
    expected = [3, 1]
    for _ in range(6):
        logits, _ = model(grebe.tensor([expected]))
        expected.append(int(logits[0, -1].argmax()))
    assert made == expected[2:]
    drawn = [model.generate([3], 40, 1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert model.generate([3], 40, 1e-9, seed=5) == model.generate([3], 40)
    assert model.generate([3], 0) == []


def test_pick_follows_the_distribution() -> None:
    rng, p = np.random.default_rng(0), np.array([0.5, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        logits = np.log(p)
    counts = np.bincount([pick(logits, 1.0, rng) for _ in range(4000)], minlength=4)
    assert np.allclose(counts / 4000, p, atol=0.03)
    assert counts[1] == 0
    hot = np.bincount([pick(logits, 2.0, rng) for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(hot, p**0.5 / (p**0.5).sum(), atol=0.03)


def test_language_model_learns_a_cycle() -> None:
    model, tokens = RNNLM(6, 16), grebe.arange(60) % 6
    optimizer = optim.Adam(model.parameters(), lr=0.03)
    x, y = tokens[:-1].unsqueeze(0), tokens[1:]
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x)[0][0], y).backward()
        optimizer.step()
    assert model.generate([2, 3], 8) == [4, 5, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RNNLM(5, kind="elman"), ValueError, "'gru' or 'lstm', got 'elman'"),
        (lambda: RNNLM(5, 4)(grebe.tensor([1])), ValueError, r"tokens \[B, T\]"),
        (lambda: RNNLM(5, 4)(grebe.tensor([[5]])), IndexError, "one_hot"),
        (lambda: RNNLM(5, 4).generate([], 3), ValueError, "at least one token"),
        (lambda: RNNLM(5, 4).generate([1], -1), ValueError, "got 1 tokens, -1"),
        (lambda: RNNLM(5, 4).generate([1], 1, float("nan")), ValueError, "nan"),
        (lambda: RNNLM(5, 4).generate([5], 1), IndexError, "one_hot"),
    ],
)
def test_language_model_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- attention ----


def test_masked_softmax() -> None:
    scores = grebe.randn(2, 3, 4)
    weights = masked_softmax(scores, grebe.tensor([2, 4])).numpy()
    assert (weights[0, :, 2:] == 0).all()
    assert np.allclose(weights[0, :, :2], F.softmax(scores[0, :, :2], -1))
    assert np.allclose(weights[1], F.softmax(scores[1], -1))
    each = masked_softmax(scores, grebe.tensor([[1, 2, 3], [4, 0, 1]])).numpy()
    assert ((each > 0).sum(-1) == [[1, 2, 3], [4, 4, 1]]).all()
    assert np.allclose(each.sum(-1), 1)
    assert np.allclose(masked_softmax(scores, None), F.softmax(scores, -1))
    with pytest.raises(ValueError, match=r"valid_lens \[2\] or \[2, 3\], got \[3\]"):
        masked_softmax(scores, grebe.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"scores \[B, Q, K\], got \[3, 4\]"):
        masked_softmax(scores[0], None)
    with pytest.raises(TypeError, match="must be a Tensor, got list"):
        masked_softmax(scores, [1, 2])  # type: ignore[arg-type]


def test_additive_attention() -> None:
    attention = AdditiveAttention(5, 4, 6).eval()
    queries, keys, values = grebe.randn(2, 3, 5), grebe.randn(2, 7, 4), grebe.randn(2, 7, 8)
    lengths = np.array([7, 3])
    got = attention(queries, keys, values, grebe.from_numpy(lengths))
    q, k, v = (w.weight.detach().numpy() for w in (attention.W_q, attention.W_k, attention.w_v))
    for b, i in itertools.product(range(2), range(3)):
        n = lengths[b]
        hidden = np.tanh(q @ queries.numpy()[b, i] + keys.numpy()[b, :n] @ k.T)
        weights = np.exp(hidden @ v[0])
        weights /= weights.sum()
        assert np.allclose(got.detach()[b, i], weights @ values.numpy()[b, :n], atol=1e-5)
        assert np.allclose(attention.attention_weights[b, i, :n], weights, atol=1e-5)


# ---- encoder and decoder ----

VARIANTS = list(itertools.product([False, True], [False, True], [1, 2]))


def _net(attention: bool = False, bidirectional: bool = False, layers: int = 1, **kw: Any) -> Any:
    sizes = {"embed_size": 6, "num_hiddens": 9, "dropout": 0.0, **kw}
    return Seq2Seq(8, 7, num_layers=layers, attention=attention, bidirectional=bidirectional,
                   **sizes)  # fmt: skip


@pytest.mark.parametrize(("attention", "bidirectional", "layers"), VARIANTS)
def test_padding_changes_nothing(attention: bool, bidirectional: bool, layers: int) -> None:
    net = _net(attention, bidirectional, layers)
    source, lengths = grebe.randint(3, 8, (3, 5)), grebe.tensor([5, 2, 4])
    target = grebe.randint(3, 7, (3, 4))
    logits = net(source, lengths, target)
    assert logits.shape == (3, 4, 7)
    longer = grebe.cat([source, grebe.randint(0, 8, (3, 2))], 1)
    assert np.allclose(logits.detach(), net(longer, lengths, target).detach(), atol=1e-6)
    alone = net(source[1:2, :2], lengths[1:2], target[1:2])
    assert np.allclose(logits[1:2].detach(), alone.detach(), atol=1e-6)
    labels = target.clone()
    labels[0, 2:] = PAD
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD).backward()
    assert all(p.grad is not None and np.isfinite(p.grad.array).all() for p in net.parameters())
    if attention:
        net(source, lengths, target)
        weights = net.decoder.attention_weights
        assert weights.shape == (3, 4, 5)
        assert (weights.numpy()[1, :, 2:] == 0).all()


@pytest.mark.parametrize(("attention", "bidirectional", "layers"), VARIANTS)
def test_greedy_is_teacher_forcing_with_its_own_words(
    attention: bool, bidirectional: bool, layers: int
) -> None:
    net = _net(attention, bidirectional, layers, dropout=0.4)
    source, lengths = grebe.randint(3, 8, (4, 5)), grebe.tensor([5, 1, 4, 3])
    made = net.greedy(source, lengths, BOS, EOS, 6)
    assert net.training
    net.eval()
    for i, row in enumerate(made):
        forced = grebe.tensor([[BOS, *row]])
        best = net(source[i : i + 1], lengths[i : i + 1], forced).argmax(-1)[0].tolist()
        assert best[: len(row)] == row
        assert len(row) == 6 or best[-1] == EOS
        one = (source[i : i + 1], lengths[i : i + 1], BOS, EOS, 6)
        assert net.beam_search(*one, beam_size=1) == row
    assert net.greedy(source, lengths, BOS, EOS, 0) == [[]] * 4


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("attention", [False, True])
def test_wide_beam_finds_the_best_of_all_sentences(attention: bool, alpha: float) -> None:
    net = Seq2Seq(5, 4, 6, 9, 2, 0.0, attention).eval()
    with grebe.no_grad():
        net.decoder.linear.weight.mul_(4)
    source, lengths, steps = grebe.tensor([[3, 4, 3]]), grebe.tensor([3]), 3
    scores = {}
    for row in itertools.product(range(4), repeat=steps):
        cut = row[: row.index(EOS) + 1] if EOS in row else row
        logits = net(source, lengths, grebe.tensor([[BOS, *cut[:-1]]]))[0]
        log_p = F.log_softmax(logits, -1).detach().numpy()[np.arange(len(cut)), list(cut)].sum()
        scores[cut] = log_p / len(cut) ** alpha
    best = max(scores, key=scores.__getitem__)
    found = net.beam_search(source, lengths, BOS, EOS, steps, beam_size=4**steps, alpha=alpha)
    assert found == [token for token in best if token != EOS]


@pytest.mark.parametrize("attention", [False, True])
def test_translation_is_learned(attention: bool) -> None:
    """Sentences are reversed; EOS ends them."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 8, n).tolist() for n in rng.integers(1, 4, 60)]
    source = grebe.tensor([row + [EOS] + [PAD] * (3 - len(row)) for row in rows])
    target = grebe.tensor([[BOS, *row[::-1], EOS] + [PAD] * (3 - len(row)) for row in rows])
    lengths = grebe.tensor([len(row) + 1 for row in rows])
    net = Seq2Seq(8, 8, 16, 32, 1, 0.0, attention)
    optimizer = optim.Adam(net.parameters(), lr=0.01)
    for _ in range(100):
        logits = net(source, lengths, target[:, :-1])
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1)
        optimizer.step()
    made = net.greedy(source, lengths, BOS, EOS, 6)
    assert np.mean([a == b[::-1] for a, b in zip(made, rows, strict=True)]) > 0.9


def test_errors() -> None:
    net = _net(True)
    source, target = grebe.tensor([[3, 4]]), grebe.tensor([[BOS]])
    with pytest.raises(ValueError, match="lengths must be from 1 to 2"):
        net(source, grebe.tensor([0]), target)
    with pytest.raises(IndexError):
        net(grebe.tensor([[8, 4]]), grebe.tensor([2]), target)
    with pytest.raises(ValueError, match="beam_size of at least 1"):
        net.beam_search(source, grebe.tensor([2]), BOS, EOS, 3, beam_size=0)
    with pytest.raises(ValueError, match="one sentence"):
        net.beam_search(grebe.tensor([[3], [4]]), grebe.tensor([1, 1]), BOS, EOS, 3)
    state = _net().start(source, grebe.tensor([2]))
    with pytest.raises(ValueError, match="its own init_state"):
        net.decoder(target, state)


# ---- Transformer ----


def transformer(**options: Any) -> TransformerSeq2Seq:
    return TransformerSeq2Seq(8, 7, 12, 16, 3, 2, **{"dropout": 0.0, "max_len": 9, **options})


def test_transformer_steps_are_teacher_forcing() -> None:
    net = transformer(dropout=0.3).eval()
    source, lengths = grebe.randint(3, 8, (4, 5)), grebe.tensor([5, 1, 4, 3])
    target = grebe.randint(3, 7, (4, 6))
    whole = net(source, lengths, target).detach()
    with grebe.no_grad():
        state = net.start(source, lengths)
        parts = []
        for part in (target[:, :1], target[:, 1:4], target[:, 4:]):
            logits, state = net.step(part, state)
            parts.append(logits)
    assert np.allclose(grebe.cat(parts, 1), whole, atol=1e-5)
    longer = grebe.cat([source, grebe.randint(0, 8, (4, 2))], 1)
    assert np.allclose(net(longer, lengths, target).detach(), whole, atol=1e-5)
    for i, row in enumerate(net.greedy(source, lengths, BOS, EOS, 6)):
        one = (source[i : i + 1], lengths[i : i + 1], BOS, EOS, 6)
        assert net.beam_search(*one, beam_size=1) == row


def test_transformer_beam_keeps_states_apart() -> None:
    net = transformer().eval()
    with grebe.no_grad():
        net.linear.weight.mul_(4)
    source, lengths = grebe.tensor([[3, 4, 3]]), grebe.tensor([3])
    with grebe.no_grad():
        state = net.start(source, lengths).select(grebe.tensor([0, 0]))
        _, state = net.step(grebe.tensor([[1], [1]]), state)
        logits, state = net.step(grebe.tensor([[3], [4]]), state)
        logits, _ = net.step(grebe.tensor([[5], [5]]), state.select(grebe.tensor([1, 0])))
        expected = net(source, lengths, grebe.tensor([[1, 4, 5]]))[0, -1]
    assert np.allclose(logits[0, -1], expected, atol=1e-5)


def test_transformer_learns_to_turn_round() -> None:
    net = TransformerSeq2Seq(8, 8, 32, 32, 4, 2, 0.0, 9)
    optimizer = optim.Adam(net.parameters(), lr=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(120):
        x = rng.integers(3, 8, (32, 4))
        y = np.concatenate([np.full((32, 1), BOS), x[:, ::-1], np.full((32, 1), EOS)], 1)
        logits = net(
            grebe.from_numpy(x), grebe.tensor([4] * 32), grebe.from_numpy(y[:, :-1].copy())
        )
        loss = F.cross_entropy(logits.flatten(0, 1), grebe.from_numpy(y[:, 1:].copy()).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    source, lengths = grebe.tensor([[3, 4, 5, 6], [7, 3, 3, 4]]), grebe.tensor([4, 4])
    assert net.greedy(source, lengths, BOS, EOS, 8) == [[6, 5, 4, 3], [4, 3, 3, 7]]
