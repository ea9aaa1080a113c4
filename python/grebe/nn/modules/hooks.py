"""The hooks of modules, and how backward hooks see the gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..._cpu import Node, TensorBase, share
from ...autograd import RemovableHandle, add_hook, record_many

if TYPE_CHECKING:
    from .module import Module

Hook = Callable[..., Any]


class Hooks:
    """The hooks of one module, each dict by handle id. Made when the first one is registered."""

    def __init__(self) -> None:
        self.forward_pre: dict[int, tuple[Hook, bool]] = {}  # hook, with_kwargs
        self.forward: dict[int, tuple[Hook, bool, bool]] = {}  # hook, with_kwargs, always_call
        self.backward_pre: dict[int, Hook] = {}
        self.backward: dict[int, Hook] = {}
        self.state_dict_pre: dict[int, Hook] = {}
        self.state_dict: dict[int, Hook] = {}
        self.load_pre: dict[int, Hook] = {}
        self.load: dict[int, Hook] = {}


NO_HOOKS = Hooks()


def register(hooks: dict[int, Any], hook: Any, prepend: bool = False) -> RemovableHandle:
    """Puts `hook` behind the others, or before them."""
    handle = add_hook(hooks, hook)
    if prepend:
        others = [(key, value) for key, value in hooks.items() if key != handle.id]
        for key, value in others:
            del hooks[key]
            hooks[key] = value
    return handle


class _HookNode(Node):
    """Identity on several tensors; `saved[0]` sees all their gradients at once."""

    __slots__ = ()

    def backward(self, *gradients: Any) -> Any:
        return self.saved[0](gradients)


def _mark(values: tuple[Any, ...], callback: Callable[..., Any]) -> tuple[Any, ...] | None:
    """`values`, the tensors that require grad behind one `_HookNode`. None: there is none."""
    places = [i for i, v in enumerate(values) if isinstance(v, TensorBase) and v._requires_grad]
    if not places:
        return None
    inputs = tuple(values[i] for i in places)

    def spread(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        every: list[Any] = [None] * len(values)
        for place, gradient in zip(places, gradients, strict=True):
            every[place] = gradient
        changed = callback(tuple(every))
        return tuple(changed[place] for place in places)

    marked = record_many(_HookNode, [v.array for v in inputs], inputs, (spread,))
    result = list(values)
    for place, value in zip(places, marked, strict=True):
        share(value, values[place])
        result[place] = value
    return tuple(result)


class BackwardHooks:
    """Runs a module's backward hooks for one call: marks its inputs and outputs on the tape."""

    def __init__(self, module: Module, hooks: Hooks) -> None:
        self.module, self.hooks = module, hooks
        self.inputs = 0
        self.inputs_marked = False
        self.output_gradients: tuple[Any, ...] = ()

    def mark_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, those that require grad marked."""
        marked = _mark(args, self._at_inputs)
        self.inputs, self.inputs_marked = len(args), marked is not None
        return args if marked is None else marked

    def mark_outputs(self, result: Any) -> Any:
        """The result, its tensors that require grad marked."""
        single = isinstance(result, TensorBase)
        if not single and not isinstance(result, tuple):
            warnings.warn(
                f"backward hooks of {self.module._get_name()} are not called: its output should be "
                f"a Tensor or a tuple of Tensors, got {type(result).__name__}",
                stacklevel=4,
            )
            return result
        marked = _mark((result,) if single else result, self._at_outputs)
        if marked is None:
            return result
        return marked[0] if single else marked

    def _at_outputs(self, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in list(self.hooks.backward_pre.values()):
            changed = hook(self.module, gradients)
            if changed is not None:
                gradients = self._checked("backward_pre hook", changed, len(gradients))
        self.output_gradients = gradients
        if not self.inputs_marked:
            self._run((None,) * self.inputs)
        return gradients

    def _at_inputs(self, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._run(gradients)

    def _run(self, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in list(self.hooks.backward.values()):
            changed = hook(self.module, gradients, self.output_gradients)
            if changed is not None:
                gradients = self._checked("backward hook", changed, len(gradients))
        return gradients

    def _checked(self, name: str, changed: Any, count: int) -> tuple[Any, ...]:
        changed = changed if isinstance(changed, tuple) else (changed,)
        if len(changed) != count:
            raise RuntimeError(
                f"{name} of {self.module._get_name()} returned {len(changed)} gradients, "
                f"expected {count}"
            )
        return tuple(changed)
