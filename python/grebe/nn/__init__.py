"""Neural network layers under PyTorch's names: ``grebe.nn.Linear``, ``grebe.nn.functional``."""

from . import attention, functional, grad, init, modules, parallel, parameter, utils
from .modules import *  # noqa: F403
from .parallel import DataParallel
from .parameter import Buffer, Parameter, UninitializedBuffer, UninitializedParameter

vars()["__all__"] = [  # as in modules/__init__.py
    *vars(modules)["__all__"],
    "Buffer",
    "DataParallel",
    "Parameter",
    "UninitializedBuffer",
    "UninitializedParameter",
    "functional",
    "grad",
    "init",
    "modules",
    "parallel",
    "parameter",
    "utils",
]
