"""Texts as numbers: tokens, vocabularies, windows of a corpus, sentence pairs. D2L 9.2, 9.3, 10.5.

Token numbers are NumPy int64 arrays until they become batches: a text is prepared once, and then
only gathered from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._cpu import wrap
from .nn.modules.checks import whole
from .tensor import Tensor
from .utils.data.dataset import Batch, Dataset, row_numbers

__all__ = [
    "BOS", "EOS", "PAD", "UNK", "RandomPartition", "SequentialPartition", "Vocab", "Windows",
    "clean", "clean_sentence", "encode_sentences", "ngrams", "tokenize", "tokenize_pairs",
    "truncate_pad",
]  # fmt: skip

UNK, PAD, BOS, EOS = "<unk>", "<pad>", "<bos>", "<eos>"


# ---- tokens ----


def _text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}: text must be a str, got {type(text).__name__}")
    return text


def clean(text: str) -> str:
    """`text` in lower case, with one space for all between two runs of Latin letters. D2L 9.2.1."""
    return re.sub("[^A-Za-z]+", " ", _text("clean", text)).lower()


def clean_sentence(text: str) -> str:
    """`text` in lower case, with plain spaces, also before each of , . ! and ?. D2L 10.5.1."""
    spaced = re.sub(r"(?<=\S)([,.!?])", r" \1", _text("clean_sentence", text).lower())
    return " ".join(spaced.split())


def tokenize(text: str, unit: str = "char") -> list[str]:
    """The characters of `text`, or its words as parted by white space. D2L 9.2.2.

    Raises:
        ValueError: a unit other than 'char' and 'word'.
    """
    if unit not in ("char", "word"):
        raise ValueError(f"tokenize: unit must be 'char' or 'word', got {unit!r}")
    return list(_text("tokenize", text)) if unit == "char" else _text("tokenize", text).split()


def tokenize_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """The words of sentence pairs after `clean_sentence`: sources and targets. D2L 10.5.2."""
    both = [[clean_sentence(sentence).split() for sentence in pair] for pair in pairs]
    if any(len(pair) != 2 for pair in both):
        raise ValueError("tokenize_pairs: each pair must hold two sentences")
    return [source for source, _ in both], [target for _, target in both]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens, one starting at each token that has n - 1 behind it. D2L 9.2.4."""
    n = whole("ngrams", "n", n)
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


class Vocab:
    """Numbers for tokens. D2L section 9.2.3.

    The order is `<unk>`, then the reserved tokens, then the others from frequent to rare, equally
    frequent ones in the order of their characters.

    Args:
        tokens: the tokens of a text, or a list of token lists.
        min_freq: rarer tokens become `<unk>`.
        reserved_tokens: such as `<pad>`; they have a number without being in the text.

    `vocab[token]` is a number, that of `<unk>` for an unknown token; `vocab[tokens]` is a list, of
    lists for token lists; `len(vocab)` counts; `token in vocab` tells whether it is known.

    Attributes:
        token_freqs: known tokens of the text with their counts, frequent ones first.
        idx_to_token: the list of tokens by number.
    """

    def __init__(
        self, tokens: Iterable[Any] = (), min_freq: int = 0, reserved_tokens: Iterable[str] = ()
    ) -> None:
        min_freq = whole("Vocab", "min_freq", min_freq, 0)
        counts = Counter(_flat(tokens))
        first = list(dict.fromkeys((UNK, *_flat(reserved_tokens))))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        self.token_freqs = [(token, count) for token, count in ordered if count >= min_freq]
        taken = set(first)
        self._number(first + [token for token, _ in self.token_freqs if token not in taken])

    @classmethod
    def from_list(cls, idx_to_token: Iterable[str]) -> Vocab:
        """The vocabulary with this `idx_to_token`; ValueError unless it fits one."""
        names = list(_flat(idx_to_token))
        if not names or names[0] != UNK or len(set(names)) < len(names):
            raise ValueError(f"Vocab: expected different tokens that start with {UNK!r}")
        vocab = cls()
        vocab._number(names)
        return vocab

    def _number(self, tokens: list[str]) -> None:
        self.idx_to_token = tokens
        self.token_to_idx = {token: index for index, token in enumerate(tokens)}

    @property
    def unk(self) -> int:
        """The number of `<unk>`."""
        return self.token_to_idx[UNK]

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __contains__(self, token: object) -> bool:
        return token in self.token_to_idx

    def __getitem__(self, tokens: Any) -> Any:
        if isinstance(tokens, str):
            return self.token_to_idx.get(tokens, self.unk)
        if not isinstance(tokens, (list, tuple)):
            raise TypeError(f"Vocab: expected a token or a list, got {type(tokens).__name__}")
        return [self[token] for token in tokens]

    def encode(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """Token numbers [n]; fast enough for whole books."""
        known, unk = self.token_to_idx.get, self.unk
        return np.fromiter((known(token, unk) for token in tokens), np.int64)

    def to_tokens(self, indices: Any) -> Any:
        """The token of a number, or a list for a list, an array or a tensor.

        Raises:
            TypeError: something else than whole numbers.
            IndexError: no token has that number.
        """
        array = np.asarray(indices.array if isinstance(indices, Tensor) else indices)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"Vocab: expected whole numbers, got {array.dtype}")
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < len(self):
            raise IndexError(
                f"Vocab: expected numbers from 0 to {len(self) - 1}, got from {array.min()} to "
                f"{array.max()}"
            )
        return self._names(array.tolist())

    def _names(self, indices: Any) -> Any:
        if isinstance(indices, list):
            return [self._names(index) for index in indices]
        return self.idx_to_token[indices]

    def __repr__(self) -> str:
        return f"Vocab({len(self)} tokens)"


def _flat(tokens: Iterable[Any]) -> Iterator[str]:
    """Tokens of a list, or of a list of lists; a bare str would silently be its characters."""
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise TypeError(f"Vocab: expected lists of tokens, got {type(tokens).__name__}")
    for token in tokens:
        if isinstance(token, str):
            yield token
        elif isinstance(token, (list, tuple)):
            yield from _flat(token)
        else:
            raise TypeError(f"Vocab: tokens must be str, got {type(token).__name__}")


# ---- windows of a corpus ----


def _corpus(name: str, corpus: Any, num_steps: int) -> NDArray[np.int64]:
    array = np.asarray(corpus.array if isinstance(corpus, Tensor) else corpus)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: corpus must be whole numbers [n], got {array.dtype} {list(array.shape)}"
        )
    if len(array) <= num_steps:
        raise ValueError(
            f"{name}: expected more than num_steps={num_steps} tokens, got {len(array)}"
        )
    return array.astype(np.int64)


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """All windows of a corpus, overlapping: sample i is tokens i ... i+T-1 and i+1 ... i+T.

    Args:
        corpus: token numbers [n], n > num_steps.
        num_steps: T.

    Samples are pairs of int64 tensors [T], batches [B, T]. D2L section 9.2.6.
    """

    def __init__(self, corpus: Any, num_steps: int) -> None:
        self.num_steps = whole("Windows", "num_steps", num_steps)
        self.corpus = _corpus("Windows", corpus, self.num_steps)
        self._view = np.lib.stride_tricks.sliding_window_view(self.corpus, self.num_steps + 1)

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"Windows: index {index} is out of range for {n} windows")
        tokens = self._view[index].copy()
        return wrap(tokens[:-1]), wrap(tokens[1:])

    def __getbatch__(self, indices: Batch) -> list[Tensor]:
        tokens = self._view[row_numbers(indices, len(self), "Windows")]
        return [wrap(tokens[:, :-1].copy()), wrap(tokens[:, 1:].copy())]


class _Partition:
    """Batches (X, Y) of int64 tensors [B, T]; Y is X one token later."""

    def __init__(self, corpus: Any, batch_size: int, num_steps: int, seed: Any = None) -> None:
        name = type(self).__name__
        self.batch_size = whole(name, "batch_size", batch_size)
        self.num_steps = whole(name, "num_steps", num_steps)
        self.corpus = _corpus(name, corpus, self.num_steps)
        self.rng = np.random.default_rng(seed)
        if not len(self):
            raise ValueError(
                f"{name}: {len(self.corpus)} tokens are too few for one batch of {batch_size} "
                f"windows of {num_steps} steps"
            )

    def __len__(self) -> int:
        raise NotImplementedError

    def _offset(self) -> int:
        """A random start: the windows' borders lie elsewhere in each pass."""
        spare = len(self.corpus) - 1 - len(self) * self.batch_size * self.num_steps
        return int(self.rng.integers(0, min(spare, self.num_steps - 1) + 1))


class RandomPartition(_Partition):
    """A corpus cut into windows that do not overlap, in random order. D2L section 9.2.6.

    Each pass starts at a random one of the first tokens and has its own order; what does not fill
    a batch is left out.

    Args:
        corpus: token numbers [n].
        batch_size: B.
        num_steps: T.
        seed: a number, a numpy Generator, or None for different passes every time.

    Yields pairs of int64 tensors [B, T].

    Raises:
        ValueError: too few tokens for one batch.
    """

    def __len__(self) -> int:
        return (len(self.corpus) - 1) // self.num_steps // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        windows = Windows(self.corpus[self._offset() :], self.num_steps)
        starts = self.rng.permutation((len(windows.corpus) - 1) // self.num_steps) * self.num_steps
        for i in range(0, len(self) * self.batch_size, self.batch_size):
            x, y = windows.__getbatch__(starts[i : i + self.batch_size])
            yield x, y


class SequentialPartition(_Partition):
    """A corpus cut into B long rows, read T tokens at a time: the state may be carried on.

    Row b of a batch continues row b of the one before. Each pass starts at a random one of the
    first tokens. Arguments and errors as for `RandomPartition`. D2L 9.7 and its first edition, 8.3.
    """

    def __len__(self) -> int:
        return (len(self.corpus) - 1) // self.batch_size // self.num_steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, length = self._offset(), len(self) * self.num_steps
        stop = start + length * self.batch_size
        x = self.corpus[start:stop].reshape(self.batch_size, length)
        y = self.corpus[start + 1 : stop + 1].reshape(self.batch_size, length)
        for i in range(0, length, self.num_steps):
            part = slice(i, i + self.num_steps)
            yield wrap(x[:, part].copy()), wrap(y[:, part].copy())


# ---- sentences ----


def truncate_pad(tokens: Sequence[Any], num_steps: int, padding: Any) -> list[Any]:
    """`tokens` cut to `num_steps`, or filled up with `padding`. D2L section 10.5.3."""
    num_steps = whole("truncate_pad", "num_steps", num_steps, 0)
    return [*tokens[:num_steps], *[padding] * (num_steps - len(tokens))]


def encode_sentences(
    sentences: Sequence[Sequence[str]],
    vocab: Vocab,
    num_steps: int,
    bos: bool = False,
    eos: bool = True,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sentences as rows of one length, and how many tokens of each are no padding.

    Args:
        sentences: token lists.
        vocab: with `<pad>`, and where asked for `<bos>` and `<eos>`, among its tokens.
        num_steps: T. Longer sentences are cut after T tokens, in which case they have no `<eos>`.
        bos: put `<bos>` before each.
        eos: put `<eos>` behind each.

    Returns:
        Token numbers [N, T] and lengths [N], both int64.

    Raises:
        ValueError: a special token is missing, or a sentence would have no token at all.
    """
    num_steps = whole("encode_sentences", "num_steps", num_steps)
    wanted = [PAD, *([BOS] if bos else []), *([EOS] if eos else [])]
    missing = [token for token in wanted if token not in vocab]
    if missing:
        raise ValueError(f"encode_sentences: the vocabulary lacks {', '.join(missing)}")
    before, after = [BOS] * bos, [EOS] * eos
    full = [[*before, *sentence, *after] for sentence in sentences]
    if not all(full):
        raise ValueError("encode_sentences: a sentence without tokens needs bos or eos")
    rows = [vocab[truncate_pad(tokens, num_steps, PAD)] for tokens in full]
    lengths = [min(len(tokens), num_steps) for tokens in full]
    return np.array(rows, np.int64).reshape(-1, num_steps), np.array(lengths, np.int64)
