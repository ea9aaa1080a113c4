"""Tokens, vocabularies, windows, sentences, text files; perplexity and BLEU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grebe
from grebe import metrics, text
from grebe.datasets import read_pairs, read_prose, read_text, read_time_machine
from grebe.text import RandomPartition, SequentialPartition, Vocab, Windows
from grebe.utils.data import DataLoader, default_collate

# ---- tokens ----


def test_cleaning_and_tokens() -> None:
    assert (
        text.clean("The Time-Machine, by\n H. G. Wells [1898]") == "the time machine by h g wells "
    )
    assert text.clean_sentence("Va\u202f!  J'ai\xa0faim, moi.") == "va ! j'ai faim , moi ."
    assert text.clean_sentence("?!") == "? !"
    assert text.tokenize("a b") == ["a", " ", "b"]
    assert text.tokenize(" one  two\n", "word") == ["one", "two"]
    assert text.ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert text.ngrams(["a"], 2) == []
    pairs = [("Go.", "Va !"), ("I lost.", "J'ai perdu.")]
    assert text.tokenize_pairs(pairs) == (
        [["go", "."], ["i", "lost", "."]],
        [["va", "!"], ["j'ai", "perdu", "."]],
    )


def test_vocab() -> None:
    vocab = Vocab("b b a c c c".split(), min_freq=2, reserved_tokens=["<pad>"])
    assert vocab.idx_to_token == ["<unk>", "<pad>", "c", "b"]
    assert vocab.token_freqs == [("c", 3), ("b", 2)]
    assert len(vocab) == 4
    assert vocab["c"] == 2
    assert vocab["a"] == vocab.unk == 0
    assert vocab[["b", ["c", "?"]]] == [3, [2, 0]]
    assert "b" in vocab
    assert "a" not in vocab
    assert vocab.encode(["b", "a"]).tolist() == [3, 0]
    assert vocab.to_tokens(2) == "c"
    assert vocab.to_tokens([[0], [3]]) == [["<unk>"], ["b"]]
    assert vocab.to_tokens(grebe.tensor([3, 2])) == ["b", "c"]
    assert vocab.to_tokens([]) == []
    again = Vocab.from_list(vocab.idx_to_token)
    assert again["b"] == 3
    assert len(Vocab([["x", "y"], ["x"]])) == 3
    assert repr(again) == "Vocab(4 tokens)"


@given(st.text(max_size=60))
def test_vocab_goes_back_and_forth(content: str) -> None:
    tokens = text.tokenize(content)
    vocab = Vocab(tokens)
    assert vocab.to_tokens(vocab[tokens]) == tokens
    assert vocab.encode(tokens).tolist() == vocab[tokens]


# ---- windows ----

SIZES = {"n": st.integers(2, 200), "batch": st.integers(1, 7), "steps": st.integers(1, 9)}


@given(**SIZES)
def test_random_partition(n: int, batch: int, steps: int) -> None:
    count = (n - 1) // steps // batch
    if not count:
        with pytest.raises(ValueError, match="tokens"):
            RandomPartition(np.arange(n), batch, steps)
        return
    partition = RandomPartition(np.arange(n), batch, steps, seed=3)
    for _ in range(2):
        batches = list(partition)
        assert len(batches) == len(partition) == count
        seen = np.concatenate([x.numpy() for x, _ in batches])
        assert all(np.array_equal(y.numpy(), x.numpy() + 1) for x, y in batches)
        assert seen.shape == (count * batch, steps)
        assert len(np.unique(seen)) == seen.size
        assert len({int(row[0]) % steps for row in seen}) == 1
        assert seen.max() < n - 1
    first, second = (next(iter(RandomPartition(np.arange(n), batch, steps, 3))) for _ in "ab")
    assert first[0].tolist() == second[0].tolist()


@given(**SIZES)
def test_sequential_partition(n: int, batch: int, steps: int) -> None:
    if not (n - 1) // batch // steps:
        with pytest.raises(ValueError, match="tokens"):
            SequentialPartition(np.arange(n), batch, steps)
        return
    partition = SequentialPartition(grebe.arange(n), batch, steps, np.random.default_rng(n))
    batches = list(partition)
    assert len(batches) == len(partition) == (n - 1) // batch // steps
    before = None
    for x, y in batches:
        assert x.shape == y.shape == (batch, steps)
        assert np.array_equal(y.numpy(), x.numpy() + 1)
        if before is not None:
            assert np.array_equal(x.numpy()[:, 0], before.numpy()[:, -1] + 1)
        before = x
    assert before is not None
    assert before.numpy().max() < n - 1


def test_windows_are_a_dataset() -> None:
    windows = Windows(list(range(10)), 4)
    assert len(windows) == 6
    x, y = windows[-1]
    assert (x.tolist(), y.tolist()) == ([5, 6, 7, 8], [6, 7, 8, 9])
    expected = default_collate([windows[i] for i in (4, 0, -1)])
    for a, b in zip(windows.__getbatch__([4, 0, -1]), expected, strict=True):
        assert a.tolist() == b.tolist()
        assert a.dtype == b.dtype
    batches = list(DataLoader(windows, batch_size=4, shuffle=True))
    assert sorted(x[0] for batch in batches for x in batch[0].tolist()) == list(range(6))
    with pytest.raises(IndexError, match="6 is out of range for 6"):
        windows[6]


# ---- sentences ----


def test_sentences() -> None:
    assert text.truncate_pad([1, 2, 3], 2, 0) == [1, 2]
    assert text.truncate_pad([1], 3, 0) == [1, 0, 0]
    vocab = Vocab([["a", "b"]], reserved_tokens=["<pad>", "<bos>", "<eos>"])
    rows, lengths = text.encode_sentences([["a"], ["b", "a", "b", "?"], []], vocab, 4)
    assert vocab.to_tokens(rows) == [
        ["a", "<eos>", "<pad>", "<pad>"],
        ["b", "a", "b", "<unk>"],
        ["<eos>", "<pad>", "<pad>", "<pad>"],
    ]
    assert lengths.tolist() == [2, 4, 1]
    rows, _ = text.encode_sentences([["a"]], vocab, 3, bos=True, eos=False)
    assert vocab.to_tokens(rows) == [["<bos>", "a", "<pad>"]]
    assert text.encode_sentences([], vocab, 3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: text.clean(3), TypeError, "clean: text must be a str, got int"),
        (lambda: text.tokenize("a", "line"), ValueError, "'char' or 'word', got 'line'"),
        (lambda: text.tokenize_pairs([("a",)]), ValueError, "two sentences"),
        (lambda: text.ngrams(["a"], 0), ValueError, "at least 1, got 0"),
        (lambda: Vocab("abc"), TypeError, "lists of tokens, got str"),
        (lambda: Vocab([1]), TypeError, "tokens must be str, got int"),
        (lambda: Vocab([], -1), ValueError, "min_freq must be at least 0"),
        (lambda: Vocab.from_list(["a"]), ValueError, "start with '<unk>'"),
        (lambda: Vocab.from_list(["<unk>", "a", "a"]), ValueError, "different tokens"),
        (lambda: Vocab()[3], TypeError, "token or a list, got int"),
        (lambda: Vocab().to_tokens(1), IndexError, "0 to 0, got from 1 to 1"),
        (lambda: Vocab().to_tokens("a"), TypeError, "whole numbers"),
        (lambda: Windows([1, 2], 2), ValueError, "more than num_steps=2 tokens, got 2"),
        (lambda: Windows([[1, 2]], 1), ValueError, r"whole numbers \[n\]"),
        (lambda: Windows([0.5, 2], 1), ValueError, r"whole numbers \[n\]"),
        (lambda: RandomPartition([1, 2, 3], 0, 1), ValueError, "batch_size"),
        (lambda: SequentialPartition([1, 2, 3], 9, 1), ValueError, "3 tokens are too few"),
        (lambda: text.truncate_pad([], -1, 0), ValueError, "num_steps"),
        (lambda: text.encode_sentences([["a"]], Vocab(), 3), ValueError, "lacks <pad>, <eos>"),
        (
            lambda: text.encode_sentences([[]], Vocab(reserved_tokens=["<pad>"]), 3, eos=False),
            ValueError,
            "without tokens",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- files ----


def test_prose() -> None:
    prose = read_prose()
    assert len(prose) > 200_000
    assert "Assert statements are a convenient way" in prose
    assert "::=" not in prose[:5000]
    share = sum(c.isalpha() or c.isspace() for c in prose) / len(prose)
    assert share > 0.9


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "timemachine.txt"
    path.write_bytes("\ufeffone\r\ntwo".encode())
    assert read_text(path) == read_time_machine(tmp_path) == "one\ntwo"
    path.write_text("Go.\tVa !\tCC-BY\n\nHi.\tSalut.\n")
    assert read_pairs(path) == [("Go.", "Va !"), ("Hi.", "Salut.")]
    assert read_pairs(path, 1) == [("Go.", "Va !")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'.*p.tsv' holds no text"),
        (b" \n", "holds no text"),
        (b"ab\xff", "no UTF-8 text: .* at byte 2"),
        (b"a\tb\nalone\n", "line 2: expected two sentences with a tab between, got 'alone'"),
        (b"a\t\tc\n", "line 1"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"timemachine\.txt'; the book's copy is"):
        read_time_machine(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


# ---- metrics ----


def test_perplexity() -> None:
    assert metrics.perplexity(np.zeros((2, 3, 28)), np.ones((2, 3), int)) == pytest.approx(28)
    sure = grebe.tensor([[0.0, 1e4], [1e4, 0.0]])
    assert metrics.perplexity(sure, grebe.tensor([1, 0])) == 1
    assert metrics.perplexity(sure, [0, 0]) == math.inf
    assert metrics.perplexity(sure, [0, 0], ignore_index=0) != 0
    assert math.isnan(metrics.perplexity(sure, [0, 0], ignore_index=0))
    x, y = np.random.default_rng(0).standard_normal((7, 5)), np.array([0, 4, 2, -1, 1, -1, 3])
    loss = grebe.nn.functional.cross_entropy(
        grebe.from_numpy(x), grebe.from_numpy(y), ignore_index=-1
    )
    assert metrics.perplexity(x, y, -1) == pytest.approx(math.exp(loss.item()))
    for wrong in ([0], [0, 2], [0.0, 1.0]):
        with pytest.raises(ValueError, match="perplexity"):
            metrics.perplexity(sure, wrong)


def test_bleu() -> None:
    assert metrics.bleu("va !", "va !", 2) == 1
    assert metrics.bleu("il est calme .", "il est calme .", 4) == 1
    assert metrics.bleu("a b", "c d") == 0
    assert metrics.bleu("", "a") == 0
    assert metrics.bleu([], []) == 1
    # The book's example: label A B C D E F, prediction A B B C D; p1 = 4/5, p2 = 3/4, p3 = 1/3.
    expected = math.exp(1 - 6 / 5) * 0.8**0.5 * 0.75**0.25 * (1 / 3) ** 0.125
    assert metrics.bleu(list("ABBCD"), list("ABCDEF"), 3) == pytest.approx(expected)
    assert metrics.bleu("a a a", "a b", 1) == pytest.approx((1 / 3) ** 0.5)
    with pytest.raises(ValueError, match="k must be"):
        metrics.bleu("a", "a", 0)
    with pytest.raises(TypeError, match="label"):
        metrics.bleu("a", 3)  # type: ignore[arg-type]


WORDS = st.lists(st.sampled_from("ab"), max_size=6)


@settings(max_examples=50)
@given(WORDS, WORDS)
def test_bleu_is_a_share(prediction: list[str], label: list[str]) -> None:
    score = metrics.bleu(prediction, label, 2)
    assert 0 <= score <= 1
    assert metrics.bleu(label, label) == 1
