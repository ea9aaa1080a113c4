#!/usr/bin/env python3
"""Commands that do all their own set-up; they need Python 3.10+ and a C++ compiler.

python3 run.py train    builds grebe, trains LeNet on real images, reports accuracy and speed
python3 run.py test     builds grebe, runs the tests
python3 run.py parity   builds grebe, compares it with PyTorch (installs torch)

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
# Kept in the environment, unlike pip's isolated build requirements, so that builds are incremental.
BUILD_TOOLS = ["scikit-build-core>=1.0", "pybind11>=3.0", "numpy>=2.0", "cmake>=3.24", "ninja"]


def install(extras: str) -> None:
    """Builds grebe and installs it with `extras` in the virtual environment."""
    if not Path(PYTHON).exists():
        print(f"setting up {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *BUILD_TOOLS], check=True)
    print(f"building grebe[{extras}]", flush=True)
    subprocess.run([*pip, "--no-build-isolation", f"{ROOT}[{extras}]"], check=True)


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


def main() -> None:
    """Runs the command named on the command line, from the root of the project."""
    commands = {"train": train, "test": test, "parity": parity}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    command = commands[sys.argv[1]](sys.argv[2:])
    os.chdir(ROOT)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
