"""The networks of grebe.models beside the same files on torch.nn: weights, loss, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import grebe
from grebe import nn
from twin import models_of

SIZES = {
    "SoftmaxRegression": 28,
    "MLP": 28,
    "LeNet": 28,
    "AlexNet": 65,
    "VGG11": 32,
    "NiN": 70,
    "GoogLeNet": 40,
    "ResNet18": 40,
    "ResNet34": 33,
    "ResNet50": 40,
    "ResNeXt50": 40,
    "DenseNet": 40,
}


@pytest.mark.parametrize("name", SIZES)
def test_loss_and_gradients(name: str) -> None:
    size = SIZES[name]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 1, size, size)), rng.integers(0, 10, 3)
    torch.manual_seed(0)
    theirs = getattr(models_of(torch), name)().double()
    models_of(torch).apply_init(theirs, torch.from_numpy(x))
    ours = getattr(models_of(grebe), name)().double()
    models_of(grebe).apply_init(ours, grebe.from_numpy(x))
    state = theirs.state_dict()
    assert {n: tuple(v.shape) for n, v in ours.state_dict().items()} == {
        n: tuple(v.shape) for n, v in state.items()
    }
    ours.load_state_dict(state)
    for layer in (*ours.modules(), *theirs.modules()):
        if isinstance(layer, (nn.Dropout, torch.nn.Dropout)):
            layer.p = 0.0
    loss = nn.functional.cross_entropy(ours(grebe.from_numpy(x)), grebe.from_numpy(y))
    expected = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    named = dict(theirs.named_parameters())
    for parameter, tensor in ours.named_parameters():
        reference = named[parameter].grad.numpy()
        scale = np.abs(reference).max() + 1e-8
        np.testing.assert_allclose(
            tensor.grad.numpy() / scale, reference / scale, atol=1e-4, err_msg=parameter
        )


@pytest.mark.parametrize("sizes", [(28, 224), (28, 13), (8, 96), (5, 5)])
def test_resize(sizes: tuple[int, int]) -> None:
    old, new = sizes
    x = np.random.default_rng(0).standard_normal((2, 3, old, old + 1))
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), (new, new + 3), mode="bilinear")
    got = grebe.datasets.Resize((new, new + 3))(grebe.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-10)
