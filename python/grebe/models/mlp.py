"""A multilayer perceptron. D2L chapter 5."""

from __future__ import annotations

from .. import nn


class MLP(nn.Sequential):
    """Flatten, a hidden layer with ReLU, a linear layer to the logits of the classes.

    Args:
        num_inputs: pixels per image.
        num_hidden: units of the hidden layer.
        num_classes: classes.

    Shape: [N, ...] with num_inputs elements per sample -> [N, num_classes].
    """

    def __init__(self, num_inputs: int = 784, num_hidden: int = 256, num_classes: int = 10) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(num_inputs, num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, num_classes),
        )
