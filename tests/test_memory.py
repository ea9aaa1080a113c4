"""Kernels that find no memory for their scratch space say so, and do no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import grebe
import grebe.nn.functional as F
from cases import CASES
from check import cotangent
from grebe import _cpu, nn
from reference import REFERENCES


@contextmanager
def no_scratch() -> Iterator[None]:
    _cpu.limit_scratch(0)
    try:
        yield
    finally:
        _cpu.limit_scratch(2**63)


def refused(call: Callable[[], Any]) -> bool:
    """Whether `call` raises MemoryError without scratch space; it must not fail otherwise."""
    with no_scratch():
        try:
            call()
        except MemoryError as error:
            assert "no memory for scratch space" in str(error)
            return True
    return False


def tensors(arrays: list[Any]) -> list[Any]:
    return [
        grebe.from_numpy(a).requires_grad_() if a.dtype.kind == "f" else grebe.from_numpy(a)
        for a in arrays
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_every_case(op: str, dtype: Any) -> None:
    count = 0
    for case in CASES:
        if case.op == op:
            inputs = tensors(case.draw(dtype))
            count += refused(lambda case=case, inputs=inputs: case.run(grebe, *inputs))
            output = case.run(grebe, *inputs)
            if REFERENCES[op].backward:
                grad = grebe.from_numpy(cotangent(output.detach().numpy(), 1))
                count += refused(lambda output=output, grad=grad: output.backward(grad))
    if op in ("conv2d", "matmul", "linear", "max_pool2d", "batch_norm", "embedding"):
        assert count > 0


X = grebe.randn(300, 40)
LABELS = grebe.randint(0, 40, (300,))
OTHERS: dict[str, Callable[[], Any]] = {
    "cross_entropy": lambda: F.cross_entropy(X, LABELS),
    "nll_loss": lambda: F.nll_loss(X, LABELS),
    "matmul": lambda: grebe.ones(900, 900) @ grebe.ones(900, 900),
    "matmul, bfloat16": lambda: X.bfloat16() @ X.bfloat16().T,
    "argmax": lambda: grebe.ones(1_000_000).argmax(),
    "var": lambda: grebe.ones(1_000_000).var(),
    "LSTM": lambda: nn.LSTM(40, 33)(X[:, None])[0],
    "GRU": lambda: nn.GRU(40, 33)(X[:, None])[0],
    "RNN": lambda: nn.RNN(40, 33)(X[:, None])[0],
}


@pytest.mark.parametrize("name", OTHERS)
def test_forward(name: str) -> None:
    assert refused(OTHERS[name])
    OTHERS[name]()


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_backward_of_recurrent_layers(name: str) -> None:
    output = OTHERS[name]()
    assert refused(lambda: output.sum().backward())


def test_gradient_norm() -> None:
    parameter = nn.Parameter(grebe.ones(100_000))
    parameter.grad = grebe.ones(100_000)
    assert refused(lambda: nn.utils.clip_grad_norm_([parameter], 1.0))
