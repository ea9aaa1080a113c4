"""What a module's attributes can be, and a view of those of one kind."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .module import Module

PARAMETER = "parameter"
BUFFER = "buffer"
TRANSIENT = "non-persistent buffer"
MODULE = "child module"


class Members(MutableMapping[str, Any]):
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
