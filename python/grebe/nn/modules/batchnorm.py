"""Batch and instance normalisation layers. D2L section 8.5."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.creation import empty, ones, zeros
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter, UninitializedBuffer, UninitializedParameter, is_lazy
from .checks import factory, real, whole
from .lazy import LazyModuleMixin
from .module import Module

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
]


class _BatchNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias per channel (dim 1).

    In training mean and variance come from the batch and move the running ones by `momentum` (None:
    their plain average over all batches); in evaluation the running ones are used.
    """

    _version = 2
    input_dims: tuple[int, ...]
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._set_options(eps, momentum, affine, track_running_stats)
        self.num_features = whole(type(self).__name__, "num_features", num_features, 0)
        wanted = factory(type(self).__name__, device, dtype)
        sizes = (self.num_features,)
        self.register_parameter("weight", Parameter(empty(sizes, **wanted)) if affine else None)
        has_bias = affine and bias
        self.register_parameter("bias", Parameter(empty(sizes, **wanted)) if has_bias else None)
        track = track_running_stats
        self.register_buffer("running_mean", zeros(sizes, **wanted) if track else None)
        self.register_buffer("running_var", ones(sizes, **wanted) if track else None)
        self.register_buffer("num_batches_tracked", _count() if track else None)
        self.reset_parameters()

    def _set_options(self, eps: Any, momentum: Any, affine: bool, track: bool) -> None:
        name = type(self).__name__
        real(name, "eps", eps)
        if momentum is not None:
            real(name, "momentum", momentum)
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = bool(affine), bool(track)

    def reset_running_stats(self) -> None:
        """Running mean 0, variance 1 and no batches seen."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Running statistics anew, weight 1 and bias 0."""
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def _check_input(self, input: Tensor) -> None:
        if not isinstance(input, Tensor):
            raise TypeError(f"expected a Tensor, got {type(input).__name__}")
        if input.ndim not in self.input_dims:
            dims = " or ".join(f"{n}D" for n in self.input_dims)
            raise ValueError(
                f"expected {dims} input (got {input.ndim}D input of shape {list(input.shape)})"
            )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        batch = self.training or self.running_mean is None
        use_running = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.weight,
            self.bias,
            batch,
            0.0 if momentum is None else momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "num_batches_tracked"
        old = (local_metadata.get("version") or 1) < 2  # files from before it was counted
        if old and self.num_batches_tracked is not None and key not in state_dict:
            state_dict[key] = self.num_batches_tracked
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _count() -> Tensor:
    return zeros((), dtype=np.dtype(np.int64))


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of x [N, C] or [N, C, L]. D2L section 8.5."""

    input_dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of x [N, C, H, W]. D2L section 8.5."""

    input_dims = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of x [N, C, D, H, W]."""

    input_dims = (5,)


class _InstanceNorm(_BatchNorm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias per example and channel (dim 1).

    Input without the batch dimension counts as one example. With track_running_stats, evaluation
    uses running statistics, as batch normalisation does. Ulyanov et al., 2016.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        track = track_running_stats
        super().__init__(num_features, eps, momentum, affine, track, device, dtype, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        batched = input.ndim == self.input_dims[-1]
        channels = input.shape[1 if batched else 0]
        if self.affine and channels != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected {self.num_features} channels, got input of shape "
                f"{list(input.shape)}"
            )
        y = F.instance_norm(
            input if batched else input.unsqueeze(0),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )
        return y if batched else y.squeeze(0)


class InstanceNorm1d(_InstanceNorm):
    """Instance normalisation of x [N, C, L] or [C, L]."""

    input_dims = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """Instance normalisation of x [N, C, H, W] or [C, H, W]."""

    input_dims = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of x [N, C, D, H, W] or [C, D, H, W]."""

    input_dims = (4, 5)


class _LazyBatchNorm(LazyModuleMixin, _BatchNorm):
    """Takes num_features from dim 1 of the first input."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        Module.__init__(self)
        self._set_options(eps, momentum, affine, track_running_stats)
        self.num_features = 0
        wanted = factory(type(self).__name__, device, dtype)
        for name, present in (("weight", affine), ("bias", affine and bias)):
            self.register_parameter(name, UninitializedParameter(**wanted) if present else None)
        for name in ("running_mean", "running_var"):
            present = track_running_stats
            self.register_buffer(name, UninitializedBuffer(**wanted) if present else None)
        self.register_buffer("num_batches_tracked", _count() if track_running_stats else None)

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.num_features:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        self._check_input(input)
        members: list[Any] = [self.weight, self.bias, self.running_mean, self.running_var]
        known = [m for m in members if m is not None and not is_lazy(m)]
        self.num_features = int(known[0].shape[0] if known else input.shape[1])
        fresh = self.has_uninitialized_params()
        for member in members:
            if is_lazy(member):
                member.materialize((self.num_features,))
        if fresh:
            self.reset_parameters()


class LazyBatchNorm1d(_LazyBatchNorm):
    """`BatchNorm1d` that learns num_features from its first input. D2L section 6.3."""

    input_dims = (2, 3)
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_LazyBatchNorm):
    """`BatchNorm2d` that learns num_features from its first input. D2L section 6.3."""

    input_dims = (4,)
    cls_to_become = BatchNorm2d
