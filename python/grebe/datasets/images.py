"""Image classification data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._cpu import wrap
from ..backend import empty
from ..tensor import Tensor
from ..utils.data import Dataset, default_collate
from ..utils.data.dataset import Batch, row_numbers
from .download import fetch
from .idx import read_idx

Path = str | os.PathLike[str]
Transform = Callable[[Any], Any]


class ImageDataset(Dataset[tuple[Any, Any]]):
    """Grey images with class labels, held in memory.

    Attributes:
        data: uint8 tensor [N, H, W] as in the files.
        targets: int64 tensor [N], labels from 0.
        classes: names of the classes.

    `dataset[i]` is `(image, label)`: a float32 tensor [1, H, W] with values in [0, 1] and an int,
    each passed through `transform` and `target_transform` if given. (torchvision hands a PIL image
    to `transform`; here it is that tensor, so no `ToTensor()` is needed.)
    """

    white: ClassVar[float] = 255.0  # the value of `data` that becomes 1

    data: Tensor
    targets: Tensor
    classes: list[str]

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: list[str],
        transform: Transform | None,
        target_transform: Transform | None,
    ) -> None:
        self.data, self.targets = wrap(images), wrap(labels)
        self.classes = list(classes)
        self.transform, self.target_transform = transform, target_transform

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class names to labels."""
        return {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.targets.array)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(
                f"{type(self).__name__}: index {index} is out of range for {n} samples"
            )
        pixels = self.data.array[index][None]
        image: Any = wrap(np.true_divide(pixels, np.float32(self.white), dtype=np.float32))
        label: Any = int(self.targets.array[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def __getbatch__(self, indices: Batch) -> Any:
        if self.transform is not None or self.target_transform is not None:
            return default_collate([self[int(i)] for i in indices])
        rows = row_numbers(indices, len(self), type(self).__name__)
        pixels = self.data.array[rows][:, None]
        images = empty(pixels.shape, np.dtype(np.float32))
        np.true_divide(pixels, np.float32(self.white), out=images)
        return [wrap(images), wrap(self.targets.array[rows])]

    def __repr__(self) -> str:
        _, height, width = self.data.shape
        return f"{type(self).__name__}({len(self)} images, {height}x{width})"


class Digits(ImageDataset):
    """1,797 handwritten digits of 8x8 pixels, from scikit-learn: 1,437 to train and 360 to test.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI. The split
    is random but fixed, since the original order is by writer.

    Raises:
        ImportError: scikit-learn is not installed.
    """

    white = 16.0

    def __init__(
        self,
        train: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                f"Digits needs scikit-learn ({error}); install it by: pip install grebe[data]"
            ) from None
        bunch = load_digits()
        order = np.random.RandomState(0).permutation(len(bunch.target))
        part = order[:1437] if train else order[1437:]
        super().__init__(
            bunch.images[part].astype(np.uint8),
            bunch.target[part].astype(np.int64),
            [str(digit) for digit in range(10)],
            transform,
            target_transform,
        )
        self.train = train


class IDXImages(ImageDataset):
    """Images in four IDX files named as MNIST's (`train-images-idx3-ubyte`, ...), plain or `.gz`.

    Args:
        root: the folder, or one that holds them in `raw/`, `<class name>/` or `<class name>/raw/`.
        train: the training files (`train-...`) or the test files (`t10k-...`).
        transform, target_transform: applied to image and label in `dataset[i]`.

    Raises:
        FileNotFoundError: no such files; the message tells the folders that were searched.
        ValueError: a damaged file, images and labels that do not match, an unknown label.
    """

    _classes: ClassVar[list[str] | None] = None

    def __init__(
        self,
        root: Path,
        train: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        self.root, self.train = os.fspath(root), train
        self._load(self._folders(), transform, target_transform)

    def _folders(self) -> list[str]:
        name = type(self).__name__
        return [os.path.join(self.root, *sub) for sub in ((), ("raw",), (name, "raw"), (name,))]

    def _load(
        self, folders: list[str], transform: Transform | None, target_transform: Transform | None
    ) -> None:
        images_path, labels_path = (find(file, folders) for file in self._files())
        if images_path is None or labels_path is None:
            raise FileNotFoundError(self._missing(folders))
        images, labels = _read_pair(images_path, labels_path)
        classes = self._classes or [str(label) for label in range(int(labels.max()) + 1)]
        if labels.max() >= len(classes):
            raise ValueError(
                f"{labels_path!r}: label {labels.max()} is out of range for {len(classes)} classes"
            )
        super().__init__(images, labels.astype(np.int64), classes, transform, target_transform)

    def _files(self) -> tuple[str, str]:
        part = "train" if self.train else "t10k"
        return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"

    def _missing(self, folders: list[str]) -> str:
        images, labels = self._files()
        return (
            f"{type(self).__name__}: expected the files {images} and {labels} (or .gz) in one of "
            + ", ".join(map(repr, folders))
        )


class MNIST(IDXImages):
    """70,000 handwritten digits, 28x28: 60,000 to train and 10,000 to test.

    Source: Y. LeCun, C. Cortes and C. Burges, http://yann.lecun.com/exdb/mnist. Arguments as in
    torchvision.

    Args:
        root: folder with the IDX files, plain or `.gz`, directly or in `raw/`, `MNIST/raw/` or
            `MNIST/`.
        train: training or test images.
        transform, target_transform: applied to image and label in `dataset[i]`.
        download: fetch missing files into `root/MNIST/raw`, checked by SHA-256.

    Raises:
        FileNotFoundError: the files are not there, and `download` is False.
        RuntimeError: they could not be downloaded.
        ValueError: a damaged file.
    """

    mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    }
    _classes: ClassVar[list[str] | None] = [
        f"{digit} - {word}"
        for digit, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        )
    ]

    def __init__(
        self,
        root: Path = "data",
        train: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        self.root, self.train = os.fspath(root), train
        folders = self._folders()
        if download:
            target = os.path.join(self.root, type(self).__name__, "raw")
            for file in self._files():
                if find(file, folders) is None:
                    fetch(f"{file}.gz", self.mirrors, self.checksums[file], target)
        self._load(folders, transform, target_transform)

    def _missing(self, folders: list[str]) -> str:
        return super()._missing(folders) + "; download=True fetches them"


class FashionMNIST(MNIST):
    """70,000 pictures of clothes in the format of MNIST: 60,000 to train and 10,000 to test.

    Source: H. Xiao, K. Rasul and R. Vollgraf, https://github.com/zalandoresearch/fashion-mnist.
    Arguments and errors as for `MNIST`; where `root` has no files, those of Debian's package
    dataset-fashion-mnist in /usr/share/datasets/fashion-mnist are taken if `root` is the default or
    `download` is True.
    """

    system_folder: ClassVar[str] = "/usr/share/datasets/fashion-mnist"
    mirrors = (
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    }
    _classes: ClassVar[list[str] | None] = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]

    def __init__(
        self,
        root: Path = "data",
        train: bool = True,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        self._system = download or os.fspath(root) == "data"
        super().__init__(root, train, transform, target_transform, download)

    def _folders(self) -> list[str]:
        return super()._folders() + ([self.system_folder] if self._system else [])


def find(file: str, folders: list[str]) -> str | None:
    """The first of `file` and `file`.gz that exists in `folders`; None if there is none."""
    for folder in folders:
        for suffix in ("", ".gz"):
            path = os.path.join(folder, file + suffix)
            if os.path.isfile(path):
                return path
    return None


def _read_pair(images_path: str, labels_path: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [N, H, W] and labels [N] of two files, checked."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{images_path!r}: expected images of uint8 [N, H, W], got {images.dtype} "
            f"{list(images.shape)}"
        )
    if labels.ndim != 1 or labels.dtype != np.uint8:
        raise ValueError(
            f"{labels_path!r}: expected labels of uint8 [N], got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path!r} has {len(images)} images but {labels_path!r} has {len(labels)} labels"
        )
    if images.size == 0:
        raise ValueError(f"{images_path!r}: expected at least one image with pixels, got none")
    return images, labels
