"""Module: the base class of layers and models. D2L section 6.1.

A module is a plain object: its parameters, buffers and child modules are ordinary attributes, and
one dict, `_kinds`, tells in order of registration which attributes are what. So reading a weight
costs what reading any attribute costs, and a call without hooks is one test and one call.
Saving and loading are in state.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeVar

import numpy as np

from ..._cpu import TensorBase
from ...autograd import RemovableHandle, no_grad
from ...backend import bfloat16
from ...tensor import Tensor, check_device, device
from ..parameter import Buffer, Parameter
from .hooks import BackwardHooks, Hook, Hooks, register
from .members import BUFFER, MODULE, PARAMETER, TRANSIENT, Members
from .state import Stateful

__all__ = ["Module"]

T = TypeVar("T", bound="Module")

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


class Module(Stateful):
    """Base class of all layers and models.

    Subclasses define ``forward``; call the module, not `forward`, so that hooks run. Parameters,
    buffers and modules assigned to attributes are registered under the attribute's name.
    """

    training: bool

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
        return Members(self, PARAMETER)

    @property
    def _buffers(self) -> MutableMapping[str, Tensor | None]:
        return Members(self, BUFFER, TRANSIENT)

    @property
    def _modules(self) -> MutableMapping[str, Module | None]:
        return Members(self, MODULE)

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

    # ---- text ----

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
