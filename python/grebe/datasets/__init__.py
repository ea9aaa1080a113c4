"""Real data sets: Digits, MNIST, Fashion-MNIST, and any images in MNIST's file format."""

from .idx import read_idx
from .images import MNIST, Digits, FashionMNIST, IDXImages, ImageDataset
from .resize import Resize

__all__ = ["MNIST", "Digits", "FashionMNIST", "IDXImages", "ImageDataset", "Resize", "read_idx"]
