"""What has no kernels of its own on a GPU works there all the same: results and gradients."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import distributions, nn

pytestmark = pytest.mark.usefixtures("cuda_device")

linalg = grebe.linalg
Call = Callable[[Any], Any]


def matrix() -> Any:
    """Symmetric, positive definite, its eigenvalues far apart."""
    return np.diag([1.0, 3.0, 6.0]).astype(np.float32) + 0.1


OF_MATRICES: dict[str, Call] = {
    "inv": linalg.inv, "det": linalg.det, "slogdet": linalg.slogdet, "cholesky": linalg.cholesky,
    "qr": linalg.qr, "svdvals": linalg.svdvals, "eigvalsh": linalg.eigvalsh, "eig": linalg.eigvals,
    "pinv": linalg.pinv, "rank": linalg.matrix_rank, "cond": linalg.cond,
    "solve": lambda a: linalg.solve(a, a[:, :2]),
    "solve_triangular": lambda a: linalg.solve_triangular(a, a[:, :2], upper=False),
    "lstsq": lambda a: linalg.lstsq(a[:, :2], a[:, 2:]).solution,
    "powers": lambda a: [linalg.matrix_power(a, n) for n in (-2, 0, 3)],
    "nuclear norm": lambda a: linalg.norm(a, "nuc"), "trace": grebe.trace,
    "cross": lambda a: grebe.cross(a, a.flip(0), dim=1), "cdist": lambda a: grebe.cdist(a, a + 1),
}  # fmt: skip
OF_NUMBERS: dict[str, Call] = {
    "sort": lambda x: x.sort(1, descending=True), "argsort": lambda x: x.argsort(0),
    "msort": grebe.msort, "kthvalue": lambda x: x.kthvalue(2, 1), "mode": lambda x: x.mode(1),
    "median": lambda x: x.median(1), "quantile": lambda x: x.quantile(0.3, 1),
    "cumsum": lambda x: x.cumsum(1), "cumprod": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(1), "cummin": lambda x: x.cummin(0),
    "logcumsumexp": lambda x: x.logcumsumexp(1), "lgamma": lambda x: (x.abs() + 1).lgamma(),
    "digamma": lambda x: (x.abs() + 1).digamma(), "unique": lambda x: x.round().unique(),
    "runs": lambda x: x.round().reshape(-1).unique_consecutive(return_counts=True),
    "isin": lambda x: grebe.isin(x.round(), x[:1].round()), "histc": lambda x: grebe.histc(x, 5),
    "searchsorted": lambda x: grebe.searchsorted(x.sort(1).values, x),
    "bucketize": lambda x: grebe.bucketize(x, x[0].sort().values),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1), "diff": lambda x: x.diff(dim=1),
    "a list": lambda x: x[[0, 2, 0]], "an array": lambda x: x[np.array([0, 2]), np.array([1, 1])],
    "a mask": lambda x: x[np.array([True, False, True])],
}  # fmt: skip


def run(device: str, call: Call, x: Any) -> list[Any]:
    """Results, then the gradient, all on the CPU."""
    leaf = grebe.tensor(x, device=device, requires_grad=True)
    y = call(leaf)
    results = list(y) if isinstance(y, (tuple, list)) else [y]
    assert all(r.device.type == device for r in results)
    found = [r.detach().cpu().numpy() for r in results]
    smooth = [r for r in results if r.requires_grad]
    if smooth:
        sum((r * r).sum() for r in smooth).backward()
        assert leaf.grad.device.type == device
        found.append(leaf.grad.cpu().numpy())
    return found


def compare(call: Call, x: Any) -> None:
    want, got = run("cpu", call, x), run("cuda", call, x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_MATRICES)
def test_linear_algebra(name: str) -> None:
    compare(OF_MATRICES[name], matrix())


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers(name: str) -> None:
    compare(OF_NUMBERS[name], np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))


def test_writing_at_lists() -> None:
    x = grebe.zeros(3, 4, device="cuda")
    x[[0, 2]] = 1.0
    x[np.array([1]), np.array([3])] = 2.0
    assert x.tolist() == [[1, 1, 1, 1], [0, 0, 0, 2], [1, 1, 1, 1]]


def test_both_devices_at_once() -> None:
    with pytest.raises(RuntimeError, match="expected all tensors on the same device"):
        linalg.solve(grebe.eye(2, device="cuda"), grebe.eye(2))


DRAWS: dict[str, Call] = {
    "Normal": lambda x: distributions.Normal(x, 2.0),
    "Uniform": lambda x: distributions.Uniform(0.0, x),
    "Laplace": lambda x: distributions.Laplace(x, 1.0),
    "Exponential": lambda x: distributions.Exponential(x), "Poisson": distributions.Poisson,
    "Gamma": lambda x: distributions.Gamma(x, 1.0), "Beta": lambda x: distributions.Beta(x, 2.0),
    "Dirichlet": distributions.Dirichlet,
    "Categorical": lambda x: distributions.Categorical(logits=x),
    "Bernoulli": lambda x: distributions.Bernoulli(logits=x),
    "Geometric": lambda x: distributions.Geometric(logits=x),
    "Binomial": lambda x: distributions.Binomial(5, logits=x),
    "Multinomial": lambda x: distributions.Multinomial(5, logits=x),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_distributions(name: str) -> None:
    parameter = grebe.tensor([[0.5, 1.0, 2.0], [3.0, 0.1, 1.0]])
    grebe.manual_seed(1)
    want = DRAWS[name](parameter).sample((4,))
    grebe.manual_seed(1)
    there = DRAWS[name](parameter.cuda())
    got = there.sample((4,))
    assert got.is_cuda and got.dtype == want.dtype
    np.testing.assert_allclose(got.cpu().numpy(), want.numpy(), rtol=1e-5)
    if name != "Uniform":  # its upper end may lie outside
        log_prob = there.log_prob(got)
        assert log_prob.is_cuda
        want = DRAWS[name](parameter).log_prob(want)
        np.testing.assert_allclose(log_prob.cpu().numpy(), want.numpy(), rtol=1e-4, atol=1e-5)


def test_draws_of_tensors() -> None:
    x = grebe.tensor([[0.5, 1.0, 2.0]])
    for call in (
        lambda t: grebe.multinomial(t, 5, replacement=True),
        lambda t: grebe.normal(t, 1.0), grebe.poisson, lambda t: t.clone().exponential_(),
    ):  # fmt: skip
        results = []
        for device in ("cpu", "cuda"):
            grebe.manual_seed(3)
            y = call(x.to(device))
            assert y.device.type == device
            results.append(y.cpu().numpy())
        np.testing.assert_allclose(*results, rtol=1e-6)


def test_files(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, grebe.optim.Optimizer]:
        net = nn.Linear(3, 4).cuda()
        return net, grebe.optim.Adam(net.parameters())

    def step(net: nn.Module, optimizer: grebe.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(grebe.ones(2, 3, device="cuda")).square().sum().backward()
        optimizer.step()

    net, optimizer = make()
    step(net, optimizer)
    grebe.save([net.state_dict(), optimizer.state_dict()], tmp_path / "file")
    for where in (None, "cuda"):
        other, its_optimizer = make()
        model, state = grebe.load(tmp_path / "file", map_location=where)
        assert model["weight"].device.type == (where or "cpu")
        other.load_state_dict(model)
        its_optimizer.load_state_dict(state)
        step(other, its_optimizer)
    step(net, optimizer)
    assert other.weight.is_cuda and other.weight.tolist() == net.weight.tolist()
    copy = pickle.loads(pickle.dumps(net.weight.detach()))
    assert copy.is_cuda and copy.tolist() == net.weight.tolist()
