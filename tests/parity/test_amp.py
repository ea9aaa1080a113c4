"""`autocast` beside PyTorch's: the same dtypes come out, and nearly the same numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import grebe

pytestmark = pytest.mark.filterwarnings("ignore")


class Draw:
    """Tensors of one library: float32 by `f`, bfloat16 by `h`."""

    def __init__(self, lib: Any) -> None:
        self.lib, self.F, self.index = lib, lib.nn.functional, lib.tensor([0, 1, 2])

    def f(self, *shape: int) -> Any:
        return self.lib.tensor(np.random.default_rng(len(shape)).random(shape).astype("f") + 0.1)

    def h(self, *shape: int) -> Any:
        return self.f(*shape).to(self.lib.bfloat16)


CALLS: dict[str, Callable[[Any], Any]] = {
    "matmul": lambda d: d.f(3, 3) @ d.f(3, 3),
    "matmul of a vector": lambda d: d.f(3, 3) @ d.f(3),
    "matmul of vectors": lambda d: d.lib.matmul(d.f(3), d.f(3)),
    "matmul of mixed dtypes": lambda d: d.f(3, 3) @ d.h(3, 3),
    "matmul of float64": lambda d: d.f(3, 3).double() @ d.f(3, 3).double(),
    "mm": lambda d: d.lib.mm(d.f(3, 3), d.f(3, 3)),
    "bmm": lambda d: d.lib.bmm(d.f(2, 3, 3), d.f(2, 3, 3)),
    "mv": lambda d: d.lib.mv(d.f(3, 3), d.f(3)),
    "dot": lambda d: d.lib.dot(d.f(3), d.f(3)),
    "addmm": lambda d: d.lib.addmm(d.f(3), d.f(3, 3), d.f(3, 3)),
    "addmv": lambda d: d.lib.addmv(d.f(3), d.f(3, 3), d.f(3)),
    "baddbmm": lambda d: d.lib.baddbmm(d.f(2, 3, 3), d.f(2, 3, 3), d.f(2, 3, 3)),
    "einsum": lambda d: d.lib.einsum("ij,jk->ik", d.f(3, 3), d.f(3, 3)),
    "tensordot": lambda d: d.lib.tensordot(d.f(3, 3), d.f(3, 3), 1),
    "inner": lambda d: d.lib.inner(d.f(3, 3), d.f(3, 3)),
    "outer": lambda d: d.lib.outer(d.f(3), d.f(3)),
    "linear": lambda d: d.F.linear(d.f(4, 3), d.f(2, 3), d.f(2)),
    "conv1d": lambda d: d.F.conv1d(d.f(1, 2, 5), d.f(2, 2, 3), d.f(2)),
    "conv2d": lambda d: d.F.conv2d(d.f(1, 2, 5, 5), d.f(2, 2, 3, 3)),
    "conv3d": lambda d: d.F.conv3d(d.f(1, 2, 5, 5, 5), d.f(2, 2, 3, 3, 3)),
    "conv_transpose1d": lambda d: d.F.conv_transpose1d(d.f(1, 2, 5), d.f(2, 2, 3)),
    "conv_transpose2d": lambda d: d.F.conv_transpose2d(d.f(1, 2, 5, 5), d.f(2, 2, 3, 3)),
    "prelu": lambda d: d.F.prelu(d.f(3), d.f(1)),
    "attention": lambda d: d.F.scaled_dot_product_attention(
        d.f(1, 2, 3, 4), d.f(1, 2, 3, 4), d.f(1, 2, 3, 4), d.f(3, 3)),
    "softmax": lambda d: d.h(3, 3).softmax(-1),
    "log_softmax": lambda d: d.h(3, 3).log_softmax(-1),
    "sum": lambda d: d.h(3).sum(),
    "mean": lambda d: d.h(3).mean(),
    "prod": lambda d: d.h(3).prod(),
    "cumsum": lambda d: d.h(3).cumsum(0),
    "logsumexp": lambda d: d.h(3).logsumexp(0),
    "norm": lambda d: d.h(3).norm(),
    "layer_norm": lambda d: d.F.layer_norm(d.h(3, 3), (3,), d.f(3), d.f(3)),
    "layer_norm of float32": lambda d: d.F.layer_norm(d.f(3, 3), (3,), d.f(3), d.f(3)),
    "batch_norm": lambda d: d.F.batch_norm(
        d.h(4, 3), d.lib.zeros(3), d.lib.ones(3), d.f(3), d.f(3), True),
    "gelu": lambda d: d.F.gelu(d.h(3)),
    "add": lambda d: d.h(3) + d.f(3),
    "cat": lambda d: d.lib.cat([d.h(3), d.f(3)]),
    "stack": lambda d: d.lib.stack([d.h(3), d.f(3)]),
    "embedding": lambda d: d.F.embedding(d.index, d.f(3, 3)),
    "mse_loss": lambda d: d.F.mse_loss(d.h(3), d.f(3) * 2),
    "l1_loss": lambda d: d.F.l1_loss(d.h(3), d.h(3) * 2),
    "smooth_l1_loss": lambda d: d.F.smooth_l1_loss(d.h(3), d.h(3) * 2),
    "huber_loss": lambda d: d.F.huber_loss(d.h(3), d.h(3) * 2),
    "binary_cross_entropy": lambda d: d.F.binary_cross_entropy(d.h(3) / 2, d.f(3) / 2),
    "with_logits": lambda d: d.F.binary_cross_entropy_with_logits(d.h(3), d.f(3)),
    "cross_entropy": lambda d: d.F.cross_entropy(d.h(3, 3), d.index),
    "nll_loss": lambda d: d.F.nll_loss(d.h(3, 3), d.index),
    "kl_div": lambda d: d.F.kl_div(d.h(3), d.h(3) * 2),
    "poisson_nll_loss": lambda d: d.F.poisson_nll_loss(d.h(3), d.h(3)),
    "hinge_embedding_loss": lambda d: d.F.hinge_embedding_loss(d.h(3), d.h(3)),
    "margin_ranking_loss": lambda d: d.F.margin_ranking_loss(d.h(3), d.h(3), d.f(3)),
    "trace": lambda d: d.lib.trace(d.h(3, 3)),
    "quantile": lambda d: d.lib.quantile(d.h(3), 0.5),
    "cdist": lambda d: d.lib.cdist(d.h(3, 3), d.h(3, 3) * 2),
    "svdvals": lambda d: d.lib.linalg.svdvals(d.h(3, 3)),
    "avg_pool2d": lambda d: d.F.avg_pool2d(d.h(1, 1, 4, 4), 2),
    "max_pool2d": lambda d: d.F.max_pool2d(d.h(1, 1, 4, 4), 2),
    "avg_pool3d": lambda d: d.F.avg_pool3d(d.h(1, 1, 4, 4, 4), 2),
    "max_pool3d": lambda d: d.F.max_pool3d(d.h(1, 1, 4, 4, 4), 2),
    "adaptive_avg_pool2d": lambda d: d.F.adaptive_avg_pool2d(d.h(1, 1, 4, 4), 2),
    "adaptive_avg_pool3d": lambda d: d.F.adaptive_avg_pool3d(d.h(1, 1, 4, 4, 4), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_dtypes(name: str) -> None:
    results = []
    for lib in (grebe, torch):
        with lib.autocast("cpu", dtype=lib.bfloat16):
            results.append(CALLS[name](Draw(lib)))
    ours, theirs = results
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    scale = 0.02 * theirs.float().abs().max().item() + 1e-3
    np.testing.assert_allclose(ours.float().numpy(), theirs.float().numpy(), rtol=0, atol=scale)


def models(lib: Any) -> Any:
    return lib.nn.Sequential(
        lib.nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True),
        lib.nn.Linear(16, 5),
    )


def test_training_step() -> None:
    """Outputs bfloat16, loss and gradients of parameters float32, near to those of float32."""
    torch.manual_seed(0)
    theirs, ours = models(torch), models(grebe)
    ours.load_state_dict({k: grebe.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((4, 6, 16)).astype("f"), rng.integers(0, 5, 24)
    found = []
    for lib, model, mixed in ((grebe, ours, True), (torch, theirs, True), (grebe, ours, False)):
        model.zero_grad()
        with lib.autocast("cpu", dtype=lib.bfloat16, enabled=mixed):
            logits = model(lib.tensor(x))
            loss = lib.nn.functional.cross_entropy(logits.flatten(0, 1), lib.tensor(labels))
        loss.backward()
        assert (logits.dtype == lib.bfloat16) == mixed and loss.dtype == lib.float32
        assert all(p.grad.dtype == lib.float32 for p in model.parameters())
        found.append([loss.detach().numpy(), *(p.grad.numpy().copy() for p in model.parameters())])
    for ours_, theirs_, exact in zip(*found, strict=True):
        scale = np.abs(exact).max() + 1e-3
        assert np.abs(ours_ - exact).max() < 0.05 * scale
        assert np.abs(theirs_ - exact).max() < 0.05 * scale


def test_other_threads_are_not_affected() -> None:
    seen: list[bool] = []
    with grebe.autocast("cpu"):
        thread = threading.Thread(target=lambda: seen.append(grebe.is_autocast_enabled("cpu")))
        thread.start()
        thread.join()
        assert grebe.is_autocast_enabled("cpu") and seen == [False]
