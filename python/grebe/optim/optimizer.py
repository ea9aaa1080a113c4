"""What all optimizers share: parameter groups, state, checkpoints, and the way to the kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, NoReturn

import numpy as np

from .. import _cpu
from ..autograd import enable_grad
from ..backend import Array, kernels, like, xp
from ..tensor import Tensor

__all__ = ["Optimizer", "check_at_least_zero"]

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]]


def check_at_least_zero(**options: float) -> None:
    """Raises ValueError for an option that is negative or NaN."""
    for name, value in options.items():
        if not value >= 0.0:
            raise ValueError(f"Invalid {name} value: {value}")


def is_dense(array: Array) -> bool:
    """Do the elements fill one block of memory, in whatever order of dimensions?"""
    if array.flags.forc:
        return True
    expected = array.itemsize
    for stride, size in sorted(zip(array.strides, array.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def in_layout(array: Array, like: Array) -> Array:
    """`array` with the strides of the dense array `like`: itself, or a copy."""
    if array.strides == like.strides and array.dtype == like.dtype:
        return array
    copy: Array = xp(like).empty_like(like)
    copy[...] = array
    return copy


class Batch:
    """The parameters of one kernel call, as parallel lists of arrays in equal dense layouts."""

    __slots__ = ("grads", "params", "states", "tensors")

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.params: list[Array] = []
        self.grads: list[Array] = []
        self.states: list[dict[str, Any]] = []

    def append(self, tensor: Tensor, grad: Array, state: dict[str, Any]) -> None:
        param = tensor.array
        if not param.flags.forc and not is_dense(param):
            param = xp(param).ascontiguousarray(param)
        self.tensors.append(tensor)
        self.params.append(param)
        self.grads.append(grad if grad.strides == param.strides else in_layout(grad, param))
        self.states.append(state)

    def state(self, name: str) -> list[Array]:
        """Every parameter's state `name`, made of zeros where it is missing."""
        arrays = []
        for state, param in zip(self.states, self.params, strict=True):
            value = state.get(name)
            if value is None:
                array = xp(param).zeros_like(param)
                state[name] = _cpu.wrap(array)
            else:
                array = value.array
                if array.strides != param.strides or array.dtype != param.dtype:
                    array = in_layout(array, param)
                    state[name] = _cpu.wrap(array)
            arrays.append(array)
        return arrays

    def count(self, step: Any) -> None:
        """Notes that the parameters get their update number `step`."""
        for state in self.states:
            state["step"] = step

    def written(self) -> None:
        """Brings the new values home and counts the in-place writes."""
        for tensor, param in zip(self.tensors, self.params, strict=True):
            if param is not tensor.array:
                tensor.array[...] = param
            _cpu.bump(tensor)

    @property
    def kernels(self) -> Any:
        return kernels(self.params[0])


class Optimizer:
    """Base class of all optimizers.

    Args:
        params: tensors to optimize, or dicts with a key ``"params"`` and options of their own.
        defaults: options of groups that do not set them.

    A subclass implements `_update`, which applies the rule to the parameters of one group.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or "
                "dicts, but got a Tensor"
            )
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own, e.g. layers that are unfrozen later.

        Raises:
            TypeError: no dict, or "params" holds what is no Tensor.
            ValueError: a tensor is no leaf, is listed twice, or an option has no value.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        params = param_group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the "
                "ordering of tensors in sets will change between runs. Please use a list instead."
            )
        group = {**self.defaults, **param_group, "params": list(params)}
        for param in group["params"]:
            self._check_param(param)
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        ids = [id(p) for p in group["params"]]
        if len(set(ids)) != len(ids):
            raise ValueError("a parameter group has duplicate parameters")
        if seen.intersection(ids):
            raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(group)

    def _check_param(self, param: object) -> None:
        name = type(self).__name__
        if not isinstance(param, Tensor):
            raise TypeError(
                f"{name}: optimizer can only optimize Tensors, but one of the params is "
                f"{type(param).__name__}"
            )
        if not param.is_leaf:
            raise ValueError(f"{name}: can't optimize a non-leaf Tensor")
        if param.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: expected float32 or float64 parameters, got {param.dtype}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all parameters; fills them with zeros if not `set_to_none`."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if set_to_none:
                    param.grad = None
                else:
                    param.grad.array[...] = 0
                    _cpu.bump(param.grad)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Args:
            closure: recomputes the loss and its gradients; called first, and its result returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        """Applies the rule to the parameters of `group` that have a gradient."""
        raise NotImplementedError(f"{type(self).__name__}._update")

    def batches(
        self, group: dict[str, Any], key: Callable[[dict[str, Any]], Any]
    ) -> Iterable[tuple[Any, Batch]]:
        """The parameters of `group` with a gradient, in batches of equal `key(state)`."""
        found: dict[Any, Batch] = {}
        # Small models spend their steps here: no call that can be spared.
        for param in group["params"]:
            grad = param._grad
            if grad is None:
                continue
            given, array = grad.array, param.array
            if (
                given.shape != array.shape
                or given.dtype != array.dtype
                or not array.flags.writeable
            ):
                self._refuse(param, given)
            state = self.state[param]
            k = key(state)
            batch = found.get(k)
            if batch is None:
                batch = found[k] = Batch()
            batch.append(param, given, state)
        return found.items()

    def _refuse(self, param: Tensor, grad: Array) -> NoReturn:
        name, array = type(self).__name__, param.array
        if array.flags.writeable:
            raise ValueError(
                f"{name}.step: a parameter of shape {tuple(array.shape)} and dtype {array.dtype} "
                f"has a gradient of shape {tuple(grad.shape)} and dtype {grad.dtype}"
            )
        raise ValueError(
            f"{name}.step: a parameter of shape {tuple(array.shape)} stands on read-only memory"
        )

    def state_dict(self) -> dict[str, Any]:
        """State and options, with parameters replaced by their numbers, as PyTorch lays it out.

        Returns:
            ``{"state": {number: {name: value}}, "param_groups": [{..., "params": [number]}]}``.
            The tensors in it are the optimizer's own.
        """
        number: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for param in group["params"]:
                number[id(param)] = len(number)
            groups.append({**group, "params": [number[id(p)] for p in group["params"]]})
        state = {number[id(p)]: dict(s) for p, s in self.state.items() if id(p) in number}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over copies of what `state_dict` returned.

        Raises:
            ValueError: the groups differ in number or size, or a state's shape from its parameter.
        """
        groups, saved = self.param_groups, state_dict["param_groups"]
        if len(groups) != len(saved):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"expected {len(groups)}, got {len(saved)}"
            )
        for i, (group, other) in enumerate(zip(groups, saved, strict=True)):
            if len(group["params"]) != len(other["params"]):
                raise ValueError(
                    "loaded state dict contains a parameter group that doesn't match the size of "
                    f"optimizer's group {i}: expected {len(group['params'])} parameters, "
                    f"got {len(other['params'])}"
                )
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for group, other in zip(groups, saved, strict=True):
            for param, number in zip(group["params"], other["params"], strict=True):
                if number in state_dict["state"]:
                    values = state_dict["state"][number]
                    state[param] = {k: _state_for(param, k, v) for k, v in values.items()}
        options = [{k: deepcopy(v) for k, v in g.items() if k != "params"} for g in saved]
        self.state = state
        self.param_groups = [
            {**g, **o, "params": g["params"]} for g, o in zip(groups, options, strict=True)
        ]


def _state_for(param: Tensor, name: str, value: Any) -> Any:
    """A copy of one state value in the dtype and layout of its parameter."""
    if name == "step":
        return int(value)
    if name == "mu_product":
        return float(value)
    if not isinstance(value, Tensor):
        return deepcopy(value)
    if tuple(value.shape) != tuple(param.shape):
        raise ValueError(
            f"loaded state dict: {name!r} has shape {tuple(value.shape)}, its parameter "
            f"{tuple(param.shape)}"
        )
    copy = xp(param.array).empty_like(param.array)
    copy[...] = like(value.array, param.array)
    return _cpu.wrap(copy)
