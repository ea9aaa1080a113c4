"""From a list of samples to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._cpu import wrap
from ...backend import empty
from ...tensor import Tensor


def default_collate(batch: Sequence[Any]) -> Any:
    """Join samples along a new first dimension, as `torch.utils.data.default_collate`.

    Tensors, NumPy arrays and numbers are stacked to tensors (floats to float64, ints to int64),
    strings and bytes stay a list; mappings, named tuples and sequences are collated per element (a
    tuple gives a list).

    Raises:
        TypeError: samples of another type.
        ValueError: no samples, or samples of different shapes or lengths.
    """
    if not batch:
        raise ValueError("default_collate: expected at least one sample, got none")
    first = batch[0]
    if isinstance(first, (Tensor, np.ndarray, np.generic)):
        return _stack(batch)
    if isinstance(first, (bool, int, float)):
        return _numbers(batch)
    if isinstance(first, (str, bytes)):
        return list(batch)
    if isinstance(first, Mapping):
        items = {key: default_collate([sample[key] for sample in batch]) for key in first}
        return _like(first, items)
    if isinstance(first, (tuple, list)):
        if any(len(sample) != len(first) for sample in batch):
            lengths = sorted({len(sample) for sample in batch})
            raise ValueError(
                f"default_collate: each sample must have the same length, got lengths {lengths}"
            )
        columns = [default_collate(column) for column in zip(*batch, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else columns
    raise TypeError(
        "default_collate: samples must hold tensors, NumPy arrays, numbers, strings, dicts, lists "
        f"or tuples, got {type(first).__name__}"
    )


def default_convert(data: Any) -> Any:
    """NumPy arrays and scalars to tensors inside any nesting; the rest as it is."""
    if isinstance(data, (np.ndarray, np.generic)):
        return wrap(_array(data)) if _numeric(data) else data
    if isinstance(data, Mapping):
        return _like(data, {key: default_convert(value) for key, value in data.items()})
    if isinstance(data, (tuple, list)):
        items = [default_convert(value) for value in data]
        if hasattr(data, "_fields"):
            return type(data)(*items)
        return items
    return data


def pin_memory(data: Any) -> Any:
    """Tensors in page-locked memory inside any nesting; the rest as it is."""
    if isinstance(data, Tensor) or hasattr(data, "pin_memory"):
        return data.pin_memory()
    if isinstance(data, Mapping):
        return _like(data, {key: pin_memory(value) for key, value in data.items()})
    if isinstance(data, (tuple, list)):
        items = [pin_memory(value) for value in data]
        return type(data)(*items) if hasattr(data, "_fields") else type(data)(items)
    return data


def _stack(batch: Sequence[Any]) -> Any:
    """Tensors or arrays of one shape to one tensor with a new first dimension."""
    if any(isinstance(sample, Tensor) and sample.requires_grad for sample in batch):
        from ...ops.shape import stack

        return stack(list(batch))
    arrays = [_array(sample) for sample in batch]
    if not _numeric(arrays[0]):
        raise TypeError(f"default_collate: cannot stack arrays of dtype {arrays[0].dtype}")
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            "default_collate: samples must have the same shape, got "
            + ", ".join(map(str, sorted(shapes)))
            + "; give the DataLoader a collate_fn that pads them"
        )
    dtype = np.result_type(*{array.dtype for array in arrays})
    out = empty((len(arrays), *arrays[0].shape), dtype)
    np.stack(arrays, out=out)
    return wrap(out)


def _array(sample: Any) -> NDArray[Any]:
    return sample.array if isinstance(sample, Tensor) else np.asarray(sample)


def _numeric(array: Any) -> bool:
    return array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"


def _numbers(batch: Sequence[Any]) -> Tensor:
    array = np.asarray(batch)
    if array.dtype.kind not in "bif" or array.ndim != 1:
        kinds = sorted({type(sample).__name__ for sample in batch})
        raise TypeError(f"default_collate: expected numbers, got {', '.join(kinds)}")
    result: Tensor = wrap(array)
    return result


def _like(first: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """`items` in the type of `first` where that can be made from a dict."""
    if type(first) is dict:
        return items
    try:
        return type(first)(items)  # type: ignore[call-arg]
    except TypeError:
        return items
