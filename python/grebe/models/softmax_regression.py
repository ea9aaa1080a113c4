"""Softmax regression: one linear layer. D2L chapter 4."""

from __future__ import annotations

from .. import nn


class SoftmaxRegression(nn.Sequential):
    """Flatten, then one linear layer to the logits of the classes.

    Args:
        num_inputs: pixels per image.
        num_classes: classes.

    Shape: [N, ...] with num_inputs elements per sample -> [N, num_classes].
    """

    def __init__(self, num_inputs: int = 784, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(num_inputs, num_classes))
