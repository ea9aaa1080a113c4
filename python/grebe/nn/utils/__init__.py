"""Gradient clipping (D2L section 9.5.3), parameters as one vector, sequences (`rnn`)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ... import _cpu
from ...autograd import no_grad
from ...backend import Array, is_capturing, kernels, like, on_host
from ...ops.shape import cat
from ...optim.optimizer import is_dense
from ...tensor import Tensor
from . import rnn

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_total_norm",
    "parameters_to_vector",
    "rnn",
    "vector_to_parameters",
]


def _grads(name: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The gradients of the parameters that have one."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected Tensors, got {type(tensor).__name__}")
    return [t.grad for t in tensors if t.grad is not None]


def _for_kernel(tensor: Tensor) -> bool:
    """Can kernels over lists of tensors work on this one in place?"""
    a = tensor.array
    return bool(a.dtype in (np.float32, np.float64) and is_dense(a) and a.flags.writeable)


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Norm of all tensors together, as if they were one vector.

    Args:
        tensors: one tensor or several.
        norm_type: p of the p-norm; may be ``inf``.
        error_if_nonfinite: raise if the norm is NaN or infinite.

    Returns:
        Scalar tensor; 0 for no tensors.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    items = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not items:
        return _cpu.wrap(np.zeros((), np.float32))
    p = float(norm_type)
    norm = _two_norm(items) if p == 2.0 and all(map(_for_kernel, items)) else _p_norm(items, p)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"The total norm of order {p} for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )
    dtype = np.result_type(*[t.array.dtype for t in items])
    scalar = np.asarray(norm, dtype if dtype.kind == "f" else np.float32)
    return _cpu.wrap(like(scalar, items[0].array))


def _two_norm(items: list[Tensor]) -> float:
    k = kernels(items[0].array)
    total = k.empty((1,), np.dtype(np.float64))
    k.sum_squares([t.array for t in items], total)
    return math.sqrt(on_host(total)[0])


def _p_norm(items: list[Tensor], p: float) -> float:
    flat = [np.abs(on_host(t.array).astype(np.float64).ravel()) for t in items]
    if math.isinf(p):
        peaks = [np.max(v) if p > 0 else np.min(v) for v in flat if v.size]
        return float(max(peaks) if p > 0 else min(peaks)) if peaks else 0.0
    if p == 0.0:
        return float(sum(np.count_nonzero(v) > 0 for v in flat))
    return float(sum(np.sum(v**p) for v in flat) ** (1.0 / p))


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales all gradients by ``max_norm / norm`` if their norm together exceeds `max_norm`.

    Args:
        parameters: a tensor or several; those without gradient are skipped.
        max_norm: the longest that the gradient may be.
        norm_type: p of the p-norm; may be ``inf``.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach: accepted for PyTorch's sake; all gradients are scaled in one pass anyway.

    Returns:
        The norm before clipping, a scalar tensor.

    Raises:
        TypeError: `parameters` holds what is no tensor.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    grads = _grads("clip_grad_norm_", parameters)
    if is_capturing() and grads:
        return _clip_on_device(grads, max_norm, norm_type)
    norm = get_total_norm(grads, norm_type, error_if_nonfinite)
    factor = float(max_norm) / (float(norm.array) + 1e-6)
    if not factor >= 1.0:  # NaN passes: the caller sees it in the gradients
        _rescale(grads, factor)
    return norm


def _clip_on_device(grads: list[Tensor], max_norm: float, norm_type: float) -> Tensor:
    """For CUDA graphs, in which nobody can look at the norm: nothing is checked."""
    if float(norm_type) != 2.0 or not all(map(_for_kernel, grads)):
        raise RuntimeError(
            "clip_grad_norm_: in a CUDA graph expected norm_type 2 and dense float32 or float64 "
            f"gradients, got norm_type {norm_type}"
        )
    k = kernels(grads[0].array)
    total = k.empty((1,), np.dtype(np.float64))
    k.sum_squares([t.array for t in grads], total)
    norm: Tensor = _cpu.wrap(total).reshape(()).sqrt().to(grads[0].dtype)
    factor = (max_norm / (norm.double() + 1e-6)).clamp(max=1.0)
    with no_grad():
        for grad in grads:
            grad.mul_(factor.to(grad.dtype))
    return norm


def _rescale(grads: list[Tensor], factor: float) -> None:
    fast: list[Array] = []
    for grad in grads:
        if _for_kernel(grad):
            fast.append(grad.array)
        else:
            grad.array[...] *= factor
        _cpu.bump(grad)
    if fast:
        kernels(fast[0]).scale_tensors(fast, factor)


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Clamps every element of the gradients to [-clip_value, clip_value].

    Args:
        parameters: a tensor or several; those without gradient are skipped.
        clip_value: the largest magnitude that may stay.
        foreach: accepted for PyTorch's sake; all gradients are clamped in one pass anyway.

    Raises:
        TypeError: `parameters` holds what is no tensor.
    """
    limit = float(clip_value)
    fast: list[Array] = []
    for grad in _grads("clip_grad_value_", parameters):
        if _for_kernel(grad):
            fast.append(grad.array)
        else:
            np.clip(grad.array, -limit, limit, out=grad.array)
        _cpu.bump(grad)
    if fast:
        kernels(fast[0]).clamp_tensors(fast, -limit, limit)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters in one dimension, differentiable.

    Raises ValueError if there are none.
    """
    flat = [parameter.reshape(-1) for parameter in parameters]
    if not flat:
        raise ValueError("parameters_to_vector: expected at least one parameter")
    return cat(flat)


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Makes consecutive slices of `vec` the values of the parameters, cast to their dtypes.

    Raises TypeError if `vec` is no Tensor and ValueError unless it has one dimension and exactly as
    many elements as the parameters together.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: vec must be a Tensor, got {type(vec).__name__}")
    targets = list(parameters)
    wanted = sum(target.numel() for target in targets)
    if vec.ndim != 1 or vec.numel() != wanted:
        raise ValueError(
            f"vector_to_parameters: expected a vector of {wanted} elements, got shape "
            f"{list(vec.shape)}"
        )
    start = 0
    with no_grad():
        for target in targets:
            stop = start + target.numel()
            target.copy_(vec[start:stop].reshape(target.shape))
            start = stop
