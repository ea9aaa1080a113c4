"""Layer, RMS and group normalisation. D2L section 11.7."""

from __future__ import annotations

from typing import Any

from ...ops.creation import empty
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .checks import factory, real, whole
from .module import Module

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm"]


def _sizes(layer: str, shape: Any) -> tuple[int, ...]:
    """`normalized_shape`, an int or several, as a tuple."""
    if not isinstance(shape, (tuple, list)):
        shape = (shape,)
    if not shape:
        raise ValueError(f"{layer}: normalized_shape must have at least one size")
    return tuple(whole(layer, "normalized_shape", s, 0) for s in shape)


class _Affine(Module):
    """A layer with a weight and perhaps a bias, each a parameter or None."""

    def _add(self, name: str, shape: tuple[int, ...], kind: dict[str, Any], wanted: bool) -> None:
        value = Parameter(empty(shape, **kind)) if wanted else None
        self.register_parameter(name, value)

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        for name, parameter in self.named_parameters(recurse=False):
            init.constant_(parameter, 1.0 if name == "weight" else 0.0)


class LayerNorm(_Affine):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last dims, of normalized_shape.

    weight and bias have shape normalized_shape and start at 1 and 0. Ba et al. 2016.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _sizes("LayerNorm", normalized_shape)
        real("LayerNorm", "eps", eps)
        self.eps, self.elementwise_affine = eps, bool(elementwise_affine)
        wanted = factory("LayerNorm", device, dtype)
        self._add("weight", self.normalized_shape, wanted, elementwise_affine)
        self._add("bias", self.normalized_shape, wanted, elementwise_affine and bias)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )


class RMSNorm(_Affine):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dims, of normalized_shape.

    eps None: the dtype's machine epsilon. weight has shape normalized_shape and starts at 1. Zhang
    and Sennrich, 2019.
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _sizes("RMSNorm", normalized_shape)
        if eps is not None:
            real("RMSNorm", "eps", eps)
        self.eps, self.elementwise_affine = eps, bool(elementwise_affine)
        wanted = factory("RMSNorm", device, dtype)
        self._add("weight", self.normalized_shape, wanted, elementwise_affine)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class GroupNorm(_Affine):
    """y = (x - mean) / sqrt(var + eps) * weight + bias per group of channels of each example.

    weight and bias have shape [num_channels] and start at 1 and 0. Wu and He, 2018.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_groups = whole("GroupNorm", "num_groups", num_groups, 1)
        self.num_channels = whole("GroupNorm", "num_channels", num_channels, 0)
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"GroupNorm: num_channels must be divisible by num_groups, got {num_channels} "
                f"and {num_groups}"
            )
        real("GroupNorm", "eps", eps)
        self.eps, self.affine = eps, bool(affine)
        wanted = factory("GroupNorm", device, dtype)
        self._add("weight", (self.num_channels,), wanted, affine)
        self._add("bias", (self.num_channels,), wanted, affine and bias)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )
