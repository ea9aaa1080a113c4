"""Real data sets: Digits, MNIST, Fashion-MNIST, images in MNIST's file format; texts."""

from .idx import read_idx
from .images import MNIST, Digits, FashionMNIST, IDXImages, ImageDataset
from .resize import Resize
from .text import read_pairs, read_prose, read_text, read_time_machine

__all__ = [
    "MNIST",
    "Digits",
    "FashionMNIST",
    "IDXImages",
    "ImageDataset",
    "Resize",
    "read_idx",
    "read_pairs",
    "read_prose",
    "read_text",
    "read_time_machine",
]
