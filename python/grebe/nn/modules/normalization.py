"""Layer normalisation. D2L section 11.7."""

from __future__ import annotations

from typing import Any

from ...ops.creation import empty
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter
from .checks import factory, real, whole
from .module import Module

__all__ = ["LayerNorm"]


class LayerNorm(Module):
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
        shape = normalized_shape
        if not isinstance(shape, (tuple, list)):
            shape = (shape,)
        self.normalized_shape = tuple(whole("LayerNorm", "normalized_shape", s, 0) for s in shape)
        if not self.normalized_shape:
            raise ValueError("LayerNorm: normalized_shape must have at least one size")
        real("LayerNorm", "eps", eps)
        self.eps, self.elementwise_affine = eps, bool(elementwise_affine)
        wanted = factory("LayerNorm", device, dtype)
        for name, present in (
            ("weight", elementwise_affine),
            ("bias", elementwise_affine and bias),
        ):
            value = Parameter(empty(self.normalized_shape, dtype=wanted)) if present else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )
