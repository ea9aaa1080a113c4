"""Functions of neural networks under PyTorch's names: ``import grebe.nn.functional as F``.

What has a kernel lives in `grebe.ops` and is only passed on; here are PyTorch's signatures where
they differ (``inplace``) and functions composed of others.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from .._cpu import Node, record, wrap
from ..amp import low_precision
from ..autograd import grad_enabled, no_grad
from ..backend import empty, like, xp
from ..dtypes import is_floating
from ..ops.activation import gelu, logsigmoid, softplus
from ..ops.attention import scaled_dot_product_attention
from ..ops.compare import where
from ..ops.conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from ..ops.dropout import bias_dropout_add, dropout, dropout1d, dropout2d
from ..ops.elementwise import clamp, sigmoid, tanh
from ..ops.embedding import check_range, embedding, embedding_bag, indices
from ..ops.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    hinge_embedding_loss,
    huber_loss,
    kl_div,
    l1_loss,
    linear_cross_entropy,
    margin_ranking_loss,
    mse_loss,
    nll_loss,
    poisson_nll_loss,
    smooth_l1_loss,
)
from ..ops.matmul import linear
from ..ops.norm import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from ..ops.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from ..tensor import Tensor

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bias_dropout_add",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "elu",
    "embedding",
    "embedding_bag",
    "gelu",
    "glu",
    "group_norm",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "logsigmoid",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "pairwise_distance",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "rms_norm",
    "scaled_dot_product_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
]


def _tensor(name: str, argument: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {argument} must be a Tensor, got {type(value).__name__}")
    return value


def _floating(name: str, value: Any) -> Tensor:
    tensor = _tensor(name, "input", value)
    if not is_floating(tensor.dtype):
        raise TypeError(f"{name}: input must be floating point, got {tensor.dtype}")
    return tensor


def _overwrite(function: Any, input: Tensor, *params: float) -> Tensor:
    """function(input, *params) written into input; what backward needs is saved from a copy."""
    _tensor(function.__name__, "input", input)
    source = input.clone() if grad_enabled() and input.requires_grad else input
    result: Tensor = input.copy_(function(source, *params))
    return result


# ---- activations ----


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0); inplace: overwrites input. D2L section 5.1."""
    return _tensor("relu", "input", input).relu_() if inplace else ops.elementwise.relu(input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope x."""
    if inplace:
        return _overwrite(leaky_relu, input, negative_slope)
    return ops.activation.leaky_relu(input, negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha (eˣ - 1)."""
    if inplace:
        return _overwrite(elu, input, alpha)
    return ops.activation.elu(input, alpha)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x)."""
    if inplace:
        return _overwrite(silu, input)
    return ops.activation.silu(input)


class Hardtanh(Node):
    """dy/dx = 1 strictly between the bounds, else 0."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        x, low, high = self.saved
        inside = (x.array > low) & (x.array < high)
        return where(wrap(inside), grad, 0.0)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """min(max(x, min_val), max_val); the gradient is 0 at the bounds too."""
    if inplace:
        return _overwrite(hardtanh, input, min_val, max_val)
    x = _floating("hardtanh", input)
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val {min_val} must not exceed max_val {max_val}")
    with no_grad():
        y = clamp(x, min_val, max_val)
    return record(Hardtanh, y.array, (input,), (input, min_val, max_val))


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6)."""
    return hardtanh(input, 0.0, 6.0, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6. Howard et al. 2019."""
    if inplace:
        return _overwrite(hardsigmoid, input)
    return relu6(_floating("hardsigmoid", input) + 3.0) / 6.0


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x min(max(x + 3, 0), 6) / 6. Howard et al. 2019."""
    if inplace:
        return _overwrite(hardswish, input)
    x = _floating("hardswish", input)
    middle = where(x <= 3.0, x * (x + 3.0) / 6.0, x)
    return where(x < -3.0, 0.0, middle)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(log(1 + eˣ)). Misra 2019."""
    if inplace:
        return _overwrite(mish, input)
    x = _floating("mish", input)
    return x * tanh(-logsigmoid(-x))


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """scale * elu(x, alpha) with fixed scale and alpha. Klambauer et al. 2017."""
    if inplace:
        return _overwrite(selu, input)
    return elu(_floating("selu", input), _SELU_ALPHA) * _SELU_SCALE


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha (exp(x / alpha) - 1). Barron 2017."""
    if inplace:
        return _overwrite(celu, input, alpha)
    if alpha == 0:
        raise ValueError("celu: alpha must not be 0")
    return elu(_floating("celu", input) / alpha) * alpha


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else value."""
    return (
        _overwrite(_threshold, input, threshold, value)
        if inplace
        else _threshold(input, threshold, value)
    )


def _threshold(input: Tensor, limit: float, value: float) -> Tensor:
    x = _floating("threshold", input)
    return where(x <= limit, value, x)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x where |x| > lambd, else 0."""
    x = _floating("hardshrink", input)
    return where((x <= lambd) & (x >= -lambd), 0.0, x)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved towards 0 by lambd, but not past it."""
    x = _floating("softshrink", input)
    if lambd < 0:
        raise ValueError(f"softshrink: lambd must not be negative, got {lambd}")
    low = where(x < -lambd, x + lambd, x * 0.0)
    return where(x > lambd, x - lambd, low)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    x = _floating("softsign", input)
    return x / (x.abs() + 1.0)


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)."""
    return _floating("tanhshrink", input) - tanh(input)


@low_precision
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight x. weight: one element, or one per channel (dim 1).

    Raises RuntimeError if weight has another number of elements. He et al. 2015.
    """
    x, slope = _floating("prelu", input), _tensor("prelu", "weight", weight)
    if slope.numel() != 1:
        channels = x.shape[1] if x.ndim > 1 else 1
        if slope.ndim != 1 or slope.numel() != channels:
            raise RuntimeError(
                f"prelu: weight must have 1 element or one per channel ({channels}), got shape "
                f"{list(slope.shape)} for an input of shape {list(x.shape)}"
            )
        slope = slope.reshape(channels, *[1] * (x.ndim - 2))
    elif slope.ndim:
        slope = slope.reshape(())
    return where(x > 0, x, slope * x)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b), a and b the halves of x along dim. Dauphin et al. 2017.

    Raises RuntimeError if the size of dim is odd.
    """
    x = _floating("glu", input)
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"glu: dim {dim} is out of range for shape {list(x.shape)}")
    if x.shape[dim] % 2:
        raise RuntimeError(
            f"glu: the size of dim {dim} must be even, got {x.shape[dim]} in shape {list(x.shape)}"
        )
    half = x.shape[dim] // 2
    result: Tensor = x.narrow(dim, 0, half) * sigmoid(x.narrow(dim, half, half))
    return result


def _softmax_dim(name: str, ndim: int) -> int:
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include "
        "dim=X as an argument.",
        stacklevel=4,
    )
    return 0 if ndim in (0, 1, 3) else 1


def _along_dim(name: str, function: Any, input: Tensor, dim: int | None, dtype: Any) -> Tensor:
    x = _tensor(name, "input", input)
    result: Tensor = function(x, _softmax_dim(name, x.ndim) if dim is None else dim, dtype=dtype)
    return result


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """exp(x) / sum of exp(x) along dim; dtype: cast the input first. D2L section 4.1."""
    return _along_dim("softmax", ops.softmax.softmax, input, dim, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """x - log of the sum of exp(x) along dim; dtype: cast the input first."""
    return _along_dim("log_softmax", ops.softmax.log_softmax, input, dim, dtype)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """softmax(-x) along dim."""
    return _along_dim("softmin", ops.softmax.softmin, input, dim, dtype)


# ---- products and distances ----


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_o = x1ᵀ W_o x2 + b_o for x1 [*, I], x2 [*, J], weight [O, I, J], bias [O].

    Raises RuntimeError if sizes do not fit.
    """
    x1, x2 = _tensor("bilinear", "input1", input1), _tensor("bilinear", "input2", input2)
    w = _tensor("bilinear", "weight", weight)
    sizes = (w.shape[1:2], w.shape[2:3]) if w.ndim == 3 else ((), ())
    if w.ndim != 3 or (x1.shape[-1:], x2.shape[-1:]) != sizes or x1.shape[:-1] != x2.shape[:-1]:
        raise RuntimeError(
            "bilinear: expected input1 [*, I], input2 [*, J] and weight [O, I, J], got "
            f"{list(x1.shape)}, {list(x2.shape)} and {list(w.shape)}"
        )
    out, first, second = w.shape
    products = x1 @ w.permute(1, 0, 2).reshape(first, out * second)
    products = products.reshape(*x1.shape[:-1], out, second)
    y: Tensor = (products @ x2.unsqueeze(-1)).squeeze(-1)
    return y if bias is None else y + bias


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    """x / max(‖x‖_p, eps) along dim."""
    x = _floating("normalize", input)
    result: Tensor = x / x.norm(p, dim, keepdim=True).clamp(min=eps)
    return result


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 · x2 / (max(‖x1‖, eps) max(‖x2‖, eps)) along dim, broadcast."""
    a, b = _floating("cosine_similarity", x1), _floating("cosine_similarity", x2)
    a, b = ops.shape.broadcast_tensors(a, b)
    lengths = a.norm(2, dim).clamp(min=eps) * b.norm(2, dim).clamp(min=eps)
    result: Tensor = (a * b).sum(dim) / lengths
    return result


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """‖x1 - x2 + eps‖_p along the last dim."""
    difference = _floating("pairwise_distance", x1) - _floating("pairwise_distance", x2)
    result: Tensor = (difference + eps).norm(p, -1, keepdim=keepdim)
    return result


# ---- lookup ----


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """y[..., c] = 1 where tensor[...] = c, else 0: int64 [*, num_classes]. D2L section 4.1.

    num_classes: -1 takes the largest value plus one. Raises IndexError for a value outside
    0 … num_classes - 1 and TypeError if tensor does not hold integers.
    """
    index = indices("one_hot", tensor, "tensor")
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)):
        raise TypeError(f"one_hot: num_classes must be an int, got {type(num_classes).__name__}")
    if num_classes == -1:
        if index.size == 0:
            raise ValueError("one_hot: num_classes must be given for an empty tensor")
        num_classes = int(index.max()) + 1
    if num_classes < 1:
        raise ValueError(f"one_hot: num_classes must be positive or -1, got {num_classes}")
    check_range("one_hot", index, num_classes)
    library = xp(index)
    y = library.zeros((*index.shape, num_classes), np.int64)
    library.put_along_axis(y, index[..., None].astype(np.int64), 1, axis=-1)
    return wrap(y)


# ---- padding ----


def _pad_pairs(input: Tensor, pad: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) per dim of input, from PyTorch's list that starts at the last dim."""
    if not isinstance(pad, (tuple, list)) or not all(
        isinstance(p, (int, np.integer)) and not isinstance(p, bool) for p in pad
    ):
        raise TypeError(f"pad: pad must be a sequence of ints, got {pad!r}")
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(
            f"pad: expected an even number of at most {2 * input.ndim} paddings for an input of "
            f"shape {list(input.shape)}, got {len(pad)}"
        )
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    pairs += [(0, 0)] * (input.ndim - len(pairs))
    return pairs[::-1]


class ConstantPad(Node):
    """Its adjoint takes away what it added, which is padding by the negative amounts."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        return pad(grad, self.saved[0])


def _constant_pad(input: Tensor, pad: Sequence[int], value: float) -> Tensor:
    pairs = _pad_pairs(input, pad)
    x = input.array
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pairs, strict=True))
    if any(n < 0 for n in shape):
        raise RuntimeError(
            f"pad: padding {list(pad)} takes more from shape {list(x.shape)} than there is"
        )
    y = empty(shape, x.dtype, x)
    y[...] = value
    inner, source = [], []
    for n, (before, after) in zip(x.shape, pairs, strict=True):
        inner.append(slice(max(before, 0), max(before, 0) + n + min(before, 0) + min(after, 0)))
        source.append(slice(max(-before, 0), n - max(-after, 0)))
    y[tuple(inner)] = x[tuple(source)]
    return record(ConstantPad, y, (input,), ([-p for p in pad],))


def _padded_index(mode: str, size: int, before: int, after: int) -> Any:
    """Per position of the padded dim, the position in the input that it shows."""
    if mode == "circular":  # negative amounts crop first, then the rest wraps around
        rest = np.arange(max(-before, 0), size - max(-after, 0))
        if max(before, after) > len(rest):
            raise RuntimeError(
                f"pad: circular padding must be at most {len(rest)} for a dim of size {size}, got "
                f"({before}, {after})"
            )
        return rest[np.arange(-max(before, 0), len(rest) + max(after, 0)) % max(len(rest), 1)]
    index = np.arange(-before, size + after)
    limit = size - 1
    if mode == "reflect" and (before > limit or after > limit):
        raise RuntimeError(
            f"pad: {mode} padding must be at most {limit} for a dim of size {size}, got "
            f"({before}, {after})"
        )
    if size == 0 and len(index) > 0:
        raise RuntimeError(f"pad: {mode} padding needs a dim that is not empty")
    if mode == "replicate":
        return np.clip(index, 0, size - 1)
    folded = np.abs(index)
    return np.where(folded >= size, 2 * (size - 1) - folded, folded)


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """`input` with pad[0] and pad[1] elements put before and after its last dim, pad[2] and pad[3]
    before and after the one before it, and so on; negative amounts take elements away.

    mode: "constant" (filled with value, default 0), "reflect", "replicate" or "circular"; the last
    three pad up to all but the first dim. Raises ValueError for an unknown mode or a wrong number
    of paddings, RuntimeError for paddings that the sizes do not allow.
    """
    x = _tensor("pad", "input", input)
    if mode == "constant":
        return _constant_pad(x, pad, 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise ValueError(
            f"pad: mode must be 'constant', 'reflect', 'replicate' or 'circular', got {mode!r}"
        )
    if value is not None and value != 0:
        raise ValueError(f"pad: mode {mode!r} takes no value, got {value}")
    for dim, (before, after) in enumerate(_pad_pairs(x, pad)):
        if before or after:
            index = _padded_index(mode, x.shape[dim], before, after)
            x = x.index_select(dim, wrap(like(index, x.array)))
    return x
