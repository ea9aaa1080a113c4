"""What the benchmark times. A job runs unchanged on grebe and on PyTorch: the API is the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from cases import BENCH, Case
from reference import REFERENCES

Call = Callable[[], Any]
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Job:
    """One line of the report: `prepare(lib)` returns the function to time.

    For `lib` numpy it returns None where the job has no NumPy form. `flops`, `bytes` and `samples`
    are the work of one call; the first that is not zero gives the rate.
    """

    section: str
    name: str
    mode: str
    prepare: Callable[[ModuleType], Call | None]
    flops: float = 0.0
    bytes: float = 0.0
    samples: int = 0
    case: Case | None = None


JOBS: list[Job] = []


def job(section: str, name: str, mode: str = "forward", **work: Any) -> Callable[..., None]:
    """Decorator of a `prepare` function."""

    def add(prepare: Callable[[ModuleType], Call | None]) -> None:
        JOBS.append(Job(section, name, mode, prepare, **work))

    return add


def leaves(lib: ModuleType, case: Case, grad: bool) -> list[Any]:
    """The inputs of `case` as tensors of `lib`."""
    tensors = [lib.from_numpy(a) for a in case.draw(np.float32)]
    return [t.requires_grad_() if grad and t.is_floating_point() else t for t in tensors]


def forward(lib: ModuleType, call: Callable[..., Any], tensors: list[Any]) -> Call:
    def run() -> Any:
        return call(lib, *tensors)

    return run


def both(lib: ModuleType, call: Callable[..., Any], tensors: list[Any]) -> Call:
    """Forward and backward with the gradient of the output given, into fresh gradients."""
    with lib.no_grad():
        grad = lib.ones_like(call(lib, *tensors))

    def run() -> None:
        for tensor in tensors:
            tensor.grad = None
        call(lib, *tensors).backward(grad)

    return run


# ---- single ops: tests/cases.py ----


def add_case(section: str, case: Case) -> None:
    """Two jobs: the forward pass, and forward plus backward."""
    reference = REFERENCES[case.op]

    @job(section, str(case), flops=case.flops, bytes=case.bytes, case=case)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            inputs = case.draw(np.float32)
            return lambda: reference.forward(*inputs, **case.kwargs)
        return forward(lib, case.run, leaves(lib, case, grad=False))

    if reference.backward:

        @job(section, str(case), "forward+backward")
        def prepare_both(lib: ModuleType) -> Call | None:
            return None if lib is np else both(lib, case.run, leaves(lib, case, grad=True))


for timed_case in BENCH:
    add_case("matmul" if timed_case.op == "matmul" else "ops", timed_case)

# ---- the cost of a call ----

SMALL: dict[str, tuple[tuple[tuple[int, ...], ...], Callable[..., Any]]] = {
    "add": (((10,), (10,)), lambda lib, a, b: a + b),
    "matmul": (((3, 3), (3, 3)), lambda lib, a, b: a @ b),
    "relu": (((10,),), lambda lib, a: lib.relu(a)),
    "sum": (((10,),), lambda lib, a: a.sum()),
}


def tensors_of(lib: ModuleType, shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [lib.from_numpy(rng.standard_normal(s).astype(np.float32) / 3) for s in shapes]


def add_small(name: str, shapes: tuple[tuple[int, ...], ...], call: Callable[..., Any]) -> None:
    @job("small", f"{name}, 10 elements")
    def prepare(lib: ModuleType) -> Call | None:
        return None if lib is np else forward(lib, call, tensors_of(lib, shapes))

    if name == "sum":
        return

    def chain(lib: ModuleType, first: Any, *rest: Any) -> Any:
        for _ in range(100):
            first = call(lib, first, *rest)
        return first

    @job("small", f"chain of 100 {name}", "forward+backward")
    def prepare_chain(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        return both(lib, chain, [t.requires_grad_() for t in tensors_of(lib, shapes)])


for small_name, (small_shapes, small_call) in SMALL.items():
    add_small(small_name, small_shapes, small_call)


@job("small", "Linear(10, 10)")
def prepare_linear(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    layer = lib.nn.Linear(10, 10)
    (x,) = tensors_of(lib, ((1, 10),))
    return lambda: layer(x)


# ---- memory: outputs too large for the caches, fresh in every call ----

LARGE = 10_000_000
LARGE_CALLS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, lambda lib, a, b: a + b),
    "mul": (2, lambda lib, a, b: a * b),
    "relu": (1, lambda lib, a: lib.relu(a)),
    "sigmoid": (1, lambda lib, a: lib.sigmoid(a)),
}


def add_large(name: str, inputs: int, call: Callable[..., Any]) -> None:
    @job("large", f"{name}, 10M", "forward+backward")
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        return both(lib, call, [t.requires_grad_() for t in tensors_of(lib, ((LARGE,),) * inputs)])


for large_name, (large_inputs, large_call) in LARGE_CALLS.items():
    add_large(large_name, large_inputs, large_call)

# ---- training: LeNet, batch 256 ----

BATCH = 256


def lenet(lib: ModuleType) -> Any:
    """LeNet as in Dive into Deep Learning, with ReLU."""
    nn = lib.nn
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def images(count: int) -> tuple[Any, Any]:
    """The first `count` images and labels of Fashion-MNIST, or noise where it is not installed."""
    if not FASHION_MNIST.is_dir():
        rng = np.random.default_rng(0)
        return rng.random((count, 1, 28, 28), np.float32), rng.integers(0, 10, count)
    import grebe

    data = grebe.datasets.FashionMNIST(str(FASHION_MNIST), train=True)
    pixels = np.asarray(data.data[:count], np.float32).reshape(-1, 1, 28, 28) / 255
    return pixels, np.asarray(data.targets[:count], np.int64)


def training(lib: ModuleType, steps: int) -> tuple[Any, Callable[[Any, Any], None], Any, Any]:
    lib.manual_seed(0)
    model = lenet(lib)
    optimizer = lib.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = (lib.from_numpy(a) for a in images(steps * BATCH))

    def step(inputs: Any, labels: Any) -> None:
        optimizer.zero_grad()
        lib.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return model, step, x, y


@job("training", "LeNet step, batch 256", "training", samples=BATCH)
def prepare_step(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    _, step, x, y = training(lib, 1)
    return lambda: step(x, y)


@job("training", "LeNet, 20 batches by DataLoader", "training", samples=20 * BATCH)
def prepare_loader(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    _, step, x, y = training(lib, 20)
    data = lib.utils.data
    loader = data.DataLoader(data.TensorDataset(x, y), batch_size=BATCH, shuffle=True)

    def run() -> None:
        for inputs, labels in loader:
            step(inputs, labels)

    return run
