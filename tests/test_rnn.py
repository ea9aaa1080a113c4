"""Recurrent layers, cells and packed sequences against a NumPy reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn
from grebe.autograd import gradcheck, gradgradcheck
from grebe.nn.utils.rnn import (
    PackedSequence,
    invert_permutation,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)
from grebe.ops.rnn import Steps, composite, recurrent

MODES = ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
# Steps (number of sequences in each), input size, hidden size: around vector and tile sizes, with
# units split among threads (few sequences, large weights) and sequences split (many).
CASES = [
    ([1], 1, 1),
    ([3, 3], 2, 15),
    ([7, 5, 5, 1], 3, 16),
    ([33] * 3, 4, 17),
    ([50, 40, 13], 5, 33),
    ([13, 12, 1], 2, 64),
    ([2, 2, 1], 3, 130),
    ([12, 12], 65, 128),
    ([12, 12], 64, 172),
    ([20, 18, 5], 3, 257),
]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def one_step(mode: str, x: Any, h: Any, c: Any, w: list[Any]) -> tuple[Any, Any]:
    a, b = x @ w[0].T + w[2], h @ w[1].T + w[3]
    if mode == "RNN_TANH":
        return np.tanh(a + b), c
    if mode == "RNN_RELU":
        return np.maximum(a + b, 0), c
    if mode == "LSTM":
        i, f, g, o = np.split(a + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (r, z, n), (hr, hz, hn) = np.split(a, 3), np.split(b, 3)
    z, n = sigmoid(z + hz), np.tanh(n + sigmoid(r + hr) * hn)
    return (1 - z) * n + z * h, c


def reference(
    mode: str, sizes: list[int], reverse: bool, x: Any, h0: Any, c0: Any, w: list[Any]
) -> list[Any]:
    """All h, the last h, the last c; one sequence after the other."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    output, last, cells = np.empty((len(x), h0.shape[1])), np.empty_like(h0), np.empty_like(h0)
    for b in range(sizes[0]):
        steps = [t for t, n in enumerate(sizes) if n > b]
        h, c = h0[b], c0[b]
        for t in reversed(steps) if reverse else steps:
            h, c = one_step(mode, x[offsets[t] + b], h, c, w)
            output[offsets[t] + b] = h
        last[b], cells[b] = h, c
    return [output, last, cells] if mode == "LSTM" else [output, last]


def draw(mode: str, sizes: list[int], inputs: int, size: int, dtype: Any = np.float64) -> list[Any]:
    """x, h0, c0, two weights and two biases."""
    rng, rows = np.random.default_rng(0), GATES[mode] * size
    b = sizes[0]
    shapes = [(sum(sizes), inputs), (b, size), (b, size), (rows, inputs), (rows, size), rows, rows]
    scales = [1, 1, 1, 1, size**-0.5, 1, 1]
    arrays = [rng.standard_normal(s) * k for s, k in zip(shapes, scales, strict=True)]
    return [a.astype(dtype) for a in arrays]


def run(
    function: Any, mode: str, sizes: list[int], reverse: bool, arrays: list[Any]
) -> tuple[list[Any], list[Any]]:
    """The outputs, and the gradients of all inputs for a fixed gradient of the outputs."""
    x, h0, c0, *weights = (grebe.tensor(a, requires_grad=True) for a in arrays)
    cells = c0 if mode == "LSTM" else None
    outputs = function(x, h0, cells, tuple(weights), Steps.of_sizes(sizes, mode, reverse))
    rng = np.random.default_rng(1)
    loss = sum((o * grebe.tensor(rng.standard_normal(o.shape), dtype=o.dtype)).sum()
               for o in outputs)  # fmt: skip
    loss.backward()
    leaves = [x, h0, *([c0] if mode == "LSTM" else []), *weights]
    return [o.detach().numpy() for o in outputs], [v.grad.numpy() for v in leaves]


def close(got: Any, want: Any, eps: float, what: str) -> None:
    size = max(np.abs(want).max(), 1.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=200 * eps * size, err_msg=what)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0][0]}x{len(c[0])},{c[1]},{c[2]}")
@pytest.mark.parametrize("mode", MODES)
def test_kernel(mode: str, case: Any, reverse: bool, dtype: Any) -> None:
    sizes, inputs, size = case
    arrays = draw(mode, sizes, inputs, size, dtype)
    wide = [a.astype(np.float64) for a in arrays]
    eps = float(np.finfo(dtype).eps)
    got, grads = run(recurrent, mode, sizes, reverse, arrays)
    want = reference(mode, sizes, reverse, *wide[:3], wide[3:])
    for name, a, b in zip(("h", "last h", "last c"), got, want, strict=False):
        assert a.dtype == dtype
        close(a, b, eps, name)
    composed, wanted = run(composite, mode, sizes, reverse, wide)
    for a, b in zip(composed, want, strict=True):
        close(a, b, np.finfo(np.float64).eps, "composite")
    for i, (a, b) in enumerate(zip(grads, wanted, strict=True)):
        assert np.isfinite(a).all()
        close(a, b, eps, f"gradient {i}")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_threads_do_not_change_a_bit(mode: str, reverse: bool) -> None:
    for sizes, inputs, size, dtype in [
        ([40, 39, 7], 5, 80, grebe.float32),
        ([4, 4, 2], 3, 300, grebe.float32),
        ([140, 130], 4, 300, grebe.float32),
        ([40, 39, 8], 6, 300, grebe.bfloat16),
    ]:
        drawn = draw(mode, sizes, inputs, size, np.float32)
        arrays = [grebe.tensor(a, dtype=dtype).numpy() for a in drawn]
        results = []
        for threads in (1, 2):
            grebe.set_num_threads(threads)
            outputs, grads = run(recurrent, mode, sizes, reverse, arrays)
            results.append(outputs + grads)
        for a, b in zip(*results, strict=True):
            assert (a == b).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0][0]}x{len(c[0])},{c[1]},{c[2]}")
@pytest.mark.parametrize("mode", MODES)
def test_the_same_without_gradients(mode: str, case: Any) -> None:
    sizes, inputs, size = case
    x, h0, c0, *weights = (grebe.tensor(a) for a in draw(mode, sizes, inputs, size, np.float32))
    arguments = (x, h0, c0 if mode == "LSTM" else None, tuple(weights), Steps.of_sizes(sizes, mode))
    with_history = recurrent(x.clone().requires_grad_(), *arguments[1:])
    for a, b in zip(recurrent(*arguments), with_history, strict=True):
        assert (a.numpy() == b.detach().numpy()).all()


@pytest.mark.parametrize("size", [1, 33, 1000])
@pytest.mark.parametrize("batch", [1, 33, 1000])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_sizes(kind: str, batch: int, size: int) -> None:
    rng = np.random.default_rng(0)
    layer = getattr(nn, kind)(5, size)
    x = grebe.tensor(rng.standard_normal((3, batch, 5)), dtype=grebe.float32, requires_grad=True)
    output, state = layer(x)
    wide = getattr(nn, kind)(5, size).double()
    wide.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    close(output.detach().numpy(), wide(x.detach().double())[0].detach().numpy(), 1.2e-7, "h")
    output.sum().backward()
    assert x.grad is not None and grebe.isfinite(x.grad).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_gradients(mode: str, check: Any) -> None:
    sizes = [3, 2, 2]
    arrays = draw(mode, sizes, 2, 3)
    x, h0, c0, *weights = (grebe.tensor(a, requires_grad=True) for a in arrays)
    steps = Steps.of_sizes(sizes, mode)
    if mode == "LSTM":
        assert check(lambda a, b, c, *w: recurrent(a, b, c, w, steps), (x, h0, c0, *weights))
    else:
        assert check(lambda a, b, *w: recurrent(a, b, None, w, steps), (x, h0, *weights))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_gradients_with_projection(check: Any) -> None:
    arrays = draw("LSTM", [3, 2], 2, 3)
    arrays[1], arrays[4] = arrays[1][:, :2], arrays[4][:, :2]
    arrays.append(np.random.default_rng(2).standard_normal((2, 3)))
    leaves = [grebe.tensor(a, requires_grad=True) for a in arrays]
    steps = Steps.of_sizes([3, 2], "LSTM")
    assert check(lambda a, b, c, *w: recurrent(a, b, c, w[:4], steps, w[4]), leaves)


def test_states_that_depend_on_the_input() -> None:
    x = grebe.randn(4, 3, dtype=grebe.float64, requires_grad=True)
    layer = nn.GRU(3, 3, dtype=grebe.float64)

    def loss(x: Any) -> Any:
        return layer(x, (x[:1] * 2).tanh())[0].sum()

    assert gradcheck(loss, (x,)) and gradgradcheck(loss, (x,))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_writing_to_the_output_is_noticed(kind: str) -> None:
    layer = getattr(nn, kind)(2, 3)
    output, _ = layer(grebe.randn(4, 2, 2))
    with grebe.no_grad():
        output.zero_()
    with pytest.raises(RuntimeError, match="modified"):
        output.sum().backward()


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_equals_one_by_one(kind: str, bidirectional: bool) -> None:
    layer = getattr(nn, kind)(3, 5, 2, bidirectional=bidirectional, dtype=grebe.float64)
    sequences = [grebe.randn(n, 3, dtype=grebe.float64) for n in (2, 6, 1, 4)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, last = layer(packed)
    for i, (sequence, got) in enumerate(zip(sequences, unpack_sequence(output), strict=True)):
        want, state = layer(sequence)
        np.testing.assert_allclose(got.detach(), want.detach(), atol=1e-12)
        pairs = zip(last, state, strict=True) if kind == "LSTM" else [(last, state)]
        for a, b in pairs:
            np.testing.assert_allclose(a[:, i].detach(), b.detach(), atol=1e-12)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_cells_are_steps(kind: str) -> None:
    layer, cell = getattr(nn, kind)(4, 6), getattr(nn, kind + "Cell")(4, 6)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = grebe.randn(5, 3, 4)
    want, _ = layer(x)
    state = None
    for t in range(5):
        state = cell(x[t], state)
        h = state[0] if kind == "LSTM" else state
        np.testing.assert_allclose(h.detach(), want[t].detach(), atol=1e-6)
    alone = cell(x[0, 0])
    alone = alone[0] if kind == "LSTM" else alone
    np.testing.assert_allclose(alone.detach(), want[0, 0].detach(), atol=1e-6)
    h.sum().backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in cell.parameters())


def test_layouts() -> None:
    layer = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)
    x = grebe.randn(5, 7, 3)
    output, (h, c) = layer(x)
    assert output.shape == (5, 7, 4) and h.shape == (4, 5, 2) and c.shape == (4, 5, 4)
    one, (h1, c1) = layer(x[2])
    assert one.shape == (7, 4) and h1.shape == (4, 2) and c1.shape == (4, 4)
    np.testing.assert_allclose(one.detach(), output[2].detach(), atol=1e-6)
    np.testing.assert_allclose(c1.detach(), c[:, 2].detach(), atol=1e-6)
    assert len(layer.all_weights) == 4 and len(layer.all_weights[0]) == 5
    assert (
        str(layer) == "LSTM(3, 4, proj_size=2, num_layers=2, batch_first=True, bidirectional=True)"
    )


def test_dropout_between_layers_only_in_training() -> None:
    layer = nn.GRU(3, 50, 2, dropout=1.0)
    x = grebe.randn(4, 2, 3)
    grebe.manual_seed(0)
    dropped, _ = layer(x)
    zeros, _ = layer(x * 0 + 7)
    assert (dropped == zeros).all()  # the second layer sees zeros, whatever x
    layer.eval()
    assert not (layer(x)[0] == layer(x * 0 + 7)[0]).all()


# Sequences per step, sizes: even and at least 8 sequences (products of pairs, where the machine has
# them), or not (float32 and back).
HALF_CASES = [
    ([8, 8], 2, 2),
    ([9, 8, 7], 4, 18),
    ([40, 24], 6, 64),
    ([50, 40, 13], 28, 130),
    ([8, 8, 8], 5, 16),
    ([7, 7], 4, 16),
    ([12], 4, 16),
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", HALF_CASES, ids=lambda c: f"{c[0][0]}x{len(c[0])},{c[1]},{c[2]}")
@pytest.mark.parametrize("mode", MODES)
def test_bfloat16(mode: str, case: Any, reverse: bool) -> None:
    sizes, inputs, size = case
    arrays = draw(mode, sizes, inputs, size, np.float32)
    half = [grebe.tensor(a).to(grebe.bfloat16).numpy() for a in arrays]
    wide = [a.astype(np.float64) for a in half]
    got, grads = run(recurrent, mode, sizes, reverse, half)
    want, wanted = run(composite, mode, sizes, reverse, wide)
    for a, b in zip(got + grads, want + wanted, strict=True):
        assert a.dtype == half[0].dtype
        # By norms: a relu unit that rounding switches changes single elements by much.
        assert np.linalg.norm(a.astype(np.float64) - b) <= 0.05 * np.linalg.norm(b)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("projected", [1, 16, 34, 126])
@pytest.mark.parametrize("sizes", [[1], [7, 5, 5, 1], [50, 40, 13]], ids=str)
def test_projection(sizes: list[int], projected: int, reverse: bool, dtype: str) -> None:
    size, rng = 130, np.random.default_rng(2)
    arrays = draw("LSTM", sizes, 4, size)
    arrays[1], arrays[4] = arrays[1][:, :projected], arrays[4][:, :projected]
    arrays.append(rng.standard_normal((projected, size)) * size**-0.5)
    given = [grebe.tensor(a, dtype=getattr(grebe, dtype)).numpy() for a in arrays]

    def call(function: Any, values: list[Any]) -> list[Any]:
        def with_projection(x: Any, h: Any, c: Any, weights: Any, steps: Any) -> Any:
            return function(x, h, c, weights[:4], steps, weights[4])

        outputs, grads = run(with_projection, "LSTM", sizes, reverse, values)
        return outputs + grads

    want = call(composite, [a.astype(np.float64) for a in given])
    bound = {"float32": 200 * 1.2e-7, "float64": 200 * 2.3e-16, "bfloat16": 0.03}[dtype]
    results = []
    for threads in (1, 2):
        grebe.set_num_threads(threads)
        results.append(call(recurrent, given))
    for one, two, b in zip(*results, want, strict=True):
        assert (one == two).all()
        atol = bound * max(np.abs(b).max(), 1)
        np.testing.assert_allclose(one.astype(np.float64), b, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_long_sequences_stay_finite(kind: str) -> None:
    layer = getattr(nn, kind)(2, 33)
    x = (100 * grebe.randn(500, 2, 2)).requires_grad_()
    output, _ = layer(x)
    output.sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_infinite_gates_saturate(kind: str) -> None:
    layer = getattr(nn, kind)(1, 20)
    output, _ = layer(grebe.tensor([[1e30], [-1e30]]))
    assert output.isfinite().all()


# ---- padding and packing ----


def test_pad_and_pack_round_trip() -> None:
    sequences = [grebe.randn(n, 2, requires_grad=True) for n in (3, 5, 1)]
    padded = pad_sequence(sequences, padding_value=-1.0)
    assert padded.shape == (5, 3, 2) and (padded[3:, 0] == -1).all()
    left = pad_sequence(sequences, batch_first=True, padding_side="left")
    assert (left[2, :4] == 0).all() and (left[2, 4] == sequences[2][0]).all()
    packed = pack_padded_sequence(padded, [3, 5, 1], enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 2, 2, 1, 1]
    assert packed.sorted_indices.tolist() == [1, 0, 2]
    back, lengths = pad_packed_sequence(packed, batch_first=True, total_length=6)
    assert back.shape == (3, 6, 2) and lengths.tolist() == [3, 5, 1]
    for a, b, c in zip(sequences, unpad_sequence(back, lengths, True),
                       unpack_sequence(packed), strict=True):  # fmt: skip
        assert (a == b).all() and (a == c).all()
    back.sum().backward()
    assert all((s.grad == 1).all() for s in sequences)
    assert packed.to(grebe.float64).data.dtype == grebe.float64
    assert invert_permutation(None) is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pack_padded_sequence(grebe.ones(3, 2, 1), [1, 2]), "sorted"),
        (lambda: pack_padded_sequence(grebe.ones(3, 2, 1), [4, 2]), "from 1 to 3"),
        (lambda: pack_padded_sequence(grebe.ones(3, 2, 1), [3, 0]), "from 1 to 3"),
        (lambda: pack_padded_sequence(grebe.ones(3, 2, 1), [3]), "each of 2"),
        (lambda: pack_padded_sequence(grebe.ones(3), [3]), "expected input"),
        (lambda: pad_sequence([]), "got none"),
        (lambda: pad_sequence([grebe.ones(2, 3), grebe.ones(2, 4)]), r"\[2, 4\]"),
        (lambda: pad_sequence([grebe.ones(2)], padding_side="top"), "padding_side"),
        (lambda: pad_packed_sequence(pack_sequence([grebe.ones(3)]), total_length=2), "at least 3"),
    ],
)
def test_packing_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nn.RNN(2, 3, nonlinearity="sin"), ValueError, "nonlinearity"),
        (lambda: nn.GRU(2, 0), ValueError, "hidden_size"),
        (lambda: nn.LSTM(2, 3, proj_size=3), ValueError, "proj_size must be below"),
        (lambda: nn.GRU(2, 3, dropout=2), ValueError, "dropout"),
        (lambda: nn.GRU(2, 3)(grebe.ones(4)), RuntimeError, "2 or 3 dimensions"),
        (lambda: nn.GRU(2, 3)(grebe.ones(4, 1, 5)), RuntimeError, "size 2"),
        (lambda: nn.GRU(2, 3)(grebe.ones(0, 1, 2)), RuntimeError, "at least one step"),
        (lambda: nn.GRU(2, 3)(grebe.ones(4, 1, 2).double()), TypeError, "float32"),
        (lambda: nn.GRU(2, 3)([1.0]), TypeError, "must be a Tensor"),
        (lambda: nn.GRU(2, 3)(grebe.ones(4, 1, 2), grebe.ones(1, 2, 3)), RuntimeError, "h_0"),
        (lambda: nn.LSTM(2, 3)(grebe.ones(4, 1, 2), grebe.ones(1, 1, 3)), TypeError, "pair"),
        (lambda: nn.LSTMCell(2, 3)(grebe.ones(1, 2), grebe.ones(1, 3)), TypeError, "pair"),
        (lambda: nn.GRUCell(2, 3)(grebe.ones(1, 2), grebe.ones(2, 3)), RuntimeError, "state"),
        (lambda: nn.GRUCell(2, 3)(grebe.ones(1, 4)), RuntimeError, "size 2"),
        (
            lambda: grebe.gru_cell(*[grebe.ones(2, 2)] * 4),
            RuntimeError,
            r"w_ih \[6, 2\]",
        ),
        (
            lambda: grebe.rnn_tanh_cell(*[grebe.ones(2, 2)] * 4, grebe.ones(2)),
            RuntimeError,
            "two biases",
        ),
    ],
)
def test_errors(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_empty_batches() -> None:
    output, h = nn.GRU(2, 3)(grebe.ones(4, 0, 2))
    assert output.shape == (4, 0, 3) and h.shape == (1, 0, 3)
    assert nn.RNNCell(2, 3)(grebe.ones(0, 2)).shape == (0, 3)
    assert isinstance(pack_sequence([grebe.ones(1, 2)]), PackedSequence)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", MODES)
def test_every_number_of_sequences_and_units(mode: str, dtype: Any) -> None:
    """Around all tiles of sequences and vectors of units, and their remainders."""
    eps = float(np.finfo(dtype).eps)
    for sequences in range(1, 15):
        for size in (1, 4, 5, 8, 13, 16, 17, 30, 33, 48, 49, 66):
            arrays = draw(mode, [sequences] * 2, 2, size, dtype)
            wide = [a.astype(np.float64) for a in arrays]
            got, grads = run(recurrent, mode, [sequences] * 2, False, arrays)
            want, wanted = run(composite, mode, [sequences] * 2, False, wide)
            for i, (a, b) in enumerate(zip(got + grads, want + wanted, strict=True)):
                close(a, b, eps, f"{sequences} sequences, {size} units, result {i}")
