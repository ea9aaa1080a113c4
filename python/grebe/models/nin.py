"""Network in network. D2L section 8.3."""

from __future__ import annotations

from .. import nn


def nin_block(num_channels: int, kernel_size: int, stride: int, padding: int) -> nn.Sequential:
    """A convolution and two 1x1 convolutions, each with ReLU."""
    return nn.Sequential(
        nn.LazyConv2d(num_channels, kernel_size, stride, padding),
        nn.ReLU(),
        nn.LazyConv2d(num_channels, kernel_size=1),
        nn.ReLU(),
        nn.LazyConv2d(num_channels, kernel_size=1),
        nn.ReLU(),
    )


class NiN(nn.Sequential):
    """Four NiN blocks; the classes are the channels of the last, averaged over the image.

    M. Lin, Q. Chen and S. Yan, "Network in network", ICLR 2014, as in D2L section 8.3.

    Args:
        num_classes: classes.
        dropout: share of the units dropped before the last block.

    Shape: [N, C, H, W] -> [N, num_classes]. The first input sets C; H and W from 67 (the book:
    1x224x224).
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__(
            nin_block(96, kernel_size=11, stride=4, padding=0),
            nn.MaxPool2d(3, stride=2),
            nin_block(256, kernel_size=5, stride=1, padding=2),
            nn.MaxPool2d(3, stride=2),
            nin_block(384, kernel_size=3, stride=1, padding=1),
            nn.MaxPool2d(3, stride=2),
            nn.Dropout(dropout),
            nin_block(num_classes, kernel_size=3, stride=1, padding=1),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
        )
