"""Losses. Those over class labels come from cross_entropy.py. Kernels: csrc/cpu/loss.cpp.

A loss element by element is a `Kind`: the number of its kernel, and its derivatives made of
differentiable ops, which serve `create_graph=True` and targets that want a gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..amp import full_precision
from ..backend import Array, contiguous, empty, kernels
from ..dtypes import is_floating, result_dtype
from ..tensor import Tensor, expect_tensor
from .compare import where
from .cross_entropy import check_reduction
from .cross_entropy import cross_entropy as cross_entropy
from .cross_entropy import linear_cross_entropy as linear_cross_entropy
from .cross_entropy import nll_loss as nll_loss
from .softmax import empty_like, in_layout_of, is_half, is_innermost

__all__: list[str] = []  # PyTorch has these names in nn.functional


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _check_pair(name: str, input: Tensor, target: Tensor, reduction: str) -> None:
    """Checks two tensors that may broadcast; warns when they do, as that is mostly a mistake."""
    x, t = expect_tensor(name, "input", input), expect_tensor(name, "target", target)
    check_reduction(name, reduction)
    if x.shape == t.shape:
        return
    try:
        np.broadcast_shapes(x.shape, t.shape)
    except ValueError:
        raise ValueError(
            f"{name}: input of shape {list(x.shape)} and target of shape {list(t.shape)} "
            "do not broadcast"
        ) from None
    warnings.warn(
        f"{name}: using a target size {list(t.shape)} that is different to the input size "
        f"{list(x.shape)}. This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size.",
        stacklevel=3,
    )


def _check_same_shape(name: str, input: Tensor, target: Tensor, reduction: str) -> None:
    x, t = expect_tensor(name, "input", input), expect_tensor(name, "target", target)
    check_reduction(name, reduction)
    if x.shape != t.shape:
        raise ValueError(
            f"{name}: target of shape {list(t.shape)} must have the input's shape {list(x.shape)}"
        )


# ---- losses with a kernel ----

# Derivative of f(x, t; p, q) in x or t: p is the parameter, q the weight of the positive class.
Slope = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]


class Kind(NamedTuple):
    """An elementwise loss: its number in loss.cpp and its derivatives."""

    number: int
    slope: Slope
    target_slope: Slope


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow; not to be differentiated at 0."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


def _logits_slope(x: Tensor, t: Tensor, p: float, q: Tensor | None) -> Tensor:
    if q is None:
        return x.sigmoid() - t
    return 1 - t - ((q - 1) * t + 1) * (-x).sigmoid()


def _logits_target_slope(x: Tensor, t: Tensor, p: float, q: Tensor | None) -> Tensor:
    return -x if q is None else (q - 1) * _softplus(-x) - x


SQUARED = Kind(0, lambda x, t, p, q: (x - t) * 2, lambda x, t, p, q: (t - x) * 2)
ABSOLUTE = Kind(1, lambda x, t, p, q: (x - t).sign(), lambda x, t, p, q: (t - x).sign())
HUBER = Kind(2, lambda x, t, p, q: (x - t).clamp(-p, p), lambda x, t, p, q: (t - x).clamp(-p, p))
SMOOTH_L1 = Kind(
    3,
    lambda x, t, p, q: ((x - t) * (1 / p)).clamp(-1, 1),
    lambda x, t, p, q: ((t - x) * (1 / p)).clamp(-1, 1),
)
LOGITS = Kind(4, _logits_slope, _logits_target_slope)
PROBABILITIES = Kind(
    5,
    lambda x, t, p, q: (x - t) / ((1 - x) * x).clamp(min=1e-12),
    lambda x, t, p, q: (1 - x).log() - x.log(),
)
DIVERGENCE = Kind(6, lambda x, t, p, q: -t, lambda x, t, p, q: t.log() + 1 - x)
LOG_DIVERGENCE = Kind(7, lambda x, t, p, q: -t.exp(), lambda x, t, p, q: t.exp() * (t - x + 1))


class PointwiseLoss(Node):
    """dx = slope(x, t) weight factor dy, dt likewise."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, target, weight, positive, kind, p, factor = self.saved
        scale = grad * factor if weight is None else grad * weight * factor
        gx = gt = None
        if self.edges[1] is not None:
            gt = scale * kind.target_slope(input, target, p, positive)
        if self.edges[0] is None:
            return gx, gt
        if grad_enabled():
            return scale * kind.slope(input, target, p, positive), gt
        x, t, w, q = _dense(input.array, target.array, weight, positive)
        g = grad.array if grad.array.size == 1 else in_layout_of(x, grad.array)
        y = empty_like(x)
        kernels(x).pointwise_loss_backward(x, t, w, q, g, y, kind.number, p, factor)
        return wrap(y), gt


def _dense(
    x: Array, t: Array, weight: Tensor | None, positive: Tensor | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """The kernel's operands: x and t dense in one order, weights as long as they repeat."""
    if weight is None and positive is None:
        if not x.flags.c_contiguous and not (x.ndim > 1 and is_innermost(x, 1)):
            x = contiguous(x)
        return x, in_layout_of(x, t), None, None
    factors = [f if f is None else f.array for f in (weight, positive)]
    w, q = _repeating(factors, x)
    return contiguous(x), contiguous(t), w, q


def _repeating(factors: list[Array | None], x: Array) -> list[Array | None]:
    """Arrays that broadcast to `x`, as flat arrays that repeat over `x` in C order."""
    least = 1024  # elements: shorter ones would cost a short loop each
    shapes = [(1,) * (x.ndim - f.ndim) + f.shape for f in factors if f is not None]
    first = next((d for d in range(x.ndim) if any(s[d] != 1 for s in shapes)), x.ndim)
    tail = x.shape[first:]
    size = max(math.prod(tail), 1)
    copies = 1 if size >= least else -(-min(least, x.size) // size)
    result: list[Array | None] = []
    for f in factors:
        if f is None:
            result.append(None)
            continue
        last = f.reshape(f.shape[max(f.ndim - len(tail), 0) :])
        flat = np.broadcast_to(last, tail).astype(x.dtype, order="C", copy=False).reshape(-1)
        result.append(contiguous(flat if copies <= 1 else np.tile(flat, copies)))
    return result


def _pointwise(
    name: str,
    kind: Kind,
    input: Tensor,
    target: Tensor,
    reduction: str,
    p: float = 0.0,
    weight: Tensor | None = None,
    positive: Tensor | None = None,
    total: float | None = None,
) -> Tensor:
    """A loss by its kernel; arguments are checked. `total` is what "mean" divides by."""
    if weight is not None and weight.requires_grad and grad_enabled():
        each = _pointwise(name, kind, input, target, "none", p, None, positive) * weight
        return each.sum() / weight.sum() if total is not None else _reduce(each, reduction)
    dtype = input.array.dtype
    if target.array.dtype != dtype:
        dtype = result_dtype(input.array, target.array)
        input, target = input.to(dtype), target.to(dtype)
    if not is_floating(dtype):
        raise TypeError(f"{name}: input must have a floating point dtype, got {dtype}")
    if is_half(dtype):
        wide = (input.to(np.float32), target.to(np.float32))
        return _pointwise(name, kind, *wide, reduction, p, weight, positive, total).to(dtype)
    if input.shape != target.shape:
        shape = np.broadcast_shapes(input.shape, target.shape)
        input, target = input.expand(shape), target.expand(shape)
    x, t, w, q = _dense(input.array, target.array, weight, positive)
    factor = 1.0
    if reduction == "mean":
        total = x.size if total is None else total
        factor = 1 / total if total else math.nan
    keep = reduction == "none"
    y = empty_like(x) if keep else empty((), x.dtype, x)
    kernels(x).pointwise_loss(x, t, w, q, y, kind.number, p, factor, keep)
    weight, positive = (f if f is None else f.detach() for f in (weight, positive))
    saved = (input, target, weight, positive, kind, p, factor)
    return record(PointwiseLoss, y, (input, target), saved)


def _check_factor(name: str, argument: str, factor: Tensor | None, input: Tensor) -> None:
    """ValueError unless `factor` broadcasts to the input's shape."""
    if factor is None:
        return
    shape = expect_tensor(name, argument, factor).shape
    try:
        fits = np.broadcast_shapes(shape, input.shape) == input.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: {argument} of shape {list(shape)} does not broadcast to the input's shape "
            f"{list(input.shape)}"
        )


def _weight_total(name: str, weight: Tensor | None, input: Tensor, reduction: str) -> float | None:
    """What "mean" divides by: the sum of the weights, which must have the input's shape."""
    if weight is None:
        return None
    if expect_tensor(name, "weight", weight).shape != input.shape:
        raise ValueError(f"{name}: weights and input must have the same size")
    return float(weight.detach().sum().item()) if reduction == "mean" else None


@full_precision
def mse_loss(
    input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """Squared error: ``(input - target)²``. D2L section 3.1.

    Args:
        input: predictions of any shape.
        target: tensor of the same shape.
        reduction: "none", "mean" or "sum".
        weight: factor per element; "mean" divides by the sum of the weights.

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, or `reduction` is unknown.
    """
    _check_pair("mse_loss", input, target, reduction)
    total = _weight_total("mse_loss", weight, input, reduction)
    return _pointwise("mse_loss", SQUARED, input, target, reduction, 0.0, weight, None, total)


@full_precision
def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Absolute error: ``|input - target|``. D2L section 3.1.

    Args:
        input: predictions of any shape.
        target: tensor of the same shape.
        reduction: "none", "mean" or "sum".

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, or `reduction` is unknown.
    """
    _check_pair("l1_loss", input, target, reduction)
    return _pointwise("l1_loss", ABSOLUTE, input, target, reduction)


@full_precision
def smooth_l1_loss(
    input: Tensor, target: Tensor, *, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """``d² / (2 beta)`` for d = |input - target| < beta, else ``d - beta / 2`` (Girshick, 2015).

    Args:
        input: predictions of any shape.
        target: tensor of the same shape.
        reduction: "none", "mean" or "sum".
        beta: where the quadratic part ends; 0 gives `l1_loss`.

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, `reduction` is unknown, or `beta` is negative.
    """
    _check_pair("smooth_l1_loss", input, target, reduction)
    if not beta >= 0:
        raise ValueError(f"smooth_l1_loss: expected beta >= 0, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return _pointwise("smooth_l1_loss", SMOOTH_L1, input, target, reduction, float(beta))


@full_precision
def huber_loss(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """``d² / 2`` for d = |input - target| <= delta, else ``delta (d - delta / 2)`` (Huber, 1964).

    Args:
        input: predictions of any shape.
        target: tensor of the same shape.
        reduction: "none", "mean" or "sum".
        delta: where the quadratic part ends.
        weight: factor per element; "mean" divides by the sum of the weights.

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, `reduction` is unknown, or `delta` is not positive.
    """
    _check_pair("huber_loss", input, target, reduction)
    if not delta > 0:
        raise ValueError(f"huber_loss: expected delta > 0, got {delta}")
    p = float(delta)
    total = _weight_total("huber_loss", weight, input, reduction)
    return _pointwise("huber_loss", HUBER, input, target, reduction, p, weight, None, total)


@full_precision
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """``-(t log x + (1 - t) log(1 - x))`` for probabilities x; logarithms end at -100.

    Args:
        input: probabilities of any shape.
        target: tensor of the same shape, values in [0, 1].
        weight: factor that broadcasts to the input's shape.
        reduction: "none", "mean" or "sum".

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no floating point tensors.
        ValueError: shapes differ, `reduction` is unknown, or a value of `input` is outside [0, 1].
    """
    name = "binary_cross_entropy"
    _check_same_shape(name, input, target, reduction)
    _check_factor(name, "weight", weight, input)
    loss = _pointwise(name, PROBABILITIES, input, target, reduction, 0.0, weight)
    if np.isnan(loss.array).any():  # so it is for inputs outside [0, 1]
        x = input.array
        if not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(
                f"{name}: all elements of input should be between 0 and 1, got values from "
                f"{x.min()} to {x.max()}"
            )
    return loss


@full_precision
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of ``sigmoid(input)``, without overflow. D2L section 15.2.

    ``-(p t log sigmoid(x) + (1 - t) log(1 - sigmoid(x)))`` with p = `pos_weight`.

    Args:
        input: logits of any shape.
        target: tensor of the same shape, values in [0, 1].
        weight: factor that broadcasts to the input's shape.
        reduction: "none", "mean" or "sum".
        pos_weight: factor on the positive term, e.g. per class; not differentiated.

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no floating point tensors.
        ValueError: shapes differ, or `reduction` is unknown.
    """
    name = "binary_cross_entropy_with_logits"
    _check_same_shape(name, input, target, reduction)
    _check_factor(name, "weight", weight, input)
    _check_factor(name, "pos_weight", pos_weight, input)
    return _pointwise(name, LOGITS, input, target, reduction, 0.0, weight, pos_weight)


@full_precision
def kl_div(
    input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Kullback-Leibler divergence ``t (log t - input)``. D2L section 22.11.

    Args:
        input: log-probabilities of any shape.
        target: probabilities, or with `log_target` log-probabilities, of the same shape.
        reduction: "none", "mean" over elements, "batchmean" (sum / first size) or "sum".
        log_target: see `target`.

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, or `reduction` is unknown.
    """
    batchmean = reduction == "batchmean"
    if batchmean:
        reduction = "sum"
    _check_pair("kl_div", input, target, reduction)
    kind = LOG_DIVERGENCE if log_target else DIVERGENCE
    loss = _pointwise("kl_div", kind, input, target, reduction)
    return loss / input.shape[0] if batchmean and input.ndim else loss


@full_precision
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    *,
    eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of Poisson counts: ``exp(x) - t x``, or ``x - t log(x + eps)``.

    Args:
        input: logarithm of the expected count, or with ``log_input=False`` the count itself.
        target: counts, of the same shape.
        log_input: see `input`.
        full: add Stirling's approximation of log(t!) where t > 1.
        eps: keeps the logarithm finite.
        reduction: "none", "mean" or "sum".

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, or `reduction` is unknown.
    """
    _check_pair("poisson_nll_loss", input, target, reduction)
    loss = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if full:
        safe = target.clamp(min=1)
        stirling = safe * safe.log() - safe + (safe * (2 * np.pi)).log() * 0.5
        loss = loss + where(target > 1, stirling, stirling * 0)
    return _reduce(loss, reduction)


@full_precision
def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, *, reduction: str = "mean"
) -> Tensor:
    """``x`` where the target is 1, ``max(0, margin - x)`` where it is -1, else their sum.

    Args:
        input: distances of any shape.
        target: tensor of the same shape, values 1 or -1.
        margin: distance from which dissimilar pairs cost nothing.
        reduction: "none", "mean" or "sum".

    Returns:
        Scalar, or for "none" a tensor of the input's shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, or `reduction` is unknown.
    """
    _check_pair("hinge_embedding_loss", input, target, reduction)
    alike = where(target != -1, input, 0.0)
    return _reduce(alike + where(target != 1, (margin - input).clamp(min=0), 0.0), reduction)


@full_precision
def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """``max(0, -t (x1 - x2) + margin)``: x1 should rank above x2 where t is 1, below where -1.

    Args:
        input1: scores of any shape.
        input2: scores of the same shape.
        target: tensor of the same shape, values 1 or -1.
        margin: difference that is wanted.
        reduction: "none", "mean" or "sum".

    Returns:
        Scalar, or for "none" a tensor of the inputs' shape.

    Raises:
        TypeError: no tensors.
        ValueError: shapes do not broadcast, or `reduction` is unknown.
    """
    _check_pair("margin_ranking_loss", input1, input2, reduction)
    expect_tensor("margin_ranking_loss", "target", target)
    return _reduce((margin - target * (input1 - input2)).clamp(min=0), reduction)
