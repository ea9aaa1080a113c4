"""Convolution and pooling against PyTorch: values and gradients, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import grebe
from cases import CASES, Case
from grebe.ops import conv, pool

torch = pytest.importorskip("torch")

FAMILY = [c for c in CASES if "conv" in c.op or "pool" in c.op]


def compare(ours: Any, theirs: Any, inputs: list[Any]) -> None:
    """Values and gradients of two functions of the same arrays agree to rounding."""
    mine = [grebe.from_numpy(a.copy()).requires_grad_() for a in inputs]
    other = [torch.from_numpy(a.copy()).requires_grad_() for a in inputs]
    y, z = ours(*mine), theirs(*other)
    assert tuple(y.shape) == tuple(z.shape)
    grad = np.random.default_rng(1).standard_normal(tuple(y.shape)).astype(np.float32)
    y.backward(grebe.from_numpy(grad))
    z.backward(torch.from_numpy(grad))
    pairs = [(y.detach(), z.detach())] + [
        (a.grad, b.grad) for a, b in zip(mine, other, strict=True)
    ]
    for a, b in pairs:
        wanted = b.numpy()
        scale = float(np.abs(wanted).max(initial=1.0))
        np.testing.assert_allclose(a.numpy(), wanted, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_cases(case: Case) -> None:
    compare(lambda *a: case.run(grebe, *a), lambda *a: case.run(torch, *a), case.draw(np.float32))


def draw(*shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (1, 3), "dilation": (2, 1), "groups": 2, "output_padding": (0, 2)},
    ],
)
def test_conv_transpose2d(kwargs: Any) -> None:
    outputs = 4 // kwargs.get("groups", 1)
    compare(
        lambda *a: conv.conv_transpose2d(*a, **kwargs),
        lambda *a: torch.nn.functional.conv_transpose2d(*a, **kwargs),
        draw((2, 6, 5, 7), (6, outputs, 3, 2), (4,)),
    )


@pytest.mark.parametrize("padding", ["same", "valid", 2])
def test_conv1d(padding: Any) -> None:
    compare(
        lambda *a: conv.conv1d(*a, padding=padding, dilation=2),
        lambda *a: torch.nn.functional.conv1d(*a, padding=padding, dilation=2),
        draw((2, 3, 19), (4, 3, 4), (4,)),
    )


@pytest.mark.parametrize("size", [1, (3, 5), (None, 4), (7, 11)])
@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_adaptive(name: str, size: Any) -> None:
    compare(
        lambda x: getattr(pool, name)(x, size),
        lambda x: getattr(torch.nn.functional, name)(x, size),
        draw((2, 3, 7, 11)),
    )


def test_max_pool_indices() -> None:
    (x,) = draw((2, 3, 9, 13))
    args = (3, 2, 1, 2, True, True)
    y, index = pool.max_pool2d(grebe.from_numpy(x), *args)
    z, wanted = torch.nn.functional.max_pool2d(torch.from_numpy(x), *args)
    np.testing.assert_array_equal(y.numpy(), z.numpy())
    np.testing.assert_array_equal(index.numpy(), wanted.numpy())


@pytest.mark.parametrize("size", [2, (3, 5, 4), (None, 4, 1)])
@pytest.mark.parametrize("name", ["adaptive_avg_pool3d", "adaptive_max_pool3d"])
def test_adaptive_volumes(name: str, size: Any) -> None:
    compare(
        lambda x: getattr(pool, name)(x, size),
        lambda x: getattr(torch.nn.functional, name)(x, size),
        draw((2, 3, 7, 11, 5)),
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_output_size(dimensions: int) -> None:
    name = f"ConvTranspose{dimensions}d"
    theirs = getattr(torch.nn, name)(3, 2, 3, stride=3, padding=1)
    ours = getattr(grebe.nn, name)(3, 2, 3, stride=3, padding=1)
    ours.load_state_dict({k: grebe.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    (x,) = draw((2, 3, *range(4, 4 + dimensions)))
    for size in ([11, 14, 17][:dimensions], (2, 2, *[12, 15, 18][:dimensions])):
        y = ours(grebe.from_numpy(x), output_size=size).detach().numpy()
        z = theirs(torch.from_numpy(x), output_size=size).detach().numpy()
        assert y.shape == z.shape
        np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-5)
    for size in ([99] * dimensions, [11] * (dimensions + 1)):
        for module, lib in ((ours, grebe), (theirs, torch)):
            with pytest.raises(ValueError, match=r"output.size"):
                module(lib.from_numpy(x), output_size=size)
