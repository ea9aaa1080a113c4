"""Contexts of mixed precision, and which casts are kept; dtypes: tests/parity/test_amp.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.amp import autocast
from grebe.utils.checkpoint import checkpoint


def dtype_of_product() -> Any:
    return (grebe.ones(2, 2) @ grebe.ones(2, 2)).dtype


def test_context_and_decorator() -> None:
    assert grebe.amp.autocast is grebe.autocast
    assert grebe.get_autocast_dtype("cpu") == grebe.bfloat16
    assert not grebe.is_autocast_enabled("cpu")
    with autocast("cpu", dtype=grebe.bfloat16):
        assert grebe.is_autocast_enabled("cpu") and dtype_of_product() == grebe.bfloat16
        with autocast("cpu", enabled=False):
            assert dtype_of_product() == grebe.float32
        assert dtype_of_product() == grebe.bfloat16
        with pytest.raises(KeyError), autocast():
            raise KeyError
        assert dtype_of_product() == grebe.bfloat16
    assert dtype_of_product() == grebe.float32
    assert autocast("cpu")(dtype_of_product)() == grebe.bfloat16
    assert not grebe.is_autocast_enabled("cpu")


def test_error_in_an_operation_leaves_it_on() -> None:
    with autocast():
        with pytest.raises(ValueError):
            nn.functional.conv2d(grebe.ones(1, 2, 3, 3), grebe.ones(1, 3, 1, 1))
        assert grebe.is_autocast_enabled()


@pytest.mark.parametrize("cached", [True, False])
def test_parameters_are_cast_once(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(3, 3), grebe.ones(2, 3)
    count = 0
    to = grebe.Tensor.to

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += self is layer.weight
        return to(self, *args, **kwargs)

    monkeypatch.setattr(grebe.Tensor, "to", counted)
    with autocast(cache_enabled=cached):
        y = layer(layer(x)) + layer(x)
        with autocast():
            y = y + layer(x)
    assert count == (1 if cached else 4)
    y.sum().backward()
    assert layer.weight.grad.dtype == grebe.float32
    count = 0
    with autocast():
        layer(x)
    assert count == 1


def test_cast_after_a_write_or_in_another_grad_mode() -> None:
    layer, x = nn.Linear(2, 2, bias=False), grebe.ones(1, 2)
    with autocast():
        with grebe.no_grad():
            before = layer(x).float().numpy()
            layer.weight.mul_(2.0)
            np.testing.assert_allclose(layer(x).float().numpy(), 2 * before, rtol=1e-2)
        assert layer(x).requires_grad


def test_recurrent_layers_take_what_layers_before_give() -> None:
    with autocast():
        x = nn.Linear(3, 4)(grebe.ones(5, 2, 3))
        for layer in (nn.GRU(4, 3), nn.LSTM(4, 3)):
            assert layer(x)[0].dtype == grebe.float32
        assert nn.GRUCell(4, 3)(x[0]).dtype == grebe.float32


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(need_weights: bool, options: Any) -> None:
    grebe.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **options)
    x = grebe.randn(5, 3, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    exact, _ = attention(x, x, x, need_weights=need_weights, attn_mask=mask)
    for given in (x, x.to(grebe.bfloat16)):
        with autocast():
            y, weights = attention(given, given, given, need_weights=need_weights, attn_mask=mask)
        assert y.dtype == grebe.bfloat16 and (weights is not None) == need_weights
        np.testing.assert_allclose(
            y.detach().float().numpy(), exact.detach().numpy(), rtol=0, atol=0.03
        )
    y.float().sum().backward()
    assert all(p.grad.dtype == grebe.float32 for p in attention.parameters())


def test_checkpoint_casts_again() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    x = grebe.randn(3, 4, requires_grad=True)
    found = []
    for call in (layer, lambda x: checkpoint(layer, x)):
        layer.zero_grad()
        with autocast():
            y = call(x)
        y.float().sum().backward()
        found.append([p.grad.numpy().copy() for p in layer.parameters()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_arguments() -> None:
    with pytest.raises(RuntimeError, match="device_type must be 'cpu' or 'cuda'"):
        autocast("xpu")
    with pytest.raises(RuntimeError, match="dtype must be bfloat16"):
        autocast("cpu", dtype=grebe.float16)
    with pytest.raises(RuntimeError, match="device_type"):
        grebe.get_autocast_dtype("xpu")
    assert grebe.amp.is_autocast_available("cpu") and not grebe.amp.is_autocast_available("xpu")
