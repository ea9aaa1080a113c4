"""Convolution (cross-correlation): conv1d, conv2d, conv_transpose2d and the gradients as functions.

conv2d, its input gradient and its weight gradient are each linear in both operands and closed under
differentiation: the backward of one consists of the other two. Kernels: csrc/cpu/conv.cpp.
D2L chapters 7 and 14.10.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..backend import Array, contiguous, empty, kernels
from ..tensor import Tensor, expect_tensor
from .window import (
    Pair,
    as_ints,
    as_pair,
    check_image,
    is_channels_last,
    is_half,
    new_image,
    useful_step,
)

__all__ = ["conv1d", "conv2d", "conv_transpose2d"]


class _Geometry(NamedTuple):
    """Sizes and steps of a convolution; padding counts rows above and columns to the left."""

    in_size: Pair
    out_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def steps(self, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The kernels' arguments."""
        stride = [useful_step(s, n) for s, n in zip(self.stride, self.out_size, strict=True)]
        dilation = [useful_step(d, n) for d, n in zip(self.dilation, kernel, strict=True)]
        return (*stride, *self.padding, *dilation, self.groups)


# ---- the three closed operations, on checked arguments ----


class Conv2d(Node):
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
            return gx, gw, grad.sum((0, 2, 3)) if to_bias else None
        gw_array, gb_array = _weight_grad_arrays(
            input.array, grad.array, weight.array.shape, geometry, to_bias
        )
        return gx, wrap(gw_array), wrap(gb_array) if to_bias else None


class Conv2dInputGrad(Node):
    """dx = input gradient of (dy, w)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dy, weight, geometry = self.saved
        to_dy, to_weight = (edge is not None for edge in self.edges)
        return (
            _conv2d(grad, weight, None, geometry) if to_dy else None,
            _weight_grad(grad, dy, weight.array.shape, geometry) if to_weight else None,
        )


class Conv2dWeightGrad(Node):
    """dw = weight gradient of (x, dy)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, dy, geometry = self.saved
        to_input, to_dy = (edge is not None for edge in self.edges)
        return (
            _input_grad(dy, grad, geometry) if to_input else None,
            _conv2d(input, grad, None, geometry) if to_dy else None,
        )


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    x, w = input.array, contiguous(weight.array)
    b = None if bias is None else contiguous(bias.array)
    shape = (x.shape[0], w.shape[0], *geometry.out_size)
    y = new_image(shape, x.dtype, x, is_channels_last(x))
    kernels(x).conv2d(x, w, b, y, *geometry.steps(w.shape[2:]), False)
    return record(Conv2d, y, (input, weight, bias), (input, weight, geometry))


def _input_grad(grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    dy, w = grad.array, contiguous(weight.array)
    shape = (dy.shape[0], w.shape[1] * geometry.groups, *geometry.in_size)
    gx = new_image(shape, dy.dtype, dy, is_channels_last(dy))
    kernels(dy).conv2d_grad_input(dy, w, gx, *geometry.steps(w.shape[2:]))
    return record(Conv2dInputGrad, gx, (grad, weight), (grad, weight, geometry))


def _weight_grad_arrays(
    x: Array, dy: Array, shape: tuple[int, ...], geometry: _Geometry, bias: bool
) -> tuple[Array, Array | None]:
    gw = empty(shape, x.dtype, x)
    gb = empty(shape[:1], x.dtype, x) if bias else None
    kernels(x).conv2d_grad_weight(dy, x, gw, gb, *geometry.steps(shape[2:]))
    return gw, gb


def _weight_grad(
    input: Tensor, grad: Tensor, shape: tuple[int, ...], geometry: _Geometry
) -> Tensor:
    gw, _ = _weight_grad_arrays(input.array, grad.array, shape, geometry, False)
    return record(Conv2dWeightGrad, gw, (input, grad), (input, grad, geometry))


# ---- checks ----


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
        kernel = ", kH, kW" if spatial == 2 else ", k"
        raise ValueError(
            f"{name}: expected non-empty weight of shape [{roles} / groups{kernel}], "
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
    name: str, value: Any, kernel: Pair, stride: Pair, dilation: Pair
) -> tuple[Pair, Pair]:
    """Padding in front and in total, per dimension."""
    if not isinstance(value, str):
        front = as_pair(name, "padding", value, 0)
        return front, (2 * front[0], 2 * front[1])
    if value == "valid":
        return (0, 0), (0, 0)
    if value != "same":
        raise ValueError(f"{name}: padding must be ints, 'same' or 'valid', got {value!r}")
    if stride != (1, 1):
        raise ValueError(f"{name}: padding='same' is not supported for strided convolutions")
    h, w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return (h // 2, w // 2), (h, w)


def _geometry(
    name: str,
    in_size: Pair,
    kernel: Pair,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> _Geometry:
    stride = as_pair(name, "stride", stride, 1)
    dilation = as_pair(name, "dilation", dilation, 1)
    front, total = _padding(name, padding, kernel, stride, dilation)
    out = []
    for n, k, s, p, d in zip(in_size, kernel, stride, total, dilation, strict=True):
        if d * (k - 1) + 1 > n + p:
            raise ValueError(
                f"{name}: kernel of size {list(kernel)} with dilation {list(dilation)} is larger "
                f"than the padded input of size {[in_size[0] + total[0], in_size[1] + total[1]]}"
            )
        out.append((n + p - d * (k - 1) - 1) // s + 1)
    return _Geometry(in_size, (out[0], out[1]), stride, front, dilation, groups)


# ---- public functions ----


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
    zero outside of the input. float32 kernels of 3x3 over 32 channels or more take Winograd's
    algorithm, where an infinity or NaN in the input also reaches outputs one pixel further.

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
    name = "conv2d"
    groups = _check_operands(name, input, weight, bias, groups, 2, False)
    if is_half(input.array.dtype):
        return _in_float32(conv2d, input, weight, bias, stride, padding, dilation, groups)
    if input.array.ndim == 3:
        batch = input.unsqueeze(0)
        y: Tensor = conv2d(batch, weight, bias, stride, padding, dilation, groups).squeeze(0)
        return y
    h, w = input.array.shape[2:]
    kh, kw = weight.array.shape[2:]
    geometry = _geometry(name, (h, w), (kh, kw), stride, padding, dilation, groups)
    return _conv2d(input, weight, bias, geometry)


def _in_float32(
    function: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any
) -> Tensor:
    wide = [t if t is None else t.to(np.float32) for t in (input, weight, bias)]
    result: Tensor = function(*wide, *args).to(input.array.dtype)
    return result


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of sequences with a set of kernels: `conv2d` of images of one row.

    Args:
        input: floating tensor [N, C, L] or [C, L].
        weight: [O, C / groups, k], of the input's dtype.
        bias: [O] or None.
        stride: positive int.
        padding: int, "valid" or "same".
        dilation: positive int.
        groups: as for `conv2d`.

    Returns:
        Tensor [N, O, L'] or [O, L'].

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    name = "conv1d"
    groups = _check_operands(name, input, weight, bias, groups, 1, False)
    (stride,) = as_ints(name, "stride", stride, 1, 1)
    (dilation,) = as_ints(name, "dilation", dilation, 1, 1)
    if input.array.ndim == 2:
        batch = input.unsqueeze(0)
        y: Tensor = conv1d(batch, weight, bias, stride, padding, dilation, groups).squeeze(0)
        return y
    if is_half(input.array.dtype):
        return _in_float32(conv1d, input, weight, bias, stride, padding, dilation, groups)
    if padding == "same" and stride != 1:
        raise ValueError(f"{name}: padding='same' is not supported for strided convolutions")
    if not isinstance(padding, str):
        padding = (0, as_ints(name, "padding", padding, 1, 0)[0])
    n, k = input.array.shape[2], weight.array.shape[2]
    geometry = _geometry(name, (1, n), (1, k), (1, stride), padding, (1, dilation), groups)
    y = _conv2d(input.unsqueeze(2), weight.unsqueeze(2), bias, geometry).squeeze(2)
    return y


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
    name = "conv_transpose2d"
    groups = _check_operands(name, input, weight, bias, groups, 2, True)
    args = (stride, padding, output_padding, groups, dilation)
    if is_half(input.array.dtype):
        return _in_float32(conv_transpose2d, input, weight, bias, *args)
    if input.array.ndim == 3:
        y: Tensor = conv_transpose2d(input.unsqueeze(0), weight, bias, *args).squeeze(0)
        return y
    geometry = _transposed_geometry(name, input.array.shape, weight.array.shape, *args)
    y = _input_grad(input, weight, geometry)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _transposed_geometry(
    name: str,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> _Geometry:
    stride, dilation = as_pair(name, "stride", stride, 1), as_pair(name, "dilation", dilation, 1)
    front = as_pair(name, "padding", padding, 0)
    extra = as_pair(name, "output_padding", output_padding, 0)
    sizes = []
    for n, k, s, p, d, e in zip(shape[2:], kernel[2:], stride, front, dilation, extra, strict=True):
        if e >= max(s, d):
            raise ValueError(
                f"{name}: output_padding must be smaller than stride or dilation, got "
                f"{output_padding!r} with stride {list(stride)} and dilation {list(dilation)}"
            )
        sizes.append((n - 1) * s - 2 * p + d * (k - 1) + e + 1)
    if min(sizes) < 1:
        raise ValueError(f"{name}: output of size {sizes} would be empty")
    return _Geometry((sizes[0], sizes[1]), (shape[2], shape[3]), stride, front, dilation, groups)


def _check_gradient(name: str, grad: Tensor, geometry: _Geometry, expected: Pair, x: Array) -> None:
    dy = _check_dtype(name, "grad_output", grad, x)
    if dy.ndim != 4 or (dy.shape[1], *dy.shape[2:]) != (expected[1], *geometry.out_size):
        raise ValueError(
            f"{name}: expected grad_output of shape "
            f"{[expected[0], expected[1], *geometry.out_size]}, got {list(dy.shape)}"
        )
    if dy.shape[0] != expected[0]:
        raise ValueError(f"{name}: expected batch {expected[0]}, got {dy.shape[0]}")


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
    name = "grad.conv2d_input"
    w = check_image(name, weight, 2)
    size = as_ints(name, "input_size", input_size, 4, 0)
    (groups,) = as_ints(name, "groups", groups, 1, 1)
    if w.ndim != 4 or size[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(
            f"{name}: input_size {list(size)} does not fit weight of shape {list(w.shape)} "
            f"with groups {groups}"
        )
    geometry = _geometry(
        name, (size[2], size[3]), (w.shape[2], w.shape[3]), stride, padding, dilation, groups
    )
    _check_gradient(name, grad_output, geometry, (size[0], w.shape[0]), w)
    return _input_grad(grad_output, weight, geometry)


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
    name = "grad.conv2d_weight"
    x = check_image(name, input, 2)
    size = as_ints(name, "weight_size", weight_size, 4, 1)
    (groups,) = as_ints(name, "groups", groups, 1, 1)
    if x.ndim != 4 or x.shape[1] != size[1] * groups or size[0] % groups:
        raise ValueError(
            f"{name}: weight_size {list(size)} does not fit input of shape {list(x.shape)} "
            f"with groups {groups}"
        )
    geometry = _geometry(
        name, (x.shape[2], x.shape[3]), (size[2], size[3]), stride, padding, dilation, groups
    )
    _check_gradient(name, grad_output, geometry, (x.shape[0], size[0]), x)
    return _weight_grad(input, grad_output, size, geometry)
