"""Texts made into BERT's two tasks: gaps to fill, and sentences that follow. D2L section 15.9."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .nn.modules.checks import whole
from .text import PAD, UNK, Vocab

__all__ = [
    "CLS",
    "MASK",
    "SEP",
    "SPECIAL",
    "SentencePairs",
    "mask_tokens",
    "read_sentences",
    "words_of",
]

CLS, SEP, MASK = "<cls>", "<sep>", "<mask>"
SPECIAL = [PAD, CLS, SEP, MASK]  # what a vocabulary needs beside <unk>
Paragraph = list[list[str]]


def words_of(text: str) -> list[str]:
    """Words, numbers, punctuation and special tokens of a text in lower case."""
    return re.findall(r"<(?:mask|unk)>|[^\W_]+(?:'[^\W_]+)?|[.,!?;:]", text.lower())


def read_sentences(text: str) -> list[Paragraph]:
    """The sentences of each paragraph with at least two, as words.

    Paragraphs end at empty lines, sentences at . ! or ? before white space.
    """
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        parts = re.split(r"(?<=[.!?])\s+", " ".join(block.split()))
        sentences = [words for words in map(words_of, parts) if words]
        if len(sentences) > 1:
            paragraphs.append(sentences)
    return paragraphs


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences as rows `<cls> a <sep> b <sep>`, half of them one after the other.

    Attributes:
        tokens: int64 [N, T], padded.
        segments: int64 [N, T], 1 from the second sentence on.
        lengths: int64 [N].
        follows: bool [N], whether b follows a in its paragraph.
    """

    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    lengths: NDArray[np.int64]
    follows: NDArray[np.bool_]

    @classmethod
    def draw(
        cls,
        paragraphs: Sequence[Paragraph],
        vocab: Vocab,
        max_len: int,
        rng: np.random.Generator,
    ) -> SentencePairs:
        """A pair for each sentence that has a next one, with that or any other sentence behind.

        Pairs that are too long lose the last words of the longer sentence; those without a known
        word are left out.

        Args:
            paragraphs: as from `read_sentences`.
            vocab: with `SPECIAL` among its tokens.
            max_len: T, at least 5.
            rng: of the draws.

        Raises:
            ValueError: no paragraph of two sentences, a special token is missing, or max_len < 5.
        """
        max_len = whole("SentencePairs", "max_len", max_len, 5)
        missing = [token for token in SPECIAL if token not in vocab]
        if missing:
            raise ValueError(f"SentencePairs: the vocabulary lacks {', '.join(missing)}")
        every = [sentence for paragraph in paragraphs for sentence in paragraph]
        firsts = [pair for p in paragraphs for pair in itertools.pairwise(p)]
        if not firsts:
            raise ValueError("SentencePairs: expected a paragraph of at least two sentences")
        follows = rng.random(len(firsts)) < 0.5
        others = rng.integers(0, len(every), len(firsts))
        rows = np.full((len(firsts), max_len), vocab[PAD], np.int64)
        segments = np.zeros_like(rows)
        lengths = np.empty(len(firsts), np.int64)
        for i, (first, following) in enumerate(firsts):
            second = following if follows[i] else every[others[i]]
            follows[i] = second is following
            a, b = _cut(first, second, max_len - 3)
            line = [CLS, *a, SEP, *b, SEP]
            lengths[i] = n = len(line)
            rows[i, :n] = vocab[line]
            segments[i, len(a) + 2 : n] = 1
        known = ~np.isin(rows, vocab[[UNK, *SPECIAL]]).all(1)
        if not known.any():
            raise ValueError("SentencePairs: the vocabulary knows no word of the text")
        return cls(rows[known], segments[known], lengths[known], follows[known])

    def __len__(self) -> int:
        return len(self.tokens)


def _cut(a: list[str], b: list[str], room: int) -> tuple[list[str], list[str]]:
    """Both sentences without last words of the longer one, `room` words in all at most."""
    excess = max(0, len(a) + len(b) - room)
    from_a = min(excess, max(0, len(a) - len(b)))
    from_b = min(excess - from_a, max(0, len(b) - len(a)))
    rest = excess - from_a - from_b
    from_a, from_b = from_a + rest // 2, from_b + rest - rest // 2
    return a[: len(a) - from_a], b[: len(b) - from_b]


def mask_tokens(
    tokens: NDArray[np.int64], vocab: Vocab, rng: np.random.Generator, share: float = 0.15
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Hide a share of the words of each row, at least one if it has one. D2L section 15.9.2.

    Of the hidden words 80% become `<mask>`, 10% a random word and 10% stay as they are. Special
    tokens and `<unk>` are never hidden.

    Args:
        tokens: [B, T].
        vocab: with `SPECIAL` among its tokens.
        rng: of the draws.
        share: of the words.

    Returns:
        Tokens to read [B, T]; where words are hidden, as numbers [M] into all B T tokens, rising;
        and the words there [M].
    """
    special = np.array(vocab[[UNK, *SPECIAL]])
    words = ~np.isin(tokens, special)
    counts = np.maximum(1, np.rint(words.sum(1) * share)).astype(np.int64)
    order = np.where(words, rng.random(tokens.shape), 2.0).argsort(1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(tokens.shape[1])[None], 1)
    positions = np.flatnonzero((ranks < counts[:, None]) & words)
    hidden = tokens.reshape(-1)[positions]
    draw = rng.random(len(positions))
    usual = np.setdiff1d(np.arange(len(vocab)), special)
    random = rng.choice(usual, len(positions)) if len(usual) else hidden
    shown = np.where(draw < 0.8, vocab[MASK], np.where(draw < 0.9, random, hidden))
    read = tokens.copy()
    read.reshape(-1)[positions] = shown
    return read, positions, hidden
