"""Recurrent layers and cells beside PyTorch's: outputs, states and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import grebe

LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
    ("GRU", {}),
]
# steps, batch, input, hidden, layers, bidirectional, bias, batch_first
SHAPES = [
    (1, 1, 3, 4, 1, False, True, False),
    (6, 1, 1, 4, 1, False, False, False),
    (5, 3, 4, 7, 2, True, True, False),
    (9, 17, 5, 33, 1, False, False, True),
    (4, 40, 6, 64, 2, False, True, False),
    (3, 1, 8, 300, 1, True, True, False),
    (3, 33, 9, 130, 1, True, True, True),
    (2, 1000, 2, 5, 1, False, True, False),
    (2, 2, 2, 1000, 1, False, True, False),
]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def close(got: Any, want: Any, tolerance: float, what: str) -> None:
    a, b = got.detach().numpy(), want.detach().numpy()
    size = max(np.abs(b).max(), 0.1)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=what)


def twins(name: str, dtype: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The same layer in both libraries, with the same weights."""
    a = getattr(grebe.nn, name)(*args, dtype=getattr(grebe, dtype), **kwargs)
    b = getattr(torch.nn, name)(*args, dtype=getattr(torch, dtype), **kwargs)
    assert str(a) == str(b)
    a.load_state_dict({k: grebe.tensor(v.numpy()) for k, v in b.state_dict().items()})
    return a, b


def leaves(arrays: list[Any], lib: Any) -> list[Any]:
    return [lib.tensor(a, requires_grad=True) for a in arrays]


def lengths_of(packed: str, steps: int, batch: int) -> Any:
    lengths = np.random.default_rng(3).integers(1, steps + 1, batch)
    lengths[0] = steps
    return -np.sort(-lengths) if packed == "sorted" else lengths


def run(layer: Any, lib: Any, x: Any, state: Any, packed: str, batch_first: bool) -> list[Any]:
    """The output and the final states."""
    utils = lib.nn.utils.rnn
    if packed:
        steps, batch = x.shape[:2][:: -1 if batch_first else 1]
        lengths = lib.tensor(lengths_of(packed, steps, batch))
        x = utils.pack_padded_sequence(x, lengths, batch_first, packed == "sorted")
    output, last = layer(x, state)
    if packed:
        output, _ = utils.pad_packed_sequence(output, batch_first)
    return [output, *(last if isinstance(last, tuple) else [last])]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("packed", ["", "sorted", "unsorted"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s)))
@pytest.mark.parametrize("name, options", LAYERS)
def test_layer(name: str, options: Any, shape: Any, dtype: str, packed: str) -> None:
    steps, batch, inputs, hidden, layers, both, bias, batch_first = shape
    torch.manual_seed(0)
    kwargs = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": batch_first}
    a, b = twins(name, dtype, inputs, hidden, **kwargs, **options)
    rng, count = np.random.default_rng(0), layers * (1 + both)
    sizes = [(batch, steps, inputs) if batch_first else (steps, batch, inputs),
             (count, batch, options.get("proj_size", hidden)), (count, batch, hidden)]  # fmt: skip
    arrays = [rng.standard_normal(s).astype(dtype) for s in sizes[: 2 + (name == "LSTM")]]
    results, inputs_of = [], []
    for lib, layer in ((grebe, a), (torch, b)):
        x, *state = leaves(arrays, lib)
        hx = tuple(state) if name == "LSTM" else state[0]
        outputs = run(layer, lib, x, hx, packed, batch_first)
        weight = np.random.default_rng(5).standard_normal(tuple(outputs[0].shape)).astype(dtype)
        loss = (outputs[0] * lib.tensor(weight)).sum() + sum((s * s).sum() for s in outputs[1:])
        loss.backward()
        results.append(outputs)
        inputs_of.append([x, *state])
    tolerance = TOLERANCE[dtype]
    for i, (p, q) in enumerate(zip(*results, strict=True)):
        close(p, q, tolerance, f"output {i}")
    for i, (p, q) in enumerate(zip(*inputs_of, strict=True)):
        close(p.grad, q.grad, 3 * tolerance, f"gradient of input {i}")
    for (key, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        close(p.grad, q.grad, 3 * tolerance, f"gradient of {key}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cell(name: str, batch: int, bias: bool, dtype: str) -> None:
    torch.manual_seed(0)
    a, b = twins(name, dtype, 6, 35, bias=bias)
    rng = np.random.default_rng(0)
    shapes = [(batch, 6), (batch, 35), (batch, 35)][: 2 + (name == "LSTMCell")]
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    found = []
    for lib, cell in ((grebe, a), (torch, b)):
        x, *state = leaves(arrays, lib)
        result = cell(x, tuple(state) if name == "LSTMCell" else state[0])
        outputs = list(result) if isinstance(result, tuple) else [result]
        sum((i + 1) * (o * o).sum() for i, o in enumerate(outputs)).backward()
        found.append([*outputs, x.grad, *(s.grad for s in state),
                      *(p.grad for p in cell.parameters())])  # fmt: skip
    for i, (p, q) in enumerate(zip(*found, strict=True)):
        close(p, q, 3 * TOLERANCE[dtype], f"{i}")
