"""Collections of samples."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..._cpu import wrap
from ...backend import empty
from ...tensor import Tensor
from .collate import default_collate
from .sampler import _overrides, draw_seed

T_co = TypeVar("T_co", covariant=True)
Batch = Sequence[int] | NDArray[np.int64]


class Dataset(Generic[T_co]):
    """Base of map-style datasets: `dataset[i]` is sample i, `len(dataset)` their number.

    A subclass may add `__getbatch__(indices)`, which returns the same as collating the samples at
    those indices by `default_collate`, but faster. It is used unless a class derived from it has
    another `__getitem__`.
    """

    def __getitem__(self, index: int) -> T_co:
        raise NotImplementedError(f"{type(self).__name__} has no __getitem__")

    def __add__(self, other: Dataset[Any]) -> ConcatDataset[Any]:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co]):
    """Base of datasets that are a stream: only `iter(dataset)`.

    With workers, each iterates over its own copy; split the stream by `get_worker_info()`.
    """

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} has no __iter__")


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Sample i is the tuple of the i-th rows of some tensors.

    Args:
        tensors: tensors of the same size in dimension 0.

    Raises:
        TypeError: something else than tensors.
        ValueError: no tensors, a 0-d tensor, or different first sizes.
    """

    tensors: tuple[Tensor, ...]

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors:
            raise ValueError("TensorDataset: expected at least one tensor, got none")
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"TensorDataset: argument {i} must be a Tensor, got {type(tensor).__name__}"
                )
            if tensor.ndim == 0:
                raise ValueError(f"TensorDataset: argument {i} has no dimension 0: it is a scalar")
        sizes = [tensor.shape[0] for tensor in tensors]
        if len(set(sizes)) > 1:
            raise ValueError(
                "TensorDataset: tensors must have the same size in dimension 0, got "
                + ", ".join(map(str, sizes))
            )
        self.tensors = tensors

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getbatch__(self, indices: Batch) -> list[Tensor]:
        rows = row_numbers(indices, len(self), "TensorDataset")
        if any(tensor.requires_grad for tensor in self.tensors):
            return [tensor[rows] for tensor in self.tensors]
        return [take(tensor.array, rows) for tensor in self.tensors]

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])


class Subset(Dataset[T_co]):
    """The samples of `dataset` at `indices`."""

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: int) -> T_co:
        return self.dataset[self.indices[index]]

    def __getbatch__(self, indices: Batch) -> Any:
        # As an array once and for all: converting a list costs as much as the batch itself.
        if not isinstance(self.indices, np.ndarray):
            cached = self.__dict__.get("_rows")
            if cached is None or cached[0] is not self.indices:
                cached = self._rows = (self.indices, np.asarray(self.indices, np.int64))
            rows = cached[1]
        else:
            rows = self.indices
        return fetch(self.dataset, rows[row_numbers(indices, len(rows), "Subset")])

    def __len__(self) -> int:
        return len(self.indices)


class ConcatDataset(Dataset[T_co]):
    """Several datasets, one after another."""

    datasets: list[Dataset[T_co]]
    cumulative_sizes: list[int]

    def __init__(self, datasets: Iterable[Dataset[T_co]]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: expected at least one dataset, got none")
        for dataset in self.datasets:
            if isinstance(dataset, IterableDataset):
                raise TypeError("ConcatDataset: cannot hold an IterableDataset: it has no indices")
        sizes = (len(dataset) for dataset in self.datasets)  # type: ignore[arg-type]
        self.cumulative_sizes = list(itertools.accumulate(sizes))

    def __getitem__(self, index: int) -> T_co:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"ConcatDataset: index {index} is out of range for {n} samples")
        index %= n
        which = bisect.bisect_right(self.cumulative_sizes, index)
        start = self.cumulative_sizes[which - 1] if which else 0
        return self.datasets[which][index - start]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]


def random_split(
    dataset: Dataset[T_co], lengths: Sequence[int | float], generator: Any = None
) -> list[Subset[T_co]]:
    """Split a dataset at random into parts of the given lengths, or fractions that sum to 1.

    With fractions, samples left over by rounding down go to the first parts, one each.

    Raises:
        ValueError: lengths that are negative or do not sum to the number of samples (or to 1).
    """
    n = len(dataset)  # type: ignore[arg-type]
    if any(length < 0 for length in lengths):
        raise ValueError(f"random_split: lengths must not be negative, got {list(lengths)}")
    if math.isclose(sum(lengths), 1):
        sizes = [int(n * length) for length in lengths]
        for i in range(n - sum(sizes)):
            sizes[i % len(sizes)] += 1
    else:
        sizes = [int(length) for length in lengths]
    if sum(sizes) != n:
        raise ValueError(
            f"random_split: lengths must sum to the {n} samples of the dataset (or to 1), got "
            f"{list(lengths)}"
        )
    order = np.random.default_rng(draw_seed(generator)).permutation(n).tolist()
    stops = list(itertools.accumulate(sizes))
    return [
        Subset(dataset, order[stop - size : stop]) for size, stop in zip(sizes, stops, strict=True)
    ]


def row_numbers(indices: Batch, n: int, who: str) -> NDArray[np.int64]:
    """`indices` as an int64 array of values in [0, n); negative ones count from the end."""
    rows = np.asarray(indices, np.int64)
    if rows.size:
        low, high = int(rows.min()), int(rows.max())
        if low < -n or high >= n:
            bad = low if low < -n else high
            raise IndexError(f"{who}: index {bad} is out of range for {n} samples")
        if low < 0:
            rows = np.where(rows < 0, rows + n, rows)
    return rows


def take(array: NDArray[Any], rows: NDArray[np.int64]) -> Tensor:
    """The given rows as a fresh tensor on pooled memory; `rows` must be valid."""
    out = empty((len(rows), *array.shape[1:]), array.dtype, array)
    # mode="raise" would make NumPy gather into a second array first, to keep `out` on errors.
    np.take(array, rows, axis=0, out=out, mode="clip")
    result: Tensor = wrap(out)
    return result


def fetch(dataset: Any, indices: Batch) -> Any:
    """The default-collated batch of the samples at `indices`, the fast way where there is one."""
    cls = type(dataset)
    if hasattr(cls, "__getbatch__") and not _overrides(cls, "__getitem__", "__getbatch__"):
        return dataset.__getbatch__(indices)
    return default_collate(samples(dataset, indices))


def samples(dataset: Any, indices: Batch) -> list[Any]:
    """The samples at `indices`, by the dataset's own `__getitems__` if it has one."""
    if isinstance(indices, np.ndarray):
        indices = indices.tolist()
    many = getattr(dataset, "__getitems__", None)
    if many is not None:
        return list(many(indices))
    return [dataset[i] for i in indices]
