"""Builds grebe for this machine's GPU, tests it there and times it beside PyTorch.

python bench/gpu.py [--steps build,test,golden,time] [--ops REGEX] [--out FOLDER]

build   installs grebe with the kernels for this GPU, CuPy and PyTorch in build/venv
test    the tests of the CUDA kernels, on the GPU
golden  what each function of ptx.cuh gives on the GPU, kept in tests/golden; then the emulator
        against that
time    kernels and training steps, grebe and PyTorch in turn in one process, by events: medians
        of rounds over several copies of the inputs, so that these do not stay in the cache;
        written to FOLDER/CARD.csv and CARD.md, by default in bench/results

The first three steps write their logs to the folder; a step that fails does not stop the next.
--emulated times grebe alone under the emulator, to see that the command works.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests")]
Call = Callable[[], Any]

ROUNDS = 7
SAMPLE = 10.0  # milliseconds of calls per sample, at least
CACHE = 128 << 20  # bytes that the copies of a job's inputs take together, at least
MOST_COPIES = 8
COLUMNS = "section job mode library version ms rate unit share ratio".split()
# Sections of jobs.py that say something about a GPU.
SECTIONS = ("conv", "loss", "dropout", "optim", "rnn", "transformer", "training")

# ---- jobs of a GPU's size; those of jobs.py come on top ----


@dataclass(frozen=True)
class Job:
    """`prepare(lib)`: a function that is timed. flops, bytes, samples: its work, one of them."""

    section: str
    name: str
    mode: str
    prepare: Callable[[Any], Call | None]
    flops: float = 0.0
    bytes: float = 0.0
    samples: int = 0
    size: float = 0.0  # bytes of the inputs


def noise(lib: Any, dtype: str, *shape: int, grad: bool = False) -> Any:
    """Normal numbers over 3 on the GPU."""
    x = (lib.randn(*shape, device="cuda") / 3).to(getattr(lib, dtype))
    return x.requires_grad_() if grad else x


def backward_of(call: Call, leaves: list[Any], ones: Any) -> Call:
    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        call().backward(ones)

    return run


def both_passes(
    section: str, name: str, make: Callable[[Any, bool], tuple[Call, list[Any]]],
    flops: float = 0.0, bytes: float = 0.0, times: float = 3.0, size: float = 0.0,
) -> Iterator[Job]:  # fmt: skip
    """Forward, and forward with backward, which is `times` its work. make(lib, grad): the call and
    the leaves.
    """

    def forward(lib: Any) -> Call:
        return make(lib, False)[0]

    def both(lib: Any) -> Call:
        call, leaves = make(lib, True)
        with lib.no_grad():
            ones = lib.ones_like(call())
        return backward_of(call, leaves, ones)

    yield Job(section, name, "forward", forward, flops, bytes, size=size)
    yield Job(section, name, "forward+backward", both, times * flops, times * bytes, size=size)


def products() -> Iterator[Job]:
    for dtype in ("bfloat16", "float16", "float32"):
        width = 4 if dtype == "float32" else 2
        for n in (512, 1024, 2048, 4096, 8192):

            def make(lib: Any, n: int = n, dtype: str = dtype) -> Call:
                a, b = noise(lib, dtype, n, n), noise(lib, dtype, n, n)
                return lambda: a @ b

            yield Job("matmul", f"{n}x{n}x{n} {dtype}", "forward", make, 2.0 * n**3,
                      size=3.0 * width * n * n)  # fmt: skip

        def gemv(lib: Any, dtype: str = dtype) -> Call:
            a, x = noise(lib, dtype, 8192, 8192), noise(lib, dtype, 8192)
            return lambda: a @ x

        yield Job("matmul", f"8192x8192 by a vector, {dtype}", "forward", gemv,
                  bytes=8192.0 * 8192 * width, size=8192.0 * 8192 * width)  # fmt: skip


def attentions() -> Iterator[Job]:
    for dtype in ("bfloat16", "float32"):
        for steps, batch in ((512, 32), (2048, 8), (8192, 2)):
            for depth in (64, 128):
                for causal in (False, True):
                    heads = 2048 // depth

                    def make(
                        lib: Any, grad: bool, shape: tuple[int, ...] = (batch, heads, steps, depth),
                        dtype: str = dtype, causal: bool = causal,
                    ) -> tuple[Call, list[Any]]:  # fmt: skip
                        q, k, v = (noise(lib, dtype, *shape, grad=grad) for _ in range(3))
                        attend = lib.nn.functional.scaled_dot_product_attention
                        return lambda: attend(q, k, v, is_causal=causal), [q, k, v]

                    work = 4.0 * batch * heads * steps * steps * depth / (1 + causal)
                    name = f"B{batch} H{heads} T{steps} D{depth} {dtype}" + " causal" * causal
                    yield from both_passes("attention", name, make, work, times=3.5)

        def decode(lib: Any, dtype: str = dtype) -> Call:
            q = noise(lib, dtype, 8, 32, 1, 128)
            k, v = (noise(lib, dtype, 8, 32, 8192, 128) for _ in range(2))
            attend = lib.nn.functional.scaled_dot_product_attention
            return lambda: attend(q, k, v)

        read = 2.0 * 8 * 32 * 8192 * 128 * (4 if dtype == "float32" else 2)
        yield Job("attention", f"one query of 8192 keys, {dtype}", "forward", decode, bytes=read,
                  size=read)  # fmt: skip


def rows() -> Iterator[Job]:
    """Kernels that memory limits, on 16384 x 4096."""
    n, d = 16384, 4096
    for dtype in ("float32", "bfloat16"):
        width = 4 if dtype == "float32" else 2
        calls: dict[str, Callable[[Any, Any], Any]] = {
            "softmax": lambda lib, x: lib.nn.functional.softmax(x, -1),
            "log_softmax": lambda lib, x: lib.nn.functional.log_softmax(x, -1),
            "layer_norm": lambda lib, x: lib.nn.functional.layer_norm(x, (4096,)),
            "gelu": lambda lib, x: lib.nn.functional.gelu(x),
            "dropout": lambda lib, x: lib.nn.functional.dropout(x, 0.5),
        }
        for name, call in calls.items():

            def make(
                lib: Any, grad: bool, call: Any = call, dtype: str = dtype
            ) -> tuple[Call, list[Any]]:
                x = noise(lib, dtype, n, d, grad=grad)
                return lambda: call(lib, x), [x]

            work = 2.0 * width * n * d
            yield from both_passes("rows", f"{name} {n}x{d} {dtype}", make, bytes=work, times=2.5)

    def entropy(lib: Any, grad: bool) -> tuple[Call, list[Any]]:
        x = noise(lib, "float32", 8192, 50257, grad=grad)
        labels = lib.randint(0, 50257, (8192,), device="cuda")
        return lambda: lib.nn.functional.cross_entropy(x, labels), [x]

    yield from both_passes("rows", "cross_entropy 8192x50257", entropy, bytes=4.0 * 8192 * 50257)

    def adam(lib: Any) -> Call:
        weights = [noise(lib, "float32", 4096, 4096, grad=True) for _ in range(8)]
        for weight in weights:
            weight.grad = weight.detach() * 1e-3
        more = {"fused": True} if lib.__name__ == "torch" else {}
        step: Call = lib.optim.Adam(weights, **more).step
        return step

    work = 28.0 * 8 * 4096**2
    yield Job("rows", "Adam, 134M (PyTorch: fused)", "step", adam, bytes=work, size=work)


def convolutions() -> Iterator[Job]:
    shapes = [(64, 56, 64, 3, 1), (128, 28, 128, 3, 1), (256, 14, 256, 3, 1), (512, 7, 512, 3, 1),
              (256, 56, 64, 1, 1), (64, 56, 128, 3, 2)]  # fmt: skip
    for dtype in ("bfloat16", "float32"):
        for channels, side, filters, kernel, stride in shapes:

            def make(
                lib: Any, grad: bool, sizes: tuple[int, ...] = (channels, side, filters, kernel),
                dtype: str = dtype, stride: int = stride,
            ) -> tuple[Call, list[Any]]:  # fmt: skip
                channels, side, filters, kernel = sizes
                last = {"memory_format": lib.channels_last}
                x = noise(lib, dtype, 128, channels, side, side).to(**last)
                w = noise(lib, dtype, filters, channels, kernel, kernel)
                leaves = [t.requires_grad_(grad) for t in (x, w)]
                conv = lib.nn.functional.conv2d
                return lambda: conv(x, w, None, stride, kernel // 2), leaves

            work = 2.0 * 128 * (side // stride) ** 2 * filters * channels * kernel**2
            name = f"128x{channels}x{side}x{side}, {filters} of {kernel}x{kernel}"
            yield from both_passes(
                "conv", f"{name}, stride {stride}, {dtype}, channels-last", make, work
            )


def from_cpu() -> Iterator[Job]:
    """The jobs of jobs.py, on the GPU."""
    import jobs

    jobs.device = "cuda"
    for job in jobs.JOBS:
        if job.section in SECTIONS and "DataLoader" not in job.name:
            yield Job(job.section, job.name, job.mode, job.prepare, job.flops, job.bytes,
                      job.samples)  # fmt: skip


def all_jobs() -> list[Job]:
    groups = (products, attentions, rows, convolutions, from_cpu)
    return [job for group in groups for job in group()]


# ---- timing ----


def timed(lib: Any, calls: list[Call], count: int) -> float:
    """Milliseconds per call, of `count` calls in turn."""
    start, end = (lib.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for i in range(count):
        calls[i % len(calls)]()
    end.record()
    end.synchronize()
    elapsed: float = start.elapsed_time(end)
    return elapsed / count


def prepare(lib: Any, job: Job) -> list[Call]:
    """Calls on copies of the inputs; none where the library lacks something or has no memory."""
    copies = min(MOST_COPIES, math.ceil(CACHE / job.size)) if job.size else 1
    calls = []
    for _ in range(copies):
        lib.manual_seed(0)
        call = job.prepare(lib)
        if call is None:
            return []
        calls.append(call)
    for call in calls * 2:
        call()
    return calls


def measure(libraries: list[Any], job: Job) -> dict[str, float]:
    """Median milliseconds by library."""
    calls, counts = {}, {}
    for lib in libraries:
        try:
            calls[lib] = prepare(lib, job)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            print(f"    {lib.__name__}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            calls[lib] = []
        if calls[lib]:
            counts[lib] = max(1, math.ceil(SAMPLE / max(timed(lib, calls[lib], 3), 1e-3)))
    samples: dict[str, list[float]] = {lib.__name__: [] for lib in counts}
    for _ in range(ROUNDS):
        for lib, count in counts.items():
            samples[lib.__name__].append(timed(lib, calls[lib], count))
    return {name: statistics.median(times) for name, times in samples.items()}


def peaks(libraries: list[Any]) -> tuple[float, float]:
    """The most that was reached of products of bfloat16, and of copies: operations and bytes/s."""
    lib = libraries[-1]
    n = 8192
    a = noise(lib, "bfloat16", n, n)
    product = min(timed(lib, [lambda: a @ a], 10) for _ in range(3))
    x = noise(lib, "float32", 1 << 28)
    copy = min(timed(lib, [lambda: x.clone()], 10) for _ in range(3))
    return 2e3 * n**3 / product, 8e3 * 2**28 / copy


def report(
    job: Job, times: dict[str, float], peak: tuple[float, float], versions: Any
) -> list[Any]:
    found = []
    for name, ms in times.items():
        work, unit, most = (
            (job.flops / 1e9, "TFLOP/s", peak[0] / 1e12) if job.flops
            else (job.bytes / 1e6, "GB/s", peak[1] / 1e9) if job.bytes
            else (1e3 * job.samples, "samples/s", 0.0)
        )  # fmt: skip
        rate = work / ms if work else 1e3 * ms
        share = f"{rate / most:.3f}" if most else ""
        ratio = f"{ms / times['grebe']:.3f}" if "grebe" in times else ""
        row = (job.section, job.name, job.mode, name, versions[name], f"{ms:.5g}", f"{rate:.4g}",
               unit if work else "us", share, ratio)  # fmt: skip
        found.append(dict(zip(COLUMNS, row, strict=True)))
    return found


def table(rows: list[dict[str, str]], card: str) -> str:
    """Markdown: a line per job."""
    lines = [
        f"{card}. rate: grebe's; share: of the best product or copy; ratio: PyTorch's time over",
        *("grebe's.", "", "| job | pass | rate | share | ratio |", "|---|---|---|---|---|"),
    ]
    for row in rows:
        if row["library"] != "grebe":
            continue
        same = [r for r in rows if all(r[c] == row[c] for c in ("section", "job", "mode"))]
        ratio = next((r["ratio"] for r in same if r["library"] == "torch"), "")
        share = f"{100 * float(row['share']):.0f}%" if row["share"] else ""
        lines.append(
            f"| `{row['section']} {row['job']}` | {row['mode']} | {row['rate']} {row['unit']} | "
            f"{share} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def time_all(pattern: str, folder: Path, emulated: bool) -> None:
    import grebe

    if emulated:
        grebe.cuda.emulate()
        libraries = [grebe]
    else:
        libraries = [grebe, importlib.import_module("torch")]
    for lib in libraries:
        lib.set_default_device("cuda")
    card = grebe.cuda.get_device_name()
    versions = {lib.__name__: lib.__version__ for lib in libraries}
    peak = (1.0, 1.0) if emulated else peaks(libraries)
    print(f"{card}: {peak[0] / 1e12:.0f} TFLOP/s of bfloat16 products, {peak[1] / 1e9:.0f} GB/s of "
          f"copies; {versions}", flush=True)  # fmt: skip
    rows: list[dict[str, str]] = []
    path = folder / re.sub(r"\W+", "-", card.lower()).strip("-")
    for job in all_jobs():
        if not re.search(pattern, f"{job.section} {job.name} {job.mode}"):
            continue
        times = measure(libraries, job)
        found = report(job, times, peak, versions)
        words = [f"{r['library']} {r['rate']} {r['unit']} x{r['ratio']}" for r in found]
        print(f"{job.section:9} {job.name:50} {job.mode:17}", *words, flush=True)
        rows += found
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        gc.collect()
    path.with_suffix(".md").write_text(table(rows, card))


# ---- the steps ----


def logged(name: str, folder: Path, *command: str) -> None:
    """Runs a command, its output in FOLDER/NAME.log."""
    with (folder / f"{name}.log").open("w") as log:
        result = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    last = (folder / f"{name}.log").read_text().strip().splitlines()[-1:]
    print(f"{name}: exit {result.returncode}: {''.join(last)}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="build,test,golden,time", help="some of these")
    parser.add_argument("--ops", default="", help="only jobs whose 'section job mode' matches")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--python", help="the interpreter that has grebe; default: build/venv's")
    parser.add_argument("--emulated", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps = options.steps.split(",")
    if steps == ["time"] and not options.python:
        return time_all(options.ops, options.out, options.emulated)
    import run

    python = options.python or run.PYTHON
    if "build" in steps:
        run.install("cuda13,test,bench")
    pytest = (python, "-m", "pytest", "-q", "--device")
    if "test" in steps:
        files = sorted(str(p) for p in (ROOT / "tests").glob("test_cuda*.py"))
        logged("test", options.out, *pytest, "cuda", "tests/test_ops.py", *files)
    if "golden" in steps:
        logged("golden-gpu", options.out, *pytest, "cuda", "tests/test_emulator.py")
        logged("golden-emulator", options.out, *pytest, "emulated", "tests/test_emulator.py")
    if "time" in steps:
        command = (python, __file__, "--steps", "time", "--ops", options.ops)
        subprocess.run([*command, "--out", str(options.out)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
