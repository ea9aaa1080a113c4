"""Ready-made networks."""

from .lenet import LeNet
from .mlp import MLP
from .softmax_regression import SoftmaxRegression

__all__ = ["MLP", "LeNet", "SoftmaxRegression"]
