"""Drawing the next token of a language model. D2L section 9.5.4; Holtzman et al. 2020 (top-p)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import nn
from ..autograd import no_grad

_LIKELY = 256  # top-p looks at so many tokens first: they nearly always suffice


@contextlib.contextmanager
def evaluation(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the mode is what it was.

    A network in evaluation mode is taken to be so with all its layers: to go through them would
    cost a tenth of the time of a token.
    """
    training = net.training
    if training:
        net.eval()
    try:
        with no_grad():
            yield
    finally:
        if training:
            net.train()


def check_sampling(
    name: str, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> None:
    """ValueError unless `pick` takes these."""
    if not temperature >= 0:
        raise ValueError(f"{name}: temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"{name}: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"{name}: top_p must be above 0 and at most 1, got {top_p}")


def pick(
    logits: NDArray[Any],
    temperature: float,
    rng: np.random.Generator,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """The likeliest of the logits [V], or with a temperature above 0 one drawn at random.

    Args:
        logits: of one token.
        temperature: tokens are drawn from softmax(logits / temperature).
        rng: where the randomness comes from.
        top_k: only among the k likeliest.
        top_p: only among the fewest likeliest that together have the probability p.
    """
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    if top_k is None and (top_p is None or top_p == 1):
        return _draw(np.exp(scaled), rng)
    tokens = _likeliest(scaled, top_k or len(scaled))
    weights = np.exp(scaled[tokens])
    if top_p is not None:
        total = weights.sum()
        best = _likeliest(weights, _LIKELY)
        if weights[best].sum() < top_p * total:
            best = _likeliest(weights, len(weights))
        best = best[: int(np.searchsorted(weights[best].cumsum(), top_p * total)) + 1]
        tokens, weights = tokens[best], weights[best]
    return int(tokens[_draw(weights, rng)])


def _draw(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    cumulated = weights.cumsum()
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))


def _likeliest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Where the `count` largest are, from large to small, equal ones in their order."""
    if count < len(values):
        bound = np.partition(values, -count)[-count]
        above = np.flatnonzero(values > bound)
        level = np.flatnonzero(values == bound)[: count - len(above)]
        found = np.sort(np.concatenate([above, level]))
    else:
        found = np.arange(len(values))
    order: NDArray[np.int64] = found[np.argsort(-values[found], kind="stable")]
    return order
