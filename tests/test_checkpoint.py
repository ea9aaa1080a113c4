"""Checkpointed calls: the same results and gradients as without, in less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.autograd import gradcheck, gradgradcheck
from grebe.utils.checkpoint import CheckpointError, checkpoint, checkpoint_sequential

Array = np.ndarray[Any, np.dtype[Any]]


def tensor(*shape: int, seed: int = 0) -> grebe.Tensor:
    return grebe.tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def network(dropout: float = 0.0) -> nn.Sequential:
    grebe.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(dropout)) for _ in range(5)]
    return nn.Sequential(*parts).double()


def plain(t: Any) -> Array:
    return np.array(t.detach().numpy())


def gradients(model: nn.Module, forward: Callable[[Any], Any]) -> list[Array]:
    model.zero_grad()
    grebe.manual_seed(7)
    x = tensor(4, 6)
    y = forward(x)
    after = grebe.randn(3)
    (y * y).sum().backward()
    then = grebe.randn(3)
    return [plain(t) for t in (y, x.grad, after, then, *(p.grad for p in model.parameters()))]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_sequential(segments: int, dropout: float) -> None:
    """With dropout too: the numbers of the first call are drawn again, and none of later ones."""
    model = network(dropout)
    want = gradients(model, model)
    got = gradients(model, lambda x: checkpoint_sequential(model, segments, x))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_state_may_go_on() -> None:
    model = network(0.4)
    want = gradients(model, model)
    got = gradients(model, lambda x: checkpoint_sequential(model, 2, x, preserve_rng_state=False))
    np.testing.assert_array_equal(got[0], want[0])
    assert any((a != b).any() for a, b in zip(got[4:], want[4:], strict=True))


class Pair(NamedTuple):
    one: Any
    two: Any


def several(x: Any, y: Any, *, factor: Any, flag: bool = False) -> dict[str, Any]:
    product = x * y * factor
    return {"pair": Pair(product, x.exp()), "list": [product, x, 5, None], "flag": flag,
            "parts": (x * 2.0).unbind(0)}  # fmt: skip


def test_results_of_any_structure() -> None:
    x, y, factor = tensor(2, 3), tensor(2, 3, seed=1), tensor(2, 3, seed=2)
    for call in (several, lambda *args, **kwargs: checkpoint(several, *args, **kwargs)):
        result = call(x, y, factor=factor, flag=True)
        assert result["flag"] is True and result["list"][1:] == [x, 5, None]
        assert isinstance(result["pair"], Pair) and result["pair"].one is result["list"][0]
        loss = (result["pair"].one * result["pair"].two).sum() + result["parts"][1].sum()
        found = grebe.autograd.grad([loss], [x, y, factor])
        if call is several:
            want = found
    for a, b in zip(found, want, strict=True):
        np.testing.assert_array_equal(plain(a), plain(b))


def test_any_order() -> None:
    weight = tensor(3, 3, seed=3)

    def call(x: Any, w: Any) -> Any:
        inner = checkpoint(lambda t: (t @ w).tanh(), x)  # w is captured
        return checkpoint(lambda t: (t * t * w).sum(0), inner) * weight.sum()

    assert gradcheck(call, [tensor(3, 3), tensor(3, 3, seed=1)])
    assert gradgradcheck(call, [tensor(3, 3), tensor(3, 3, seed=1)])


def test_nested() -> None:
    model = network(0.3)

    def inner(x: Any) -> Any:
        return checkpoint(model[1], checkpoint(model[0], x))

    def forward(x: Any) -> Any:
        for layer in model[2:]:
            x = layer(x)
        return x

    want = gradients(model, model)
    got = gradients(model, lambda x: forward(checkpoint(inner, x)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_captured_value_with_a_history() -> None:
    """What the function takes from outside gets its gradient, also if it is no leaf."""
    leaf = tensor(3)
    outside = leaf * 2.0
    y = checkpoint(lambda x: x * outside, tensor(3, seed=1)) + outside
    (gradient,) = grebe.autograd.grad([y.sum()], [leaf])
    np.testing.assert_allclose(plain(gradient), 2 * (plain(tensor(3, seed=1)) + 1))


def test_frees_what_is_inside() -> None:
    kept: list[Any] = []

    def call(x: Any) -> Any:
        middle = x.exp()
        kept.append(weakref.ref(middle))
        return (middle * middle).sum()

    y = checkpoint(call, tensor(5))
    gc.collect()
    assert kept[0]() is None
    y.backward()
    gc.collect()
    assert len(kept) == 2 and kept[1]() is None


def test_memory() -> None:
    """Eight layers of 8 MB each hold 16 values; with four segments at most a few are left."""
    layers = [nn.Sequential(nn.Tanh(), nn.Tanh()) for _ in range(8)]
    x = grebe.randn(1000, 2000, requires_grad=True)

    def held(y: Any) -> int:
        total, stack, seen = 0, [y._node], set()
        while stack:
            node = stack.pop()
            if not isinstance(node, grebe.autograd.Node) or id(node) in seen:
                continue
            seen.add(id(node))
            saved = getattr(node, "saved", ()) if type(node).__name__ != "Output" else ()
            total += sum(t.array.nbytes for t in saved if isinstance(t, grebe.Tensor))
            stack += node.edges
        return total

    whole = held(nn.Sequential(*layers)(x))
    parts = held(checkpoint_sequential(layers, 4, x))
    assert whole >= 16 * x.array.nbytes and parts <= 7 * x.array.nbytes


def test_without_gradients() -> None:
    calls = []
    with grebe.no_grad():
        checkpoint(calls.append, 1)
    y = checkpoint(lambda x: x * 2.0, grebe.ones(3))
    assert not y.requires_grad and calls == [1]


def test_contexts() -> None:
    log: list[str] = []

    class Context:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            log.append(self.name)

        def __exit__(self, *_: object) -> None: ...

    y = checkpoint(lambda x: x.exp(), tensor(3),
                   context_fn=lambda: (Context("first"), Context("again")))  # fmt: skip
    assert log == ["first"]
    y.sum().backward()
    assert log == ["first", "again"]


def test_error_leaves_the_state_as_it_was() -> None:
    fail = False

    def call(x: Any) -> Any:
        if fail:
            raise KeyError("second time")
        return x * grebe.rand(3).double()

    y = checkpoint(call, tensor(3)).sum()
    fail = True
    grebe.manual_seed(1)
    want = plain(grebe.randn(3))
    grebe.manual_seed(1)
    with pytest.raises(KeyError), grebe.no_grad():
        y.backward()
    np.testing.assert_array_equal(plain(grebe.randn(3)), want)
    assert grebe.is_grad_enabled()


def test_input_written_to() -> None:
    x = tensor(3) * 1.0
    y = checkpoint(lambda t: t.exp(), x)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match=r"in-?place|modified"):
        y.sum().backward()


def test_second_backward() -> None:
    y = checkpoint(lambda t: t.exp(), tensor(3)).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def changing(*results: Any) -> Any:
    turns = iter(results)
    return lambda x: next(turns)(x)


WRONG: list[tuple[Any, str]] = [
    (changing(lambda x: x.exp(), lambda x: x.exp()[:2]), "an output had shape"),
    (changing(lambda x: x.exp(), lambda x: x.detach()), "other tensors"),
    (changing(lambda x: x.exp(), lambda x: x * tensor(3)), "other tensors"),
    (changing(lambda x: (x.exp(), x.sin())[0], lambda x: (x.exp(), x.sin())), "other tensors"),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_function_that_changes(call: Any, message: str) -> None:
    y = checkpoint(call, tensor(3))
    with pytest.raises(CheckpointError, match=message):
        y.sum().backward()


def test_arguments() -> None:
    with pytest.raises(ValueError, match="determinism_check"):
        checkpoint(lambda x: x, tensor(3), determinism_check="all")
    with pytest.raises(NotImplementedError, match="debug"):
        checkpoint(lambda x: x, tensor(3), debug=True)
    for segments in (0, 6):
        with pytest.raises(ValueError, match="segments must be from 1 to 5"):
            checkpoint_sequential(network(), segments, tensor(4, 6))
