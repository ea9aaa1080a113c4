"""``import grebe.as_torch``: from here on ``import torch`` means grebe.

Code that was written for PyTorch then runs unchanged as long as grebe has the names that it uses; a
name that grebe lacks raises AttributeError and says which. ``python -m grebe run-as-torch
script.py`` runs a script that way.

Raises:
    ImportError: PyTorch itself is imported already.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import grebe

# torch's module -> where grebe has its names, the first that knows one.
MODULES: dict[str, tuple[str, ...]] = {
    "torch": ("grebe",),
    "torch.amp": ("grebe.amp",),
    "torch.autograd": ("grebe.autograd",),
    "torch.cuda": ("grebe.cuda",),
    "torch.distributions": ("grebe.distributions",),
    "torch.jit": (),
    "torch.linalg": ("grebe.linalg",),
    "torch.nn": ("grebe.nn",),
    "torch.nn.functional": ("grebe.nn.functional",),
    "torch.nn.init": ("grebe.nn.init",),
    "torch.nn.modules": ("grebe.nn.modules",),
    "torch.nn.parallel": ("grebe.nn.parallel",),
    "torch.nn.parameter": ("grebe.nn.parameter",),
    "torch.nn.utils": ("grebe.nn.utils",),
    "torch.nn.utils.rnn": ("grebe.nn.utils.rnn",),
    "torch.optim": ("grebe.optim",),
    "torch.optim.lr_scheduler": ("grebe.optim.lr_scheduler",),
    "torch.utils": ("grebe.utils",),
    "torch.utils.checkpoint": ("grebe.utils.checkpoint",),
    "torch.utils.data": ("grebe.utils.data",),
    "torchvision": (),
    "torchvision.datasets": ("grebe.datasets",),
    "torchvision.transforms": ("grebe.datasets.transforms",),
}


def _unchanged(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`function` itself: there is nothing to compile."""
    return _unchanged if function is None else function


EXTRAS: dict[str, dict[str, Any]] = {
    "torch": {"__version__": f"2.13.0+grebe{grebe.__version__}", "compile": _unchanged},
    "torch.jit": {"script": _unchanged, "trace": _unchanged},
}


class StandIn(ModuleType):
    """A module of PyTorch's, made of grebe's."""

    def __init__(self, name: str, sources: list[ModuleType]) -> None:
        super().__init__(name, f"{name} on grebe")
        self.__path__: list[str] = []  # a package, whose submodules are in sys.modules
        self._sources = sources

    def __getattr__(self, name: str) -> Any:
        for source in self._sources:
            try:
                return getattr(source, name)
            except AttributeError:
                continue
        raise AttributeError(f"{self.__name__}.{name}: grebe has no such name")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for s in self._sources for n in dir(s))})


def _install() -> None:
    present = sys.modules.get("torch")
    if isinstance(present, StandIn):
        return
    if present is not None:
        raise ImportError(
            "grebe.as_torch: PyTorch is imported already; import grebe.as_torch before it"
        )
    made: dict[str, StandIn] = {}
    for name, sources in MODULES.items():
        made[name] = StandIn(name, [importlib.import_module(s) for s in sources])
        for key, value in EXTRAS.get(name, {}).items():
            setattr(made[name], key, value)
    for name in grebe.distributions.__all__:  # each has a module of its own
        of_its_own = f"torch.distributions.{name.lower()}"
        made[of_its_own] = StandIn(of_its_own, [grebe.distributions])
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    sys.modules.update(made)


_install()
