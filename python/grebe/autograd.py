"""The tape: gradients by walking the recorded nodes backwards.

Every op leaves a `Node` (C type, see csrc/tape.cpp) on its result. `backward` visits the nodes in
descending order of creation: whatever used a result was created after it, so a node is visited only
when its gradient is complete. No recursion, no counting pass. D2L section 2.5.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from . import _cpu
from ._cpu import Node, TensorBase, attach, grad_enabled, share, wrap
from .backend import copy, kernels

__all__ = [
    "Function",
    "Node",
    "backward",
    "enable_grad",
    "grad",
    "grad_enabled",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]

F = TypeVar("F", bound=Callable[..., Any])
Edge = Any  # a Node, a leaf Tensor, or None

is_grad_enabled = grad_enabled


# ---- grad mode ----


class _GradMode:
    """Context manager and decorator that sets the grad mode of this thread."""

    mode = True

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_cpu.set_grad_enabled(self.mode))

    def __exit__(self, *_: object) -> None:
        _cpu.set_grad_enabled(self._before.pop())

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = _cpu.set_grad_enabled(self.mode)
            try:
                return function(*args, **kwargs)
            finally:
                _cpu.set_grad_enabled(before)

        return wrapped  # type: ignore[return-value]


class no_grad(_GradMode):
    """Nothing is recorded inside. ``with no_grad():``, ``@no_grad()`` or ``@no_grad``."""

    mode = False

    def __new__(cls, function: Any = None) -> Any:
        mode = super().__new__(cls)
        if function is None:
            return mode
        mode.__init__()  # type: ignore[misc]
        return mode(function)

    def __init__(self, function: Any = None) -> None:
        super().__init__()


class inference_mode(_GradMode):
    """Like `no_grad`; ``inference_mode(False)`` leaves recording on."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = not mode


class enable_grad(_GradMode):
    """Recording is on inside, also within `no_grad`."""


class set_grad_enabled(_GradMode):
    """Sets the grad mode at once; as a context manager, restores it on leaving."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = bool(mode)
        self._outer = _cpu.set_grad_enabled(self.mode)

    def __enter__(self) -> None:
        _cpu.set_grad_enabled(self.mode)

    def __exit__(self, *_: object) -> None:
        _cpu.set_grad_enabled(self._outer)


# ---- hooks ----


_handle_ids = itertools.count()


class RemovableHandle:
    """Returned by the functions that register a hook; `remove()` takes the hook away."""

    def __init__(self, hooks: dict[int, Any]) -> None:
        self._hooks = hooks
        self.id = next(_handle_ids)  # never used twice: a second remove() must find nothing

    def remove(self) -> None:
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def add_hook(hooks: dict[int, Any], hook: Any) -> RemovableHandle:
    """Puts `hook` into `hooks` behind all others."""
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def _run_hooks(hooks: dict[int, Any], gradient: Any) -> Any:
    for hook in list(hooks.values()):
        changed = hook(gradient)
        if changed is not None:
            gradient = changed
    return gradient


# ---- nodes with several outputs ----


class Output(Node):
    """One output of a node that has several: hands its gradient to slot `index` of the parent."""

    __slots__ = ("index",)
    index: int


def record_many(
    node_class: type[Node],
    arrays: Sequence[Any],
    inputs: tuple[Any, ...],
    saved: tuple[Any, ...],
) -> tuple[Any, ...]:
    """Like `record` for an op with several results; its backward gets a gradient (or None) each.

    A result among `saved` comes back as a Tensor without history, checked for later writes.
    """
    results = tuple(wrap(array) for array in arrays)
    wanted = any(isinstance(i, TensorBase) and i._requires_grad for i in inputs)
    if grad_enabled() and wanted:
        node = node_class()
        twins = {id(result.array): result for result in results}
        attach(node, inputs, tuple(_twin(twins[id(s)]) if id(s) in twins else s for s in saved))
        connect_outputs(node, results)
    return results


def _twin(result: Any) -> Any:
    """`result` without its history (which would be a cycle), its writes counted together."""
    twin = wrap(result.array)
    share(twin, result)
    return twin


def connect_outputs(node: Node, results: Sequence[Any]) -> None:
    """Makes `results` the outputs of `node`."""
    node.metadata = len(results)
    for index, result in enumerate(results):
        output = Output()
        output.index = index
        output.edges = (node,)
        result._node = output
        result._requires_grad = True


# ---- the engine ----


class _Pass:
    """One walk from the roots down to the leaves."""

    def __init__(self, retain_graph: bool, needed: set[int] | None) -> None:
        self.retain_graph = retain_graph
        self.needed = needed
        self.heap: list[tuple[int, Node]] = []
        self.leaves: dict[int, list[Any]] = {}  # id -> [leaf, gradient, owned]
        self.owned: set[Node] = set()  # nodes whose pending gradient was allocated by this pass
        self.captured: dict[int, Any] = {}  # id of a node -> its gradient, for autograd.grad

    def send(self, edge: Edge, gradient: Any) -> None:
        if self.needed is not None and id(edge) not in self.needed:
            return
        if not isinstance(edge, Node):
            entry = self.leaves.get(id(edge))
            if entry is None:
                self.leaves[id(edge)] = [edge, gradient, False]
            else:
                entry[1] = _accumulate(entry[1], gradient, entry[2])
                entry[2] = True
        elif edge.pending is None:
            edge.pending = gradient
            heapq.heappush(self.heap, (-edge.sequence, edge))
        else:
            edge.pending = _accumulate(edge.pending, gradient, edge in self.owned)
            self.owned.add(edge)

    def run(self) -> None:
        heap, captured, needed = self.heap, self.captured, self.needed
        push, pop = heapq.heappush, heapq.heappop
        try:
            while heap:
                node = pop(heap)[1]
                gradient, node.pending = node.pending, None
                if node.hooks is not None:
                    gradient = _run_hooks(node.hooks, gradient)
                if captured and id(node) in captured:
                    captured[id(node)] = gradient
                if type(node) is Output:
                    self.send_to_slot(node, gradient)
                    continue
                if type(gradient) is list:
                    result = node.backward(*gradient)
                else:
                    result = node.backward(gradient)
                if not self.retain_graph:
                    node.release()
                edges = node.edges
                if type(result) is not tuple:
                    result = (result,)
                if len(result) != len(edges):
                    raise RuntimeError(
                        f"{type(node).__name__}.backward returned {len(result)} gradients for "
                        f"{len(edges)} inputs"
                    )
                for edge, input_gradient in zip(edges, result):  # noqa: B905
                    if edge is None or input_gradient is None:
                        continue
                    if needed is None and isinstance(edge, Node) and edge.pending is None:
                        edge.pending = input_gradient
                        push(heap, (-edge.sequence, edge))
                    else:
                        self.send(edge, input_gradient)
        finally:  # after an error, nothing of this walk may leak into the next one
            for _, node in heap:
                node.pending = None

    def send_to_slot(self, node: Output, gradient: Any) -> None:
        parent = node.edges[0]
        if parent.pending is None:
            parent.pending = [None] * parent.metadata
            heapq.heappush(self.heap, (-parent.sequence, parent))
        parent.pending[node.index] = gradient


class Segment(_Pass):
    """A walk through the nodes `inside`, which ends at `edges` and collects what arrives there."""

    def __init__(self, retain_graph: bool, inside: set[int], edges: Iterable[Edge]) -> None:
        super().__init__(retain_graph, inside)
        self.ends = {id(edge) for edge in edges}
        self.found: dict[int, Any] = {}  # id of an edge -> its gradient

    def send(self, edge: Edge, gradient: Any) -> None:
        if id(edge) not in self.ends:
            super().send(edge, gradient)
        elif id(edge) in self.found:
            self.found[id(edge)] = self.found[id(edge)] + gradient
        else:
            self.found[id(edge)] = gradient


def _accumulate(total: Any, gradient: Any, owned: bool) -> Any:
    """Total + gradient, in place where this pass made `total` itself and nobody records."""
    if owned and not grad_enabled():
        array = total.array
        y = kernels(array).add(array, gradient.array, array)
        if y is not NotImplemented:
            return total
    return total + gradient


# References to a gradient that nobody but the engine holds: a local of the caller, the argument and
# getrefcount's own; to its array: the tensor, a local and getrefcount's own.
_REFERENCES = 3


def _own(gradient: Any, keep: Any) -> Any:
    """`gradient` itself if nobody else can see its memory, else a copy. For storing in `.grad`."""
    array = gradient.array
    base = array.base
    private = base is None or type(base).__name__ == "Buffer"
    if (
        private
        and sys.getrefcount(gradient) <= _REFERENCES
        and sys.getrefcount(array) <= _REFERENCES
        and array.shape == keep.array.shape
        and array.dtype == keep.array.dtype
        and (not isinstance(array, np.ndarray) or array.flags.writeable)
        and (array.strides == keep.array.strides or array.flags.c_contiguous)
    ):
        return gradient.detach() if gradient._requires_grad else gradient
    if array.dtype == keep.array.dtype and array.shape == keep.array.shape:
        return wrap(copy(array))
    return wrap(np.broadcast_to(array, keep.array.shape).astype(keep.array.dtype))


def _store(leaf: Any, entry: list[Any], create_graph: bool) -> None:
    """Adds a leaf's gradient of this pass to `leaf.grad`."""
    before = leaf._grad
    if create_graph:
        leaf._grad = entry[1] if before is None else before + entry[1]
    elif before is None:
        gradient = entry[1]
        entry[1] = None
        leaf._grad = _own(gradient, leaf)
    else:
        array = before.array
        y = kernels(array).add(array, entry[1].array, array)
        if y is NotImplemented:
            array[...] += entry[1].array
        _cpu.bump(before)


def _root_gradient(name: str, output: Any, gradient: Any) -> Any:
    if not isinstance(output, TensorBase) or not output._requires_grad:
        raise RuntimeError(
            f"{name}: the output does not require grad and has no node: no input of its "
            "computation has requires_grad=True, or it ran under no_grad()"
        )
    if gradient is None:
        if output.array.size != 1:
            raise RuntimeError(
                f"{name}: grad can be created implicitly only for scalar outputs, got shape "
                f"{list(output.array.shape)}; pass gradient="
            )
        return wrap(np.ones_like(output.array))
    if not isinstance(gradient, TensorBase):
        raise TypeError(f"{name}: gradient must be a Tensor, got {type(gradient).__name__}")
    if gradient.array.shape != output.array.shape:
        raise RuntimeError(
            f"{name}: gradient has shape {list(gradient.array.shape)}, expected the output's "
            f"shape {list(output.array.shape)}"
        )
    if gradient.array.dtype != output.array.dtype:
        return gradient.to(output.array.dtype)  # type: ignore[attr-defined]
    return gradient


def _walk(
    name: str,
    outputs: Sequence[Any],
    gradients: Sequence[Any],
    retain_graph: bool | None,
    create_graph: bool,
    needed: set[int] | None = None,
    capture: Iterable[int] = (),
) -> _Pass:
    walk = _Pass(create_graph if retain_graph is None else retain_graph, needed)
    walk.captured = dict.fromkeys(capture)
    before = _cpu.set_grad_enabled(create_graph)
    try:
        for output, gradient in zip(outputs, gradients, strict=True):
            edge = output if getattr(output, "_node", None) is None else output._node
            walk.send(edge, _root_gradient(name, output, gradient))
        walk.run()
        for entry in walk.leaves.values():
            if entry[0]._hooks is not None:
                entry[1] = _run_hooks(entry[0]._hooks, entry[1])
    finally:
        _cpu.set_grad_enabled(before)
    return walk


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, TensorBase) else tuple(value)


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Adds the gradients of `tensors` to the ``.grad`` of the leaves that they were made from.

    grad_tensors: the gradients to start from, needed for outputs with more than one element.
    retain_graph: keep saved values for another pass (default: create_graph).
    create_graph: record the pass itself, for higher derivatives.
    inputs: if given, only these tensors get a gradient.
    Raises RuntimeError for outputs without a graph, a freed graph or in-place changed values.
    """
    outputs = _as_tuple(tensors)
    gradients = (None,) * len(outputs) if grad_tensors is None else _as_tuple(grad_tensors)
    if len(gradients) != len(outputs):
        raise RuntimeError(
            f"backward: got {len(outputs)} tensors but {len(gradients)} gradients for them"
        )
    if inputs is not None:
        wanted = _as_tuple(inputs)
        found = grad(outputs, wanted, gradients, retain_graph, create_graph, allow_unused=True)
        for leaf, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                _store(leaf, [leaf, gradient, False], create_graph)
        return
    walk = _walk("backward", outputs, gradients, retain_graph, create_graph)
    for entry in walk.leaves.values():
        _store(entry[0], entry, create_graph)


def _needed(outputs: Sequence[Any], targets: set[int]) -> set[int]:
    """Ids of the nodes and leaves on a path from `outputs` to `targets`."""
    seen: dict[int, Any] = {}
    stack = [o if o._node is None else o._node for o in outputs]
    while stack:
        edge = stack.pop()
        if edge is None or id(edge) in seen:
            continue
        seen[id(edge)] = edge
        if isinstance(edge, Node):
            stack.extend(edge.edges)
    needed = targets & seen.keys()
    nodes = [e for e in seen.values() if isinstance(e, Node)]
    for node in sorted(nodes, key=lambda n: n.sequence):
        if any(id(edge) in needed for edge in node.edges if edge is not None):
            needed.add(id(node))
    return needed


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """The gradients of `outputs` with respect to `inputs`, without touching any ``.grad``.

    Arguments as in `backward`. allow_unused: None instead of an error for an input that the
    outputs do not depend on; materialize_grads: zeros instead.
    """
    outputs, inputs = _as_tuple(outputs), _as_tuple(inputs)
    gradients = (None,) * len(outputs) if grad_outputs is None else _as_tuple(grad_outputs)
    if len(gradients) != len(outputs):
        raise RuntimeError(f"grad: got {len(outputs)} outputs but {len(gradients)} grad_outputs")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, TensorBase) or not tensor._requires_grad:
            raise RuntimeError(f"grad: inputs[{index}] does not require grad")
    for output in outputs:
        _root_gradient("grad", output, wrap(output.array) if isinstance(output, TensorBase) else 0)
    targets = {id(t if t._node is None else t._node) for t in inputs}
    needed = _needed(outputs, targets)
    capture = [id(t._node) for t in inputs if t._node is not None]
    walk = _walk("grad", outputs, gradients, retain_graph, create_graph, needed, capture)
    results = []
    for index, tensor in enumerate(inputs):
        if tensor._node is not None:
            found = walk.captured[id(tensor._node)]
        else:
            found = walk.leaves.get(id(tensor), (None, None))[1]
        if found is None and materialize_grads:
            found = wrap(np.zeros_like(tensor.array))
        if found is None and not allow_unused:
            raise RuntimeError(
                f"grad: inputs[{index}] was not used to compute the outputs; "
                "pass allow_unused=True to get None for it"
            )
        results.append(found)
    return tuple(results)


# ---- functions written by users ----


class FunctionContext(Node):
    """The node of a user's `Function`, and the `ctx` of its forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.function: type[Function] = Function
        self.needs_input_grad: tuple[bool, ...] = ()
        self.shapes: tuple[Any, ...] = ()
        self._to_save: tuple[Any, ...] = ()
        self._dirty: tuple[Any, ...] = ()
        self._non_differentiable: tuple[Any, ...] = ()
        self._materialize = True
        self._outputs: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self._to_save = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self.saved

    def mark_dirty(self, *tensors: Any) -> None:
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        self._non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self._materialize = value

    def backward(self, *gradients: Any) -> tuple[Any, ...]:
        if self._materialize:
            gradients = tuple(
                wrap(np.zeros(*spec)) if g is None else g
                for g, spec in zip(gradients, self._outputs, strict=True)
            )
        result = self.function.backward(self, *gradients)
        if not isinstance(result, tuple):
            result = (result,)
        name = self.function.__name__
        if len(result) > len(self.edges) and all(r is None for r in result[len(self.edges) :]):
            result = result[: len(self.edges)]
        if len(result) != len(self.edges):
            raise RuntimeError(
                f"{name}.backward returned {len(result)} gradients, expected {len(self.edges)}, "
                "one for each input of forward"
            )
        return tuple(self._checked(i, g) for i, g in enumerate(result))

    def _checked(self, index: int, gradient: Any) -> Any:
        if gradient is None or self.edges[index] is None:
            return None
        if not isinstance(gradient, TensorBase):
            raise TypeError(
                f"{self.function.__name__}.backward: gradient {index} must be a Tensor or None, "
                f"got {type(gradient).__name__}"
            )
        shape, dtype = self.shapes[index]
        if gradient.array.shape != shape:
            if gradient.array.size == 1 or gradient.array.ndim > len(shape):
                gradient = gradient.sum_to_size(shape)  # type: ignore[attr-defined]
            else:
                raise RuntimeError(
                    f"{self.function.__name__}.backward: gradient {index} has shape "
                    f"{list(gradient.array.shape)}, expected {list(shape)}"
                )
        if gradient.array.dtype != dtype:
            gradient = gradient.to(dtype)
        return gradient


class Function:
    """A differentiable function of your own: static `forward(ctx, ...)` and `backward(ctx, ...)`.

    `forward` runs unrecorded; what backward needs goes through ``ctx.save_for_backward`` or
    attributes of ctx. `backward` gets a gradient per output and returns one per input of forward
    (None where there is none). Call it by ``MyFunction.apply(...)``.
    """

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a Function must define a static forward(ctx, ...)")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError("a Function must define a static backward(ctx, ...)")

    setup_context: Any = None

    @classmethod
    def apply(cls, *args: Any) -> Any:
        ctx = FunctionContext()
        ctx.function = cls
        wanted = tuple(isinstance(a, TensorBase) and bool(a._requires_grad) for a in args)
        recording = grad_enabled() and any(wanted)
        ctx.needs_input_grad = wanted
        with no_grad():
            if cls.setup_context is None:
                results = cls.forward(ctx, *args)
            else:
                results = cls.forward(*args)
                cls.setup_context(ctx, args, results)
        if not recording:
            return results
        return _connect(ctx, args, results)


def _connect(ctx: FunctionContext, args: tuple[Any, ...], results: Any) -> Any:
    """Ties the results of a user's forward to its node."""
    single = not isinstance(results, tuple)
    outputs = [results] if single else list(results)
    frozen = {id(t) for t in ctx._non_differentiable}
    dirty = {id(t) for t in ctx._dirty}
    ctx.shapes = tuple(
        (a.array.shape, a.array.dtype) if isinstance(a, TensorBase) else None for a in args
    )
    inputs = {id(a) for a in args}
    for index, output in enumerate(outputs):
        if isinstance(output, TensorBase) and id(output) in inputs and id(output) not in dirty:
            outputs[index] = output.view_as(output)  # type: ignore[attr-defined]
    tensors = [o for o in outputs if isinstance(o, TensorBase)]
    ctx._outputs = tuple((t.array.shape, t.array.dtype) for t in tensors)
    output = tensors[0] if len(tensors) == 1 and id(tensors[0]) not in inputs else None
    attach(
        ctx,
        args,
        tuple(output.array if output is not None and t is output else t for t in ctx._to_save),
        output,
    )
    differentiable = [t for t in tensors if id(t) not in frozen]
    for tensor in ctx._dirty:
        _cpu.bump(tensor)
    if len(tensors) == 1 and len(differentiable) == 1:
        tensors[0]._node, tensors[0]._requires_grad = ctx, True
    else:
        connect_outputs(ctx, tensors)
        for tensor in tensors:
            if id(tensor) in frozen or tensor.array.dtype.kind not in "fV":
                tensor._node, tensor._requires_grad = None, False
    return outputs[0] if single else tuple(outputs)


# ---- checking gradients ----


def _numeric_jacobian(function: Any, inputs: Sequence[Any], index: int, eps: float) -> Any:
    """D outputs / d inputs[index] by central differences, [elements of input, all outputs]."""
    array = inputs[index].array
    rows = []
    for position in np.ndindex(array.shape):
        centre = array[position]
        array[position] = centre + eps
        high = [o.array.astype(np.float64, copy=True) for o in _as_tuple(function(*inputs))]
        array[position] = centre - eps
        low = [o.array.astype(np.float64, copy=True) for o in _as_tuple(function(*inputs))]
        array[position] = centre
        pieces = [((h - b) / (2 * eps)).ravel() for h, b in zip(high, low, strict=True)]
        rows.append(np.concatenate(pieces) if pieces else np.zeros(0))
    width = rows[0].size if rows else 0
    return np.array(rows).reshape(array.size, width)


def _analytic_jacobians(function: Any, inputs: Sequence[Any], create_graph: bool) -> list[Any]:
    """The same from backward, for each input that requires grad."""
    wanted = [t for t in inputs if isinstance(t, TensorBase) and t._requires_grad]
    outputs = [o for o in _as_tuple(function(*inputs)) if o.array.dtype.kind == "f"]
    columns: list[list[Any]] = [[] for _ in wanted]
    for output in outputs:
        for position in np.ndindex(output.array.shape):
            seed = np.zeros_like(output.array)
            seed[position] = 1
            found: Sequence[Any] = (None,) * len(wanted)
            if output._requires_grad:
                found = grad(output, wanted, wrap(seed), True, create_graph, allow_unused=True)
            for column, tensor, g in zip(columns, wanted, found, strict=True):
                value = np.zeros(tensor.array.shape) if g is None else g.array
                column.append(np.array(value, dtype=np.float64).ravel())
    return [
        np.stack(c, axis=1) if c else np.zeros((t.array.size, 0))
        for c, t in zip(columns, wanted, strict=True)
    ]


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compares backward with central differences, element by element; NaN never passes.

    Use float64 inputs. Returns True, or raises RuntimeError (returns False without
    raise_exception) naming the input whose Jacobian is wrong.
    """
    inputs = _as_tuple(inputs)
    analytic = iter(_analytic_jacobians(func, inputs, create_graph=False))
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, TensorBase) or not tensor._requires_grad:
            continue
        got = next(analytic)
        with no_grad():
            expected = _numeric_jacobian(func, inputs, index, eps)
        if got.shape == expected.shape and np.allclose(got, expected, rtol=rtol, atol=atol):
            continue
        if not raise_exception:
            return False
        raise RuntimeError(
            f"gradcheck: the Jacobian for input {index} is wrong\nnumeric:\n{expected}\n"
            f"analytic:\n{got}"
        )
    return True


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """`gradcheck` of the gradient itself: second derivatives, for random output gradients."""
    inputs = _as_tuple(inputs)
    wanted = [i for i, t in enumerate(inputs) if isinstance(t, TensorBase) and t._requires_grad]
    outputs = _as_tuple(func(*inputs))
    if grad_outputs is None:
        rng = np.random.default_rng(0)
        grad_outputs = []
        for output in outputs:
            seed = wrap(rng.standard_normal(output.array.shape).astype(output.array.dtype))
            seed._requires_grad = True
            grad_outputs.append(seed)
    seeds = _as_tuple(grad_outputs)

    def first_gradient(*args: Any) -> Any:
        arguments, seeds_now = args[: len(inputs)], args[len(inputs) :]
        before = _cpu.set_grad_enabled(True)
        try:
            out = _as_tuple(func(*arguments))
            found = grad(
                out, [arguments[i] for i in wanted], seeds_now, create_graph=True, allow_unused=True
            )
        finally:
            _cpu.set_grad_enabled(before)
        return tuple(g for g in found if g is not None and g._requires_grad)

    return gradcheck(first_gradient, (*inputs, *seeds), eps, atol, rtol, raise_exception)
