"""Worker processes of the DataLoader.

Each worker has a connection of its own, so that a killed worker can neither hold a lock that others
need nor leave half a message in a queue that others read: the parent sees the end of that
connection, or the process's sentinel, and raises. Arrays travel as out-of-band pickle buffers: one
copy into the socket, one out of it into pooled memory.

Forking is safe here although kernels use threads: a forked child runs them serially.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import random
import signal
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ... import _cpu
from ...backend import empty

_POLL = 2.0  # seconds between a worker's looks at whether its parent lives
_GRACE = 1.0  # seconds that a worker gets to end by itself

_ends: weakref.WeakSet[Connection] = weakref.WeakSet()  # this process's ends of all connections
_starting = threading.Lock()  # no fork between the making of a pipe and the closing of its far end
_info: WorkerInfo | None = None


@dataclass(frozen=True)
class WorkerInfo:
    """What `get_worker_info()` tells inside a worker.

    Attributes:
        id: number of this worker, from 0.
        num_workers: how many there are.
        seed: what grebe's generator was seeded with in this worker in this epoch.
        dataset: this worker's copy of the dataset.
    """

    id: int
    num_workers: int
    seed: int
    dataset: Any


def get_worker_info() -> WorkerInfo | None:
    """Facts about the DataLoader worker that this process is; None in any other process."""
    return _info


def _forget_parent() -> None:
    """In a forked child: close the parent's ends, whose closing tells workers that it is gone."""
    global _starting
    _starting = threading.Lock()
    for end in list(_ends):
        with contextlib.suppress(OSError):
            end.close()
    _ends.clear()


os.register_at_fork(after_in_child=_forget_parent)


def seed_everything(sequence: np.random.SeedSequence) -> int:
    """Seed random, NumPy and grebe from `sequence`; returns grebe's seed."""
    from ...ops.random import manual_seed

    words = sequence.generate_state(8)
    seed = int.from_bytes(words[:2].tobytes(), "little") >> 1
    random.seed(int.from_bytes(words[2:4].tobytes(), "little"))
    # NumPy's global state too: much code of users draws from it.
    np.random.seed(words[4:])  # noqa: NPY002
    manual_seed(seed)
    return seed


# ---- messages ----


def _send(end: Connection, obj: Any) -> None:
    """Pickle `obj` and send it, its arrays' memory apart and uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    end.send_bytes(pickle.dumps((head, [raw.nbytes for raw in raws])))
    for raw in raws:  # not by send_bytes, whose other side collects and copies
        while raw.nbytes:
            raw = raw[os.write(end.fileno(), raw) :]


def _receive(end: Connection, wait: Callable[[], None]) -> Any:
    """The next message; `wait` returns once there is something to read, or raises."""
    wait()
    head, sizes = pickle.loads(end.recv_bytes())
    buffers = []
    for size in sizes:
        buffer = empty((size,), np.dtype(np.uint8))
        buffers.append(buffer)
        rest = buffer.data
        while rest.nbytes:
            wait()
            count = os.readv(end.fileno(), [rest])
            if count == 0:
                raise EOFError
            rest = rest[count:]
    return pickle.loads(head, buffers=buffers)


@dataclass(frozen=True)
class Failure:
    """An exception on its way from a worker to its parent."""

    worker: int
    type: type[BaseException]
    text: str

    @staticmethod
    def of(worker: int, error: BaseException) -> Failure:
        """What to send of `error`."""
        text = "".join(traceback.format_exception(error)).rstrip()
        kind: type[BaseException] = type(error)
        try:
            kind = pickle.loads(pickle.dumps(kind))
        except Exception:
            kind = RuntimeError
        return Failure(worker, kind, text)

    def reraise(self) -> None:
        """Raise it again, of the same type where that can be made from one message."""
        text = f"in DataLoader worker {self.worker}; there it was:\n{self.text}"
        kind: Any = self.type
        if issubclass(kind, (StopIteration, KeyboardInterrupt, SystemExit)):
            kind = RuntimeError  # those would be taken for something else here
        if issubclass(kind, KeyError):
            kind = _WorkerKeyError
        try:
            error = kind(text)
        except Exception:
            error = RuntimeError(text)
        raise error from None


class _WorkerKeyError(KeyError):
    """A KeyError whose message shows its line breaks."""

    def __str__(self) -> str:
        return str(self.args[0])


# ---- the worker's side ----


@dataclass(frozen=True)
class Task:
    """All that a worker gets when it starts."""

    id: int
    num_workers: int
    dataset: Any
    open_epoch: Callable[[Any], Callable[[Any], Any]]  # dataset -> (indices -> batch)
    init: Callable[[int], None] | None
    parent: int


class End:
    """Stands, as the class itself, for the end of an iterable dataset."""


def _main(task: Task, end: Connection) -> None:
    """Serve the parent until it closes its end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _cpu.set_num_threads(1)
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A thread takes the orders, so that a parent that sends one never waits for a worker that is
    # itself waiting to get rid of a batch.
    threading.Thread(target=_take_orders, args=(end, orders), daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        _serve(task, end, orders)


def _take_orders(end: Connection, orders: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            orders.put(pickle.loads(end.recv_bytes()))
    orders.put(None)


def _serve(task: Task, end: Connection, orders: queue.SimpleQueue[Any]) -> None:
    global _info
    get: Callable[[Any], Any] | None = None
    failure: Failure | None = None
    started = False
    epoch = -1
    while (order := _next_order(task, orders)) is not None:
        kind, content = order
        try:
            if kind == "epoch":
                epoch, sequence = content
                failure = get = None
                seed = seed_everything(sequence)
                _info = WorkerInfo(task.id, task.num_workers, seed, task.dataset)
                if not started and task.init is not None:
                    task.init(task.id)
                started = True
                get = task.open_epoch(task.dataset)
                continue
            reply = failure if get is None else get(content)
            _send(end, (epoch, reply))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            reported = Failure.of(task.id, error)
            if kind == "epoch":
                failure = reported  # told when the first batch is asked for
            else:
                _send(end, (epoch, reported))


def _next_order(task: Task, orders: queue.SimpleQueue[Any]) -> Any:
    """The next order; None when there will be no more."""
    parent = multiprocessing.parent_process()
    while True:
        try:
            return orders.get(timeout=_POLL)
        except queue.Empty:
            if os.getppid() != task.parent and (parent is None or not parent.is_alive()):
                return None


# ---- the parent's side ----


class Worker:
    """A worker process seen from its parent."""

    def __init__(self, task: Task, context: Any, timeout: float) -> None:
        self.id = task.id
        self.timeout = timeout
        with _starting:
            self.end, far = context.Pipe()
            _ends.add(self.end)
            self.process = context.Process(target=_main, args=(task, far), daemon=True)
            try:
                with warnings.catch_warnings():
                    # Python 3.12 warns of forking with threads; ours are the kernels', see above.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    self.process.start()
            except BaseException:
                self.end.close()
                raise
            finally:
                far.close()

    def send(self, kind: str, content: Any) -> None:
        """Give the worker an order."""
        try:
            self.end.send_bytes(pickle.dumps((kind, content)))
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None

    def receive(self, epoch: int) -> Any:
        """The next reply that belongs to `epoch`."""
        while True:
            try:
                number, reply = _receive(self.end, self._wait)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise self._died() from None
            if number == epoch:
                return reply

    def _wait(self) -> None:
        ready = multiprocessing.connection.wait(
            [self.end, self.process.sentinel], self.timeout or None
        )
        if not ready:
            raise RuntimeError(f"DataLoader timed out after {self.timeout} seconds")
        if self.end not in ready and not self.end.poll(0):
            raise self._died()

    def _died(self) -> RuntimeError:
        self.process.join(_GRACE)
        code = self.process.exitcode
        how = f"with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"by signal {signal.Signals(-code).name}"
        return RuntimeError(
            f"DataLoader worker {self.id} (pid {self.process.pid}) exited unexpectedly {how}"
        )


def shut_down(workers: list[Worker], owner: int) -> None:
    """End all workers: by closing the connection, then by SIGTERM, then by SIGKILL."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.end.close()
    if os.getpid() != owner:
        return  # a forked copy of the iterator: the processes are not ours
    for stop in (None, "terminate", "kill"):
        deadline = time.monotonic() + _GRACE
        for worker in workers:
            if stop is not None and worker.process.is_alive():
                getattr(worker.process, stop)()
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        if not any(worker.process.is_alive() for worker in workers):
            return


def spawn_seeds(base: int, workers: int) -> Iterator[np.random.SeedSequence]:
    """Independent seeds per worker of the epoch whose own seed is `base`."""
    return iter(np.random.SeedSequence(base).spawn(workers))
