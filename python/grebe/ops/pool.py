"""Maximum and average pooling over one, two and three dimensions, also adaptive.

Average pooling and its gradient are linear and each other's backward; so are reading the maxima by
their positions and adding gradients at them. The kernels (csrc/cpu/pool.cpp, csrc/cuda/pool.cu)
pool images; a window of a volume is a window of planes, then one of depth. D2L section 7.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..amp import full_precision
from ..backend import Array, contiguous, is_on_cuda, kernels, xp
from ..tensor import Tensor
from .window import (
    Sizes,
    as_ints,
    check_image,
    in_format,
    is_channels_last,
    is_half,
    new_image,
    useful_step,
    with_strides,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
    "avg_pool1d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]


class _Windows(NamedTuple):
    """Where the windows lie. Stride 0: adaptive windows, `kernel` is the largest of them."""

    in_size: Sizes
    out_size: Sizes
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes

    def adaptive(self) -> bool:
        return self.stride[0] == 0

    def steps(self) -> tuple[int, ...]:
        """The kernels' arguments up to the padding."""
        if self.adaptive():
            return (*self.kernel, 0, 0, 0, 0)
        stride = [useful_step(s, n) for s, n in zip(self.stride, self.out_size, strict=True)]
        return (*self.kernel, *stride, *self.padding)

    def dilations(self) -> tuple[int, ...]:
        return tuple(useful_step(d, k) for d, k in zip(self.dilation, self.kernel, strict=True))

    def of_planes(self) -> _Windows:
        """Windows of a volume without their depth."""
        return _Windows(*(sizes[1:] for sizes in self))

    def of_depth(self, width: int) -> _Windows:
        """The depth of the windows of a volume, for images [depth, width]."""
        others = (width, width, 1, 0 if self.adaptive() else 1, 0, 1)
        return _Windows(*((own[0], other) for own, other in zip(self, others, strict=True)))

    def begin(self, axis: int, lib: Any) -> Array:
        """First input position of every window along `axis`; in the padding, below 0."""
        outputs = lib.arange(self.out_size[axis])
        if self.adaptive():
            first = outputs * self.in_size[axis] // self.out_size[axis]
        else:
            first = outputs * self.stride[axis] - self.padding[axis]
        result: Array = first
        return result


def _operand(x: Array, windows: _Windows) -> tuple[Array, bool]:
    """`x` as the kernels take it, and whether their arrays are channels-last."""
    if windows.adaptive():
        return in_format(x, True), True
    return x, is_channels_last(x)


def _result(y: Array, windows: _Windows, like: Array) -> Array:
    """Adaptive kernels give channels-last arrays: back to the format of `like`."""
    return in_format(y, is_channels_last(like)) if windows.adaptive() else y


# ---- maximum ----


class MaxPool2d(Node):
    """y = maxima of x: dx has dy at their positions."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        index, windows = self.saved
        return _scatter(grad, index, windows)


class MaxPoolScatter(Node):
    """dx has dy at the positions `index`, summed."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        index, windows = self.saved
        return _gather(grad, index, windows)


class MaxPoolGather(Node):
    """y = x at the positions `index`."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        index, windows = self.saved
        return _scatter(grad, index, windows)


def _max_arrays(x: Array, windows: _Windows, need_index: bool) -> tuple[Array, Array | None]:
    """Maxima, and their positions as numbers within the window."""
    x, last = _operand(x, windows)
    shape = (*x.shape[:2], *windows.out_size)
    small = windows.kernel[0] * windows.kernel[1] <= 256
    dtype = np.dtype(np.uint8 if small else np.int32)
    y = new_image(shape, x.dtype, x, last)
    index = new_image(shape, dtype, x, last) if need_index else None
    kernels(x).max_pool2d(x, y, index, *windows.steps(), *windows.dilations())
    return y, index


def _scatter(grad: Tensor, index: Array, windows: _Windows) -> Tensor:
    size = grad.array.dtype.itemsize
    strides = tuple(s // index.dtype.itemsize * size for s in index.strides)
    dy = with_strides(grad.array, strides)
    shape = (*dy.shape[:2], *windows.in_size)
    last = windows.adaptive() or is_channels_last(index)
    gx = new_image(shape, dy.dtype, dy, last)
    kernels(dy).max_pool2d_grad(dy, index, gx, *windows.steps(), *windows.dilations())
    gx = _result(gx, windows, grad.array)
    return record(MaxPoolScatter, gx, (grad,), (index, windows))


def _flat_index(index: Array, windows: _Windows) -> Array:
    """Positions in the flattened input plane, int64, of positions within the windows."""
    lib = xp(index)
    k = contiguous(index).astype(np.int64)
    width = windows.kernel[1]
    rows = windows.begin(0, lib)[:, None] + k // width * windows.dilation[0]
    columns = windows.begin(1, lib) + k % width * windows.dilation[1]
    flat: Array = rows * windows.in_size[1] + columns
    return flat


def _gather(input: Tensor, index: Array, windows: _Windows) -> Tensor:
    x = contiguous(input.array)
    flat = _flat_index(index, windows)
    planes = (*x.shape[:2], -1)
    y = xp(x).take_along_axis(x.reshape(planes), flat.reshape(planes), 2).reshape(flat.shape)
    return record(MaxPoolGather, y, (input,), (index, windows))


def _max_pool(input: Tensor, windows: _Windows, return_indices: bool) -> Any:
    need = return_indices or (grad_enabled() and input.requires_grad)
    y, index = _max_arrays(input.array, windows, need)
    y = _result(y, windows, input.array)
    result = record(MaxPool2d, y, (input,), (index, windows))
    if return_indices and index is not None:
        return result, wrap(_flat_index(index, windows))
    return result


# ---- average ----


class AvgPool2d(Node):
    """y = means of x over the windows; linear in x."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        windows, last, divisor = self.saved
        return _avg_grad(grad, windows, last, divisor)


class AvgPool2dGrad(Node):
    """dx = dy shared out over the windows; linear in dy."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        windows, divisor = self.saved
        return _avg_pool(grad, windows, divisor)


Divisor = tuple[bool, int]  # count_include_pad; divisor, 0 for the number of cells


def _avg_pool(input: Tensor, windows: _Windows, divisor: Divisor) -> Tensor:
    x, last = _operand(input.array, windows)
    y = new_image((*x.shape[:2], *windows.out_size), x.dtype, x, last)
    kernels(x).avg_pool2d(x, y, *windows.steps(), *divisor)
    y = _result(y, windows, input.array)
    return record(AvgPool2d, y, (input,), (windows, is_channels_last(input.array), divisor))


def _avg_grad(grad: Tensor, windows: _Windows, last: bool, divisor: Divisor) -> Tensor:
    inner = last or windows.adaptive()
    dy = in_format(grad.array, inner)
    gx = new_image((*dy.shape[:2], *windows.in_size), dy.dtype, dy, inner)
    kernels(dy).avg_pool2d_grad(dy, gx, *windows.steps(), *divisor)
    gx = in_format(gx, last)
    return record(AvgPool2dGrad, gx, (grad,), (windows, divisor))


# ---- checks ----


def _out_size(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    out = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
    # The last window must begin inside the input or its front padding.
    return out - 1 if ceil_mode and (out - 1) * s >= n + p else out


def _windows(
    name: str,
    in_size: Sizes,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> _Windows:
    count = len(in_size)
    kernel = as_ints(name, "kernel_size", kernel_size, count, 1)
    # An empty list is what PyTorch's modules pass for None.
    whole = stride is None or stride in ([], ())
    stride = kernel if whole else as_ints(name, "stride", stride, count, 1)
    padding = as_ints(name, "padding", padding, count, 0)
    dilation = as_ints(name, "dilation", dilation, count, 1)
    sizes = []
    for n, k, s, p, d in zip(in_size, kernel, stride, padding, dilation, strict=True):
        if 2 * p > k:
            raise ValueError(
                f"{name}: padding should be at most half of kernel size, got padding "
                f"{list(padding)} and kernel_size {list(kernel)}"
            )
        sizes.append(_out_size(n, k, s, p, d, bool(ceil_mode)))
    if min(sizes) < 1:
        raise ValueError(
            f"{name}: kernel_size {list(kernel)} with padding {list(padding)} and dilation "
            f"{list(dilation)} is too large for input of size {list(in_size)}"
        )
    return _Windows(in_size, tuple(sizes), kernel, stride, padding, dilation)


def _adaptive_windows(name: str, in_size: Sizes, output_size: Any) -> _Windows:
    count = len(in_size)
    items = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,) * count
    if len(items) != count:
        raise ValueError(
            f"{name}: output_size must be an int or {count} of int or None, got {output_size!r}"
        )
    wanted = [n if item is None else item for n, item in zip(in_size, items, strict=True)]
    out = as_ints(name, "output_size", wanted, count, 1)
    zeros, ones = (0,) * count, (1,) * count
    if all(n % o == 0 for n, o in zip(in_size, out, strict=True)):
        kernel = tuple(n // o for n, o in zip(in_size, out, strict=True))
        return _Windows(in_size, out, kernel, kernel, zeros, ones)
    largest = [
        max(((i + 1) * n + o - 1) // o - i * n // o for i in range(o))
        for n, o in zip(in_size, out, strict=True)
    ]
    return _Windows(in_size, out, tuple(largest), zeros, zeros, ones)


def _divisor(name: str, count_include_pad: bool, override: int | None) -> Divisor:
    if override is None:
        return bool(count_include_pad), 0
    if not isinstance(override, int) or override == 0:
        raise ValueError(f"{name}: divisor_override must be a nonzero int: {override!r}")
    return bool(count_include_pad), override


def _spatial(name: str, input: Tensor, count: int = 2) -> Sizes:
    """The spatial sizes of an input after its checks."""
    return check_image(name, input, count).shape[-count:]


def _batched(input: Tensor, pool: Any, spatial: int = 2) -> Any:
    """`pool` of a batch that the kernels take, for any input that passed its checks.

    16-bit numbers become float32, but for images on the GPU: a volume would be rounded twice.
    """
    dtype = input.array.dtype
    if is_half(dtype) and not (spatial == 2 and is_on_cuda(input.array)):
        return _each(_batched(input.to(np.float32), pool, spatial), lambda y: y.to(dtype))
    if input.array.ndim == spatial + 2:
        return pool(input)
    return _each(pool(input.unsqueeze(0)), lambda y: y.squeeze(0), lambda i: i.squeeze(0))


def _each(result: Any, on_values: Any, on_indices: Any = None) -> Any:
    if not isinstance(result, tuple):
        return on_values(result)
    return on_values(result[0]), on_indices(result[1]) if on_indices else result[1]


# ---- public functions ----


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over sliding windows. D2L section 7.5.

    A window with a NaN has maximum NaN; padding counts as -inf.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W]; keeps its memory format.
        kernel_size: int or (height, width) of the window.
        stride: int or (height, width); None: kernel_size.
        padding: int or (height, width) on both sides, at most half of kernel_size.
        dilation: int or (height, width), distance between the window's elements.
        ceil_mode: also windows that reach beyond the padded input at the end.
        return_indices: also return the positions of the maxima in the flattened input plane.

    Returns:
        Tensor [N, C, H', W'] or [C, H', W'], and with return_indices an int64 tensor of that shape,
        ``H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``.

    Raises:
        TypeError: not a floating tensor, arguments that are no ints.
        ValueError: wrong rank, arguments out of range, window larger than the padded input.
    """
    name = "max_pool2d"
    size = _spatial(name, input)
    windows = _windows(name, size, kernel_size, stride, padding, dilation, ceil_mode)
    return _batched(input, lambda x: _max_pool(x, windows, return_indices))


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over sliding windows. D2L section 7.5.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W]; keeps its memory format.
        kernel_size: int or (height, width) of the window.
        stride: int or (height, width); None: kernel_size.
        padding: int or (height, width) of zeros on both sides, at most half of kernel_size.
        ceil_mode: also windows that reach beyond the padded input at the end.
        count_include_pad: divide by the cells of the window in the padded input, not only by
            those in the input.
        divisor_override: divide by this instead.

    Returns:
        Tensor [N, C, H', W'] or [C, H', W'].

    Raises:
        TypeError: not a floating tensor, arguments that are no ints.
        ValueError: wrong rank, arguments out of range, window larger than the padded input.
    """
    name = "avg_pool2d"
    size = _spatial(name, input)
    windows = _windows(name, size, kernel_size, stride, padding, 1, ceil_mode)
    divisor = _divisor(name, count_include_pad, divisor_override)
    result: Tensor = _batched(input, lambda x: _avg_pool(x, windows, divisor))
    return result


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maximum over windows that cover the input evenly, `output_size` of them.

    Window i of n along a size L is ``[floor(i * L / n), ceil((i + 1) * L / n))``.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W].
        output_size: int or (height, width), positive; None keeps the input's size.
        return_indices: also return the positions of the maxima in the flattened input plane.

    Returns:
        Tensor [N, C, *output_size], and with return_indices an int64 tensor of that shape.

    Raises:
        TypeError, ValueError: as `max_pool2d`.
    """
    name = "adaptive_max_pool2d"
    windows = _adaptive_windows(name, _spatial(name, input), output_size)
    return _batched(input, lambda x: _max_pool(x, windows, return_indices))


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Mean over windows that cover the input evenly, as in `adaptive_max_pool2d`. D2L section 8.3.

    Args:
        input: floating tensor [N, C, H, W] or [C, H, W].
        output_size: int or (height, width), positive; None keeps the input's size.

    Returns:
        Tensor [N, C, *output_size].

    Raises:
        TypeError, ValueError: as `avg_pool2d`.
    """
    name = "adaptive_avg_pool2d"
    windows = _adaptive_windows(name, _spatial(name, input), output_size)
    result: Tensor = _batched(input, lambda x: _avg_pool(x, windows, (True, 0)))
    return result


# ---- three dimensions: planes, then depth ----


def _volume(input: Tensor, windows: _Windows, on_planes: Any, on_depth: Any) -> Any:
    """Two poolings of images, called with images and windows: of planes, then of their results."""
    n, c, depth = input.array.shape[:3]
    width = windows.out_size[1] * windows.out_size[2]
    images = input.reshape(n, c * depth, *windows.in_size[1:])
    planes, inner = _parts(on_planes(images, windows.of_planes()))
    y, outer = _parts(on_depth(planes.reshape(n, c, depth, width), windows.of_depth(width)))
    shape = (n, c, *windows.out_size)
    if inner is None or outer is None:
        return y.reshape(*shape)
    at = outer.array.reshape(n, c, -1)
    within = xp(at).take_along_axis(inner.array.reshape(n, c, depth * width), at, 2)
    index = within + at // width * (windows.in_size[1] * windows.in_size[2])
    return y.reshape(*shape), wrap(index.reshape(shape))


def _parts(result: Any) -> tuple[Tensor, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _max_volume(input: Tensor, windows: _Windows, return_indices: bool) -> Any:
    def pool(images: Tensor, some: _Windows) -> Any:
        return _max_pool(images, some, return_indices)

    return _batched(input, lambda x: _volume(x, windows, pool, pool), 3)


def _avg_volume(input: Tensor, windows: _Windows, divisor: Divisor) -> Tensor:
    def means(images: Tensor, some: _Windows) -> Tensor:
        return _avg_pool(images, some, divisor)

    def sums(images: Tensor, some: _Windows) -> Tensor:
        return _avg_pool(images, some, (True, 1))

    on_planes = sums if divisor[1] else means
    result: Tensor = _batched(input, lambda x: _volume(x, windows, on_planes, means), 3)
    return result


@full_precision
def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over sliding windows of a tensor [N, C, D, H, W] or [C, D, H, W].

    Args, returns, raises: as `max_pool2d`, with (depth, height, width) for each pair; indices count
    in the flattened volume.
    """
    name = "max_pool3d"
    size = _spatial(name, input, 3)
    windows = _windows(name, size, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_volume(input, windows, return_indices)


@full_precision
def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over sliding windows of a tensor [N, C, D, H, W] or [C, D, H, W].

    Args, returns, raises: as `avg_pool2d`, with (depth, height, width) for each pair.
    """
    name = "avg_pool3d"
    size = _spatial(name, input, 3)
    windows = _windows(name, size, kernel_size, stride, padding, 1, ceil_mode)
    return _avg_volume(input, windows, _divisor(name, count_include_pad, divisor_override))


@full_precision
def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`adaptive_max_pool2d` of a tensor [N, C, D, H, W] or [C, D, H, W] in three dimensions."""
    name = "adaptive_max_pool3d"
    windows = _adaptive_windows(name, _spatial(name, input, 3), output_size)
    return _max_volume(input, windows, return_indices)


@full_precision
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """`adaptive_avg_pool2d` of a tensor [N, C, D, H, W] or [C, D, H, W] in three dimensions."""
    name = "adaptive_avg_pool3d"
    windows = _adaptive_windows(name, _spatial(name, input, 3), output_size)
    return _avg_volume(input, windows, (True, 0))


# ---- one dimension: images of one row ----


def _one_row(name: str, input: Tensor, pool: Any) -> Any:
    check_image(name, input, 1)
    axis = input.array.ndim - 1

    def drop(y: Tensor) -> Tensor:
        result: Tensor = y.squeeze(axis)
        return result

    return _each(pool(input.unsqueeze(axis)), drop, drop)


def _row_ints(name: str, **arguments: tuple[Any, int]) -> dict[str, Any]:
    """One int per argument as a pair for a window of one row; (value, its least)."""
    rows = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    return {
        key: (rows[key], as_ints(name, key, value, 1, least)[0])
        for key, (value, least) in arguments.items()
    }


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over sliding windows of a tensor [N, C, L] or [C, L]: `max_pool2d` in one dimension.

    Args, returns, raises: as `max_pool2d`, with one int for each pair.
    """
    name = "max_pool1d"
    stride = kernel_size if stride is None or stride in ([], ()) else stride
    args = _row_ints(
        name,
        kernel_size=(kernel_size, 1),
        stride=(stride, 1),
        padding=(padding, 0),
        dilation=(dilation, 1),
    )
    return _one_row(
        name,
        input,
        lambda x: max_pool2d(x, **args, ceil_mode=ceil_mode, return_indices=return_indices),
    )


def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean over sliding windows of a tensor [N, C, L] or [C, L]: `avg_pool2d` in one dimension.

    Args, returns, raises: as `avg_pool2d`, with one int for each pair.
    """
    name = "avg_pool1d"
    stride = kernel_size if stride is None or stride in ([], ()) else stride
    args = _row_ints(name, kernel_size=(kernel_size, 1), stride=(stride, 1), padding=(padding, 0))
    result: Tensor = _one_row(
        name,
        input,
        lambda x: avg_pool2d(x, **args, ceil_mode=ceil_mode, count_include_pad=count_include_pad),
    )
    return result


def _row_output(name: str, output_size: Any) -> tuple[int, int]:
    return 1, as_ints(name, "output_size", output_size, 1, 1)[0]


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """`adaptive_max_pool2d` of a tensor [N, C, L] or [C, L] in its one dimension."""
    name = "adaptive_max_pool1d"
    size = _row_output(name, output_size)
    return _one_row(name, input, lambda x: adaptive_max_pool2d(x, size, return_indices))


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """`adaptive_avg_pool2d` of a tensor [N, C, L] or [C, L] in its one dimension."""
    name = "adaptive_avg_pool1d"
    size = _row_output(name, output_size)
    result: Tensor = _one_row(name, input, lambda x: adaptive_avg_pool2d(x, size))
    return result
