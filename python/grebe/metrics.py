"""How good predictions are: accuracy, confusion matrix; for texts perplexity and BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor import Tensor

__all__ = [
    "accuracy",
    "bleu",
    "class_accuracy",
    "confusion_matrix",
    "perplexity",
    "top_k_accuracy",
]


def _array(value: Any) -> NDArray[Any]:
    return value.array if isinstance(value, Tensor) else np.asarray(value)


def _pair(who: str, input: Any, target: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores [N, C] or labels [N], and labels [N], both checked."""
    x, y = _array(input), _array(target)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"{who}: target must be integers [N], got {y.dtype} {list(y.shape)}")
    if x.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(
            f"{who}: input must be scores [{len(y)}, C] or labels [{len(y)}], got {list(x.shape)}"
        )
    if x.ndim == 2 and x.shape[1] == 0:
        raise ValueError(f"{who}: input has no classes: its shape is {list(x.shape)}")
    return x, y


def predicted(input: Any) -> NDArray[Any]:
    """Labels [N] from scores [N, C] (the highest; the first among equals), or as they are."""
    x = _array(input)
    return x.argmax(1) if x.ndim == 2 else x


def accuracy(input: Any, target: Any) -> float:
    """The share of right predictions; nan without samples.

    Args:
        input: scores (logits, probabilities) [N, C], or predicted labels [N].
        target: true labels [N].

    Raises:
        ValueError: other shapes or dtypes.
    """
    x, y = _pair("accuracy", input, target)
    return float(np.mean(predicted(x) == y)) if len(y) else float("nan")


def top_k_accuracy(input: Any, target: Any, k: int = 5) -> float:
    """The share of samples whose true label is among the `k` highest of their scores [N, C].

    Labels with the score of the k-th count only as far as there is room, lowest label first.

    Raises:
        ValueError: scores that are not [N, C], or k outside [1, C].
    """
    x, y = _pair("top_k_accuracy", input, target)
    if x.ndim != 2:
        raise ValueError(f"top_k_accuracy: input must be scores [N, C], got {list(x.shape)}")
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"top_k_accuracy: k must be in [1, {x.shape[1]}], got {k}")
    if not len(y):
        return float("nan")
    best = np.argsort(-x.astype(np.float64), axis=1, kind="stable")[:, :k]
    return float(np.mean((best == y[:, None]).any(axis=1)))


def confusion_matrix(input: Any, target: Any, num_classes: int | None = None) -> NDArray[np.int64]:
    """Counts [C, C]: row i, column j: samples of class i taken for class j.

    Args:
        input: scores [N, C], or predicted labels [N].
        target: true labels [N].
        num_classes: C; default: as many as the scores or the labels have.

    Raises:
        ValueError: other shapes or dtypes, or a label outside [0, C).
    """
    x, y = _pair("confusion_matrix", input, target)
    guess = predicted(x)
    if guess.dtype.kind not in "iu":
        raise ValueError(f"confusion_matrix: predicted labels must be integers, got {guess.dtype}")
    if num_classes is None:
        seen = max(int(guess.max()), int(y.max())) + 1 if len(y) else 0
        num_classes = max(x.shape[1], seen) if x.ndim == 2 else seen
    for name, labels in (("input", guess), ("target", y)):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(
                f"confusion_matrix: label {bad} in {name} is out of range for {num_classes} classes"
            )
    flat = y.astype(np.int64) * num_classes + guess.astype(np.int64)
    counts: NDArray[np.int64] = np.bincount(flat, minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def class_accuracy(input: Any, target: Any, num_classes: int | None = None) -> NDArray[np.float64]:
    """Per class, the share of its samples that were recognised [C]; nan for a class without any."""
    matrix = confusion_matrix(input, target, num_classes)
    totals = matrix.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, matrix.diagonal() / np.maximum(totals, 1), np.nan)


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
    x, y = _array(input), _array(target)
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
