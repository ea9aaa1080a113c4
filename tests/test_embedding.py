"""Embedding and bags of embeddings beyond the calls of cases.py: options, errors, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.autograd import gradcheck, gradgradcheck

F = nn.functional


def rows(*numbers: int) -> Any:
    return grebe.tensor(list(numbers), dtype=grebe.int64)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: F.embedding(grebe.tensor([[0, 2], [2, 1]]), w),
        lambda w: F.embedding(rows(0, 2, 2), w, padding_idx=-1),
        lambda w: F.embedding_bag(grebe.tensor([[0, 2], [2, 1]]), w),
        lambda w: F.embedding_bag(rows(0, 2, 2, 1), w, rows(0, 0, 3), mode="sum"),
        lambda w: F.embedding_bag(rows(0, 2, 2, 1), w, rows(0, 1), mode="mean", padding_idx=2),
        lambda w: F.embedding_bag(rows(0, 2, 2, 1), w, rows(0, 1, 3), mode="max"),
        lambda w: F.embedding_bag(rows(0, 1, 3), w, rows(0, 1, 3), include_last_offset=True),
    ],
)
def test_gradients(call: Any) -> None:
    w = grebe.randn(4, 3, dtype=grebe.float64, requires_grad=True)
    assert gradcheck(call, (w,))
    assert gradgradcheck(call, (w,))


def test_gradients_of_sample_weights() -> None:
    w = grebe.randn(4, 3, dtype=grebe.float64, requires_grad=True)
    s = grebe.randn(5, dtype=grebe.float64, requires_grad=True)

    def call(w: Any, s: Any) -> Any:
        return F.embedding_bag(rows(3, 0, 0, 2, 1), w, rows(0, 2), mode="sum",
                               per_sample_weights=s, padding_idx=2)  # fmt: skip

    assert gradcheck(call, (w, s))
    assert gradgradcheck(call, (w, s))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_index_dtypes(dtype: Any) -> None:
    w = grebe.randn(4, 3, requires_grad=True)
    index = grebe.from_numpy(np.array([[3, 0], [3, 1]], dtype)[:, ::-1])
    y = F.embedding(index, w)
    assert (y.detach().numpy() == w.detach().numpy()[[[0, 3], [1, 3]]]).all()
    y.sum().backward()
    assert w.grad.numpy()[:, 0].tolist() == [1, 1, 0, 2]


def test_other_dtypes() -> None:
    w = grebe.randn(4, 3).to(grebe.bfloat16).requires_grad_()
    y = F.embedding(rows(1, 1, 2), w, padding_idx=2)
    assert y.dtype == grebe.bfloat16
    y.sum().backward()
    assert w.grad.to(grebe.float32).numpy()[:, 0].tolist() == [0, 2, 0, 0]


def test_a_nan_gradient_of_padding_does_not_spread() -> None:
    w = grebe.randn(3, 2, requires_grad=True)
    y = F.embedding(rows(0, 1), w, padding_idx=1)
    y.backward(grebe.tensor([[1.0, 2.0], [float("nan"), 1.0]]))
    assert w.grad.tolist() == [[1, 2], [0, 0], [0, 0]]


@pytest.mark.parametrize("by_frequency", [False, True])
@pytest.mark.parametrize("columns", [16, 17, 130])
def test_padding_and_frequency(columns: int, by_frequency: bool) -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, 7, (20, 3))
    grad = rng.standard_normal((20, 3, columns)).astype(np.float32)
    w = grebe.zeros(7, columns, requires_grad=True)
    F.embedding(grebe.from_numpy(index), w, 1, None, 2.0, by_frequency).backward(
        grebe.from_numpy(grad)
    )
    expected = np.zeros((7, columns))
    np.add.at(expected, index, grad)
    if by_frequency:
        expected /= np.bincount(index.ravel(), minlength=7)[:, None]
    expected[1] = 0
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_frequency_in_bags() -> None:
    index, offsets = rows(2, 2, 2, 1, 0, 0), rows(0, 4)
    for mode, expected in (("sum", [[1], [1], [1]]), ("mean", [[0.5], [0.25], [0.25]])):
        w = grebe.ones(3, 1, requires_grad=True)
        y = F.embedding_bag(index, w, offsets, scale_grad_by_freq=True, mode=mode)
        y.sum().backward()
        assert w.grad.tolist() == expected


def test_frequent_rows_do_not_change_with_threads() -> None:
    index = grebe.from_numpy(np.minimum(np.random.default_rng(0).integers(0, 400, 3000), 60))
    grad = grebe.randn(3000, 70)
    results = []
    for threads in (1, 2):
        grebe.set_num_threads(threads)
        w = grebe.zeros(200, 70, requires_grad=True)
        F.embedding(index, w).backward(grad)
        results.append(w.grad.numpy().copy())
    assert results[0].tobytes() == results[1].tobytes()
    assert (results[0][61:] == 0).all()


def test_indices_must_not_change_before_backward() -> None:
    w, index = grebe.randn(4, 3, requires_grad=True), rows(1, 2)
    y = F.embedding(index, w)
    index[0] = 3
    with pytest.raises(RuntimeError, match="modified"):
        y.sum().backward()


def test_bags() -> None:
    w = grebe.tensor([[1.0, -1.0], [2.0, -5.0], [4.0, -2.0]])
    index, offsets = rows(0, 1, 2, 2), rows(0, 2, 2)
    assert F.embedding_bag(index, w, offsets, mode="sum").tolist() == [[3, -6], [0, 0], [8, -4]]
    assert F.embedding_bag(index, w, offsets).tolist() == [[1.5, -3], [0, 0], [4, -2]]
    assert F.embedding_bag(index, w, offsets, mode="max").tolist() == [[2, -1], [0, 0], [4, -2]]
    padded = F.embedding_bag(index, w, offsets, padding_idx=1)
    assert padded.tolist() == [[1, -1], [0, 0], [4, -2]]
    padded = F.embedding_bag(index, w, rows(0, 1), mode="max", padding_idx=0)
    assert padded.tolist() == [[0, 0], [4, -2]]
    assert F.embedding_bag(rows(), w, rows(0, 0), mode="max").tolist() == [[0, 0], [0, 0]]
    limited = w.clone()
    F.embedding_bag(rows(1), limited, rows(0), max_norm=1.0)
    assert np.linalg.norm(limited.numpy()[1]) == pytest.approx(1, rel=1e-5)
    assert limited.numpy()[0].tolist() == [1, -1]


def test_layers() -> None:
    bag = nn.EmbeddingBag(5, 3, padding_idx=-1, mode="sum")
    assert repr(bag) == "EmbeddingBag(5, 3, mode='sum', padding_idx=4)"
    assert (bag.weight.detach().numpy()[4] == 0).all()
    table = grebe.randn(3, 2)
    loaded = nn.EmbeddingBag.from_pretrained(table, mode="max")
    assert not loaded.weight.requires_grad and loaded.mode == "max"
    with pytest.raises(ValueError, match="padding_idx must be below"):
        nn.EmbeddingBag(3, 2, padding_idx=3)
    with pytest.raises(ValueError, match=r"weight has shape \[3, 2\], expected \[4, 2\]"):
        nn.Embedding(4, 2, _weight=table)
    for layer in (nn.Embedding, nn.EmbeddingBag):
        with pytest.raises(NotImplementedError, match="sparse"):
            layer(3, 2, sparse=True)


W = grebe.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: F.embedding(rows(0, 3), W), IndexError, "index 3 is out of range, expected 0"),
        (lambda: F.embedding(rows(0, -1), W), IndexError, "index -1"),
        (lambda: F.embedding(rows(0), W[:0]), IndexError, "index 0"),
        (lambda: F.embedding(rows(0), W[0]), RuntimeError, r"2 dims, got shape \[2\]"),
        (lambda: F.embedding(rows(0), W, 3), IndexError, "padding_idx 3"),
        (lambda: F.embedding(grebe.ones(2), W), TypeError, "integers, got float32"),
        (lambda: F.embedding(rows(0), [1.0]), TypeError, "weight"),
        (lambda: F.embedding_bag(rows(0), W), ValueError, "offsets must be given"),
        (lambda: F.embedding_bag(rows(0)[None], W, rows(0)), ValueError, "offsets must be None"),
        (lambda: F.embedding_bag(rows(0)[None, None], W), ValueError, "1-D or 2-D"),
        (lambda: F.embedding_bag(rows(0, 1), W, rows(1)), ValueError, "start at 0"),
        (lambda: F.embedding_bag(rows(0, 1), W, rows(0, 3)), ValueError, "at most at 2"),
        (lambda: F.embedding_bag(rows(0, 1), W, rows(0, 2, 1)), ValueError, "not decrease"),
        (lambda: F.embedding_bag(rows(0), W, rows(0)[None]), ValueError, "offsets must be 1-D"),
        (lambda: F.embedding_bag(rows(0), W, grebe.ones(1)), TypeError, "offsets must hold"),
        (lambda: F.embedding_bag(rows(0, 3), W, rows(0)), IndexError, "index 3"),
        (lambda: F.embedding_bag(rows(0), W, rows(0), mode="min"), ValueError, "got 'min'"),
        (
            lambda: F.embedding_bag(rows(0), W, rows(0), per_sample_weights=grebe.ones(1)),
            NotImplementedError,
            "mode 'sum'",
        ),
        (
            lambda: F.embedding_bag(
                rows(0), W, rows(0), mode="sum", per_sample_weights=grebe.ones(2)
            ),
            ValueError,
            r"shape \[1\]",
        ),
        (
            lambda: F.embedding_bag(rows(0), W, rows(0), mode="max", scale_grad_by_freq=True),
            ValueError,
            "scale_grad_by_freq",
        ),
        (
            lambda: F.embedding_bag(rows(0), W, rows(), include_last_offset=True),
            ValueError,
            "at least one offset",
        ),
        (lambda: F.embedding_bag(rows(0), W.long(), rows(0)), TypeError, "float32 or float64"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "int64", "int32",
                                   "uint8", "bool"])  # fmt: skip
@pytest.mark.parametrize("columns", [1, 3, 40])
def test_rows_of_every_dtype(dtype: str, columns: int) -> None:
    table = (grebe.randn(7, columns) * 3).to(getattr(grebe, dtype))
    got = F.embedding(rows(6, 0, 3, 3), table)
    assert got.dtype == table.dtype
    assert (got == table[[6, 0, 3, 3]]).all()
