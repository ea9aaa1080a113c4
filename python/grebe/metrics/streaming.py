"""Metrics over batches: `update` with each, then ask for the values of all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import curves
from .classification import as_array, confusion_matrix, of_confusion
from .regression import explained, number_pair

__all__ = ["Classification", "Curves", "Mean", "Regression"]


class Mean:
    """The mean of numbers, such as losses, weighted by how many samples each stands for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.total, self.count = 0.0, 0.0

    def update(self, value: Any, count: float = 1) -> None:
        """Adds a mean over `count` samples."""
        self.total += float(value) * count
        self.count += count

    def compute(self) -> float:
        """The mean of all; nan before the first."""
        return self.total / self.count if self.count else math.nan


class Classification:
    """Accuracy, precision, recall and F1 of all samples seen, from their confusion matrix."""

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"Classification: num_classes must be positive, got {num_classes}")
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.matrix = np.zeros((self.num_classes, self.num_classes), np.int64)

    def update(self, input: Any, target: Any) -> None:
        """Adds scores [N, C] or labels [N], and true labels [N]."""
        self.matrix += confusion_matrix(input, target, self.num_classes)

    def accuracy(self) -> float:
        """The share of right predictions; nan before the first."""
        total = int(self.matrix.sum())
        return int(self.matrix.trace()) / total if total else math.nan

    def precision(self, average: str | None = "macro", zero_division: float = 0.0) -> Any:
        """See `grebe.metrics.precision`."""
        return of_confusion("precision", self.matrix, average, zero_division)[0]

    def recall(self, average: str | None = "macro", zero_division: float = 0.0) -> Any:
        """See `grebe.metrics.recall`."""
        return of_confusion("recall", self.matrix, average, zero_division)[1]

    def f1_score(self, average: str | None = "macro", zero_division: float = 0.0) -> Any:
        """See `grebe.metrics.f1_score`."""
        return of_confusion("f1_score", self.matrix, average, zero_division)[2]


class Regression:
    """Errors of all numbers seen.

    Sums of squares are kept around a running mean (Chan et al. 1983), so that R² keeps its digits
    however far the targets are from 0.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.rows = self.count = 0
        self.squares = self.absolute = 0.0
        self.error: Any = 0.0
        self.mean: Any = 0.0
        self.variation: Any = 0.0

    def update(self, input: Any, target: Any) -> None:
        """Adds predictions and true numbers of equal shape, samples along the first dimension."""
        x, y = number_pair("Regression.update", input, target)
        if not y.size:
            return
        x, y = np.atleast_1d(x), np.atleast_1d(y)
        x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
        error = np.square(x - y).sum(0)
        self.error = self.error + error
        self.squares += float(error.sum())
        self.absolute += float(np.abs(x - y).sum())
        self.count += y.size
        rows = self.rows + len(y)
        mean = y.mean(0)
        between = np.square(mean - self.mean) * (self.rows * len(y) / rows)
        self.variation = self.variation + np.square(y - mean).sum(0) + between
        self.mean = self.mean + (mean - self.mean) * (len(y) / rows)
        self.rows = rows

    def mean_squared_error(self) -> float:
        """nan before the first."""
        return self.squares / self.count if self.count else math.nan

    def root_mean_squared_error(self) -> float:
        """nan before the first."""
        return math.sqrt(self.mean_squared_error())

    def mean_absolute_error(self) -> float:
        """nan before the first."""
        return self.absolute / self.count if self.count else math.nan

    def r2_score(self) -> float:
        """nan before the second sample."""
        return explained(self.error, self.variation) if self.rows > 1 else math.nan


class Curves:
    """Keeps scores and labels; the curves and areas of `grebe.metrics` over all of them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.scores: list[NDArray[Any]] = []
        self.labels: list[NDArray[Any]] = []

    def update(self, input: Any, target: Any) -> None:
        """Adds scores [N] or [N, C], and labels [N]."""
        x, y = as_array(input), as_array(target)
        if x.ndim not in (1, 2) or y.shape != x.shape[:1]:
            raise ValueError(
                f"Curves.update: expected scores [N] or [N, C] and labels [N], got "
                f"{list(x.shape)} and {list(y.shape)}"
            )
        if self.scores and x.shape[1:] != self.scores[0].shape[1:]:
            raise ValueError(
                f"Curves.update: scores of shape {list(x.shape)} after {list(self.scores[0].shape)}"
            )
        self.scores.append(x.copy())
        self.labels.append(y.copy())

    def _all(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if not self.scores:
            return np.zeros(0), np.zeros(0, np.int64)
        return np.concatenate(self.scores), np.concatenate(self.labels)

    def roc_curve(self, drop_intermediate: bool = True) -> curves.ROCCurve:
        """See `grebe.metrics.roc_curve`."""
        return curves.roc_curve(*self._all(), drop_intermediate)

    def roc_auc(self, average: str = "macro") -> float:
        """See `grebe.metrics.roc_auc`."""
        return curves.roc_auc(*self._all(), average)

    def precision_recall_curve(self) -> curves.PrecisionRecallCurve:
        """See `grebe.metrics.precision_recall_curve`."""
        return curves.precision_recall_curve(*self._all())

    def average_precision(self) -> float:
        """See `grebe.metrics.average_precision`."""
        return curves.average_precision(*self._all())

    def log_loss(self) -> float:
        """See `grebe.metrics.log_loss`."""
        return curves.log_loss(*self._all())
