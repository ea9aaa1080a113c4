"""Fixtures of all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import check
import grebe

# Jobs in the background of a shell ignore Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=["cpu", "emulated", "cuda"], default="cpu",
        help="where the cases of test_ops.py run; emulated: CUDA kernels on the CPU",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    where = config.getoption("--device")
    if where == "emulated":
        grebe.cuda.emulate()
    check.DEVICE = "cpu" if where == "cpu" else "cuda"


@pytest.fixture
def cuda_device() -> Iterator[None]:
    """ "cuda" is a GPU for the time of the test: the emulated one, or what --device asks for."""
    if check.DEVICE == "cpu":
        pytest.importorskip("grebe._emulated", exc_type=ImportError)
        grebe.cuda.emulate()
    yield
    check.set_emulator(lazy=True, seed=0)
    if check.DEVICE == "cpu":
        grebe.cuda.emulate(False)


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Every test starts from the same random state and leaves the number of threads as it was."""
    threads = grebe.get_num_threads()
    grebe.manual_seed(0)
    yield
    grebe.set_num_threads(threads)
