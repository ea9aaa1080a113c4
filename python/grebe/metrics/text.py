"""How good predicted texts are: perplexity and BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .classification import as_array

__all__ = ["bleu", "perplexity"]


def perplexity(input: Any, target: Any, ignore_index: int = -100) -> float:
    """exp of the mean of -log p(target): over how many tokens a model wavers. D2L section 9.3.2.

    Args:
        input: logits [..., V].
        target: true tokens [...], whole numbers.
        ignore_index: tokens that do not count, such as padding.

    Returns:
        A number from 1; inf where it overflows, nan where no token counts.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a token outside [0, V).
    """
    x, y = as_array(input), as_array(target)
    if x.ndim < 1 or x.shape[:-1] != y.shape or x.shape[-1] == 0 or y.dtype.kind not in "iu":
        raise ValueError(
            f"perplexity: expected logits [..., V] and whole numbers [...], got "
            f"{list(x.shape)} and {y.dtype} {list(y.shape)}"
        )
    counted = y != ignore_index
    tokens, logits = y[counted], x[counted].astype(np.float64)
    if not len(tokens):
        return float("nan")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < x.shape[-1]:
        raise ValueError(f"perplexity: target has tokens outside [0, {x.shape[-1]})")
    top = logits.max(1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
    mean = float(np.mean(log_sum - logits[np.arange(len(tokens)), tokens]))
    return math.exp(mean) if mean < 700 else math.inf


def bleu(prediction: str | Sequence[str], label: str | Sequence[str], k: int = 4) -> float:
    """BLEU of one sentence as in D2L section 10.7.6: 1 for equality, 0 for nothing in common.

    exp(min(0, 1 - len(label) / len(prediction))) * prod over n = 1 ... k of p_n ** (1 / 2**n), p_n
    the share of the prediction's n-grams that are in the label, each as often as it is there. As
    in the book's code, n ends at the prediction's length, so that short sentences can reach 1.

    Args:
        prediction: words, as a list or as one string with spaces between.
        label: likewise, the true sentence.
        k: the longest n-grams.

    Raises:
        TypeError: something else than words.
        ValueError: k is less than 1.
    """
    words = [_words("prediction", prediction), _words("label", label)]
    if k < 1:
        raise ValueError(f"bleu: k must be at least 1, got {k}")
    guess, truth = words
    if not guess:
        return float(not truth)
    score = math.exp(min(0.0, 1 - len(truth) / len(guess)))
    for n in range(1, min(k, len(guess)) + 1):
        found, there = (Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in words)
        score *= (sum((found & there).values()) / (len(guess) - n + 1)) ** 0.5**n
    return score


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise TypeError(f"bleu: {name} must be a str or a list of words")
    return list(value)
