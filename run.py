#!/usr/bin/env python3
"""Commands that do all their own set-up; they need Python 3.10+ and a C++ compiler.

python3 run.py train     builds grebe, trains LeNet on real images, reports accuracy and speed
python3 run.py test      builds grebe, runs the tests
python3 run.py parity    builds grebe, compares it with PyTorch (installs torch)
python3 run.py coverage  which lines of the kernels no test runs, at each ISA level (needs GCC)
python3 run.py sanitize  the kernels' tests under AddressSanitizer and UBSan (needs GCC)

Everything is installed in build/venv. Further arguments go to `grebe train` or to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / "build" / "venv"
PYTHON = str(VENV / "bin" / "python")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
LEVELS = ["baseline", "avx2", "avx512", "avx512bf16"]
KERNEL_TESTS = [
    f"tests/test_{name}.py"
    for name in "ops shapes memory attention conv dropout elementwise_kernels embedding fork "
    "linalg loss matmul nn norm optim pool positions random random_kernels reduce_kernels rnn simd "
    "softmax sort".split()
]
# Kept in the environment, unlike pip's isolated build requirements, so that builds are incremental.
BUILD_TOOLS = ["scikit-build-core>=1.0", "pybind11>=3.0", "numpy>=2.0", "cmake>=3.24", "ninja"]


def install(extras: str, instrument: str = "") -> None:
    """Builds grebe and installs it with `extras` in the virtual environment.

    instrument: "coverage" or "sanitize", built in a folder of its own.
    """
    if not Path(PYTHON).exists():
        print(f"setting up {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *BUILD_TOOLS], check=True)
    print(f"building grebe[{extras}]", instrument, flush=True)
    options = ["-Ccmake.define.GREBE_EMULATOR=ON"] if "test" in extras else []
    if instrument:
        options = [
            f"-Cbuild-dir=build/{instrument}", f"-Ccmake.define.GREBE_INSTRUMENT={instrument}"
        ]  # fmt: skip
    command = [*pip, "--no-build-isolation", *options, f"{ROOT}[{extras}]"]
    subprocess.run(command, check=True)


def train(arguments: list[str]) -> list[str]:
    """The command that trains LeNet; on scikit-learn's digits where Fashion-MNIST is missing."""
    install("data,plot")
    data = "fashion-mnist" if FASHION_MNIST.is_dir() else "digits"
    defaults = ["--data", data, "--out", str(ROOT / "runs" / "lenet")]
    return [PYTHON, "-m", "grebe", "train", "lenet", *defaults, *arguments]


def test(arguments: list[str]) -> list[str]:
    """The command that runs the tests."""
    install("test")
    return [PYTHON, "-m", "pytest", "--ignore=tests/parity", *arguments]


def parity(arguments: list[str]) -> list[str]:
    """The command that compares with PyTorch."""
    install("test,parity")
    return [PYTHON, "-m", "pytest", "tests/parity", *arguments]


def coverage(arguments: list[str]) -> list[str]:
    """The command that reports untested lines, after the kernels' tests at every ISA level."""
    install("test", "coverage")
    for old in (ROOT / "build" / "coverage").rglob("*.gcda"):
        old.unlink()
    for level in LEVELS:
        environment = {**os.environ, "GREBE_ISA": level}
        probe = [PYTHON, "-c", "import grebe"]
        if subprocess.run(probe, env=environment, stderr=subprocess.DEVNULL).returncode:
            print(f"{level}: not on this machine", flush=True)
            continue
        command = [PYTHON, "-m", "pytest", "-q", *(arguments or KERNEL_TESTS)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
    return [PYTHON, "tests/coverage.py", "build/coverage"]


def sanitize(arguments: list[str]) -> list[str]:
    """The command that runs the kernels' tests with every memory access checked."""
    install("test", "sanitize")
    compiler = os.environ.get("CXX", "c++")
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    # Python itself leaks by design, and its own allocator would hide overruns from the sanitizer.
    os.environ.update(
        LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0", PYTHONMALLOC="malloc"
    )
    return [PYTHON, "-m", "pytest", *(arguments or KERNEL_TESTS)]


def main() -> None:
    """Runs the command named on the command line, from the root of the project."""
    commands = {
        "train": train, "test": test, "parity": parity, "coverage": coverage, "sanitize": sanitize,
    }  # fmt: skip
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    command = commands[sys.argv[1]](sys.argv[2:])
    os.chdir(ROOT)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
