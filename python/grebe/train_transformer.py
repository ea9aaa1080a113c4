"""Training of Transformers from the command line: GPT on characters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ._cpu import wrap
from .models import GPT, GPTConfig
from .models.sampling import evaluation
from .runner import BaseConfig, BaseRun, UsageError, make_config, one_line, warm_cosine
from .tensor import Tensor
from .text import RandomPartition
from .train_text import CharLMRun

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


@dataclass(frozen=True)
class GPTRunConfig(TransformerConfig):
    """A language model of characters."""

    raw: bool = False


def make_run(options: Mapping[str, Any]) -> BaseRun:
    """The run that command line options ask for; UsageError if it cannot be."""
    try:
        return GPTRun(make_config(GPTRunConfig, options))
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


def schedule(run: BaseRun, batches: int) -> None:
    """A learning rate that rises over the first updates and falls to a tenth until the end."""
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
        schedule(self, len(self.batches))

    def check(self, config: Any) -> None:
        check_heads(config)

    def options_of_net(self, config: Any) -> dict[str, Any]:
        return dataclasses.asdict(
            GPTConfig(
                len(self.vocab),
                config.num_steps,
                config.hidden,
                config.layers,
                config.heads,
                dropout=config.dropout,
            )
        )

    def build(self) -> GPT:
        return GPT(GPTConfig(**self.net_options))

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        net: Any = self.net
        for x, y in self.batches:
            yield net.loss(x, y), y.array.size

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
