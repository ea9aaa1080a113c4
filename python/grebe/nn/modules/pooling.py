"""Pooling layers. D2L section 7.5."""

from __future__ import annotations

from typing import Any

from ...tensor import Tensor
from .. import functional as F
from .checks import whole, wholes
from .module import Module

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]


def _check(layer: str, kernel: Any, stride: Any, padding: Any, dilation: Any, count: int) -> None:
    """Raises TypeError or ValueError for window arguments that make no window."""
    kernels = wholes(layer, "kernel_size", kernel, count)
    if stride is not None:
        wholes(layer, "stride", stride, count)
    wholes(layer, "dilation", dilation, count)
    for pad, size in zip(wholes(layer, "padding", padding, count, 0), kernels, strict=True):
        if 2 * pad > size:
            raise ValueError(
                f"{layer}: padding should be at most half of kernel_size, got padding={padding} "
                f"and kernel_size={kernel}"
            )


class _MaxPool(Module):
    dimensions: int

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        _check(type(self).__name__, kernel_size, stride, padding, dilation, self.dimensions)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation = padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Tensor) -> Any:
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.dimensions - 1]
        return pool(
            input, self.kernel_size, self.stride, self.padding, self.dilation,
            ceil_mode=self.ceil_mode, return_indices=self.return_indices,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """Maximum over windows of x [N, C, L]; stride defaults to kernel_size.

    return_indices: also the position of each maximum.
    """

    dimensions = 1


class MaxPool2d(_MaxPool):
    """Maximum over windows of x [N, C, H, W]; stride defaults to kernel_size. D2L section 7.5.

    return_indices: also the flat position of each maximum in its plane.
    """

    dimensions = 2


class MaxPool3d(_MaxPool):
    """Maximum over windows of x [N, C, D, H, W]; stride defaults to kernel_size.

    return_indices: also the flat position of each maximum in its volume.
    """

    dimensions = 3


class AvgPool1d(Module):
    """Mean over windows of x [N, C, L]; stride defaults to kernel_size.

    count_include_pad: padding counts as zeros of the mean.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        _check("AvgPool1d", kernel_size, stride, padding, 1, 1)
        self.kernel_size = wholes("AvgPool1d", "kernel_size", kernel_size, 1)
        chosen = kernel_size if stride is None else stride
        self.stride = wholes("AvgPool1d", "stride", chosen, 1)
        self.padding = wholes("AvgPool1d", "padding", padding, 1, 0)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AvgPool(Module):
    dimensions: int

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check(name, kernel_size, stride, padding, 1, self.dimensions)
        if divisor_override is not None:
            whole(name, "divisor_override", divisor_override)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, input: Tensor) -> Tensor:
        pool = F.avg_pool2d if self.dimensions == 2 else F.avg_pool3d
        return pool(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(_AvgPool):
    """Mean over windows of x [N, C, H, W]; stride defaults to kernel_size. D2L section 7.5.

    count_include_pad: padding counts as zeros of the mean. divisor_override: divide by this.
    """

    dimensions = 2


class AvgPool3d(_AvgPool):
    """Mean over windows of x [N, C, D, H, W]: `AvgPool2d` in three dimensions."""

    dimensions = 3


class _AdaptivePool(Module):
    dimensions: int

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
        if len(sizes) not in (1, self.dimensions):
            raise ValueError(
                f"{type(self).__name__}: output_size must be an int or {self.dimensions} ints, got "
                f"{output_size!r}"
            )
        for size in sizes:
            if size is not None:
                whole(type(self).__name__, "output_size", size, 0)
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptivePool):
    """Mean over windows chosen so that x [N, C, L] becomes [N, C, output_size]."""

    dimensions = 1

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(_AdaptivePool):
    """Mean over windows chosen so that x [N, C, H, W] becomes [N, C, *output_size].

    output_size: an int for both or two of int or None (None keeps that size). D2L section 8.3.
    """

    dimensions = 2

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(_AdaptivePool):
    """Mean over windows chosen so that x [N, C, D, H, W] becomes [N, C, *output_size]."""

    dimensions = 3

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(input, self.output_size)


class _AdaptiveMaxPool(_AdaptivePool):
    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Maximum over windows chosen so that x [N, C, L] becomes [N, C, output_size]."""

    dimensions = 1

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Maximum over windows chosen so that x [N, C, H, W] becomes [N, C, *output_size]."""

    dimensions = 2

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Maximum over windows chosen so that x [N, C, D, H, W] becomes [N, C, *output_size]."""

    dimensions = 3

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool3d(input, self.output_size, self.return_indices)
