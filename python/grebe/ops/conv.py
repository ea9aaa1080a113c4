"""Convolution (cross-correlation) over one, two and three dimensions, transposed convolution, and
their gradients as functions.

A convolution, its input gradient and its weight gradient are each linear in both operands and
closed under differentiation: the backward of one consists of the other two. Kernels:
csrc/cpu/conv.cpp.
D2L chapters 7 and 14.10.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..amp import low_precision
from ..backend import Array, is_on_cuda
from ..tensor import Tensor, expect_tensor
from . import conv_arrays
from .conv_arrays import Geometry
from .window import Sizes, as_ints, check_image, is_half

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]


# ---- the three closed operations, on checked arguments ----


class Conv(Node):
    """y = x * w + b: dx is the input gradient, dw the weight gradient, db = sum(dy)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, geometry = self.saved
        to_input, to_weight, to_bias = (edge is not None for edge in self.edges)
        gx = _input_grad(grad, weight, geometry) if to_input else None
        if not (to_weight or to_bias):
            return gx, None, None
        if grad_enabled() or not to_weight:
            gw = _weight_grad(input, grad, weight.array.shape, geometry) if to_weight else None
            others = (0, *range(2, grad.array.ndim))
            return gx, gw, grad.sum(others) if to_bias else None
        gw_array, gb_array = conv_arrays.grad_weight(
            input.array, grad.array, weight.array.shape, geometry, to_bias
        )
        return gx, wrap(gw_array), None if gb_array is None else wrap(gb_array)


class ConvInputGrad(Node):
    """dx = input gradient of (dy, w)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dy, weight, geometry = self.saved
        to_dy, to_weight = (edge is not None for edge in self.edges)
        return (
            _conv(grad, weight, None, geometry) if to_dy else None,
            _weight_grad(grad, dy, weight.array.shape, geometry) if to_weight else None,
        )


class ConvWeightGrad(Node):
    """dw = weight gradient of (x, dy)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, dy, geometry = self.saved
        to_input, to_dy = (edge is not None for edge in self.edges)
        return (
            _input_grad(dy, grad, geometry) if to_input else None,
            _conv(input, grad, None, geometry) if to_dy else None,
        )


def _conv(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    b = None if bias is None else bias.array
    y = conv_arrays.forward(input.array, weight.array, b, geometry)
    return record(Conv, y, (input, weight, bias), (input, weight, geometry))


def _input_grad(grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    gx = conv_arrays.grad_input(grad.array, weight.array, geometry)
    return record(ConvInputGrad, gx, (grad, weight), (grad, weight, geometry))


def _weight_grad(input: Tensor, grad: Tensor, shape: Sizes, geometry: Geometry) -> Tensor:
    gw, _ = conv_arrays.grad_weight(input.array, grad.array, shape, geometry, False)
    return record(ConvWeightGrad, gw, (input, grad), (input, grad, geometry))


# ---- checks ----

_KERNEL = {1: ", k", 2: ", kH, kW", 3: ", kD, kH, kW"}


def _check_dtype(name: str, argument: str, value: Any, x: Array) -> Array:
    array = expect_tensor(name, argument, value)
    if array.dtype != x.dtype:
        raise TypeError(
            f"{name}: {argument} must have the input's dtype {x.dtype}, got {array.dtype}"
        )
    return array


def _check_operands(
    name: str, input: Tensor, weight: Tensor, bias: Any, groups: Any, spatial: int, transposed: bool
) -> int:
    """Checks tensors and channel counts; returns groups."""
    x = check_image(name, input, spatial)
    w = _check_dtype(name, "weight", weight, x)
    (count,) = as_ints(name, "groups", groups, 1, 1)
    if w.ndim != spatial + 2 or 0 in w.shape:
        roles = "in_channels, out_channels" if transposed else "out_channels, in_channels"
        raise ValueError(
            f"{name}: expected non-empty weight of shape [{roles} / groups{_KERNEL[spatial]}], "
            f"got {list(w.shape)}"
        )
    if w.shape[0] % count:
        raise ValueError(
            f"{name}: weight.shape[0] must be divisible by groups {count}, got {list(w.shape)}"
        )
    channels = x.shape[-spatial - 1]
    expected = w.shape[0] if transposed else w.shape[1] * count
    if channels != expected:
        raise ValueError(
            f"{name}: expected input of shape {list(x.shape)} to have {expected} channels for "
            f"weight of shape {list(w.shape)} and groups {count}, got {channels} channels"
        )
    if bias is not None:
        outputs = w.shape[1] * count if transposed else w.shape[0]
        if _check_dtype(name, "bias", bias, x).shape != (outputs,):
            raise ValueError(
                f"{name}: expected bias of shape [{outputs}], got {list(bias.array.shape)}"
            )
    return count


def _padding(
    name: str, value: Any, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> tuple[Sizes, Sizes]:
    """Padding in front and in total, per dimension."""
    if not isinstance(value, str):
        front = as_ints(name, "padding", value, len(kernel), 0)
        return front, tuple(2 * p for p in front)
    if value == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if value != "same":
        raise ValueError(f"{name}: padding must be ints, 'same' or 'valid', got {value!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{name}: padding='same' is not supported for strided convolutions")
    total = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return tuple(t // 2 for t in total), total


def _geometry(
    name: str, in_size: Sizes, kernel: Sizes, stride: Any, padding: Any, dilation: Any, groups: int
) -> Geometry:
    stride = as_ints(name, "stride", stride, len(kernel), 1)
    dilation = as_ints(name, "dilation", dilation, len(kernel), 1)
    front, total = _padding(name, padding, kernel, stride, dilation)
    out = []
    for n, k, s, p, d in zip(in_size, kernel, stride, total, dilation, strict=True):
        if d * (k - 1) + 1 > n + p:
            padded = [size + more for size, more in zip(in_size, total, strict=True)]
            raise ValueError(
                f"{name}: kernel of size {list(kernel)} with dilation {list(dilation)} is larger "
                f"than the padded input of size {padded}"
            )
        out.append((n + p - d * (k - 1) - 1) // s + 1)
    return Geometry(in_size, tuple(out), stride, front, dilation, groups)


def _transposed_geometry(
    name: str, size: Sizes, kernel: Sizes, stride: Any, padding: Any, output_padding: Any,
    groups: int, dilation: Any,
) -> Geometry:  # fmt: skip
    count = len(kernel)
    stride = as_ints(name, "stride", stride, count, 1)
    dilation = as_ints(name, "dilation", dilation, count, 1)
    front = as_ints(name, "padding", padding, count, 0)
    extra = as_ints(name, "output_padding", output_padding, count, 0)
    sizes = []
    for n, k, s, p, d, e in zip(size, kernel, stride, front, dilation, extra, strict=True):
        if e >= max(s, d):
            raise ValueError(
                f"{name}: output_padding must be smaller than stride or dilation, got "
                f"{output_padding!r} with stride {list(stride)} and dilation {list(dilation)}"
            )
        sizes.append((n - 1) * s - 2 * p + d * (k - 1) + e + 1)
    if min(sizes) < 1:
        raise ValueError(f"{name}: output of size {sizes} would be empty")
    return Geometry(tuple(sizes), size, stride, front, dilation, groups)


# ---- for any number of dimensions ----


def _batched(input: Tensor, others: list[Tensor | None], spatial: int, run: Any) -> Tensor:
    """run(input, *others) of a batch in a dtype that has kernels, for any that passed checks."""
    dtype = input.array.dtype
    if is_half(dtype) and (spatial == 3 or not is_on_cuda(input.array)):
        wide = [t if t is None else t.to(np.float32) for t in others]
        narrow: Tensor = _batched(input.to(np.float32), wide, spatial, run).to(dtype)
        return narrow
    if input.array.ndim == spatial + 1:
        single: Tensor = run(input.unsqueeze(0), *others).squeeze(0)
        return single
    result: Tensor = run(input, *others)
    return result


def _convolution(
    name: str, spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any,
    padding: Any, dilation: Any, groups: Any,
) -> Tensor:  # fmt: skip
    count = _check_operands(name, input, weight, bias, groups, spatial, False)
    size, kernel = input.array.shape[-spatial:], weight.array.shape[2:]
    geometry = _geometry(name, size, kernel, stride, padding, dilation, count)
    return _batched(input, [weight, bias], spatial, lambda x, w, b: _conv(x, w, b, geometry))


def _transposed(
    name: str, spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any,
    padding: Any, output_padding: Any, groups: Any, dilation: Any,
) -> Tensor:  # fmt: skip
    count = _check_operands(name, input, weight, bias, groups, spatial, True)
    size, kernel = input.array.shape[-spatial:], weight.array.shape[2:]
    geometry = _transposed_geometry(
        name, size, kernel, stride, padding, output_padding, count, dilation
    )

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = _input_grad(x, w, geometry)
        return y if b is None else y + b.reshape(-1, *(1,) * spatial)

    return _batched(input, [weight, bias], spatial, run)


def _check_gradient(
    name: str, grad: Tensor, geometry: Geometry, batch: int, channels: int, x: Array
) -> None:
    dy = _check_dtype(name, "grad_output", grad, x)
    expected = (batch, channels, *geometry.out_size)
    if dy.shape != expected:
        raise ValueError(
            f"{name}: expected grad_output of shape {list(expected)}, got {list(dy.shape)}"
        )


def _function_of_input_grad(
    name: str, spatial: int, input_size: Any, weight: Tensor, grad_output: Tensor, stride: Any,
    padding: Any, dilation: Any, groups: Any,
) -> Tensor:  # fmt: skip
    w = check_image(name, weight, spatial)
    size = as_ints(name, "input_size", input_size, spatial + 2, 0)
    (count,) = as_ints(name, "groups", groups, 1, 1)
    if w.ndim != spatial + 2 or size[1] != w.shape[1] * count or w.shape[0] % count:
        raise ValueError(
            f"{name}: input_size {list(size)} does not fit weight of shape {list(w.shape)} "
            f"with groups {count}"
        )
    geometry = _geometry(name, size[2:], w.shape[2:], stride, padding, dilation, count)
    _check_gradient(name, grad_output, geometry, size[0], w.shape[0], w)
    return _input_grad(grad_output, weight, geometry)


def _function_of_weight_grad(
    name: str, spatial: int, input: Tensor, weight_size: Any, grad_output: Tensor, stride: Any,
    padding: Any, dilation: Any, groups: Any,
) -> Tensor:  # fmt: skip
    x = check_image(name, input, spatial)
    size = as_ints(name, "weight_size", weight_size, spatial + 2, 1)
    (count,) = as_ints(name, "groups", groups, 1, 1)
    if x.ndim != spatial + 2 or x.shape[1] != size[1] * count or size[0] % count:
        raise ValueError(
            f"{name}: weight_size {list(size)} does not fit input of shape {list(x.shape)} "
            f"with groups {count}"
        )
    geometry = _geometry(name, x.shape[2:], size[2:], stride, padding, dilation, count)
    _check_gradient(name, grad_output, geometry, x.shape[0], size[0], x)
    return _weight_grad(input, grad_output, size, geometry)


# ---- public functions ----


@low_precision
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images with a set of kernels. D2L sections 7.2 to 7.4.

    ``y[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] *
    x[n, c, i * stride + a * dilation - padding, j * stride + b * dilation - padding]``,
    zero outside of the input. float32 kernels of 3x3 and 5x5 over 32 channels or more take
    Winograd's algorithm, where an infinity or NaN in the input also reaches outputs up to three
    pixels further.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W]; a channels-last input gives a
            channels-last output.
        weight: [O, C / groups, kH, kW], of the input's dtype.
        bias: [O] or None.
        stride: int or (height, width), positive.
        padding: int or (height, width) of zeros on both sides, "valid" (none) or "same" (output
            as large as the input; stride 1 only).
        dilation: int or (height, width), distance between the kernel's elements.
        groups: the channels fall into that many groups, convolved separately.

    Returns:
        Tensor [N, O, H', W'] or [O, H', W'],
        ``H' = (H + 2 * padding - dilation * (kH - 1) - 1) // stride + 1``.

    Raises:
        TypeError: not a floating tensor, dtypes differ, arguments that are no ints.
        ValueError: shapes do not fit, arguments out of range, kernel larger than padded input.
    """
    return _convolution("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


@low_precision
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d` in one dimension: input [N, C, L] or [C, L], weight [O, C / groups, k].

    Args, returns, raises: as `conv2d`, with one int for each pair.
    """
    return _convolution("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


@low_precision
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d` in three dimensions: input [N, C, D, H, W] or without N, weight [O, C / groups, kD,
    kH, kW].

    Args, returns, raises: as `conv2d`, with (depth, height, width) for each pair.
    """
    return _convolution("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


@low_precision
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Transposed convolution: the input gradient of `conv2d` as a function. D2L section 14.10.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W].
        weight: [C, O / groups, kH, kW], of the input's dtype.
        bias: [O] or None.
        stride: of the convolution whose input gradient this is.
        padding: of that convolution, ints only.
        output_padding: rows and columns added at the end of the output, less than stride or
            dilation.
        groups: of that convolution.
        dilation: of that convolution.

    Returns:
        Tensor [N, O, H', W'] or [O, H', W'], ``H' = (H - 1) * stride - 2 * padding +
        dilation * (kH - 1) + output_padding + 1``.

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError also where the output would be empty.
    """
    return _transposed(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups,
        dilation,
    )  # fmt: skip


@low_precision
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """`conv_transpose2d` in one dimension: input [N, C, L] or [C, L], weight [C, O / groups, k].

    Args, returns, raises: as `conv_transpose2d`, with one int for each pair.
    """
    return _transposed(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups,
        dilation,
    )  # fmt: skip


@low_precision
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """`conv_transpose2d` in three dimensions: input [N, C, D, H, W] or without N, weight [C,
    O / groups, kD, kH, kW].

    Args, returns, raises: as `conv_transpose2d`, with (depth, height, width) for each pair.
    """
    return _transposed(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups,
        dilation,
    )  # fmt: skip


# ---- the gradients as functions: grebe.nn.grad ----


def conv1d_input(
    input_size: Any,
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d_input` in one dimension: the gradient of `conv1d` with respect to its input."""
    return _function_of_input_grad(
        "grad.conv1d_input", 1, input_size, weight, grad_output, stride, padding, dilation, groups
    )


def conv2d_input(
    input_size: Any,
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv2d` with respect to its input, of shape `input_size`.

    Args:
        input_size: [N, C, H, W].
        weight: [O, C / groups, kH, kW], float32 or float64.
        grad_output: [N, O, H', W'].
        stride: as for `conv2d`.
        padding: as for `conv2d`.
        dilation: as for `conv2d`.
        groups: as for `conv2d`.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    return _function_of_input_grad(
        "grad.conv2d_input", 2, input_size, weight, grad_output, stride, padding, dilation, groups
    )


def conv3d_input(
    input_size: Any,
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d_input` in three dimensions: the gradient of `conv3d` with respect to its input."""
    return _function_of_input_grad(
        "grad.conv3d_input", 3, input_size, weight, grad_output, stride, padding, dilation, groups
    )


def conv1d_weight(
    input: Tensor,
    weight_size: Any,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d_weight` in one dimension: the gradient of `conv1d` with respect to its weight."""
    return _function_of_weight_grad(
        "grad.conv1d_weight", 1, input, weight_size, grad_output, stride, padding, dilation, groups
    )


def conv2d_weight(
    input: Tensor,
    weight_size: Any,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv2d` with respect to its weight, of shape `weight_size`.

    Args:
        input: [N, C, H, W], float32 or float64.
        weight_size: [O, C / groups, kH, kW].
        grad_output: [N, O, H', W'].
        stride: as for `conv2d`.
        padding: as for `conv2d`.
        dilation: as for `conv2d`.
        groups: as for `conv2d`.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    return _function_of_weight_grad(
        "grad.conv2d_weight", 2, input, weight_size, grad_output, stride, padding, dilation, groups
    )


def conv3d_weight(
    input: Tensor,
    weight_size: Any,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d_weight` in three dimensions: the gradient of `conv3d` with respect to its weight."""
    return _function_of_weight_grad(
        "grad.conv3d_weight", 3, input, weight_size, grad_output, stride, padding, dilation, groups
    )
