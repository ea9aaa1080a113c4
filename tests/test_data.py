"""utils.data: samplers, collation, loading here and in workers."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grebe
from grebe.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    default_convert,
    get_worker_info,
    random_split,
)


def numbers(n: int) -> TensorDataset:
    x = grebe.tensor(np.arange(n * 3, dtype=np.float32).reshape(n, 3))
    return TensorDataset(x, grebe.tensor(np.arange(n)))


def seeded(seed: int) -> Any:
    return grebe.Generator().manual_seed(seed)


class Squares(Dataset):
    """Per-sample Python, the slow way."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return np.full(2, i, np.float32), i * i


class Draws(Squares):
    """What this process's generators say, and which process it is."""

    def __getitem__(self, i: int) -> Any:
        info = get_worker_info()
        worker = -1 if info is None else info.id
        drawn = float(grebe.rand(1).array[0])
        return worker, random.random(), float(np.random.rand()), drawn  # noqa: NPY002


class Failing(Squares):
    def __getitem__(self, i: int) -> Any:
        if i == 5:
            raise KeyError("sample five")
        return i


class Suicidal(Squares):
    def __getitem__(self, i: int) -> Any:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(100_000, np.float32)


class Slow(Squares):
    def __getitem__(self, i: int) -> Any:
        time.sleep(30)
        return i


class Stream(IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        return iter(range(start, self.n, step))


def column(loader: Any, which: int = 1) -> list[int]:
    return [value for batch in loader for value in batch[which].tolist()]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


# ---- datasets ----


def test_tensor_dataset() -> None:
    data = numbers(4)
    assert len(data) == 4
    x, y = data[2]
    assert x.tolist() == [6, 7, 8]
    assert y.item() == 2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((), ValueError, "at least one"),
        (([1, 2],), TypeError, "argument 0 must be a Tensor, got list"),
        ((grebe.tensor(1.0),), ValueError, "scalar"),
        ((grebe.zeros(2), grebe.zeros(3)), ValueError, "got 2, 3"),
    ],
)
def test_tensor_dataset_errors(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        TensorDataset(*arguments)


def test_concat_and_subset() -> None:
    both = numbers(3) + Subset(numbers(5), [4, 0])
    assert isinstance(both, ConcatDataset)
    assert [both[i][1].item() for i in range(len(both))] == [0, 1, 2, 4, 0]
    assert both[-1][1].item() == 0
    for bad in (5, -6):
        with pytest.raises(IndexError, match="out of range"):
            both[bad]
    with pytest.raises(ValueError, match="at least one"):
        ConcatDataset([])
    with pytest.raises(TypeError, match="IterableDataset"):
        ConcatDataset([Stream(3)])


def test_random_split() -> None:
    data = numbers(10)
    parts = random_split(data, [7, 3], generator=seeded(1))
    assert [len(part) for part in parts] == [7, 3]
    assert sorted(parts[0].indices + parts[1].indices) == list(range(10))
    again = random_split(data, [7, 3], generator=seeded(1))
    assert again[0].indices == parts[0].indices
    assert [len(p) for p in random_split(data, [0.5, 0.25, 0.25])] == [6, 2, 2]
    assert [len(p) for p in random_split(numbers(1), [1])] == [1]
    with pytest.raises(ValueError, match="10 samples"):
        random_split(data, [7, 4])
    with pytest.raises(ValueError, match="negative"):
        random_split(data, [11, -1])


# ---- samplers ----


def test_sequential_and_batch_sampler() -> None:
    assert list(SequentialSampler(range(3))) == [0, 1, 2]
    batches = BatchSampler(SequentialSampler(range(5)), 2, False)
    assert list(batches) == [[0, 1], [2, 3], [4]]
    assert len(batches) == 3
    arrays = batches.arrays()
    assert arrays is not None
    assert [batch.tolist() for batch in arrays] == list(batches)
    assert list(BatchSampler(iter(range(5)), 2, True)) == [[0, 1], [2, 3]]
    assert len(BatchSampler(SequentialSampler(range(5)), 2, True)) == 2


@given(st.integers(1, 40), st.integers(1, 100), st.booleans())
def test_random_sampler(n: int, count: int, replacement: bool) -> None:
    sampler = RandomSampler(range(n), replacement, count, seeded(3))
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == count
    assert set(drawn) <= set(range(n))
    if not replacement:
        for start in range(0, count - n + 1, n):
            assert sorted(drawn[start : start + n]) == list(range(n))


def test_random_sampler_is_new_in_each_epoch_and_reproducible() -> None:
    first = RandomSampler(range(50), generator=seeded(7))
    epochs = [list(first), list(first)]
    assert epochs[0] != epochs[1]
    second = RandomSampler(range(50), generator=seeded(7))
    assert [list(second), list(second)] == epochs


def test_weighted_and_subset_samplers() -> None:
    drawn = list(WeightedRandomSampler([0.0, 1.0, 3.0], 4000, generator=seeded(0)))
    assert set(drawn) == {1, 2}
    assert 0.70 < drawn.count(2) / 4000 < 0.80
    once = list(WeightedRandomSampler([1.0, 1.0, 1.0], 3, replacement=False))
    assert sorted(once) == [0, 1, 2]
    assert sorted(SubsetRandomSampler([4, 8, 15])) == [4, 8, 15]


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomSampler(range(3), num_samples=0),
        lambda: RandomSampler(range(3), replacement=1),
        lambda: list(RandomSampler([], num_samples=2)),
        lambda: WeightedRandomSampler([1.0, -1.0], 2),
        lambda: WeightedRandomSampler([0.0, 0.0], 2),
        lambda: WeightedRandomSampler([], 2),
        lambda: WeightedRandomSampler([1.0, float("nan")], 2),
        lambda: WeightedRandomSampler([1.0, 0.0], 2, replacement=False),
        lambda: BatchSampler(range(3), 0, False),
        lambda: BatchSampler(range(3), True, False),
        lambda: BatchSampler(range(3), 2, 1),
    ],
)
def test_sampler_errors(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Sampler: "):
        make()


# ---- collation ----


def test_default_collate() -> None:
    Point = namedtuple("Point", "x y")
    batch = default_collate(
        [
            {"a": grebe.tensor([1.0, 2.0]), "b": (1, 2.5), "c": "x", "d": Point(True, [1, 2])},
            {"a": grebe.tensor([3.0, 4.0]), "b": (3, 4.5), "c": "y", "d": Point(False, [3, 4])},
        ]
    )
    assert batch["a"].tolist() == [[1, 2], [3, 4]]
    assert batch["b"][0].dtype == grebe.int64
    assert batch["b"][1].dtype == grebe.float64
    assert batch["b"][1].tolist() == [2.5, 4.5]
    assert batch["c"] == ["x", "y"]
    assert batch["d"].x.dtype == grebe.bool
    assert [column.tolist() for column in batch["d"].y] == [[1, 3], [2, 4]]


def test_default_collate_keeps_dtype_and_gradient() -> None:
    assert default_collate([np.float16(1), np.float16(2)]).dtype == grebe.float16
    x = grebe.tensor([1.0, 2.0], requires_grad=True)
    default_collate([x, x]).sum().backward()
    assert x.grad.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("batch", "error", "text"),
    [
        ([], ValueError, "at least one"),
        ([np.zeros(2), np.zeros(3)], ValueError, r"same shape, got \(2,\), \(3,\)"),
        ([(1, 2), (1,)], ValueError, "same length"),
        ([object()], TypeError, "got object"),
        ([np.array(["a"])], TypeError, "dtype"),
        ([1, "a"], TypeError, "got int, str"),
    ],
)
def test_default_collate_errors(batch: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        default_collate(batch)


def test_default_convert() -> None:
    out = default_convert({"a": np.ones(2), "b": [np.float32(3), "s"], "c": 4})
    assert out["a"].tolist() == [1, 1]
    assert out["b"][0].item() == 3
    assert out["b"][1] == "s"
    assert out["c"] == 4


# ---- loading in this process ----


def test_batches() -> None:
    loader = DataLoader(numbers(10), batch_size=4)
    assert len(loader) == 3
    assert [x.shape for x, _ in loader] == [(4, 3), (4, 3), (2, 3)]
    assert column(loader) == list(range(10))
    assert len(DataLoader(numbers(10), 4, drop_last=True)) == 2
    assert column(DataLoader(numbers(10), 4, drop_last=True)) == list(range(8))


def test_batches_are_copies() -> None:
    data = numbers(4)
    for x, _ in DataLoader(data, 2):
        x.array[...] = -1
    assert data.tensors[0].array.min() == 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_fast_path_gives_what_the_slow_one_gives(shuffle: bool) -> None:
    data = Subset(numbers(50), list(range(49, 0, -2)))
    fast = DataLoader(data, 4, shuffle, generator=seeded(2))
    slow = DataLoader(
        data, 4, shuffle, generator=seeded(2), collate_fn=lambda batch: default_collate(batch)
    )
    for a, b in zip(fast, slow, strict=True):
        assert isinstance(a, list)
        assert a[0].tolist() == b[0].tolist()
        assert a[1].tolist() == b[1].tolist()


def test_an_overridden_getitem_overrules_the_fast_path() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, i: int) -> Any:
            return super().__getitem__(i)[1] * 2

    data = Doubled(*numbers(4).tensors)
    (batch,) = DataLoader(data, 4)
    assert batch.tolist() == [0, 2, 4, 6]
    (batch,) = DataLoader(Subset(data, [3, 1]), 2)
    assert batch.tolist() == [6, 2]


def test_an_overridden_sampler_iter_overrules_its_indices() -> None:
    class Backwards(SequentialSampler):
        def __iter__(self) -> Any:
            return iter(range(len(self.data_source) - 1, -1, -1))

    assert column(DataLoader(numbers(4), 2, sampler=Backwards(range(4)))) == [3, 2, 1, 0]


def test_negative_and_wrong_indices() -> None:
    assert column(DataLoader(numbers(4), batch_sampler=[[-1, 0]])) == [3, 0]
    with pytest.raises(IndexError, match="index 4 is out of range for 4 samples"):
        list(DataLoader(numbers(4), batch_sampler=[[0, 4]]))


def test_getitems_protocol() -> None:
    class Many(Squares):
        def __getitems__(self, indices: list[int]) -> Any:
            return [-i for i in indices]

    assert [b.tolist() for b in DataLoader(Many(4), 2)] == [[0, -1], [-2, -3]]


def test_without_batches() -> None:
    assert [y for _, y in DataLoader(Squares(3), batch_size=None)] == [0, 1, 4]
    assert list(DataLoader(Stream(3), batch_size=None)) == [0, 1, 2]


def test_iterable_dataset() -> None:
    assert [b.tolist() for b in DataLoader(Stream(5), 2)] == [[0, 1], [2, 3], [4]]
    assert [b.tolist() for b in DataLoader(Stream(5), 2, drop_last=True)] == [[0, 1], [2, 3]]


def test_shuffle_is_reproducible_and_new_in_each_epoch() -> None:
    a = DataLoader(numbers(30), 7, shuffle=True, generator=seeded(5))
    b = DataLoader(numbers(30), 7, shuffle=True, generator=seeded(5))
    first, second = column(a), column(a)
    assert first != second
    assert [column(b), column(b)] == [first, second]
    grebe.manual_seed(11)
    default = column(DataLoader(numbers(30), 7, shuffle=True))
    grebe.manual_seed(11)
    assert column(DataLoader(numbers(30), 7, shuffle=True)) == default


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 2.5}, ValueError),
        ({"num_workers": -1}, ValueError),
        ({"num_workers": True}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"prefetch_factor": 2}, ValueError),
        ({"prefetch_factor": 0, "num_workers": 1}, ValueError),
        ({"persistent_workers": True}, ValueError),
        ({"shuffle": True, "sampler": [0]}, ValueError),
        ({"batch_sampler": [[0]], "shuffle": True}, ValueError),
        ({"batch_sampler": [[0]], "batch_size": 3}, ValueError),
        ({"batch_size": None, "drop_last": True}, ValueError),
        ({"multiprocessing_context": "fork"}, ValueError),
        ({"multiprocessing_context": "nonsense", "num_workers": 1}, ValueError),
        ({"multiprocessing_context": 3, "num_workers": 1}, TypeError),
        ({"collate_fn": 3}, TypeError),
        ({"worker_init_fn": 3}, TypeError),
        ({"in_order": False}, NotImplementedError),
    ],
)
def test_loader_errors(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="DataLoader"):
        DataLoader(numbers(4), **arguments)


def test_loader_refuses_what_is_no_dataset() -> None:
    with pytest.raises(TypeError, match="got int"):
        DataLoader(3)
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Stream(3), shuffle=True)


# ---- loading by workers ----


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("data", [numbers(23), Squares(23)])
def test_workers_give_the_same_batches(data: Any, workers: int) -> None:
    here = DataLoader(data, 4, shuffle=True, generator=seeded(1))
    there = DataLoader(data, 4, shuffle=True, generator=seeded(1), num_workers=workers)
    for _ in range(2):
        assert [b[0].tolist() for b in there] == [b[0].tolist() for b in here]
        assert column(there) == column(here)


def test_workers_large_batches_and_orders() -> None:
    """Batches and index lists that fill the connection both ways at once."""
    n = 200_000
    data = TensorDataset(grebe.tensor(np.arange(n * 8, dtype=np.float32).reshape(n, 8)))
    orders = [list(range(n - 1, -1, -1)) for _ in range(6)]
    for (x,) in DataLoader(data, batch_sampler=orders, num_workers=2, prefetch_factor=3):
        assert x.shape == (n, 8)
        assert x.array[0, 0] == 8 * (n - 1)


def test_workers_iterable_dataset() -> None:
    loader = DataLoader(Stream(10), 2, num_workers=3)
    got = [b.tolist() for b in loader]
    assert got == [[0, 3], [1, 4], [2, 5], [6, 9], [7], [8]]
    persistent = DataLoader(Stream(10), 2, num_workers=3, persistent_workers=True)
    assert [[b.tolist() for b in persistent] for _ in range(2)] == [got, got]


def test_workers_spawned() -> None:
    loader = DataLoader(numbers(9), 4, num_workers=1, multiprocessing_context="spawn")
    assert column(loader) == list(range(9))


def test_seeds_differ_by_worker_and_epoch_and_are_reproducible() -> None:
    def epochs(seed: int) -> list[list[tuple[float, ...]]]:
        loader = DataLoader(Draws(8), 1, num_workers=2, generator=seeded(seed))
        return [[tuple(c.item() for c in b) for b in loader] for _ in range(2)]

    first = epochs(4)
    assert [row[0] for row in first[0]] == [0, 1] * 4
    for source in (1, 2, 3):
        drawn = [row[source] for epoch in first for row in epoch]
        assert len(set(drawn)) == len(drawn)
    assert epochs(4) == first
    assert epochs(5) != first


def test_persistent_workers_stay_and_are_seeded_anew() -> None:
    pids = []

    def loader_pids(loader: Any) -> list[int]:
        return [worker.process.pid for worker in loader._workers._all]

    loader = DataLoader(Draws(4), 1, num_workers=2, persistent_workers=True, generator=seeded(4))
    epochs = []
    for _ in range(2):
        epochs.append([tuple(c.item() for c in b) for b in loader])
        pids.append(loader_pids(loader))
    assert pids[0] == pids[1]
    fresh = DataLoader(Draws(4), 1, num_workers=2, generator=seeded(4))
    assert epochs == [[tuple(c.item() for c in b) for b in fresh] for _ in range(2)]


def test_persistent_workers_after_a_broken_off_epoch() -> None:
    loader = DataLoader(numbers(20), 2, num_workers=2, persistent_workers=True)
    for _ in loader:
        break
    assert column(loader) == list(range(20))


def test_worker_init_and_info() -> None:
    assert get_worker_info() is None

    def init(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.n = 100 + worker

    class Told(Squares):
        def __getitem__(self, i: int) -> Any:
            info = get_worker_info()
            assert info is not None
            return self.n, info.num_workers

    got = [b[0].item() for b in DataLoader(Told(4), 1, num_workers=2, worker_init_fn=init)]
    assert got == [100, 101, 100, 101]


def test_worker_exception() -> None:
    loader = DataLoader(Failing(10), 2, num_workers=2)
    with pytest.raises(KeyError, match=r"worker 0(.|\n)*sample five") as caught:
        list(loader)
    assert "Traceback" in str(caught.value)
    assert "__getitem__" in str(caught.value)


def test_exception_types_that_cannot_travel() -> None:
    class Local(Exception):
        pass

    class Raising(Squares):
        def __getitem__(self, i: int) -> Any:
            raise Local("gone")

    class Stopping(Squares):
        def __getitem__(self, i: int) -> Any:
            raise StopIteration

    class Unpicklable(Squares):
        def __getitem__(self, i: int) -> Any:
            return "x", lambda: 0

    for data, text in ((Raising(2), "gone"), (Stopping(2), "StopIteration")):
        with pytest.raises(RuntimeError, match=text):
            list(DataLoader(data, num_workers=1))
    with pytest.raises(Exception, match="worker 0"):
        list(DataLoader(Unpicklable(2), collate_fn=list, num_workers=1))


def test_worker_init_exception() -> None:
    def init(worker: int) -> None:
        raise OSError("no init")

    with pytest.raises(OSError, match="no init"):
        list(DataLoader(numbers(4), num_workers=1, worker_init_fn=init))


def test_killed_worker() -> None:
    loader = DataLoader(Suicidal(20), 2, num_workers=2)
    with pytest.raises(RuntimeError, match=r"worker 0 \(pid \d+\) exited .* SIGKILL"):
        list(loader)


def test_kill_from_outside_and_next_epoch() -> None:
    loader = DataLoader(numbers(500), 2, num_workers=2, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    for worker in loader._workers._all:
        os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="SIGKILL"):
        for _ in batches:
            pass
    assert column(loader) == list(range(500))


def test_timeout() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"timed out after 0\.2 seconds"):
        list(DataLoader(Slow(4), num_workers=1, timeout=0.2))
    assert time.monotonic() - start < 10


def test_collected_iterators_end_their_workers() -> None:
    batches: Any = iter(DataLoader(numbers(1000), 1, num_workers=2))
    next(batches)
    pids = [worker.process.pid for worker in batches._all]
    assert all(map(alive, pids))
    del batches
    gc.collect()
    assert not any(map(alive, pids))


def run_script(text: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_workers_compute_after_the_parent_used_threads() -> None:
    """Workers forked in the middle of training run kernels; neither they nor the parent hang."""
    done = run_script(
        """
        import numpy as np, grebe
        from grebe.utils.data import DataLoader, Dataset
        grebe.set_num_threads(2)

        class Computing(Dataset):
            def __len__(self): return 8
            def __getitem__(self, i):
                x = grebe.ones(300, 300)
                return (x @ x).sum().item() + grebe.exp(grebe.zeros(200, 1000)).sum().item()

        w = grebe.ones(400, 400, requires_grad=True)
        for epoch in range(2):
            for batch in DataLoader(Computing(), 2, num_workers=2, timeout=30):
                (grebe.exp(w @ w * 1e-3)).sum().backward()
                assert batch.tolist() == [300.0 ** 3 + 200_000] * 2, batch
        print("done")
        """
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_draws() -> None:
    with grebe.default_generator._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            grebe.manual_seed(1)
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_workers_end_with_a_killed_parent() -> None:
    script = """
        import os, signal, time
        import numpy as np
        from grebe.utils.data import DataLoader, Dataset
        class Plain(Dataset):
            def __len__(self): return 1000
            def __getitem__(self, i): return np.zeros(300_000, np.float32)
        batches = iter(DataLoader(Plain(), 1, num_workers=2))
        next(batches)
        print(*[w.process.pid for w in batches._all], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    pids = [int(pid) for pid in run_script(script).stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 15
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_ctrl_c_ends_workers() -> None:
    script = """
        import time
        from grebe.utils.data import DataLoader, Dataset
        class Slow(Dataset):
            def __len__(self): return 100
            def __getitem__(self, i):
                time.sleep(0.05 if i < 4 else 60)
                return i
        batches = iter(DataLoader(Slow(), 1, num_workers=2))
        next(batches)
        print(*[w.process.pid for w in batches._all], flush=True)
        list(batches)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    _, errors = process.communicate(timeout=30)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert len(pids) == 2
    assert not any(map(alive, pids))


def test_samplers_base_is_abstract() -> None:
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(Sampler())
    with pytest.raises(NotImplementedError, match="__getitem__"):
        Dataset()[0]
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(IterableDataset())
