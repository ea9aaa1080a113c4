"""Recurrent layers and cells. D2L chapters 9 and 10."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

from ...amp import full_precision
from ...ops import rnn as ops
from ...ops.creation import empty, zeros
from ...ops.dropout import dropout
from ...ops.shape import cat, stack
from ...tensor import Tensor
from .. import init
from ..parameter import Parameter
from ..utils.rnn import PackedSequence
from .checks import factory, whole
from .module import Module

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNBase", "RNNCell"]


class _Recurrent(Module):
    """What layers and cells share: weights drawn from U(-k, k), k = 1 / sqrt(hidden_size)."""

    hidden_size: int

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def _make(self, name: str, shape: tuple[int, ...], wanted: dict[str, Any]) -> None:
        setattr(self, name, Parameter(empty(shape, **wanted)))


def _of_size(layer: str, what: str, x: Tensor, size: int) -> None:
    if x.shape[-1] != size:
        raise RuntimeError(f"{layer}: expected {what} of size {size}, got shape {list(x.shape)}")


def _stacked(states: list[Tensor]) -> Tensor:
    """[layers * directions, B, *]; of one layer a view."""
    return stack(states) if len(states) > 1 else states[0].unsqueeze(0)


def _expect(layer: str, argument: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{layer}: {argument} must be a Tensor, got {type(value).__name__}")


class RNNBase(_Recurrent):
    """Layers of one recurrent kind over whole sequences; see `RNN`, `LSTM` and `GRU`."""

    mode: str
    dropout: float
    proj_size: int

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if mode not in ops.MODES:
            raise ValueError(f"{name}: mode must be one of {sorted(ops.MODES)}, got {mode!r}")
        self.mode = mode
        self.input_size = whole(name, "input_size", input_size)
        self.hidden_size = whole(name, "hidden_size", hidden_size)
        self.num_layers = whole(name, "num_layers", num_layers)
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        if not isinstance(dropout, numbers.Real) or not 0 <= dropout <= 1:
            raise ValueError(f"{name}: dropout must be a number from 0 to 1, got {dropout!r}")
        self.dropout = float(dropout)
        self.proj_size = whole(name, "proj_size", proj_size, 0)
        if self.proj_size and mode != "LSTM":
            raise ValueError(f"{name}: only LSTM takes proj_size, got {proj_size}")
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"{name}: proj_size must be below hidden_size={hidden_size}, got {proj_size}"
            )
        wanted = factory(name, device, dtype)
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                self._make_layer(layer, suffix, wanted)
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _output_size(self) -> int:
        """Of one direction."""
        return self.proj_size or self.hidden_size

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _names(self, suffix: str) -> list[str]:
        kinds = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if self.bias else [])
        return [kind + suffix for kind in [*kinds, *(["weight_hr"] if self.proj_size else [])]]

    def _make_layer(self, layer: int, suffix: str, wanted: dict[str, Any]) -> None:
        rows = ops.GATES[self.mode] * self.hidden_size
        columns = self._output_size * self._directions if layer else self.input_size
        shapes = {
            "weight_ih": (rows, columns),
            "weight_hh": (rows, self._output_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
            "weight_hr": (self.proj_size, self.hidden_size),
        }
        for name in self._names(suffix):
            self._make(name, shapes[name.removesuffix(suffix)], wanted)

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of every layer and direction."""
        return [
            [getattr(self, name) for name in self._names(suffix)]
            for layer in range(self.num_layers)
            for suffix in self._suffixes(layer)
        ]

    @property
    def _flat_weights_names(self) -> list[str]:
        """Names of all of them: the book initialises by it."""
        return [
            name
            for layer in range(self.num_layers)
            for suffix in self._suffixes(layer)
            for name in self._names(suffix)
        ]

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the weights as they are. For PyTorch's sake."""

    # ---- forward ----

    def _direction(
        self, x: Tensor, state: tuple[Tensor, Tensor | None], suffix: str, steps: ops.Steps
    ) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, *rest = [getattr(self, name) for name in self._names(suffix)]
        biases = (rest[0], rest[1]) if self.bias else (None, None)
        weights = (weight_ih, weight_hh, *biases)
        return ops.recurrent(x, *state, weights, steps, rest[-1] if self.proj_size else None)

    def _layers(
        self, x: Tensor, h0: Tensor, c0: Tensor | None, steps_of: Callable[..., ops.Steps]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All layers over tokens [tokens, input_size]; states [layers * directions, B, *]."""
        last: list[Tensor] = []
        cells: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                index = layer * self._directions + direction
                steps = steps_of(self.mode, direction == 1)
                state = (h0[index], None if c0 is None else c0[index])
                output, h, *c = self._direction(x, state, suffix, steps)
                outputs.append(output)
                last.append(h)
                cells += c
            x = outputs[0] if len(outputs) == 1 else cat(outputs, 1)
            if self.dropout and layer + 1 < self.num_layers:
                x = dropout(x, self.dropout, self.training)
        return x, _stacked(last), _stacked(cells) if cells else None

    def _states(
        self, x: Tensor, hx: Any, batch: int, batched: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Initial states [layers * directions, B, *], checked; zeros for None."""
        name, lstm = type(self).__name__, self.mode == "LSTM"
        if lstm and hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"{name}: hx must be a pair (h_0, c_0), got {type(hx).__name__}")
        count = self.num_layers * self._directions
        states: list[Tensor] = []
        given = [None] * (1 + lstm) if hx is None else list(hx) if lstm else [hx]
        sizes = (self._output_size, self.hidden_size)
        for argument, value, size in zip(("h_0", "c_0"), given, sizes, strict=False):
            shape = (count, batch, size)
            if value is None:
                states.append(zeros(shape, dtype=x.dtype, device=x.device))
                continue
            _expect(name, argument, value)
            expected = shape if batched else (count, size)
            if tuple(value.shape) != expected:
                raise RuntimeError(
                    f"{name}: expected {argument} of shape {list(expected)}, got "
                    f"{list(value.shape)}"
                )
            if value.dtype != x.dtype:
                raise TypeError(f"{name}: expected {argument} of {x.dtype}, got {value.dtype}")
            states.append(value if batched else value.unsqueeze(1))
        return states[0], states[1] if lstm else None

    def _check_tokens(self, x: Tensor) -> None:
        name, weight = type(self).__name__, self.all_weights[0][0]
        _of_size(name, "input whose last dimension is input_size", x, self.input_size)
        if x.dtype != weight.dtype:
            raise TypeError(f"{name}: expected input of {weight.dtype}, got {x.dtype}")

    def _packed(self, input: PackedSequence, hx: Any) -> Any:
        self._check_tokens(input.data)
        sizes = input.batch_sizes.numpy()
        order, back = input.sorted_indices, input.unsorted_indices
        h0, c0 = self._states(input.data, hx, int(sizes[0]), True)
        if order is not None and hx is not None:
            h0 = h0.index_select(1, order)
            c0 = None if c0 is None else c0.index_select(1, order)
        output, h, c = self._layers(input.data, h0, c0, partial(ops.Steps.of_sizes, sizes))
        if back is not None:
            h = h.index_select(1, back)
            c = None if c is None else c.index_select(1, back)
        return input._replace(data=output), h if c is None else (h, c)

    @full_precision
    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Output of the last layer for every step, and the final states of all layers.

        Args:
            input: [T, B, input_size], [B, T, input_size] with batch_first, [T, input_size] for one
                sequence, or a PackedSequence.
            hx: h_0 [layers * directions, B, H] (for LSTM the pair of h_0 and c_0), None for zeros;
                without the dimension B for one sequence.

        Returns:
            output [T, B, directions * H] (batch_first: [B, T, ...]; packed for packed input), and
            h_n of h_0's shape, for LSTM (h_n, c_n).

        Raises:
            RuntimeError: sizes do not fit.
            TypeError: dtypes differ.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        name = type(self).__name__
        _expect(name, "input", input)
        if input.ndim not in (2, 3):
            raise RuntimeError(
                f"{name}: expected input of 2 or 3 dimensions, got shape {list(input.shape)}"
            )
        self._check_tokens(input)
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        t, b = x.shape[:2]
        if t == 0:
            raise RuntimeError(f"{name}: expected at least one step, got {list(input.shape)}")
        h0, c0 = self._states(input, hx, b, batched)
        tokens = x.reshape(t * b, self.input_size)
        output, h, c = self._layers(tokens, h0, c0, partial(ops.Steps.equal, t, b))
        output = output.unflatten(0, (t, b))
        if not batched:
            output, h, c = output.squeeze(1), h.squeeze(1), None if c is None else c.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, h if c is None else (h, c)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0,
            "bidirectional": False,
        }  # fmt: skip
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


class RNN(RNNBase):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu. Elman 1990, D2L section 9.6.

    Arguments: input_size, hidden_size, num_layers=1, nonlinearity='tanh' or 'relu', bias=True,
    batch_first=False, dropout=0 (between layers), bidirectional=False. Weights of layer k:
    weight_ih_lk [H, input], weight_hh_lk [H, H], bias_ih_lk, bias_hh_lk [H], with the suffix
    _reverse for the other direction. See `forward` for shapes.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, 0, device, dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Long short-term memory. Hochreiter and Schmidhuber 1997, D2L section 10.1.

    i, f, o = sigmoid(W x + U h + b), g = tanh(...); c = f c + i g; h = o tanh(c), the gates in the
    order i, f, g, o in weight_ih_lk [4 H, input] and weight_hh_lk [4 H, H]. proj_size P > 0: h
    becomes weight_hr_lk [P, H] times h. Other arguments as for `RNN`; states are pairs (h, c).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype,
        )  # fmt: skip


class GRU(RNNBase):
    """Gated recurrent unit. Cho et al. 2014, D2L section 10.2.

    r, z = sigmoid(W x + b + U h + d); n = tanh(W x + b + r (U h + d)); h = (1 - z) n + z h, the
    gates in the order r, z, n in weight_ih_lk [3 H, input] and weight_hh_lk [3 H, H]. Arguments as
    for `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            0, device, dtype,
        )  # fmt: skip


# ---- cells ----


class _Cell(_Recurrent):
    """One step; input [B, input_size] or [input_size], states [B, hidden_size] or [hidden_size]."""

    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(
        self, gates: int, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.input_size = whole(name, "input_size", input_size)
        self.hidden_size = whole(name, "hidden_size", hidden_size)
        self.bias = bias
        wanted, rows = factory(name, device, dtype), gates * hidden_size
        self._make("weight_ih", (rows, input_size), wanted)
        self._make("weight_hh", (rows, hidden_size), wanted)
        for key in ("bias_ih", "bias_hh"):
            if bias:
                self._make(key, (rows,), wanted)
            else:
                self.register_parameter(key, None)
        self.reset_parameters()

    def _step(self, function: Any, input: Tensor, states: list[Any]) -> list[Tensor]:
        """The states after one step."""
        name = type(self).__name__
        _expect(name, "input", input)
        if input.ndim not in (1, 2):
            raise RuntimeError(
                f"{name}: expected input of 1 or 2 dimensions, got shape {list(input.shape)}"
            )
        _of_size(name, "input whose last dimension is input_size", input, self.input_size)
        shape = (*input.shape[:-1], self.hidden_size)
        for index, state in enumerate(states):
            if state is None:
                states[index] = zeros(shape, dtype=input.dtype, device=input.device)
                continue
            _expect(name, "hx", state)
            if tuple(state.shape) != shape:
                raise RuntimeError(
                    f"{name}: expected a state of shape {list(shape)}, got {list(state.shape)}"
                )
        if input.ndim == 1:
            input, states = input.unsqueeze(0), [s.unsqueeze(0) for s in states]
        hx = states[0] if len(states) == 1 else tuple(states)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        result = function(input, hx, *weights)
        made = list(result) if isinstance(result, tuple) else [result]
        return made if len(shape) == 2 else [s.squeeze(0) for s in made]

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias else text + ", bias=False"


class RNNCell(_Cell):
    """One step of `RNN`: (input, hx=zeros) -> h."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"RNNCell: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}"
            )
        super().__init__(1, input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    @full_precision
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        function = ops.rnn_tanh_cell if self.nonlinearity == "tanh" else ops.rnn_relu_cell
        return self._step(function, input, [hx])[0]


class LSTMCell(_Cell):
    """One step of `LSTM`: (input, (h, c)=zeros) -> (h, c)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(4, input_size, hidden_size, bias, device, dtype)

    @full_precision
    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"LSTMCell: hx must be a pair (h, c), got {type(hx).__name__}")
        h, c = self._step(ops.lstm_cell, input, [None, None] if hx is None else list(hx))
        return h, c


class GRUCell(_Cell):
    """One step of `GRU`: (input, hx=zeros) -> h."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(3, input_size, hidden_size, bias, device, dtype)

    @full_precision
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(ops.gru_cell, input, [hx])[0]
