"""Convolution layers. D2L chapter 7."""

from __future__ import annotations

import math
from typing import Any, cast

from ...ops.creation import empty
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter, UninitializedParameter, is_lazy
from .checks import factory, whole, wholes
from .lazy import LazyModuleMixin
from .module import Module

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """What convolutions share: checked arguments, weight and bias and their distributions.

    Both are drawn from U(-k, k), k = 1 / sqrt(weight[0].numel()).
    """

    dimensions: int
    transposed = False
    weight: Parameter
    bias: Parameter | None

    def _set_up(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        output_padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: Any,
        dtype: Any,
    ) -> None:
        name, count = type(self).__name__, self.dimensions
        lazy = isinstance(self, LazyModuleMixin)
        self.groups = whole(name, "groups", groups)
        self.in_channels = whole(name, "in_channels", in_channels, 0 if lazy else 1)
        self.out_channels = whole(name, "out_channels", out_channels)
        for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % self.groups != 0:
                raise ValueError(
                    f"{name}: {argument} must be divisible by groups, got {channels} and {groups}"
                )
        self.kernel_size = wholes(name, "kernel_size", kernel_size, count)
        self.stride = wholes(name, "stride", stride, count)
        self.dilation = wholes(name, "dilation", dilation, count)
        self.output_padding = wholes(name, "output_padding", output_padding, count, 0)
        self.padding = self._checked_padding(padding)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                f"{name}: padding_mode must be one of {_PADDING_MODES}, but got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self._make_parameters(bool(bias), factory(name, device, dtype))

    def _checked_padding(self, padding: Any) -> str | tuple[int, ...]:
        name = type(self).__name__
        if not isinstance(padding, str):
            return wholes(name, "padding", padding, self.dimensions, 0)
        if padding not in ("same", "valid") or self.transposed:
            allowed = "ints" if self.transposed else "ints, 'same' or 'valid'"
            raise ValueError(f"{name}: padding must be {allowed}, got {padding!r}")
        if padding == "same" and any(step != 1 for step in self.stride):
            raise ValueError(f"{name}: padding='same' is not supported for strided convolutions")
        return padding

    def _weight_shape(self) -> tuple[int, ...]:
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel_size)

    def _make_parameters(self, bias: bool, wanted: dict[str, Any]) -> None:
        self.weight = Parameter(empty(self._weight_shape(), **wanted))
        if bias:
            self.bias = Parameter(empty((self.out_channels,), **wanted))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight.numel() // max(self.weight.shape[0], 1)
            if fan_in != 0:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        count = self.dimensions
        if self.padding != (0,) * count:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * count:
            text += f", dilation={self.dilation}"
        if self.output_padding != (0,) * count:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


class _Conv(_ConvNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        x, padding = self._padded(input)
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.dimensions - 1]
        return conv(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """`input` with what zero padding cannot do put around it, and the padding that is left."""
        if self.padding_mode == "zeros" or self.padding == "valid":
            return input, self.padding
        around: list[int] = []
        for axis in range(self.dimensions - 1, -1, -1):
            if self.padding == "same":
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                around += [total // 2, total - total // 2]
            else:
                around += [self.padding[axis]] * 2  # type: ignore[list-item]
        return F.pad(input, around, mode=self.padding_mode), 0


class _ConvTranspose(_ConvNd):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if padding_mode != "zeros":
            raise ValueError(
                f"{type(self).__name__}: only padding_mode='zeros' is supported, got "
                f"{padding_mode!r}"
            )
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation,
            groups, bias, padding_mode, device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        output_padding = self.output_padding
        if output_size is not None:
            output_padding = self._output_padding(input, tuple(output_size))
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.dimensions - 1]
        return conv(
            input, self.weight, self.bias, self.stride, self.padding, output_padding,
            self.groups, self.dilation,
        )  # fmt: skip

    def _output_padding(self, input: Tensor, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """The output padding that makes the output's spatial size `wanted`."""
        count, padding = self.dimensions, cast(tuple[int, ...], self.padding)
        if len(wanted) not in (count, input.ndim):
            raise ValueError(
                f"{type(self).__name__}: output_size must have {count} or {input.ndim} elements, "
                f"got {len(wanted)}"
            )
        wanted = wanted[-count:]
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                input.shape[-count:], self.stride, padding, self.dilation, self.kernel_size,
                strict=True,
            )
        ]  # fmt: skip
        extra = tuple(want - low for want, low in zip(wanted, least, strict=True))
        if any(not 0 <= e < s for e, s in zip(extra, self.stride, strict=True)):
            most = [low + s - 1 for low, s in zip(least, self.stride, strict=True)]
            raise ValueError(
                f"requested an output size of {list(wanted)}, but valid sizes range from {least} "
                f"to {most}"
            )
        return extra


class Conv2d(_Conv):
    """Convolution of x [N, in_channels, H, W] (or without N).

    weight [out_channels, in_channels / groups, kH, kW], bias [out_channels]. padding: ints, "valid"
    or "same"; padding_mode: zeros, reflect, replicate or circular. D2L section 7.2.
    """

    dimensions = 2


class Conv1d(_Conv):
    """`Conv2d` in one dimension: x [N, in_channels, L] (or without N). D2L section 16.3."""

    dimensions = 1


class Conv3d(_Conv):
    """`Conv2d` in three dimensions: x [N, in_channels, D, H, W] (or without N)."""

    dimensions = 3


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution of x [N, in_channels, H, W]: the gradient of `Conv2d` as a layer.

    weight [in_channels, out_channels / groups, kH, kW], bias [out_channels]. With output_size,
    forward chooses the output padding. D2L section 14.10.
    """

    dimensions = 2


class ConvTranspose1d(_ConvTranspose):
    """`ConvTranspose2d` in one dimension: x [N, in_channels, L] (or without N)."""

    dimensions = 1


class ConvTranspose3d(_ConvTranspose):
    """`ConvTranspose2d` in three dimensions: x [N, in_channels, D, H, W] (or without N)."""

    dimensions = 3


class _LazyWeight(LazyModuleMixin):
    """Takes in_channels from the first input."""

    weight: Any
    bias: Any

    def _make_parameters(self: Any, bias: bool, wanted: dict[str, Any]) -> None:
        self.weight = UninitializedParameter(**wanted)
        self.register_parameter("bias", UninitializedParameter(**wanted) if bias else None)

    def initialize_parameters(self: Any, input: Tensor, *_: Any, **__: Any) -> None:
        allowed = (self.dimensions + 1, self.dimensions + 2)
        if not isinstance(input, Tensor) or input.ndim not in allowed:
            got = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"expected an input of {allowed[0]} or {allowed[1]} dims, got {got}")
        fresh = self.has_uninitialized_params()
        if is_lazy(self.weight):
            self.in_channels = int(input.shape[-self.dimensions - 1])
            if self.in_channels % self.groups != 0:
                raise ValueError(
                    f"in_channels must be divisible by groups, got {self.in_channels} and "
                    f"{self.groups}"
                )
            self.weight.materialize(self._weight_shape())
        else:  # loaded from a state dict
            channels = self.weight.shape[0 if self.transposed else 1]
            self.in_channels = channels if self.transposed else channels * self.groups
        if is_lazy(self.bias):
            self.bias.materialize((self.out_channels,))
        if fresh:
            self.reset_parameters()


class _LazyConv(_LazyWeight, _Conv):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            0, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
        )  # fmt: skip


class _LazyConvTranspose(_LazyWeight, _ConvTranspose):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            0, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip


class LazyConv1d(_LazyConv, Conv1d):
    """`Conv1d` that learns in_channels from its first input."""

    cls_to_become = Conv1d


class LazyConv2d(_LazyConv, Conv2d):
    """`Conv2d` that learns in_channels from its first input. D2L section 6.3."""

    cls_to_become = Conv2d


class LazyConv3d(_LazyConv, Conv3d):
    """`Conv3d` that learns in_channels from its first input."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(_LazyConvTranspose, ConvTranspose1d):
    """`ConvTranspose1d` that learns in_channels from its first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTranspose, ConvTranspose2d):
    """`ConvTranspose2d` that learns in_channels from its first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTranspose, ConvTranspose3d):
    """`ConvTranspose3d` that learns in_channels from its first input."""

    cls_to_become = ConvTranspose3d
