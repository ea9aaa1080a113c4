"""How tensors print: aligned columns, few digits, long tensors abridged, as in PyTorch.

The width and the notation of all numbers follow from those that are shown: plain integers with a
dot, a fixed number of digits, or scientific notation when magnitudes span more than 1000, exceed
1e8 or fall below 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Array, on_host
from .dtypes import float32, get_default_dtype, int64, is_floating
from .tensor import Tensor

__all__ = ["set_printoptions", "tensor_string"]


@dataclass
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_options = _Options()
_PROFILES = {
    "default": _Options(),
    "short": _Options(precision=2, edgeitems=2),
    "full": _Options(threshold=math.inf),
}


def set_printoptions(
    precision: int | None = None, threshold: float | None = None, edgeitems: int | None = None,
    linewidth: int | None = None, profile: str | None = None, sci_mode: bool | None = None,
) -> None:  # fmt: skip
    """Sets how tensors print; what is not given stays, except that `sci_mode` goes back to None.

    precision: digits behind the dot (default 4). threshold: elements above which a tensor is
    abridged (1000). edgeitems: elements kept at both ends of a dimension then (3). linewidth: in
    characters (80). profile: "default", "short" or "full" set all of these first. sci_mode: True or
    False force scientific notation on or off. Raises ValueError for an unknown profile or negative
    numbers.
    """
    global _options
    base = _options
    if profile is not None:
        if profile not in _PROFILES:
            raise ValueError(
                f"set_printoptions: profile must be 'default', 'short' or 'full', got {profile!r}"
            )
        base = _PROFILES[profile]
    given = {
        "precision": precision, "threshold": threshold, "edgeitems": edgeitems,
        "linewidth": linewidth,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and not value >= 0:
            raise ValueError(f"set_printoptions: {name} must not be negative, got {value!r}")
    chosen: dict[str, Any] = {n: getattr(base, n) if v is None else v for n, v in given.items()}
    _options = _Options(**chosen, sci_mode=sci_mode)


class _Format:
    """Turns every element of a tensor into a string of one width."""

    def __init__(self, shown: Array) -> None:
        self.floating = is_floating(shown.dtype)
        self.integral, self.scientific, self.width = True, False, 1
        if self.floating:
            self._measure(shown)
        elif shown.size:
            self.width = max(len(str(v)) for v in shown.ravel().tolist())

    def _measure(self, shown: Array) -> None:
        values = shown.astype(np.float64).ravel()
        values = values[np.isfinite(values) & (values != 0)]
        if not values.size:
            return
        sizes = np.abs(values)
        low, high = float(sizes.min()), float(sizes.max())
        self.integral = bool((values == np.ceil(values)).all())
        self.scientific = high / low > 1000 or high > 1e8 or (not self.integral and low < 1e-4)
        if _options.sci_mode is not None:
            self.scientific = _options.sci_mode
        self.width = max(len(self._text(v)) for v in values.tolist())

    def _text(self, value: float) -> str:
        if self.scientific:
            return f"{value:.{_options.precision}e}"
        if self.integral:
            return f"{value:.0f}" + ("." if math.isfinite(value) else "")
        return f"{value:.{_options.precision}f}"

    def __call__(self, value: Any) -> str:
        text = self._text(value) if self.floating else str(value)
        return text.rjust(self.width)


def _edges(size: int, abridged: bool) -> tuple[list[int], list[int]]:
    """Positions shown before and after the dots."""
    keep = _options.edgeitems
    if not abridged or size <= 2 * keep:
        return list(range(size)), []
    return list(range(keep)), list(range(size - keep, size))


def _shown(array: Array) -> Array:
    """The elements of an abridged tensor that are printed."""
    for axis, size in enumerate(array.shape):
        head, tail = _edges(size, abridged=True)
        if len(head) + len(tail) < size:
            array = np.take(array, head + tail, axis)
    return array


def _row(array: Array, form: _Format, indent: int, abridged: bool) -> str:
    """A vector, on as many lines as it needs."""
    head, tail = _edges(len(array), abridged)
    values = array.tolist()
    texts = [form(values[i]) for i in head]
    if len(head) + len(tail) < len(values):
        texts += [" ..."] + [form(values[i]) for i in tail]
    per_line = max(1, (_options.linewidth - indent) // max(1, form.width + 2))
    lines = [", ".join(texts[i : i + per_line]) for i in range(0, len(texts), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _body(array: Array, form: _Format, indent: int, abridged: bool) -> str:
    if array.ndim == 0:
        return form(array.item())
    if array.ndim == 1:
        return _row(array, form, indent, abridged)
    head, tail = _edges(len(array), abridged)
    parts = [_body(array[i], form, indent + 1, abridged) for i in head]
    if len(head) + len(tail) < len(array):
        parts += ["..."] + [_body(array[i], form, indent + 1, abridged) for i in tail]
    between = "," + "\n" * (array.ndim - 1) + " " * (indent + 1)
    return "[" + between.join(parts) + "]"


def _node_name(tensor: Tensor) -> str:
    """What the tensor was made by: AddBackward."""
    node: Any = tensor.grad_fn
    if type(node).__name__ == "Output" and node.edges and node.edges[0] is not None:
        node = node.edges[0]
    function = getattr(node, "function", type(node))
    return f"{function.__name__}Backward"


def _suffixes(tensor: Tensor) -> list[str]:
    array, result = tensor.array, []
    if tensor.device.type != "cpu":
        result.append(f"device='{tensor.device}'")
    usual = [get_default_dtype()]
    if array.size:
        usual += [int64, np.dtype(np.bool_)]
    elif array.ndim != 1:
        result.append(f"size={tuple(array.shape)}")
    if array.dtype not in usual:
        result.append(f"dtype=grebe.{array.dtype}")
    if tensor.grad_fn is not None:
        result.append(f"grad_fn=<{_node_name(tensor)}>")
    elif tensor.requires_grad:
        result.append("requires_grad=True")
    return result


def tensor_string(tensor: Tensor) -> str:
    """`tensor` as PyTorch prints it; see `set_printoptions`."""
    prefix = "tensor("
    array = on_host(tensor.array)
    if array.dtype.kind == "V":
        array = array.astype(float32)  # Python's numbers don't know bfloat16
    abridged = array.size > _options.threshold
    body = "[]"
    if array.size:
        form = _Format(_shown(array) if abridged else array)
        body = _body(array, form, len(prefix), abridged)
    text = prefix + body
    column = len(text) - text.rfind("\n") + 1
    for suffix in _suffixes(tensor):
        if column + len(suffix) + 2 > _options.linewidth:
            text += ",\n" + " " * len(prefix) + suffix
            column = len(prefix) + len(suffix)
        else:
            text += ", " + suffix
            column += len(suffix) + 2
    return text + ")"
