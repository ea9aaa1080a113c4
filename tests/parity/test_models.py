"""The networks of grebe.models beside the same files on torch.nn: weights, loss, gradients."""

from __future__ import annotations

from typing import Any

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
    _same_loss_and_gradients(ours, theirs, [x], y)


def _same_loss_and_gradients(ours: Any, theirs: Any, inputs: list[Any], y: Any) -> None:
    """With the weights of `theirs` in both; the networks' first result is the logits."""
    state = theirs.state_dict()
    assert {n: tuple(v.shape) for n, v in ours.state_dict().items()} == {
        n: tuple(v.shape) for n, v in state.items()
    }
    ours.load_state_dict(state)
    for layer in (*ours.modules(), *theirs.modules()):
        if isinstance(layer, (nn.Dropout, torch.nn.Dropout)):
            layer.p = 0.0
    losses = []
    for lib, net in ((grebe, ours), (torch, theirs)):
        result = net(*map(lib.from_numpy, inputs))
        logits = result[0] if isinstance(result, tuple) else result
        labels = lib.from_numpy(y).flatten()
        losses.append(lib.nn.functional.cross_entropy(logits.flatten(0, -2), labels))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    named = dict(theirs.named_parameters())
    for parameter, tensor in ours.named_parameters():
        reference = named[parameter].grad.numpy()
        scale = np.abs(reference).max() + 1e-8
        np.testing.assert_allclose(
            tensor.grad.numpy() / scale, reference / scale, atol=1e-4, err_msg=parameter
        )


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_language_model(kind: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
    ours, theirs = (models_of(lib).RNNLM(11, 12, kind, 2).double() for lib in (grebe, torch))
    _same_loss_and_gradients(ours, theirs, [tokens[:, :-1].copy()], tokens[:, 1:].copy())
    prefix = [3, 1, 4]
    assert ours.generate(prefix, 20) == theirs.generate(prefix, 20)
    assert ours.generate(prefix, 20, 0.9, 5) == theirs.generate(prefix, 20, 0.9, 5)


def test_gpt() -> None:
    tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
    ours, theirs = (
        models.GPT(models.GPTConfig(11, 16, 24, 3, 4, dropout=0.0)).double()
        for models in map(models_of, (grebe, torch))
    )
    _same_loss_and_gradients(ours, theirs, [tokens[:, :-1].copy()], tokens[:, 1:].copy())
    for how in ((), (0.9, 5, None, 1), (0.9, None, 0.7, 1)):
        assert ours.generate([3, 1, 4], 40, *how) == theirs.generate([3, 1, 4], 40, *how)


def test_vit() -> None:
    rng = np.random.default_rng(0)
    sizes = (12, 4, 2, 24, 40, 3, 2, 0.0, 0.0)
    ours, theirs = (models_of(lib).ViT(*sizes).double() for lib in (grebe, torch))
    x, y = rng.standard_normal((3, 2, 12, 12)), rng.integers(0, 10, 3)
    _same_loss_and_gradients(ours, theirs, [x], y)


def test_transformer() -> None:
    rng = np.random.default_rng(0)
    sizes = (9, 8, 24, 20, 3, 2, 0.0, 16)
    ours, theirs = (models_of(lib).TransformerSeq2Seq(*sizes).double() for lib in (grebe, torch))
    source, lengths = rng.integers(0, 9, (4, 5)), np.array([3, 5, 1, 4])
    target = rng.integers(0, 8, (4, 7))
    inputs = [source, lengths, target[:, :-1].copy()]
    _same_loss_and_gradients(ours, theirs, inputs, target[:, 1:].copy())
    found = []
    for lib, net in ((grebe, ours), (torch, theirs)):
        x, n = lib.from_numpy(source), lib.from_numpy(lengths)
        found.append((net.greedy(x, n, 1, 2, 9), net.beam_search(x[:1], n[:1], 1, 2, 9, 3)))
    assert found[0] == found[1]


def test_attention_maps() -> None:
    rng = np.random.default_rng(0)
    sizes = (9, 8, 24, 20, 3, 2, 0.0, 16)
    nets = [models_of(lib).TransformerSeq2Seq(*sizes).double() for lib in (grebe, torch)]
    nets[0].load_state_dict(nets[1].state_dict())
    inputs = [rng.integers(0, 9, (4, 5)), np.array([3, 5, 1, 4]), rng.integers(0, 8, (4, 7))]
    maps = []
    for lib, net in zip((grebe, torch), nets, strict=True):
        net.eval()
        x = [lib.from_numpy(array) for array in inputs]
        plain = net(*x)
        with models_of(lib).attention_maps(net) as found:
            same = net(*x)
        assert np.allclose(plain.detach().numpy(), same.detach().numpy())
        maps.append({name: weights.numpy() for name, weights in found.items()})
        found.clear()
        net(*x)
        assert not found
    assert sorted(maps[0]) == sorted(maps[1])
    assert maps[0]["decoder.1.multihead_attn"].shape == (4, 3, 7, 5)
    assert not maps[0]["decoder.1.multihead_attn"][2, ..., 1:].any()
    for name, weights in maps[0].items():
        np.testing.assert_allclose(weights, maps[1][name], atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_seq2seq(attention: bool, bidirectional: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = (9, 8, 6, 10, 2, 0.0, attention, bidirectional)
    ours, theirs = (models_of(lib).Seq2Seq(*sizes).double() for lib in (grebe, torch))
    source, lengths = rng.integers(0, 9, (4, 5)), np.array([3, 5, 1, 4])
    target = rng.integers(0, 8, (4, 7))
    inputs = [source, lengths, target[:, :-1].copy()]
    _same_loss_and_gradients(ours, theirs, inputs, target[:, 1:].copy())
    found = []
    for lib, net in ((grebe, ours), (torch, theirs)):
        x, n = lib.from_numpy(source), lib.from_numpy(lengths)
        found.append((net.greedy(x, n, 1, 2, 9), net.beam_search(x[:1], n[:1], 1, 2, 9, 3)))
    assert found[0] == found[1]


@pytest.mark.parametrize("sizes", [(28, 224), (28, 13), (8, 96), (5, 5)])
def test_resize(sizes: tuple[int, int]) -> None:
    old, new = sizes
    x = np.random.default_rng(0).standard_normal((2, 3, old, old + 1))
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), (new, new + 3), mode="bilinear")
    got = grebe.datasets.Resize((new, new + 3))(grebe.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-10)
