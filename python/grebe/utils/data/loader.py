"""The DataLoader: batches of a dataset, made here or by worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from .collate import default_collate, default_convert, pin_memory
from .dataset import Dataset, IterableDataset, fetch, samples
from .sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    _check_positive,
    draw_seed,
)
from .worker import End, Failure, Task, Worker, shut_down, spawn_seeds

T_co = TypeVar("T_co", covariant=True)


class DataLoader(Generic[T_co]):
    """Iterates over a dataset in batches, as `torch.utils.data.DataLoader`.

    Without workers, a dataset with `__getbatch__` (a TensorDataset, or a Subset of one) and the
    default collate function give each batch by one gather per tensor. Batches come in the same
    order whatever the number of workers; with the same seed of `generator` an epoch is the same.
    In a worker, the generators of `random`, NumPy and grebe are seeded anew in each epoch, from one
    draw of `generator`, differently in each worker.

    Args:
        dataset: a map-style Dataset (`len`, `[]`) or an IterableDataset.
        batch_size: samples per batch; None: no batching, samples as the dataset gives them.
        shuffle: visit in a new random order in each epoch.
        sampler: indices in the order to visit them; excludes `shuffle`.
        batch_sampler: lists of indices; excludes batch_size, shuffle, sampler and drop_last.
        num_workers: worker processes; 0: make batches in this process.
        collate_fn: from a list of samples to a batch; default: `default_collate`.
        pin_memory: batches lie in page-locked memory, from which ``to("cuda", non_blocking=True)``
            goes on by itself; ordinary memory where there is no GPU.
        drop_last: drop a last batch that is not full.
        timeout: seconds to wait for a worker's batch; 0: as long as it lives.
        worker_init_fn: called in each worker with its number, after seeding.
        multiprocessing_context: start method or context; default: fork on Linux.
        generator: source of the orders and of the workers' seeds; default: grebe's own generator.
        prefetch_factor: batches that each worker makes in advance; default: 2.
        persistent_workers: keep the workers from epoch to epoch.
        pin_memory_device, in_order: accepted as defaults only.

    Raises:
        ValueError, TypeError: arguments that are wrong or exclude each other.
        RuntimeError (while iterating): a worker died or timed out. An exception in a worker is
            raised here with the worker's traceback in its message.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[Any] | Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        self._check_workers(num_workers, timeout, prefetch_factor, persistent_workers)
        if not in_order or pin_memory_device:
            raise NotImplementedError("DataLoader: in_order=False and pin_memory_device")
        for name, function in (("collate_fn", collate_fn), ("worker_init_fn", worker_init_fn)):
            if function is not None and not callable(function):
                raise TypeError(f"DataLoader: {name} must be callable, got {function!r}")
        self.dataset = dataset
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.generator = generator
        self.prefetch_factor = 2 if num_workers and prefetch_factor is None else prefetch_factor
        self.persistent_workers = persistent_workers
        self._iterable = isinstance(dataset, IterableDataset)
        self._set_samplers(batch_size, shuffle, sampler, batch_sampler, drop_last)
        self.collate_fn: Callable[[list[Any]], Any]
        if collate_fn is not None:
            self.collate_fn = collate_fn
        else:
            self.collate_fn = default_collate if self._batched else default_convert
        self._context = _context(multiprocessing_context, num_workers)
        self._workers: _WorkerIterator | None = None

    def _check_workers(
        self, num_workers: int, timeout: float, prefetch: int | None, persistent: bool
    ) -> None:
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise ValueError(f"DataLoader: num_workers must be an int >= 0, got {num_workers!r}")
        if timeout < 0:
            raise ValueError(f"DataLoader: timeout must be >= 0, got {timeout!r}")
        if prefetch is not None:
            if num_workers == 0:
                raise ValueError("DataLoader: prefetch_factor needs num_workers > 0")
            _check_positive("DataLoader", "prefetch_factor", prefetch)
        if persistent and num_workers == 0:
            raise ValueError("DataLoader: persistent_workers needs num_workers > 0")

    def _set_samplers(
        self,
        batch_size: int | None,
        shuffle: bool | None,
        sampler: Iterable[Any] | None,
        batch_sampler: Iterable[Any] | None,
        drop_last: bool,
    ) -> None:
        if self._iterable and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError(
                "DataLoader: an IterableDataset decides its own order; expected no shuffle, "
                "sampler or batch_sampler"
            )
        if not self._iterable and not hasattr(self.dataset, "__getitem__"):
            raise TypeError(
                "DataLoader: expected a dataset with __getitem__ and __len__, or an "
                f"IterableDataset, got {type(self.dataset).__name__}"
            )
        if sampler is not None and shuffle:
            raise ValueError("DataLoader: sampler and shuffle=True exclude each other")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "DataLoader: batch_sampler excludes batch_size, shuffle, sampler and drop_last"
                )
            batch_size, drop_last = None, False
        elif batch_size is None:
            if drop_last:
                raise ValueError("DataLoader: batch_size=None excludes drop_last")
        else:
            _check_positive("DataLoader", "batch_size", batch_size)
        if sampler is None and not self._iterable and batch_sampler is None:
            sampler = (
                RandomSampler(self.dataset, generator=self.generator)
                if shuffle
                else SequentialSampler(self.dataset)
            )
        if batch_size is not None and sampler is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.sampler, self.batch_sampler = sampler, batch_sampler

    @property
    def _batched(self) -> bool:
        return self.batch_sampler is not None or (self._iterable and self.batch_size is not None)

    @property
    def multiprocessing_context(self) -> Any:
        """What starts the workers."""
        return self._context

    def _orders(self) -> Iterator[Any]:
        """What is asked for, batch by batch: indices, one index, or None of an iterable dataset."""
        if self._iterable:
            return itertools.repeat(None)
        if self.batch_sampler is None:
            return iter(self.sampler)  # type: ignore[arg-type]
        if isinstance(self.batch_sampler, BatchSampler):
            arrays = self.batch_sampler.arrays()
            if arrays is not None:
                return arrays
        return iter(self.batch_sampler)

    def _open_epoch(self) -> Callable[[Any], Callable[[Any], Any]]:
        """What makes (order -> batch) from a dataset; it goes to workers, so it holds no loader."""
        if self._iterable:
            return partial(_Stream, self.batch_size, self.drop_last, self.collate_fn)
        if not self._batched:
            return partial(_single, self.collate_fn)
        return partial(_batch, self.collate_fn)

    def __iter__(self) -> Iterator[T_co]:
        seed = draw_seed(self.generator)
        if self.num_workers == 0:
            return self._serial()
        if not self.persistent_workers:
            return _WorkerIterator(self, seed)
        if self._workers is None or not self._workers.usable:
            self._workers = _WorkerIterator(self, seed)
        else:
            self._workers.reset(self, seed)
        return self._workers

    def _serial(self) -> Iterator[Any]:
        get, orders = self._open_epoch()(self.dataset), self._orders()
        batches = _serial(get, orders)
        return map(pin_memory, batches) if self.pin_memory else batches

    def __len__(self) -> int:
        if not self._iterable:
            return len(self.sampler if self.batch_sampler is None else self.batch_sampler)  # type: ignore[arg-type]
        n = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


def _context(context: Any, num_workers: int) -> Any:
    if context is not None and num_workers == 0:
        raise ValueError("DataLoader: multiprocessing_context needs num_workers > 0")
    if context is None:
        return multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    if isinstance(context, str):
        methods = multiprocessing.get_all_start_methods()
        if context not in methods:
            raise ValueError(
                f"DataLoader: multiprocessing_context must be one of {methods}, got {context!r}"
            )
        return multiprocessing.get_context(context)
    if not isinstance(context, multiprocessing.context.BaseContext):
        raise TypeError(
            "DataLoader: multiprocessing_context must be a start method or a context, got "
            f"{context!r}"
        )
    return context


# ---- making batches; in this process or in a worker ----


def _serial(get: Callable[[Any], Any], orders: Iterator[Any]) -> Iterator[Any]:
    for order in orders:
        batch = get(order)
        if batch is End:
            return
        yield batch


def _batch(collate: Callable[[list[Any]], Any], dataset: Dataset[Any]) -> Callable[[Any], Any]:
    if collate is default_collate:
        return partial(fetch, dataset)
    return lambda indices: collate(samples(dataset, indices))


def _single(collate: Callable[[Any], Any], dataset: Dataset[Any]) -> Callable[[Any], Any]:
    return lambda index: collate(dataset[index])


class _Stream:
    """Batches of an iterable dataset, then End."""

    def __init__(
        self,
        batch_size: int | None,
        drop_last: bool,
        collate: Callable[[Any], Any],
        dataset: IterableDataset[Any],
    ) -> None:
        self.batch_size, self.drop_last, self.collate = batch_size, drop_last, collate
        self.items = iter(dataset)

    def __call__(self, order: None) -> Any:
        if self.batch_size is None:
            for item in self.items:
                return self.collate(item)
            return End
        items = list(itertools.islice(self.items, self.batch_size))
        if not items or (self.drop_last and len(items) < self.batch_size):
            return End
        return self.collate(items)


class _WorkerIterator:
    """One epoch (or, with persistent workers, one after another) of batches made by workers.

    Orders go round the workers in turn and replies are taken in the same turn, so batches come in
    order and each worker always has up to `prefetch_factor` orders ahead.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self._all: list[Worker] = []
        self._finalizer = weakref.finalize(self, shut_down, self._all, os.getpid())
        self._epoch, self._pins = -1, loader.pin_memory
        open_epoch = loader._open_epoch()
        try:
            for i in range(loader.num_workers):
                task = Task(
                    i,
                    loader.num_workers,
                    loader.dataset,
                    open_epoch,
                    loader.worker_init_fn,
                    os.getpid(),
                )
                self._all.append(Worker(task, loader._context, loader.timeout))
            self.reset(loader, seed)
        except BaseException:
            self._finalizer()
            raise

    @property
    def usable(self) -> bool:
        """Whether the workers can serve another epoch."""
        return self._finalizer.alive

    def reset(self, loader: DataLoader[Any], seed: int) -> None:
        """Begin a new epoch; replies to orders of an unfinished one will be skipped."""
        self._epoch += 1
        self._persistent = loader.persistent_workers
        self._orders = loader._orders()
        self._turn = deque(self._all)  # workers that still take orders
        self._waiting: deque[Worker] = deque()  # whose replies are due, in order
        try:
            seeds = spawn_seeds(seed, len(self._all))
            for worker, sequence in zip(self._all, seeds, strict=True):
                worker.send("epoch", (self._epoch, sequence))
            for _ in range(len(self._all) * (loader.prefetch_factor or 1)):
                self._dispatch()
        except BaseException:
            self._finalizer()
            raise

    def _dispatch(self) -> None:
        """Give the next order to the worker whose turn it is."""
        if not self._turn:
            return
        for order in self._orders:
            worker = self._turn[0]
            self._turn.rotate(-1)
            worker.send("batch", order)
            self._waiting.append(worker)
            return

    def __iter__(self) -> _WorkerIterator:
        return self

    def __next__(self) -> Any:
        if not self._finalizer.alive:
            raise StopIteration
        try:
            batch = self._next()
        except BaseException:  # also Ctrl-C in the middle of a message: the stream is torn
            self._finalizer()
            raise
        if isinstance(batch, Failure):
            if not self._persistent:
                self._finalizer()
            batch.reraise()
        if batch is self:
            if not self._persistent:
                self._finalizer()
            raise StopIteration
        return pin_memory(batch) if self._pins else batch

    def _next(self) -> Any:
        """The next batch or Failure; this object itself at the end."""
        while self._waiting:
            worker = self._waiting.popleft()
            batch = worker.receive(self._epoch)
            if batch is End:
                if worker in self._turn:
                    self._turn.remove(worker)
                continue
            self._dispatch()
            return batch
        return self
