"""Cross entropy and negative log likelihood. Kernels: csrc/cpu/softmax.cpp,
csrc/cuda/softmax.cu. D2L 4.1.2, 22.11.

The kernels work on logits and labels: no softmax and no one-hot target is ever stored. Composite
forms, made of differentiable ops, serve `create_graph=True`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._cpu import Node, grad_enabled, record, wrap
from ..amp import full_precision
from ..backend import (
    Array,
    contiguous,
    empty,
    is_capturing,
    is_on_cuda,
    kernels,
    like,
    on_host,
    xp,
)
from ..dtypes import is_floating
from ..tensor import Tensor, expect_tensor
from .compare import where
from .softmax import (
    check_floating,
    empty_like,
    is_half,
    layout,
    log_softmax,
    needs_float32,
    softmax,
)

__all__: list[str] = []  # PyTorch has these names in nn.functional

_FLOAT64 = np.dtype(np.float64)
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def check_reduction(name: str, reduction: str) -> int:
    """Number of a reduction in the kernels; ValueError if there is none of that name."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: {reduction!r} is not a valid value for reduction")
    return REDUCTIONS[reduction]


def _class_dim(input: Tensor) -> int:
    return 0 if input.ndim == 1 else 1


def _labels(name: str, input: Tensor, target: Tensor) -> Array:
    """The labels as contiguous int64, shape checked against `input`."""
    y = expect_tensor(name, "target", target)
    if y.dtype.kind not in "iu":
        raise TypeError(f"{name}: target must hold integer class labels, got dtype {y.dtype}")
    shape = input.array.shape
    expected = () if len(shape) == 1 else (shape[0], *shape[2:])
    if y.shape != expected:
        raise ValueError(
            f"{name}: expected target of shape {list(expected)} for input of shape {list(shape)}, "
            f"got {list(y.shape)}"
        )
    return contiguous(y.astype(np.int64, copy=False))


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What losses, their gradients and weights are kept in."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def _class_weight(name: str, weight: Tensor | None, x: Array, classes: int) -> Array | None:
    if weight is None:
        return None
    w = expect_tensor(name, "weight", weight)
    if w.shape != (classes,):
        raise ValueError(
            f"{name}: expected weight of shape [{classes}], one per class, got {list(w.shape)}"
        )
    return contiguous(w.astype(_wide(x.dtype), copy=False))


def _check_labels(
    name: str, info: Array, labels: Array, classes: int, ignore_index: int, first: int = 0
) -> None:
    """IndexError if the kernel found a label that is no class; `first`: where `labels` begin."""
    position = int(info[1])
    if position >= 0:
        raise IndexError(
            f"{name}: Target {on_host(labels).flat[position]} is out of bounds: expected 0 <= "
            f"target < {classes} or ignore_index {ignore_index}, at position "
            f"{[int(i) + first for i in np.unravel_index(position, labels.shape)]}"
        )


def _mean_factor(
    name: str, info: Array, labels: Array, classes: int, ignore_index: int
) -> float | Tensor:
    """1 / the weight of the labels that count, 0 if none does; IndexError as `_check_labels`.

    While a CUDA graph is made a tensor, of which nobody sees the value, and nothing is checked.
    """
    if is_on_cuda(info) and is_capturing():
        weight = wrap(info[:1].astype(np.float32)).reshape(())
        return where(weight == 0, 0.0, 1 / weight)
    found = on_host(info)
    _check_labels(name, found, labels, classes, ignore_index)
    return 1 / float(found[0]) if found[0] else 0.0


def _target_distribution(
    labels: Array, weight: Array | None, like: Array, dim: int, ignored: int, smoothing: float
) -> Array:
    """What the loss multiplies -log p by, for every class: shape of `like`."""
    lib = xp(like)
    classes = like.shape[dim]
    used = lib.expand_dims(labels != ignored, dim)
    index = lib.where(used, lib.expand_dims(labels, dim), 0)
    target = lib.full(like.shape, smoothing / classes, like.dtype)
    on_label = lib.take_along_axis(target, index, dim) + (1 - smoothing)
    lib.put_along_axis(target, index, on_label, dim)
    if weight is not None:
        per_class = lib.full(like.shape, smoothing / classes, like.dtype) * _along(
            weight, like, dim
        )
        label_weight = lib.take(weight, index)
        on_label = lib.take_along_axis(per_class, index, dim) + (1 - smoothing) * label_weight
        lib.put_along_axis(per_class, index, on_label, dim)
        target = per_class
    result: Array = lib.where(used, target, like.dtype.type(0))
    return result


def _along(vector: Array, like: Array, dim: int) -> Array:
    """`vector` shaped to broadcast along dimension `dim` of `like`."""
    return vector.reshape([-1 if d == dim else 1 for d in range(like.ndim)])


class CrossEntropy(Node):
    """dx = (softmax(x) sum(t) - t) dy per position, t the (smoothed, weighted) target."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        input, labels, weight, stats, sizes, ignored, smoothing, factor = self.saved
        if isinstance(factor, Tensor):
            grad, factor = grad * factor.to(grad.dtype), 1.0
        dim = _class_dim(input)
        if grad_enabled():
            t = _target_distribution(labels.array, weight, input.array, dim, ignored, smoothing)
            scale = (grad.unsqueeze(dim) if grad.ndim else grad) * factor
            total = wrap(t.sum(dim, keepdims=True))
            return (softmax(input, dim) * total - wrap(t)) * scale
        x, _ = layout(input.array, dim)
        gx = empty_like(x)
        kernels(x).cross_entropy_backward(
            x,
            labels.array,
            weight,
            stats,
            contiguous(grad.array.astype(stats.dtype, copy=False)),
            gx,
            *sizes,
            ignored,
            smoothing,
            factor,
        )
        return wrap(gx)


@full_precision
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy between logits and targets: ``-log_softmax(input)[target]``. D2L 4.1.2.

    With smoothing s the target of label k is (1 - s) at k plus s / C everywhere; `weight`
    multiplies each class's term. "mean" divides by the weight of the labels that count.

    Args:
        input: logits of shape [N, C], [C] or [N, C, d1, ...].
        target: class labels of shape [N], [] or [N, d1, ...], or probabilities, a floating
            tensor of the input's shape.
        weight: factor per class, shape [C].
        ignore_index: label that takes no part in the loss.
        reduction: "none", "mean" or "sum".
        label_smoothing: s above, in [0, 1].

    Returns:
        Scalar, or for "none" a tensor of the labels' shape.

    Raises:
        TypeError: wrong kind of tensor.
        ValueError: shapes do not fit, `reduction` unknown, `label_smoothing` outside [0, 1].
        IndexError: a label that is no class.
    """
    name = "cross_entropy"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    kind = check_reduction(name, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{name}: label_smoothing must be between 0 and 1, got {label_smoothing}")
    if x.ndim == 0:
        raise ValueError(f"{name}: expected input of shape [N, C], [C] or [N, C, d1, ...], got []")
    if needs_float32(x):
        loss = cross_entropy(
            input.to(np.float32),
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        return loss.to(x.dtype)
    classes = x.shape[_class_dim(input)]
    w = _class_weight(name, weight, x, classes)
    if is_floating(expect_tensor(name, "target", target).dtype):
        return _soft_cross_entropy(input, target, w, reduction, label_smoothing)
    labels = _labels(name, input, target)
    x, sizes = layout(x, _class_dim(input))
    k = kernels(x)
    stats = k.empty((2, sizes[0] * sizes[2]), _wide(x.dtype))
    loss_array = k.empty(labels.shape if kind == 0 else (), _wide(x.dtype))
    info = k.empty((2,), _FLOAT64)
    k.cross_entropy(
        x, labels, w, stats, loss_array, info, *sizes, ignore_index, label_smoothing, kind
    )
    factor = _mean_factor(name, info, labels, classes, ignore_index)
    saved = target if labels is target.array else wrap(labels)
    return record(
        CrossEntropy,
        loss_array.astype(x.dtype, copy=False),
        (input,),
        (input, saved, w, stats, sizes, ignore_index, label_smoothing, factor),
    )


# ---- projection and cross entropy in one ----

CHUNK = 1 << 24  # logits that exist at a time


class LinearCrossEntropy(Node):
    """dlogits as in CrossEntropy; dx = dlogits W, dW = dlogits' x, db its sum over rows."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, linear_weight, linear_bias, head, factor, ready = self.saved
        wanted = [edge is not None for edge in self.edges]
        if grad_enabled():
            return self._composite(grad * factor, input, linear_weight, linear_bias, head)
        scale = grad * factor
        if ready:  # handed out once, in their own memory
            return tuple(None if g is None else wrap(g).mul_(scale) for g in ready.pop())
        operands = [None if t is None else t.array for t in (input, linear_weight, linear_bias)]
        gradients = head.run(operands, wanted, contiguous(scale.array))[1]
        return tuple(None if g is None else wrap(g) for g in gradients)

    def _composite(
        self, scale: Tensor, x: Tensor, w: Tensor, b: Tensor | None, head: _Head
    ) -> tuple[Tensor | None, ...]:
        logits = x @ w.t()
        if b is not None:
            logits = logits + b
        t = _target_distribution(
            head.labels, head.weight, logits.array, 1, head.ignored, head.smoothing
        )
        total = wrap(t.sum(1, keepdims=True))
        each = scale.unsqueeze(1) if scale.ndim else scale
        g = (softmax(logits, 1) * total - wrap(t)) * each
        return g @ w, g.t() @ x, None if b is None else g.sum(0)


class _Head(NamedTuple):
    """What a pass over the rows needs beside its operands."""

    labels: Array
    weight: Array | None
    ignored: int
    smoothing: float

    def run(
        self, operands: list[Array | None], wanted: list[bool], grad: Array | None
    ) -> tuple[Array, list[Array | None]]:
        """Loss per row, and gradients weighted by `grad` (None: not wanted).

        `operands`: input [N, D], weight [C, D] and bias [C] of the projection. Only CHUNK logits
        exist at a time.
        """
        x, w, b = operands
        assert x is not None and w is not None
        k, rows, classes = kernels(x), x.shape[0], w.shape[0]
        losses = k.empty((rows,), x.dtype)
        grads = [
            None if grad is None or not want or a is None else k.empty(a.shape, x.dtype)
            for a, want in zip(operands, wanted, strict=True)
        ]
        gx, gw, gb = grads
        for g in (gw, gb) if rows == 0 else ():
            if g is not None:
                g.fill(0)
        step = min(max(CHUNK // max(classes, 1), 16), max(rows, 1))
        logits_buffer = k.empty((step, classes), x.dtype)
        slope_buffer = k.empty((step if any(g is not None for g in grads) else 0, classes), x.dtype)
        info = k.empty((2,), _FLOAT64)
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            n = part.stop - first
            logits, labels = logits_buffer[:n], self.labels[part]
            k.matmul(x[part], w.T, b, logits, 0, 0.0)
            stats = k.empty((2, n), x.dtype)
            sizes = (n, classes, 1)
            k.cross_entropy(
                logits, labels, self.weight, stats, losses[part], info, *sizes, self.ignored,
                self.smoothing, 0,
            )  # fmt: skip
            _check_labels(
                "linear_cross_entropy", on_host(info), labels, classes, self.ignored, first
            )
            if grad is None:
                continue
            slope, beta = slope_buffer[:n], float(first > 0)
            each = grad if grad.ndim == 0 else grad[part]
            k.cross_entropy_backward(
                logits, labels, self.weight, stats, each, slope, *sizes, self.ignored,
                self.smoothing, 1.0,
            )  # fmt: skip
            if gx is not None:
                k.matmul(slope, w, None, gx[part], 0, 0.0)
            if gw is not None:
                k.matmul(slope.T, x[part], None, gw, 0, beta)
            if gb is not None:
                column_sums = k.empty((1, classes), x.dtype)
                k.reduce_sum(slope, column_sums, 1.0)
                gb[...] = column_sums[0] + (gb if first else 0)
        return losses, grads

    def total(self) -> float:
        """The weight of the labels that count."""
        used = self.labels[self.labels != self.ignored]
        if self.weight is None:
            return float(used.size)
        return float(self.weight[used].sum(dtype=np.float64))


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)`` for many classes.

    The logits are made, used and forgotten some rows at a time, and never exist as a whole. For
    "mean" and "sum" the gradients are made on the way, with no second projection.

    Args:
        input: tensor of shape [N, D].
        linear_weight: shape [C, D].
        target: class labels of shape [N].
        linear_bias: shape [C].
        weight: factor per class, shape [C].
        reduction: "none", "mean" (divided by the weight of the labels that count) or "sum".
        ignore_index: label that takes no part in the loss.
        label_smoothing: as for `cross_entropy`.

    Returns:
        Scalar, or for "none" a tensor of shape [N].

    Raises:
        TypeError: wrong kind of tensor, or dtypes differ.
        ValueError: shapes do not fit, `reduction` unknown, `label_smoothing` outside [0, 1].
        IndexError: a label that is no class.
    """
    name = "linear_cross_entropy"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    check_reduction(name, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{name}: label_smoothing must be between 0 and 1, got {label_smoothing}")
    w = expect_tensor(name, "linear_weight", linear_weight)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(
            f"{name}: expected input of shape [N, D] and linear_weight of shape [C, D], got "
            f"{list(x.shape)} and {list(w.shape)}"
        )
    classes = w.shape[0]
    b = None if linear_bias is None else expect_tensor(name, "linear_bias", linear_bias)
    if b is not None and b.shape != (classes,):
        raise ValueError(f"{name}: expected linear_bias of shape [{classes}], got {list(b.shape)}")
    for argument, a in (("linear_weight", w), ("linear_bias", b)):
        if a is not None and a.dtype != x.dtype:
            raise TypeError(f"{name}: expected {argument} of dtype {x.dtype}, got {a.dtype}")
    if is_half(x.dtype):
        loss = linear_cross_entropy(
            input.to(np.float32), linear_weight.to(np.float32), target,
            linear_bias=None if linear_bias is None else linear_bias.to(np.float32), weight=weight,
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing,
        )  # fmt: skip
        return loss.to(x.dtype)
    logits = wrap(np.broadcast_to(np.empty((), x.dtype), (x.shape[0], classes)))  # their shape
    labels = _labels(name, logits, target)
    head = _Head(labels, _class_weight(name, weight, x, classes), ignore_index, label_smoothing)
    tensors = (input, linear_weight, linear_bias)
    arrays = [None if t is None else contiguous(t.array) for t in tensors]
    wanted = [grad_enabled() and t is not None and t.requires_grad for t in tensors]
    at_once = reduction != "none" and any(wanted)
    losses, ready = head.run(arrays, wanted, like(np.ones((), x.dtype), x) if at_once else None)
    factor = 1.0
    if reduction == "mean":
        total = head.total()
        factor = 1 / total if total else math.nan
    y = losses
    if reduction != "none":
        y = kernels(x).empty((), x.dtype)
        kernels(x).reduce_sum(losses, y, factor)
    saved = (*tensors, head, factor, [ready] if at_once else [])
    return record(LinearCrossEntropy, y, tensors, saved)


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Array | None, reduction: str, smoothing: float
) -> Tensor:
    if target.array.shape != input.array.shape:
        raise ValueError(
            f"cross_entropy: expected target probabilities of the input's shape "
            f"{list(input.array.shape)}, got {list(target.array.shape)}"
        )
    dim = _class_dim(input)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / input.array.shape[dim]
    terms = log_softmax(input, dim) * target
    if weight is not None:
        terms = terms * wrap(_along(weight, input.array, dim))
    loss = -terms.sum(dim)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


class NLLLoss(Node):
    """dx = -weight[label] dy at the label, else 0."""

    __slots__ = ()

    def backward(self, grad: Tensor) -> Tensor:
        like, labels, weight, dim, ignored, factor = self.saved
        if isinstance(factor, Tensor):
            grad, factor = grad * factor.to(grad.dtype), 1.0
        if grad_enabled():
            t = _target_distribution(labels.array, weight, like, dim, ignored, 0.0)
            scale = (grad.unsqueeze(dim) if grad.ndim else grad) * factor
            return wrap(-t) * scale
        gx = kernels(like).empty(like.shape, like.dtype)
        _, sizes = layout(gx, dim)
        kernels(gx).nll_loss_backward(
            labels.array,
            weight,
            contiguous(grad.array.astype(_wide(gx.dtype), copy=False)),
            gx,
            *sizes,
            ignored,
            factor,
        )
        return wrap(gx)


@full_precision
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood: ``-input[target]`` of log-probabilities. D2L section 22.7.

    Args:
        input: log-probabilities of shape [N, C], [C] or [N, C, d1, ...].
        target: class labels of shape [N], [] or [N, d1, ...].
        weight: factor per class, shape [C].
        ignore_index: label that takes no part in the loss.
        reduction: "none", "mean" (divided by the weight of the labels that count) or "sum".

    Returns:
        Scalar, or for "none" a tensor of the labels' shape.

    Raises:
        TypeError: wrong kind of tensor.
        ValueError: shapes do not fit, or `reduction` is unknown.
        IndexError: a label that is no class.
    """
    name = "nll_loss"
    x = expect_tensor(name, "input", input)
    check_floating(name, "input", x)
    kind = check_reduction(name, reduction)
    if x.ndim == 0:
        raise ValueError(f"{name}: expected input of shape [N, C], [C] or [N, C, d1, ...], got []")
    if needs_float32(x):
        loss = nll_loss(
            input.to(np.float32), target, weight, ignore_index=ignore_index, reduction=reduction
        )
        return loss.to(x.dtype)
    dim = _class_dim(input)
    labels = _labels(name, input, target)
    w = _class_weight(name, weight, x, x.shape[dim])
    x = contiguous(x)
    _, sizes = layout(x, dim)
    loss_array = kernels(x).empty(labels.shape if kind == 0 else (), _wide(x.dtype))
    info = kernels(x).empty((2,), _FLOAT64)
    kernels(x).nll_loss(x, labels, w, loss_array, info, *sizes, ignore_index, kind)
    factor = _mean_factor(name, info, labels, x.shape[dim], ignore_index)
    saved = target if labels is target.array else wrap(labels)
    template = np.broadcast_to(empty((), x.dtype, x), x.shape)  # shape, dtype and device only
    return record(
        NLLLoss,
        loss_array.astype(x.dtype, copy=False),
        (input,),
        (template, saved, w, dim, ignore_index, factor),
    )
