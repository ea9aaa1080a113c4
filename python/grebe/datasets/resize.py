"""Images of another size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._cpu import wrap
from ..tensor import Tensor

__all__ = ["Resize"]


class Resize:
    """Bilinear interpolation to a height and width, as a transform of images [..., H, W].

    y = A x B^T with one interpolation matrix per dimension: row i of A has the weights of the two
    pixels beside the centre of output pixel i. The same as
    `torch.nn.functional.interpolate(x, size, mode="bilinear")`, without antialiasing.

    Args:
        size: height and width, or one number for both.

    Raises:
        ValueError: a size below 1, or an image without height and width.
        TypeError: pixels that are integers.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"Resize: expected size >= 1, got {size}")
        self._matrices: dict[tuple[int, int, np.dtype[np.floating]], Tensor] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """`image` at the new size."""
        if image.ndim < 2:
            raise ValueError(
                f"Resize: expected an image [..., H, W], got shape {list(image.shape)}"
            )
        if not image.is_floating_point():
            raise TypeError(f"Resize: expected floating-point pixels, got {image.dtype}")
        rows = self._matrix(image.shape[-2], self.size[0], image.dtype)
        columns = self._matrix(image.shape[-1], self.size[1], image.dtype)
        return rows @ (image @ columns.transpose(0, 1))

    def __repr__(self) -> str:
        return f"Resize{self.size}"

    def _matrix(self, old: int, new: int, dtype: np.dtype[np.floating]) -> Tensor:
        key = (old, new, dtype)
        if key not in self._matrices:
            self._matrices[key] = wrap(interpolation(old, new).astype(dtype))
        return self._matrices[key]


def interpolation(old: int, new: int) -> NDArray[np.float64]:
    """The matrix [new, old] that interpolates linearly between pixel centres."""
    at = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    low = at.astype(np.int64)
    share = at - low
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] = 1 - share
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += share
    return matrix
