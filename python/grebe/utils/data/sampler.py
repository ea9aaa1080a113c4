"""Orders in which a dataset is visited."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T_co = TypeVar("T_co", covariant=True)
Indices = NDArray[np.int64]


def draw_seed(generator: Any = None) -> int:
    """A seed in [0, 2**63 - 1) from `generator`, or from grebe's default one."""
    from ...ops.random import randint

    return int(randint(0, 2**63 - 1, (1,), generator=generator).item())


class Sampler(Generic[T_co]):
    """Base of all samplers: something that iterates over indices, and usually has a length.

    A subclass may add `indices()`, which returns one epoch's order as an int64 array: the
    DataLoader then cuts batches out of that array instead of collecting them one by one.
    """

    def __init__(self, data_source: Sized | None = None) -> None:
        pass

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} has no __iter__")


class SequentialSampler(Sampler[int]):
    """0, 1, ... len(data_source) - 1."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def indices(self) -> Indices:
        """One epoch's order."""
        return np.arange(len(self.data_source))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """A random order, new in each epoch.

    Args:
        data_source: what to sample from.
        replacement: draw with replacement.
        num_samples: how many to draw; default: len(data_source). Without replacement and beyond
            that length, whole permutations follow each other.
        generator: where the randomness comes from; default: grebe's own generator.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Any = None,
    ) -> None:
        _check_bool("RandomSampler", "replacement", replacement)
        if num_samples is not None:
            _check_positive("RandomSampler", "num_samples", num_samples)
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator

    @property
    def num_samples(self) -> int:
        """How many indices one epoch has."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def indices(self) -> Indices:
        """One epoch's order."""
        n, count = len(self.data_source), self.num_samples
        if count == 0:
            return np.empty(0, np.int64)
        if n == 0:
            raise ValueError(f"RandomSampler: cannot draw {count} samples of an empty dataset")
        rng = np.random.default_rng(draw_seed(self.generator))
        if self.replacement:
            return rng.integers(0, n, count)
        rounds = [rng.permutation(n) for _ in range(-(-count // n))]
        return rounds[0][:count] if len(rounds) == 1 else np.concatenate(rounds)[:count]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given indices in a random order."""

    def __init__(self, indices: Sequence[int], generator: Any = None) -> None:
        self._indices = indices
        self.generator = generator

    def indices(self) -> Indices:
        """One epoch's order."""
        order = np.random.default_rng(draw_seed(self.generator)).permutation(len(self._indices))
        return np.asarray(self._indices, np.int64)[order]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(self._indices)


class WeightedRandomSampler(Sampler[int]):
    """Indices of `weights`, each drawn with a probability proportional to its weight.

    Args:
        weights: non-negative numbers, one per sample; they need not sum to one.
        num_samples: how many to draw.
        replacement: draw with replacement; without it at least `num_samples` weights must be
            positive.
        generator: where the randomness comes from; default: grebe's own generator.
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Any = None,
    ) -> None:
        _check_positive("WeightedRandomSampler", "num_samples", num_samples)
        _check_bool("WeightedRandomSampler", "replacement", replacement)
        array = np.asarray(weights, np.float64)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(
                "WeightedRandomSampler: weights must be a non-empty sequence of numbers, got "
                f"shape {array.shape}"
            )
        total = float(array.sum())
        if not np.isfinite(total) or total <= 0 or float(array.min()) < 0:
            raise ValueError(
                "WeightedRandomSampler: weights must be finite, non-negative and not all zero"
            )
        if not replacement and num_samples > np.count_nonzero(array):
            raise ValueError(
                f"WeightedRandomSampler: cannot draw {num_samples} samples without replacement "
                f"from {np.count_nonzero(array)} positive weights"
            )
        self.weights = array
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator

    def indices(self) -> Indices:
        """One epoch's order."""
        rng = np.random.default_rng(draw_seed(self.generator))
        p = self.weights / self.weights.sum()
        return rng.choice(len(p), self.num_samples, self.replacement, p)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of `batch_size` indices of another sampler; the last may be shorter, or dropped."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        _check_positive("BatchSampler", "batch_size", batch_size)
        _check_bool("BatchSampler", "drop_last", drop_last)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def arrays(self) -> Iterator[Indices] | None:
        """The same batches as arrays; None if the sampler cannot tell its order as an array."""
        order = getattr(self.sampler, "indices", None)
        if not callable(order) or type(self).__iter__ is not BatchSampler.__iter__:
            return None
        if _overrides(type(self.sampler), "__iter__", "indices"):
            return None
        return self._slices(order())

    def _slices(self, order: Indices) -> Iterator[Indices]:
        size = self.batch_size
        stop = len(order) - len(order) % size if self.drop_last else len(order)
        for start in range(0, stop, size):
            yield order[start : start + size]

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


def _overrides(cls: type, special: str, general: str) -> bool:
    """Whether `special` is defined in a more derived class than `general`, and so overrules it."""
    for base in cls.__mro__:
        if general in base.__dict__:
            return False
        if special in base.__dict__:
            return True
    return True


def _check_positive(who: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value <= 0:
        raise ValueError(f"{who}: {name} must be a positive int, got {value!r}")


def _check_bool(who: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{who}: {name} must be a bool, got {value!r}")
