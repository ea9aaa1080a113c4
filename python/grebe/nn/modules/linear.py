"""Linear layers. D2L sections 3.5 and 5.1."""

from __future__ import annotations

import math
from typing import Any

from ...ops.creation import empty
from ...tensor import Tensor
from .. import functional as F
from .. import init
from ..parameter import Parameter, UninitializedParameter, is_lazy
from .checks import factory, whole
from .lazy import LazyModuleMixin
from .module import Module

__all__ = ["Bilinear", "Identity", "LazyLinear", "Linear"]


class Identity(Module):
    """Returns its input. Takes and ignores any arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(Module):
    """y = x Wᵀ + b for x [*, in_features]; weight [out_features, in_features], bias [out_features].

    Both are drawn from U(-k, k), k = 1 / sqrt(in_features). D2L section 3.5.
    """

    in_features: int
    out_features: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.in_features = whole(name, "in_features", in_features, 0)
        self.out_features = whole(name, "out_features", out_features, 0)
        wanted = factory(name, device, dtype)
        self.weight = Parameter(empty((self.out_features, self.in_features), **wanted))
        if bias:
            self.bias = Parameter(empty((self.out_features,), **wanted))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class NonDynamicallyQuantizableLinear(Linear):
    """`Linear` under the name that PyTorch's attention prints for its output projection."""


class LazyLinear(LazyModuleMixin, Linear):
    """`Linear` whose in_features is the last size of its first input. D2L section 6.3."""

    cls_to_become = Linear

    def __init__(
        self, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        Module.__init__(self)
        wanted = factory("LazyLinear", device, dtype)
        self.in_features = 0
        self.out_features = whole("LazyLinear", "out_features", out_features, 0)
        self.weight = UninitializedParameter(**wanted)
        self.register_parameter("bias", UninitializedParameter(**wanted) if bias else None)

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.in_features:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        if not isinstance(input, Tensor) or input.ndim == 0:
            shape = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"expected an input [*, in_features], got {shape}")
        fresh = self.has_uninitialized_params()
        self.in_features = input.shape[-1] if fresh else self.weight.shape[-1]
        if is_lazy(self.weight):
            self.weight.materialize((self.out_features, self.in_features))
        if self.bias is not None and is_lazy(self.bias):
            self.bias.materialize((self.out_features,))
        if fresh:
            self.reset_parameters()


class Bilinear(Module):
    """y_o = x1ᵀ W_o x2 + b_o for x1 [*, in1_features] and x2 [*, in2_features].

    weight [out_features, in1_features, in2_features]; drawn from U(-k, k),
    k = 1 / sqrt(in1_features).
    """

    bias: Parameter | None

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in1_features = whole("Bilinear", "in1_features", in1_features)
        self.in2_features = whole("Bilinear", "in2_features", in2_features, 0)
        self.out_features = whole("Bilinear", "out_features", out_features, 0)
        wanted = factory("Bilinear", device, dtype)
        sizes = (self.out_features, self.in1_features, self.in2_features)
        self.weight = Parameter(empty(sizes, **wanted))
        if bias:
            self.bias = Parameter(empty((self.out_features,), **wanted))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        bound = 1 / math.sqrt(self.in1_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return F.bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )
