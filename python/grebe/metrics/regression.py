"""How near predicted numbers are: squared and absolute errors, explained variance. D2L 3.1, 5.7."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .classification import as_array

__all__ = [
    "mean_absolute_error", "mean_squared_error", "r2_score", "root_mean_squared_error",
]  # fmt: skip


def number_pair(who: str, input: Any, target: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Predictions and true numbers of equal shape, in float64."""
    x, y = as_array(input), as_array(target)
    if x.shape != y.shape:
        raise ValueError(
            f"{who}: expected input and target of the same shape, got {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    return x.astype(np.float64), y.astype(np.float64)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def mean_squared_error(input: Any, target: Any) -> float:
    """The mean of (input - target)²; nan without elements.

    Args:
        input: predictions of any shape.
        target: true numbers of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = number_pair("mean_squared_error", input, target)
    return _mean(np.square(x - y))


def root_mean_squared_error(input: Any, target: Any) -> float:
    """The square root of `mean_squared_error`."""
    x, y = number_pair("root_mean_squared_error", input, target)
    return math.sqrt(_mean(np.square(x - y)))


def mean_absolute_error(input: Any, target: Any) -> float:
    """The mean of |input - target|; arguments as for `mean_squared_error`."""
    x, y = number_pair("mean_absolute_error", input, target)
    return _mean(np.abs(x - y))


def r2_score(input: Any, target: Any) -> float:
    """The share of the target's variance that is explained: ``1 - sum((y - x)²) / sum((y - ȳ)²)``.

    Targets of shape [N, K] give the mean over the K columns. A constant column has 1 if it is met
    exactly, else 0; with fewer than two samples the result is nan, as in scikit-learn.
    """
    x, y = number_pair("r2_score", input, target)
    if len(np.atleast_1d(y)) < 2:
        return math.nan
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    return explained(np.square(y - x).sum(0), np.square(y - y.mean(0)).sum(0))


def explained(error: NDArray[Any], variation: NDArray[Any]) -> float:
    """R² from the sums of squares of each column."""
    constant = np.where(error == 0, 1.0, 0.0)
    ratio = 1 - error / np.where(variation == 0, 1, variation)
    return float(np.where(variation == 0, constant, ratio).mean())
