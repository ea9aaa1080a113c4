"""The state of a module: `state_dict`, `load_state_dict` and their hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np

from ..._cpu import TensorBase, wrap
from ...autograd import RemovableHandle, no_grad
from ...tensor import Tensor
from ..parameter import Parameter, is_lazy
from .hooks import NO_HOOKS, Hook, Hooks, register
from .members import BUFFER, MODULE, PARAMETER

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


class Stateful:
    """The half of Module that saves and loads; it needs only names, members and hooks."""

    _version = 1
    _hooks: Hooks | None = None
    _kinds: dict[str, str]

    def _get_name(self) -> str:
        return type(self).__name__

    def _items(self, *kinds: str) -> list[tuple[str, Any]]:
        """Name and value of the members of these kinds that are not None."""
        members = self.__dict__
        return [
            (name, members[name])
            for name, kind in self._kinds.items()
            if kind in kinds and members[name] is not None
        ]

    def _own_hooks(self) -> Hooks:
        if self._hooks is None:
            self._hooks = Hooks()
        return self._hooks

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
        if type(self).get_extra_state is not Stateful.get_extra_state:
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
        if type(self).set_extra_state is not Stateful.set_extra_state:
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


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    tensor: Tensor = wrap(np.asarray(value))
    return tensor
