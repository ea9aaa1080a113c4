"""Losses. Those over class labels, which have kernels, come from cross_entropy.py.

The others are composed of differentiable ops; binary cross entropy has a gradient of its own,
because the composed one is 0 / 0 at probabilities 0 and 1 and wrong at logit 0.
"""

from __future__ import annotations

import warnings

import numpy as np

from .._cpu import Node, record
from ..amp import full_precision
from ..autograd import no_grad
from ..tensor import Tensor, expect_tensor
from .compare import where
from .cross_entropy import check_reduction
from .cross_entropy import cross_entropy as cross_entropy
from .cross_entropy import nll_loss as nll_loss

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
    if x.dtype.kind in "iub":
        raise TypeError(f"{name}: input must have a floating point dtype, got {x.dtype}")


def _weighted(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    return _reduce(loss if weight is None else loss * weight, reduction)


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
    difference = input - target
    loss = difference * difference
    if weight is None:
        return _reduce(loss, reduction)
    if weight.shape != input.shape:
        raise ValueError("mse_loss: weights and input must have the same size")
    loss = loss * weight
    return loss.sum() / weight.sum() if reduction == "mean" else _reduce(loss, reduction)


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
    return _reduce((input - target).abs(), reduction)


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
    d = (input - target).abs()
    return _reduce(where(d < beta, d * d * (0.5 / beta), d - 0.5 * beta), reduction)


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
    d = (input - target).abs()
    loss = where(d <= delta, d * d * 0.5, (d - 0.5 * delta) * delta)
    if weight is None:
        return _reduce(loss, reduction)
    loss = loss * weight
    return loss.sum() / weight.sum() if reduction == "mean" else _reduce(loss, reduction)


class BinaryCrossEntropy(Node):
    """-(t log x + (1 - t) log(1 - x)): dx = (x - t) / (x (1 - x)) dy."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, t = self.saved
        gx = grad * (x - t) / ((1 - x) * x).clamp(min=1e-12)
        if self.edges[1] is None:
            return gx, None
        return gx, grad * ((1 - x).log() - x.log())


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
    x = input.array
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"{name}: all elements of input should be between 0 and 1, got values from {x.min()} "
            f"to {x.max()}"
        )
    with no_grad():
        log_x = input.log().clamp(min=-100)
        log_rest = (-input).log1p().clamp(min=-100)
        loss = -(target * log_x + (1 - target) * log_rest)
    loss = record(BinaryCrossEntropy, loss.array, (input, target), (input, target))
    return _weighted(loss, weight, reduction)


class BinaryCrossEntropyWithLogits(Node):
    """(1 - t) x + q softplus(-x), q = 1 + (pos_weight - 1) t: dx = (1 - t - q sigmoid(-x)) dy."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, t, pos_weight = self.saved
        if pos_weight is None:
            gx, gt = grad * (x.sigmoid() - t), -x
        else:
            gx = grad * (1 - t - _positive_factor(t, pos_weight) * (-x).sigmoid())
            gt = (pos_weight - 1) * _softplus(-x) - x
        return gx, (grad * gt if self.edges[1] is not None else None)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow; not to be differentiated at 0."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


def _positive_factor(target: Tensor, pos_weight: Tensor) -> Tensor:
    return (pos_weight - 1) * target + 1


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
    _check_same_shape("binary_cross_entropy_with_logits", input, target, reduction)
    with no_grad():
        tail = _softplus(-input)
        if pos_weight is not None:
            tail = _positive_factor(target, pos_weight) * tail
        loss = (1 - target) * input + tail
    if loss.shape != input.shape:
        raise ValueError(
            "binary_cross_entropy_with_logits: pos_weight does not broadcast to the input's shape "
            f"{list(input.shape)}"
        )
    saved = (input, target, None if pos_weight is None else pos_weight.detach())
    loss = record(BinaryCrossEntropyWithLogits, loss.array, (input, target), saved)
    return _weighted(loss, weight, reduction)


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
    terms = target.exp() * target if log_target else target.xlogy(target)
    weight = target.exp() if log_target else target
    loss = _reduce(terms - weight * input, reduction)
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
