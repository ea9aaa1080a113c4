"""grebe: deep learning on kernels that can be read.

PyTorch's names, arguments, defaults and shapes, on NumPy arrays and hand-written kernels.
"""

from __future__ import annotations

from math import e, inf, nan, pi
from typing import Any

from . import amp, autograd, dtypes
from ._cpu import num_threads as get_num_threads
from ._cpu import set_num_threads
from .amp import autocast, get_autocast_dtype, is_autocast_enabled
from .autograd import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from .dtypes import *  # noqa: F403
from .ops import MODULES as _MODULES
from .printing import set_printoptions
from .tensor import Size as Size
from .tensor import Tensor as Tensor
from .tensor import device as device
from .tensor import get_default_device as get_default_device
from .tensor import is_tensor as is_tensor
from .tensor import set_default_device as set_default_device

__version__ = "0.1.0"

channels_last = "channels_last"
contiguous_format = "contiguous"
preserve_format = newaxis = None

for _module in _MODULES:
    globals().update({name: getattr(_module, name) for name in _module.__all__})


_PACKAGES = {
    "cuda", "datasets", "distributions", "linalg", "metrics", "models", "nn", "optim", "text",
    "utils",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Packages that `import grebe` alone leaves unloaded."""
    if name in _PACKAGES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    if name in ("load", "load_file", "save", "save_file"):
        from . import serialization

        return getattr(serialization, name)
    raise AttributeError(f"module 'grebe' has no attribute {name!r}")
