"""Forks and threads: nothing hangs, nothing changes a result."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import threadpoolctl

import grebe

# Python 3.12 warns of any fork in a process with threads: that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
PATIENCE = 20.0  # seconds


def work(seed: int = 0) -> bytes:
    """A forward and a backward pass large enough for two threads."""
    generator = grebe.Generator().manual_seed(seed)
    x = grebe.randn(300, 300, generator=generator).requires_grad_()
    y = grebe.randn(300, 300, generator=generator)
    (grebe.tanh(x @ y) * x).sum().backward()
    return x.grad.numpy().tobytes()


def succeeds_in_child(job: Callable[[], bool]) -> bool:
    """Whether `job()` returned True in a forked child, within PATIENCE."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if job() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def test_child_computes_the_same() -> None:
    grebe.set_num_threads(2)
    before = work()
    assert succeeds_in_child(lambda: work() == before)
    assert work() == before


def test_grandchild() -> None:
    grebe.set_num_threads(2)
    before = work()
    assert succeeds_in_child(lambda: succeeds_in_child(lambda: work() == before))


def test_fork_while_another_thread_computes() -> None:
    grebe.set_num_threads(2)
    before = work()
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            work(1)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        assert all(succeeds_in_child(lambda: work() == before) for _ in range(10))
    finally:
        stop.set()
        thread.join()


def test_fork_in_the_middle_of_training() -> None:
    grebe.set_num_threads(2)
    model = grebe.nn.Linear(300, 300)
    optimizer = grebe.optim.SGD(model.parameters(), lr=0.01)
    data = grebe.utils.data.TensorDataset(grebe.randn(64, 300))
    loader = grebe.utils.data.DataLoader(data, batch_size=16, num_workers=2)
    for _ in range(2):
        for (x,) in loader:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert succeeds_in_child(lambda: bool(grebe.isfinite(model(grebe.randn(300, 300))).all()))


def test_many_python_threads() -> None:
    expected = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(work, range(4))) == expected


@pytest.mark.parametrize("idle", [0, 1e-4, 1e-3, 1e-2])
def test_threads_that_were_idle(idle: float) -> None:
    expected = work()
    for threads in (2, 1, 3, 2, 4) * 5:
        grebe.set_num_threads(threads)
        assert work() == expected
        time.sleep(idle)


def test_threadpoolctl_sees_and_limits_the_threads() -> None:
    grebe.set_num_threads(2)
    work()
    assert "openmp" in {info["user_api"] for info in threadpoolctl.threadpool_info()}
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert grebe.get_num_threads() == 1
    assert grebe.get_num_threads() == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_is_an_error(threads: int) -> None:
    with pytest.raises(ValueError, match=str(threads)):
        grebe.set_num_threads(threads)
