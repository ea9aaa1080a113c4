"""Tensors, layers and training on "cuda", here the emulated GPU: what moves, what may mix."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import backend, nn

pytestmark = pytest.mark.usefixtures("cuda_device")


def test_move() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = grebe.from_numpy(a)
    y = x.cuda()
    assert y.is_cuda and y.device == grebe.device("cuda", 0) and not x.is_cuda
    assert y.cuda() is y and x.cpu() is x and x.to("cpu") is x
    np.testing.assert_array_equal(y.cpu().numpy(), a)
    a[0, 0] = 9  # a copy: not seen
    assert y[0, 0].item() == 0
    np.testing.assert_array_equal(y.to("cpu", grebe.float64).numpy(), [[0, 1, 2], [3, 4, 5]])
    assert x.to(y).is_cuda
    with pytest.raises(TypeError, match="cpu"):
        y.numpy()


def test_move_keeps_the_memory_format() -> None:
    x = grebe.randn(2, 3, 4, 5).to(memory_format=grebe.channels_last)
    y = x.cuda()
    assert y.is_contiguous(memory_format=grebe.channels_last)
    assert y.cpu().is_contiguous(memory_format=grebe.channels_last)


def test_gradients_move_back() -> None:
    x = grebe.randn(3, requires_grad=True)
    y = x.cuda()
    (y * y).sum().backward()
    assert x.grad is not None and not x.grad.is_cuda
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.detach().numpy(), rtol=1e-6)


def test_creation_on_the_device() -> None:
    for t in (
        grebe.zeros(2, 3, device="cuda"),
        grebe.ones(2, device="cuda:0"),
        grebe.full((2,), 7, device="cuda"),
        grebe.arange(5, device="cuda"),
        grebe.eye(3, device="cuda"),
        grebe.tensor([1.0, 2.0], device="cuda"),
        grebe.zeros_like(grebe.ones(3, device="cuda")),
        grebe.rand(4, device="cuda"),
        grebe.randn(4, device="cuda"),
    ):
        assert t.is_cuda
        assert np.isfinite(t.cpu().numpy()).all()
    assert not grebe.zeros_like(grebe.ones(3, device="cuda"), device="cpu").is_cuda


def test_the_same_random_numbers() -> None:
    grebe.manual_seed(3)
    a = grebe.rand(100)
    grebe.manual_seed(3)
    b = grebe.rand(100, device="cuda")
    np.testing.assert_array_equal(a.numpy(), b.cpu().numpy())


def test_devices_do_not_mix() -> None:
    x, y = grebe.ones(3), grebe.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + y
    with pytest.raises(RuntimeError, match="same device"):
        y * x
    assert (y + grebe.tensor(2.0)).is_cuda  # a number in disguise
    assert (2.0 - y).is_cuda


def test_values_come_to_the_host() -> None:
    y = grebe.tensor([[1.5, 2.5]], device="cuda")
    assert y.tolist() == [[1.5, 2.5]] and y[0, 1].item() == 2.5 and float(y.sum()) == 4.0
    assert "cuda:0" in repr(y) and "2.5" in repr(y)
    assert bool((y > 1).all())


def test_in_place() -> None:
    y = grebe.ones(4, device="cuda")
    y += 1
    y[1:3] = 5
    y.mul_(2)
    assert y.tolist() == [4, 10, 10, 4]
    y.zero_()
    assert y.tolist() == [0, 0, 0, 0]
    y.copy_(grebe.arange(4).float())
    assert y.is_cuda and y.tolist() == [0, 1, 2, 3]


def test_integers() -> None:
    i = grebe.arange(6, device="cuda").reshape(2, 3)
    assert (i + i).tolist() == [[0, 2, 4], [6, 8, 10]] and (i + i).is_cuda
    assert i.sum().item() == 15 and i.max().item() == 5
    assert (i % 2).tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("way", ["to", "cuda", "device"])
def test_module(way: str) -> None:
    grebe.manual_seed(0)
    if way == "device":
        net: nn.Module = nn.Linear(3, 2, device="cuda")
    else:
        net = nn.Linear(3, 2)
        net = net.to("cuda") if way == "to" else net.cuda()
    assert all(p.is_cuda and p.is_leaf and p.requires_grad for p in net.parameters())
    x = grebe.randn(4, 3)
    twin = copy.deepcopy(net).cpu()
    np.testing.assert_allclose(
        net(x.cuda()).detach().cpu().numpy(), twin(x).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(RuntimeError, match="device"):
        net(x)


def networks() -> dict[str, nn.Module]:
    return {
        "mlp": nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 5)),
    }


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_training_follows_the_cpu(name: str, optimizer: str) -> None:
    x, labels = grebe.randn(8, 20), grebe.randint(0, 5, (8,))
    losses = []
    for device in ("cpu", "cuda"):
        grebe.manual_seed(1)
        net = networks()[name].to(device)
        step = getattr(grebe.optim, optimizer)(net.parameters(), lr=0.05)
        seen = []
        for _ in range(5):
            step.zero_grad()
            loss = nn.functional.cross_entropy(net(x.to(device)), labels.to(device))
            loss.backward()
            step.step()
            seen.append(loss.item())
        losses.append(seen)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]


# ---- streams, events, pinned memory ----


def test_streams_and_events() -> None:
    side = grebe.cuda.Stream()
    start, end = (grebe.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    side.wait_stream(grebe.cuda.current_stream())
    with grebe.cuda.stream(side):
        x = grebe.ones(3, device="cuda") + 1
        end.record()
    grebe.cuda.current_stream().wait_event(end)
    end.synchronize()
    side.synchronize()
    assert end.query() and side.query() and start.elapsed_time(end) >= 0
    assert x.tolist() == [2, 2, 2]


def test_pinned_memory() -> None:
    x = grebe.arange(6).float().reshape(2, 3)
    assert not x.is_pinned()
    pinned = x.pin_memory()
    assert pinned.is_pinned() and pinned[1].is_pinned() and pinned.pin_memory() is pinned
    assert pinned.to("cuda", non_blocking=True).tolist() == x.tolist()
    with pytest.raises(RuntimeError, match="pin_memory"):
        x.cuda().pin_memory()


def test_loader_pins_its_batches() -> None:
    data = grebe.utils.data.TensorDataset(grebe.arange(5), grebe.ones(5, 2))
    for workers in (0, 1):
        loader = grebe.utils.data.DataLoader(data, 2, pin_memory=True, num_workers=workers)
        for index, ones in loader:
            assert index.is_pinned() and ones.is_pinned()


def test_default_device() -> None:
    grebe.set_default_device("cuda")
    try:
        assert grebe.get_default_device() == grebe.device("cuda", 0)
        assert grebe.zeros(2).is_cuda and nn.Linear(2, 3).weight.is_cuda
        assert not grebe.zeros(2, device="cpu").is_cuda
    finally:
        grebe.set_default_device(None)
    assert not grebe.zeros(2).is_cuda


# ---- graphs ----


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_graph_of_a_training_step(clip: float) -> None:
    def make() -> tuple[nn.Module, grebe.optim.Optimizer]:
        grebe.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(36, 10),
        ).cuda()  # fmt: skip
        return net, grebe.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(net: nn.Module, optimizer: grebe.optim.Optimizer) -> grebe.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    batches = [
        (grebe.tensor(rng.standard_normal((4, 1, 8, 8)), dtype=grebe.float32),
         grebe.tensor(rng.integers(0, 10, 4)))
        for _ in range(5)
    ]  # fmt: skip
    x, y = batches[0][0].cuda(), batches[0][1].cuda()
    eager, captured = make(), make()
    wanted = []
    for inputs, labels in batches:
        x.copy_(inputs)
        y.copy_(labels)
        wanted.append(step(*eager).item())
    x.copy_(batches[0][0])
    y.copy_(batches[0][1])
    got = [step(*captured).item()]
    graph = grebe.cuda.CUDAGraph()
    before = captured[0].state_dict()["0.weight"].tolist()
    with grebe.cuda.graph(graph):
        assert grebe.cuda.is_current_stream_capturing()
        loss = step(*captured)
    assert captured[0].state_dict()["0.weight"].tolist() == before  # nothing has been done
    for inputs, labels in batches[1:]:
        x.copy_(inputs)
        y.copy_(labels)
        graph.replay()
        got.append(loss.item())
    assert got == wanted
    for a, b in zip(eager[0].parameters(), captured[0].parameters(), strict=True):
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize("rule", [grebe.optim.Adam, grebe.optim.AdamW])
def test_graph_with_adam(rule: Any) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3), (7,))]
    pulls = [[rng.standard_normal(a.shape).astype(np.float32) for a in start] for _ in range(5)]

    def run(capturable: bool) -> tuple[list[Any], Any]:
        leaves = [grebe.tensor(a, device="cuda", requires_grad=True) for a in start]
        grads = [grebe.zeros_like(t) for t in leaves]
        optimizer = rule(leaves, lr=0.1, amsgrad=True, capturable=capturable)
        graph = grebe.cuda.CUDAGraph()
        for i, pull in enumerate(pulls):
            for t, g, new in zip(leaves, grads, pull, strict=True):
                g.copy_(grebe.tensor(new))
                t.grad = g
            if i < 2 or not capturable:
                optimizer.step()
                continue
            if i == 2:
                with grebe.cuda.graph(graph):
                    optimizer.step()
            graph.replay()
        return [t.tolist() for t in leaves], optimizer

    (wanted, plain), (got, captured) = run(False), run(True)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-6)
    state = captured.state_dict()["state"][0]
    assert int(state["step"]) == 5 == plain.state_dict()["state"][0]["step"]
    # A checkpoint of either goes into the other.
    plain.load_state_dict(captured.state_dict())
    assert plain.state_dict()["state"][0]["step"] == 5
    captured.load_state_dict(plain.state_dict())
    captured.step()
    assert int(captured.state_dict()["state"][1]["step"]) == 6


@pytest.mark.parametrize(
    ("rule", "options"),
    [(grebe.optim.SGD, {"momentum": 0.9}), (grebe.optim.Adam, {"capturable": True})],
)
def test_graph_of_a_first_step(rule: Any, options: dict[str, Any]) -> None:
    x = grebe.ones(4, device="cuda", requires_grad=True)
    optimizer = rule([x], lr=0.1, **options)
    x.sum().backward()
    with (
        pytest.raises(RuntimeError, match="make a step before capturing"),
        grebe.cuda.graph(grebe.cuda.CUDAGraph()),
    ):
        optimizer.step()


def test_graph_refuses_what_a_replay_can_not_do() -> None:
    x = grebe.ones(4, device="cuda", requires_grad=True)
    adam = grebe.optim.Adam([x])
    x.sum().backward()
    adam.step()
    graph = grebe.cuda.CUDAGraph()
    for forbidden in (
        lambda: x[0].item(),
        lambda: nn.functional.dropout(x, 0.5),
        lambda: grebe.rand(3, device="cuda"),
        lambda: x.cpu(),
        adam.step,
        lambda: bool((x > 0).all()),
    ):
        with pytest.raises(RuntimeError), grebe.cuda.graph(graph):
            forbidden()
        assert not grebe.cuda.is_current_stream_capturing()
    with pytest.raises(RuntimeError, match="nothing has been captured"):
        graph.replay()
    assert (x * 1).tolist()[0] < 1


@pytest.mark.parametrize("dtype", [grebe.float16, grebe.bfloat16])
def test_autocast(dtype: Any) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)).cuda()
    x, y = grebe.randn(6, 8, device="cuda"), grebe.arange(6, device="cuda") % 4
    plain = net(x)
    with grebe.autocast("cuda", dtype=dtype):
        assert grebe.get_autocast_dtype("cuda") == dtype
        assert not grebe.is_autocast_enabled("cpu")
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
        assert (grebe.ones(2, 2) @ grebe.ones(2, 2)).dtype == grebe.float32  # the CPU's
    assert out.dtype == dtype and loss.dtype == grebe.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == grebe.float32 for p in net.parameters())
    np.testing.assert_allclose(out.float().tolist(), plain.tolist(), atol=0.05)
    assert grebe.get_autocast_dtype("cuda") == grebe.float16
    with pytest.raises(RuntimeError, match="float16 or bfloat16"):
        grebe.autocast("cuda", dtype=grebe.float64)


# ---- CuPy's rules, which the emulated arrays do not have ----


class _Array(np.ndarray):  # type: ignore[type-arg]
    """As strict as cupy.ndarray where it is made and copied."""

    def __new__(cls, shape: Any, dtype: Any, memory: Any = None, strides: Any = None) -> Any:
        if strides is not None and memory is None:
            raise ValueError("memptr is required if strides is given.")
        return super().__new__(cls, shape, dtype, memory, 0, strides)

    def set(self, array: Any, stream: Any = None) -> None:
        if not (self.flags.c_contiguous and array.flags.c_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self[...] = array

    def get(self, order: str) -> Any:
        return np.array(self, order=order)


class _CuPy:
    """What backend.Cuda uses of CuPy."""

    ndarray = _Array

    class cuda:
        alloc = staticmethod(lambda size: np.empty(size, np.uint8))
        get_current_stream = staticmethod(lambda: _CuPy.cuda)
        record = staticmethod(lambda: _CuPy.cuda)
        done = True

    @staticmethod
    def array(array: Any, order: str) -> Any:
        return np.array(array, order=order).view(_Array)

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Any:
        return _Array(shape, dtype)


@pytest.mark.parametrize("pinned", [False, True])
def test_copies_by_the_rules_of_cupy(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = object.__new__(backend.Cuda)
    device.xp, device._on_the_way = _CuPy, []
    monkeypatch.setattr(backend, "is_pinned", lambda array: pinned)
    whole = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    dense = [whole, whole.transpose(0, 3, 1, 2), whole.T]
    for array in (*dense, whole[:, ::2], whole[:1], whole[0, 0, 0, 0], whole[:0]):
        there = device.to_device(np.asarray(array), non_blocking=True)
        back = device.to_host(there)
        np.testing.assert_array_equal(there, array)
        np.testing.assert_array_equal(back, array)
        if array.size == whole.size:  # dense in some order
            assert there.strides == back.strides == array.strides
        made = device._empty(array.shape, array.dtype, back.strides)
        assert made.strides == back.strides
