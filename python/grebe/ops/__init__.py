"""Every op of the library: one file per family, with kernels of the same name in csrc.

A module's ``__all__`` lists what becomes ``grebe.<name>``; functions marked `@method` are also
methods of Tensor; nn.functional imports the rest by name.
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import Any

from ..tensor import Tensor
from . import (
    compare,
    conv,
    creation,
    dropout,
    elementwise,
    gamma,
    indexing,
    inplace,
    linalg,
    matmul,
    pool,
    random,
    rare,
    reduce,
    rnn,
    shape,
    softmax,
    sort,
)

MODULES = (
    compare, conv, creation, dropout, elementwise, gamma, indexing, inplace, linalg, matmul, pool,
    random, rare, reduce, rnn, shape, softmax, sort,
)  # fmt: skip


def _with_numpy_names(function: FunctionType) -> Any:
    """`function`, taking ``axis`` for ``dim`` and ``keepdims`` for ``keepdim`` too."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for numpy_name, name in (("axis", "dim"), ("keepdims", "keepdim")):
            if numpy_name in kwargs:
                kwargs[name] = kwargs.pop(numpy_name)
        return function(*args, **kwargs)

    return call


for _module in MODULES:
    for _name in _module.__all__:
        _function = getattr(_module, _name)
        if not isinstance(_function, FunctionType):
            continue
        _parameters = inspect.signature(_function).parameters
        if "dim" in _parameters and "axis" not in _parameters:
            _both = _with_numpy_names(_function)
            setattr(_module, _name, _both)
            if vars(Tensor).get(_name) is _function:
                setattr(Tensor, _name, _both)
