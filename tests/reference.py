"""What every operation should compute, in plain NumPy: forward and backward of each.

The functions follow the dtype of their inputs. Called with float64 (or long double) they are the
truth that kernels are measured against; called with the kernel's own dtype they show what error
is normal. The backward functions are themselves checked by test_reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Reference:
    """forward(*inputs, **kwargs) -> y;  backward(dy, *inputs, **kwargs) -> one gradient per input.

    A gradient is None where the input is not differentiable.
    """

    forward: Callable[..., Array]
    backward: Callable[..., Sequence[Array | None]] | None


REFERENCES: dict[str, Reference] = {}


def reference(name: str) -> Callable[[type], type]:
    """Class decorator: registers the class's `forward` and, if there is one, `backward`."""

    def register(functions: type) -> type:
        assert name not in REFERENCES, f"two references for {name}"
        REFERENCES[name] = Reference(functions.forward, getattr(functions, "backward", None))
        return functions

    return register


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sums `grad` over the axes along which an operand of `shape` was broadcast."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True).reshape(shape)


def vectorize(f: Callable[[float], float]) -> Callable[[Array], Array]:
    """A function of the standard library over an array, computed in double precision."""

    def over(x: Array) -> Array:
        flat = [f(float(v)) for v in x.ravel()]
        return np.array(flat, dtype=np.float64).reshape(x.shape).astype(x.dtype)

    return over


# ---- elementwise ----

erf = vectorize(math.erf)


def sigmoid(x: Array) -> Array:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: Array) -> Array:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def gelu_slope(x: Array) -> Array:
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return (1 + erf(x / math.sqrt(2))) / 2 + x * density


def unary(name: str, f: Callable[..., Array], slope: Callable[..., Any]) -> None:
    """y = f(x; **kwargs) element by element, and its derivative slope(x; **kwargs)."""
    REFERENCES[name] = Reference(f, lambda g, x, **kwargs: (g * slope(x, **kwargs),))


unary("neg", np.negative, lambda x: -1)
unary("abs", np.abs, np.sign)
unary("square", np.square, lambda x: 2 * x)
unary("reciprocal", np.reciprocal, lambda x: -1 / (x * x))
unary("sqrt", np.sqrt, lambda x: 0.5 / np.sqrt(x))
unary("rsqrt", lambda x: 1 / np.sqrt(x), lambda x: -0.5 / (x * np.sqrt(x)))
unary("exp", np.exp, np.exp)
unary("expm1", np.expm1, np.exp)
unary("log", np.log, lambda x: 1 / x)
unary("log1p", np.log1p, lambda x: 1 / (1 + x))
unary("sin", np.sin, np.cos)
unary("cos", np.cos, lambda x: -np.sin(x))
unary("tanh", np.tanh, lambda x: 1 - np.tanh(x) ** 2)
unary("erf", erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x))
unary("sigmoid", sigmoid, lambda x: sigmoid(x) * sigmoid(-x))
unary("relu", lambda x: np.maximum(x, 0), lambda x: ~(x <= 0))
unary(
    "leaky_relu",
    lambda x, negative_slope: np.where(x > 0, x, x * negative_slope),
    lambda x, negative_slope: np.where(x > 0, 1, negative_slope).astype(x.dtype),
)
unary(
    "softplus",
    lambda x, beta=1.0, threshold=20.0: np.where(
        beta * x > threshold, x, softplus(beta * x) / beta
    ),
    lambda x, beta=1.0, threshold=20.0: np.where(beta * x > threshold, 1, sigmoid(beta * x)),
)
unary(
    "elu",
    lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    lambda x, alpha=1.0: np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0))),
)
unary("gelu", gelu, gelu_slope)
unary(
    "silu",
    lambda x: x * sigmoid(x),
    lambda x: sigmoid(x) * (1 + x * sigmoid(-x)),
)
unary(
    "clamp",
    lambda x, min=None, max=None: np.clip(x, min, max),
    lambda x, min=-math.inf, max=math.inf: (x >= min) & (x <= max),
)


def binary(name: str, f: Callable[..., Array], slopes: Callable[..., tuple[Any, Any]]) -> None:
    """y = f(a, b) with broadcasting, and both partial derivatives."""

    def backward(g: Array, a: Array, b: Array, **kwargs: Any) -> tuple[Array, Array]:
        da, db = slopes(a, b, **kwargs)
        return unbroadcast(g * da, a.shape), unbroadcast(g * db, b.shape)

    REFERENCES[name] = Reference(f, backward)


def prefer(better: Array, a: Array, b: Array) -> Array:
    """The slope of maximum or minimum for `a`: a tie gives half to each side, as in PyTorch."""
    return np.where(a == b, 0.5, better).astype(a.dtype)


binary("add", np.add, lambda a, b: (1, 1))
binary("sub", np.subtract, lambda a, b: (1, -1))
binary("mul", np.multiply, lambda a, b: (b, a))
binary("div", np.divide, lambda a, b: (1 / b, -a / (b * b)))
binary("pow", np.power, lambda a, b: (b * a ** (b - 1), a**b * np.log(a)))
binary("maximum", np.maximum, lambda a, b: (prefer(a > b, a, b), prefer(b > a, a, b)))
binary("minimum", np.minimum, lambda a, b: (prefer(a < b, a, b), prefer(b < a, a, b)))


@reference("where")
class Where:
    @staticmethod
    def forward(condition: Array, a: Array, b: Array) -> Array:
        return np.where(condition, a, b)

    @staticmethod
    def backward(g: Array, condition: Array, a: Array, b: Array) -> tuple[None, Array, Array]:
        return (
            None,
            unbroadcast(np.where(condition, g, 0), a.shape),
            unbroadcast(np.where(condition, 0, g), b.shape),
        )


# ---- reduce ----

Axis = int | tuple[int, ...] | None


def stretch(g: Array, x: Array, dim: Axis, keepdim: bool) -> Array:
    """The result of a reduction over `dim` brought back to a shape that broadcasts with x."""
    if dim is None:
        return g.reshape((1,) * x.ndim)
    return g if keepdim else np.expand_dims(g, dim)


@reference("sum")
class Sum:
    @staticmethod
    def forward(x: Array, dim: Axis = None, keepdim: bool = False) -> Array:
        return x.sum(axis=dim, keepdims=keepdim)

    @staticmethod
    def backward(g: Array, x: Array, dim: Axis = None, keepdim: bool = False) -> tuple[Array]:
        return (np.broadcast_to(stretch(g, x, dim, keepdim), x.shape),)


@reference("mean")
class Mean:
    @staticmethod
    def forward(x: Array, dim: Axis = None, keepdim: bool = False) -> Array:
        return x.mean(axis=dim, keepdims=keepdim)

    @staticmethod
    def backward(g: Array, x: Array, dim: Axis = None, keepdim: bool = False) -> tuple[Array]:
        share = g.dtype.type(g.size) / x.size
        return (np.broadcast_to(stretch(g * share, x, dim, keepdim), x.shape),)


@reference("var")
class Var:
    @staticmethod
    def forward(x: Array, dim: Axis = None, correction: int = 1, keepdim: bool = False) -> Array:
        return x.var(axis=dim, ddof=correction, keepdims=keepdim)

    @staticmethod
    def backward(
        g: Array, x: Array, dim: Axis = None, correction: int = 1, keepdim: bool = False
    ) -> tuple[Array]:
        g = stretch(g, x, dim, keepdim)
        count = x.size // g.size
        return (g * 2 * (x - x.mean(axis=dim, keepdims=True)) / (count - correction),)


@reference("std")
class Std:
    @staticmethod
    def forward(x: Array, dim: Axis = None, correction: int = 1, keepdim: bool = False) -> Array:
        return x.std(axis=dim, ddof=correction, keepdims=keepdim)

    @staticmethod
    def backward(
        g: Array, x: Array, dim: Axis = None, correction: int = 1, keepdim: bool = False
    ) -> tuple[Array]:
        s = x.std(axis=dim, ddof=correction, keepdims=keepdim)
        return (Var.backward(g / (2 * s), x, dim, correction, keepdim)[0],)


def extremum(best: Callable[..., Array]) -> type:
    class Extremum:
        @staticmethod
        def forward(x: Array, dim: Axis = None, keepdim: bool = False) -> Array:
            return best(x, axis=dim, keepdims=keepdim)

        @staticmethod
        def backward(g: Array, x: Array, dim: Axis = None, keepdim: bool = False) -> tuple[Array]:
            hit = x == best(x, axis=dim, keepdims=True)
            return (stretch(g, x, dim, keepdim) * hit / hit.sum(axis=dim, keepdims=True),)

    return Extremum


reference("amax")(extremum(np.max))
reference("amin")(extremum(np.min))


@reference("prod")
class Prod:
    @staticmethod
    def forward(x: Array, dim: int) -> Array:
        return x.prod(axis=dim)

    @staticmethod
    def backward(g: Array, x: Array, dim: int) -> tuple[Array]:
        return (np.expand_dims(g * x.prod(axis=dim), dim) / x,)


@reference("cumsum")
class Cumsum:
    @staticmethod
    def forward(x: Array, dim: int) -> Array:
        return x.cumsum(axis=dim)

    @staticmethod
    def backward(g: Array, x: Array, dim: int) -> tuple[Array]:
        return (np.flip(np.flip(g, dim).cumsum(axis=dim), dim),)


# ---- matmul ----


def transpose(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


@reference("matmul")
class Matmul:
    forward = staticmethod(np.matmul)

    @staticmethod
    def backward(g: Array, a: Array, b: Array) -> tuple[Array, Array]:
        a2 = a[None, :] if a.ndim == 1 else a
        b2 = b[:, None] if b.ndim == 1 else b
        g = np.expand_dims(g, -1) if b.ndim == 1 else g
        g = np.expand_dims(g, -2) if a.ndim == 1 else g
        da = unbroadcast(g @ transpose(b2), a2.shape)
        db = unbroadcast(transpose(a2) @ g, b2.shape)
        return da.reshape(a.shape), db.reshape(b.shape)


@reference("linear")
class Linear:
    @staticmethod
    def forward(x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def backward(g: Array, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, ...]:
        rows = g.reshape(-1, g.shape[-1])
        dw = rows.T @ x.reshape(-1, x.shape[-1])
        return (g @ weight, dw) if bias is None else (g @ weight, dw, rows.sum(axis=0))


# ---- conv ----


class Taps:
    """Where the taps of sliding windows read: padded planes, one strided slice per tap.

    Windows have as many dimensions as x has beyond examples and channels.
    """

    def __init__(self, x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
        self.in_size = x.shape[2:]

        def each(value: Any) -> tuple[int, ...]:
            return value if isinstance(value, tuple) else (value,) * len(self.in_size)

        self.kernel, self.stride = each(kernel), each(stride)
        self.padding, self.dilation = each(padding), each(dilation)

    def out_size(self, ceil_mode: bool = False) -> tuple[int, ...]:
        sizes = []
        for n, k, s, p, d in zip(
            self.in_size, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            room = n + 2 * p - d * (k - 1) - 1
            out = (-(-room // s) if ceil_mode else room // s) + 1
            sizes.append(out - 1 if ceil_mode and (out - 1) * s >= n + p else out)
        return tuple(sizes)

    def pad(self, x: Array, value: float, out: tuple[int, ...]) -> Array:
        widths = [(0, 0)] * (x.ndim - len(out))
        for n, o, k, s, p, d in zip(
            x.shape[-len(out) :], out, self.kernel, self.stride, self.padding, self.dilation,
            strict=True,
        ):  # fmt: skip
            widths.append((p, max(p, (o - 1) * s + d * (k - 1) + 1 - n - p)))
        return np.pad(x, widths, constant_values=value)

    def crop(self, padded: Array) -> Array:
        spans = [slice(p, p + n) for p, n in zip(self.padding, self.in_size, strict=True)]
        return padded[(..., *spans)]

    def slices(self, out: tuple[int, ...]) -> list[tuple[tuple[int, ...], Any]]:
        """(tap, index of the tap's elements for all windows), the last dimension fastest."""
        result = []
        for tap in np.ndindex(self.kernel):
            spans = [
                slice(t * d, t * d + s * (o - 1) + 1, s)
                for t, d, s, o in zip(tap, self.dilation, self.stride, out, strict=True)
            ]
            result.append((tap, (..., *spans)))
        return result


def split(x: Array, groups: int) -> Array:
    """[N, C, ...] as [N, groups, C / groups, ...]."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


@reference("conv1d")
@reference("conv2d")
@reference("conv3d")
class Conv:
    """y[n, o] = bias[o] + sum of weight[o, c] over the windows of x[n, c], within each group."""

    @staticmethod
    def forward(
        x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Array:  # fmt: skip
        taps = Taps(x, weight.shape[2:], stride, padding, dilation)
        out = taps.out_size()
        planes = split(taps.pad(x, 0, out), groups)
        w = weight.reshape(groups, -1, *weight.shape[1:])
        y = np.zeros((x.shape[0], groups, w.shape[1], *out), x.dtype)
        for tap, at in taps.slices(out):
            y += np.einsum("goc,ngc...->ngo...", w[(..., *tap)], planes[at])
        y = y.reshape(x.shape[0], weight.shape[0], *out)
        return y if bias is None else y + bias.reshape(-1, *(1,) * len(out))

    @staticmethod
    def backward(
        g: Array, x: Array, weight: Array, bias: Array | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> tuple[Array, ...]:  # fmt: skip
        taps = Taps(x, weight.shape[2:], stride, padding, dilation)
        out = g.shape[2:]
        padded = taps.pad(x, 0, out)
        planes = split(padded, groups)
        w = weight.reshape(groups, -1, *weight.shape[1:])
        dy = split(g, groups)
        dx, dw = np.zeros_like(planes), np.zeros_like(w)
        flat = dy.reshape(*dy.shape[:3], math.prod(out))
        for tap, at in taps.slices(out):
            dx[at] += np.einsum("goc,ngo...->ngc...", w[(..., *tap)], dy)
            seen = planes[at].reshape(*planes.shape[:3], math.prod(out))
            dw[(..., *tap)] = np.einsum("ngop,ngcp->goc", flat, seen)
        grads = (taps.crop(dx.reshape(padded.shape)), dw.reshape(weight.shape))
        return grads if bias is None else (*grads, g.sum((0, *range(2, g.ndim))))


@reference("conv_transpose1d")
@reference("conv_transpose2d")
@reference("conv_transpose3d")
class ConvTranspose:
    """The gradient of a convolution's input."""

    @staticmethod
    def forward(
        x: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Array:  # fmt: skip
        taps = Taps(x, weight.shape[2:], stride, padding, dilation)
        extra = Taps(x, output_padding, 1, 0, 1).kernel
        size = [
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, k, s, p, d, e in zip(
                taps.in_size, taps.kernel, taps.stride, taps.padding, taps.dilation, extra,
                strict=True,
            )
        ]  # fmt: skip
        image = np.zeros((x.shape[0], weight.shape[1] * groups, *size), x.dtype)
        y = Conv.backward(x, image, weight, None, stride, padding, dilation, groups)[0]
        return y if bias is None else y + bias.reshape(-1, *(1,) * len(size))

    @staticmethod
    def backward(
        g: Array, x: Array, weight: Array, bias: Array | None = None, stride: Any = 1,
        padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> tuple[Array, ...]:  # fmt: skip
        dx = Conv.forward(g, weight, None, stride, padding, dilation, groups)
        dx = dx[tuple(slice(n) for n in x.shape)]  # output padding may have room for more
        dw = Conv.backward(x, g, weight, None, stride, padding, dilation, groups)[1]
        return (dx, dw) if bias is None else (dx, dw, g.sum((0, *range(2, g.ndim))))


# ---- pool ----


@reference("max_pool2d")
@reference("max_pool3d")
class MaxPool:
    """The gradient goes to the first of equal maxima."""

    @staticmethod
    def forward(
        x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Array:  # fmt: skip
        taps = Taps(x, kernel_size, stride or kernel_size, padding, dilation)
        out = taps.out_size(ceil_mode)
        planes = taps.pad(x, -np.inf, out)
        return np.max(np.stack([planes[at] for _, at in taps.slices(out)]), 0)

    @staticmethod
    def backward(
        g: Array, x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False,
    ) -> tuple[Array]:  # fmt: skip
        taps = Taps(x, kernel_size, stride or kernel_size, padding, dilation)
        out = taps.out_size(ceil_mode)
        planes = taps.pad(x, -np.inf, out)
        best = np.argmax(np.stack([planes[at] for _, at in taps.slices(out)]), 0)
        dx = np.zeros_like(planes)
        for k, (_, at) in enumerate(taps.slices(out)):
            dx[at] += np.where(best == k, g, 0)
        return (taps.crop(dx),)


@reference("avg_pool2d")
@reference("avg_pool3d")
class AvgPool:
    @staticmethod
    def cells(
        x: Array, taps: Taps, out: tuple[int, ...], count_pad: bool, override: int | None
    ) -> Array:
        """What each window's sum is divided by."""
        if override:
            return np.full(out, override, x.dtype)
        ones = np.ones((1, 1, *taps.in_size), x.dtype)
        if count_pad:
            widths = [(0, 0)] * 2 + [(p, p) for p in taps.padding]
            ones = np.pad(ones, widths, constant_values=1)
            taps = Taps(ones, taps.kernel, taps.stride, 0, 1)
        planes = taps.pad(ones, 0, out)
        return np.sum([planes[at] for _, at in taps.slices(out)], axis=0)

    @staticmethod
    def forward(
        x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Array:  # fmt: skip
        taps = Taps(x, kernel_size, stride or kernel_size, padding, 1)
        out = taps.out_size(ceil_mode)
        planes = taps.pad(x, 0, out)
        total = np.sum([planes[at] for _, at in taps.slices(out)], axis=0)
        return total / AvgPool.cells(x, taps, out, count_include_pad, divisor_override)

    @staticmethod
    def backward(
        g: Array, x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> tuple[Array]:  # fmt: skip
        taps = Taps(x, kernel_size, stride or kernel_size, padding, 1)
        out = taps.out_size(ceil_mode)
        share = g / AvgPool.cells(x, taps, out, count_include_pad, divisor_override)
        dx = np.zeros_like(taps.pad(x, 0, out))
        for _, at in taps.slices(out):
            dx[at] += share
        return (taps.crop(dx),)


# ---- norm ----


def _groups(x: Array, groups: int) -> Array:
    return x.reshape(x.shape[0] * groups, -1)


class Normalised:
    """Rows of x as xhat = (x - mean) s, and what turns the gradient of xhat into that of x."""

    def __init__(self, rows: Array, eps: float, centred: bool = True) -> None:
        mean = rows.mean(1, keepdims=True) if centred else 0
        self.s = 1 / np.sqrt(((rows - mean) ** 2).mean(1, keepdims=True) + eps)
        self.xhat = (rows - mean) * self.s
        self.centred = centred

    def backward(self, h: Array) -> Array:
        inner = h - self.xhat * (h * self.xhat).mean(1, keepdims=True)
        return (inner - h.mean(1, keepdims=True) if self.centred else inner) * self.s


@reference("layer_norm")
class LayerNorm:
    """Over the last dimension."""

    @staticmethod
    def forward(x: Array, w: Array, b: Array, normalized_shape: Any, eps: float = 1e-5) -> Array:
        return Normalised(x.reshape(-1, x.shape[-1]), eps).xhat.reshape(x.shape) * w + b

    @staticmethod
    def backward(
        g: Array, x: Array, w: Array, b: Array, normalized_shape: Any, eps: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        g, rows = g.reshape(-1, x.shape[-1]), Normalised(x.reshape(-1, x.shape[-1]), eps)
        return rows.backward(g * w).reshape(x.shape), (g * rows.xhat).sum(0), g.sum(0)


@reference("rms_norm")
class RMSNorm:
    @staticmethod
    def forward(x: Array, w: Array, normalized_shape: Any, eps: float) -> Array:
        return Normalised(x.reshape(-1, x.shape[-1]), eps, False).xhat.reshape(x.shape) * w

    @staticmethod
    def backward(
        g: Array, x: Array, w: Array, normalized_shape: Any, eps: float
    ) -> tuple[Array, Array]:
        g, rows = g.reshape(-1, x.shape[-1]), Normalised(x.reshape(-1, x.shape[-1]), eps, False)
        return rows.backward(g * w).reshape(x.shape), (g * rows.xhat).sum(0)


@reference("group_norm")
class GroupNorm:
    """Instance norm has as many groups as channels."""

    @staticmethod
    def forward(
        x: Array, w: Array, b: Array, num_groups: int | None = None, eps: float = 1e-5
    ) -> Array:
        groups = num_groups or x.shape[1]
        shape = (-1, *[1] * (x.ndim - 2))
        xhat = Normalised(_groups(x, groups), eps).xhat.reshape(x.shape)
        return xhat * w.reshape(shape) + b.reshape(shape)

    @staticmethod
    def backward(
        g: Array, x: Array, w: Array, b: Array, num_groups: int | None = None, eps: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        groups = num_groups or x.shape[1]
        rows = Normalised(_groups(x, groups), eps)
        h = g * w.reshape(-1, *[1] * (x.ndim - 2))
        dims = (0, *range(2, x.ndim))
        dx = rows.backward(_groups(h, groups)).reshape(x.shape)
        return dx, (g * rows.xhat.reshape(x.shape)).sum(dims), g.sum(dims)


@reference("batch_norm")
class BatchNorm:
    """In training."""

    @staticmethod
    def rows(x: Array) -> Array:
        return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)

    @staticmethod
    def forward(x: Array, w: Array, b: Array, eps: float = 1e-5) -> Array:
        shape = (-1, *[1] * (x.ndim - 2))
        xhat = Normalised(BatchNorm.rows(x), eps).xhat
        xhat = np.moveaxis(xhat.reshape(x.shape[1], x.shape[0], *x.shape[2:]), 0, 1)
        return xhat * w.reshape(shape) + b.reshape(shape)

    @staticmethod
    def backward(
        g: Array, x: Array, w: Array, b: Array, eps: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        rows, g = Normalised(BatchNorm.rows(x), eps), BatchNorm.rows(g)
        dx = rows.backward(g * w[:, None])
        dx = np.moveaxis(dx.reshape(x.shape[1], x.shape[0], *x.shape[2:]), 0, 1)
        return dx, (g * rows.xhat).sum(1), g.sum(1)


# ---- softmax ----


def log_sum_exp(x: Array, dim: int) -> Array:
    """log sum exp(x) over `dim`, kept; a row of -inf gives -inf."""
    top = x.max(axis=dim, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis=dim, keepdims=True)) + top


@reference("softmax")
class Softmax:
    @staticmethod
    def forward(x: Array, dim: int) -> Array:
        e = np.exp(x - x.max(axis=dim, keepdims=True))
        return e / e.sum(axis=dim, keepdims=True)

    @staticmethod
    def backward(g: Array, x: Array, dim: int) -> tuple[Array]:
        y = Softmax.forward(x, dim)
        return (y * (g - (g * y).sum(axis=dim, keepdims=True)),)


@reference("log_softmax")
class LogSoftmax:
    @staticmethod
    def forward(x: Array, dim: int) -> Array:
        return x - log_sum_exp(x, dim)

    @staticmethod
    def backward(g: Array, x: Array, dim: int) -> tuple[Array]:
        return (g - np.exp(LogSoftmax.forward(x, dim)) * g.sum(axis=dim, keepdims=True),)


@reference("logsumexp")
class LogSumExp:
    @staticmethod
    def forward(x: Array, dim: int, keepdim: bool = False) -> Array:
        y = log_sum_exp(x, dim)
        return y if keepdim else np.squeeze(y, dim)

    @staticmethod
    def backward(g: Array, x: Array, dim: int, keepdim: bool = False) -> tuple[Array]:
        g = g if keepdim else np.expand_dims(g, dim)
        return (g * np.exp(x - log_sum_exp(x, dim)),)


# ---- attention ----


@reference("attention")
class Attention:
    """q [..., H, L, D], k and v with H or fewer heads; a mask is added or, if bool, selects."""

    @staticmethod
    def weights(
        q: Array, k: Array, mask: Array | None, is_causal: bool, scale: float | None
    ) -> tuple[Array, Array, float]:
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        k = k.repeat(q.shape[-3] // k.shape[-3], -3) if q.ndim > 2 else k
        scores = q @ k.swapaxes(-1, -2) * q.dtype.type(scale)
        if mask is not None:
            scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
        if is_causal:
            scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e30))
        return e / e.sum(-1, keepdims=True), k, scale

    @staticmethod
    def forward(
        q: Array, k: Array, v: Array, mask: Array | None = None, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Array:  # fmt: skip
        p, _, _ = Attention.weights(q, k, mask, is_causal, scale)
        return p @ (v.repeat(q.shape[-3] // v.shape[-3], -3) if q.ndim > 2 else v)

    @staticmethod
    def backward(
        dy: Array, q: Array, k: Array, v: Array, mask: Array | None = None,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> tuple[Array | None, ...]:  # fmt: skip
        p, keys, factor = Attention.weights(q, k, mask, is_causal, scale)
        group = q.shape[-3] // k.shape[-3] if q.ndim > 2 else 1
        values = v.repeat(group, -3) if q.ndim > 2 else v
        dp = dy @ values.swapaxes(-1, -2)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        factor = q.dtype.type(factor)

        def of_group(grad: Array, shape: tuple[int, ...]) -> Array:
            return grad.reshape(*shape[:-2], group, *shape[-2:]).sum(-3)

        dk = of_group(ds.swapaxes(-1, -2) @ q * factor, k.shape)
        dv = of_group(p.swapaxes(-1, -2) @ dy, v.shape)
        gradients = (ds @ keys * factor, dk, dv)
        if mask is None:
            return gradients
        return (*gradients, None if mask.dtype == bool else unbroadcast(ds, mask.shape))


# ---- embedding ----


@reference("embedding")
class Embedding:
    @staticmethod
    def forward(index: Array, weight: Array) -> Array:
        return weight[index]

    @staticmethod
    def backward(g: Array, index: Array, weight: Array) -> tuple[None, Array]:
        dw = np.zeros_like(weight)
        np.add.at(dw, index, g)
        return None, dw


@reference("embedding_bag")
class EmbeddingBag:
    """Bags are the rows of a 2-D index."""

    @staticmethod
    def forward(index: Array, weight: Array, mode: str = "mean") -> Array:
        rows = weight[index]
        if mode == "max":
            return rows.max(axis=1)
        return rows.sum(axis=1) if mode == "sum" else rows.mean(axis=1)

    @staticmethod
    def backward(g: Array, index: Array, weight: Array, mode: str = "mean") -> tuple[None, Array]:
        dw = np.zeros_like(weight)
        if mode == "max":
            best = np.take_along_axis(index, weight[index].argmax(axis=1), axis=1)
            np.add.at(dw, (best, np.arange(weight.shape[1])), g)
        else:
            share = g if mode == "sum" else g / weight.dtype.type(index.shape[1])
            np.add.at(dw, index, np.broadcast_to(share[:, None], (*index.shape, g.shape[1])))
        return None, dw


# ---- loss ----


def pointwise(
    name: str, value: Callable[..., Array], dx: Callable[..., Any], dt: Callable[..., Any]
) -> None:
    """A loss value(x, t; p) element by element, its derivatives in x and t, and its reductions."""

    def scale(x: Array, reduction: str) -> Any:
        return x.dtype.type(1 / x.size if reduction == "mean" and x.size else 1)

    def forward(x: Array, t: Array, *p: Array, reduction: str = "mean", **kwargs: Any) -> Array:
        y = np.asarray(value(x, t, *p, **kwargs))
        if reduction == "none":
            return y
        return np.asarray(y.mean() if reduction == "mean" else y.sum())

    def backward(
        g: Array, x: Array, t: Array, *p: Array, reduction: str = "mean", **kwargs: Any
    ) -> tuple[Array | None, ...]:
        g = g * scale(x, reduction)
        return (g * dx(x, t, *p, **kwargs), g * dt(x, t, *p, **kwargs), *(None for _ in p))

    REFERENCES[name] = Reference(forward, backward)


def huber(d: Array, delta: float) -> Array:
    return np.where(np.abs(d) <= delta, d * d / 2, delta * (np.abs(d) - delta / 2))


pointwise(
    "mse_loss",
    lambda x, t: (x - t) * (x - t),
    lambda x, t: 2 * (x - t),
    lambda x, t: 2 * (t - x),
)
pointwise(
    "l1_loss",
    lambda x, t: np.abs(x - t),
    lambda x, t: np.nan_to_num(np.sign(x - t)),
    lambda x, t: np.nan_to_num(np.sign(t - x)),
)
pointwise(
    "huber_loss",
    lambda x, t, delta=1.0: huber(x - t, delta),
    lambda x, t, delta=1.0: np.clip(x - t, -delta, delta),
    lambda x, t, delta=1.0: np.clip(t - x, -delta, delta),
)
pointwise(
    "smooth_l1_loss",
    lambda x, t, beta=1.0: huber(x - t, beta) / beta,
    lambda x, t, beta=1.0: np.clip(x - t, -beta, beta) / beta,
    lambda x, t, beta=1.0: np.clip(t - x, -beta, beta) / beta,
)
pointwise(
    "binary_cross_entropy",
    lambda x, t: -(t * np.log(x) + (1 - t) * np.log1p(-x)),
    lambda x, t: (x - t) / (x * (1 - x)),
    lambda x, t: np.log1p(-x) - np.log(x),
)
pointwise(
    "binary_cross_entropy_with_logits",
    lambda x, t: (1 - t) * x + softplus(-x),
    lambda x, t: sigmoid(x) - t,
    lambda x, t: -x,
)
pointwise(
    "kl_div",
    lambda x, t, log_target=False: np.exp(t) * (t - x) if log_target else t * (np.log(t) - x),
    lambda x, t, log_target=False: -np.exp(t) if log_target else -t,
    lambda x, t, log_target=False: np.exp(t) * (t - x + 1) if log_target else np.log(t) + 1 - x,
)


def along_classes(labels: Array, x: Array) -> Array:
    """One-hot labels of x's shape, classes along dimension 1."""
    return np.moveaxis(np.eye(x.shape[1], dtype=x.dtype)[labels], -1, 1)


@reference("cross_entropy")
class CrossEntropy:
    @staticmethod
    def target(x: Array, labels: Array, smoothing: float) -> Array:
        share = x.dtype.type(smoothing / x.shape[1])
        return along_classes(labels, x) * x.dtype.type(1 - smoothing) + share

    @staticmethod
    def forward(x: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
        t = CrossEntropy.target(x, labels, label_smoothing)
        return np.asarray(-(t * LogSoftmax.forward(x, 1)).sum(axis=1).mean())

    @staticmethod
    def backward(
        g: Array, x: Array, labels: Array, label_smoothing: float = 0.0
    ) -> tuple[Array, None]:
        t = CrossEntropy.target(x, labels, label_smoothing)
        return (Softmax.forward(x, 1) - t) * (g / x.dtype.type(labels.size)), None


@reference("nll_loss")
class NLLLoss:
    @staticmethod
    def forward(x: Array, labels: Array, reduction: str = "mean") -> Array:
        each = -(along_classes(labels, x) * x).sum(axis=1)
        return each if reduction == "none" else np.asarray(each.mean())

    @staticmethod
    def backward(g: Array, x: Array, labels: Array, reduction: str = "mean") -> tuple[Array, None]:
        share = g / x.dtype.type(labels.size) if reduction == "mean" else np.expand_dims(g, 1)
        return -along_classes(labels, x) * share, None
