"""dtypes are NumPy's; this is PyTorch's way to combine them.

Kinds rank bool < integer < floating. Of operands of one kind, tensors with dimensions decide before
0-d tensors, and those before Python numbers: ``float32_tensor * 2.5`` stays float32.
"""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from .backend import bfloat16

__all__ = [
    "bfloat16",
    "bool",
    "can_cast",
    "double",
    "dtype",
    "finfo",
    "float",
    "float16",
    "float32",
    "float64",
    "get_default_dtype",
    "half",
    "iinfo",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_floating_point",
    "long",
    "promote_types",
    "result_type",
    "set_default_dtype",
    "short",
    "uint8",
]  # fmt: skip

DType = np.dtype[Any]
dtype = np.dtype

float32: DType = np.dtype(np.float32)
float64: DType = np.dtype(np.float64)
float16: DType = np.dtype(np.float16)
int64: DType = np.dtype(np.int64)
int32: DType = np.dtype(np.int32)
int16: DType = np.dtype(np.int16)
int8: DType = np.dtype(np.int8)
uint8: DType = np.dtype(np.uint8)
_bool: DType = np.dtype(np.bool_)

_SUPPORTED = (float32, float64, float16, bfloat16, int64, int32, int16, int8, uint8, _bool)
_default = float32


def as_dtype(name: str, value: Any) -> DType:
    """`value` as a supported dtype; TypeError naming the function `name` otherwise."""
    if value is builtins.float:
        return _default
    try:
        result = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: {value!r} is no dtype") from None
    if result not in _SUPPORTED or value is None:
        raise TypeError(
            f"{name}: dtype {result} is not supported; expected one of "
            f"{', '.join(str(d) for d in _SUPPORTED)}"
        )
    return result


def get_default_dtype() -> DType:
    """The dtype of floating point tensors made from Python numbers: float32 at first."""
    return _default


def set_default_dtype(d: Any) -> None:
    """Sets the dtype of tensors made from Python floats; a floating point dtype."""
    global _default
    d = as_dtype("set_default_dtype", d)
    if not is_floating(d):
        raise TypeError(f"set_default_dtype: expected a floating point dtype, got {d}")
    _default = d


def is_floating(d: DType) -> builtins.bool:
    """float16, bfloat16, float32 or float64?"""
    return d.kind == "f" or d == bfloat16


def _rank(d: DType) -> builtins.int:
    return 2 if is_floating(d) else (0 if d.kind == "b" else 1)


def promote_types(type1: Any, type2: Any) -> DType:
    """The smallest dtype that holds both: a float wins over any integer, as in PyTorch."""
    a, b = np.dtype(type1), np.dtype(type2)
    if a == b:
        return a
    if _rank(a) != _rank(b):
        return a if _rank(a) > _rank(b) else b
    if bfloat16 in (a, b):
        other = b if a == bfloat16 else a
        return float32 if other == float16 else other
    return np.promote_types(a, b)


def result_dtype(*operands: Any) -> DType:
    """Dtype of an op on arrays and Python numbers (see the top of this file)."""
    groups: list[DType | None] = [None, None, None]  # dimensioned, 0-d, Python numbers
    for operand in operands:
        if isinstance(operand, builtins.bool):
            group, d = 2, _bool
        elif isinstance(operand, builtins.int):
            group, d = 2, int64
        elif isinstance(operand, builtins.float):
            group, d = 2, _default
        else:
            group, d = (0 if operand.ndim else 1), operand.dtype
        known = groups[group]
        groups[group] = d if known is None else promote_types(known, d)
    result: DType | None = None
    for candidate in groups:
        if result is None or (candidate is not None and _rank(candidate) > _rank(result)):
            result = candidate
    assert result is not None
    return result


def result_type(tensor1: Any, tensor2: Any) -> DType:
    """The dtype that an operation on the two (tensors or numbers) would have."""
    return result_dtype(getattr(tensor1, "array", tensor1), getattr(tensor2, "array", tensor2))


def can_cast(from_: Any, to: Any) -> builtins.bool:
    """May a result of dtype `from_` be written into a tensor of dtype `to`?"""
    return _rank(np.dtype(from_)) <= _rank(np.dtype(to))


def is_floating_point(input: Any) -> builtins.bool:
    """Is the tensor's dtype a floating point one?"""
    return is_floating(input.array.dtype)


def finfo(type: Any = None) -> Any:
    """Limits of a floating point dtype: eps, max, min, tiny."""
    import ml_dtypes

    return ml_dtypes.finfo(_default if type is None else type)  # type: ignore[no-untyped-call]


def iinfo(type: Any) -> Any:
    """Limits of an integer dtype: min, max."""
    return np.iinfo(type)


half = float16
double = float64
short = int16
long = int64
float = float32
int = int32
bool = _bool
