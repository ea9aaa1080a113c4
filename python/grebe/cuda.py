"""NVIDIA GPUs under PyTorch's names."""

from __future__ import annotations

import importlib.util

__all__ = ["current_device", "device_count", "is_available", "synchronize"]

_MISSING = "grebe was built without CUDA kernels"


def is_available() -> bool:
    """Can tensors live on a GPU?"""
    return importlib.util.find_spec("grebe._cuda") is not None


def device_count() -> int:
    """How many GPUs there are."""
    return int(is_available())


def current_device() -> int:
    """The number of the GPU in use; RuntimeError without one."""
    if not is_available():
        raise RuntimeError(f"cuda.current_device: {_MISSING}")
    return 0


def synchronize(device: object = None) -> None:
    """Waits for the GPU's work; RuntimeError without one."""
    if not is_available():
        raise RuntimeError(f"cuda.synchronize: {_MISSING}")
