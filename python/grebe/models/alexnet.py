"""AlexNet. D2L section 8.1."""

from __future__ import annotations

from .. import nn


class AlexNet(nn.Sequential):
    """Five convolutions with overlapping max pooling, then three linear layers with dropout.

    A. Krizhevsky, I. Sutskever and G. Hinton, "ImageNet classification with deep convolutional
    neural networks", NeurIPS 2012, on one device as in D2L section 8.1.

    Args:
        num_classes: classes.
        dropout: share of the units dropped before the last two layers.

    Shape: [N, C, H, W] -> [N, num_classes]. The first input sets C, H and W; H and W from 65
    (the book: 1x224x224).
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__(
            nn.LazyConv2d(96, kernel_size=11, stride=4, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.LazyConv2d(256, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.LazyConv2d(384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.LazyConv2d(384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.LazyConv2d(256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Flatten(),
            nn.LazyLinear(4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LazyLinear(4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LazyLinear(num_classes),
        )
