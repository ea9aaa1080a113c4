"""What all training runs of the command line share: their options, epochs, files and Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

import grebe

from . import _cpu, optim
from .amp import autocast
from .nn.modules.module import Module
from .serialization import atomic_write, save_file

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "adagrad": optim.Adagrad,
}
Report = Callable[..., None]  # report(samples, loss=..., ...) after each step, with means so far
C = TypeVar("C", bound="BaseConfig")


class UsageError(ValueError):
    """What the user asked for cannot be done as it stands."""


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class BaseConfig:
    """What to train on what, and how; None: a default that depends on model and data."""

    model: str
    data: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str | None = None
    threads: int | None = None
    seed: int = 0
    out: str | None = None
    accumulate: int = 1
    bf16: bool = False


@dataclass(frozen=True)
class Plan:
    """A configuration with the defaults of its model and data filled in."""

    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    out: str


def make_config(kind: type[C], given: Mapping[str, Any]) -> C:
    """The options `given` as a `kind`; UsageError for one that its model has no use for."""
    known = {field.name for field in dataclasses.fields(kind)}
    for name in given:
        if name not in known:
            raise UsageError(f"--{name.replace('_', '-')} does not belong to {given['model']}")
    return kind(**given)


def make_plan(
    config: BaseConfig, data: str, recipe: tuple[str, float], epochs: int, batch_size: int
) -> Plan:
    """`config` with these defaults; `recipe` is an optimizer and its learning rate."""
    optimizer, lr = recipe
    if config.optimizer is not None and config.optimizer != optimizer:
        optimizer, lr = config.optimizer, {"sgd": 0.1, "adagrad": 0.01}.get(config.optimizer, 1e-3)
    label = os.path.basename(os.path.abspath(data))
    return Plan(
        optimizer=optimizer,
        lr=config.lr if config.lr is not None else lr,
        epochs=config.epochs or epochs,
        batch_size=config.batch_size or batch_size,
        out=config.out or os.path.join("runs", f"{config.model}-{label}"),
    )


class BaseRun(ABC):
    """A training run: the network, what it has learned so far, and the files that tell of it.

    Attributes:
        history: per value its list over the complete epochs, among them loss and seconds.
        weights: those of the last complete epoch; None before.
    """

    unit: ClassVar[str] = "samples"
    curves: ClassVar[dict[str, tuple[str, str]]]  # in curve.png: value of history -> style, label

    def __init__(self, config: BaseConfig, plan: Plan, data: str, build: Callable[[], Module]):
        self.config, self.plan, self.data_name = config, plan, data
        if config.threads is not None:
            _cpu.set_num_threads(config.threads)
        _open_folder(plan.out)
        grebe.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.net = build()
        self.optimizer = OPTIMIZERS[plan.optimizer](self.net.parameters(), lr=plan.lr)
        self.step = Stepper(self.net, self.optimizer, None, config.accumulate)
        self.step.autocast = autocast("cpu", enabled=config.bf16)
        self.history: dict[str, list[float]] = {"loss": [], "seconds": []}
        self.weights: dict[str, NDArray[Any]] | None = None

    def __call__(self) -> int:
        """Train; returns the exit code: 0, 1 if the loss diverged, 130 after Ctrl-C."""
        count = sum(p.array.size for p in self.net.parameters())
        print(
            f"{self.config.model} ({count:,} parameters) on {self.data_name}: {self.describe()}; "
            f"{self.plan.optimizer}, lr {self.plan.lr:g}, batch {self.plan.batch_size}, "
            f"{_cpu.num_threads()} threads, {_cpu.isa()}",
            flush=True,
        )
        try:
            for epoch in range(self.plan.epochs):
                self._epoch(epoch)
        except KeyboardInterrupt:
            return self._stop("interrupted", 130)
        except Diverged as error:
            return self._stop(str(error), 1)
        self.conclude()
        print(f"files in {self.plan.out}: model.safetensors, result.json", flush=True)
        self._draw()
        return 0

    # ---- what a run is about ----

    @abstractmethod
    def describe(self) -> str:
        """The data, for the first line that is printed."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Samples (or what `unit` says) in an epoch."""

    @abstractmethod
    def train(self, report: Report) -> dict[str, float]:
        """One pass over the training data: the mean loss and other values for the history."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """The values for the history that the held-out data gives."""

    @abstractmethod
    def headline(self, values: dict[str, float]) -> str:
        """An epoch's values in a line."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """What result.json tells beside what it tells of every run."""

    def keep(self) -> None:
        """Take over what `evaluate` found beside its values; no Ctrl-C comes between."""
        return

    def sample(self) -> None:
        """Show after an epoch what the network can do."""
        return

    def conclude(self) -> None:
        """Print what is known in the end."""
        return

    # ---- epochs ----

    def _epoch(self, epoch: int) -> None:
        title = f"epoch {epoch + 1}/{self.plan.epochs}"
        with _progress(title, self.size) as report:
            start = time.perf_counter()
            values = self.train(report)
            self.step.flush()
            seconds = time.perf_counter() - start
        values.update(self.evaluate())
        weights = {name: t.array.copy() for name, t in self.net.state_dict().items()}
        with _undisturbed():
            for name, value in {**values, "seconds": seconds}.items():
                self.history.setdefault(name, []).append(value)
            self.weights = weights
            self.keep()
            self._save(epoch + 1 == self.plan.epochs, None)
        speed = f"{self.size / seconds:,.0f} {self.unit}/s"
        print(f"{title}  {self.headline(values)}  {speed}", flush=True)
        self.sample()

    def _stop(self, why: str, code: int) -> int:
        """Tell that training ended early, and leave the last complete epoch's files."""
        with _undisturbed():
            self._save(False, why)
        done = len(self.history["loss"])
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
        plan, history = self.plan, dict(self.history)
        epochs, seconds = history.pop("seconds"), sum(self.history["seconds"])
        return {
            "model": self.config.model,
            "data": self.data_name,
            "finished": finished,
            "stopped": stopped,
            "epochs": len(epochs),
            **history,
            **self.details(),
            "seconds": seconds,
            "seconds_per_epoch": epochs,
            f"{self.unit}_per_second": len(epochs) * self.size / seconds if seconds else None,
            "weights": "model.safetensors" if self.weights is not None else None,
            "parameters": sum(p.array.size for p in self.net.parameters()),
            "optimizer": plan.optimizer,
            "lr": plan.lr,
            "batch_size": plan.batch_size,
            "accumulate": self.config.accumulate,
            "bf16": self.config.bf16,
            "seed": self.config.seed,
            "threads": _cpu.num_threads(),
            "isa": _cpu.isa(),
            "version": grebe.__version__,
        }

    def _draw(self) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            print("no curve.png: matplotlib is not installed (pip install grebe[plot])")
            return
        import io

        figure = Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasAgg(figure)
        epochs = range(1, len(self.history["loss"]) + 1)
        axes = figure.add_subplot(xlabel="epoch", title=f"{self.config.model}, {self.data_name}")
        for name, (style, label) in self.curves.items():
            axes.plot(epochs, self.history[name], style, label=label)
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.3)
        axes.legend()
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120)
        path = os.path.join(self.plan.out, "curve.png")
        atomic_write(path, png.getvalue())
        print(f"curve in {path}")


class Stepper:
    """Backward and update, every `accumulate` batches one update.

    Args:
        net: its parameters' gradients are used.
        optimizer: over them; its learning rates are those of the peak.
        clip: the gradient is cut to this norm; None: it is not.
        accumulate: the mean gradient of so many batches makes an update.
        factor: of the learning rate, for update 0, 1, ...; None: 1.

    Attributes:
        autocast: the context in which losses are to be computed.
    """

    def __init__(
        self,
        net: Module,
        optimizer: Any,
        clip: float | None = None,
        accumulate: int = 1,
        factor: Callable[[int], float] | None = None,
    ) -> None:
        self.net, self.optimizer, self.clip = net, optimizer, clip
        self.accumulate, self.factor = accumulate, factor
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.updates = self.waiting = 0
        self.autocast = autocast("cpu", enabled=False)

    def __call__(self, loss: Any, seen: int) -> float:
        """Backward, and the update if it is its turn; the loss as a number.

        Raises:
            Diverged: it is none. `seen` says in the message after how many samples.
        """
        if not self.waiting:
            self.optimizer.zero_grad()
        (loss if self.accumulate == 1 else loss / self.accumulate).backward()
        self.waiting += 1
        if self.waiting == self.accumulate:
            self.flush()
        value = float(loss.array)
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} after {seen} samples; try a smaller --lr")
        return value

    def flush(self) -> None:
        """The update by the batches that wait for more, if there are any."""
        if not self.waiting:
            return
        if self.clip is not None:
            grebe.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        if self.factor is not None:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.factor(self.updates)
        self.optimizer.step()
        self.updates += 1
        self.waiting = 0


def warm_cosine(warm: int, total: int, least: float = 0.1) -> Callable[[int], float]:
    """A factor that rises for `warm` updates to 1, then falls as a cosine to `least` at `total`."""

    def factor(update: int) -> float:
        if update < warm:
            return (update + 1) / warm
        share = min(1.0, (update - warm) / max(1, total - warm))
        return least + (1 - least) * (1 + math.cos(math.pi * share)) / 2

    return factor


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


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


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Report]:
    """A progress bar on a terminal's stderr; its text is made only as often as it is shown."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="", leave=False, disable=None) as bar:
        if bar.disable:
            yield lambda n, **means: None
            return
        last = 0.0

        def report(n: int, **means: float) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > 0.1:
                last = now
                text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                bar.set_postfix_str(text, refresh=False)
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
