"""Layers that learn their input's size from their first input. D2L section 6.3."""

from __future__ import annotations

from typing import Any

from ..parameter import is_lazy
from .module import Module, name_error

__all__ = ["LazyModuleMixin"]


class LazyModuleMixin:
    """Put before a `Module` class whose parameters may be uninitialized.

    ``initialize_parameters(*inputs)`` gives them a shape at the first call; then the module becomes
    an instance of `cls_to_become`, if that is set.
    """

    cls_to_become: type[Module] | None = None

    def has_uninitialized_params(self: Any) -> bool:
        """Whether any own parameter or buffer still has no shape."""
        members = [*self._parameters.values(), *self._buffers.values()]
        return any(is_lazy(member) for member in members)

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Gives the parameters their shapes, from the arguments of the first call."""
        raise NotImplementedError(
            f"initialize_parameters is not implemented for {type(self).__name__}"
        )

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            self.initialize_parameters(*args, **kwargs)
            if self.has_uninitialized_params():
                raise RuntimeError(
                    "initialize_parameters left some parameters or buffers without a shape"
                )
        except Exception as error:
            name_error(error, self)
            raise
        if self.cls_to_become is None:
            return Module.__call__(self, *args, **kwargs)
        self.__class__ = self.cls_to_become
        return self(*args, **kwargs)
