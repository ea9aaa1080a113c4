"""Attention and Transformer layers: what PyTorch has no answer for, errors, memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.autograd import gradcheck, gradgradcheck


def layer(**kwargs: Any) -> nn.MultiheadAttention:
    grebe.manual_seed(0)
    return nn.MultiheadAttention(6, 2, dtype=grebe.float64, **kwargs)


def tensor(*shape: int, seed: int = 0, dtype: Any = np.float64) -> grebe.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return grebe.tensor(values, requires_grad=True)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("inputs", ["self", "memory", "three", "more"])
def test_gradients_of_any_order(inputs: str, batch_first: bool) -> None:
    attention = layer(batch_first=batch_first, add_zero_attn=inputs == "more")
    mask = tensor(3, 4, seed=5) if inputs != "self" else tensor(3, 3, seed=5)

    def call(q: Any, mask: Any, k: Any = None, v: Any = None) -> Any:
        k = q if k is None else k
        return attention(q, k, k if v is None else v, None, False, mask)[0]

    def draw(n: int, seed: int) -> Any:
        return tensor(*((2, n, 6) if batch_first else (n, 2, 6)), seed=seed)

    leaves = [draw(3, 0), mask]
    leaves += [draw(4, 1)] if inputs != "self" else []
    leaves += [draw(4, 2)] if inputs in ("three", "more") else []
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("kind", ["end", "scattered", "mask"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_query_without_keys(need_weights: bool, kind: str) -> None:
    attention, x = layer(batch_first=True), tensor(2, 5, 6)
    nn.init.normal_(attention.out_proj.bias)
    padding = np.zeros((2, 5), bool)
    padding[0] = True
    padding[1, 0] = kind == "scattered"
    mask = None
    if kind == "mask":
        padding, mask = None, np.zeros((4, 5, 5), bool)  # type: ignore[assignment]
        mask[:2] = True
    y, weights = attention(
        x, x, x, None if padding is None else grebe.tensor(padding), need_weights,
        None if mask is None else grebe.tensor(mask),
    )  # fmt: skip
    bias = attention.out_proj.bias.detach().numpy()
    np.testing.assert_array_equal(y.detach().numpy()[0], np.tile(bias, (5, 1)))
    y.sum().backward()
    assert not x.grad.numpy()[0].any() and np.isfinite(x.grad.numpy()).all()
    assert x.grad.numpy()[1].any()
    if weights is not None:
        assert not weights.detach().numpy()[0].any()


@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_of_weights(batch_first: bool) -> None:
    """The same mask with and without the weights in memory, in both directions."""
    attention = layer(dropout=0.4, batch_first=batch_first)
    results = []
    for need_weights in (True, False):
        grebe.manual_seed(3)
        x = tensor(9, 7, 6)
        y, _ = attention(x, x, x, need_weights=need_weights)
        y.pow(2).sum().backward()
        results.append((y.detach().numpy(), x.grad.numpy()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    attention.eval()
    y, _ = attention(tensor(9, 7, 6), tensor(9, 7, 6), tensor(9, 7, 6), need_weights=False)
    assert np.abs(y.detach().numpy() - results[0][0]).max() > 1e-3


def test_bfloat16() -> None:
    exact = nn.MultiheadAttention(16, 2)
    rounded = copy.deepcopy(exact).to(grebe.bfloat16)
    x = tensor(5, 3, 16, dtype=np.float32)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    y, weights = exact(x, x, x, attn_mask=mask)
    z, _ = rounded(*[x.to(grebe.bfloat16)] * 3, attn_mask=mask.to(grebe.bfloat16))
    assert z.dtype == grebe.bfloat16
    np.testing.assert_allclose(
        z.detach().float().numpy(), y.detach().numpy(), atol=0.02 * np.abs(y.detach().numpy()).max()
    )
    assert weights is not None and not np.triu(weights.detach().numpy(), 1).any()


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_is_one_product(batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One projection, and the kernel gets it where it is: heads are views of its memory."""
    from grebe.ops import multihead

    seen: list[Any] = []
    record = multihead.record

    def spy(node: Any, array: Any, inputs: Any, saved: Any) -> Any:
        seen.append((inputs, saved[-1].arrays([inputs[0].array])))
        return record(node, array, inputs, saved)

    monkeypatch.setattr(multihead, "record", spy)
    x = tensor(5, 3, 6)
    layer(batch_first=batch_first)(x, x, x, need_weights=False)
    ((source, mask), heads), *more = seen
    assert not more and mask is None and source.shape == (5, 3, 18)
    assert all(np.shares_memory(h, source.array) for h in heads)


@pytest.mark.parametrize("threads", [1, 2])
def test_empty(threads: int) -> None:
    before = grebe.get_num_threads()
    grebe.set_num_threads(threads)
    try:
        for shape in ((0, 4, 6), (3, 0, 6)):
            x = tensor(*shape)
            y, _ = layer()(x, x, x, need_weights=False)
            y.sum().backward()
            assert y.shape == x.grad.shape == shape
    finally:
        grebe.set_num_threads(before)


X, MASK = (5, 3, 6), (5, 5)
WRONG: list[tuple[str, type[Exception], Any]] = [
    ("embed_dim must be divisible by num_heads", ValueError, lambda: nn.MultiheadAttention(6, 4)),
    ("num_heads must be at least 1", ValueError, lambda: nn.MultiheadAttention(6, 0)),
    ("dropout must be a number from 0 to 1", ValueError, lambda: nn.MultiheadAttention(6, 2, 1.5)),
    ("query must be a Tensor", TypeError, lambda: layer()(np.zeros(X), tensor(*X), tensor(*X))),
    ("of 2 or of 3 dimensions", RuntimeError, lambda: layer()(*[tensor(1, *X)] * 3)),
    ("of 2 or of 3 dimensions", RuntimeError,
     lambda: layer()(tensor(5, 6), tensor(*X), tensor(*X))),
    ("key whose last dimension is 6", RuntimeError,
     lambda: layer()(tensor(*X), tensor(5, 3, 7), tensor(*X))),
    ("one batch size", RuntimeError, lambda: layer()(tensor(*X), tensor(5, 4, 6), tensor(5, 4, 6))),
    ("one batch size", RuntimeError, lambda: layer()(tensor(*X), tensor(*X), tensor(4, 3, 6))),
    ("attn_mask \\[5, 5\\] or \\[6, 5, 5\\]", RuntimeError,
     lambda: layer()(*[tensor(*X)] * 3, attn_mask=tensor(3, 5, 5))),
    ("key_padding_mask \\[3, 5\\]", RuntimeError,
     lambda: layer()(*[tensor(*X)] * 3, key_padding_mask=tensor(5, 3))),
    ("attn_mask must be bool or", TypeError,
     lambda: layer()(*[tensor(*X)] * 3, attn_mask=tensor(*MASK, dtype=np.float32))),
    ("attn_mask must be a Tensor", TypeError,
     lambda: layer()(*[tensor(*X)] * 3, attn_mask=np.zeros(MASK))),
    ("needs attn_mask", RuntimeError, lambda: layer()(*[tensor(*X)] * 3, is_causal=True)),
    ("same dtype", RuntimeError, lambda: layer()(*[tensor(*X, dtype=np.float32)] * 3)),
    ("should be relu/gelu", RuntimeError,
     lambda: nn.TransformerEncoderLayer(6, 2, activation="tanh")),
    ("batch number", RuntimeError,
     lambda: nn.Transformer(6, 2, 1, 1)(tensor(5, 3, 6), tensor(5, 2, 6))),
    ("feature number", RuntimeError,
     lambda: nn.Transformer(6, 2, 1, 1)(tensor(5, 3, 7), tensor(5, 3, 6))),
]  # fmt: skip


@pytest.mark.parametrize("message, error, call", WRONG)
def test_errors(message: str, error: type[Exception], call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_layers_of_a_stack_are_copies() -> None:
    one = nn.TransformerEncoderLayer(6, 2, 8)
    stack = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
    stack.layers[0].linear1.weight.data.fill_(0)
    assert one.linear1.weight.array.any() and stack.layers[1].linear1.weight.array.any()


def test_activation_may_be_a_module() -> None:
    one = nn.TransformerEncoderLayer(6, 2, 8, activation=nn.PReLU())
    assert "activation.weight" in one.state_dict()
    one(tensor(5, 3, 6, dtype=np.float32)).sum().backward()
    assert one.activation.weight.grad is not None


def test_training_drops_and_evaluation_does_not() -> None:
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8), 2)
    x = tensor(5, 3, 6, dtype=np.float32)
    assert not np.array_equal(stack(x).detach().numpy(), stack(x).detach().numpy())
    stack.eval()
    np.testing.assert_array_equal(stack(x).detach().numpy(), stack(x).detach().numpy())
