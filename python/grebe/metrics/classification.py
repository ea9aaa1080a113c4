"""How good predicted classes are: accuracy, confusion matrix, precision, recall, F1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import on_host
from ..tensor import Tensor

__all__ = [
    "accuracy", "class_accuracy", "confusion_matrix", "f1_score", "precision", "recall",
    "top_k_accuracy",
]  # fmt: skip


def as_array(value: Any) -> NDArray[Any]:
    """The numbers of a tensor, on whatever device, or of anything like an array."""
    if isinstance(value, Tensor):
        return on_host(value.array)
    return np.asarray(value)


def _pair(who: str, input: Any, target: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores [N, C] or labels [N], and labels [N], both checked."""
    x, y = as_array(input), as_array(target)
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
    x = as_array(input)
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


# ---- precision, recall, F1 ----

AVERAGES = ("binary", "micro", "macro", "weighted", None)


def of_confusion(
    who: str, matrix: NDArray[np.int64], average: str | None, zero_division: float
) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 from a confusion matrix."""
    if average not in AVERAGES:
        raise ValueError(f"{who}: average must be one of {AVERAGES}, got {average!r}")
    if average == "binary" and len(matrix) > 2:
        raise ValueError(
            f"{who}: there are {len(matrix)} classes; choose another average than 'binary'"
        )
    right = matrix.diagonal().astype(np.float64)
    found, there = matrix.sum(0, dtype=np.float64), matrix.sum(1, dtype=np.float64)
    counted = (found > 0) | (there > 0)  # classes that nobody named have no part in averages
    if average == "micro":
        right, found, there = (x.sum(keepdims=True) for x in (right, found, there))

    def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[Any]:
        safe = np.where(denominator > 0, denominator, 1)
        return np.where(denominator > 0, numerator / safe, zero_division)

    results = ratio(right, found), ratio(right, there), ratio(2 * right, found + there)
    if average is None:
        return results
    if average == "micro":
        precision, recall, f1 = (float(x[0]) for x in results)
        return precision, recall, f1
    if average == "binary":
        precision, recall, f1 = (float(x[1]) if len(x) > 1 else zero_division for x in results)
        return precision, recall, f1
    if average == "weighted" and not there.sum():
        return zero_division, zero_division, zero_division
    if not counted.any():
        return zero_division, zero_division, zero_division
    weights = there if average == "weighted" else counted
    precision, recall, f1 = (float(np.average(x, weights=weights)) for x in results)
    return precision, recall, f1


def precision(
    input: Any, target: Any, average: str | None = "binary", num_classes: int | None = None,
    zero_division: float = 0.0,
) -> Any:  # fmt: skip
    """The share of the samples taken for a class that belong to it.

    Args:
        input: scores [N, C], or predicted labels [N].
        target: true labels [N].
        average: "binary" is that of class 1; "micro" counts all samples together, "macro" is the
            mean over classes, "weighted" that by their samples; None gives all classes' [C].
        num_classes: C; default: as many as the scores or the labels have.
        zero_division: the value where nothing was taken for the class.

    Raises:
        ValueError: other shapes or dtypes, an unknown `average`, or "binary" with more classes.
    """
    matrix = confusion_matrix(input, target, num_classes)
    return of_confusion("precision", matrix, average, zero_division)[0]


def recall(
    input: Any, target: Any, average: str | None = "binary", num_classes: int | None = None,
    zero_division: float = 0.0,
) -> Any:  # fmt: skip
    """The share of a class's samples that were taken for it. Arguments as for `precision`."""
    matrix = confusion_matrix(input, target, num_classes)
    return of_confusion("recall", matrix, average, zero_division)[1]


def f1_score(
    input: Any, target: Any, average: str | None = "binary", num_classes: int | None = None,
    zero_division: float = 0.0,
) -> Any:  # fmt: skip
    """The harmonic mean of precision and recall. Arguments as for `precision`."""
    matrix = confusion_matrix(input, target, num_classes)
    return of_confusion("f1_score", matrix, average, zero_division)[2]
