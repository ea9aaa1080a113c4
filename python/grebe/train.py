"""Training an image classifier from the command line: `python -m grebe train`.

The whole data set is normalised once into one float32 array; a batch is one gather of its rows. A
step is forward, loss, backward and optimizer, and nothing else. Images are resized batch by batch:
that costs little beside a step, and Fashion-MNIST at 224x224 would take 12 GB.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import grebe

from . import metrics, models
from .autograd import no_grad
from .backend import empty
from .datasets import MNIST, Digits, FashionMNIST, IDXImages, ImageDataset, Resize
from .nn.functional import cross_entropy
from .nn.modules.module import Module
from .runner import (
    BaseConfig,
    BaseRun,
    Report,
    Stepper,
    UsageError,
    make_config,
    make_plan,
    one_line,
)
from .tensor import Tensor
from .utils.data.dataset import take


@dataclass(frozen=True)
class Recipe:
    """How a model is trained where the command line does not say."""

    optimizer: str
    lr: float
    size: int | None = None  # images are resized to this height and width
    batch_size: int = 256


# The book's, but Adam for networks without batch norm, which start slowly with plain SGD.
RECIPES = {
    "softmax-regression": Recipe("sgd", 0.1),
    "mlp": Recipe("adam", 1e-3),
    "lenet": Recipe("adam", 2e-3),
    "alexnet": Recipe("adam", 3e-4, 224, 128),
    "vgg11": Recipe("adam", 3e-4, 224, 128),
    "nin": Recipe("adam", 3e-4, 224, 128),
    "googlenet": Recipe("adam", 3e-4, 96, 128),
    "resnet18": Recipe("sgd", 0.01, 96, 128),
    "resnet34": Recipe("sgd", 0.01, 96, 128),
    "resnet50": Recipe("sgd", 0.01, 96, 128),
    "resnext50": Recipe("sgd", 0.01, 96, 128),
    "densenet": Recipe("sgd", 0.01, 96, 128),
    "vit": Recipe("adam", 3e-4, 96, 128),
}
_LAZY: dict[str, Callable[..., Module]] = {  # their layers take shape with the first images
    "alexnet": models.AlexNet,
    "vgg11": models.VGG11,
    "nin": models.NiN,
    "googlenet": models.GoogLeNet,
    "resnet18": models.ResNet18,
    "resnet34": models.ResNet34,
    "resnet50": models.ResNet50,
    "resnext50": models.ResNeXt50,
    "densenet": models.DenseNet,
}
_LENET_SIDE = 28  # smaller images are enlarged to this size for LeNet
_EVALUATION_PIXELS = 1000 * 28 * 28  # per batch


@dataclass(frozen=True)
class Config(BaseConfig):
    """What to train on what, and how; None: a default that depends on model and data."""

    root: str = "data"
    download: bool = False
    resize: int | None = None


@dataclass(frozen=True)
class ViTConfig(Config):
    """A Vision Transformer; the defaults are the book's."""

    patch: int = 16
    hidden: int = 512
    heads: int = 8
    layers: int = 2
    dropout: float = 0.1
    checkpoint: bool = False

    def net_options(self) -> dict[str, Any]:
        """What the network is made from, beside the images' size and classes."""
        return {
            "patch_size": self.patch,
            "num_hiddens": self.hidden,
            "mlp_num_hiddens": 4 * self.hidden,
            "num_heads": self.heads,
            "num_layers": self.layers,
            "emb_dropout": self.dropout,
            "blk_dropout": self.dropout,
        }


@dataclass(frozen=True)
class Part:
    """Normalised images [N, 1, H, W] and labels [N]; `resize` is done batch by batch."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    resize: Resize | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in a batch."""
        if self.resize is not None:
            return self.resize.size
        _, _, height, width = self.images.shape
        return height, width

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """The images of the given numbers."""
        images = take(self.images, rows)
        return images if self.resize is None else self.resize(images)


@dataclass(frozen=True)
class Data:
    """A data set ready for training."""

    name: str
    train: Part
    test: Part
    classes: list[str]


# ---- data ----


def load_data(config: Config) -> Data:
    """The data of `config`: normalised, resized, and enlarged where LeNet needs it.

    Raises:
        UsageError: files that are missing, damaged or unsuitable.
    """
    try:
        name, train, test = _open(config)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(one_line(error)) from None
    if train.data.shape[1:] != test.data.shape[1:]:
        raise UsageError(
            f"--data {name}: training images are {_size(train)} but test images are {_size(test)}"
        )
    classes = max((train.classes, test.classes), key=len)
    size = config.resize or RECIPES[config.model].size
    resize = Resize(size) if size else None
    side = _LENET_SIDE if config.model == "lenet" and not size else 0
    pixels = _enlarge(train.data.array, side)
    mean, std = _moments(pixels)
    parts = (
        Part(_normalise(pixels, mean, std), train.targets.array, resize),
        Part(_normalise(_enlarge(test.data.array, side), mean, std), test.targets.array, resize),
    )
    return Data(name, *parts, classes)


def _open(config: Config) -> tuple[str, ImageDataset, ImageDataset]:
    """Name, training set and test set."""
    wanted = config.data
    if wanted is None:
        with contextlib.suppress(FileNotFoundError):
            return "fashion-mnist", *_pair(FashionMNIST, root=config.root)
        wanted = "digits"
    if wanted == "digits":
        return wanted, *_pair(Digits)
    if wanted in ("mnist", "fashion-mnist"):
        kind = MNIST if wanted == "mnist" else FashionMNIST
        return wanted, *_pair(kind, root=config.root, download=config.download)
    if not os.path.isdir(wanted):
        raise UsageError(
            f"--data: expected digits, mnist, fashion-mnist or a folder with IDX files, got "
            f"{wanted!r}"
        )
    return wanted, *_pair(IDXImages, root=wanted)


def _pair(kind: Callable[..., ImageDataset], **kwargs: Any) -> tuple[ImageDataset, ImageDataset]:
    return kind(train=True, **kwargs), kind(train=False, **kwargs)


def _size(dataset: ImageDataset) -> str:
    return "x".join(map(str, dataset.data.shape[1:]))


def _enlarge(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images with every pixel repeated, then padded with zeros to `side`; large ones unchanged."""
    _, height, width = pixels.shape
    if min(height, width) >= side:
        return pixels
    factor = max(1, side // max(height, width))
    if factor > 1:
        pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    pads = [(max(0, side - size) // 2, max(0, side - size + 1) // 2) for size in pixels.shape[1:]]
    return np.pad(pixels, [(0, 0), *pads])


def _moments(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation, exactly, from the 256 possible values."""
    counts = np.bincount(pixels.reshape(-1), minlength=256)
    share, values = counts / counts.sum(), np.arange(256.0)
    mean = float(share @ values)
    return mean, float(np.sqrt(share @ (values - mean) ** 2)) or 1.0


def _normalise(pixels: NDArray[np.uint8], mean: float, std: float) -> NDArray[np.float32]:
    n, height, width = pixels.shape
    out: NDArray[np.float32] = empty((n, 1, height, width), np.dtype(np.float32))
    np.subtract(pixels[:, None], np.float32(mean), out=out)
    np.multiply(out, np.float32(1 / std), out=out)
    return out


# ---- the network ----


def _build(config: Config, data: Data) -> Module:
    model, (height, width) = config.model, data.train.size
    classes = len(data.classes)
    if isinstance(config, ViTConfig):
        return _vision_transformer(config, data)
    if model == "softmax-regression":
        return models.SoftmaxRegression(height * width, classes)
    if model == "mlp":
        return models.MLP(height * width, num_classes=classes)
    try:
        if model == "lenet":
            return models.LeNet(classes, 1, (height, width))
        net = _LAZY[model](num_classes=classes)
        return models.apply_init(net, grebe.zeros(1, 1, height, width))
    except (RuntimeError, ValueError) as error:  # a kernel larger than what is left of the image
        raise UsageError(
            f"--resize: images of {height}x{width} are too small for {model}: {one_line(error)}"
        ) from None


def _vision_transformer(config: ViTConfig, data: Data) -> Module:
    (height, width), classes = data.train.size, len(data.classes)
    if height != width or height % config.patch:
        raise UsageError(
            f"--patch: {config.patch} does not divide images of {height}x{width}; see --resize"
        )
    if config.hidden % config.heads:
        raise UsageError(
            f"--hidden must be divisible by --heads, got {config.hidden} and {config.heads}"
        )
    net = models.ViT(height, num_classes=classes, **config.net_options())
    net.checkpointing = config.checkpoint
    return net


# ---- training ----


def train_epoch(
    net: Module,
    step: Stepper,
    part: Part,
    batch_size: int,
    order: NDArray[np.int64],
    report: Report,
) -> tuple[float, float]:
    """One pass over `part` in `order`; mean loss and accuracy, both while training."""
    labels = part.labels
    seen, correct, total = 0, 0, 0.0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        target = take(labels, rows)
        with step.autocast:
            logits = net(part.batch(rows))
            loss = cross_entropy(logits, target)
        value = step(loss, seen)
        n = len(rows)
        seen += n
        total += value * n
        correct += int(np.count_nonzero(logits.array.argmax(1) == target.array))
        report(n, loss=total / seen, accuracy=correct / seen)
    return total / seen, correct / seen


def evaluate(net: Module, part: Part) -> NDArray[np.int64]:
    """Predicted labels [N]."""
    net.eval()
    guesses = []
    count, batch = len(part.labels), max(1, _EVALUATION_PIXELS // math.prod(part.size))
    with no_grad():
        for start in range(0, count, batch):
            logits = net(part.batch(np.arange(start, min(start + batch, count))))
            guesses.append(logits.array.argmax(1))
    net.train()
    return np.concatenate(guesses)


class Run(BaseRun):
    """The training of an image classifier."""

    curves: ClassVar = {
        "loss": ("C0-", "loss"),
        "train_accuracy": ("C1--", "training accuracy"),
        "test_accuracy": ("C2-", "test accuracy"),
    }

    def __init__(self, config: Config) -> None:
        """Load everything; raises UsageError before anything is trained."""
        self.data = data = load_data(config)
        # Small data sets get small batches and more epochs.
        small = len(data.train.labels) < 10_000
        recipe = RECIPES[config.model]
        batch_size = 32 if small else recipe.batch_size
        plan = make_plan(
            config, data.name, (recipe.optimizer, recipe.lr), 30 if small else 10, batch_size
        )
        super().__init__(config, plan, data.name, lambda: _build(config, data))
        self.history.update(train_accuracy=[], test_accuracy=[])
        self.confusion: NDArray[np.int64] | None = None
        self._latest: NDArray[np.int64] | None = None

    def describe(self) -> str:
        height, width = self.data.train.size
        return (
            f"{self.size:,} training and {len(self.data.test.labels):,} test images of "
            f"{height}x{width}"
        )

    @property
    def size(self) -> int:
        return len(self.data.train.labels)

    def train(self, report: Report) -> dict[str, float]:
        order = self.rng.permutation(self.size)
        loss, accuracy = train_epoch(
            self.net, self.step, self.data.train, self.plan.batch_size, order, report
        )
        return {"loss": loss, "train_accuracy": accuracy}

    def evaluate(self) -> dict[str, float]:
        self._latest = matrix = metrics.confusion_matrix(
            evaluate(self.net, self.data.test), self.data.test.labels, len(self.data.classes)
        )
        return {"test_accuracy": float(matrix.trace() / matrix.sum())}

    def keep(self) -> None:
        self.confusion = self._latest

    def headline(self, values: dict[str, float]) -> str:
        return (
            f"loss {values['loss']:.4f}  accuracy {values['train_accuracy']:.4f}  test accuracy "
            f"{values['test_accuracy']:.4f}"
        )

    def details(self) -> dict[str, Any]:
        tests = self.history["test_accuracy"]
        return {
            "accuracy": tests[-1] if tests else None,
            "class_accuracy": self._class_accuracy(),
            "image_size": list(self.data.train.size),
        }

    def _class_accuracy(self) -> dict[str, float | None]:
        """Test accuracy per class; None for a class without test images."""
        if self.confusion is None:
            return {}
        totals, right = self.confusion.sum(1), self.confusion.diagonal()
        return {
            name: float(right[i] / totals[i]) if totals[i] else None
            for i, name in enumerate(self.data.classes)
        }

    def conclude(self) -> None:
        print("test accuracy per class:")
        for name, share in self._class_accuracy().items():
            print(f"  {name:<14} {'no images' if share is None else f'{share:.4f}'}")


def make_run(options: Mapping[str, Any]) -> Run:
    """The run that command line options ask for; UsageError if it cannot be."""
    kind = ViTConfig if options["model"] == "vit" else Config
    return Run(make_config(kind, options))
