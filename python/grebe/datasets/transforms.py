"""Transforms of images under torchvision's names: float tensors [..., C, H, W] in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._cpu import wrap
from ..ops.random import rand, randint
from ..tensor import Tensor
from .resize import Resize

__all__ = [
    "CenterCrop", "Compose", "Normalize", "RandomCrop", "RandomHorizontalFlip",
    "RandomResizedCrop", "RandomVerticalFlip", "Resize", "ToTensor",
]  # fmt: skip


def _pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or any(
        isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes
    ):
        raise ValueError(f"{name}: size must be one or two positive ints, got {size!r}")
    return sizes[0], sizes[1]


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        return "Compose(\n" + "".join(f"    {t}\n" for t in self.transforms) + ")"


class ToTensor:
    """A PIL image or a NumPy array [H, W] or [H, W, C] as a tensor [C, H, W]; uint8 becomes [0, 1].

    Tensors pass: grebe's data sets hand them out.
    """

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            return image
        array = np.asarray(image)
        if array.ndim not in (2, 3):
            raise ValueError(f"ToTensor: expected 2 or 3 dimensions, got {list(array.shape)}")
        array = array[:, :, None] if array.ndim == 2 else array
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
        return wrap(array / np.float32(255) if array.dtype == np.uint8 else array)

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize:
    """(image - mean) / std for each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        self.mean, self.std, self.inplace = list(mean), list(std), inplace
        if not all(self.std):
            raise ValueError(f"Normalize: std must not be zero, got {self.std}")

    def __call__(self, image: Tensor) -> Tensor:
        mean, std = (
            wrap(np.asarray(v, image.array.dtype).reshape(-1, 1, 1)) for v in (self.mean, self.std)
        )
        return image.sub_(mean).div_(std) if self.inplace else (image - mean) / std

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


def _crop(name: str, image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    h, w = image.shape[-2:]
    if height > h or width > w:
        raise ValueError(f"{name}: cannot cut {height}x{width} out of {h}x{w}")
    return image[..., top : top + height, left : left + width]


class CenterCrop:
    """The middle of the image."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = _pair("CenterCrop", size)

    def __call__(self, image: Tensor) -> Tensor:
        (h, w), (height, width) = image.shape[-2:], self.size
        top, left = round((h - height) / 2), round((w - width) / 2)
        return _crop("CenterCrop", image, top, left, height, width)

    def __repr__(self) -> str:
        return f"CenterCrop(size={self.size})"


class RandomCrop:
    """A part anywhere in the image, after `padding` zeros on each side."""

    def __init__(self, size: int | Sequence[int], padding: int = 0) -> None:
        self.size, self.padding = _pair("RandomCrop", size), padding

    def __call__(self, image: Tensor) -> Tensor:
        if self.padding:
            edge = [(0, 0)] * (image.ndim - 2) + [(self.padding, self.padding)] * 2
            image = wrap(np.pad(image.array, edge))
        (h, w), (height, width) = image.shape[-2:], self.size
        top = int(randint(0, max(h - height, 0) + 1, ()))
        left = int(randint(0, max(w - width, 0) + 1, ()))
        return _crop("RandomCrop", image, top, left, height, width)

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, padding={self.padding})"


class RandomResizedCrop:
    """A part of random area and shape, resized. Szegedy et al. 2015; D2L section 14.1.

    Args:
        size: of the result.
        scale: least and largest share of the area.
        ratio: least and largest width over height.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size, self.scale, self.ratio = _pair("RandomResizedCrop", size), scale, ratio
        self._resize = Resize(self.size)

    def __call__(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        for _ in range(10):
            u = rand(4).tolist()
            area = h * w * (self.scale[0] + u[0] * (self.scale[1] - self.scale[0]))
            low, high = np.log(self.ratio)
            ratio = float(np.exp(low + u[1] * (high - low)))
            width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < width <= w and 0 < height <= h:
                top, left = int(u[2] * (h - height + 1)), int(u[3] * (w - width + 1))
                return self._resize(image[..., top : top + height, left : left + width])
        side = min(h, w)
        return self._resize(CenterCrop(side)(image))

    def __repr__(self) -> str:
        return f"RandomResizedCrop(size={self.size}, scale={self.scale}, ratio={self.ratio})"


class RandomHorizontalFlip:
    """Mirrored left to right with probability `p`."""

    dim = -1

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"{type(self).__name__}: p must be between 0 and 1, got {p}")
        self.p = p

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(self.dim) if float(rand(())) < self.p else image

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"


class RandomVerticalFlip(RandomHorizontalFlip):
    """Upside down with probability `p`."""

    dim = -2
