"""The files of grebe.models on another library's `nn`: the same definitions for PyTorch."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def models_of(lib: ModuleType) -> Any:
    """The module grebe.models, or its twin whose layers are those of `lib` (torch).

    For the twin grebe itself is not imported: the benchmark wants one library per process.
    """
    if lib.__name__ == "grebe":
        return lib.models
    name = f"{lib.__name__}_twin"
    if name in sys.modules:
        return sys.modules[f"{name}.models"]
    parent = ModuleType(name)
    parent.__path__ = []
    parent.__getattr__ = lambda attribute: getattr(lib, attribute)  # type: ignore[method-assign]
    sys.modules[f"{name}.autograd"] = lib.autograd
    package = importlib.util.find_spec("grebe")
    assert package and package.origin
    folder = Path(package.origin).parent / "models"
    spec = importlib.util.spec_from_file_location(
        f"{name}.models", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], sys.modules[spec.name] = parent, module
    spec.loader.exec_module(module)
    return module
