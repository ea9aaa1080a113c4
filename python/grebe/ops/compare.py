"""Comparisons, logic and choice, by NumPy: no gradient but that of `where`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import Node, record, wrap
from ..backend import as_storage
from ..dtypes import is_floating, result_dtype
from ..tensor import Tensor, expect_tensor, method
from .elementwise import (
    as_array,
    cast,
    check_broadcast,
    named,
    one_device,
    operand,
    scalar_like,
    unbroadcast,
)

__all__ = [
    "allclose",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "eq",
    "equal",
    "ge",
    "gt",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "ne",
    "where",
]  # fmt: skip


# ---- comparisons and logic: no gradient ----


def _define_comparison(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Any, other: Any) -> Tensor:
        a, b = one_device(name, [operand(name, "input", input), operand(name, "other", other)])
        try:
            return wrap(as_storage(ufunc(a, b)))
        except ValueError:
            check_broadcast(name, a, b)
            raise

    return named(name, f"{doc}, elementwise with broadcasting; a bool tensor.", function)


eq: Any = _define_comparison("eq", np.equal, "input == other")
ne: Any = _define_comparison("ne", np.not_equal, "input != other")
lt: Any = _define_comparison("lt", np.less, "input < other")
le: Any = _define_comparison("le", np.less_equal, "input <= other")
gt: Any = _define_comparison("gt", np.greater, "input > other")
ge: Any = _define_comparison("ge", np.greater_equal, "input >= other")
logical_and: Any = _define_comparison("logical_and", np.logical_and, "Both are nonzero")
logical_or: Any = _define_comparison("logical_or", np.logical_or, "Either is nonzero")
logical_xor: Any = _define_comparison("logical_xor", np.logical_xor, "Just one is nonzero")


def _define_bitwise(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Any, other: Any) -> Tensor:
        a, b = one_device(name, [operand(name, "input", input), operand(name, "other", other)])
        check_broadcast(name, a, b)
        if is_floating(result_dtype(a, b)):
            raise RuntimeError(f"{name}: expected integers or bools, got {result_dtype(a, b)}")
        return wrap(as_storage(ufunc(a, b)))

    return named(name, f"{doc} of integers or bools, elementwise.", function)


bitwise_and: Any = _define_bitwise("bitwise_and", np.bitwise_and, "Bitwise and")
bitwise_or: Any = _define_bitwise("bitwise_or", np.bitwise_or, "Bitwise or")
bitwise_xor: Any = _define_bitwise("bitwise_xor", np.bitwise_xor, "Bitwise exclusive or")


def _define_test(name: str, ufunc: Any, doc: str) -> Any:
    def function(input: Tensor) -> Tensor:
        return wrap(as_storage(ufunc(expect_tensor(name, "input", input))))

    return named(name, f"{doc}, elementwise.", function)


isnan: Any = _define_test("isnan", np.isnan, "Is it NaN?")
isinf: Any = _define_test("isinf", np.isinf, "Is it infinite?")
isfinite: Any = _define_test("isfinite", np.isfinite, "Is it neither infinite nor NaN?")
logical_not: Any = _define_test("logical_not", np.logical_not, "Is it zero?")


@method
def bitwise_not(input: Tensor) -> Tensor:
    """Bitwise complement of integers; logical not of bools."""
    x = expect_tensor("bitwise_not", "input", input)
    if is_floating(x.dtype):
        raise RuntimeError(f"bitwise_not: expected integers or bools, got {x.dtype}")
    return wrap(as_storage(np.invert(x)))


@method
def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol |other|, elementwise."""
    a, b = expect_tensor("isclose", "input", input), expect_tensor("isclose", "other", other)
    check_broadcast("isclose", a, b)
    return wrap(as_storage(np.isclose(a, b, rtol, atol, equal_nan)))


@method
def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Is `isclose` true everywhere?"""
    return bool(isclose(input, other, rtol, atol, equal_nan).array.all())


@method
def equal(input: Tensor, other: Tensor) -> bool:
    """Same shape and same elements?"""
    a, b = expect_tensor("equal", "input", input), expect_tensor("equal", "other", other)
    return a.shape == b.shape and bool(np.array_equal(a, b))


# ---- choice ----


class Where(Node):
    __slots__ = ()

    def backward(self, grad: Tensor) -> Any:
        condition, shape, other = self.saved
        zero = scalar_like(grad, 0.0)
        return (
            None,
            None if self.edges[1] is None else unbroadcast(where(condition, grad, zero), shape),
            None if self.edges[2] is None else unbroadcast(where(condition, zero, grad), other),
        )


def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """`input` where `condition`, else `other`, broadcast. One argument: `nonzero` as a tuple."""
    c = expect_tensor("where", "condition", condition)
    if input is None and other is None:
        return tuple(wrap(i) for i in np.nonzero(np.atleast_1d(c)))
    a, b = operand("where", "input", input), operand("where", "other", other)
    check_broadcast("where", c, a, b)
    dtype = result_dtype(a, b)
    input, other = cast(input, dtype), cast(other, dtype)
    a, b = (operand("where", "input", v) for v in (input, other))
    _, a, b = (as_array(v, c, dtype) for v in one_device("where", [c, a, b]))
    y = as_storage(np.where(c.astype(bool, copy=False), a, b))
    return record(Where, y, (condition, input, other), (condition, a.shape, b.shape))
