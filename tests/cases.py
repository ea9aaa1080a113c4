"""The calls that are tested and timed: one list for tests/test_ops.py, one for bench/run.py.

A case names its row of reference.REFERENCES and a function under the path it has both in grebe and
in PyTorch, so that the same line serves the reference test, the parity test and the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import ModuleType
from typing import Any

import numpy as np
from numpy.random import Generator

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]
Inputs = Callable[[Generator], Sequence[Array]]


@dataclass(frozen=True)
class Case:
    """One call: `call(lib, *inputs, **kwargs)`, or the function at the dotted path `call` in lib.

    Floating inputs are cast to the dtype under test and differentiated; others are left alone.
    `floor` is the error allowed in any case, in units of the dtype's epsilon times the largest
    result. `flops` and `bytes` are the work of one forward call, for the benchmark's rates.
    """

    op: str
    call: str | Callable[..., Any]
    inputs: Inputs
    kwargs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    floor: float = 8.0
    flops: float = 0.0
    bytes: float = 0.0

    def __str__(self) -> str:
        words = [self.label or str(getattr(self.inputs, "label", ""))]
        words += [f"{name}={value}" for name, value in self.kwargs.items()]
        return f"{self.op}({', '.join(word for word in words if word)})".replace(" ", "")

    @property
    def is_edge(self) -> bool:
        """Are the inputs at kinks, ties or infinities, where finite differences say nothing?"""
        return isinstance(self.inputs, given)

    def draw(self, dtype: Any, seed: int = 0) -> list[Array]:
        """The inputs, the same for every dtype up to rounding."""
        arrays = self.inputs(np.random.default_rng(seed))
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]

    def run(self, lib: ModuleType, *inputs: Any) -> Any:
        """The call with `lib` (grebe or torch) on its tensors."""
        if callable(self.call):
            return self.call(lib, *inputs, **self.kwargs)
        return reduce(getattr, self.call.split("."), lib)(*inputs, **self.kwargs)  # type: ignore


class normal:
    """Inputs ~ N(0, 1), times `scale`."""

    def __init__(self, *shapes: Shape, scale: float = 1.0) -> None:
        self.shapes, self.scale = shapes, scale
        self.label = ",".join("x".join(map(str, s)) or "scalar" for s in shapes)

    def __call__(self, rng: Generator) -> list[Array]:
        return [np.asarray(rng.standard_normal(s) * self.scale) for s in self.shapes]


class positive(normal):
    """Inputs uniform in (0.5, 2): away from the poles of log, sqrt and 1 / x."""

    def __call__(self, rng: Generator) -> list[Array]:
        return [np.asarray(rng.uniform(0.5, 2.0, s)) for s in self.shapes]


class laid_out(normal):
    """Matrices ~ N(0, 1), each stored by rows ("N") or by columns ("T")."""

    def __init__(self, layout: str, *shapes: Shape) -> None:
        super().__init__(*shapes)
        self.layout = layout
        self.label += "," + layout

    def __call__(self, rng: Generator) -> list[Array]:
        arrays = super().__call__(rng)
        return [
            a if how == "N" else a.swapaxes(-1, -2).copy().swapaxes(-1, -2)
            for a, how in zip(arrays, self.layout, strict=True)
        ]


class given:
    """These very inputs, for edge cases. Their references are not differentiated numerically."""

    def __init__(self, label: str, *arrays: Any) -> None:
        self.label, self.arrays = label, arrays

    def __call__(self, rng: Generator) -> list[Array]:
        return [np.array(a) for a in self.arrays]


class with_labels:
    """Logits ~ N(0, 1) of `shape` and int64 class numbers of shape `target`."""

    def __init__(self, shape: Shape, classes: int, target: Shape) -> None:
        self.shape, self.classes, self.target = shape, classes, target
        self.label = "x".join(map(str, shape))

    def __call__(self, rng: Generator) -> list[Array]:
        return [rng.standard_normal(self.shape), rng.integers(0, self.classes, self.target)]


class with_rows:
    """int64 row numbers of shape `index` and a table [rows, columns] ~ N(0, 1)."""

    def __init__(self, index: Shape, rows: int, columns: int) -> None:
        self.index, self.rows, self.columns = index, rows, columns
        self.label = f"{'x'.join(map(str, index)) or 'scalar'},{rows}x{columns}"

    def __call__(self, rng: Generator) -> list[Array]:
        index = np.asarray(rng.integers(0, self.rows, self.index))
        return [index, rng.standard_normal((self.rows, self.columns))]


def case(op: str, call: str | Callable[..., Any], inputs: Inputs, **kwargs: Any) -> Case:
    """A Case whose keyword arguments go to the function."""
    return Case(op, call, inputs, kwargs)


INF, NAN = float("inf"), float("nan")
CASES: list[Case] = []

# ---- elementwise ----
# Sizes around the vector widths, one above the thread threshold, empty, scalar.
SIZES: list[Shape] = [(), (0,), (1,), (7,), (3, 5), (2, 16), (17,), (33,), (2, 3, 64), (300, 257)]
BROADCAST = [
    ((3, 1), (1, 4)),
    ((5,), (2, 3, 5)),
    ((4, 1, 6), (3, 1)),
    ((), (3, 4)),
    ((200, 300), (300,)),
    ((200, 300), (200, 1)),
    ((0, 3), (1, 3)),
]
EDGES = [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 20.0, -20.0, 80.0, -80.0, INF, -INF, NAN]

SMOOTH = "neg abs square exp expm1 sin cos tanh erf sigmoid relu".split()
POSITIVE = "sqrt rsqrt log log1p reciprocal".split()
CASES += [case(op, op, normal(s)) for op in SMOOTH for s in SIZES]
CASES += [case(op, op, positive(s)) for op in POSITIVE for s in SIZES]
F_SMOOTH = "gelu silu elu".split()
CASES += [case(op, f"nn.functional.{op}", normal(s)) for op in F_SMOOTH for s in SIZES]
CASES += [
    case("leaky_relu", "nn.functional.leaky_relu", normal(s), negative_slope=0.1) for s in SIZES
]
CASES += [case("clamp", "clamp", normal(s), min=-0.5, max=0.7) for s in SIZES]
CASES += [case("softplus", "nn.functional.softplus", normal(s, scale=9.0), beta=2.0) for s in SIZES]
CASES += [case(op, op, given("edges", EDGES)) for op in ("exp", "tanh", "sigmoid", "relu", "erf")]
CASES += [case(op, op, normal(s, s)) for op in ("add", "sub", "mul") for s in SIZES]
CASES += [case(op, op, normal(a, b)) for op in ("add", "sub", "mul") for a, b in BROADCAST]
CASES += [case(op, op, positive(a, b)) for op in ("div", "pow") for a, b in BROADCAST]
CASES += [case(op, op, normal(a, b)) for op in ("maximum", "minimum") for a, b in BROADCAST]
CASES += [
    case(op, op, given("ties", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0])) for op in ("maximum", "minimum")
]
CASES += [
    case("where", "where", lambda rng, s=s: [np.asarray(rng.random(s) < 0.5), *normal(s, s)(rng)])
    for s in SIZES
]

# ---- reduce ----
REDUCED = [
    ((7,), {}),
    ((3, 5), {}),
    ((300, 257), {}),
    ((300, 257), {"dim": 0}),
    ((300, 257), {"dim": 1}),
    ((37, 64), {"dim": 1}),  # the longest short rows of each level, and the next ones
    ((37, 65), {"dim": 1}),
    ((37, 129), {"dim": 1}),
    ((37, 256), {"dim": 1}),
    ((4, 5, 6), {"dim": 1, "keepdim": True}),
    ((4, 5, 6), {"dim": (0, 2)}),
    ((1, 70000), {"dim": 1}),
    ((70000, 1), {"dim": 0}),
    ((2, 3, 33), {"dim": -1}),
]
CASES += [
    case(op, op, normal(s), **kw) for op in ("sum", "mean", "var", "std") for s, kw in REDUCED
]
CASES += [case(op, op, normal(s), **kw) for op in ("amax", "amin") for s, kw in REDUCED if kw]
CASES += [
    case("sum", "sum", normal(s), **kw) for s, kw in [((0,), {}), ((0, 3), {"dim": 0}), ((), {})]
]
CASES += [case("amax", "amax", given("ties", [[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]), dim=1)]
CASES += [case("prod", "prod", positive((5, 9)), dim=d) for d in (0, 1)]
CASES += [case("cumsum", "cumsum", normal((5, 90)), dim=d) for d in (0, 1)]

# ---- matmul ----
MATMUL = [
    ((1, 1), (1, 1)),
    ((5,), (5,)),
    ((3, 5), (5,)),
    ((5,), (5, 4)),
    ((2, 3), (3, 4)),
    ((7, 13), (13, 17)),
    ((6, 784), (784, 25)),
    ((65, 64), (64, 63)),
    ((100, 10), (10, 100)),
    ((130, 257), (257, 129)),
    ((2, 5, 7), (2, 7, 3)),
    ((4, 1, 5, 6), (3, 6, 2)),
    ((3, 4, 5), (5, 2)),
    ((0, 3), (3, 4)),
    ((2, 0), (0, 4)),
]
CASES += [case("matmul", "matmul", normal(a, b)) for a, b in MATMUL]
LINEAR = [((5, 7), 3), ((256, 84), 10), ((1, 10), 10), ((4, 6, 8), 5), ((7,), 4), ((0, 4), 3)]
CASES += [case("linear", "nn.functional.linear", normal(x, (n, x[-1]), (n,))) for x, n in LINEAR]
CASES += [case("linear", "nn.functional.linear", normal((9, 33), (17, 33)))]

# ---- conv ----
CONV: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((3, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    ((3, 6, 14, 14), (16, 6, 5, 5), {}),
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((0, 3, 8, 8), (4, 3, 3, 3), {}),
    ((2, 3, 5, 5), (70, 3, 5, 5), {}),
    (
        (2, 4, 9, 11),
        (6, 2, 3, 2),
        {"stride": (2, 3), "padding": 1, "dilation": (2, 1), "groups": 2},
    ),
    ((2, 8, 17, 40), (8, 1, 3, 3), {"padding": 1, "groups": 8}),
    ((2, 8, 17, 40), (16, 1, 3, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 8}),
    ((2, 3, 7, 7), (4, 3, 2, 2), {"stride": 3}),
    ((2, 3, 8, 9), (5, 3, 3, 4), {"stride": (1, 2), "padding": (2, 3), "dilation": (3, 2)}),
    ((2, 70, 6, 6), (130, 70, 3, 3), {"padding": 1}),
    ((2, 31, 6, 5), (32, 31, 3, 3), {"padding": 1}),
    ((1, 32, 5, 8), (33, 32, 3, 3), {}),
    ((9, 140, 4, 3), (40, 140, 3, 3), {"padding": (2, 1)}),
    ((1, 32, 3, 101), (32, 32, 3, 3), {"padding": (1, 4)}),
    ((2, 40, 9, 8), (67, 40, 3, 3), {"stride": 2, "padding": 1}),
    # Winograd's way with stride 2: maps of 16 and of 20 pixels, every parity of padding and size.
    ((2, 33, 8, 8), (32, 33, 3, 3), {"stride": 2, "padding": 1}),
    ((3, 32, 9, 7), (70, 32, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 32, 11, 10), (33, 32, 3, 3), {"stride": 2}),
    ((1, 40, 8, 9), (32, 40, 3, 3), {"stride": 2, "padding": 2}),
    ((2, 32, 10, 8), (32, 32, 3, 3), {"stride": 2, "padding": (1, 2)}),
    ((1, 32, 7, 5), (32, 32, 3, 3), {"stride": 2, "padding": 5}),
    ((1, 32, 3, 70), (32, 32, 3, 3), {"stride": 2, "padding": (3, 4)}),
    # Tiles of six inputs: the last sizes that are worth them, the first that are not; 5x5.
    ((2, 32, 31, 32), (33, 32, 3, 3), {"padding": 1}),
    ((2, 32, 30, 31), (33, 32, 3, 3), {"padding": 1}),
    ((3, 33, 24, 26), (32, 33, 3, 3), {}),
    ((3, 33, 19, 20), (32, 33, 3, 3), {"padding": (3, 4)}),
    ((1, 32, 15, 16), (70, 32, 5, 5), {"padding": 2}),
    ((1, 32, 15, 15), (70, 32, 5, 5), {"padding": 2}),
    ((2, 40, 14, 16), (33, 40, 5, 5), {}),
    ((2, 33, 7, 9), (32, 33, 5, 5), {"padding": (5, 6)}),
    ((1, 530, 4, 4), (33, 530, 2, 2), {"stride": (1, 2), "padding": (0, 1)}),
    ((3, 48, 9, 7), (40, 48, 1, 1), {"stride": (2, 3)}),
    ((2, 33, 5, 6), (130, 33, 1, 1), {}),
    ((2, 33, 6, 5), (34, 33, 1, 1), {"stride": 3, "padding": 2}),
    ((2, 32, 4, 150), (32, 32, 1, 5), {"stride": (1, 2), "dilation": (1, 3), "padding": (0, 7)}),
    ((2, 32, 7, 6), (32, 32, 2, 3), {"stride": 4, "padding": (1, 2)}),
    ((9, 40, 3, 2), (36, 40, 3, 3), {"padding": 1}),
    ((8, 32, 5, 5), (65, 32, 3, 3), {"stride": 2, "padding": (1, 0), "dilation": (2, 1)}),
    ((70, 32, 2, 2), (32, 32, 3, 3), {"padding": 2}),
    ((2, 3, 8, 8), (4, 3, 3, 3), {"stride": 5, "padding": 4}),
    ((1, 16, 20, 33), (2, 16, 1, 1), {}),
    ((18, 2, 4, 50), (3, 2, 1, 7), {"padding": (0, 3)}),
    ((33, 2, 6, 5), (3, 2, 3, 3), {"padding": 1}),
    ((2, 8, 6, 5), (8, 1, 3, 2), {"padding": (1, 2), "groups": 8}),
    ((3, 4, 9, 35), (4, 1, 2, 3), {"groups": 4}),
    ((2, 6, 12, 20), (6, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 6}),
    ((2, 3, 9, 70), (3, 1, 5, 5), {"stride": 2, "padding": 2, "groups": 3}),
    ((2, 4, 7, 10), (8, 1, 3, 3), {"stride": 3, "padding": 1, "groups": 4}),
    ((1, 5, 3, 150), (5, 1, 1, 3), {"stride": (1, 2), "groups": 5}),
    ((2, 3, 2, 2), (3, 1, 2, 2), {"stride": 3, "padding": 1, "groups": 3}),
    ((40, 3, 5, 9), (4, 3, 3, 2), {"stride": 2, "padding": (1, 0)}),
    ((17, 6, 4, 4), (8, 3, 3, 3), {"padding": 1, "groups": 2}),
    ((1, 2, 90, 260), (3, 2, 5, 5), {"stride": (2, 1), "padding": 2, "dilation": (3, 1)}),
    ((3, 40, 7, 9), (65, 40, 1, 1), {}),  # products in place; few pixels; pixels beyond L2
    ((3, 40, 3, 5), (65, 40, 1, 1), {}),
    ((2, 256, 36, 38), (65, 256, 1, 1), {}),
]
CASES += [case("conv2d", "conv2d", normal(x, w, w[:1]), **kw) for x, w, kw in CONV]
CASES += [case("conv2d", "conv2d", normal(x, w), **kw) for x, w, kw in CONV[:2]]
CONV1D: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((2, 3, 19), (4, 3, 4), {"stride": 2, "padding": 1, "dilation": 2}),
    ((2, 40, 33), (36, 20, 3), {"padding": 1, "groups": 2}),
]
CONV3D: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((2, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"padding": (1, 0, 2)}),
    ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), {}),
    ((0, 2, 3, 4, 4), (3, 2, 2, 2, 2), {}),
    (
        (2, 4, 6, 5, 7),
        (6, 2, 2, 3, 2),
        {"stride": (2, 1, 3), "padding": 1, "dilation": (2, 1, 1), "groups": 2},
    ),
    ((2, 2, 7, 4, 4), (2, 2, 2, 2, 2), {"stride": (3, 2, 2), "padding": (3, 1, 0)}),  # gaps
    ((2, 2, 3, 4, 4), (3, 2, 3, 2, 2), {"padding": (7, 0, 0), "dilation": (4, 1, 1)}),
    ((2, 4, 4, 6, 5), (4, 1, 3, 3, 3), {"padding": 1, "groups": 4}),
    ((2, 16, 3, 6, 5), (33, 16, 3, 3, 3), {"padding": 1}),
    ((1, 32, 3, 7, 6), (32, 32, 2, 1, 1), {"stride": (1, 2, 2)}),
]
for convs, dimensions in ((CONV1D, "1d"), (CONV3D, "3d")):
    name = f"conv{dimensions}"
    CASES += [case(name, name, normal(x, w, w[:1]), **kw) for x, w, kw in convs]
CASES += [case("conv3d", "conv3d", normal(x, w), **kw) for x, w, kw in CONV3D[:1]]
TRANSPOSED: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((2, 3, 7), (3, 4, 3), {}),
    ((2, 6, 9), (6, 2, 4), {"stride": 3, "padding": 2, "output_padding": 1, "groups": 2}),
    ((2, 40, 5), (40, 33, 3), {"dilation": 2}),
    ((2, 6, 5, 7), (6, 4, 3, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((2, 3, 3, 4, 5), (3, 2, 3, 3, 2), {}),
    (
        (2, 4, 3, 3, 4),
        (4, 3, 2, 3, 2),
        {"stride": (3, 2, 1), "padding": (1, 1, 0), "output_padding": (2, 1, 0), "groups": 2},
    ),
    ((1, 3, 2, 3, 3), (3, 2, 2, 2, 2), {"stride": 2, "dilation": 3, "output_padding": (2, 1, 0)}),
    ((2, 33, 2, 3, 4), (33, 32, 3, 3, 3), {"padding": 1}),
]
for x, w, kw in TRANSPOSED:
    name = f"conv_transpose{len(x) - 2}d"
    outputs = w[1] * kw.get("groups", 1)
    CASES.append(case(name, name, normal(x, w, (outputs,)), **kw))

# ---- pool ----
POOL: list[tuple[Shape, dict[str, Any]]] = [
    ((3, 6, 28, 28), {"kernel_size": 2}),
    ((2, 5, 29, 27), {"kernel_size": 2, "stride": 2}),
    ((2, 5, 9, 11), {"kernel_size": (3, 2), "stride": (2, 3), "padding": 1}),
    ((2, 20, 17, 40), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ((2, 3, 17, 35), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 1, 1), {"kernel_size": 1}),
    ((0, 3, 4, 4), {"kernel_size": 2}),
    ((2, 3, 40, 21), {"kernel_size": 20, "stride": 1}),
    ((2, 33, 7, 7), {"kernel_size": 7}),
    ((1, 2, 9, 9), {"kernel_size": 2, "stride": 3, "ceil_mode": True}),
    ((2, 3, 19, 37), {"kernel_size": 3, "stride": 2}),
    ((2, 3, 8, 13), {"kernel_size": (8, 13)}),
    # 2x2 tiles: rows that share a vector, fill one, need two; a last row or column left over.
    *[((2, 3, h, w), {"kernel_size": 2}) for h, w in [(10, 10), (7, 16), (2, 3), (3, 33), (6, 66)]],
]
CASES += [case("max_pool2d", "max_pool2d", normal(s), **kw) for s, kw in POOL]
CASES += [
    case("max_pool2d", "max_pool2d", normal((2, 3, 9, 30)), kernel_size=3, padding=1, dilation=2)
]
CASES += [
    case("max_pool2d", "max_pool2d", given("ties", np.zeros((1, 2, 6, 6))), **kw)
    for kw in ({"kernel_size": 3, "padding": 1}, {"kernel_size": 2})
]
CASES += [case("avg_pool2d", "nn.functional.avg_pool2d", normal(s), **kw) for s, kw in POOL]
CASES += [
    case("avg_pool2d", "nn.functional.avg_pool2d", normal(s), **kw, **more)
    for s, kw in POOL[2:5]
    for more in ({"count_include_pad": False}, {"divisor_override": 3})
]
POOL3D: list[tuple[Shape, dict[str, Any]]] = [
    ((2, 3, 4, 6, 8), {"kernel_size": 2}),
    ((2, 3, 5, 7, 6), {"kernel_size": (3, 2, 3), "stride": (1, 2, 2), "padding": 1}),
    ((1, 2, 6, 7, 8), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 2, 5, 5, 5), {"kernel_size": 2, "stride": 3, "ceil_mode": True}),
    ((0, 2, 4, 4, 4), {"kernel_size": 2}),
]
CASES += [case("max_pool3d", "nn.functional.max_pool3d", normal(s), **kw) for s, kw in POOL3D]
CASES += [
    case("max_pool3d", "nn.functional.max_pool3d", inputs, kernel_size=3, padding=1, dilation=2)
    for inputs in (normal((2, 2, 7, 8, 9)), given("ties", np.zeros((1, 2, 6, 6, 6))))
]
CASES += [case("avg_pool3d", "nn.functional.avg_pool3d", normal(s), **kw) for s, kw in POOL3D]
CASES += [
    case("avg_pool3d", "nn.functional.avg_pool3d", normal(s), **kw, **more)
    for s, kw in POOL3D[1:3]
    for more in ({"count_include_pad": False}, {"divisor_override": 3})
]


# ---- norm ----
def layer_norm(lib: Any, x: Any, w: Any, b: Any, **kwargs: Any) -> Any:
    return lib.nn.functional.layer_norm(x, weight=w, bias=b, **kwargs)


def rms_norm(lib: Any, x: Any, w: Any, **kwargs: Any) -> Any:
    return lib.nn.functional.rms_norm(x, weight=w, **kwargs)


def group_norm(lib: Any, x: Any, w: Any, b: Any, **kwargs: Any) -> Any:
    if "num_groups" in kwargs:
        return lib.nn.functional.group_norm(x, weight=w, bias=b, **kwargs)
    return lib.nn.functional.instance_norm(x, weight=w, bias=b, **kwargs)


def batch_norm(lib: Any, x: Any, w: Any, b: Any) -> Any:
    return lib.nn.functional.batch_norm(x, None, None, w, b, True)


NORM_ROWS: list[Shape] = [(3, 5), (300, 257), (2, 3, 64), (5, 16), (4, 1000), (2, 5000)]
CASES += [
    case("layer_norm", layer_norm, normal(s, s[-1:], s[-1:]), normalized_shape=s[-1:])
    for s in NORM_ROWS
]
CASES += [
    case("rms_norm", rms_norm, normal(s, s[-1:]), normalized_shape=s[-1:], eps=1e-5)
    for s in NORM_ROWS
]
NORM_IMAGES: list[tuple[Shape, list[int]]] = [
    ((2, 6, 5, 7), [1, 3, 6]),
    ((3, 4, 33), [2]),
    ((2, 8, 64, 65), [4]),
    ((2, 70, 3, 5), [7]),
    ((4, 10, 2, 3, 4), [5]),
]
CASES += [
    case("group_norm", group_norm, normal(s, s[1:2], s[1:2]), num_groups=n)
    for s, groups in NORM_IMAGES
    for n in groups
]
CASES += [case("group_norm", group_norm, normal(s, s[1:2], s[1:2])) for s, _ in NORM_IMAGES]
CASES += [case("batch_norm", batch_norm, normal(s, s[1:2], s[1:2])) for s, _ in NORM_IMAGES]
CASES += [case("batch_norm", batch_norm, normal((300, 70), (70,), (70,)))]

# ---- softmax ----
ROWS = [((5,), 0), ((3, 5), 1), ((3, 5), 0), ((300, 257), -1), ((2, 1000), 1), ((4, 5, 6), 1)]
# Groups of short rows up to 256; rows cut into pieces from 65536 on.
ROWS += [((37, 10), 1), ((70, 256), 1), ((2, 65535), 1), ((1, 65536), 1), ((2, 100_001), 1)]
ROW_EDGES = [
    ("huge", [[1000.0, -1000.0, 999.0], [-1000.0, -1000.0, -1000.0]]),
    ("masked", [[-INF, 0.0, 1.0], [-INF, -INF, 2.0]]),
    ("nan", [[NAN, 0.0, 1.0], [0.0, 1.0, 2.0]]),
]
CASES += [
    case(op, op, normal(s), dim=d)
    for op in ("softmax", "log_softmax", "logsumexp")
    for s, d in ROWS
]
CASES += [
    case(op, op, given(label, rows), dim=1)
    for op in ("softmax", "log_softmax", "logsumexp")
    for label, rows in ROW_EDGES
]

# ---- attention ----
ATTENTION = "nn.functional.scaled_dot_product_attention"


class heads_of(normal):
    """q [B, H, L, D], k [B, G, S, D], v [B, G, S, E] and, if `mask` names a shape, a mask."""

    def __init__(
        self, b: int, h: int, g: int, n: int, s: int, d: int, e: int, mask: str = "",
        *mask_shape: int,
    ) -> None:  # fmt: skip
        super().__init__((b, h, n, d), (b, g, s, d), (b, g, s, e))
        self.mask, self.mask_shape = mask, mask_shape
        self.label += f",{mask}{'x'.join(map(str, mask_shape))}" if mask else ""

    def __call__(self, rng: Generator) -> list[Array]:
        arrays = super().__call__(rng)
        if self.mask == "bool":
            kept = rng.random(self.mask_shape) < 0.7
            kept[..., 0] = True
            arrays.append(kept)
        elif self.mask:
            arrays.append(rng.standard_normal(self.mask_shape))
        return arrays


# Lengths around strips (6), vectors, blocks of keys (192, 256) and of queries (96, 192), few rows
# (6) and chunks of a long cache (1024); sizes of heads around vectors and panels.
CASES += [
    Case("attention", ATTENTION, heads_of(*s), {"is_causal": causal} | kwargs, floor=32)
    for causal in (False, True)
    for s, kwargs in [
        ((1, 1, 1, 1, 1, 1, 1), {}),
        ((2, 3, 3, 1, 31, 8, 8), {}),
        ((1, 2, 2, 31, 1, 16, 5), {"scale": 0.0}),
        ((1, 2, 2, 32, 32, 64, 64), {"scale": -0.5}),
        ((2, 1, 1, 33, 33, 17, 15), {}),
        ((1, 2, 2, 6, 193, 33, 64), {}),
        ((1, 2, 2, 7, 257, 80, 96), {}),
        ((1, 1, 1, 257, 191, 24, 256), {}),
        ((1, 1, 1, 200, 600, 8, 65), {}),
        ((1, 6, 2, 1, 1030, 40, 8), {"enable_gqa": True}),
        ((2, 4, 1, 3, 2100, 16, 16), {"enable_gqa": True}),
        ((1, 4, 2, 98, 70, 32, 48), {"enable_gqa": True}),
        ((2, 2, 2, 0, 3, 4, 4), {}),
        ((0, 2, 2, 3, 3, 4, 4), {}),
    ]
    if not causal
    # One key is seen: the gradients are rounding errors. PyTorch makes NaN of a scale below 0.
    or not (s[3] == 1 < s[4] or kwargs.get("scale", 1) < 0)
]
CASES += [
    Case("attention", ATTENTION, heads_of(*s))
    for s in [
        (2, 3, 3, 5, 33, 8, 8, "bool", 5, 33),
        (2, 2, 2, 40, 300, 16, 16, "bool", 2, 1, 1, 300),
        (2, 3, 3, 5, 33, 8, 8, "added", 2, 3, 5, 33),
        (2, 2, 2, 40, 300, 16, 16, "added", 40, 300),
        (3, 2, 2, 9, 200, 16, 16, "added", 2, 1, 200),
    ]
]

# ---- embedding ----
# Columns around the vector widths and the blocks of eight vectors; few rows, often repeated; more
# work than one thread gets; a gradient large enough to be written past the caches.
LOOKUPS = [
    ((), 3, 4),
    ((0,), 3, 4),
    ((7,), 5, 1),
    ((3, 5), 7, 16),
    ((3, 5), 7, 17),
    ((200,), 3, 130),
    ((40, 30), 1, 261),
    ((4, 128), 900, 129),
    ((6, 4), 30_000, 112),
]
CASES += [case("embedding", "nn.functional.embedding", with_rows(*s)) for s in LOOKUPS]
CASES += [
    case("embedding_bag", "nn.functional.embedding_bag", with_rows((n, 6), *s), mode=mode)
    for n, *s in ((1, 9, 5), (40, 50, 33), (300, 70, 64))
    for mode in ("sum", "mean", "max")
]

# ---- loss ----


class unit(normal):
    """Inputs uniform in (0.05, 0.95): probabilities."""

    def __call__(self, rng: Generator) -> list[Array]:
        return [np.asarray(rng.uniform(0.05, 0.95, s)) for s in self.shapes]


# Around the vectors, the four slots and the blocks of 4096; images, so that a layout is kept.
LOSS_SIZES: list[Shape] = [(), (0,), (1,), (17,), (3, 5), (129,), (2, 3, 4, 5), (70, 59), (5, 4097)]
LOSSES: list[tuple[str, type[normal], dict[str, Any]]] = [
    ("mse_loss", normal, {}),
    ("l1_loss", normal, {}),
    ("huber_loss", normal, {"delta": 0.7}),
    ("smooth_l1_loss", normal, {"beta": 0.3}),
    ("binary_cross_entropy", unit, {}),
    ("binary_cross_entropy_with_logits", normal, {}),
    ("kl_div", positive, {}),
    ("kl_div", normal, {"log_target": True}),
]
CASES += [
    case(op, f"nn.functional.{op}", inputs(s, s), reduction=reduction, **kwargs)
    for op, inputs, kwargs in LOSSES
    for s in LOSS_SIZES
    for reduction in (("mean", "none") if s != (0,) else ("sum", "none"))
]
CASES += [  # not a number, infinities, large logits
    case(op, f"nn.functional.{op}", given("edges", *pair), reduction="none")
    for op in ("mse_loss", "huber_loss")
    for pair in [([NAN, 1.0, INF, -2e10, 0.0], [1.0, NAN, 2.0, 1e10, 0.0])]
]
CASES += [
    case(
        "binary_cross_entropy_with_logits",
        "nn.functional.binary_cross_entropy_with_logits",
        given(
            "edges", [NAN, 1e4, -1e4, 0.0, -0.0, 88.0, -104.0], [1.0, 0.0, 1.0, 0.5, 1.0, 0.5, 0.25]
        ),
        reduction="none",
    )
]
CASES += [
    case("cross_entropy", "nn.functional.cross_entropy", with_labels((n, c, *d), c, (n, *d)), **kw)
    for n, c, d in ((1, 2, ()), (7, 10, ()), (33, 257, ()), (5, 11, (3, 4)), (2, 5003, ()))
    for kw in ({}, {"label_smoothing": 0.1})
]
CASES += [
    case("nll_loss", "nn.functional.nll_loss", with_labels((n, c, *d), c, (n, *d)), reduction=r)
    for n, c, d in ((1, 2, ()), (70, 10, ()), (5, 11, (3, 4)))
    for r in ("mean", "none")
]

# ---- timed ----
BENCH: list[Case] = []


def timed(
    op: str,
    call: str | Callable[..., Any],
    inputs: Inputs,
    flops: float = 0.0,
    bytes: float = 0.0,
    **kwargs: Any,
) -> None:
    """Adds a line to the benchmark: the same case, with the work of one forward call."""
    BENCH.append(Case(op, call, inputs, kwargs, flops=flops, bytes=bytes))


def timed_attention(b: int, h: int, n: int, s: int, d: int, **kwargs: Any) -> None:
    work = 4.0 * b * h * n * s * d * (0.5 if kwargs.get("is_causal") else 1)
    one_query = 8.0 * b * h * s * d if n == 1 else 0.0
    timed("attention", ATTENTION, heads_of(b, h, h, n, s, d, d), flops=work, bytes=one_query,
          **kwargs)  # fmt: skip


def timed_matmul(a: Shape, b: Shape, layout: str = "NN") -> None:
    """A product; where one operand is a vector, its rate is bytes: a matrix is used once."""
    if len(a) == 1 or len(b) == 1:
        timed(
            "matmul", "matmul", laid_out(layout, a, b), bytes=4.0 * float(np.prod(a) + np.prod(b))
        )
    else:
        timed("matmul", "matmul", laid_out(layout, a, b), flops=2.0 * float(np.prod(a)) * b[-1])


for n in (32, 64, 128, 256, 512, 1024, 2048, 4096):
    timed_matmul((n, n), (n, n))
for n in (128, 512, 1024, 2048):
    timed_matmul((n, n), (n, n), "NT")
    timed_matmul((n, n), (n, n), "TN")
for m in (8, 32):  # skinny
    timed_matmul((m, 1024), (1024, 256))
    timed_matmul((m, 4096), (4096, 1024), "NT")
for m, n in ((1024, 1024), (4096, 8192)):  # one row or column, in a cache and beyond
    timed_matmul((m,), (m, n))
    timed_matmul((m,), (m, n), "NT")
    timed_matmul((n, m), (m,))
    timed_matmul((n, m), (m,), "TN")
timed_matmul((512, 32, 32), (512, 32, 32))
timed_matmul((8, 8, 128, 64), (8, 8, 64, 128), "NT")  # attention's scores
timed_matmul((8, 8, 128, 128), (8, 8, 128, 64))
timed_matmul((8, 8, 128, 128), (8, 8, 128, 64), "TN")
for shape in ((8, 8, 128, 128, 64), (4, 12, 1024, 1024, 64), (1, 8, 4096, 4096, 64)):
    timed_attention(*shape)
    timed_attention(*shape, is_causal=True)
timed_attention(8, 8, 128, 128, 64, dropout_p=0.1)
timed_attention(4, 12, 1024, 1024, 64, dropout_p=0.1)
timed_attention(1, 8, 1, 4096, 64)
for m, k, n in (
    (256, 784, 10),
    (256, 784, 256),
    (256, 256, 10),
    (256, 400, 120),
    (256, 120, 84),
    (256, 84, 10),
    (64, 512, 10),
    (1024, 1024, 1024),
    (4096, 64, 64),
):
    timed("linear", "nn.functional.linear", normal((m, k), (n, k), (n,)), flops=2.0 * m * k * n)
for n in (10_000, 1_000_000, 10_000_000):
    timed("add", "add", normal((n,), (n,)), bytes=12.0 * n)
    timed("relu", "relu", normal((n,)), bytes=8.0 * n)
    timed("exp", "exp", normal((n,)), bytes=8.0 * n)
    timed("sum", "sum", normal((n,)), bytes=4.0 * n)
for rows, n in ((256, 10), (256, 1000), (4096, 300), (4096, 1000)):
    for dim in (0, 1):
        timed("sum", "sum", normal((rows, n)), bytes=4.0 * rows * n, dim=dim)
for rows, n in ((4096, 128), (4096, 768), (256, 4096)):
    size = 8.0 * rows * n
    args = {"normalized_shape": (n,)}
    timed("layer_norm", layer_norm, normal((rows, n), (n,), (n,)), bytes=size, **args)
    timed("rms_norm", rms_norm, normal((rows, n), (n,)), bytes=size, eps=1e-5, **args)
for shape in ((64, 64, 32, 32), (32, 256, 14, 14), (32, 64, 56, 56)):
    inputs, size = normal(shape, shape[1:2], shape[1:2]), float(np.prod(shape))
    timed("batch_norm", batch_norm, inputs, bytes=12.0 * size)
    timed("group_norm", group_norm, inputs, bytes=8.0 * size, num_groups=32)
    timed("group_norm", group_norm, inputs, bytes=8.0 * size)
for op in ("tanh", "sigmoid"):
    timed(op, op, normal((10_000_000,)), bytes=8e7)
for op in ("gelu", "silu", "elu", "softplus"):
    timed(op, f"nn.functional.{op}", normal((10_000_000,)), bytes=8e7)
for shape, window in (
    ((256, 6, 28, 28), {"kernel_size": 2}),
    ((256, 16, 10, 10), {"kernel_size": 2}),
    ((32, 64, 56, 56), {"kernel_size": 3, "stride": 2, "padding": 1}),
):
    size = 4.0 * float(np.prod(shape)) * 1.25
    timed("max_pool2d", "max_pool2d", normal(shape), bytes=size, **window)
    timed("avg_pool2d", "nn.functional.avg_pool2d", normal(shape), bytes=size, **window)
for shape in ((256, 10), (4096, 1000), (1024, 50257)):
    size = 8.0 * shape[0] * shape[1]
    timed("softmax", "softmax", normal(shape), dim=1, bytes=size)
    timed("log_softmax", "log_softmax", normal(shape), dim=1, bytes=size)
    timed("logsumexp", "logsumexp", normal(shape), dim=1, bytes=size / 2)
for rows in (10_000, 50_000):
    for columns in (128, 512):
        timed(
            "embedding",
            "nn.functional.embedding",
            with_rows((32, 128), rows, columns),
            bytes=2 * 32 * 128 * columns * 4.0,
        )
