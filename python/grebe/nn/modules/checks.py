"""Checks of constructor arguments, shared by the layers. All name the layer and the argument."""

from __future__ import annotations

import numbers
from typing import Any

from ...dtypes import as_dtype, get_default_dtype, is_floating
from ...tensor import check_device


def factory(layer: str, device: Any, dtype: Any) -> dict[str, Any]:
    """The checked device and dtype of a layer's parameters as keywords. Default: CPU, float32."""
    check_device(layer, device)
    if dtype is None:
        return {"device": device, "dtype": get_default_dtype()}
    wanted = as_dtype(layer, dtype)
    if not is_floating(wanted):
        raise TypeError(f"{layer}: dtype must be floating point, got {wanted}")
    return {"device": device, "dtype": wanted}


def whole(layer: str, argument: str, value: Any, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`; TypeError or ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{layer}: {argument} must be an int, got {type(value).__name__} {value!r}")
    if value < minimum:
        raise ValueError(f"{layer}: {argument} must be at least {minimum}, got {value}")
    return int(value)


def wholes(layer: str, argument: str, value: Any, count: int, minimum: int = 1) -> tuple[int, ...]:
    """`value`, one int for all or `count` of them, as a tuple of `count` ints."""
    if isinstance(value, (tuple, list)):
        if len(value) != count:
            raise ValueError(
                f"{layer}: {argument} must be an int or {count} ints, got {len(value)}: {value!r}"
            )
        return tuple(whole(layer, argument, item, minimum) for item in value)
    return (whole(layer, argument, value, minimum),) * count


def real(layer: str, argument: str, value: Any) -> float:
    """`value` as a float; TypeError if it is no real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{layer}: {argument} must be a number, got {type(value).__name__} {value!r}"
        )
    return float(value)


def probability(layer: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    p = real(layer, "p", value)
    if not 0 <= p <= 1:
        raise ValueError(
            f"{layer}: dropout probability has to be between 0 and 1, but got {value!r}"
        )
    return p
