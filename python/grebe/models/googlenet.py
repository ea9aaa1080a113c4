"""GoogLeNet: networks with parallel branches. D2L section 8.4."""

from __future__ import annotations

from .. import Tensor, cat, nn

Pair = tuple[int, int]


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1 then 3x3; 1x1 then 5x5; pooling then 1x1.

    Args:
        c1, c2, c3, c4: channels of the branches; where there are two convolutions, of both.

    Shape: [N, C, H, W] -> [N, c1 + c2[1] + c3[1] + c4, H, W]. The first input sets C.
    """

    def __init__(self, c1: int, c2: Pair, c3: Pair, c4: int) -> None:
        super().__init__()
        self.b1_1 = nn.LazyConv2d(c1, kernel_size=1)
        self.b2_1 = nn.LazyConv2d(c2[0], kernel_size=1)
        self.b2_2 = nn.LazyConv2d(c2[1], kernel_size=3, padding=1)
        self.b3_1 = nn.LazyConv2d(c3[0], kernel_size=1)
        self.b3_2 = nn.LazyConv2d(c3[1], kernel_size=5, padding=2)
        self.b4_1 = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.b4_2 = nn.LazyConv2d(c4, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        relu = nn.functional.relu
        b1 = relu(self.b1_1(x))
        b2 = relu(self.b2_2(relu(self.b2_1(x))))
        b3 = relu(self.b3_2(relu(self.b3_1(x))))
        b4 = relu(self.b4_2(self.b4_1(x)))
        return cat((b1, b2, b3, b4), dim=1)


def _halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


class GoogLeNet(nn.Sequential):
    """A convolutional stem, nine Inception blocks, an average over the image, a linear layer.

    C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, without its auxiliary
    classifiers, as in D2L section 8.4.

    Args:
        num_classes: classes.

    Shape: [N, C, H, W] -> [N, num_classes], any H and W (the book: 1x96x96). The first input
    sets C.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(
            nn.Sequential(
                nn.LazyConv2d(64, kernel_size=7, stride=2, padding=3), nn.ReLU(), _halve()
            ),
            nn.Sequential(
                nn.LazyConv2d(64, kernel_size=1),
                nn.ReLU(),
                nn.LazyConv2d(192, kernel_size=3, padding=1),
                nn.ReLU(),
                _halve(),
            ),
            nn.Sequential(
                Inception(64, (96, 128), (16, 32), 32),
                Inception(128, (128, 192), (32, 96), 64),
                _halve(),
            ),
            nn.Sequential(
                Inception(192, (96, 208), (16, 48), 64),
                Inception(160, (112, 224), (24, 64), 64),
                Inception(128, (128, 256), (24, 64), 64),
                Inception(112, (144, 288), (32, 64), 64),
                Inception(256, (160, 320), (32, 128), 128),
                _halve(),
            ),
            nn.Sequential(
                Inception(256, (160, 320), (32, 128), 128),
                Inception(384, (192, 384), (48, 128), 128),
                nn.AdaptiveAvgPool2d((1, 1)),
                nn.Flatten(),
            ),
            nn.LazyLinear(num_classes),
        )
