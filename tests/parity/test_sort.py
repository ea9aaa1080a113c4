"""Sorting, selecting and running operations against PyTorch."""

import numpy as np
import pytest

import grebe

torch = pytest.importorskip("torch")

X = np.random.default_rng(0).permutation(120).reshape(4, 5, 6) / 8 - 7
WITH_NAN = np.where(X > 6, np.nan, X)
TIES = np.random.default_rng(1).integers(0, 4, (6, 7))
CALLS = {
    "sort": lambda t, x: t.sort(x, 1),
    "sort_descending": lambda t, x: t.sort(x, dim=0, descending=True, stable=True),
    "argsort": lambda t, x: t.argsort(x, dim=-1, stable=True),
    "topk": lambda t, x: t.topk(x, 3, 1),
    "topk_smallest": lambda t, x: t.topk(x, 2, 0, largest=False),
    "kthvalue": lambda t, x: t.kthvalue(x, 3, 1, keepdim=True),
    "median": lambda t, x: t.median(x),
    "median_dim": lambda t, x: t.median(x, 1),
    "nanmedian": lambda t, x: t.nanmedian(x, 2),
    "quantile": lambda t, x: t.quantile(x, t.tensor([0.1, 0.75], dtype=t.float64), 1, True),
    "cumsum": lambda t, x: t.cumsum(x, 1),
    "cumprod": lambda t, x: t.cumprod(x, 2),
    "cummax": lambda t, x: t.cummax(x, 1),
    "cummin": lambda t, x: t.cummin(x, 2),
    "logcumsumexp": lambda t, x: t.logcumsumexp(x, 0),
    "diff": lambda t, x: t.diff(x, 2, 1),
    "histc": lambda t, x: t.histc(x, 7, -3, 5),
    "msort": lambda t, x: t.msort(x),
}
TIE_CALLS = {
    "sort": lambda t, x: t.sort(x, dim=1, stable=True),
    "sort_descending": lambda t, x: t.sort(x, dim=1, descending=True, stable=True),
    "mode": lambda t, x: t.mode(x, 1).values,
    "cummax": lambda t, x: t.cummax(x, 1),
    "cummin": lambda t, x: t.cummin(x, 0),
    "unique": lambda t, x: t.unique(x, return_inverse=True, return_counts=True),
    "unique_dim": lambda t, x: t.unique(x, dim=1, return_inverse=True),
    "unique_consecutive": lambda t, x: t.unique_consecutive(x, True, True),
    "bincount": lambda t, x: t.bincount(x.reshape(-1), minlength=6),
    "searchsorted": lambda t, x: t.searchsorted(t.sort(x, 1)[0], x, right=True),
    "cumsum": lambda t, x: t.cumsum(x, 1),
}


def arrays(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [part.detach().numpy() for part in parts]


def compare(call, x):
    for ours, theirs in zip(arrays(call(grebe, grebe.tensor(x))),
                            arrays(call(torch, torch.tensor(x))), strict=True):  # fmt: skip
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_distinct_numbers(name):
    compare(CALLS[name], X)


@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("topk", "kthvalue", "argsort")])
def test_with_nan(name):
    result = arrays(CALLS[name](grebe, grebe.tensor(WITH_NAN)))[0]
    expected = arrays(CALLS[name](torch, torch.tensor(WITH_NAN)))[0]
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("name", TIE_CALLS)
def test_equal_integers(name):
    compare(TIE_CALLS[name], TIES)


@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("argsort", "histc")])
def test_gradients(name):
    gradients = []
    for library in (grebe, torch):
        x = library.tensor(X, requires_grad=True)
        result = CALLS[name](library, x)
        values = result[0] if isinstance(result, tuple) else result
        weights = np.cos(np.arange(values.detach().numpy().size)).reshape(tuple(values.shape))
        (values * library.tensor(weights)).sum().backward()
        gradients.append(x.grad.numpy())
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-9)
