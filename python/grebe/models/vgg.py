"""VGG: networks of repeated blocks. D2L section 8.2."""

from __future__ import annotations

from collections.abc import Sequence

from .. import nn


def vgg_block(num_convs: int, num_channels: int) -> nn.Sequential:
    """3x3 convolutions with ReLU, then max pooling that halves height and width."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [nn.LazyConv2d(num_channels, kernel_size=3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2))


class VGG(nn.Sequential):
    """VGG blocks, then three linear layers with dropout.

    K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image
    recognition", ICLR 2015, as in D2L section 8.2.

    Args:
        arch: (convolutions, channels) per block.
        num_classes: classes.
        dropout: share of the units dropped before the last two layers.

    Shape: [N, C, H, W] -> [N, num_classes]. The first input sets C, H and W; H and W from
    2**len(arch) (the book: 1x224x224).
    """

    def __init__(
        self, arch: Sequence[tuple[int, int]], num_classes: int = 10, dropout: float = 0.5
    ) -> None:
        super().__init__(
            *(vgg_block(*block) for block in arch),
            nn.Flatten(),
            nn.LazyLinear(4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LazyLinear(4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LazyLinear(num_classes),
        )


class VGG11(VGG):
    """VGG with eight convolutions in five blocks. Arguments as for `VGG`, without `arch`."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__(((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)), num_classes, dropout)
