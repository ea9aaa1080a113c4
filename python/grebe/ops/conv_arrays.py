"""The kernels of convolution on arrays of one, two or three spatial dimensions.

The kernels take images. A sequence is an image of one row. A volume is as many images as its result
is deep, with the planes that the taps of the depth meet side by side as channels:
  images[n * depth' + i, (tap, channel)] = volume[n, channel, i * stride + tap * dilation - padding]
so that all three directions of a convolution run on the same kernels. Examples are taken in chunks,
so that this copy, as many times as large as the kernel is deep, stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..backend import Array, assign, contiguous, empty, kernels
from .window import Sizes, is_channels_last, new_image, useful_step

_CHUNK_BYTES = 8 << 20  # of the images made of volumes: they stay in the last cache


class Geometry(NamedTuple):
    """Sizes and steps of a convolution; padding counts what comes first in each dimension."""

    in_size: Sizes
    out_size: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int

    def steps(self, kernel: Sizes) -> Sizes:
        """The kernels' arguments."""
        stride = [useful_step(s, n) for s, n in zip(self.stride, self.out_size, strict=True)]
        dilation = [useful_step(d, n) for d, n in zip(self.dilation, kernel, strict=True)]
        return (*stride, *self.padding, *dilation, self.groups)

    def row_as_image(self) -> Geometry:
        """One dimension as an image of one row."""
        ones, zero = (1,), (0,)
        return Geometry(
            ones + self.in_size, ones + self.out_size, ones + self.stride, zero + self.padding,
            ones + self.dilation, self.groups,
        )  # fmt: skip

    def image(self) -> Geometry:
        """Without the depth."""
        return Geometry(
            self.in_size[1:], self.out_size[1:], self.stride[1:], self.padding[1:],
            self.dilation[1:], self.groups,
        )  # fmt: skip


def forward(x: Array, w: Array, b: Array | None, geometry: Geometry) -> Array:
    """x [N, C, *in_size] * w [O, C / groups, *kernel] + b [O]."""
    if x.ndim == 3:
        y = forward(x[:, :, None], w[:, :, None], b, geometry.row_as_image())
        return y.reshape(x.shape[0], w.shape[0], *geometry.out_size)
    y = new_image((x.shape[0], w.shape[0], *geometry.out_size), x.dtype, x, is_channels_last(x))
    if x.ndim == 5:
        _volumes_forward(x, w, b, y, geometry)
    else:
        _forward(x, w, b, y, geometry)
    return y


def grad_input(dy: Array, w: Array, geometry: Geometry) -> Array:
    """The gradient of the input of `forward`."""
    channels = w.shape[1] * geometry.groups
    if dy.ndim == 3:
        gx = grad_input(dy[:, :, None], w[:, :, None], geometry.row_as_image())
        return gx.reshape(dy.shape[0], channels, *geometry.in_size)
    shape = (dy.shape[0], channels, *geometry.in_size)
    gx = new_image(shape, dy.dtype, dy, is_channels_last(dy))
    if dy.ndim == 5:
        _volumes_grad_input(dy, w, gx, geometry)
    else:
        _grad_input(dy, w, gx, geometry)
    return gx


def grad_weight(
    x: Array, dy: Array, shape: Sizes, geometry: Geometry, bias: bool
) -> tuple[Array, Array | None]:
    """The gradients of the weight, of `shape`, and of the bias of `forward`."""
    if x.ndim == 3:
        wide = (*shape[:2], 1, shape[2])
        gw, gb = grad_weight(x[:, :, None], dy[:, :, None], wide, geometry.row_as_image(), bias)
        return gw.reshape(shape), gb
    if x.ndim == 5:
        return _volumes_grad_weight(x, dy, shape, geometry, bias)
    gw = empty(shape, x.dtype, x)
    gb = empty(shape[:1], x.dtype, x) if bias else None
    kernels(x).conv2d_grad_weight(dy, x, gw, gb, *geometry.steps(shape[2:]))
    return gw, gb


def _forward(x: Array, w: Array, b: Array | None, y: Array, geometry: Geometry) -> None:
    b = None if b is None else contiguous(b)
    kernels(x).conv2d(x, contiguous(w), b, y, *geometry.steps(w.shape[2:]))


def _grad_input(dy: Array, w: Array, gx: Array, geometry: Geometry) -> None:
    kernels(dy).conv2d_grad_input(dy, contiguous(w), gx, *geometry.steps(w.shape[2:]))


# ---- volumes as images ----


def _volumes_forward(x: Array, w: Array, b: Array | None, y: Array, geometry: Geometry) -> None:
    flat = w.swapaxes(1, 2).reshape(w.shape[0], -1, *w.shape[3:])
    planes = _planes_of_taps(geometry, w.shape[2])
    for some in _chunks(x, geometry.out_size[0], w.shape[2]):
        images = _as_images(x[some], planes, geometry)
        for out in _written_as_images(y[some]):
            _forward(images, flat, b, out, geometry.image())


def _volumes_grad_input(dy: Array, w: Array, gx: Array, geometry: Geometry) -> None:
    """Input planes a stride apart meet the same taps, in gradients that lie side by side."""
    stride, groups = geometry.stride[0], geometry.groups
    grouped = w.reshape(groups, -1, *w.shape[1:])
    for phase in range(min(stride, geometry.in_size[0])):
        gradients = {
            tap: phase + geometry.padding[0] - tap * geometry.dilation[0]
            for tap in range(w.shape[2])
        }
        taps = [tap for tap, at in gradients.items() if at % stride == 0]
        some_planes = gx[:, :, phase::stride]
        if not taps:
            some_planes[...] = 0
            continue
        planes = _Planes([gradients[tap] // stride for tap in taps], 1, some_planes.shape[2])
        flat = grouped[:, :, :, taps].transpose(0, 3, 1, 2, 4, 5)
        flat = flat.reshape(-1, w.shape[1], *w.shape[3:])
        for some in _chunks(dy, planes.images, len(taps)):
            images = _as_images(dy[some], planes, geometry)
            for out in _written_as_images(some_planes[some]):
                _grad_input(images, flat, out, geometry.image())


def _volumes_grad_weight(
    x: Array, dy: Array, shape: Sizes, geometry: Geometry, bias: bool
) -> tuple[Array, Array | None]:
    outputs, channels, depth, *kernel = shape
    planes = _planes_of_taps(geometry, depth)
    flat = (outputs, depth * channels, *kernel)
    gw: Array | None = None
    gb: Array | None = None
    for some in _chunks(x, planes.images, depth):
        images = _as_images(x[some], planes, geometry)
        gradients = _as_images(dy[some], _Planes([0], 1, planes.images), geometry)
        w, b = grad_weight(images, gradients, flat, geometry.image(), bias)
        gw = w if gw is None else gw + w
        gb = b if gb is None or b is None else gb + b
    assert gw is not None
    return contiguous(gw.reshape(outputs, depth, channels, *kernel).swapaxes(1, 2)), gb


class _Planes(NamedTuple):
    """Image i has the planes first[t] + i * step of the volume, for all t; zero outside of it."""

    first: list[int]
    step: int
    images: int


def _planes_of_taps(geometry: Geometry, depth: int) -> _Planes:
    first = [tap * geometry.dilation[0] - geometry.padding[0] for tap in range(depth)]
    return _Planes(first, geometry.stride[0], geometry.out_size[0])


def _chunks(volumes: Array, images: int, taps: int) -> Iterator[slice]:
    """Some examples at a time, at least one slice."""
    n, c, _, h, w = volumes.shape
    count = max(_CHUNK_BYTES // max(images * taps * c * h * w * volumes.itemsize, 1), 1)
    for begin in range(0, max(n, 1), count):
        yield slice(begin, min(begin + count, n))


def _as_images(volumes: Array, planes: _Planes, geometry: Geometry) -> Array:
    """[N * planes.images, groups * taps * channels of a group, H, W], in the volumes' format."""
    (n, c, depth, h, w), groups = volumes.shape, geometry.groups
    first, step, count = planes
    from_ = volumes.reshape(n, groups, c // groups, depth, h, w).transpose(0, 3, 1, 2, 4, 5)
    shape = (n * count, len(first) * c, h, w)
    images = new_image(shape, volumes.dtype, volumes, is_channels_last(volumes))
    to = images.reshape(n, count, groups, len(first), c // groups, h, w)
    for tap, at in enumerate(first):
        begin = min(max(-(at // step), 0), count)
        end = min(max(-((at - depth) // step), begin), count)
        to[:, :begin, :, tap] = 0
        to[:, end:, :, tap] = 0
        assign(to[:, begin:end, :, tap], from_[:, at + begin * step : at + end * step : step])
    return images


def _written_as_images(volumes: Array) -> Iterator[Array]:
    """An array [N * D, C, H, W] whose contents go to `volumes` [N, C, D, H, W] afterwards."""
    by_plane = volumes.swapaxes(1, 2)
    if volumes.shape[0] == 1:
        yield by_plane[0]
        return
    n, count, *image = by_plane.shape
    images = new_image((n * count, *image), volumes.dtype, volumes, is_channels_last(volumes))
    yield images
    assign(by_plane, images.reshape(by_plane.shape))
