"""In-place forms of elementwise ops, PyTorch's other names for them, and Tensor's operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _cpu
from .._cpu import TensorBase, bump, grad_enabled
from ..tensor import Tensor, assign, check_writable, snapshot
from . import activation, compare, elementwise, rare
from .compare import bitwise_and, bitwise_not, bitwise_or, bitwise_xor, eq, ge, gt, le, lt, ne
from .elementwise import abs, add, clamp, div, floor_divide, mul, named, neg, remainder, sub
from .rare import acos, asin, atan, pow

__all__ = [
    "absolute",
    "arccos",
    "arcsin",
    "arctan",
    "clip",
    "divide",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "multiply",
    "negative",
    "not_equal",
    "subtract",
    "true_divide",
]  # fmt: skip


# ---- in-place forms ----


def define_inplace(function: Any, kernel: Any = None) -> None:
    """Tensor.<name>_: through `kernel` straight into the memory when nothing is recorded."""
    name = function.__name__ + "_"

    def inplace(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_writable(name, self)
        recording = grad_enabled() and any(
            isinstance(a, TensorBase) and a._requires_grad for a in (self, *args, *kwargs.values())
        )
        if recording:
            return assign(name, self, function(snapshot(self), *args, **kwargs))
        if kernel is not None and len(args) <= 1 and not kwargs:
            operands = [a.array if isinstance(a, TensorBase) else a for a in args]
            if kernel(self.array, *operands, self.array) is not NotImplemented:
                bump(self)
                return self
        return assign(name, self, function(self, *args, **kwargs))

    named(name, f"`{function.__name__}` written into this tensor.", inplace)


for _name in "add sub mul div relu neg exp sqrt tanh sigmoid".split():
    define_inplace(getattr(elementwise, _name), getattr(_cpu, _name))
for _module, _names in {
    elementwise: "abs square log log1p log2 expm1 rsqrt reciprocal sin cos erf clamp floor ceil "
    "round trunc sign floor_divide remainder fmod",
    activation: "leaky_relu elu",
    compare: "logical_not logical_and logical_or bitwise_and bitwise_or bitwise_xor bitwise_not "
    "eq ne lt le gt ge",
    rare: "pow lerp addcmul addcdiv nan_to_num",
}.items():
    for _name in _names.split():
        define_inplace(getattr(_module, _name))


# ---- PyTorch's other names ----

absolute, negative, divide, true_divide, multiply, subtract = abs, neg, div, div, mul, sub
clip, greater, greater_equal, less, less_equal, not_equal = clamp, gt, ge, lt, le, ne
arccos, arcsin, arctan = acos, asin, atan
for _alias in ("absolute", "negative", "divide", "true_divide", "multiply", "subtract", "clip",
               "greater", "greater_equal", "less", "less_equal", "not_equal", "arccos", "arcsin",
               "arctan"):  # fmt: skip
    setattr(Tensor, _alias, globals()[_alias])

# ---- operators ----

_OPERANDS = (TensorBase, bool, int, float, np.ndarray, np.generic)


def _operator(function: Any) -> Any:
    """`function` as a binary operator: NotImplemented for operands that no Tensor can take."""
    return lambda self, other: (
        function(self, other) if isinstance(other, _OPERANDS) else NotImplemented
    )


def _reflected(function: Any) -> Any:
    return lambda self, other: (
        function(other, self) if isinstance(other, _OPERANDS) else NotImplemented
    )


def _equality(function: Any, otherwise: bool) -> Any:
    return lambda self, other: function(self, other) if isinstance(other, _OPERANDS) else otherwise


for _name, _function in {
    "sub": sub, "truediv": div, "floordiv": floor_divide, "mod": remainder, "pow": pow,
    "and": bitwise_and, "or": bitwise_or, "xor": bitwise_xor, "add": add, "mul": mul,
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _operator(_function))
    setattr(Tensor, f"__r{_name}__", _reflected(_function))
    setattr(Tensor, f"__i{_name}__", getattr(Tensor, _function.__name__ + "_"))
# The two hottest operators skip the look at the other operand: the functions check it themselves.
for _name, _function in {
    "add": add, "mul": mul, "neg": neg, "abs": abs, "invert": bitwise_not, "lt": _operator(lt),
    "le": _operator(le), "gt": _operator(gt), "ge": _operator(ge), "eq": _equality(eq, False),
    "ne": _equality(ne, True), "pos": lambda self: self,
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _function)
