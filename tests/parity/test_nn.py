"""Layers, initial values and state dicts beside PyTorch's: same state and input, same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import nn

torch = pytest.importorskip("torch")


def images(*shape: int) -> Callable[[np.random.Generator], list[Any]]:
    return lambda rng: [rng.standard_normal(shape)]


def classes(shape: tuple[int, ...], count: int) -> Callable[[np.random.Generator], list[Any]]:
    def draw(rng: np.random.Generator) -> list[Any]:
        target = (shape[0], *shape[2:])
        return [rng.standard_normal(shape), rng.integers(0, count, target)]

    return draw


def pair(*shape: int) -> Callable[[np.random.Generator], list[Any]]:
    return lambda rng: [rng.standard_normal(shape), rng.standard_normal(shape)]


def probabilities(*shape: int) -> Callable[[np.random.Generator], list[Any]]:
    return lambda rng: [rng.uniform(0.05, 0.95, shape), rng.uniform(0, 1, shape)]


LAYERS: list[tuple[Callable[[Any], Any], Callable[[np.random.Generator], list[Any]]]] = [
    (lambda nn: nn.Identity(), images(2, 3)),
    (lambda nn: nn.Linear(5, 3), images(4, 5)),
    (lambda nn: nn.Linear(5, 3, bias=False), images(2, 4, 5)),
    (lambda nn: nn.Linear(5, 3), images(5)),
    (lambda nn: nn.Bilinear(3, 4, 2),
     lambda rng: [rng.standard_normal((5, 3)), rng.standard_normal((5, 4))]),
    (lambda nn: nn.Conv1d(3, 4, 3, stride=2, padding=1), images(2, 3, 9)),
    (lambda nn: nn.Conv2d(3, 4, 3), images(2, 3, 8, 7)),
    (lambda nn: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
     images(2, 4, 8, 7)),
    (lambda nn: nn.Conv2d(2, 3, 3, padding=2, dilation=2, bias=False), images(2, 2, 8, 7)),
    (lambda nn: nn.Conv2d(2, 3, 3, padding="same"), images(2, 2, 8, 7)),
    (lambda nn: nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="reflect"),
     images(2, 2, 8, 7)),
    (lambda nn: nn.Conv2d(2, 3, 3, padding="valid"), images(2, 8, 7)),
    (lambda nn: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), images(2, 2, 8, 7)),
    (lambda nn: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), images(2, 2, 8, 7)),
    (lambda nn: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
     images(2, 4, 5, 4)),
    (lambda nn: nn.Conv1d(4, 6, 4, padding="same", dilation=2, groups=2), images(4, 9)),
    (lambda nn: nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1)),
     images(2, 2, 4, 5, 6)),
    (lambda nn: nn.Conv3d(4, 6, 3, padding="same", dilation=2, groups=2, bias=False),
     images(4, 5, 6, 5)),
    *((lambda nn, mode=mode: nn.Conv3d(2, 3, (2, 3, 3), padding=1, padding_mode=mode),
       images(2, 2, 4, 5, 6)) for mode in ("reflect", "replicate", "circular")),
    (lambda nn: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
     images(2, 4, 5)),
    (lambda nn: nn.ConvTranspose3d(4, 2, 3, stride=(2, 1, 3), padding=1, output_padding=(1, 0, 2)),
     images(2, 4, 3, 4, 3)),
    (lambda nn: nn.MaxPool3d((2, 3, 2), stride=2, padding=1, dilation=(2, 1, 1), ceil_mode=True),
     images(2, 3, 6, 7, 5)),
    (lambda nn: nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False),
     images(3, 5, 6, 7)),
    (lambda nn: nn.AvgPool3d(2, divisor_override=5), images(2, 3, 5, 6, 7)),
    (lambda nn: nn.AdaptiveAvgPool3d((2, None, 3)), images(2, 3, 5, 4, 7)),
    (lambda nn: nn.AdaptiveMaxPool3d(3), images(2, 3, 5, 4, 7)),
    (lambda nn: nn.MaxPool1d(3, 2), images(2, 3, 9)),
    (lambda nn: nn.MaxPool2d(2), images(2, 3, 8, 7)),
    (lambda nn: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), images(2, 3, 8, 7)),
    (lambda nn: nn.AvgPool1d(3, 2, 1), images(2, 3, 9)),
    (lambda nn: nn.AvgPool2d(2), images(2, 3, 8, 7)),
    (lambda nn: nn.AvgPool2d(3, 2, 1, count_include_pad=False), images(2, 3, 8, 7)),
    (lambda nn: nn.AdaptiveAvgPool1d(4), images(2, 3, 9)),
    (lambda nn: nn.AdaptiveAvgPool2d((1, 1)), images(2, 3, 8, 7)),
    (lambda nn: nn.AdaptiveAvgPool2d((3, None)), images(2, 3, 8, 7)),
    (lambda nn: nn.AdaptiveMaxPool1d(4), images(2, 3, 9)),
    (lambda nn: nn.AdaptiveMaxPool2d(3), images(2, 3, 8, 7)),
    (lambda nn: nn.Flatten(), images(2, 3, 4)),
    (lambda nn: nn.Flatten(0, 1), images(2, 3, 4)),
    (lambda nn: nn.Unflatten(1, (2, -1)), images(3, 6, 2)),
    (lambda nn: nn.Dropout(0.0), images(3, 4)),
    (lambda nn: nn.ReLU(), images(3, 4)),
    (lambda nn: nn.ReLU6(), images(3, 4)),
    (lambda nn: nn.LeakyReLU(0.2), images(3, 4)),
    (lambda nn: nn.ELU(0.7), images(3, 4)),
    (lambda nn: nn.CELU(0.7), images(3, 4)),
    (lambda nn: nn.SELU(), images(3, 4)),
    (lambda nn: nn.GELU(), images(3, 4)),
    (lambda nn: nn.GELU("tanh"), images(3, 4)),
    (lambda nn: nn.SiLU(), images(3, 4)),
    (lambda nn: nn.Mish(), images(3, 4)),
    (lambda nn: nn.Hardswish(), lambda rng: [rng.standard_normal((5, 6)) * 3]),
    (lambda nn: nn.Hardsigmoid(), lambda rng: [rng.standard_normal((5, 6)) * 3]),
    (lambda nn: nn.Hardtanh(-0.5, 0.7), images(3, 4)),
    (lambda nn: nn.Sigmoid(), images(3, 4)),
    (lambda nn: nn.LogSigmoid(), images(3, 4)),
    (lambda nn: nn.Tanh(), images(3, 4)),
    (lambda nn: nn.Softsign(), images(3, 4)),
    (lambda nn: nn.Tanhshrink(), images(3, 4)),
    (lambda nn: nn.Threshold(0.1, -2.0), images(3, 4)),
    (lambda nn: nn.Softmax(1), images(3, 4)),
    (lambda nn: nn.Softmax2d(), images(2, 3, 4, 2)),
    (lambda nn: nn.LogSoftmax(0), images(3, 4)),
    (lambda nn: nn.Softmin(1), images(3, 4)),
    (lambda nn: nn.GLU(), images(3, 4)),
    (lambda nn: nn.PReLU(), images(3, 4)),
    (lambda nn: nn.PReLU(4), images(3, 4, 2)),
    (lambda nn: nn.BatchNorm1d(4), images(6, 4)),
    (lambda nn: nn.BatchNorm1d(4, momentum=None), images(6, 4, 3)),
    (lambda nn: nn.BatchNorm2d(3), images(4, 3, 5, 2)),
    (lambda nn: nn.BatchNorm2d(3, affine=False, track_running_stats=False), images(4, 3, 5, 2)),
    (lambda nn: nn.BatchNorm3d(3), images(4, 3, 2, 2, 2)),
    (lambda nn: nn.LayerNorm(6), images(4, 6)),
    (lambda nn: nn.LayerNorm((3, 6), elementwise_affine=False), images(4, 3, 6)),
    (lambda nn: nn.LayerNorm(6, bias=False), images(4, 6)),
    (lambda nn: nn.Embedding(7, 3, padding_idx=2), lambda rng: [rng.integers(0, 7, (4, 5))]),
    (lambda nn: nn.Embedding(7, 3, scale_grad_by_freq=True), lambda rng: [rng.integers(0, 7, 9)]),
    (lambda nn: nn.Embedding(7, 3, max_norm=1.0), lambda rng: [rng.integers(0, 7, 9)]),
    *((lambda nn, mode=mode, pad=pad: nn.EmbeddingBag(7, 3, mode=mode, padding_idx=pad),
       lambda rng: [rng.integers(0, 7, (4, 5))])
      for mode in ("sum", "mean", "max") for pad in (None, 3)),
    (lambda nn: nn.EmbeddingBag(7, 3, max_norm=1.0),
     lambda rng: [rng.integers(0, 7, 9), np.array([0, 4, 4])]),
    (lambda nn: nn.EmbeddingBag(7, 3, mode="sum", include_last_offset=True),
     lambda rng: [rng.integers(0, 7, 9), np.array([0, 4, 4, 9]), rng.standard_normal(9)]),
    (lambda nn: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), images(5, 4)),
    (lambda nn: nn.CrossEntropyLoss(), classes((5, 4), 4)),
    (lambda nn: nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum", ignore_index=1),
     classes((5, 4, 3), 4)),
    (lambda nn: nn.NLLLoss(reduction="none"), classes((5, 4), 4)),
    (lambda nn: nn.MSELoss(), pair(3, 4)),
    (lambda nn: nn.L1Loss(reduction="sum"), pair(3, 4)),
    (lambda nn: nn.SmoothL1Loss(beta=0.5), pair(3, 4)),
    (lambda nn: nn.HuberLoss(delta=0.5, reduction="none"), pair(3, 4)),
    (lambda nn: nn.BCELoss(), probabilities(3, 4)),
    (lambda nn: nn.BCEWithLogitsLoss(), probabilities(3, 4)),
    (lambda nn: nn.KLDivLoss(reduction="batchmean"), probabilities(3, 4)),
]  # fmt: skip


def run(lib: Any, tensor: Callable[[Any], Any], module: Any, arrays: list[Any]) -> list[Any]:
    """Output, gradients of floating inputs and parameters, and buffers, as arrays."""
    inputs = [tensor(a) for a in arrays]
    for x in inputs:
        if x.is_floating_point():
            x.requires_grad_()
    y = module(*inputs)
    weight = tensor(np.cos(np.arange(y.numel())).reshape(tuple(y.shape)))
    if y.requires_grad:
        (y * weight).sum().backward()
    gradients = [x.grad for x in (*inputs, *module.parameters()) if x.requires_grad]
    values = [y.detach(), *gradients, *module.buffers(), module.eval()(*inputs).detach()]
    return [np.asarray(v) for v in values if v is not None]


@pytest.mark.parametrize(
    ("make", "draw"), LAYERS, ids=[repr(make(torch.nn)).split("\n")[0] for make, _ in LAYERS]
)
def test_layer(make: Any, draw: Any) -> None:
    ours, theirs = make(nn).double(), make(torch.nn).double()
    assert repr(ours) == repr(theirs)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert {n: (tuple(v.shape), str(v.dtype)) for n, v in ours.state_dict().items()} == {
        n: (v.shape, str(v.dtype)) for n, v in state.items()
    }
    ours.load_state_dict(theirs.state_dict())
    arrays = draw(np.random.default_rng(0))
    got = run(grebe, grebe.tensor, ours, arrays)
    expected = run(torch, torch.tensor, theirs, arrays)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    theirs.load_state_dict({n: torch.tensor(v.numpy()) for n, v in ours.state_dict().items()})


@pytest.mark.parametrize(
    "make",
    [
        lambda nn: nn.Linear(40, 50),
        lambda nn: nn.Conv2d(8, 16, 5),
        lambda nn: nn.Conv1d(8, 16, 5, groups=2),
        lambda nn: nn.ConvTranspose2d(8, 16, 3),
        lambda nn: nn.Conv3d(8, 16, 3),
        lambda nn: nn.Bilinear(9, 8, 10),
        lambda nn: nn.Embedding(40, 50),
        lambda nn: nn.BatchNorm2d(3),
        lambda nn: nn.LayerNorm(3),
        lambda nn: nn.PReLU(3),
    ],
)
def test_initial_distribution(make: Any) -> None:
    torch.manual_seed(0)
    ours, theirs = make(nn), make(torch.nn)
    for (name, a), (other, b) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other
        x, y = a.detach().numpy(), b.detach().numpy()
        if y.std() == 0 or name == "bias":
            bound = 1.05 * max(np.abs(y).max(), 1e-9) if name != "bias" else np.inf
            assert np.abs(x).max() <= bound
        else:
            assert abs(x.mean() - y.mean()) < 6 * y.std() * np.sqrt(2 / y.size)
            assert abs(x.std() / y.std() - 1) < 6 / np.sqrt(y.size)
            assert abs(np.abs(x).max() / np.abs(y).max() - 1) < 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda F, x: F.pad(x, (1, 2)),
        lambda F, x: F.pad(x, (1, -1, -2, 3), value=2.5),
        lambda F, x: F.pad(x, (2, 1, 1, 3), "reflect"),
        lambda F, x: F.pad(x, (2, 1, 1, 3), "replicate"),
        lambda F, x: F.pad(x, (2, 1, 1, 3), "circular"),
        lambda F, x: F.normalize(x),
        lambda F, x: F.normalize(x, p=1.0, dim=-1),
        lambda F, x: F.cosine_similarity(x, x.flip(0)),
        lambda F, x: F.pairwise_distance(x, x.flip(0)),
        lambda F, x: F.hardshrink(x),
        lambda F, x: F.softshrink(x),
        lambda F, x: F.threshold(x, 0.2, 1.0),
        lambda F, x: F.softmin(x, dim=1),
        lambda F, x: F.glu(x, dim=1),
    ],
)
def test_function(call: Any) -> None:
    array = np.random.default_rng(0).standard_normal((2, 4, 5, 6))
    x, y = grebe.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
    got, expected = call(nn.functional, x), call(torch.nn.functional, y)
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=1e-7)
    (got * got).sum().backward()
    (expected * expected).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-6, atol=1e-9)


def test_hardtanh_at_its_bounds() -> None:
    array = np.array([-1.0, -0.5, 0.0, 1.0, 2.0, 6.0])
    for name in ("hardtanh", "relu6", "relu", "leaky_relu", "elu"):
        x, y = grebe.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
        getattr(nn.functional, name)(x).sum().backward()
        getattr(torch.nn.functional, name)(y).sum().backward()
        assert (x.grad.numpy() == y.grad.numpy()).all(), name


def test_names_and_signatures_are_pytorchs() -> None:
    import inspect

    for name in nn.modules.__all__:
        ours, theirs = getattr(nn, name, None), getattr(torch.nn, name, None)
        if name == "LazyModuleMixin":
            continue
        assert theirs is not None, name
        got = list(inspect.signature(ours).parameters.values())
        expected = list(inspect.signature(theirs).parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in expected):
            continue
        assert [p.name for p in got] == [
            p.name for p in expected if p.name not in ("min_value", "max_value")
        ], name
        for a, b in zip(got, expected, strict=False):
            defaults = [getattr(p.default, "__name__", p.default) for p in (a, b)]  # F.relu
            assert defaults[0] == defaults[1] or name in ("Module", "Hardtanh"), (name, a.name)
    beyond = {"bias_dropout_add"}  # what PyTorch lacks
    for name in set(nn.functional.__all__) - beyond:
        assert hasattr(torch.nn.functional, name), name
