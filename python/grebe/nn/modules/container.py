"""Modules that hold modules or parameters. D2L sections 6.1 and 6.2."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

from ...tensor import Tensor
from ..parameter import Parameter
from .members import MODULE
from .module import Module, _indent

__all__ = ["ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]

L = TypeVar("L", bound="_List")


class _List(Module):
    """Children under names in an order: what `Sequential` and `ModuleList` share."""

    def _names(self) -> list[str]:
        return [name for name, kind in self._kinds.items() if kind == MODULE]

    def _name(self, index: Any) -> str:
        names, position = self._names(), operator.index(index)
        if not -len(names) <= position < len(names):
            raise IndexError(f"index {position} is out of range for {len(names)} modules")
        return names[position]

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[Any]:
        return iter([self.__dict__[name] for name in self._names()])

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._name(index), module)

    def __delitem__(self, index: int | slice) -> None:
        gone = self._names()[index] if isinstance(index, slice) else [self._name(index)]
        self._refill([self.__dict__[name] for name in self._names() if name not in gone])

    def _refill(self, modules: Iterable[Any]) -> None:
        """Makes `modules` the children, numbered from 0."""
        modules = list(modules)
        for name in self._names():
            delattr(self, name)
        for position, module in enumerate(modules):
            self.add_module(str(position), module)

    def append(self: L, module: Module) -> L:
        """Adds `module` at the end."""
        self.add_module(str(len(self)), module)
        return self

    def insert(self: L, index: int, module: Module) -> L:
        """Adds `module` before the one at `index`."""
        count = len(self)
        if not -count <= index <= count:
            raise IndexError(f"index {index} is out of range for {count} modules")
        if not isinstance(module, Module):
            raise TypeError(f"{type(module).__name__} is not a Module subclass")
        modules = list(self)
        modules.insert(index, module)
        self._refill(modules)
        return self

    def extend(self: L, modules: Iterable[Module]) -> L:
        """Adds all `modules` at the end."""
        if not isinstance(modules, Iterable):
            raise TypeError(
                f"{self._get_name()}.extend should be called with an iterable, but got "
                f"{type(modules).__name__}"
            )
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, index: int | slice) -> Any:
        """Removes and returns the module at `index`."""
        module = self[index]  # type: ignore[index]
        del self[index]
        return module

    def __iadd__(self: L, modules: Iterable[Module]) -> L:
        return self.extend(modules)


class Sequential(_List):
    """Calls its modules one after the other. D2L section 6.1.

    Takes modules, named by their position, or one OrderedDict of modules.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        named: Iterable[tuple[str, Any]]
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            named = args[0].items()
        else:
            named = ((str(position), module) for position, module in enumerate(args))
        for name, module in named:
            self.add_module(name, module)

    def forward(self, input: Any) -> Any:
        members = self.__dict__
        for name, kind in self._kinds.items():
            if kind == MODULE:
                input = members[name](input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            names = self._names()[index]
            return type(self)(OrderedDict((name, self.__dict__[name]) for name in names))
        return self.__dict__[self._name(index)]

    def __add__(self, other: Any) -> Sequential:
        if not isinstance(other, Sequential):
            raise ValueError(f"Sequential: only a Sequential can be added, got {type(other)}")
        return Sequential(*self, *other)

    def __iadd__(self, other: Any) -> Sequential:
        if not isinstance(other, Sequential):
            raise ValueError(f"Sequential: only a Sequential can be added, got {type(other)}")
        return self.extend(other)

    @staticmethod
    def _check_factor(factor: Any) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int):
            raise TypeError(f"Sequential: can be multiplied by an int, not by {type(factor)}")
        if factor <= 0:
            raise ValueError(f"Sequential: the factor must be positive, got {factor}")

    def __mul__(self, factor: int) -> Sequential:
        self._check_factor(factor)
        return Sequential(*(list(self) * factor))

    __rmul__ = __mul__

    def __imul__(self, factor: int) -> Sequential:
        self._check_factor(factor)
        return self.extend(list(self) * (factor - 1))


class ModuleList(_List):
    """A list of modules that its owner sees as children. D2L section 6.1."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self)[index])
        return self.__dict__[self._name(index)]

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __repr__(self) -> str:
        """Like other modules, with runs of equal children as one line."""
        runs: list[list[Any]] = []
        for position, text in enumerate(repr(child) for child in self):
            if runs and runs[-1][2] == text:
                runs[-1][1] = position
            else:
                runs.append([position, position, text])
        if not runs:
            return f"{self._get_name()}()"
        lines = [
            f"({first}): {text}"
            if first == last
            else f"({first}-{last}): {last - first + 1} x {text}"
            for first, last, text in runs
        ]
        body = "\n  ".join(_indent(line) for line in lines)
        return f"{self._get_name()}(\n  {body}\n)"


def _pairs(owner: str, items: Any) -> list[tuple[str, Any]]:
    """The (key, value) pairs of a mapping or of an iterable of pairs."""
    if isinstance(items, Mapping) or hasattr(items, "items"):
        return list(items.items())
    if not isinstance(items, Iterable):
        raise TypeError(
            f"{owner}.update should be called with a mapping or an iterable of key/value pairs, "
            f"but got {type(items).__name__}"
        )
    pairs: list[tuple[str, Any]] = []
    for position, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise ValueError(
                f"{owner}.update: element {position} should be a (key, value) pair, got {item!r}"
            )
        pairs.append((item[0], item[1]))
    return pairs


class ModuleDict(Module):
    """A dict of modules that its owner sees as children."""

    def __init__(self, modules: Any = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def clear(self) -> None:
        """Removes all modules."""
        self._modules.clear()

    def pop(self, key: str) -> Any:
        """Removes and returns the module under `key`."""
        return self._modules.pop(key)

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._modules.keys()

    def items(self) -> ItemsView[str, Any]:
        """The (name, module) pairs."""
        return self._modules.items()

    def values(self) -> ValuesView[Any]:
        """The modules."""
        return self._modules.values()

    def update(self, modules: Any) -> None:
        """Adds the modules of a mapping or of (name, module) pairs."""
        for key, module in _pairs("ModuleDict", modules):
            self[key] = module


def _as_parameter(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        return Parameter(value)
    return value


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"Object of type: {type(value).__name__}"
    kind = "Parameter" if isinstance(value, Parameter) else "Tensor"
    return f"{kind} containing: [{value.dtype} of size {'x'.join(map(str, value.shape))}]"


class ParameterList(Module):
    """A list of parameters; tensors put in become parameters, other objects stay what they are."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def _name(self, index: Any) -> str:
        position = operator.index(index)
        if not -self._size <= position < self._size:
            raise IndexError(f"index {position} is out of range for {self._size} parameters")
        return str(position % self._size)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self)[index])
        return self.__dict__[self._name(index)]

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, self._name(index), _as_parameter(value))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return iter([self.__dict__[str(position)] for position in range(self._size)])

    def __iadd__(self, values: Iterable[Any]) -> ParameterList:
        return self.extend(values)

    def append(self, value: Any) -> ParameterList:
        """Adds `value` at the end."""
        setattr(self, str(self._size), _as_parameter(value))
        self._size += 1
        return self

    def extend(self, values: Iterable[Any]) -> ParameterList:
        """Adds all `values` at the end."""
        if isinstance(values, Tensor) or not isinstance(values, Iterable):
            raise TypeError(
                "ParameterList.extend should be called with an iterable, but got "
                f"{type(values).__name__}"
            )
        for value in list(values):
            self.append(value)
        return self

    def extra_repr(self) -> str:
        lines = [f"  ({position}): {_describe(value)}" for position, value in enumerate(self)]
        return "\n".join(lines)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ParameterList should not be called.")


class ParameterDict(Module):
    """A dict of parameters; tensors put in become parameters, other objects stay what they are."""

    def __init__(self, parameters: Any = None) -> None:
        super().__init__()
        self._keys: dict[str, None] = {}
        if parameters is not None:
            self.update(parameters)

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return self.__dict__[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"ParameterDict: a key must be a string, got {type(key).__name__}")
        if key not in self._keys and hasattr(self, key):
            raise KeyError(f"attribute '{key}' already exists")
        setattr(self, key, _as_parameter(value))
        self._keys[key] = None

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._keys))

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self._keys))

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._keys.keys()

    def values(self) -> Iterable[Any]:
        """The parameters."""
        return [self[key] for key in self._keys]

    def items(self) -> Iterable[tuple[str, Any]]:
        """The (name, parameter) pairs."""
        return [(key, self[key]) for key in self._keys]

    def get(self, key: str, default: Any = None) -> Any:
        """The parameter under `key`, or `default`."""
        return self[key] if key in self._keys else default

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The parameter under `key`, put there from `default` if absent."""
        if key not in self._keys:
            self[key] = default
        return self[key]

    def pop(self, key: str) -> Any:
        """Removes and returns the parameter under `key`."""
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Removes and returns the last (name, parameter) pair."""
        if not self._keys:
            raise KeyError("popitem: the ParameterDict is empty")
        key = next(reversed(self._keys))
        return key, self.pop(key)

    def clear(self) -> None:
        """Removes all parameters."""
        for key in list(self._keys):
            del self[key]

    def copy(self) -> ParameterDict:
        """Another ParameterDict with the same parameters."""
        return ParameterDict(self.items())

    def update(self, parameters: Any) -> None:
        """Adds the parameters of a mapping or of (name, parameter) pairs."""
        for key, value in _pairs("ParameterDict", parameters):
            self[key] = value

    def __or__(self, other: Any) -> ParameterDict:
        result = self.copy()
        result.update(other)
        return result

    def __ior__(self, other: Any) -> ParameterDict:
        self.update(other)
        return self

    def extra_repr(self) -> str:
        return "\n".join(f"  ({key}): {_describe(value)}" for key, value in self.items())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ParameterDict should not be called.")
