"""Initialisers: fill a tensor in place, outside the graph, and return it. D2L sections 5.4 and 6.3.

Random ones draw from grebe's generator (`grebe.manual_seed`) or from `generator`. All raise
TypeError for what is no tensor and ValueError for a parameter that has no shape yet.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .._cpu import TensorBase, bump
from ..autograd import no_grad
from ..dtypes import is_floating
from ..ops.creation import empty
from ..ops.random import randperm
from ..tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

F = TypeVar("F", bound=Callable[..., Tensor])

_LINEAR = {
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}


def _initialiser(function: F) -> F:
    """Checks the tensor and runs `function` unrecorded."""

    @functools.wraps(function)
    def checked(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(tensor, TensorBase):
            raise TypeError(
                f"{function.__name__}: tensor must be a Tensor, got {type(tensor).__name__}"
            )
        with no_grad():
            return function(tensor, *args, **kwargs)

    return checked  # type: ignore[return-value]


def _need_dims(name: str, tensor: Tensor, allowed: tuple[int, ...]) -> None:
    if tensor.ndim not in allowed:
        dims = " or ".join(map(str, allowed))
        raise ValueError(
            f"{name}: only tensors with {dims} dimensions are supported, got shape "
            f"{list(tensor.shape)}"
        )


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps a layer's variance behind `nonlinearity`.

    1 for linear, conv and sigmoid, 5/3 for tanh, √2 for relu, √(2 / (1 + param²)) for leaky_relu
    (param: its slope, default 0.01), 3/4 for selu. Raises ValueError for other names.
    """
    if nonlinearity in _LINEAR or nonlinearity == "sigmoid":
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, (int, float)):
            raise ValueError(f"calculate_gain: negative_slope {param!r} is not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"calculate_gain: unsupported nonlinearity {nonlinearity!r}")


def fans(name: str, tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [out, in, *kernel]."""
    if tensor.ndim < 2:
        raise ValueError(
            f"{name}: fan in and fan out can not be computed for a tensor with fewer than 2 "
            f"dimensions, got shape {list(tensor.shape)}"
        )
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    """gain / √fan. He et al. 2015."""
    fan_in, fan_out = fans(name, tensor)
    if mode.lower() not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = fan_in if mode.lower() == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _is_empty(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=4)
        return True
    return False


@_initialiser
def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Values from U(a, b)."""
    result: Tensor = tensor.uniform_(a, b, generator=generator)
    return result


@_initialiser
def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Values from N(mean, std²)."""
    result: Tensor = tensor.normal_(mean, std, generator=generator)
    return result


def _normal_cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


@_initialiser
def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Any = None,
) -> Tensor:
    """Values from N(mean, std²) cut to [a, b], by inverting the distribution function.

    Raises ValueError unless a < b and std > 0, and TypeError for integer tensors.
    """
    if not is_floating(tensor.dtype):
        raise TypeError(f"trunc_normal_: expected a floating point tensor, got {tensor.dtype}")
    if not (a < b and std > 0):
        raise ValueError(
            f"trunc_normal_: expected a < b and std > 0, got a={a}, b={b} and std={std}"
        )
    low, high = (a - mean) / std, (b - mean) / std
    flipped = low > 0  # the lower tail holds more digits than the upper one
    if flipped:
        low, high = -high, -low
    draw = empty(tensor.shape, dtype=np.dtype(np.float64))
    draw.uniform_(_normal_cdf(low), _normal_cdf(high), generator=generator)
    values = _normal_quantile(draw.array)
    if flipped:
        values = -values
    tensor.array[...] = np.clip(values * std + mean, a, b)
    bump(tensor)
    return tensor


def _normal_quantile(p: Any) -> Any:
    """The inverse of the normal distribution function, elementwise for a float64 array.

    Acklam's rational approximation (2003), relative error 1.15e-9.
    """
    a = (-39.69683028665376, 220.9460984245205, -275.9285104469687,
         138.3577518672690, -30.66479806614716, 2.506628277459239)  # fmt: skip
    b = (-54.47609879822406, 161.5858368580409, -155.6989798598866,
         66.80131188771972, -13.28068155288572, 1.0)  # fmt: skip
    c = (-0.007784894002430293, -0.3223964580411365, -2.400758277161838,
         -2.549732539343734, 4.374664141464968, 2.938163982698783)  # fmt: skip
    d = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0)
    p = np.clip(p, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    q = p - 0.5
    centre = np.polyval(a, q * q) * q / np.polyval(b, q * q)
    r = np.sqrt(-2 * np.log(np.minimum(p, 1 - p)))
    tail = np.polyval(c, r) / np.polyval(d, r)
    return np.where(np.abs(q) <= 0.47575, centre, np.where(q < 0, tail, -tail))


@_initialiser
def constant_(tensor: Tensor, val: float) -> Tensor:
    """All values `val`."""
    result: Tensor = tensor.fill_(val)
    return result


@_initialiser
def ones_(tensor: Tensor) -> Tensor:
    """All values 1."""
    result: Tensor = tensor.fill_(1.0)
    return result


@_initialiser
def zeros_(tensor: Tensor) -> Tensor:
    """All values 0."""
    result: Tensor = tensor.zero_()
    return result


@_initialiser
def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix. Raises ValueError unless the tensor has 2 dims."""
    _need_dims("eye_", tensor, (2,))
    tensor.zero_()
    np.fill_diagonal(tensor.array, 1)
    return tensor


@_initialiser
def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """A convolution weight [out, in, *kernel] that copies as many channels as possible.

    Raises ValueError unless the tensor has 3 to 5 dims and dim 0 is divisible by groups.
    """
    _need_dims("dirac_", tensor, (3, 4, 5))
    out, channels, *kernel = tensor.shape
    if groups < 1 or out % groups != 0:
        raise ValueError(f"dirac_: dim 0 must be divisible by groups, got {out} and {groups}")
    tensor.zero_()
    centre = tuple(size // 2 for size in kernel)
    per_group = out // groups
    for group in range(groups):
        for channel in range(min(per_group, channels)):
            position = (group * per_group + channel, channel, *centre)
            tensor.array[position] = 1
    return tensor


@_initialiser
def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """U(-a, a), a = gain √(6 / (fan_in + fan_out)). Glorot and Bengio 2010, D2L section 5.4."""
    bound = gain * math.sqrt(6.0 / max(sum(fans("xavier_uniform_", tensor)), 1))
    result: Tensor = tensor.uniform_(-bound, bound, generator=generator)
    return result


@_initialiser
def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """N(0, std²), std = gain √(2 / (fan_in + fan_out)). Glorot and Bengio 2010."""
    std = gain * math.sqrt(2.0 / max(sum(fans("xavier_normal_", tensor)), 1))
    result: Tensor = tensor.normal_(0.0, std, generator=generator)
    return result


@_initialiser
def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """U(-b, b), b = gain √(3 / fan); a: the slope of leaky_relu. He et al. 2015."""
    if _is_empty(tensor):
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    result: Tensor = tensor.uniform_(-bound, bound, generator=generator)
    return result


@_initialiser
def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """N(0, std²), std = gain / √fan; a: the slope of leaky_relu. He et al. 2015."""
    if _is_empty(tensor):
        return tensor
    std = _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity)
    result: Tensor = tensor.normal_(0.0, std, generator=generator)
    return result


@_initialiser
def orthogonal_(tensor: Tensor, gain: float = 1, generator: Any = None) -> Tensor:
    """A random (semi-)orthogonal matrix [shape[0], rest] times gain. Saxe et al. 2013.

    Raises ValueError for fewer than 2 dims.
    """
    if tensor.ndim < 2:
        raise ValueError(
            f"orthogonal_: expected at least 2 dimensions, got shape {list(tensor.shape)}"
        )
    if tensor.numel() == 0:
        return tensor
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    tall = (max(rows, columns), min(rows, columns))
    draw = empty(tall, dtype=np.dtype(np.float64)).normal_(0.0, 1.0, generator=generator)
    q, r = np.linalg.qr(draw.array)
    q *= np.sign(np.diagonal(r))  # makes Q uniformly distributed, Mezzadri 2007
    tensor.array[...] = (gain * (q.T if rows < columns else q)).reshape(tensor.shape)
    bump(tensor)
    return tensor


@_initialiser
def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Any = None) -> Tensor:
    """N(0, std²), with a fraction `sparsity` of each column zero. Martens 2010.

    Raises ValueError unless the tensor has 2 dims and 0 <= sparsity <= 1.
    """
    _need_dims("sparse_", tensor, (2,))
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparse_: sparsity must be between 0 and 1, got {sparsity}")
    rows, columns = tensor.shape
    zeros = math.ceil(sparsity * rows)
    tensor.normal_(0.0, std, generator=generator)
    for column in range(columns):
        gone = randperm(rows, generator=generator).array[:zeros]
        tensor.array[gone, column] = 0
    return tensor
