"""Training an image classifier from the command line: `python -m grebe train`.

The whole data set is normalised once into one float32 array; a batch is one gather of its rows. A
step is forward, loss, backward and optimizer, and nothing else. Images are resized batch by batch:
that costs little beside a step, and Fashion-MNIST at 224x224 would take 12 GB.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import grebe

from . import _cpu, metrics, models, optim
from .autograd import no_grad
from .backend import empty
from .datasets import MNIST, Digits, FashionMNIST, IDXImages, ImageDataset, Resize
from .nn.functional import cross_entropy
from .nn.modules.module import Module
from .serialization import atomic_write, save_file
from .tensor import Tensor
from .utils.data.dataset import take

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "adagrad": optim.Adagrad,
}


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


class UsageError(ValueError):
    """What the user asked for cannot be done as it stands."""


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Config:
    """What to train on what, and how; None: a default that depends on model and data."""

    model: str
    data: str | None = None
    root: str = "data"
    download: bool = False
    resize: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str | None = None
    threads: int | None = None
    seed: int = 0
    out: str | None = None


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


@dataclass
class History:
    """What is known after each complete epoch."""

    loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    confusion: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Plan:
    """A Config with every default filled in."""

    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    out: str


# ---- data ----


def load_data(config: Config) -> Data:
    """The data of `config`: normalised, resized, and enlarged where LeNet needs it.

    Raises:
        UsageError: files that are missing, damaged or unsuitable.
    """
    try:
        name, train, test = _open(config)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(_one_line(error)) from None
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


# ---- the plan ----


def _plan(config: Config, data: Data) -> Plan:
    """`config` with its defaults. Small data sets get small batches and more epochs."""
    small = len(data.train.labels) < 10_000
    recipe = RECIPES[config.model]
    optimizer, lr = recipe.optimizer, recipe.lr
    if config.optimizer is not None and config.optimizer != optimizer:
        optimizer, lr = config.optimizer, {"sgd": 0.1, "adagrad": 0.01}.get(config.optimizer, 1e-3)
    label = os.path.basename(os.path.abspath(data.name))
    return Plan(
        optimizer=optimizer,
        lr=config.lr if config.lr is not None else lr,
        epochs=config.epochs or (30 if small else 10),
        batch_size=config.batch_size or (32 if small else recipe.batch_size),
        out=config.out or os.path.join("runs", f"{config.model}-{label}"),
    )


def _build(model: str, data: Data) -> Module:
    height, width = data.train.size
    classes = len(data.classes)
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
            f"--resize: images of {height}x{width} are too small for {model}: {_one_line(error)}"
        ) from None


def _open_folder(path: str) -> None:
    """Make `path` and see that files can be written there, before hours of training."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(
            f"--out: expected a folder to write to, got {path!r}: {error.strerror}"
        ) from None


# ---- training ----


def train_epoch(
    net: Module,
    optimizer: Any,
    part: Part,
    batch_size: int,
    order: NDArray[np.int64],
    report: Callable[[int, float, float], None],
) -> tuple[float, float]:
    """One pass over `part` in `order`; mean loss and accuracy, both while training.

    `report(samples, loss, accuracy)` is called after each step with the means so far.
    """
    labels = part.labels
    seen, correct, total = 0, 0, 0.0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        target = take(labels, rows)
        logits = net(part.batch(rows))
        loss = cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = float(loss.array)
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} after {seen} samples; try a smaller --lr")
        n = len(rows)
        seen += n
        total += value * n
        correct += int(np.count_nonzero(logits.array.argmax(1) == target.array))
        report(n, total / seen, correct / seen)
    return total / seen, correct / seen


def evaluate(net: Module, part: Part) -> NDArray[np.int64]:
    """Predicted labels [N]."""
    net.eval()
    guesses = []
    count, step = len(part.labels), max(1, _EVALUATION_PIXELS // math.prod(part.size))
    with no_grad():
        for start in range(0, count, step):
            logits = net(part.batch(np.arange(start, min(start + step, count))))
            guesses.append(logits.array.argmax(1))
    net.train()
    return np.concatenate(guesses)


class Run:
    """A training run: the network, what it has learned so far, and the files that tell of it."""

    def __init__(self, config: Config) -> None:
        """Load everything; raises UsageError before anything is trained."""
        self.config = config
        if config.threads is not None:
            _cpu.set_num_threads(config.threads)
        self.data = load_data(config)
        self.plan = _plan(config, self.data)
        _open_folder(self.plan.out)
        grebe.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.net = _build(config.model, self.data)
        self.optimizer = OPTIMIZERS[self.plan.optimizer](self.net.parameters(), lr=self.plan.lr)
        self.history = History()
        self.weights: dict[str, NDArray[Any]] | None = None

    def __call__(self) -> int:
        """Train; returns the exit code: 0, 1 if the loss diverged, 130 after Ctrl-C."""
        self._announce()
        try:
            for epoch in range(self.plan.epochs):
                self._epoch(epoch)
        except KeyboardInterrupt:
            return self._stop("interrupted", 130)
        except Diverged as error:
            return self._stop(str(error), 1)
        self._tell_classes()
        self._draw()
        return 0

    def _announce(self) -> None:
        count = sum(p.array.size for p in self.net.parameters())
        height, width = self.data.train.size
        print(
            f"{self.config.model} ({count:,} parameters) on {self.data.name}: "
            f"{len(self.data.train.labels):,} training and {len(self.data.test.labels):,} test "
            f"images of {height}x{width}; {self.plan.optimizer}, lr {self.plan.lr:g}, batch "
            f"{self.plan.batch_size}, {_cpu.num_threads()} threads, {_cpu.isa()}",
            flush=True,
        )

    def _epoch(self, epoch: int) -> None:
        train = self.data.train
        title = f"epoch {epoch + 1}/{self.plan.epochs}"
        with _progress(title, len(train.labels)) as report:
            start = time.perf_counter()
            order = self.rng.permutation(len(train.labels))
            loss, accuracy = train_epoch(
                self.net, self.optimizer, train, self.plan.batch_size, order, report
            )
            seconds = time.perf_counter() - start
        confusion = metrics.confusion_matrix(
            evaluate(self.net, self.data.test), self.data.test.labels, len(self.data.classes)
        )
        test_accuracy = float(confusion.trace() / confusion.sum())
        weights = {name: t.array.copy() for name, t in self.net.state_dict().items()}
        with _undisturbed():
            history = self.history
            history.loss.append(loss)
            history.train_accuracy.append(accuracy)
            history.test_accuracy.append(test_accuracy)
            history.seconds.append(seconds)
            history.confusion = confusion
            self.weights = weights
            self._save(epoch + 1 == self.plan.epochs, None)
        print(
            f"{title}  loss {loss:.4f}  accuracy {accuracy:.4f}  test accuracy "
            f"{test_accuracy:.4f}  {len(order) / seconds:,.0f} samples/s",
            flush=True,
        )

    def _stop(self, why: str, code: int) -> int:
        """Tell that training ended early, and leave the last complete epoch's files."""
        with _undisturbed():
            self._save(False, why)
        done = len(self.history.loss)
        kept = f"kept the weights of epoch {done}" if done else "no epoch was complete"
        print(f"\ngrebe train: {why}; {kept} in {self.plan.out}", file=sys.stderr)
        return code

    # ---- files ----

    def _save(self, finished: bool, stopped: str | None) -> None:
        if self.weights is not None:
            save_file(self.weights, os.path.join(self.plan.out, "model.safetensors"))
        text = json.dumps(self.result(finished, stopped), indent=2, allow_nan=False)
        atomic_write(os.path.join(self.plan.out, "result.json"), text.encode() + b"\n")

    def result(self, finished: bool, stopped: str | None) -> dict[str, Any]:
        """The content of result.json."""
        history, plan = self.history, self.plan
        seconds = sum(history.seconds)
        samples = len(history.seconds) * len(self.data.train.labels)
        return {
            "model": self.config.model,
            "data": self.data.name,
            "image_size": list(self.data.train.size),
            "finished": finished,
            "stopped": stopped,
            "epochs": len(history.loss),
            "accuracy": history.test_accuracy[-1] if history.test_accuracy else None,
            "loss": history.loss,
            "train_accuracy": history.train_accuracy,
            "test_accuracy": history.test_accuracy,
            "class_accuracy": self._class_accuracy(),
            "seconds": seconds,
            "seconds_per_epoch": history.seconds,
            "samples_per_second": samples / seconds if seconds else None,
            "weights": "model.safetensors" if self.weights is not None else None,
            "parameters": sum(p.array.size for p in self.net.parameters()),
            "optimizer": plan.optimizer,
            "lr": plan.lr,
            "batch_size": plan.batch_size,
            "seed": self.config.seed,
            "threads": _cpu.num_threads(),
            "isa": _cpu.isa(),
            "version": grebe.__version__,
        }

    def _class_accuracy(self) -> dict[str, float | None]:
        """Test accuracy per class; None for a class without test images."""
        if self.history.confusion is None:
            return {}
        totals = self.history.confusion.sum(1)
        right = self.history.confusion.diagonal()
        return {
            name: float(right[i] / totals[i]) if totals[i] else None
            for i, name in enumerate(self.data.classes)
        }

    def _tell_classes(self) -> None:
        print("test accuracy per class:")
        for name, share in self._class_accuracy().items():
            print(f"  {name:<14} {'no images' if share is None else f'{share:.4f}'}")
        print(f"files in {self.plan.out}: model.safetensors, result.json", flush=True)

    def _draw(self) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            print("no curve.png: matplotlib is not installed (pip install grebe[plot])")
            return
        import io

        history, figure = self.history, Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasAgg(figure)
        epochs = range(1, len(history.loss) + 1)
        axes = figure.add_subplot(xlabel="epoch", title=f"{self.config.model}, {self.data.name}")
        axes.plot(epochs, history.loss, "C0-", label="loss")
        axes.plot(epochs, history.train_accuracy, "C1--", label="training accuracy")
        axes.plot(epochs, history.test_accuracy, "C2-", label="test accuracy")
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.3)
        axes.legend()
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120)
        atomic_write(os.path.join(self.plan.out, "curve.png"), png.getvalue())
        print(f"curve in {os.path.join(self.plan.out, 'curve.png')}")


@contextlib.contextmanager
def _progress(title: str, samples: int) -> Iterator[Callable[[int, float, float], None]]:
    """A progress bar on a terminal's stderr; its text is made only as often as it is shown."""
    from tqdm import tqdm

    with tqdm(total=samples, desc=title, unit="", leave=False, disable=None) as bar:
        if bar.disable:
            yield lambda n, loss, accuracy: None
            return
        last = 0.0

        def report(n: int, loss: float, accuracy: float) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > 0.1:
                last = now
                bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}", refresh=False)
            bar.update(n)

        yield report


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait until the files of an epoch are written together."""
    pending = []
    try:
        before = signal.signal(signal.SIGINT, lambda *args: pending.append(args))
    except ValueError:  # not the main thread: no Ctrl-C arrives here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        raise KeyboardInterrupt


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
