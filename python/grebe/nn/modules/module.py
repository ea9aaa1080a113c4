"""Module: the base class of layers and models. D2L section 6.1.

A module is a plain object: its parameters, buffers and child modules are ordinary attributes, and
one dict, `_kinds`, tells in order of registration which attributes are what. So reading a weight
costs what reading any attribute costs, and a call without hooks is one test and one call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..._cpu import TensorBase, wrap
from ...autograd import RemovableHandle, no_grad
from ...backend import bfloat16
from ...tensor import Tensor, check_device, device
from ..parameter import Buffer, Parameter, is_lazy
from .hooks import NO_HOOKS, BackwardHooks, Hook, Hooks, register

__all__ = ["Module"]

T = TypeVar("T", bound="Module")

PARAMETER = "parameter"
BUFFER = "buffer"
TRANSIENT = "non-persistent buffer"
MODULE = "child module"

_EXTRA_STATE = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """What `Module.load_state_dict` returns: the keys that do not fit."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (
            f"IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )


class _Members(MutableMapping[str, Any]):
    """The members of one kind, by name: a live view of the module's attributes."""

    def __init__(self, module: Module, *kinds: str) -> None:
        self._module, self._wanted = module, kinds

    def __getitem__(self, name: str) -> Any:
        if self._module._kinds.get(name) not in self._wanted:
            raise KeyError(name)
        return self._module.__dict__[name]

    def __setitem__(self, name: str, value: Any) -> None:
        module, kind = self._module, self._wanted[0]
        if kind == PARAMETER:
            module.register_parameter(name, value)
        elif kind == MODULE:
            module.add_module(name, value)
        else:
            module.register_buffer(name, value, module._kinds.get(name) != TRANSIENT)

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self._module, name)

    def __iter__(self) -> Iterator[str]:
        return (n for n, kind in list(self._module._kinds.items()) if kind in self._wanted)

    def __len__(self) -> int:
        return sum(kind in self._wanted for kind in self._module._kinds.values())

    def __repr__(self) -> str:
        return repr(dict(self))


# ---- where an error happened ----

_NAMED_ERRORS = (ValueError, TypeError, RuntimeError, IndexError)


def name_error(error: Exception, module: Module) -> None:
    """Puts the path of the module whose forward failed in front of the error's message.

    Called by every module that the error passes on its way out, so the path grows from the inside:
    ``Linear: ...``, then ``3 (Linear): ...``, then ``net.3 (Linear): ...``.
    """
    if not isinstance(error, _NAMED_ERRORS):
        return
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return
    message, path, kind, last = error.__dict__.get("_where", (error.args[0], "", "", 0))
    if not kind:
        kind = module._get_name()
        error.args = (f"{kind}: {message}",)
    else:
        found = [name for name, child in module.named_modules() if id(child) == last]
        if not found or not found[0]:
            return
        path = f"{found[0]}.{path}" if path else found[0]
        error.args = (f"{path} ({kind}): {message}",)
    error.__dict__["_where"] = (message, path, kind, id(module))


# ---- the class ----


def _indent(text: str) -> str:
    return text.replace("\n", "\n  ")


def _not_a_name(module: Module, what: str, name: Any, kinds: tuple[str, ...]) -> None:
    """Raises unless `name` can become a member of one of `kinds`."""
    if not isinstance(name, str):
        raise TypeError(f"{what} name should be a string. Got {type(name).__name__}")
    if "." in name:
        raise KeyError(f'{what} name can\'t contain ".", got: {name}')
    if name == "":
        raise KeyError(f'{what} name can\'t be empty string ""')
    if hasattr(module, name) and module._kinds.get(name) not in kinds:
        raise KeyError(f"attribute '{name}' already exists")


class Module:
    """Base class of all layers and models.

    Subclasses define ``forward``; call the module, not `forward`, so that hooks run. Parameters,
    buffers and modules assigned to attributes are registered under the attribute's name.
    """

    training: bool
    _version = 1
    _hooks: Hooks | None = None
    _kinds: dict[str, str]

    def __init__(self) -> None:
        self.__dict__["training"] = True
        self.__dict__["_kinds"] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; to be defined by the subclass."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    # ---- call ----

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if self._hooks is None:
                return self.forward(*args, **kwargs)
            return self._call_with_hooks(self._hooks, args, kwargs)
        except Exception as error:
            name_error(error, self)
            raise

    def _call_with_hooks(self, hooks: Hooks, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called: set[int] = set()
        try:
            args, kwargs = self._run_pre_hooks(hooks, args, kwargs)
            marks = None
            if hooks.backward or hooks.backward_pre:
                marks = BackwardHooks(self, hooks)
                args = marks.mark_inputs(args)
            result = self.forward(*args, **kwargs)
            for key, (hook, with_kwargs, _) in list(hooks.forward.items()):
                called.add(key)
                extra = (kwargs,) if with_kwargs else ()
                changed = hook(self, args, *extra, result)
                if changed is not None:
                    result = changed
            return result if marks is None else marks.mark_outputs(result)
        except Exception:
            for key, (hook, with_kwargs, always) in list(hooks.forward.items()):
                if always and key not in called:
                    hook(self, args, *((kwargs,) if with_kwargs else ()), None)
            raise

    def _run_pre_hooks(
        self, hooks: Hooks, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for hook, with_kwargs in list(hooks.forward_pre.values()):
            if with_kwargs:
                changed = hook(self, args, kwargs)
                if changed is None:
                    continue
                if not isinstance(changed, tuple) or len(changed) != 2:
                    raise RuntimeError(
                        "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                        f"but got {changed}"
                    )
                args, kwargs = changed
            else:
                changed = hook(self, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        return args, kwargs

    def _own_hooks(self) -> Hooks:
        if self._hooks is None:
            self._hooks = Hooks()
        return self._hooks

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Calls ``hook(module, args)`` before `forward`; what it returns replaces the arguments.

        with_kwargs: ``hook(module, args, kwargs)`` instead, which returns None or both.
        """
        return register(self._own_hooks().forward_pre, (hook, with_kwargs), prepend)

    def register_forward_hook(
        self,
        hook: Hook,
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """Calls ``hook(module, args, output)`` after `forward`; it may return another output.

        with_kwargs: ``hook(module, args, kwargs, output)``. always_call: also if forward raises,
        with output None.
        """
        return register(self._own_hooks().forward, (hook, with_kwargs, always_call), prepend)

    def register_full_backward_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Calls ``hook(module, grad_output)`` when the gradients of the outputs are known.

        It may return other gradients.
        """
        return register(self._own_hooks().backward_pre, hook, prepend)

    def register_full_backward_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Calls ``hook(module, grad_input, grad_output)`` when the inputs' gradients are known.

        Both are tuples with one entry per positional input or per output, None where there is no
        gradient. It may return another grad_input.
        """
        return register(self._own_hooks().backward, hook, prepend)

    register_backward_hook = register_full_backward_hook

    # ---- members ----

    def __setattr__(self, name: str, value: Any) -> None:
        kinds = self.__dict__.get("_kinds")
        kind = None if kinds is None else kinds.get(name)
        if isinstance(value, (Parameter, Module, Buffer)):
            if kinds is None:
                raise AttributeError(
                    f"cannot assign {type(value).__name__} '{name}' before Module.__init__() call"
                )
            self._replace_member(name, kind, value)
        elif kind is None:
            object.__setattr__(self, name, value)
        elif value is None or (kind in (BUFFER, TRANSIENT) and isinstance(value, Tensor)):
            self.__dict__[name] = value
        else:
            allowed = {PARAMETER: "Parameter", MODULE: "Module"}.get(kind, "Buffer, Tensor")
            raise TypeError(
                f"cannot assign '{type(value).__name__}' as {kind} '{name}' "
                f"({allowed} or None expected)"
            )

    def _replace_member(self, name: str, kind: str | None, value: Any) -> None:
        """Registers `value` under `name`, whatever the attribute was before."""
        if isinstance(value, Parameter):
            new = PARAMETER
        elif isinstance(value, Module):
            new = MODULE
        else:
            new = BUFFER if value.persistent else TRANSIENT
        if kind != new:
            self._kinds.pop(name, None)
            self.__dict__.pop(name, None)
        if new == PARAMETER:
            self.register_parameter(name, value)
        elif new == MODULE:
            self.add_module(name, value)
        else:
            self.register_buffer(name, value, value.persistent)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self.__dict__.get("_kinds", {}).pop(name, None)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter, or None as the place of an absent one.

        Raises TypeError for what is no Parameter and KeyError for a name that is taken.
        """
        self._need_init("parameter")
        _not_a_name(self, "parameter", name, (PARAMETER,))
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{type(param).__name__}' object to parameter '{name}' "
                "(grebe.nn.Parameter or None required)"
            )
        if param is not None and not param.is_leaf:
            raise ValueError(
                f"cannot assign non-leaf Tensor to parameter '{name}': a parameter must not be the "
                "result of recorded operations"
            )
        self._kinds[name] = PARAMETER
        self.__dict__[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Adds a tensor that is state but not trained; only if persistent part of `state_dict`."""
        self._need_init("buffer")
        _not_a_name(self, "buffer", name, (BUFFER, TRANSIENT))
        if tensor is not None and not isinstance(tensor, TensorBase):
            raise TypeError(
                f"cannot assign '{type(tensor).__name__}' object to buffer '{name}' "
                "(grebe.Tensor or None required)"
            )
        self._kinds[name] = BUFFER if persistent else TRANSIENT
        self.__dict__[name] = tensor

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a child module, reachable as attribute `name`."""
        self._need_init("module")
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{type(module).__name__} is not a Module subclass")
        _not_a_name(self, "module", name, (MODULE,))
        self._kinds[name] = MODULE
        self.__dict__[name] = module

    def register_module(self, name: str, module: Module | None) -> None:
        """Alias for `add_module`."""
        self.add_module(name, module)

    def _need_init(self, what: str) -> None:
        if "_kinds" not in self.__dict__:
            raise AttributeError(f"cannot assign {what} before Module.__init__() call")

    @property
    def _parameters(self) -> MutableMapping[str, Parameter | None]:
        return _Members(self, PARAMETER)

    @property
    def _buffers(self) -> MutableMapping[str, Tensor | None]:
        return _Members(self, BUFFER, TRANSIENT)

    @property
    def _modules(self) -> MutableMapping[str, Module | None]:
        return _Members(self, MODULE)

    def _items(self, *kinds: str) -> list[tuple[str, Any]]:
        """Name and value of the members of these kinds that are not None."""
        members = self.__dict__
        return [
            (name, members[name])
            for name, kind in self._kinds.items()
            if kind in kinds and members[name] is not None
        ]

    # ---- iteration ----

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Path and module, for self ("") and everything below; each module once by default."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._items(MODULE):
            path = f"{prefix}.{name}" if prefix else name
            yield from child.named_modules(memo, path, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Self and all modules below, each once."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Name and module of the direct children, each once."""
        seen: set[Module] = set()
        for name, child in self._items(MODULE):
            if child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        """The direct children, each once."""
        for _, child in self.named_children():
            yield child

    def _named_members(
        self, kinds: tuple[str, ...], prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules: Any = [(prefix, self)]
        if recurse:
            modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in modules:
            for name, value in module._items(*kinds):
                if id(value) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(value))
                yield (f"{path}.{name}" if path else name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Path and parameter, in order of registration; shared ones once by default."""
        yield from self._named_members((PARAMETER,), prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, each once; what an optimizer takes."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Path and buffer, persistent or not."""
        yield from self._named_members((BUFFER, TRANSIENT), prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; "" is self. Raises AttributeError naming what is missing."""
        module: Any = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{module._get_name()} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Module):
                raise AttributeError(f"`{name}` is not an nn.Module")
        found: Module = module
        return found

    def _get_member(self, target: str, kinds: tuple[str, ...], what: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if not hasattr(module, name):
            raise AttributeError(f"{module._get_name()} has no attribute `{name}`")
        if module._kinds.get(name) not in kinds:
            raise AttributeError(f"`{name}` is not {what}")
        return getattr(module, name)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        parameter: Parameter = self._get_member(target, (PARAMETER,), "an nn.Parameter")
        return parameter

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path."""
        buffer: Tensor = self._get_member(target, (BUFFER, TRANSIENT), "a buffer")
        return buffer

    # ---- mode, dtype, gradients ----

    def apply(self: T, fn: Callable[[Module], Any]) -> T:
        """Calls `fn` on every module below, then on self."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def train(self: T, mode: bool = True) -> T:
        """Sets training mode (dropout, batch norm) here and below."""
        if not isinstance(mode, bool):
            raise ValueError(f"training mode is expected to be boolean, got {mode!r}")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self: T) -> T:
        """``train(False)``."""
        return self.train(False)

    def requires_grad_(self: T, requires_grad: bool = True) -> T:
        """Starts or stops recording for all parameters."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all parameters, or fills them with zeros."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                gradient = parameter.grad
                gradient.detach_()
                gradient.zero_()

    def _apply(self: T, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T:
        """Replaces the memory of all parameters, their gradients and buffers by `fn` of them."""
        if recurse:
            for child in self.children():
                child._apply(fn)
        with no_grad():
            for _, tensor in self._items(PARAMETER, BUFFER, TRANSIENT):
                gradient = tensor.grad
                tensor.grad = None
                tensor.data = fn(tensor)
                if gradient is not None:
                    gradient.data = fn(gradient)
                    tensor.grad = gradient
        return self

    def to(self: T, *args: Any, **kwargs: Any) -> T:
        """Moves and casts all parameters and buffers: ``to(device)``, ``to(dtype)``,
        ``to(tensor)``, ``to(device, dtype)``. Only floating point tensors are cast.

        Raises TypeError for a dtype that is not floating point.
        """
        where, dtype = _parse_to(args, kwargs)

        def convert(tensor: Tensor) -> Tensor:
            floating = tensor.dtype.kind in "fV"
            options: dict[str, Any] = {} if where is None else {"device": where}
            if dtype is not None and floating:
                options["dtype"] = dtype
            return tensor.to(**options) if options else tensor

        return self._apply(convert)

    def float(self: T) -> T:
        """Casts all floating point parameters and buffers to float32."""
        return self.to(np.dtype(np.float32))

    def double(self: T) -> T:
        """Casts all floating point parameters and buffers to float64."""
        return self.to(np.dtype(np.float64))

    def bfloat16(self: T) -> T:
        """Casts all floating point parameters and buffers to bfloat16."""
        return self.to(bfloat16)

    def type(self: T, dst_type: Any) -> T:
        """Casts all parameters and buffers to the dtype `dst_type`."""
        return self._apply(lambda tensor: tensor.to(np.dtype(dst_type)))

    def cpu(self: T) -> T:
        """Moves everything to the CPU."""
        return self.to(device("cpu"))

    def cuda(self: T, device: Any = None) -> T:
        """Moves everything to a CUDA device; RuntimeError where there is none."""
        if device is None or isinstance(device, int):
            device = "cuda" if device is None else f"cuda:{device}"
        return self.to(device)

    # ---- state ----

    def get_extra_state(self) -> Any:
        """What else belongs into `state_dict`; define together with `set_extra_state`."""
        raise RuntimeError(
            "Reached a code path in Module.get_extra_state() that should never be called."
        )

    def set_extra_state(self, state: Any) -> None:
        """Takes back what `get_extra_state` gave."""
        raise RuntimeError(
            "Reached a code path in Module.set_extra_state() that should never be called."
        )

    def register_state_dict_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Calls ``hook(module, prefix, keep_vars)`` before `state_dict` collects."""
        return register(self._own_hooks().state_dict_pre, hook)

    def register_state_dict_post_hook(self, hook: Hook) -> RemovableHandle:
        """Calls ``hook(module, state_dict, prefix, local_metadata)`` after `state_dict`.

        It may change the dict in place.
        """
        return register(self._own_hooks().state_dict, hook)

    def register_load_state_dict_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Calls ``hook(module, state_dict, prefix, local_metadata, strict, missing_keys,
        unexpected_keys, error_msgs)`` before this module loads its part.
        """
        return register(self._own_hooks().load_pre, hook)

    def register_load_state_dict_post_hook(self, hook: Hook) -> RemovableHandle:
        """Calls ``hook(module, incompatible_keys)`` after loading; it may change them in place."""
        return register(self._own_hooks().load, hook)

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for kind in (PARAMETER, BUFFER):
            for name, value in self._items(kind):
                keep = keep_vars or is_lazy(value)
                destination[prefix + name] = value if keep else value.detach()
        if type(self).get_extra_state is not Module.get_extra_state:
            destination[prefix + _EXTRA_STATE] = self.get_extra_state()

    def state_dict(
        self,
        *,
        destination: MutableMapping[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> Any:
        """All parameters and persistent buffers by path, sharing memory with the module.

        destination: a dict to fill and return. keep_vars: the parameters themselves instead of
        detached twins.
        """
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()  # type: ignore[attr-defined]
        local = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = local
        hooks = self._hooks or NO_HOOKS
        for hook in list(hooks.state_dict_pre.values()):
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, child in self._items(MODULE):
            child.state_dict(
                destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
            )
        for hook in list(hooks.state_dict.values()):
            if hook(self, destination, prefix, local) is not None:
                raise RuntimeError("state_dict post-hook must return None")
        return destination

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads this module's own members; subclasses override it for older formats."""
        for hook in list((self._hooks or NO_HOOKS).load_pre.values()):
            hook(
                self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                error_msgs,
            )  # fmt: skip
        own = dict(self._items(PARAMETER) + self._items(BUFFER))
        assign = local_metadata.get("assign_to_params_buffers", False)
        for name, value in own.items():
            key = prefix + name
            if key in state_dict:
                self._load_one(name, value, key, state_dict[key], assign, error_msgs)
            elif strict:
                missing_keys.append(key)
        extra = prefix + _EXTRA_STATE
        if type(self).set_extra_state is not Module.set_extra_state:
            if extra in state_dict:
                self.set_extra_state(state_dict[extra])
            elif strict:
                missing_keys.append(extra)
        elif strict and extra in state_dict:
            unexpected_keys.append(extra)
        if strict:
            unexpected_keys.extend(self._unexpected(state_dict, prefix, own, extra))

    def _unexpected(
        self, state_dict: Mapping[str, Any], prefix: str, own: Mapping[str, Any], extra: str
    ) -> Iterator[str]:
        """The keys below `prefix` that belong neither to a member nor to a child."""
        for key in state_dict:
            if not key.startswith(prefix) or key == extra:
                continue
            name, dot, _ = key[len(prefix) :].partition(".")
            if (self._kinds.get(name) != MODULE) if dot else (name not in own):
                yield key

    def _load_one(
        self, name: str, own: Tensor, key: str, value: Any, assign: bool, errors: list[str]
    ) -> None:
        if not isinstance(value, TensorBase) and not hasattr(value, "__array__"):
            errors.append(
                f'While copying the parameter named "{key}", expected a Tensor or an array from '
                f"the checkpoint but received {type(value)}"
            )
            return
        try:
            with no_grad():
                self._copy_or_assign(name, own, key, _as_tensor(value), assign, errors)
        except Exception as error:  # collected, so that one message names all bad keys
            errors.append(f'While copying the parameter named "{key}", an error occurred: {error}')

    def _copy_or_assign(
        self, name: str, own: Tensor, key: str, value: Tensor, assign: bool, errors: list[str]
    ) -> None:
        if is_lazy(value):
            if not is_lazy(own):
                errors.append(f"{key} has no shape yet in the checkpoint, but has one here")
            return
        if is_lazy(own):
            own.materialize(value.shape)
        elif own.ndim == 0 and value.shape == (1,):  # PyTorch's oldest files
            value = value[0]
        if own.shape != value.shape:
            errors.append(
                f"size mismatch for {key}: copying a param with shape {value.shape} from "
                f"checkpoint, the shape in current model is {own.shape}."
            )
        elif not assign:
            own.copy_(value)
        elif isinstance(own, Parameter):
            setattr(self, name, Parameter(value.detach(), own.requires_grad))
        else:
            setattr(self, name, value)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copies the values of `state_dict` (tensors, or arrays of any library) into the module.

        strict: keys must match exactly. assign: take the tensors themselves instead of copying.
        Returns ``(missing_keys, unexpected_keys)``. Raises TypeError if `state_dict` is no mapping
        and RuntimeError listing all keys and shapes that do not fit.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        keys = IncompatibleKeys([], [])
        errors: list[str] = []
        metadata = getattr(state_dict, "_metadata", {})
        self._load(dict(state_dict), "", metadata, assign, keys, errors)
        if strict:
            for text, bad in (("Missing", keys.missing_keys), ("Unexpected", keys.unexpected_keys)):
                if bad:
                    names = ", ".join(f'"{key}"' for key in bad)
                    errors.append(f"{text} key(s) in state_dict: {names}. ")
        if errors:
            raise RuntimeError(
                "Error(s) in loading state_dict for {}:\n\t{}".format(
                    self._get_name(), "\n\t".join(errors)
                )
            )
        return keys

    def _load(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Mapping[str, Any],
        assign: bool,
        keys: IncompatibleKeys,
        errors: list[str],
    ) -> None:
        local = dict(metadata.get(prefix[:-1], {}))
        if assign:
            local["assign_to_params_buffers"] = True
        self._load_from_state_dict(
            state_dict, prefix, local, True, keys.missing_keys, keys.unexpected_keys, errors
        )
        for name, child in self._items(MODULE):
            below = f"{prefix}{name}."
            part = {key: value for key, value in state_dict.items() if key.startswith(below)}
            child._load(part, below, metadata, assign, keys, errors)
        for hook in list((self._hooks or NO_HOOKS).load.values()):
            if hook(self, keys) is not None:
                raise AssertionError(
                    "hooks registered with register_load_state_dict_post_hook must return None; "
                    "they may change incompatible_keys in place"
                )

    # ---- text ----

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """What `repr` shows beside the children; to be overridden."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [
            f"({name}): {_indent(repr(self.__dict__[name]))}"
            for name, kind in self._kinds.items()
            if kind == MODULE
        ]
        if len(lines) == 1 and not children:
            return f"{self._get_name()}({lines[0]})"
        body = "\n  ".join(lines + children)
        return f"{self._get_name()}(\n  {body}\n)" if body else f"{self._get_name()}()"

    def __dir__(self) -> list[str]:
        return sorted(name for name in object.__dir__(self) if not name[:1].isdigit())


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    tensor: Tensor = wrap(np.asarray(value))
    return tensor


def _parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, np.dtype[Any] | None]:
    """(device or None, dtype or None) from the arguments of `Module.to`."""
    known = {"device", "dtype", "non_blocking", "tensor", "copy", "memory_format"}
    unknown = kwargs.keys() - known
    if unknown:
        raise TypeError(f"to: got unexpected keyword arguments {sorted(unknown)}")
    where, dtype = kwargs.get("device"), kwargs.get("dtype")
    for argument in (*args, kwargs.get("tensor")):
        if isinstance(argument, Tensor):
            where, dtype = argument.device, argument.dtype
        elif isinstance(argument, (str, int, device)) and not isinstance(argument, bool):
            where = argument
        elif isinstance(argument, (np.dtype, type)):
            dtype = argument
        elif argument is not None and not isinstance(argument, bool):
            raise TypeError(
                f"to: expected a device, a dtype or a tensor, got {type(argument).__name__}"
            )
    check_device("Module.to", where)
    dtype = None if dtype is None else np.dtype(dtype)
    if dtype is not None and dtype.kind not in "fV":
        raise TypeError(f"to: only floating point dtypes are accepted, got dtype={dtype}")
    return where, dtype
