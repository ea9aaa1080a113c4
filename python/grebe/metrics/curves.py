"""Scores judged at all thresholds: ROC and precision-recall curves, the areas below, log loss."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .classification import as_array

__all__ = [
    "PrecisionRecallCurve", "ROCCurve", "average_precision", "log_loss",
    "precision_recall_curve", "roc_auc", "roc_curve",
]  # fmt: skip

Floats = NDArray[np.float64]


class ROCCurve(NamedTuple):
    """Rates of false and true positives for falling thresholds."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall for rising thresholds, ending with precision 1 and recall 0."""

    precision: Floats
    recall: Floats
    thresholds: Floats


def _binary(who: str, input: Any, target: Any) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores [N] of the positive class, and which samples belong to it."""
    x, y = as_array(input), as_array(target)
    if x.ndim != 1 or y.shape != x.shape or y.dtype.kind not in "iub":
        raise ValueError(
            f"{who}: expected scores [N] and labels 0 or 1 [N], got {list(x.shape)} and "
            f"{y.dtype} {list(y.shape)}"
        )
    if len(y) and not (0 <= int(y.min()) <= int(y.max()) <= 1):
        raise ValueError(f"{who}: labels must be 0 or 1, got {int(y.min())} to {int(y.max())}")
    x = x.astype(np.float64)
    if np.isnan(x).any():
        raise ValueError(f"{who}: input contains NaN")
    return x, y.astype(bool)


def _counts(x: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """False and true positives with scores from each distinct threshold up, thresholds falling."""
    order = np.argsort(-x, kind="stable")
    x, positive = x[order], positive[order]
    last = np.append(np.nonzero(np.diff(x))[0], len(x) - 1) if len(x) else np.zeros(0, np.int64)
    true = np.cumsum(positive, dtype=np.float64)[last]
    return 1 + last - true, true, x[last]


def roc_curve(input: Any, target: Any, drop_intermediate: bool = True) -> ROCCurve:
    """The rates of false and true positives as the threshold falls. D2L 22.11 names the terms.

    Args:
        input: scores [N], higher for the positive class.
        target: labels [N], 0 or 1.
        drop_intermediate: leave out points on a straight line between others.

    Returns:
        (fpr, tpr, thresholds), from (0, 0) at the threshold inf to (1, 1). The rate of a class
        without samples is nan.

    Raises:
        ValueError: other shapes or labels, or NaN scores.
    """
    false, true, thresholds = _counts(*_binary("roc_curve", input, target))
    if drop_intermediate and len(false) > 2:
        bends = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
        kept = np.concatenate([[True], bends, [True]])
        false, true, thresholds = false[kept], true[kept], thresholds[kept]
    false, true = np.append(0.0, false), np.append(0.0, true)
    with np.errstate(invalid="ignore", divide="ignore"):
        fpr = false / false[-1] if false[-1] else np.full_like(false, math.nan)
        tpr = true / true[-1] if true[-1] else np.full_like(true, math.nan)
    return ROCCurve(fpr, tpr, np.append(math.inf, thresholds))


def roc_auc(input: Any, target: Any, average: str = "macro") -> float:
    """The area below the ROC curve: how often a positive sample scores higher than a negative one.

    Args:
        input: scores [N] of the positive class, or [N, C] of all classes, each of which is then
            judged against the rest.
        target: labels [N]: 0 or 1, or below C.
        average: over classes "macro", or "weighted" by their samples.

    Returns:
        The area; nan where a class has no samples, or all.

    Raises:
        ValueError: other shapes or labels, NaN scores or an unknown `average`.
    """
    if average not in ("macro", "weighted"):
        raise ValueError(f"roc_auc: average must be 'macro' or 'weighted', got {average!r}")
    x, y = as_array(input), as_array(target)
    if x.ndim != 2:
        fpr, tpr, _ = roc_curve(x, y, drop_intermediate=False)
        return float(((fpr[1:] - fpr[:-1]) * (tpr[1:] + tpr[:-1]) / 2).sum())
    labels = _labels("roc_auc", x, y)
    areas = [roc_auc(x[:, c], labels == c) for c in range(x.shape[1])]
    sizes = np.bincount(labels, minlength=x.shape[1]) if average == "weighted" else None
    if sizes is not None and not sizes.sum():
        return math.nan
    return float(np.average(areas, weights=sizes))


def precision_recall_curve(input: Any, target: Any) -> PrecisionRecallCurve:
    """Precision and recall as the threshold rises. Arguments as for `roc_curve`.

    Returns:
        (precision, recall, thresholds): one point more than thresholds, the last of precision 1 and
        recall 0. Without positive samples recall is 1 everywhere else.
    """
    false, true, thresholds = _counts(*_binary("precision_recall_curve", input, target))
    found = false + true
    precision = np.divide(true, found, out=np.zeros_like(true), where=found != 0)
    recall = true / true[-1] if len(true) and true[-1] else np.ones_like(true)
    return PrecisionRecallCurve(
        np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0), thresholds[::-1]
    )


def average_precision(input: Any, target: Any) -> float:
    """The mean of the precisions at all thresholds, weighted by what recall gains at each."""
    precision, recall, _ = precision_recall_curve(input, target)
    return max(0.0, float(-(np.diff(recall) * precision[:-1]).sum()))


def log_loss(input: Any, target: Any) -> float:
    """The mean of -log of the probability that the true label was given. D2L 4.1, 22.11.

    Args:
        input: probabilities [N, C], whose rows sum to 1, or [N] of label 1.
        target: labels [N].

    Returns:
        A number from 0; probabilities of 0 count as the least number above. nan without samples.

    Raises:
        ValueError: other shapes or labels, probabilities outside [0, 1].
    """
    x, y = as_array(input), as_array(target)
    eps = float(np.finfo(x.dtype).eps) if x.dtype.kind == "f" else float(np.finfo(np.float64).eps)
    p = x.astype(np.float64)
    if p.ndim == 1:
        p = np.stack([1 - p, p], 1)
    if p.ndim != 2:
        raise ValueError(
            f"log_loss: input must be probabilities [N, C] or [N], got {list(x.shape)}"
        )
    labels = _labels("log_loss", p, y)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("log_loss: probabilities must lie in [0, 1]")
    if not len(labels):
        return math.nan
    given = np.clip(p[np.arange(len(labels)), labels], eps, 1 - eps)
    return float(-np.log(given).mean())


def _labels(who: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Labels [N] of scores [N, C], checked."""
    if y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iub":
        raise ValueError(
            f"{who}: expected labels [{len(x)}] for scores {list(x.shape)}, got {y.dtype} "
            f"{list(y.shape)}"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < x.shape[1]:
        raise ValueError(
            f"{who}: labels must be in [0, {x.shape[1]}), got {int(y.min())} to {int(y.max())}"
        )
    return y.astype(np.int64)
