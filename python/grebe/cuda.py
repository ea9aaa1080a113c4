"""NVIDIA GPUs under PyTorch's names: memory, streams, events. Arrays are CuPy's.

Nothing is loaded before the first use. Without CuPy, a driver or the CUDA kernels `is_available()`
is False, and whatever needs a GPU raises a RuntimeError that says what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from . import backend

__all__ = [
    "CUDAGraph", "Event", "Stream", "current_device", "current_stream", "default_stream",
    "device_count", "empty_cache", "emulate", "get_device_name", "graph", "is_available",
    "is_current_stream_capturing", "memory_allocated", "memory_reserved", "set_device", "stream",
    "synchronize",
]  # fmt: skip


def is_available() -> bool:
    """Can tensors live on a GPU?"""
    return not backend.load_cuda()


def emulate(on: bool = True) -> None:
    """Makes "cuda" an emulated GPU: the CUDA kernels run on the CPU, thread by thread. For tests.

    on: False goes back to the real one, or none. Raises RuntimeError if this build has no emulator
    (CMake's option GREBE_EMULATOR).
    """
    if not on:
        backend.unload_cuda()
        return
    if missing := backend.load_cuda(backend.EmulatedCuda):
        raise RuntimeError(f"cuda.emulate: this build has no emulator ({missing})")


def device_count() -> int:
    """How many GPUs there are."""
    if not is_available():
        return 0
    library = _cupy("device_count")
    return 1 if library is None else int(library.cuda.runtime.getDeviceCount())


def current_device() -> int:
    """The number of the GPU in use; RuntimeError without one."""
    library = _cupy("current_device")
    return 0 if library is None else int(library.cuda.Device().id)


def set_device(device: Any) -> None:
    """Makes the GPU of this number (or device) the current one."""
    index = getattr(device, "index", device)
    if library := _cupy("set_device"):
        library.cuda.Device(index or 0).use()


def get_device_name(device: Any = None) -> str:
    """What the GPU calls itself."""
    library = _cupy("get_device_name")
    if library is None:
        return "emulated"
    index = current_device() if device is None else getattr(device, "index", device)
    name: bytes = library.cuda.runtime.getDeviceProperties(index)["name"]
    return name.decode()


def synchronize(device: Any = None) -> None:
    """Waits for the GPU's work; RuntimeError without one."""
    if library := _cupy("synchronize"):
        library.cuda.Device().synchronize()


def memory_allocated(device: Any = None) -> int:
    """Bytes in arrays on the GPU."""
    library = _cupy("memory_allocated")
    return 0 if library is None else int(library.get_default_memory_pool().used_bytes())


def memory_reserved(device: Any = None) -> int:
    """Bytes of the GPU's memory that this process holds, used or kept for reuse."""
    library = _cupy("memory_reserved")
    return 0 if library is None else int(library.get_default_memory_pool().total_bytes())


def empty_cache() -> None:
    """Gives memory kept for reuse back to the GPU."""
    if is_available() and (library := _cupy("empty_cache")):
        library.get_default_memory_pool().free_all_blocks()


# ---- streams and events ----


class Stream:
    """A queue of work on the GPU, a cupy.cuda.Stream; the emulated GPU does all work at once.

    Args:
        device: the current one.
        priority: smaller is more urgent.
    """

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        library = _cupy("Stream")
        self._stream: Any = None
        if library is not None:
            options = {"priority": priority} if priority else {}  # new in CuPy 14
            self._stream = library.cuda.Stream(non_blocking=True, **options)

    @classmethod
    def _of(cls, stream: Any) -> Stream:
        result = object.__new__(cls)
        result._stream = stream
        return result

    @property
    def cuda_stream(self) -> int:
        """CUDA's handle of it."""
        return 0 if self._stream is None else int(self._stream.ptr)

    def synchronize(self) -> None:
        """Waits for all its work."""
        if self._stream is not None:
            self._stream.synchronize()

    def query(self) -> bool:
        """Is all its work done?"""
        return self._stream is None or bool(self._stream.done)

    def record_event(self, event: Event | None = None) -> Event:
        """Records `event`, or a new one, behind the work so far."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Later work waits for `event`."""
        if self._stream is not None and event._event is not None:
            self._stream.wait_event(event._event)

    def wait_stream(self, stream: Stream) -> None:
        """Later work waits for what `stream` has to do now."""
        self.wait_event(stream.record_event())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.cuda_stream == other.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)


class Event:
    """A mark in the work of a stream, to wait for or to measure time with.

    Args:
        enable_timing: `elapsed_time` will be asked for.
        blocking: `synchronize` sleeps instead of spinning.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        library = _cupy("Event")
        self._event: Any = None
        self._time = 0.0  # of the emulated GPU
        if library is not None:
            self._event = library.cuda.Event(block=blocking, disable_timing=not enable_timing)

    def record(self, stream: Stream | None = None) -> None:
        """Marks the end of the work that `stream` (the current one) has now."""
        if self._event is None:
            self._time = time.perf_counter()
        else:
            self._event.record(None if stream is None else stream._stream)

    def wait(self, stream: Stream | None = None) -> None:
        """Later work of `stream` (the current one) waits for the mark."""
        (current_stream() if stream is None else stream).wait_event(self)

    def query(self) -> bool:
        """Is the work before the mark done?"""
        return self._event is None or bool(self._event.done)

    def synchronize(self) -> None:
        """Waits for the work before the mark."""
        if self._event is not None:
            self._event.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this mark to `end_event`'s."""
        if self._event is None:
            return 1e3 * (end_event._time - self._time)
        elapsed: float = backend.cuda().xp.cuda.get_elapsed_time(self._event, end_event._event)
        return elapsed


def current_stream(device: Any = None) -> Stream:
    """The stream that takes the work now."""
    library = _cupy("current_stream")
    return Stream._of(None if library is None else library.cuda.get_current_stream())


def default_stream(device: Any = None) -> Stream:
    """The stream that takes the work outside of `stream`."""
    library = _cupy("default_stream")
    return Stream._of(None if library is None else library.cuda.Stream.null)


def stream(stream: Any) -> AbstractContextManager[Any]:
    """Work inside the ``with`` goes to `stream`, ours or CuPy's; None changes nothing."""
    inner = stream._stream if isinstance(stream, Stream) else stream
    return nullcontext() if inner is None else inner


# ---- graphs ----


class CUDAGraph:
    """Work that was captured once and is done again by one call: see `graph`."""

    def __init__(self) -> None:
        self._replay: Any = None
        self._pool: Any = None  # the memory of what was made while capturing

    def replay(self) -> None:
        """Does the captured work again, on the same memory."""
        if self._replay is None:
            raise RuntimeError("CUDAGraph.replay: nothing has been captured")
        self._replay()

    def reset(self) -> None:
        """Forgets the work and lets its memory go."""
        self._replay = self._pool = None


@contextmanager
def graph(cuda_graph: CUDAGraph, stream: Stream | None = None) -> Iterator[None]:
    """Captures the work inside the ``with`` instead of doing it.

    ``cuda_graph.replay()`` then does all of it by a single call, so that small kernels need not
    wait for Python. The work reads and writes the same tensors each time: copy new inputs into
    those that were captured. Run the work a few times before, so that whatever it keeps (states of
    optimizers) exists. Nothing inside may look at values on the GPU (``item()``, shapes that depend
    on data), draw random numbers or change with the number of the step; labels and indices out of
    range give NaN instead of an error.

    Raises RuntimeError for these, and then leaves `cuda_graph` as it was.
    """
    device = backend.cuda()
    if device.capturing:
        raise RuntimeError("cuda.graph: another graph is being captured")
    library = _cupy("graph")
    device.capturing = True
    try:
        if library is None:
            with device.capture() as replay:  # type: ignore[attr-defined]
                yield
            cuda_graph._replay = replay
        else:
            side = Stream() if stream is None else stream
            side.wait_stream(current_stream())
            pool = library.cuda.MemoryPool()
            with library.cuda.using_allocator(pool.malloc), side._stream:
                side._stream.begin_capture()
                try:
                    yield
                finally:
                    captured = side._stream.end_capture()
            cuda_graph._pool = pool
            cuda_graph._replay = lambda: captured.launch(library.cuda.get_current_stream())
    finally:
        device.capturing = False


def is_current_stream_capturing() -> bool:
    """Is a graph being captured?"""
    return backend.is_capturing()


def _cupy(name: str) -> Any:
    """CuPy, or None on the emulated GPU; RuntimeError without a GPU."""
    try:
        device = backend.cuda()
    except RuntimeError as error:
        raise RuntimeError(f"cuda.{name}: {error}") from None
    return None if device.emulated else device.xp
