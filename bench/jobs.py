"""What the benchmark times. A job runs unchanged on grebe and on PyTorch: the API is the same."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from onnx_jobs import Node, node_of

from cases import BENCH, Case, Inputs, normal, with_labels
from reference import REFERENCES
from twin import models_of

Call = Callable[[], Any]
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
mode = ""  # of PyTorch in this process, set by run.py: "", "channels-last" or "compile"
device = "cpu"  # where tensors are put, set by gpu.py


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
    images: bool = False  # 4-D tensors: worth trying channels-last
    onnx: Node | None = None  # the same for ONNX Runtime

    def runs_in(self, mode: str) -> bool:
        """Whether the job tells more in this mode of PyTorch than without."""
        return not mode or (self.images if mode == "channels-last" else self.section == "training")


JOBS: list[Job] = []


def job(section: str, name: str, mode: str = "forward", **work: Any) -> Callable[..., None]:
    """Decorator of a `prepare` function."""

    def add(prepare: Callable[[ModuleType], Call | None]) -> None:
        JOBS.append(Job(section, name, mode, prepare, **work))

    return add


def leaves(lib: ModuleType, case: Case, grad: bool) -> list[Any]:
    """The inputs of `case` as tensors of `lib`."""
    return tensors_of(lib, case.draw(np.float32), grad)


def tensors_of(lib: ModuleType, arrays: list[Any], grad: bool = False) -> list[Any]:
    """`arrays` as tensors of `lib`, in the memory format of the mode."""
    tensors = [placed(lib, lib.from_numpy(a)) for a in arrays]
    return [t.requires_grad_() if grad and t.is_floating_point() else t for t in tensors]


def placed(lib: ModuleType, tensor: Any) -> Any:
    tensor = tensor.to(device)
    if mode == "channels-last" and tensor.ndim == 4:
        return tensor.contiguous(memory_format=lib.channels_last)
    return tensor


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

    with_images = "pool" in case.op or case.op in ("batch_norm", "group_norm")

    @job(
        section,
        str(case),
        flops=case.flops,
        bytes=case.bytes,
        case=None if "dropout_p" in case.kwargs else case,  # what drops has no reference
        images=with_images,
        onnx=node_of(case),
    )
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            inputs = case.draw(np.float32)
            return lambda: reference.forward(*inputs, **case.kwargs)
        return forward(lib, case.run, leaves(lib, case, grad=False))

    if reference.backward:

        @job(section, str(case), "forward+backward", images=with_images)
        def prepare_both(lib: ModuleType) -> Call | None:
            return None if lib is np else both(lib, case.run, leaves(lib, case, grad=True))


for timed_case in BENCH:
    add_case("matmul" if timed_case.op in ("matmul", "linear") else "ops", timed_case)


def add_bfloat16(case: Case) -> None:
    @job("matmul", f"{case} bfloat16", flops=case.flops)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        tensors = [t.to(lib.bfloat16) for t in leaves(lib, case, grad=False)]
        return forward(lib, case.run, tensors)


for timed_case in BENCH:
    if timed_case.op in ("matmul", "linear") and timed_case.flops:
        add_bfloat16(timed_case)

# ---- layers: calls that need no reference here, because they are tested elsewhere ----


def add_layer(
    section: str, name: str, inputs: Inputs, call: Callable[..., Any], **work: Any
) -> None:
    """Two jobs: the forward pass, and forward plus backward."""
    case = Case(section, call, inputs)

    @job(section, name, **work)
    def prepare(lib: ModuleType) -> Call | None:
        return None if lib is np else forward(lib, call, leaves(lib, case, grad=False))

    @job(section, name, "forward+backward", images=work.get("images", False))
    def prepare_both(lib: ModuleType) -> Call | None:
        return None if lib is np else both(lib, call, leaves(lib, case, grad=True))


# function, input, weight, options other than the padding that keeps (with stride 1) the size
CONVS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, int]]] = [
    ("conv2d", (256, 1, 28, 28), (6, 1, 5, 5), {}),
    ("conv2d", (256, 6, 14, 14), (16, 6, 5, 5), {}),
    ("conv2d", (32, 1, 96, 96), (64, 1, 7, 7), {"stride": 2}),
    ("conv2d", (32, 64, 56, 56), (64, 64, 3, 3), {}),
    ("conv2d", (32, 128, 28, 28), (128, 128, 3, 3), {}),
    ("conv2d", (32, 256, 14, 14), (256, 256, 3, 3), {}),
    ("conv2d", (32, 512, 7, 7), (512, 512, 3, 3), {}),
    ("conv2d", (32, 64, 56, 56), (128, 64, 3, 3), {"stride": 2}),
    ("conv2d", (32, 64, 56, 56), (256, 64, 1, 1), {}),
    ("conv2d", (32, 1024, 14, 14), (256, 1024, 1, 1), {}),
    ("conv2d", (32, 128, 28, 28), (128, 128, 3, 3), {"dilation": 2}),
    ("conv2d", (32, 128, 28, 28), (128, 4, 3, 3), {"groups": 32}),
    ("conv2d", (32, 128, 28, 28), (128, 1, 3, 3), {"groups": 128}),
    ("conv_transpose2d", (32, 64, 14, 14), (64, 32, 4, 4), {"stride": 2}),
    ("conv1d", (32, 128, 512), (128, 128, 5), {}),
    ("conv3d", (4, 16, 16, 32, 32), (32, 16, 3, 3, 3), {}),
]


def add_conv(
    function: str, shape: tuple[int, ...], weight: tuple[int, ...], options: dict[str, int]
) -> None:
    """Two jobs: the forward pass, and forward plus backward."""
    stride, groups = options.get("stride", 1), options.get("groups", 1)
    dilation, size = options.get("dilation", 1), len(weight) - 2
    transposed = "transpose" in function
    padding = (dilation * (weight[-1] - 1) + (not transposed)) // 2
    filters = weight[1] * groups if transposed else weight[0]
    # Places where the whole kernel lies: on the output, or of a transposed one on the input.
    places = float(np.prod([n if transposed else (n - 1) // stride + 1 for n in shape[2:]]))
    attributes = {
        "strides": [stride] * size,
        "pads": [padding] * 2 * size,
        "dilations": [dilation] * size,
        "group": groups,
    }
    inputs = normal(shape, weight, (filters,))
    name = f"{function} {'x'.join(map(str, shape))}, {filters} of {'x'.join(map(str, weight[2:]))}"
    add_layer(
        "conv",
        name + "".join(f", {key} {value}" for key, value in options.items()),
        inputs,
        lambda lib, x, w, b: getattr(lib.nn.functional, function)(
            x, w, b, padding=padding, **options
        ),
        flops=2.0 * shape[0] * places * float(np.prod(weight)),
        images=size == 2,
        onnx=Node("ConvTranspose" if transposed else "Conv", inputs, attributes),
    )


for conv in CONVS:
    add_conv(*conv)

for size in (1, 7):
    add_layer(
        "ops",
        f"adaptive_avg_pool2d 32x256x14x14 to {size}x{size}",
        normal((32, 256, 14, 14)),
        lambda lib, x, size=size: lib.nn.functional.adaptive_avg_pool2d(x, size),
        bytes=4.0 * 32 * 256 * (14**2 + size**2),
        images=True,
    )

for rows, classes in ((256, 10), (4096, 1000), (1024, 50257)):
    add_layer(
        "loss",
        f"cross_entropy {rows}x{classes}",
        with_labels((rows, classes), classes, (rows,)),
        lambda lib, x, y: lib.nn.functional.cross_entropy(x, y),
        bytes=4.0 * rows * classes,
    )
add_layer(
    "loss",
    "cross_entropy 4096x1000, smoothing 0.1",
    with_labels((4096, 1000), 1000, (4096,)),
    lambda lib, x, y: lib.nn.functional.cross_entropy(x, y, label_smoothing=0.1),
    bytes=4.0 * 4096 * 1000,
)
add_layer(
    "loss",
    "cross_entropy 4096x1000, weights, ignore_index",
    with_labels((4096, 1000), 1000, (4096,)),
    lambda lib, x, y: lib.nn.functional.cross_entropy(
        x, y, weight=lib.linspace(0.5, 1.5, 1000), ignore_index=0
    ),
    bytes=4.0 * 4096 * 1000,
)
add_layer(
    "loss",
    "cross_entropy 4096x1000, probabilities",
    normal((4096, 1000), (4096, 1000)),
    lambda lib, x, y: lib.nn.functional.cross_entropy(x, y.detach()),
    bytes=8.0 * 4096 * 1000,
)
add_layer(
    "loss",
    "binary_cross_entropy_with_logits 1M",
    normal((1_000_000,), (1_000_000,)),
    lambda lib, x, y: lib.nn.functional.binary_cross_entropy_with_logits(x, y.detach().sigmoid()),
)
LOSSES: dict[str, Callable[..., Any]] = {  # of a prediction and a target
    "mse_loss": lambda lib, x, y: lib.nn.functional.mse_loss(x, y),
    "l1_loss": lambda lib, x, y: lib.nn.functional.l1_loss(x, y),
    "smooth_l1_loss": lambda lib, x, y: lib.nn.functional.smooth_l1_loss(x, y),
    "huber_loss": lambda lib, x, y: lib.nn.functional.huber_loss(x, y),
    "kl_div, log_target": lambda lib, x, y: lib.nn.functional.kl_div(
        x, y, reduction="batchmean", log_target=True
    ),
}
for loss, call in LOSSES.items():
    add_layer("loss", f"{loss} 1000x1000", normal((1000, 1000), (1000, 1000)), call, bytes=8e6)


def linear_cross_entropy(lib: ModuleType, x: Any, w: Any, y: Any) -> Any:
    f = lib.nn.functional
    if hasattr(f, "linear_cross_entropy"):
        return f.linear_cross_entropy(x, w, y)
    return f.cross_entropy(x @ w.T, y)


def hidden_and_labels(rng: np.random.Generator) -> list[Any]:
    """512 rows of 256 features, weights of 10,000 classes, labels."""
    draw = [rng.standard_normal(s).astype(np.float32) for s in ((512, 256), (10_000, 256))]
    return [draw[0], draw[1] / 16, rng.integers(0, 10_000, 512)]


add_layer(
    "loss",
    "linear_cross_entropy 512x256, 10000 classes",
    hidden_and_labels,
    linear_cross_entropy,
    flops=2.0 * 512 * 256 * 10_000,
)


def bias_dropout_add(lib: ModuleType, x: Any, b: Any, r: Any) -> Any:
    f = lib.nn.functional
    if hasattr(f, "bias_dropout_add"):
        return f.bias_dropout_add(x, b, r, 0.1)
    return f.dropout(x + b, 0.1) + r


add_layer(
    "dropout",
    "bias + dropout + residual 4096x768",
    normal((4096, 768), (768,), (4096, 768)),
    bias_dropout_add,
    bytes=12.0 * 4096 * 768,
)
for n in (1_000_000, 10_000_000):
    add_layer(
        "dropout",
        f"dropout {n // 1_000_000}M",
        normal((n,)),
        lambda lib, x: lib.nn.functional.dropout(x, 0.5),
        bytes=8.0 * n,
    )

# ---- optimizers: one step over ResNet-18's parameters, and over many small tensors ----

PARAMETERS = {
    "11M": [(64, 1, 7, 7), (10, 512)]
    + [(c, c, 3, 3) for c in (64, 128, 256, 512) for _ in range(4)]
    + [(c,) for c in (64, 128, 256, 512) for _ in range(12)],
    "100 of 1000": [(1000,)] * 100,
}
RULES: dict[str, tuple[float, dict[str, float]]] = {  # arrays read or written, options
    "SGD": (3, {}),
    "SGD, momentum": (5, {"momentum": 0.9}),
    "Adagrad": (5, {}),
    "RMSprop": (5, {}),
    "Adadelta": (7, {}),
    "Adam": (7, {}),
    "AdamW": (7, {}),
}
FUSED = ("SGD", "Adagrad", "Adam", "AdamW")  # the rules of PyTorch that have fused=True on CPUs


def parameters(lib: ModuleType, size: str) -> list[Any]:
    """Parameters with small gradients."""
    result = tensors_of(lib, noise(tuple(PARAMETERS[size])), grad=True)
    for parameter in result:
        parameter.grad = parameter.detach() * 1e-3
    return result


def add_optimizer(rule: str, size: str, fused: bool) -> None:
    arrays, options = RULES[rule]
    work = 4.0 * arrays * sum(float(np.prod(s)) for s in PARAMETERS[size])
    kind = rule.split(",")[0]
    against = ", PyTorch fused" if fused else ""

    @job("optim", f"{rule}, {size}{against}", "step", bytes=work)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        more = {"fused": True} if fused else {}
        make = getattr(lib.optim, kind)
        step: Call = make(parameters(lib, size), lr=1e-4, **options, **more).step
        return step


def add_clipping(size: str) -> None:
    work = 4.0 * sum(float(np.prod(s)) for s in PARAMETERS[size])

    @job("optim", f"clip_grad_norm_, {size}", "step", bytes=work)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        given = parameters(lib, size)
        return lambda: lib.nn.utils.clip_grad_norm_(given, 1e9)


for parameter_size in PARAMETERS:
    for rule_name in RULES:
        add_optimizer(rule_name, parameter_size, False)
        if rule_name.split(",")[0] in FUSED:
            add_optimizer(rule_name, parameter_size, True)
    add_clipping(parameter_size)

# ---- the cost of a call ----

SMALL: dict[str, tuple[tuple[tuple[int, ...], ...], Callable[..., Any]]] = {
    "add": (((10,), (10,)), lambda lib, a, b: a + b),
    "matmul": (((3, 3), (3, 3)), lambda lib, a, b: a @ b),
    "relu": (((10,),), lambda lib, a: lib.relu(a)),
    "sum": (((10,),), lambda lib, a: a.sum()),
}


def noise(shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) / 3 for s in shapes]


def add_small(name: str, shapes: tuple[tuple[int, ...], ...], call: Callable[..., Any]) -> None:
    @job("small", f"{name}, 10 elements")
    def prepare(lib: ModuleType) -> Call | None:
        return None if lib is np else forward(lib, call, tensors_of(lib, noise(shapes)))

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
        return both(lib, chain, tensors_of(lib, noise(shapes), grad=True))


for small_name, (small_shapes, small_call) in SMALL.items():
    add_small(small_name, small_shapes, small_call)


@job("small", "Linear(10, 10)")
def prepare_linear(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    layer = lib.nn.Linear(10, 10)
    (x,) = tensors_of(lib, noise(((1, 10),)))
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
        return both(lib, call, tensors_of(lib, noise(((LARGE,),) * inputs), grad=True))


for large_name, (large_inputs, large_call) in LARGE_CALLS.items():
    add_large(large_name, large_inputs, large_call)

# ---- recurrent layers and cells ----

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
# kind, steps, sequences, input, hidden; projection, dtype, packed (half of the tokens)
RECURRENT: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
    (kind, *sizes, {})
    for kind in ("LSTM", "GRU")
    for sizes in ((35, 32, 256, 256), (32, 1024, 28, 32), (100, 64, 512, 512), (35, 1, 256, 256))
] + [
    ("RNN", 35, 32, 256, 256, {}),
    ("LSTM", 35, 32, 256, 256, {"projection": 128}),
    ("LSTM", 35, 32, 256, 256, {"dtype": "bfloat16"}),
    ("GRU", 35, 32, 256, 256, {"dtype": "bfloat16"}),
    ("LSTM", 35, 32, 256, 256, {"packed": True}),
    ("GRU", 35, 32, 256, 256, {"packed": True}),
    ("LSTM", 100, 64, 512, 512, {"packed": True}),
]
CELLS = [(kind, b, 256, 256) for kind in GATES for b in (1, 32, 256)]


def lengths_of(steps: int, batch: int) -> Any:
    """Sorted lengths from 1 to `steps`, half of it in the mean."""
    drawn = np.random.default_rng(0).integers(1, steps + 1, batch)
    drawn[0] = steps
    return -np.sort(-drawn)


def timed_module(lib: ModuleType, module: Any, x: Any, call: Callable[[], Any], grad: bool) -> Call:
    """`call` without gradients, or with those of the parameters and of x."""

    def run() -> None:
        with lib.no_grad():
            call()

    if not grad:
        return run
    with lib.no_grad():
        ones = lib.ones_like(call())

    def run_both() -> None:
        for tensor in (x, *module.parameters()):
            tensor.grad = None
        call().backward(ones)

    return run_both


def add_recurrent(
    kind: str, steps: int, batch: int, inputs: int, hidden: int, options: dict[str, Any]
) -> None:
    projection, dtype = options.get("projection", 0), options.get("dtype", "float32")
    tokens = int(lengths_of(steps, batch).sum()) if "packed" in options else steps * batch
    state = projection or hidden
    work = 2.0 * tokens * hidden * (GATES[kind] * (inputs + state) + projection)
    name = f"{kind} T{steps} B{batch} I{inputs} H{hidden}" + "".join(
        f", {key} {value}" for key, value in options.items()
    ).replace("packed True", "packed")

    def make(lib: ModuleType, grad: bool) -> Call | None:
        if lib is np:
            return None
        wanted = getattr(lib, dtype)
        more = {"proj_size": projection} if projection else {}
        layer = getattr(lib.nn, kind)(inputs, hidden, **more).to(wanted)
        (x,) = tensors_of(lib, noise(((steps, batch, inputs),)))
        x = x.to(wanted).requires_grad_(grad)
        if "packed" not in options:
            return timed_module(lib, layer, x, lambda: layer(x)[0], grad)
        lengths = lib.from_numpy(lengths_of(steps, batch))
        pack = lib.nn.utils.rnn.pack_padded_sequence
        return timed_module(lib, layer, x, lambda: layer(pack(x, lengths))[0].data, grad)

    onnx = None if options or kind == "RNN" else recurrent_node(kind, steps, batch, inputs, hidden)
    job("rnn", name, flops=work, onnx=onnx)(lambda lib: make(lib, False))
    job("rnn", name, "forward+backward", flops=3 * work)(lambda lib: make(lib, True))


def recurrent_node(kind: str, steps: int, batch: int, inputs: int, hidden: int) -> Node:
    """ONNX's operator: its input, then weights and biases of one direction."""
    rows = GATES[kind] * hidden
    shapes = (steps, batch, inputs), (1, rows, inputs), (1, rows, hidden), (1, 2 * rows)
    gru = {"linear_before_reset": 1} if kind == "GRU" else {}
    return Node(kind, normal(*shapes, scale=0.1), {"hidden_size": hidden, **gru})


def add_cell(kind: str, batch: int, inputs: int, hidden: int) -> None:
    work = 2.0 * batch * GATES[kind] * hidden * (inputs + hidden)
    name = f"{kind}Cell B{batch} I{inputs} H{hidden}"

    def make(lib: ModuleType, grad: bool) -> Call | None:
        if lib is np:
            return None
        cell = getattr(lib.nn, f"{kind}Cell")(inputs, hidden)
        x, h, c = tensors_of(lib, noise(((batch, inputs), (batch, hidden), (batch, hidden))))
        x.requires_grad_(grad)
        if kind == "LSTM":
            return timed_module(lib, cell, x, lambda: cell(x, (h, c))[0], grad)
        return timed_module(lib, cell, x, lambda: cell(x, h), grad)

    job("rnn", name, flops=work)(lambda lib: make(lib, False))
    job("rnn", name, "forward+backward", flops=3 * work)(lambda lib: make(lib, True))


for recurrent in RECURRENT:
    add_recurrent(*recurrent)
for cell_sizes in CELLS:
    add_cell(*cell_sizes)

# ---- Transformer layers ----

# batch, tokens, features, heads, inner features; how a layer is made
TRANSFORMER: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any]]] = {
    "causal, pre-norm": ((8, 256, 384, 6, 1536), {"activation": "gelu", "norm_first": True}),
    "padded": ((128, 10, 256, 4, 64), {}),
}


def add_encoder_layer(kind: str, dropout: float, mixed: bool) -> None:
    """Two jobs: without gradients in evaluation mode, and a training step."""
    (b, t, d, heads, inner), options = TRANSFORMER[kind]
    causal = "causal" in kind
    work = 2.0 * b * t * d * (4 * d + 2 * inner) + 4.0 * b * t * t * d / (2 if causal else 1)
    name = f"encoder layer B{b} T{t} E{d} H{heads} F{inner}, {kind}"
    name += f", dropout {dropout}" * (dropout > 0) + ", autocast" * mixed

    def make(lib: ModuleType, grad: bool) -> Call | None:
        if lib is np:
            return None
        layer = lib.nn.TransformerEncoderLayer(
            d, heads, inner, dropout, batch_first=True, **options
        ).train(grad)
        (x,) = tensors_of(lib, noise(((b, t, d),)), grad)
        mask = lib.nn.Transformer.generate_square_subsequent_mask(t) if causal else None
        lengths = np.random.default_rng(1).integers(4, t + 1, (b, 1))
        padding = None if causal else placed(lib, lib.from_numpy(np.arange(t) >= lengths))

        def call() -> Any:
            with lib.autocast(device, dtype=lib.bfloat16, enabled=mixed):
                return layer(x, mask, padding, is_causal=causal)

        return timed_module(lib, layer, x, call, grad)

    job("transformer", name, flops=work)(lambda lib: make(lib, False))
    job("transformer", name, "forward+backward", flops=3 * work)(lambda lib: make(lib, True))


for layer_kind in TRANSFORMER:
    for layer_options in ((0.0, False), (0.2, False), (0.0, True)):
        add_encoder_layer(layer_kind, *layer_options)

# ---- training: whole steps of the networks of grebe.models ----

# name: network, shape of an image, batch, learning rate
STEPS: dict[str, tuple[str, tuple[int, int, int], int, float]] = {
    "softmax regression, batch 256": ("SoftmaxRegression", (1, 28, 28), 256, 0.1),
    "MLP 784-256-10, batch 256": ("MLP", (1, 28, 28), 256, 0.05),
    "LeNet, batch 256": ("LeNet", (1, 28, 28), 256, 0.05),
    "ResNet-18, 3x32x32, batch 64": ("ResNet18", (3, 32, 32), 64, 0.01),
    "ResNet-18, 1x96x96, batch 32": ("ResNet18", (1, 96, 96), 32, 0.01),
    "AlexNet, 1x224x224, batch 8": ("AlexNet", (1, 224, 224), 8, 0.001),
    "VGG-11, 1x224x224, batch 4": ("VGG11", (1, 224, 224), 4, 0.001),
    "NiN, 1x224x224, batch 8": ("NiN", (1, 224, 224), 8, 0.001),
    "GoogLeNet, 1x96x96, batch 16": ("GoogLeNet", (1, 96, 96), 16, 0.001),
    "DenseNet, 1x96x96, batch 16": ("DenseNet", (1, 96, 96), 16, 0.01),
}


def images(count: int, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """The first images and labels of Fashion-MNIST; noise where they do not fit or are missing."""
    if shape != (1, 28, 28) or not FASHION_MNIST.is_dir():
        rng = np.random.default_rng(0)
        return rng.random((count, *shape), np.float32), rng.integers(0, 10, count)
    with gzip.open(FASHION_MNIST / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16 : 16 + 784 * count], np.uint8)
    with gzip.open(FASHION_MNIST / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8 : 8 + count], np.uint8)
    return pixels.reshape(-1, *shape).astype(np.float32) / 255, labels.astype(np.int64)


def training(lib: ModuleType, name: str, steps: int) -> tuple[Callable[[Any, Any], None], Any, Any]:
    """A training step of a network, and the data of `steps` batches."""
    network, shape, batch, lr = STEPS[name]
    x, y = tensors_of(lib, [*images(steps * batch, shape)])
    lib.manual_seed(0)
    models = models_of(lib)
    model = models.apply_init(getattr(models, network)(), x[:2])
    if mode == "channels-last":
        model = model.to(memory_format=lib.channels_last)
    optimizer = lib.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if mode == "compile":
        model = lib.compile(model)

    def step(inputs: Any, labels: Any) -> None:
        optimizer.zero_grad()
        lib.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step, x, y


def add_training(name: str) -> None:
    network, _, batch, _ = STEPS[name]

    @job(
        "training", name, "step", samples=batch, images=network not in ("SoftmaxRegression", "MLP")
    )
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        step, x, y = training(lib, name, 1)
        return lambda: step(x, y)


for step_name in STEPS:
    add_training(step_name)

BATCH = STEPS["LeNet, batch 256"][2]


@job("training", "LeNet, 20 batches by DataLoader", "training", samples=20 * BATCH)
def prepare_loader(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    step, x, y = training(lib, "LeNet, batch 256", 20)
    data = lib.utils.data
    loader = data.DataLoader(data.TensorDataset(x, y), batch_size=BATCH, shuffle=True)

    def run() -> None:
        for inputs, labels in loader:
            step(inputs, labels)

    return run


# ---- training: texts ----


def text_step(lib: ModuleType, net: Any, loss_of: Callable[[], Any]) -> Call:
    optimizer = lib.optim.Adam(net.parameters(), lr=2e-3)
    if mode == "compile":
        loss_of = lib.compile(loss_of)

    def step() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        lib.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def by_step(tensor: Any) -> Any:
    """[B, T, ...] as [T B, ...]: so the logits of recurrent nets lie in memory."""
    return tensor.transpose(0, 1).flatten(0, 1)


def add_char_lm(kind: str) -> None:
    vocabulary, batch, steps = 28, 1024, 32

    @job("training", f"char LM, {kind.upper()}, H256 T{steps} B{batch}", "step", samples=batch)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, vocabulary, (2, batch, steps))
        x, y = tensors_of(lib, [tokens[0].copy(), tokens[1].copy()])
        net = models_of(lib).RNNLM(vocabulary, 256, kind)
        loss = lib.nn.functional.cross_entropy
        return text_step(lib, net, lambda: loss(by_step(net(x)[0]), by_step(y)))


@job("training", "seq2seq, GRU, 2 layers, H256 B128", "step", samples=128)
def prepare_seq2seq(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    rng = np.random.default_rng(0)
    drawn = [rng.integers(3, 2000, (128, 9)), rng.integers(3, 10, 128)]
    target = rng.integers(3, 3500, (128, 10))
    source, lengths, x, y = tensors_of(lib, [*drawn, target[:, :-1].copy(), target[:, 1:].copy()])
    net = models_of(lib).Seq2Seq(2000, 3500)
    loss = lib.nn.functional.cross_entropy
    return text_step(
        lib, net, lambda: loss(by_step(net(source, lengths, x)), by_step(y), ignore_index=0)
    )


for char_lm_kind in ("gru", "lstm"):
    add_char_lm(char_lm_kind)


# ---- training and sampling: Transformers ----


def add_gpt(name: str, sizes: tuple[int, ...], batch: int, dropout: float) -> None:
    vocabulary, steps = sizes[:2]
    more = f", dropout {dropout}" if dropout else ""

    @job("training", f"{name} T{steps} B{batch}{more}", "step", samples=batch * steps)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        tokens = np.random.default_rng(0).integers(0, vocabulary, (2, batch, steps))
        x, y = tensors_of(lib, [tokens[0].copy(), tokens[1].copy()])
        models = models_of(lib)
        net = models.GPT(models.GPTConfig(*sizes, dropout=dropout))
        return text_step(lib, net, lambda: net.loss(x, y))


def add_sampling(name: str, sizes: tuple[int, ...], known: int, more: int) -> None:
    @job("training", f"{name}, {more} tokens after {known}", "sampling", samples=more)
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        prefix = np.random.default_rng(0).integers(0, sizes[0], known).tolist()
        models = models_of(lib)
        net = models.GPT(models.GPTConfig(*sizes)).eval()
        return lambda: net.generate(prefix, more, 1.0, 50, None, 0)


@job("training", "BERT, 2 layers, H128 T64 B64", "step", samples=64)
def prepare_bert(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 20_000, (64, 64)), rng.integers(0, 2, (64, 64)),
             np.arange(0, 4096, 7), rng.integers(0, 20_000, 586),
             rng.integers(0, 2, 64)]  # fmt: skip
    tokens, segments, positions, hidden, follows = tensors_of(lib, drawn)
    (lengths,) = tensors_of(lib, [rng.integers(20, 65, 64)])
    models, loss = models_of(lib), lib.nn.functional.cross_entropy
    net = models.BERTForPreTraining(models.BERTConfig(20_000, 128, 2, 2, 256, 0.2, 64))

    def loss_of() -> Any:
        words, following = net(tokens, segments, lengths, positions)
        return loss(words, hidden) + loss(following, follows)

    return text_step(lib, net, loss_of)


@job("training", "Transformer, 2 layers, H256 T10 B128", "step", samples=128)
def prepare_transformer(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    rng = np.random.default_rng(0)
    drawn = [rng.integers(3, 2000, (128, 10)), rng.integers(3, 11, 128)]
    target = rng.integers(3, 3500, (128, 11))
    source, lengths, x, y = tensors_of(lib, [*drawn, target[:, :-1].copy(), target[:, 1:].copy()])
    net = models_of(lib).TransformerSeq2Seq(2000, 3500)
    loss = lib.nn.functional.cross_entropy
    return text_step(
        lib, net,
        lambda: loss(net(source, lengths, x).flatten(0, 1), y.flatten(), ignore_index=0),
    )  # fmt: skip


@job("training", "ViT, 1x96x96, batch 32", "step", samples=32)
def prepare_vit(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    rng = np.random.default_rng(0)
    images = rng.standard_normal((32, 1, 96, 96)).astype(np.float32)
    x, y = tensors_of(lib, [images, rng.integers(0, 10, 32)])
    net = models_of(lib).ViT()
    return text_step(lib, net, lambda: lib.nn.functional.cross_entropy(net(x), y))


GPT2 = (50257, 1024, 768, 12, 12)
for gpt_dropout in (0.0, 0.2):
    add_gpt("GPT 6x384", (65, 256, 384, 6, 6), 8, gpt_dropout)
add_gpt("GPT-2 124M", GPT2, 1, 0.0)
add_sampling("GPT-2 124M", GPT2, 16, 16)
