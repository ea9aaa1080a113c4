"""NVIDIA GPUs under PyTorch's names: memory, streams, events. Arrays are CuPy's.

Nothing is loaded before the first use. Without CuPy, a driver or the CUDA kernels `is_available()`
is False, and whatever needs a GPU raises a RuntimeError that says what is missing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import backend

__all__ = [
    "current_device", "device_count", "empty_cache", "emulate", "get_device_name", "is_available",
    "memory_allocated", "memory_reserved", "set_device", "stream", "synchronize",
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


def stream(stream: Any) -> AbstractContextManager[Any]:
    """Work inside the ``with`` goes to `stream`, a cupy.cuda.Stream; None changes nothing."""
    return nullcontext() if stream is None else stream


def _cupy(name: str) -> Any:
    """CuPy, or None on the emulated GPU; RuntimeError without a GPU."""
    try:
        device = backend.cuda()
    except RuntimeError as error:
        raise RuntimeError(f"cuda.{name}: {error}") from None
    return None if device.emulated else device.xp
