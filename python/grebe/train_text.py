"""Training on texts from the command line: a language model of characters, and a translator.

The first nine tenths of a text, or nine tenths of the different source sentences, are for training;
what is reported as perplexity or BLEU is of the rest.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ._cpu import wrap
from .datasets import read_pairs, read_prose, read_text
from .metrics import bleu
from .models import RNNLM, Seq2Seq
from .models.sampling import evaluation
from .nn.functional import cross_entropy
from .runner import BaseConfig, BaseRun, Report, UsageError, make_config, make_plan, one_line
from .tensor import Tensor
from .text import (
    BOS,
    EOS,
    PAD,
    SequentialPartition,
    Vocab,
    clean,
    encode_sentences,
    tokenize,
    tokenize_pairs,
)

_EVALUATION_ROWS = 16  # the held-out text is read in so many rows at once
_EVALUATION_STEPS = 256
_TRANSLATED_AT_ONCE = 256


@dataclass(frozen=True)
class CharLMConfig(BaseConfig):
    """A language model of characters."""

    cell: str = "gru"
    hidden: int = 256
    layers: int = 1
    dropout: float = 0.0
    num_steps: int = 35
    clip: float = 1.0
    raw: bool = False


@dataclass(frozen=True)
class Seq2SeqConfig(BaseConfig):
    """A translator of short sentences."""

    attention: bool = False
    bidirectional: bool = False
    embed: int = 256
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.2
    num_steps: int = 12
    clip: float = 1.0
    min_freq: int = 2
    max_pairs: int | None = None


def make_run(options: Mapping[str, Any]) -> BaseRun:
    """The run that command line options ask for; UsageError if it cannot be."""
    try:
        if options["model"] == "char-lm":
            return CharLMRun(make_config(CharLMConfig, options))
        return Seq2SeqRun(make_config(Seq2SeqConfig, options))
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(one_line(error)) from None


# ---- language model ----


class CharLMRun(BaseRun):
    """The training of a language model; its state is carried from window to window."""

    unit: ClassVar[str] = "tokens"
    curves: ClassVar[dict[str, tuple[str, str]]] = {
        "train_perplexity": ("C1--", "training perplexity"),
        "test_perplexity": ("C2-", "held-out perplexity"),
    }
    partition: ClassVar[Any] = SequentialPartition
    recipe: ClassVar[tuple[str, float]] = ("adam", 2e-3)

    def __init__(self, config: Any) -> None:
        """Load everything; raises UsageError or ValueError before anything is trained."""
        self.check(config)
        name = config.data or "prose"
        content = read_prose() if name == "prose" else text_of_file(name)
        tokens = tokenize(content if config.raw else clean(content))
        cut = len(tokens) * 9 // 10
        self.vocab = Vocab(tokens[:cut])
        self.held_out = self.vocab.encode(tokens[cut:])
        plan = make_plan(config, name, self.recipe, 10, 32)
        try:
            self.batches = self.partition(
                self.vocab.encode(tokens[:cut]), plan.batch_size, config.num_steps, config.seed
            )
        except ValueError:
            raise UsageError(
                f"--data {name}: its {cut:,} characters for training are too few for batches of "
                f"{plan.batch_size} windows of {config.num_steps}; try a smaller --batch-size"
            ) from None
        if len(self.held_out) < 2:
            raise UsageError(f"--data {name}: no characters are left for the test")
        self.net_options = self.options_of_net(config)
        self.raw, self.prompt = config.raw, _first_words(tokens[cut:])
        super().__init__(config, plan, name, self.build)
        self.step.clip = config.clip
        self.history.update(train_perplexity=[], test_perplexity=[])

    # ---- what depends on the model ----

    def check(self, config: Any) -> None:
        """UsageError for options that do not fit together."""
        if config.dropout and config.layers == 1:
            raise UsageError("--dropout stands between layers: it needs --layers 2 or more")

    def options_of_net(self, config: Any) -> dict[str, Any]:
        """What the network is made from."""
        return {
            "vocab_size": len(self.vocab),
            "num_hiddens": config.hidden,
            "kind": config.cell,
            "num_layers": config.layers,
            "dropout": config.dropout,
        }

    def build(self) -> Any:
        """The network."""
        return RNNLM(**self.net_options)

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        """Of an epoch's batches the loss, and of how many tokens it is the mean."""
        state = None
        for x, y in self.batches:
            with self.step.autocast:
                logits, state = self.net(x, state)
                loss = _token_loss(logits, y)
            state = _detached(state)
            yield loss, y.array.size

    def perplexity(self) -> float:
        """Of the held-out text."""
        return held_out_perplexity(self.net, self.held_out)

    # ---- epochs ----

    def describe(self) -> str:
        return (
            f"{self.batches.corpus.size:,} training and {self.held_out.size:,} test characters, "
            f"{len(self.vocab)} different ones"
        )

    @property
    def size(self) -> int:
        return int(len(self.batches) * self.batches.batch_size * self.batches.num_steps)

    def train(self, report: Report) -> dict[str, float]:
        seen, total = 0, 0.0
        for loss, n in self.losses():
            value = self.step(loss, seen)
            seen += n
            total += value * n
            report(n, loss=total / seen, perplexity=_exp(total / seen))
        return {"loss": total / seen, "train_perplexity": _exp(total / seen)}

    def evaluate(self) -> dict[str, float]:
        return {"test_perplexity": self.perplexity()}

    def headline(self, values: dict[str, float]) -> str:
        return (
            f"loss {values['loss']:.4f}  perplexity {values['train_perplexity']:.3f}  test "
            f"perplexity {values['test_perplexity']:.3f}"
        )

    def sample(self) -> None:
        net: Any = self.net
        tokens = net.generate(self.vocab[list(self.prompt)], 60, 0.5, seed=self.config.seed)
        text = "".join(self.vocab.to_tokens(tokens)).replace("\n", " ")
        print(f"  {self.prompt}|{text}", flush=True)

    def conclude(self) -> None:
        print(f"perplexity of the held-out text: {self.history['test_perplexity'][-1]:.3f}")

    def details(self) -> dict[str, Any]:
        tests = self.history["test_perplexity"]
        return {
            "perplexity": tests[-1] if tests else None,
            "net": self.net_options,
            "vocab": self.vocab.idx_to_token,
            "raw": self.raw,
            "num_steps": self.batches.num_steps,
            "clip": self.step.clip,
        }


def held_out_perplexity(net: Any, corpus: NDArray[np.int64]) -> float:
    """Perplexity of a text of at least 2 tokens, read in up to 16 long rows, the state carried on.

    All tokens count but the first of each row and the few that do not fill a row.
    """
    count = min(_EVALUATION_ROWS, len(corpus) // 2)
    length = len(corpus) // count
    rows = corpus[: count * length].reshape(count, length)
    total, state = 0.0, None
    with evaluation(net):
        for start in range(0, length - 1, _EVALUATION_STEPS):
            stop = min(start + _EVALUATION_STEPS, length - 1)
            logits, state = net(wrap(rows[:, start:stop].copy()), state)
            labels = wrap(rows[:, start + 1 : stop + 1].copy())
            total += float(_token_loss(logits, labels).array) * labels.array.size
    return _exp(total / (count * (length - 1)))


def _token_loss(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Mean loss of logits [B, T, V], which lie in memory as [T, B, V], and labels [B, T]."""
    by_step = logits.transpose(0, 1).flatten(0, 1)
    return cross_entropy(by_step, labels.transpose(0, 1).flatten(), **options)


def _detached(state: Any) -> Any:
    return tuple(t.detach() for t in state) if isinstance(state, tuple) else state.detach()


def _exp(loss: float) -> float:
    """exp, but finite: JSON has no infinity."""
    return math.exp(min(loss, 700.0))


def _first_words(tokens: list[str]) -> str:
    """The first whole words of a text, to show how they are continued."""
    words = "".join(tokens[:200]).split()
    return " ".join(words[1:4])[:40] or "".join(tokens[:1])


def text_of_file(name: str) -> str:
    """Of the file `name`; UsageError if there is none."""
    if not os.path.isfile(name):
        raise UsageError(f"--data: expected prose or a text file, got {name!r}")
    return read_text(name)


# ---- translator ----


class Seq2SeqRun(BaseRun):
    """The training of a translator."""

    unit: ClassVar[str] = "pairs"
    curves: ClassVar[dict[str, tuple[str, str]]] = {
        "loss": ("C0-", "loss"),
        "test_bleu": ("C2-", "held-out BLEU"),
    }
    recipe: ClassVar[tuple[str, float]] = ("adam", 2e-3)

    def __init__(self, config: Any) -> None:
        """Load everything; raises UsageError or ValueError before anything is trained."""
        config = self.checked(config)
        if config.data is None or not os.path.isfile(config.data):
            raise UsageError(
                f"--data: {config.model} needs a file with a sentence, a tab and its translation "
                f"on each line, got {config.data!r}"
            )
        pairs = read_pairs(config.data, config.max_pairs)
        train, self.held_out = split_pairs(*tokenize_pairs(pairs))
        if not self.held_out:
            raise UsageError(
                f"--data {config.data}: expected at least 10 different sentences in the first "
                "column"
            )
        special = [PAD, BOS, EOS]
        self.source_vocab = Vocab([s for s, _ in train], config.min_freq, special)
        self.target_vocab = Vocab([t for _, t in train], config.min_freq, special)
        self.steps = config.num_steps
        self.source = encode_sentences([s for s, _ in train], self.source_vocab, self.steps)
        self.target = encode_sentences(
            [t for _, t in train], self.target_vocab, self.steps + 1, bos=True
        )
        self.net_options = {
            "source_size": len(self.source_vocab),
            "target_size": len(self.target_vocab),
            **self.options_of_net(config),
        }
        plan = make_plan(config, config.data, self.recipe, 20, 64)
        super().__init__(config, plan, config.data, self.build)
        self.step.clip = config.clip
        self.history.update(test_bleu=[])

    # ---- what depends on the model ----

    def checked(self, config: Any) -> Any:
        """The configuration, with a default that fits; UsageError for options that do not."""
        if not config.dropout or config.layers > 1 or config.attention:
            return config
        # One layer without attention has no place for dropout: the default then is none.
        if config.dropout != Seq2SeqConfig.dropout:
            raise UsageError(
                "--dropout stands between layers and on attention weights: it needs --layers 2 or "
                "more, or --attention"
            )
        return dataclasses.replace(config, dropout=0.0)

    def options_of_net(self, config: Any) -> dict[str, Any]:
        """What the network is made from, beside the sizes of the vocabularies."""
        return {
            "embed_size": config.embed,
            "num_hiddens": config.hidden,
            "num_layers": config.layers,
            "dropout": config.dropout,
            "attention": config.attention,
            "bidirectional": config.bidirectional,
        }

    def build(self) -> Any:
        """The network."""
        return Seq2Seq(**self.net_options)

    def token_loss(self, logits: Tensor, labels: Tensor, pad: int) -> Tensor:
        """Mean loss of logits [B, T, V] and labels [B, T] but for padding."""
        return _token_loss(logits, labels, ignore_index=pad)

    # ---- epochs ----

    def describe(self) -> str:
        return (
            f"{self.size:,} training pairs and {len(self.held_out):,} test sentences, vocabularies "
            f"of {len(self.source_vocab):,} and {len(self.target_vocab):,} words"
        )

    @property
    def size(self) -> int:
        return len(self.source[0])

    def train(self, report: Report) -> dict[str, float]:
        pad = self.target_vocab[PAD]
        pairs, tokens, total = 0, 0, 0.0
        order = self.rng.permutation(self.size)
        for start in range(0, self.size, self.plan.batch_size):
            rows = order[start : start + self.plan.batch_size]
            source, lengths = _batch(self.source, rows)
            target, _ = _batch(self.target, rows)
            labels = target[:, 1:]
            with self.step.autocast:
                logits = self.net(source, lengths, target[:, :-1])
                loss = self.token_loss(logits, labels, pad)
            value = self.step(loss, pairs)
            n = int(np.count_nonzero(labels.array != pad))
            pairs, tokens, total = pairs + len(rows), tokens + n, total + value * n
            report(len(rows), loss=total / tokens)
        return {"loss": total / tokens}

    def translate(self, sentences: list[list[str]]) -> list[list[str]]:
        """The words of each sentence's translation, by greedy search."""
        bos, eos = self.target_vocab[BOS], self.target_vocab[EOS]
        net: Any = self.net
        result: list[list[str]] = []
        for start in range(0, len(sentences), _TRANSLATED_AT_ONCE):
            part = sentences[start : start + _TRANSLATED_AT_ONCE]
            rows, lengths = encode_sentences(part, self.source_vocab, self.steps)
            made = net.greedy(wrap(rows), wrap(lengths), bos, eos, self.steps)
            result += [self.target_vocab.to_tokens(words) for words in made]
        return result

    def evaluate(self) -> dict[str, float]:
        made = self.translate([source for source, _ in self.held_out])
        scores = [
            max(bleu(words, label, 2) for label in labels)
            for words, (_, labels) in zip(made, self.held_out, strict=True)
        ]
        return {"test_bleu": float(np.mean(scores))}

    def headline(self, values: dict[str, float]) -> str:
        return f"loss {values['loss']:.4f}  test BLEU {values['test_bleu']:.4f}"

    def sample(self) -> None:
        shown = self.held_out[:2]
        for words, (source, labels) in zip(
            self.translate([source for source, _ in shown]), shown, strict=True
        ):
            print(f"  {' '.join(source)} => {' '.join(words)}  ({' '.join(labels[0])})", flush=True)

    def conclude(self) -> None:
        print(f"BLEU of the held-out sentences: {self.history['test_bleu'][-1]:.4f}")

    def details(self) -> dict[str, Any]:
        tests = self.history["test_bleu"]
        return {
            "bleu": tests[-1] if tests else None,
            "net": self.net_options,
            "source_vocab": self.source_vocab.idx_to_token,
            "target_vocab": self.target_vocab.idx_to_token,
            "num_steps": self.steps,
            "clip": self.step.clip,
        }


Pair = tuple[list[str], list[str]]


def split_pairs(
    sources: list[list[str]], targets: list[list[str]]
) -> tuple[list[Pair], list[tuple[list[str], list[list[str]]]]]:
    """Pairs to train, and held-out sources with all their translations.

    A tenth of the different sources is held out, always the same one, so that no sentence of the
    test has been seen with another translation.
    """
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for source, target in zip(sources, targets, strict=True):
        found.setdefault(tuple(source), []).append(target)
    order = np.random.default_rng(0).permutation(len(found))
    keys = list(found)
    held_out = [keys[i] for i in order[: len(found) // 10]]
    test = [(list(key), found.pop(key)) for key in held_out]
    return [(list(s), t) for s, targets in found.items() for t in targets], test


def _batch(
    sentences: tuple[NDArray[np.int64], NDArray[np.int64]], rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Some sentences, as long as the longest of them, and their lengths."""
    lengths = sentences[1][rows]
    return wrap(sentences[0][rows, : lengths.max()]), wrap(lengths)
