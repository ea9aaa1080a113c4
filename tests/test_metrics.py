"""Metrics against scikit-learn, on random and degenerate inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import metrics

sklearn = pytest.importorskip("sklearn.metrics")

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """scikit-learn warns of each degenerate input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def labels(classes: int, n: int, seed: int, present: int | None = None) -> Array:
    return np.random.default_rng(seed).integers(0, present or classes, n)


def equal(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, equal_nan=True)


# ---- classes ----

AVERAGES = ["micro", "macro", "weighted", None]
SCORES = {
    "precision": (metrics.precision, sklearn.precision_score),
    "recall": (metrics.recall, sklearn.recall_score),
    "f1_score": (metrics.f1_score, sklearn.f1_score),
}


@pytest.mark.parametrize("zero_division", [0.0, 1.0])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", SCORES)
def test_of_classes(name: str, average: str | None, zero_division: float) -> None:
    ours, theirs = SCORES[name]
    cases = [
        (labels(4, 50, 0), labels(4, 50, 1)), (labels(4, 50, 0, 2), labels(4, 50, 1)),
        (labels(4, 50, 0), labels(4, 50, 1, 3)), (np.zeros(5, int), np.full(5, 3)),
        (labels(4, 1, 0), labels(4, 1, 1)),
    ]  # fmt: skip
    for guess, truth in cases:
        want = theirs(
            truth, guess, average=average, zero_division=zero_division,
            labels=range(4) if average is None else None,
        )  # fmt: skip
        equal(ours(guess, truth, average, 4, zero_division), want)


@pytest.mark.parametrize("name", SCORES)
def test_of_two_classes(name: str) -> None:
    ours, theirs = SCORES[name]
    for guess, truth in [
        (labels(2, 40, 0), labels(2, 40, 1)), (np.zeros(9, int), labels(2, 9, 1)),
        (np.ones(9, int), np.zeros(9, int)), (np.ones(9, int), np.ones(9, int)),
    ]:  # fmt: skip
        equal(ours(guess, truth), theirs(truth, guess, zero_division=0.0))
    with pytest.raises(ValueError, match="3 classes"):
        ours([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="average must be one of"):
        ours([0, 1], [0, 1], "mean")


def test_accuracy_and_confusion() -> None:
    scores, truth = np.random.default_rng(0).standard_normal((60, 5)), labels(5, 60, 1)
    guess = scores.argmax(1)
    equal(metrics.accuracy(scores, truth), sklearn.accuracy_score(truth, guess))
    equal(metrics.confusion_matrix(guess, truth, 5), sklearn.confusion_matrix(truth, guess))
    for k in (1, 2, 5):
        want = sklearn.top_k_accuracy_score(truth, scores, k=k)
        equal(metrics.top_k_accuracy(scores, truth, k), want)


# ---- scores ----


def score_cases() -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal(50), labels(2, 50, 0)),
        (rng.integers(0, 4, 50) / 4, labels(2, 50, 0)),  # ties
        (np.zeros(6), labels(2, 6, 0)),
        (np.array([0.1, 0.9]), np.array([0, 1])),
        (np.array([0.9, 0.1]), np.array([0, 1])),
        (rng.standard_normal(9), np.zeros(9, int)),  # one class absent
        (rng.standard_normal(9), np.ones(9, int)),
        (np.array([0.5]), np.array([1])),
    ]


@pytest.mark.parametrize("drop", [True, False])
def test_roc_curve(drop: bool) -> None:
    for scores, truth in score_cases():
        got = metrics.roc_curve(scores, truth, drop)
        want = sklearn.roc_curve(truth, scores, drop_intermediate=drop)
        for ours, theirs in zip(got, want, strict=True):
            equal(ours, theirs)


def test_precision_recall_curve() -> None:
    for scores, truth in score_cases():
        got = metrics.precision_recall_curve(scores, truth)
        want = sklearn.precision_recall_curve(truth, scores)
        for ours, theirs in zip(got, want, strict=True):
            equal(ours, theirs)
        equal(
            metrics.average_precision(scores, truth), sklearn.average_precision_score(truth, scores)
        )


def test_roc_auc() -> None:
    for scores, truth in score_cases():
        both = len(set(truth.tolist())) == 2
        want = sklearn.roc_auc_score(truth, scores) if both else np.nan
        equal(metrics.roc_auc(scores, truth), want)
    rng = np.random.default_rng(1)
    for scores in (rng.random((40, 4)), rng.integers(0, 3, (40, 4)) + 0.5):
        scores = scores / scores.sum(1, keepdims=True)
        truth = labels(4, 40, 2)
        for average in ("macro", "weighted"):
            want = sklearn.roc_auc_score(truth, scores, multi_class="ovr", average=average)
            equal(metrics.roc_auc(scores, truth, average), want)
    assert np.isnan(metrics.roc_auc(scores, labels(4, 40, 2, 3)))  # a class without samples


def test_log_loss() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((30, 3))
    p /= p.sum(1, keepdims=True)
    truth = labels(3, 30, 0)
    equal(metrics.log_loss(p, truth), sklearn.log_loss(truth, p))
    p32 = p.astype(np.float32)
    equal(metrics.log_loss(p32, truth), sklearn.log_loss(truth, p32.astype(np.float64)))
    sure = np.eye(3)[truth]
    sure[0] = np.roll(sure[0], 1)
    equal(metrics.log_loss(sure, truth), sklearn.log_loss(truth, sure))
    q = rng.random(20)
    equal(metrics.log_loss(q, labels(2, 20, 1)), sklearn.log_loss(labels(2, 20, 1), q))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.roc_curve([0.1, np.nan], [0, 1]), "NaN"),
        (lambda: metrics.roc_curve([0.1, 0.2], [0, 2]), "labels must be 0 or 1"),
        (lambda: metrics.roc_curve([[0.1], [0.2]], [0, 1]), "expected scores"),
        (lambda: metrics.roc_auc(np.zeros((2, 3)), [0, 3]), r"labels must be in \[0, 3\)"),
        (lambda: metrics.roc_auc([0.0, 1.0], [0, 1], "micro"), "average must be"),
        (lambda: metrics.log_loss([[1.5, -0.5]], [0]), r"must lie in \[0, 1\]"),
        (lambda: metrics.mean_squared_error([1.0], [1.0, 2.0]), "same shape"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- numbers ----


@pytest.mark.parametrize("shape", [(40,), (40, 3), (1,), (2,)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_regression(shape: tuple[int, ...], offset: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal(shape) + offset
    x = y + rng.standard_normal(shape)
    equal(metrics.mean_squared_error(x, y), sklearn.mean_squared_error(y, x))
    equal(metrics.root_mean_squared_error(x, y), sklearn.mean_squared_error(y, x) ** 0.5)
    equal(metrics.mean_absolute_error(x, y), sklearn.mean_absolute_error(y, x))
    equal(metrics.r2_score(x, y), sklearn.r2_score(y, x))


def test_r2_of_constant_targets() -> None:
    same = np.ones(5)
    for x in (same, same + 0.5, np.arange(5.0)):
        equal(metrics.r2_score(x, same), sklearn.r2_score(same, x))


# ---- batches ----


def test_batches() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.random((50, 3)), labels(3, 50, 1)
    scores /= scores.sum(1, keepdims=True)
    y = rng.standard_normal((50, 2)) + 1e6
    x = y + rng.standard_normal((50, 2))
    classes, curves, numbers = metrics.Classification(3), metrics.Curves(), metrics.Regression()
    mean = metrics.Mean()
    assert np.isnan([classes.accuracy(), numbers.mean_squared_error(), mean.compute()]).all()
    assert np.isnan([numbers.r2_score(), curves.log_loss()]).all()
    for at in (slice(0, 7), slice(7, 8), slice(8, 8), slice(8, 50)):
        classes.update(grebe.tensor(scores[at]), grebe.tensor(truth[at]))
        curves.update(scores[at], truth[at])
        numbers.update(grebe.tensor(x[at]), y[at])
        if truth[at].size:
            mean.update(truth[at].mean(), truth[at].size)
    guess = scores.argmax(1)
    equal(mean.compute(), truth.mean())
    equal(classes.accuracy(), metrics.accuracy(guess, truth))
    for average in AVERAGES:
        for name, (ours, _) in SCORES.items():
            equal(getattr(classes, name)(average), ours(guess, truth, average))
    equal(curves.roc_auc(), metrics.roc_auc(scores, truth))
    equal(curves.log_loss(), metrics.log_loss(scores, truth))
    for name in ("mean_squared_error", "root_mean_squared_error", "mean_absolute_error"):
        equal(getattr(numbers, name)(), getattr(metrics, name)(x, y))
    np.testing.assert_allclose(numbers.r2_score(), metrics.r2_score(x, y), rtol=1e-9)
    binary = metrics.Curves()
    binary.update(scores[:30, 0], truth[:30] == 0)
    binary.update(scores[30:, 0], truth[30:] == 0)
    want = metrics.roc_curve(scores[:, 0], truth == 0)
    for ours_, theirs in zip(binary.roc_curve(), want, strict=True):
        equal(ours_, theirs)
    with pytest.raises(ValueError, match="after"):
        binary.update(scores, truth)
