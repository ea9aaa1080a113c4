"""Several devices under PyTorch's names, for code that was written for them: here there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .modules.module import Module

__all__ = ["DataParallel", "scatter"]


def _check_devices(name: str, devices: Sequence[Any] | None) -> None:
    if devices is not None and len(devices) > 1:
        raise RuntimeError(f"{name}: one device at most, got {list(devices)}")


class DataParallel(Module):
    """Hands its arguments to `module`. PyTorch splits the batch over the devices.

    Raises:
        RuntimeError: more than one device.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
    ) -> None:
        super().__init__()
        _check_devices("DataParallel", device_ids)
        self.module = module
        self.device_ids = list(device_ids or [])

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.module(*inputs, **kwargs)


def scatter(inputs: Any, target_gpus: Sequence[Any], dim: int = 0) -> tuple[Any, ...]:
    """A part of `inputs` for each device: for one device all of it.

    Raises:
        RuntimeError: more than one device.
    """
    _check_devices("scatter", target_gpus)
    return (inputs,)
