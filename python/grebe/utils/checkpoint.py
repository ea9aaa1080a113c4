"""Gradient checkpointing: values that backward needs are computed again instead of being kept.

Chen et al. 2016. A checkpointed call leaves one node on the tape, whose edges are where the graph
of the call left off: its inputs, and the parameters that it used. Backward calls the function
again, with the same random numbers, and walks the new graph down to those edges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from .. import _cpu
from .._cpu import Node, TensorBase, attach, grad_enabled, share, wrap
from ..amp import STATE, same_autocast
from ..autograd import Edge, Segment, connect_outputs
from ..nn.modules.container import Sequential
from ..ops.random import default_generator

__all__ = ["CheckpointError", "checkpoint", "checkpoint_sequential"]


class CheckpointError(RuntimeError):
    """The function did something else when it was called again."""


class _Call:
    """A call that can be repeated: function, random state and surroundings, but not its inputs."""

    def __init__(
        self, function: Any, names: tuple[str, ...], preserve: bool, context: Any, check: bool
    ) -> None:
        self.function, self.names, self.context, self.check = function, names, context, check
        self.state = default_generator.get_state() if preserve else None
        self.casts = STATE.dtypes, STATE.cache is not None

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """Positional arguments come first in `inputs`, then those of `names`."""
        count = len(inputs) - len(self.names)
        return self.function(*inputs[:count], **dict(zip(self.names, inputs[count:], strict=True)))

    def again(self, inputs: tuple[Any, ...]) -> Any:
        before = default_generator.get_state()
        mode = _cpu.set_grad_enabled(True)
        try:
            if self.state is not None:
                default_generator.set_state(self.state)
            with same_autocast(*self.casts), self.context:
                return self.run(inputs)
        finally:
            _cpu.set_grad_enabled(mode)
            if self.state is not None:
                default_generator.set_state(before)


def _tensors(value: Any) -> list[Any]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, TensorBase):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _replaced(value: Any, by: dict[int, Any]) -> Any:
    """`value` with tensors exchanged by their ids."""
    if isinstance(value, TensorBase):
        return by.get(id(value), value)
    if isinstance(value, dict):
        return type(value)((key, _replaced(item, by)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_replaced(item, by) for item in value])
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(item, by) for item in value)
    return value


def _made_since(mark: Node, value: Any) -> list[Any]:
    """The tensors in `value` whose nodes are younger than `mark`, each once."""
    made = {id(t): t for t in _tensors(value) if t._node is not None}
    return [t for t in made.values() if t._node.sequence > mark.sequence]


def _boundary(mark: Node, outputs: list[Any]) -> tuple[set[int], list[Edge]]:
    """Ids of the nodes younger than `mark` behind `outputs`, and the edges out of them."""
    inside: dict[int, Node] = {}
    outside: dict[int, Edge] = {}
    stack: list[Edge] = [output._node for output in outputs]
    while stack:
        edge = stack.pop()
        if edge is None or id(edge) in inside or id(edge) in outside:
            continue
        if isinstance(edge, Node) and edge.sequence > mark.sequence:
            inside[id(edge)] = edge
            stack.extend(edge.edges)
        else:
            outside[id(edge)] = edge
    return set(inside), list(outside.values())


class Checkpoint(Node):
    """Gradients of a call that is made again for them."""

    __slots__ = ()

    def backward(self, *grads: Any) -> tuple[Any, ...]:
        call, *inputs = self.saved
        mark = Node()
        outputs = _made_since(mark, call.again(tuple(inputs)))
        inside, edges = _boundary(mark, outputs)
        if len(outputs) != len(grads) or {id(e) for e in edges} != {id(e) for e in self.edges}:
            raise CheckpointError(
                "checkpoint: the function used other tensors, or returned others, when it was "
                "called again for backward"
            )
        for output, grad in zip(outputs, grads, strict=True):
            if call.check and grad is not None and grad.array.shape != output.array.shape:
                raise CheckpointError(
                    f"checkpoint: an output had shape {list(grad.array.shape)}, but "
                    f"{list(output.array.shape)} when the function was called again"
                )
        segment = Segment(grad_enabled(), inside, edges)
        for output, grad in zip(outputs, grads, strict=True):
            if grad is not None:
                segment.send(output._node, grad)
        segment.run()
        return tuple(segment.found.get(id(edge)) for edge in self.edges)


def _no_contexts() -> tuple[Any, Any]:
    return contextlib.nullcontext(), contextlib.nullcontext()


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[[], tuple[Any, Any]] = _no_contexts,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """``function(*args, **kwargs)``, whose inner values are freed and computed again in backward.

    What is kept are the call's inputs and, for a moment, the inner values of one call: with n
    checkpoints of equal parts memory falls up to n-fold, at the price of a second forward pass.
    Works with `autograd.grad`, with `create_graph` and within other checkpoints.

    Args:
        function: must do the same when called again.
        args: its arguments, which must not be written to before backward.
        use_reentrant: accepted for PyTorch's sake; there is one implementation, which has the
            restrictions of neither.
        context_fn: makes two context managers, for the call and for its repetition.
        determinism_check: "default" compares the shapes of outputs, "none" does not.
        debug: not available.
        early_stop: accepted; the function is always run to its end.
        preserve_rng_state: draw the same random numbers again.
        kwargs: its named arguments.

    Returns:
        What `function` returns.

    Raises:
        CheckpointError: in backward, if the function did something else.
        ValueError: an unknown determinism_check.
        NotImplementedError: debug=True.
    """
    if determinism_check not in ("default", "none"):
        raise ValueError(
            f"checkpoint: determinism_check must be 'default' or 'none', got {determinism_check!r}"
        )
    if debug:
        raise NotImplementedError("checkpoint: debug=True is not available")
    if not grad_enabled():
        return function(*args, **kwargs)
    first, second = context_fn()
    call = _Call(function, tuple(kwargs), preserve_rng_state, second, determinism_check != "none")
    inputs = (*args, *kwargs.values())
    mark = Node()
    with first:
        result = call.run(inputs)
    outputs = _made_since(mark, result)
    if not outputs:
        return result
    _, edges = _boundary(mark, outputs)
    node = Checkpoint()
    attach(node, (), (call, *inputs))
    node.edges = tuple(edges)
    fresh = [wrap(output.array) for output in outputs]
    for new, old in zip(fresh, outputs, strict=True):
        share(new, old)
    connect_outputs(node, fresh)
    return _replaced(result, {id(o): f for o, f in zip(outputs, fresh, strict=True)})


def checkpoint_sequential(
    functions: Sequential | Iterable[Callable[[Any], Any]],
    segments: int,
    input: Any,
    use_reentrant: bool | None = None,
    preserve_rng_state: bool = True,
) -> Any:
    """Functions one after the other in `segments` parts, all but the last checkpointed.

    Args:
        functions: a Sequential, or functions of one argument.
        segments: how many parts, of equal numbers of functions.
        input: of the first function.
        use_reentrant: see `checkpoint`.
        preserve_rng_state: see `checkpoint`.

    Returns:
        What the last function returns.

    Raises:
        ValueError: segments below 1 or above the number of functions.
    """
    parts: list[Any] = list(functions)
    if not 1 <= segments <= max(len(parts), 1):
        raise ValueError(
            f"checkpoint_sequential: segments must be from 1 to {len(parts)}, got {segments}"
        )

    def through(part: list[Any], x: Any) -> Any:
        for function in part:
            x = function(x)
        return x

    size, start = len(parts) // segments, 0
    for _ in range(segments - 1):
        part = parts[start : start + size]
        start += size
        input = checkpoint(
            through, part, input, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state
        )
    return through(parts[start:], input)
