"""Recurrent layers and cells. Kernels: csrc/cpu/rnn.cpp, csrc/cuda/rnn.cu. D2L 9.4, 10.1, 10.2.

All work on `Steps`: the tokens of a batch of sequences one step after the other, longest sequence
first, so that padding costs nothing. The composite form, made of differentiable ops, serves
``create_graph=True``.

bfloat16 runs in the kernel where products of pairs do (level avx512bf16; even sizes, at least
`_FUSED_ROWS` sequences): weights, inputs, h and their gradients are bfloat16, sums, gates and c
float32. Elsewhere, and for float16, everything is converted to float32 and back. On CUDA the
product with the inputs is always a matrix product of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .. import _cpu, autograd
from .._cpu import Node, grad_enabled, wrap
from ..autograd import record_many
from ..backend import Array, bfloat16, contiguous, empty, is_on_cuda, kernels, like
from ..tensor import Tensor, expect_tensor
from .creation import zeros
from .elementwise import add, mul, relu, sigmoid, sub, tanh
from .matmul import linear, multiply_into
from .shape import cat
from .softmax import is_half

__all__ = ["gru_cell", "lstm_cell", "rnn_relu_cell", "rnn_tanh_cell"]

MODES = {"RNN_TANH": 0, "RNN_RELU": 1, "LSTM": 2, "GRU": 3}
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
_STORED = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 4}

# Rows per step from which the kernel multiplies with w_ih too: packing it pays.
_FUSED_ROWS, _FUSED_CELL_ROWS = 8, 64  # of several steps; of a single one

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # input, hidden, their biases
State = tuple[Tensor, Tensor | None]  # h, and c for LSTM


@dataclass(frozen=True, eq=False)
class Steps:
    """Step t has rows offsets[t] to offsets[t + 1], one for each sequence that is long enough."""

    offsets: Array  # int64
    mode: str
    reverse: bool = False

    @classmethod
    def of_sizes(cls, sizes: Any, mode: str, reverse: bool = False) -> Steps:
        """From the number of sequences at each step."""
        return cls(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), mode, reverse)

    @classmethod
    @lru_cache(maxsize=64)
    def equal(cls, count: int, sequences: int, mode: str, reverse: bool = False) -> Steps:
        """`count` steps of all sequences."""
        return cls(np.arange(count + 1, dtype=np.int64) * sequences, mode, reverse)

    @property
    def count(self) -> int:
        return len(self.offsets) - 1

    @property
    def sequences(self) -> int:
        return int(self.offsets[1])

    def rows(self, t: int) -> slice:
        return slice(int(self.offsets[t]), int(self.offsets[t + 1]))

    def order(self) -> Sequence[int]:
        """The steps as the recurrence visits them."""
        return range(self.count)[:: -1 if self.reverse else 1]

    def last_rows(self) -> Array | slice:
        """Where the recurrence ends, for every sequence."""
        if self.reverse:
            return self.rows(0)
        if self.offsets[-1] == self.count * self.sequences:  # equal lengths
            return self.rows(self.count - 1)
        sizes = np.diff(self.offsets)
        lengths = (sizes[:, None] > np.arange(sizes[0])).sum(0)
        return np.asarray(self.offsets[lengths - 1] + np.arange(sizes[0]))


def _zeros(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    result = empty(shape, dtype, like)
    result.fill(0)
    return result


def _copied(array: Array, rows: Any) -> Array:
    found = array[rows if isinstance(rows, slice) else like(rows, array)]
    result = empty(found.shape, array.dtype, array)
    result[...] = found
    return result


def _states_before(states: Array, initial: Array, steps: Steps) -> Array:
    """For every row of `states` the state that its step started from."""
    if steps.count == 1:
        return initial
    before = empty(states.shape, states.dtype, states)
    order = steps.order()
    if steps.offsets[-1] == steps.count * steps.sequences:  # equal lengths: one shift
        b = steps.sequences
        shifted, rest = (before[:-b], before[-b:]) if steps.reverse else (before[b:], before[:b])
        source = states[b:] if steps.reverse else states[:-b]
        if kernels(states).copy(source, shifted) is NotImplemented:
            shifted[...] = source
        rest[...] = initial
        return before
    previous = 0
    for i, t in enumerate(order):
        now = before[steps.rows(t)]
        known = min(len(now), previous)
        if i > 0:
            now[:known] = states[steps.rows(order[i - 1])][:known]
        now[known:] = initial[known : len(now)]
        previous = len(now)
    return before


class Recurrent(Node):
    """Backpropagation through time. D2L section 9.7."""

    __slots__ = ()

    def backward(
        self, grad_h: Tensor | None, grad_last: Tensor | None, grad_cell: Tensor | None = None
    ) -> Any:
        x, h0, c0, *weights, projection, steps, h, c, gates, full = self.saved
        grads = (grad_h, grad_last, grad_cell)
        if grad_enabled():
            return self._composite(grads, x, h0, c0, weights, projection, steps)
        h = h.array
        sums, size = _sum_dtype(h.dtype), weights[1].shape[0] // GATES[steps.mode]
        g = [None if t is None else contiguous(t.array) for t in grads]
        g_h = _zeros(h.shape, h.dtype, h) if g[0] is None else g[0]
        dh = _zeros(h0.array.shape, sums, h) if g[1] is None else g[1].astype(sums)
        dc = None
        if c0 is not None:
            dc = _zeros(c0.array.shape, sums, h) if g[2] is None else g[2].astype(sums)
        dgates = empty((len(h), _STORED[steps.mode] * size), h.dtype, h)
        dprojected = None if projection is None else empty(h.shape, h.dtype, h)
        w_hh, first = contiguous(weights[1].array), contiguous(h0.array)
        in_kernel = steps.count > 1 or projection is not None
        kernels(h).rnn_backward(
            w_hh if in_kernel else None,
            None if projection is None else contiguous(projection.array), first,
            None if c0 is None else contiguous(c0.array.astype(sums, copy=False)), steps.offsets,
            gates, h, c, g_h, dgates, dh, dc, dprojected, size, MODES[steps.mode], steps.reverse,
        )  # fmt: skip
        if not in_kernel:
            for i, (columns, rows) in enumerate(_hidden_parts(dgates, steps.mode)):
                beta = 1.0 if i or steps.mode == "GRU" else 0.0
                multiply_into(dgates[:, columns], w_hh[rows], dh, beta=beta)
        dw_hr = None
        if dprojected is not None:
            dw_hr = empty(projection.shape, h.dtype, h)
            multiply_into(dprojected.T, full, dw_hr)
        states = [None if d is None else wrap(d.astype(h.dtype, copy=False)) for d in (dh, dc)]
        before = _states_before(h, first, steps)
        dx, *rest = self._gradients(x.array, weights, steps.mode, before, dgates)
        return dx, *states, *rest, None if dw_hr is None else wrap(dw_hr)

    def _gradients(
        self, x: Array, weights: list[Tensor], mode: str, before: Array, dgates: Array
    ) -> list[Tensor | None]:
        """Of the input, the weights and the biases: one product each for all steps."""
        want_x, _, _, want_ih, want_hh, want_b_ih, want_b_hh, _ = (
            e is not None for e in self.edges
        )
        w_ih, w_hh = weights[0].array, weights[1].array
        to_input, hidden = dgates[:, : len(w_ih)], _hidden_parts(dgates, mode)
        dx = dw_ih = dw_hh = db_ih = db_hh = None
        if want_x:
            dx = empty(x.shape, x.dtype, x)
            multiply_into(to_input, w_ih, dx)
        if want_ih:
            dw_ih = _input_gradient(to_input, x)
        if want_hh:
            dw_hh = empty(w_hh.shape, x.dtype, x)
            for columns, rows in hidden:
                multiply_into(dgates[:, columns].T, before, dw_hh[rows])
        if want_b_ih or want_b_hh:
            sums = wrap(dgates).sum(0)
            db_ih = sums[: len(w_ih)]
            db_hh = cat([sums[columns] for columns, _ in hidden])
        return [*(None if a is None else wrap(a) for a in (dx, dw_ih, dw_hh)), db_ih, db_hh]

    def _composite(
        self, grads: Sequence[Tensor | None], x: Tensor, h0: Tensor, c0: Tensor | None,
        weights: list[Any], projection: Tensor | None, steps: Steps,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """The gradients with a history of their own: of the composite form, run again."""
        # Aliases, so that one input that depends on another does not count twice.
        inputs: list[Any] = [
            None if t is None else t.view_as(t) for t in (x, h0, c0, *weights, projection)
        ]
        x, h0, c0, *weights, projection = inputs
        outputs = composite(x, h0, c0, tuple(weights), steps, projection)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None]
        wanted = [i for i, edge in enumerate(self.edges) if edge is not None]
        found = autograd.grad(
            [o for o, _ in pairs], [inputs[i] for i in wanted], [g for _, g in pairs],
            create_graph=True, allow_unused=True,
        )  # fmt: skip
        result: list[Tensor | None] = [None] * len(inputs)
        for i, gradient in zip(wanted, found, strict=True):
            result[i] = gradient
        return tuple(result)


def _input_gradient(dgates: Array, x: Array) -> Array:
    """dgates^T x. With few inputs transposed: wide rows of dgates are then read along, once."""
    if x.shape[1] <= 64 and dgates.shape[1] >= 512:
        swapped = empty((x.shape[1], dgates.shape[1]), x.dtype, x)
        multiply_into(x.T, dgates, swapped)
        return contiguous(swapped.T)
    result = empty((dgates.shape[1], x.shape[1]), x.dtype, x)
    multiply_into(dgates.T, x, result)
    return result


def _hidden_parts(dgates: Array, mode: str) -> list[tuple[slice, slice]]:
    """Columns of dgates and the rows of weight_hh that they belong to."""
    if mode != "GRU":
        return [(slice(None), slice(None))]
    n = dgates.shape[1] // 4
    return [(slice(0, 2 * n), slice(0, 2 * n)), (slice(3 * n, 4 * n), slice(2 * n, 3 * n))]


def _sum_dtype(dtype: Any) -> Any:
    """In what sums, gates and c are kept."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def _bias(weights: Weights, mode: str) -> tuple[Array | None, Array | None]:
    """What is added to the product with the input, and what GRU's reset gate multiplies."""
    if weights[2] is None or weights[3] is None:
        return None, None
    b_ih, b_hh = weights[2].array, weights[3].array
    sums = _sum_dtype(b_ih.dtype)
    if mode != "GRU":
        return np.add(b_ih, b_hh, dtype=sums), None
    n, both = b_ih.size // 3, b_ih.astype(sums)
    both[: 2 * n] += b_hh[: 2 * n]
    return both, b_hh[2 * n :].astype(sums)


def recurrent(
    x: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights, steps: Steps,
    projection: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One layer in one direction over all steps, by the kernel.

    Args:
        x: [tokens, input], the tokens in the order of `steps`.
        h0: [sequences, H], with a projection [sequences, P].
        c0: [sequences, H] for LSTM, else None.
        weights: [G H, input], [G H, H] (or P) and two biases [G H] or None, in PyTorch's order of
            gates.
        steps: which rows belong to which step; the mode.
        projection: [P, H] for an LSTM whose h it makes of o tanh(c).

    Returns:
        h of all tokens, the last h of every sequence, for LSTM the last c.
    """
    fused = (
        len(x.array) >= (_FUSED_ROWS if steps.count > 1 else _FUSED_CELL_ROWS) * steps.count
        and x.array.shape[1] > 0
        and not is_on_cuda(x.array)
    )
    inputs: tuple[Any, ...] = (x, h0, c0, *weights, projection)
    if is_half(x.array.dtype) and not (fused and _in_pairs(x, h0, weights[0], steps.mode)):
        return _in_float32(inputs, steps)
    w_ih, w_hh = contiguous(weights[0].array), contiguous(weights[1].array)
    tokens, first = contiguous(x.array), contiguous(h0.array)
    sums = _sum_dtype(tokens.dtype)
    rows, size = len(tokens), len(w_hh) // GATES[steps.mode]
    bias, inner = _bias(weights, steps.mode)
    kept = steps.mode in ("LSTM", "GRU") and _wanted(*inputs)
    gates = None
    if kept or not fused:
        gates = empty((rows, _STORED[steps.mode] * size), sums, tokens)
    if gates is not None and not fused:
        multiply_into(tokens, w_ih.T, gates[:, : len(w_ih)], bias)
        if steps.count == 1 and projection is None:
            _add_hidden(gates, first, w_hh, inner, steps.mode)
    h = empty((rows, first.shape[1]), tokens.dtype, tokens)
    c = None if c0 is None else empty((rows, size), sums, tokens)
    full = None if projection is None else empty((rows, size), tokens.dtype, tokens)
    kernels(tokens).rnn(
        tokens if fused else None, w_ih if fused else None,
        w_hh if fused or steps.count > 1 or projection is not None else None,
        None if projection is None else contiguous(projection.array),
        bias if fused else None, inner, first,
        None if c0 is None else contiguous(c0.array.astype(sums, copy=False)), steps.offsets, gates,
        h, c, full, size, MODES[steps.mode], steps.reverse,
    )  # fmt: skip
    last = steps.last_rows()
    results = [h, _copied(h, last)]
    if c is not None:
        results.append(_copied(c, last).astype(tokens.dtype, copy=False))
    return record_many(Recurrent, results, inputs, (*inputs, steps, h, c, gates, full))


def _wanted(*inputs: Tensor | None) -> bool:
    """Will there be a backward?"""
    return grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _add_hidden(gates: Array, h0: Array, w_hh: Array, inner: Array | None, mode: str) -> None:
    """gates += h0 w_hh^T; `inner`: GRU's bias, in the fourth block, kept apart."""
    for i, (columns, part) in enumerate(_hidden_parts(gates, mode)):
        beta, bias = (1.0, None) if i == 0 else (0.0, inner)
        multiply_into(h0, w_hh[part].T, gates[:, columns], bias, beta)


def _in_pairs(x: Tensor, h0: Tensor, w_ih: Tensor, mode: str) -> bool:
    """Does the kernel take these in half precision? Products of bfloat16 are made of pairs."""
    size = len(w_ih.array) // GATES[mode]
    even = all(n % 2 == 0 for n in (x.array.shape[1], h0.array.shape[1], size))
    return x.array.dtype == bfloat16 and even and _cpu.isa() == "avx512bf16"


def _in_float32(inputs: tuple[Tensor | None, ...], steps: Steps) -> tuple[Tensor, ...]:
    arguments: list[Any] = [None if t is None else t.to(np.float32) for t in inputs]
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, projection = arguments
    outputs = recurrent(x, h0, c0, (w_ih, w_hh, b_ih, b_hh), steps, projection)
    assert inputs[0] is not None
    return tuple(t.to(inputs[0].dtype) for t in outputs)


# ---- the composite form ----


def _cell(gates: Tensor, hidden: Tensor, state: State, mode: str) -> State:
    """One step from W_ih x + b and W_hh h + b: formulas as in PyTorch's LSTM, GRU and RNN."""
    h, c = state
    if mode in ("RNN_TANH", "RNN_RELU"):
        return (tanh if mode == "RNN_TANH" else relu)(add(gates, hidden)), None
    if mode == "LSTM":
        assert c is not None
        i, f, g, o = add(gates, hidden).chunk(4, 1)
        c = add(mul(sigmoid(f), c), mul(sigmoid(i), tanh(g)))
        return mul(sigmoid(o), tanh(c)), c
    (r, z, n), (hr, hz, hn) = gates.chunk(3, 1), hidden.chunk(3, 1)
    z = sigmoid(add(z, hz))
    n = tanh(add(n, mul(sigmoid(add(r, hr)), hn)))
    return add(n, mul(z, sub(h, n))), None


def composite(
    x: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights, steps: Steps,
    projection: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `recurrent`, from differentiable ops; `projection` [P, H]: h becomes projection @ h."""
    w_ih, w_hh, b_ih, b_hh = weights
    gates = linear(x, w_ih, b_ih)
    states: dict[int, State] = {}
    h, c = h0[:0], None if c0 is None else c0[:0]
    finished: list[tuple[Tensor, Tensor | None]] = []  # of shorter sequences, shortest first
    for t in steps.order():
        rows = steps.rows(t)
        n, known = rows.stop - rows.start, len(h.array)
        if known > n:
            finished.append((h[n:], None if c is None else c[n:]))
            h, c = h[:n], None if c is None else c[:n]
        elif known < n:  # sequences that begin here
            h = cat([h, h0[known:n]])
            c = None if c is None or c0 is None else cat([c, c0[known:n]])
        h, c = _cell(gates[rows], linear(h, w_hh, b_hh), (h, c), steps.mode)
        if projection is not None:
            h = linear(h, projection)
        states[t] = (h, c)
    finished.append((h, c))
    output = cat([states[t][0] for t in range(steps.count)])
    last_h = cat([state for state, _ in reversed(finished)])
    if c is None:
        return output, last_h
    return output, last_h, cat([cell for _, cell in reversed(finished) if cell is not None])


# ---- cells ----


def check_cell(
    name: str, mode: str, input: Tensor, state: Tensor, w_ih: Tensor, w_hh: Tensor,
    biases: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """Raises unless input [B, I], state [B, H] and the weights fit together."""
    x, h = expect_tensor(name, "input", input), expect_tensor(name, "hx", state)
    ih, hh = expect_tensor(name, "w_ih", w_ih), expect_tensor(name, "w_hh", w_hh)
    if not x.ndim == h.ndim == ih.ndim == hh.ndim == 2:
        raise RuntimeError(
            f"{name}: expected input, hx and weights of 2 dimensions, got input {list(x.shape)}, "
            f"hx {list(h.shape)}, w_ih {list(ih.shape)}, w_hh {list(hh.shape)}"
        )
    rows = GATES[mode] * h.shape[1]
    if len(x) != len(h) or ih.shape != (rows, x.shape[1]) or hh.shape != (rows, h.shape[1]):
        raise RuntimeError(
            f"{name}: for input {list(x.shape)} and hx {list(h.shape)} expected as many rows in "
            f"both, w_ih {[rows, x.shape[1]]} and w_hh {[rows, h.shape[1]]}, got "
            f"w_ih {list(ih.shape)} and w_hh {list(hh.shape)}"
        )
    given = [expect_tensor(name, "bias", b) for b in biases if b is not None]
    if len(given) == 1 or any(b.shape != (rows,) for b in given):
        raise RuntimeError(
            f"{name}: expected two biases of shape [{rows}] or none, got "
            f"{[list(b.shape) for b in given]}"
        )
    kinds = [a.dtype for a in (x, h, ih, hh, *given)]
    if kinds.count(kinds[0]) < len(kinds) or kinds[0].kind not in "fV":
        raise TypeError(
            f"{name}: expected one floating point dtype, got {', '.join(sorted(map(str, kinds)))}"
        )


def _one_step(
    name: str, mode: str, input: Tensor, hx: Tensor, cx: Tensor | None, weights: Weights
) -> tuple[Tensor, ...]:
    check_cell(name, mode, input, hx, *weights[:2], weights[2:])
    if cx is not None and expect_tensor(name, "cx", cx).shape != hx.array.shape:
        raise RuntimeError(
            f"{name}: h and c must have the same shape, got {list(hx.shape)} and {list(cx.shape)}"
        )
    if len(input.array) == 0:
        return (zeros(hx.shape, dtype=hx.dtype),) * 3
    steps = Steps.equal(1, len(input.array), mode)
    return recurrent(input, hx, cx, weights, steps)


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """tanh(w_ih x + b_ih + w_hh h + b_hh): input [B, I], hx [B, H] -> [B, H]. D2L section 9.4."""
    return _one_step("rnn_tanh_cell", "RNN_TANH", input, hx, None, (w_ih, w_hh, b_ih, b_hh))[1]


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """relu(w_ih x + b_ih + w_hh h + b_hh): input [B, I], hx [B, H] -> [B, H]."""
    return _one_step("rnn_relu_cell", "RNN_RELU", input, hx, None, (w_ih, w_hh, b_ih, b_hh))[1]


def lstm_cell(
    input: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of an LSTM: input [B, I], hx = (h, c), [B, H] each -> (h, c). D2L section 10.1.

    Gates i, f, g, o in the rows of w_ih [4 H, I] and w_hh [4 H, H]. Hochreiter, Schmidhuber 1997.
    """
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"lstm_cell: hx must be a pair (h, c), got {type(hx).__name__}")
    h, c = hx
    result = _one_step("lstm_cell", "LSTM", input, h, c, (w_ih, w_hh, b_ih, b_hh))
    return result[1], result[2]


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One step of a GRU: input [B, I], hx [B, H] -> [B, H]. D2L section 10.2.

    Gates r, z, n in the rows of w_ih [3 H, I] and w_hh [3 H, H]; the reset gate multiplies
    w_hh h + b_hh, as in PyTorch. Cho et al. 2014.
    """
    return _one_step("gru_cell", "GRU", input, hx, None, (w_ih, w_hh, b_ih, b_hh))[1]
