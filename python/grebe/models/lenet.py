"""LeNet-5 with today's activations. D2L chapter 7."""

from __future__ import annotations

from .. import nn


class LeNet(nn.Sequential):
    """Two convolutions with pooling, then three linear layers.

    The sizes are those of LeNet-5 (Y. LeCun et al., "Gradient-based learning applied to document
    recognition", Proc. IEEE 1998) as in D2L section 7.6. Instead of its sigmoids and average
    pooling, which with the book's recipe stay near 80% on Fashion-MNIST, it has ReLU and max
    pooling, which reach 89% in ten epochs. The layers are a plain Sequential: the same ones from
    `torch.nn`, in the same order, take the same state dict.

    Args:
        num_classes: classes.
        in_channels: channels of the images.
        image_size: height and width of the images, each at least 12.

    Shape: [N, in_channels, *image_size] -> [N, num_classes].

    Raises:
        ValueError: images that are too small for two convolutions and poolings.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
    ) -> None:
        if min(image_size) < 12:
            raise ValueError(f"LeNet: images must be at least 12x12, got {image_size}")
        height, width = ((size // 2 - 4) // 2 for size in image_size)
        super().__init__(
            nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )
