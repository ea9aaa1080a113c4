"""Residual networks and ResNeXt. D2L section 8.6."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import Tensor, nn

# (channels, 1x1 convolution on the shortcut?, stride) -> block
MakeBlock = Callable[[int, bool, int], nn.Module]


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input: relu(f(x) + x).

    Args:
        num_channels: output channels.
        use_1x1conv: a 1x1 convolution on the shortcut, where channels or size change.
        stride: stride of the first convolution and of the shortcut.

    Shape: [N, C, H, W] -> [N, num_channels, ceil(H / stride), ceil(W / stride)]. The first input
    sets C.
    """

    def __init__(self, num_channels: int, use_1x1conv: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.LazyConv2d(num_channels, kernel_size=3, padding=1, stride=stride)
        self.conv2 = nn.LazyConv2d(num_channels, kernel_size=3, padding=1)
        self.conv3 = nn.LazyConv2d(num_channels, 1, stride) if use_1x1conv else None
        self.bn1 = nn.LazyBatchNorm2d()
        self.bn2 = nn.LazyBatchNorm2d()

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nn.functional.relu(y + (self.conv3(x) if self.conv3 else x))


class ResNeXtBlock(nn.Module):
    """Bottleneck block: 1x1, grouped 3x3 and 1x1 convolution with batch norm, added to the input.

    With one group and bot_mul 1/4 it is the block of ResNet-50. (`groups` is the number of groups;
    the book's code divides by it where its text means the same.)

    Args:
        num_channels: output channels.
        groups: groups of the 3x3 convolution.
        bot_mul: channels of the bottleneck over num_channels.
        use_1x1conv: a 1x1 convolution on the shortcut, where channels or size change.
        stride: stride of the 3x3 convolution and of the shortcut.

    Shape: as for `Residual`.
    """

    def __init__(
        self,
        num_channels: int,
        groups: int,
        bot_mul: float,
        use_1x1conv: bool = False,
        stride: int = 1,
    ) -> None:
        super().__init__()
        width = round(num_channels * bot_mul)
        self.conv1 = nn.LazyConv2d(width, kernel_size=1)
        self.conv2 = nn.LazyConv2d(width, 3, stride=stride, padding=1, groups=groups)
        self.conv3 = nn.LazyConv2d(num_channels, kernel_size=1)
        self.bn1 = nn.LazyBatchNorm2d()
        self.bn2 = nn.LazyBatchNorm2d()
        self.bn3 = nn.LazyBatchNorm2d()
        self.conv4 = nn.LazyConv2d(num_channels, 1, stride) if use_1x1conv else None
        self.bn4 = nn.LazyBatchNorm2d() if use_1x1conv else None

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        y = nn.functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.conv4 is not None and self.bn4 is not None:
            x = self.bn4(self.conv4(x))
        return nn.functional.relu(y + x)


class ResNet(nn.Sequential):
    """A convolutional stem, stages of residual blocks, an average over the image, a linear layer.

    K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", CVPR 2016;
    S. Xie et al., "Aggregated residual transformations for deep neural networks", CVPR 2017; as in
    D2L section 8.6. Every stage but the first halves height and width.

    Args:
        arch: (blocks, channels) per stage.
        num_classes: classes.
        block: makes a block from its channels, whether its shortcut needs a convolution, and its
            stride.

    Shape: [N, C, H, W] -> [N, num_classes], any H and W (the book: 1x96x96). The first input
    sets C.
    """

    stem_channels = 64

    def __init__(
        self,
        arch: Sequence[tuple[int, int]],
        num_classes: int = 10,
        block: MakeBlock = Residual,
    ) -> None:
        super().__init__(
            nn.Sequential(
                nn.LazyConv2d(self.stem_channels, kernel_size=7, stride=2, padding=3),
                nn.LazyBatchNorm2d(),
                nn.ReLU(),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        )
        channels = self.stem_channels
        for i, (blocks, width) in enumerate(arch):
            stride = 1 if i == 0 else 2
            first = block(width, stride != 1 or width != channels, stride)
            rest = (block(width, False, 1) for _ in range(blocks - 1))
            self.add_module(f"b{i + 2}", nn.Sequential(first, *rest))
            channels = width
        self.add_module(
            "last",
            nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.LazyLinear(num_classes)),
        )


_DEEP = ((3, 256), (4, 512), (6, 1024), (3, 2048))


class ResNet18(ResNet):
    """ResNet of two blocks of two convolutions in each of four stages."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(((2, 64), (2, 128), (2, 256), (2, 512)), num_classes)


class ResNet34(ResNet):
    """ResNet of 3, 4, 6 and 3 blocks of two convolutions."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(((3, 64), (4, 128), (6, 256), (3, 512)), num_classes)


class ResNet50(ResNet):
    """ResNet of 3, 4, 6 and 3 bottleneck blocks of three convolutions."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(_DEEP, num_classes, lambda c, conv, s: ResNeXtBlock(c, 1, 0.25, conv, s))


class ResNeXt50(ResNet):
    """ResNeXt-50 (32x4d): ResNet-50 with 32 groups in bottlenecks of twice the width."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(_DEEP, num_classes, lambda c, conv, s: ResNeXtBlock(c, 32, 0.5, conv, s))
