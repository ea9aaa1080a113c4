"""Training of Transformers from the command line: GPT on characters, translator, BERT on prose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ._cpu import wrap
from .datasets import read_prose
from .masking import MASK, SPECIAL, SentencePairs, mask_tokens, read_sentences
from .models import GPT, BERTConfig, BERTForPreTraining, GPTConfig, TransformerSeq2Seq
from .models.layers import Checkpointed
from .models.sampling import evaluation
from .nn.functional import cross_entropy
from .runner import (
    BaseConfig,
    BaseRun,
    Report,
    UsageError,
    make_config,
    make_plan,
    one_line,
    warm_cosine,
)
from .tensor import Tensor
from .text import RandomPartition, Vocab
from .train_text import CharLMRun, Seq2SeqRun, text_of_file

_WARM = 100  # updates with a rising learning rate


@dataclass(frozen=True)
class TransformerConfig(BaseConfig):
    """What all Transformers share."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    num_steps: int = 64
    clip: float = 1.0
    checkpoint: bool = False


@dataclass(frozen=True)
class GPTRunConfig(TransformerConfig):
    """A language model of characters."""

    raw: bool = False


@dataclass(frozen=True)
class TranslatorConfig(TransformerConfig):
    """A translator of short sentences, of the book's size."""

    hidden: int = 256
    layers: int = 2
    dropout: float = 0.2
    num_steps: int = 12
    ffn: int = 64
    min_freq: int = 2
    max_pairs: int | None = None


@dataclass(frozen=True)
class BERTRunConfig(TransformerConfig):
    """A reader of sentence pairs; two layers of 128 features are the book's."""

    layers: int = 2
    heads: int = 2
    min_freq: int = 2


def make_run(options: Mapping[str, Any]) -> BaseRun:
    """The run that command line options ask for; UsageError if it cannot be."""
    try:
        if options["model"] == "gpt":
            return GPTRun(make_config(GPTRunConfig, options))
        if options["model"] == "transformer":
            return TransformerRun(make_config(TranslatorConfig, options))
        return BERTRun(make_config(BERTRunConfig, options))
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(one_line(error)) from None


def check_heads(config: Any) -> None:
    """UsageError unless the features can be cut in heads."""
    if config.hidden % config.heads:
        raise UsageError(
            f"--hidden must be divisible by --heads, got {config.hidden} and {config.heads}"
        )


def prepare(run: Any, batches: int) -> None:
    """Checkpoints, and a learning rate that rises for some updates, then falls to a tenth."""
    for module in run.net.modules():
        if isinstance(module, Checkpointed):
            module.checkpointing = run.config.checkpoint
    updates = -(-batches // run.config.accumulate) * run.plan.epochs
    run.step.factor = warm_cosine(min(_WARM, max(1, updates // 10)), updates)


# ---- GPT ----


class GPTRun(CharLMRun):
    """The training of a GPT on windows of a text in random order."""

    partition: ClassVar[Any] = RandomPartition
    recipe: ClassVar[tuple[str, float]] = ("adamw", 2e-3)

    def __init__(self, config: GPTRunConfig) -> None:
        """Load everything; raises UsageError or ValueError before anything is trained."""
        super().__init__(config)
        prepare(self, len(self.batches))

    def check(self, config: Any) -> None:
        check_heads(config)

    def options_of_net(self, config: Any) -> dict[str, Any]:
        sizes = (len(self.vocab), config.num_steps, config.hidden, config.layers, config.heads)
        return dataclasses.asdict(GPTConfig(*sizes, dropout=config.dropout))

    def build(self) -> GPT:
        return GPT(GPTConfig(**self.net_options))

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        net: Any = self.net
        for x, y in self.batches:
            with self.step.autocast:
                loss = net.loss(x, y)
            yield loss, y.array.size

    def perplexity(self) -> float:
        return held_out_perplexity(self.net, self.held_out, self.plan.batch_size)


def held_out_perplexity(net: Any, corpus: NDArray[np.int64], batch_size: int) -> float:
    """Perplexity of a text of at least 2 tokens, in windows that know nothing of each other."""
    steps = min(net.config.n_positions, len(corpus) - 1)
    count = (len(corpus) - 1) // steps
    x = corpus[: count * steps].reshape(count, steps)
    y = corpus[1 : count * steps + 1].reshape(count, steps)
    total = 0.0
    with evaluation(net):
        for start in range(0, count, batch_size):
            rows = slice(start, start + batch_size)
            loss = net.loss(wrap(x[rows].copy()), wrap(y[rows].copy()))
            total += float(loss.array) * len(x[rows])
    return math.exp(min(total / count, 700.0))


# ---- translator ----


class TransformerRun(Seq2SeqRun):
    """The training of a translating Transformer."""

    recipe: ClassVar[tuple[str, float]] = ("adam", 1.5e-3)

    def __init__(self, config: TranslatorConfig) -> None:
        """Load everything; raises UsageError or ValueError before anything is trained."""
        super().__init__(config)
        prepare(self, -(-self.size // self.plan.batch_size))

    def checked(self, config: Any) -> Any:
        check_heads(config)
        return config

    def options_of_net(self, config: Any) -> dict[str, Any]:
        return {
            "num_hiddens": config.hidden,
            "ffn_num_hiddens": config.ffn,
            "num_heads": config.heads,
            "num_layers": config.layers,
            "dropout": config.dropout,
            "max_len": config.num_steps + 1,
        }

    def build(self) -> Any:
        return TransformerSeq2Seq(**self.net_options)

    def token_loss(self, logits: Tensor, labels: Tensor, pad: int) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=pad)


# ---- BERT ----


class BERTRun(BaseRun):
    """Pretraining: the hidden words of sentence pairs, and whether the second one follows."""

    unit: ClassVar[str] = "pairs"
    curves: ClassVar[dict[str, tuple[str, str]]] = {
        "mlm_loss": ("C0--", "loss of hidden words"),
        "test_mlm_loss": ("C0-", "the same, held out"),
        "test_mlm_accuracy": ("C2-", "accuracy of hidden words, held out"),
        "test_nsp_accuracy": ("C3-", "accuracy of next sentence, held out"),
    }

    def __init__(self, config: BERTRunConfig) -> None:
        """Load everything; raises UsageError or ValueError before anything is trained."""
        check_heads(config)
        name = config.data or "prose"
        paragraphs = read_sentences(read_prose() if name == "prose" else text_of_file(name))
        cut = len(paragraphs) * 9 // 10
        if not 0 < cut < len(paragraphs):
            raise UsageError(
                f"--data {name}: expected several paragraphs of at least two sentences, with empty "
                "lines between"
            )
        self.paragraphs = paragraphs[:cut]
        words = [word for p in self.paragraphs for sentence in p for word in sentence]
        self.vocab = Vocab(words, config.min_freq, SPECIAL)
        self.max_len = config.num_steps
        self.pairs = self._pairs(self.paragraphs, config.seed)
        self.held_out = self._pairs(paragraphs[cut:], 0)
        sizes = (
            len(self.vocab), config.hidden, config.layers, config.heads, 4 * config.hidden,
            config.dropout, config.num_steps,
        )  # fmt: skip
        self.net_options = dataclasses.asdict(BERTConfig(*sizes))
        plan = make_plan(config, name, ("adamw", 1e-3), 20, 64)
        super().__init__(
            config, plan, name, lambda: BERTForPreTraining(BERTConfig(**self.net_options))
        )
        self.step.clip = config.clip
        prepare(self, -(-self.size // self.plan.batch_size))
        self.history.update({value: [] for value in self.curves})

    def _pairs(self, paragraphs: Any, seed: Any) -> SentencePairs:
        rng = np.random.default_rng(seed)
        return SentencePairs.draw(paragraphs, self.vocab, self.max_len, rng)

    def describe(self) -> str:
        return (
            f"{self.size:,} training and {len(self.held_out):,} test pairs of sentences, "
            f"{len(self.vocab):,} words"
        )

    @property
    def size(self) -> int:
        return len(self.pairs)

    def _losses(
        self, pairs: SentencePairs, order: NDArray[np.int64], rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, Tensor, int, NDArray[np.int64]]]:
        """Of each batch both losses, and how many words and sentences were right and there."""
        for start in range(0, len(order), self.plan.batch_size):
            rows = order[start : start + self.plan.batch_size]
            longest = int(pairs.lengths[rows].max())
            tokens = pairs.tokens[rows, :longest]
            read, positions, hidden = mask_tokens(tokens, self.vocab, rng)
            # 0 stands for the next sentence, as in Hugging Face's models.
            other = (~pairs.follows[rows]).astype(np.int64)
            with self.step.autocast:
                words, following = self.net(
                    wrap(read), wrap(pairs.segments[rows, :longest]), wrap(pairs.lengths[rows]),
                    wrap(positions),
                )  # fmt: skip
                losses = cross_entropy(words, wrap(hidden)), cross_entropy(following, wrap(other))
            right = np.array([
                np.count_nonzero(words.array.argmax(1) == hidden), len(hidden),
                np.count_nonzero(following.array.argmax(1) == other), len(rows),
            ])  # fmt: skip
            yield *losses, len(rows), right

    def train(self, report: Report) -> dict[str, float]:
        self.pairs = self._pairs(self.paragraphs, self.rng.integers(2**31))
        seen, total, gaps = 0, 0.0, 0.0
        order = self.rng.permutation(self.size)
        for words, following, n, _ in self._losses(self.pairs, order, self.rng):
            value = self.step(words + following, seen)
            seen, total, gaps = seen + n, total + value * n, gaps + float(words.array) * n
            report(n, loss=total / seen)
        return {"loss": total / seen, "mlm_loss": gaps / seen}

    def evaluate(self) -> dict[str, float]:
        counts, total = np.zeros(4), 0.0
        with evaluation(self.net):
            order, rng = np.arange(len(self.held_out)), np.random.default_rng(0)
            for words, _, _, right in self._losses(self.held_out, order, rng):
                counts += right
                total += float(words.array) * right[1]
        return {
            "test_mlm_loss": total / counts[1],
            "test_mlm_accuracy": counts[0] / counts[1],
            "test_nsp_accuracy": counts[2] / counts[3],
        }

    def headline(self, values: dict[str, float]) -> str:
        return (
            f"loss {values['loss']:.4f}  hidden words {values['mlm_loss']:.4f}, test "
            f"{values['test_mlm_loss']:.4f}  test accuracy {values['test_mlm_accuracy']:.4f}, next "
            f"sentence {values['test_nsp_accuracy']:.4f}"
        )

    def sample(self) -> None:
        length = int(self.held_out.lengths[0])
        tokens = self.held_out.tokens[:1, :length]
        read, positions, _ = mask_tokens(tokens, self.vocab, np.random.default_rng(0))
        read.reshape(-1)[positions] = self.vocab[MASK]
        with evaluation(self.net):
            logits, _ = self.net(
                wrap(read), wrap(self.held_out.segments[:1, :length]), None, wrap(positions)
            )
        words = self.vocab.to_tokens(tokens[0])
        for position, guess in zip(positions, logits.array.argmax(1), strict=True):
            words[position] = f"[{self.vocab.to_tokens(guess)}|{words[position]}]"
        print(f"  {' '.join(words)}", flush=True)

    def conclude(self) -> None:
        accuracy = self.history["test_mlm_accuracy"][-1]
        print(f"accuracy of the held-out hidden words: {accuracy:.4f}")

    def details(self) -> dict[str, Any]:
        return {
            "net": self.net_options,
            "vocab": self.vocab.idx_to_token,
            "num_steps": self.max_len,
            "clip": self.step.clip,
        }
