"""How good predictions are: accuracy, top-k accuracy, confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor import Tensor

__all__ = ["accuracy", "class_accuracy", "confusion_matrix", "top_k_accuracy"]


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
