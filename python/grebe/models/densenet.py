"""DenseNet. D2L section 8.7."""

from __future__ import annotations

from collections.abc import Sequence

from .. import Tensor, cat, nn


def conv_block(num_channels: int) -> nn.Sequential:
    """Batch norm, ReLU and a 3x3 convolution."""
    return nn.Sequential(
        nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(num_channels, kernel_size=3, padding=1)
    )


class DenseBlock(nn.Module):
    """Convolution blocks, each on the input and the outputs of all blocks before it.

    Shape: [N, C, H, W] -> [N, C + num_convs * num_channels, H, W]. The first input sets C.
    """

    def __init__(self, num_convs: int, num_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(conv_block(num_channels) for _ in range(num_convs)))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.net:
            x = cat((x, block(x)), dim=1)
        return x


def transition_block(num_channels: int) -> nn.Sequential:
    """Batch norm, ReLU, a 1x1 convolution and average pooling: fewer channels, half the size."""
    return nn.Sequential(
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConv2d(num_channels, kernel_size=1),
        nn.AvgPool2d(kernel_size=2, stride=2),
    )


class DenseNet(nn.Sequential):
    """A convolutional stem, dense blocks with transitions between them, a linear layer.

    G. Huang, Z. Liu, L. van der Maaten and K. Weinberger, "Densely connected convolutional
    networks", CVPR 2017, as in D2L section 8.7.

    Args:
        num_channels: channels of the stem.
        growth_rate: channels that each convolution adds.
        arch: convolutions per dense block.
        num_classes: classes.

    Shape: [N, C, H, W] -> [N, num_classes]. The first input sets C; H and W from 29 (the book:
    1x96x96).
    """

    def __init__(
        self,
        num_channels: int = 64,
        growth_rate: int = 32,
        arch: Sequence[int] = (4, 4, 4, 4),
        num_classes: int = 10,
    ) -> None:
        super().__init__(
            nn.Sequential(
                nn.LazyConv2d(num_channels, kernel_size=7, stride=2, padding=3),
                nn.LazyBatchNorm2d(),
                nn.ReLU(),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        )
        for i, num_convs in enumerate(arch):
            self.add_module(f"dense_blk{i + 1}", DenseBlock(num_convs, growth_rate))
            num_channels += num_convs * growth_rate
            if i + 1 < len(arch):
                num_channels //= 2
                self.add_module(f"tran_blk{i + 1}", transition_block(num_channels))
        self.add_module(
            "last",
            nn.Sequential(
                nn.LazyBatchNorm2d(),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d((1, 1)),
                nn.Flatten(),
                nn.LazyLinear(num_classes),
            ),
        )
