"""Batch, instance, group, layer and RMS normalisation. D2L sections 8.5, 11.7.

Kernels: csrc/cpu/norm.cpp, csrc/cuda/norm.cu and layer_norm.cu. Composite forms, made of
differentiable ops, serve `create_graph=True`. The CUDA kernels take 16-bit inputs, with parameters
and statistics in float32; for the CPU's they become float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._cpu import Node, bump, grad_enabled, record, wrap
from ..backend import Array, contiguous, is_on_cuda, kernels
from ..tensor import Tensor, expect_tensor
from .softmax import check_floating, empty_like, in_layout_of, is_half, is_innermost

__all__: list[str] = []  # PyTorch has these names in nn.functional


def _wide(x: Array) -> np.dtype[Any]:
    """The dtype of parameters and statistics."""
    return np.dtype(np.float32) if is_half(x.dtype) else x.dtype


def _widened(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if p is None else p.to(np.float32) for p in parameters]


def _composite_gradients(
    composite: Callable[..., Any], grad: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    """``composite(grad, x, *rest)``, the gradient of x first; 16-bit arguments as float32."""
    if not is_half(x.array.dtype):
        result: tuple[Tensor | None, ...] = composite(grad, x, *rest)
        return result
    gx, *others = composite(grad.to(np.float32), x.to(np.float32), *rest)
    return (gx.to(x.array.dtype), *others)


def _parameter(name: str, argument: str, value: Tensor | None, x: Array, size: int) -> Array | None:
    """A per-channel vector as a contiguous array of x's dtype, float32 for 16-bit ones."""
    if value is None:
        return None
    p = expect_tensor(name, argument, value)
    if p.shape != (size,):
        raise ValueError(
            f"{name}: expected {argument} of shape [{size}] for input of shape {list(x.shape)}, "
            f"got {list(p.shape)}"
        )
    if p.dtype != _wide(x):
        raise TypeError(f"{name}: expected {argument} of dtype {_wide(x)}, got {p.dtype}")
    return contiguous(p)


def _running(name: str, argument: str, value: Tensor | None, x: Array) -> Array | None:
    array = _parameter(name, argument, value, x, x.shape[1])
    fixed = isinstance(array, np.ndarray) and not array.flags.writeable
    if value is not None and (array is not value.array or fixed):
        raise ValueError(f"{name}: {argument} must be contiguous and writable")
    return array


def _channel_layout(x: Array) -> tuple[Array, bool]:
    """`x` dense as [N, C, ...] or channels-last, and whether the latter; copied otherwise."""
    return (x, True) if is_innermost(x, 1) else (contiguous(x), False)


def _channels(vector: Tensor, ndim: int) -> Tensor:
    return vector.reshape(1, -1, *[1] * (ndim - 2))


class BatchNorm(Node):
    """dx = w s (dy - mean(dy) - xhat mean(dy xhat)), s = 1 / sqrt(var + eps); dw = sum(dy xhat)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd, training, eps = self.saved
        if grad_enabled():
            statistics = wrap(mean), wrap(invstd)
            return _composite_gradients(
                self._composite, grad, input, weight, *statistics, training, eps
            )
        x, channels_last = _channel_layout(input.array)
        g = in_layout_of(x, grad.array)
        wanted = [edge is not None for edge in self.edges]
        gx = empty_like(x) if wanted[0] else None
        gw = empty_like(mean) if wanted[1] else None
        gb = empty_like(mean) if wanted[2] else None
        w = None if weight is None else contiguous(weight.array)
        kernels(x).batch_norm_backward(g, x, w, mean, invstd, gx, gw, gb, training, channels_last)
        return (
            None if gx is None else wrap(gx),
            None if gw is None else wrap(gw),
            None if gb is None else wrap(gb),
        )

    @staticmethod
    def _composite(
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        training: bool,
        eps: float,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        dims = (0, *range(2, x.ndim))
        m, s = _channels(mean, x.ndim), _channels(invstd, x.ndim)
        if training:
            m = x.mean(dims, keepdim=True)
            s = (((x - m) * (x - m)).mean(dims, keepdim=True) + eps).rsqrt()
        xhat = (x - m) * s
        gx = grad
        if training:
            dot = (grad * xhat).mean(dims, keepdim=True)
            gx = grad - grad.mean(dims, keepdim=True) - xhat * dot
        gx = gx * s if weight is None else gx * (s * _channels(weight, x.ndim))
        return gx, (grad * xhat).sum(dims), grad.sum(dims)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel: ``(x - mean) / sqrt(var + eps) * weight + bias``. D2L section 8.5.

    In training, mean and (biased) variance are the batch's, and the running statistics move to
    them (the variance unbiased) by the share `momentum`; else the running statistics are used.

    Args:
        input: tensor of shape [N, C] or [N, C, d1, ...]; a channels-last one stays so.
        running_mean: shape [C], written in training. May be None in training.
        running_var: likewise.
        weight: shape [C] or None for 1.
        bias: shape [C] or None for 0.
        training: use the batch's statistics.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: shapes do not fit, one value per channel in training, no running statistics
            in evaluation.
    """
    name = "batch_norm"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    if x.ndim < 2:
        raise ValueError(f"{name}: expected input of shape [N, C, ...], got {list(x.shape)}")
    if is_half(x.dtype):
        weight, bias = _widened(weight, bias)
        if not is_on_cuda(x):
            x32 = input.to(np.float32)
            y32 = batch_norm(x32, running_mean, running_var, weight, bias, training, momentum, eps)
            return y32.to(x.dtype)
    channels = x.shape[1]
    per_channel = x.size // max(channels, 1)
    if training and per_channel < 2:
        raise ValueError(
            f"{name}: expected more than 1 value per channel when training, got input of shape "
            f"{list(x.shape)}"
        )
    if not training and (running_mean is None or running_var is None):
        raise ValueError(f"{name}: expected running_mean and running_var when not training")
    mean_array = _running(name, "running_mean", running_mean, x)
    var_array = _running(name, "running_var", running_var, x)
    w = _parameter(name, "weight", weight, x, channels)
    b = _parameter(name, "bias", bias, x, channels)
    x, channels_last = _channel_layout(x)
    y = empty_like(x)
    mean, invstd = (kernels(x).empty((channels,), _wide(x)) for _ in range(2))
    kernels(x).batch_norm(
        x, w, b, mean_array, var_array, y, mean, invstd, training, momentum, eps, channels_last
    )
    if training:
        for running in (running_mean, running_var):
            if running is not None:
                bump(running)
    return record(BatchNorm, y, (input, weight, bias), (input, weight, mean, invstd, training, eps))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel of each example by its own mean and variance.

    Args:
        input: tensor of shape [N, C, d1, ...].
        running_mean: shape [C], moved to the mean over the examples; or None.
        running_var: likewise.
        weight: shape [C] or None for 1.
        bias: shape [C] or None for 0.
        use_input_stats: False: use the running statistics, as `batch_norm` does.
        momentum: share of this call in the running statistics.
        eps: added to the variance.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: shapes do not fit, or one value per example and channel.
    """
    name = "instance_norm"
    x = expect_tensor(name, "input", input)
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if x.ndim < 3:
        raise ValueError(f"{name}: expected input of shape [N, C, d1, ...], got {list(x.shape)}")
    n, c = x.shape[:2]
    if math.prod(x.shape[2:]) < 2:
        raise ValueError(
            f"{name}: expected more than 1 value per example and channel, got input of shape "
            f"{list(x.shape)}"
        )
    for argument, value in (("running_mean", running_mean), ("running_var", running_var)):
        if value is not None and expect_tensor(name, argument, value).shape != (c,):
            raise ValueError(f"{name}: {argument} must have shape [{c}], got {list(value.shape)}")
    if running_mean is None and running_var is None:
        return _group_norm(name, input, c, weight, bias, eps)
    mean = None if running_mean is None else running_mean.detach().repeat(n)
    var = None if running_var is None else running_var.detach().repeat(n)
    flat = input.reshape(1, n * c, *x.shape[2:])
    y = batch_norm(flat, mean, var, None, None, True, momentum, eps).reshape(*x.shape)
    for running, moved in ((running_mean, mean), (running_var, var)):
        if running is not None and moved is not None:
            running.array[...] = moved.array.reshape(n, c).mean(axis=0)
            bump(running)
    return _affine(y, weight, bias)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y * weight + bias`` along the channels."""
    if weight is not None:
        y = y * _channels(weight, y.ndim)
    return y if bias is None else y + _channels(bias, y.ndim)


class LayerNorm(Node):
    """dx = s (h - mean(h) - xhat mean(h xhat)), h = w dy, per row; dw = sum(dy xhat)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd, inner, eps = self.saved
        if grad_enabled():
            return _composite_gradients(self._composite, grad, input, weight, inner, eps)
        x, g = contiguous(input.array), contiguous(grad.array)
        shape = x.shape[x.ndim - inner :]
        wanted = [edge is not None for edge in self.edges]
        gx = empty_like(x) if wanted[0] else None
        gw = kernels(x).empty(shape, _wide(x)) if wanted[1] else None
        gb = kernels(x).empty(shape, _wide(x)) if wanted[2] else None
        w = None if weight is None else contiguous(weight.array)
        n = math.prod(shape)
        kernels(x).layer_norm_backward(g, x, w, mean, invstd, gx, gw, gb, mean.size, n)
        return (
            None if gx is None else wrap(gx),
            None if gw is None else wrap(gw),
            None if gb is None else wrap(gb),
        )

    @staticmethod
    def _composite(
        grad: Tensor, x: Tensor, weight: Tensor | None, inner: int, eps: float
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        dims = tuple(range(x.ndim - inner, x.ndim))
        outer = tuple(range(x.ndim - inner))
        centered = x - x.mean(dims, keepdim=True)
        s = ((centered * centered).mean(dims, keepdim=True) + eps).rsqrt()
        xhat = centered * s
        h = grad if weight is None else grad * weight
        dot = (h * xhat).mean(dims, keepdim=True)
        gx = (h - h.mean(dims, keepdim=True) - xhat * dot) * s
        if not outer:
            return gx, grad * xhat, grad
        return gx, (grad * xhat).sum(outer), grad.sum(outer)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises the last dimensions: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Ba, Kiros and Hinton, 2016; D2L section 11.7.2. The variance is the biased one.

    Args:
        input: tensor of shape [*, *normalized_shape].
        normalized_shape: sizes of the dimensions to normalise over.
        weight: tensor of shape `normalized_shape`, or None for 1.
        bias: tensor of shape `normalized_shape`, or None for 0.
        eps: added to the variance.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: shapes do not fit.
    """
    name = "layer_norm"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    shape = _normalized_shape(name, x, normalized_shape)
    if is_half(x.dtype):
        weight, bias = _widened(weight, bias)
        if not is_on_cuda(x):
            return layer_norm(input.to(np.float32), shape, weight, bias, eps).to(x.dtype)
    w, b = (
        _layer_parameter(name, argument, value, x, shape)
        for argument, value in (("weight", weight), ("bias", bias))
    )
    x = contiguous(x)
    n = math.prod(shape)
    rows = math.prod(x.shape[: x.ndim - len(shape)])
    y = empty_like(x)
    mean, invstd = (kernels(x).empty((rows,), _wide(x)) for _ in range(2))
    kernels(x).layer_norm(x, w, b, y, mean, invstd, rows, n, eps)
    saved = (input, weight, mean, invstd, len(shape), eps)
    return record(LayerNorm, y, (input, weight, bias), saved)


class RMSNorm(Node):
    """dx = s (h - xhat mean(h xhat)), h = w dy, xhat = s x, per row; dw = sum(dy xhat)."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, invrms, inner, eps = self.saved
        if grad_enabled():
            return _composite_gradients(self._composite, grad, input, weight, inner, eps)
        x, g = contiguous(input.array), contiguous(grad.array)
        shape = x.shape[x.ndim - inner :]
        wanted = [edge is not None for edge in self.edges]
        gx = empty_like(x) if wanted[0] else None
        gw = kernels(x).empty(shape, _wide(x)) if wanted[1] else None
        w = None if weight is None else contiguous(weight.array)
        n = math.prod(shape)
        kernels(x).layer_norm_backward(g, x, w, None, invrms, gx, gw, None, invrms.size, n)
        return None if gx is None else wrap(gx), None if gw is None else wrap(gw)

    @staticmethod
    def _composite(
        grad: Tensor, x: Tensor, weight: Tensor | None, inner: int, eps: float
    ) -> tuple[Tensor | None, Tensor | None]:
        dims = tuple(range(x.ndim - inner, x.ndim))
        outer = tuple(range(x.ndim - inner))
        s = ((x * x).mean(dims, keepdim=True) + eps).rsqrt()
        xhat = x * s
        h = grad if weight is None else grad * weight
        gx = (h - xhat * (h * xhat).mean(dims, keepdim=True)) * s
        return gx, (grad * xhat).sum(outer) if outer else grad * xhat


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Scales the last dimensions: ``x / sqrt(mean(x^2) + eps) * weight``. Zhang and Sennrich, 2019.

    Args:
        input: tensor of shape [*, *normalized_shape].
        normalized_shape: sizes of the dimensions to normalise over.
        weight: tensor of shape `normalized_shape`, or None for 1.
        eps: added to the mean square; None: the dtype's machine epsilon.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: shapes do not fit.
    """
    name = "rms_norm"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    shape = _normalized_shape(name, x, normalized_shape)
    if is_half(x.dtype):
        (weight,) = _widened(weight)
        if not is_on_cuda(x):
            return rms_norm(input.to(np.float32), shape, weight, eps).to(x.dtype)
    w = _layer_parameter(name, "weight", weight, x, shape)
    if eps is None:
        eps = float(np.finfo(_wide(x)).eps)
    x = contiguous(x)
    rows = math.prod(x.shape[: x.ndim - len(shape)])
    y = empty_like(x)
    invrms = kernels(x).empty((rows,), _wide(x))
    kernels(x).layer_norm(x, w, None, y, None, invrms, rows, math.prod(shape), eps)
    return record(RMSNorm, y, (input, weight), (input, weight, invrms, len(shape), eps))


def _normalized_shape(
    name: str, x: Array, normalized_shape: int | Sequence[int]
) -> tuple[int, ...]:
    shape = (
        (int(normalized_shape),)
        if isinstance(normalized_shape, (int, np.integer))
        else tuple(int(s) for s in normalized_shape)
    )
    if not shape or x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise ValueError(
            f"{name}: expected input of shape [*, {', '.join(map(str, shape))}], "
            f"got {list(x.shape)}"
        )
    return shape


def _layer_parameter(
    name: str, argument: str, value: Tensor | None, x: Array, shape: tuple[int, ...]
) -> Array | None:
    if value is None:
        return None
    p = expect_tensor(name, argument, value)
    if p.shape != shape:
        raise ValueError(f"{name}: expected {argument} of shape {list(shape)}, got {list(p.shape)}")
    if p.dtype != _wide(x):
        raise TypeError(f"{name}: expected {argument} of dtype {_wide(x)}, got {p.dtype}")
    return contiguous(p)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises groups of neighbouring channels of each example (Wu and He, 2018).

    Args:
        input: tensor of shape [N, C, ...].
        num_groups: number of groups; divides C.
        weight: shape [C] or None for 1.
        bias: shape [C] or None for 0.
        eps: added to the variance.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: `num_groups` does not divide C.
    """
    x = expect_tensor("group_norm", "input", input)
    if x.ndim < 2:
        raise ValueError(f"group_norm: expected input of shape [N, C, ...], got {list(x.shape)}")
    n, c = x.shape[:2]
    if num_groups < 1 or c % num_groups:
        raise ValueError(
            f"group_norm: expected num_groups to divide {c} channels, got {num_groups}"
        )
    return _group_norm("group_norm", input, num_groups, weight, bias, eps)


class GroupNorm(Node):
    """As LayerNorm per group of channels of an example; dw = sum(dy xhat) per channel."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd, sizes, eps = self.saved
        if grad_enabled():
            return _composite_gradients(self._composite, grad, input, weight, sizes, eps)
        x, channels_last = _channel_layout(input.array)
        g = in_layout_of(x, grad.array)
        wanted = [edge is not None for edge in self.edges]
        gx = empty_like(x) if wanted[0] else None
        sizes_of = (x.shape[1],), _wide(x)
        gw, gb = (kernels(x).empty(*sizes_of) if want else None for want in wanted[1:])
        w = None if weight is None else contiguous(weight.array)
        kernels(x).group_norm_backward(g, x, w, mean, invstd, gx, gw, gb, *sizes, channels_last)
        return (
            None if gx is None else wrap(gx),
            None if gw is None else wrap(gw),
            None if gb is None else wrap(gb),
        )

    @staticmethod
    def _composite(
        grad: Tensor, x: Tensor, weight: Tensor | None, sizes: tuple[int, ...], eps: float
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows = (sizes[0] * sizes[1], sizes[2] * sizes[3])
        flat = x.reshape(*rows)
        centered = flat - flat.mean(1, keepdim=True)
        s = ((centered * centered).mean(1, keepdim=True) + eps).rsqrt()
        xhat = centered * s
        h = (grad if weight is None else grad * _channels(weight, x.ndim)).reshape(*rows)
        dot = (h * xhat).mean(1, keepdim=True)
        gx = (h - h.mean(1, keepdim=True) - xhat * dot) * s
        dims = (0, *range(2, x.ndim))
        product = grad * xhat.reshape(*x.shape)
        return gx.reshape(*x.shape), product.sum(dims), grad.sum(dims)


def _group_norm(
    name: str, input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    x = input.array
    check_floating(name, "input", x)
    if is_half(x.dtype):
        weight, bias = _widened(weight, bias)
        if not is_on_cuda(x):
            x32 = input.to(np.float32)
            return _group_norm(name, x32, groups, weight, bias, eps).to(x.dtype)
    n, c = x.shape[:2]
    w = _parameter(name, "weight", weight, x, c)
    b = _parameter(name, "bias", bias, x, c)
    x, channels_last = _channel_layout(x)
    sizes = (n, groups, c // groups, math.prod(x.shape[2:]))
    y = empty_like(x)
    mean, invstd = (kernels(x).empty((n * groups,), _wide(x)) for _ in range(2))
    kernels(x).group_norm(x, w, b, y, mean, invstd, *sizes, eps, channels_last)
    return record(GroupNorm, y, (input, weight, bias), (input, weight, mean, invstd, sizes, eps))
