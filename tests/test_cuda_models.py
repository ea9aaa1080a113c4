"""Training steps of whole networks on CUDA give what they give on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import models, nn

pytestmark = pytest.mark.usefixtures("cuda_device")
F = nn.functional


def tokens(high: int, *shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(3, high, shape)


def pictures(count: int, *shape: int) -> Any:
    return np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)


def classify(net: Any, x: Any, y: Any) -> Any:
    return F.cross_entropy(net(x), y)


def sequence_loss(net: Any, *inputs: Any) -> Any:
    *given, target = inputs
    logits = net(*given)
    logits = logits[0] if isinstance(logits, tuple) else logits
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)


def bert_loss(net: Any, *inputs: Any) -> Any:
    *given, hidden, following = inputs
    words, follows = net(*given)
    return F.cross_entropy(words, hidden) + F.cross_entropy(follows, following)


LENGTHS = np.array([5, 3])
# How a network is made, its loss, and the inputs of that.
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[..., Any], list[Any]]] = {
    "MLP": (models.MLP, classify, [pictures(5, 1, 28, 28), tokens(10, 5)]),
    "LeNet": (models.LeNet, classify, [pictures(3, 1, 28, 28), tokens(10, 3)]),
    "ResNet": (
        lambda: models.ResNet([(1, 8), (1, 16)], 10), classify,
        [pictures(2, 3, 16, 16), tokens(10, 2)],
    ),
    "char LM": (
        lambda: models.RNNLM(28, 16, "gru"), sequence_loss, [tokens(28, 2, 6), tokens(28, 2, 6)],
    ),
    "seq2seq": (
        lambda: models.Seq2Seq(20, 30, 8, 12, dropout=0.0), sequence_loss,
        [tokens(20, 2, 5), LENGTHS, tokens(30, 2, 4), tokens(30, 2, 4)],
    ),
    "translation": (
        lambda: models.TransformerSeq2Seq(20, 30, 16, 24, 2, 2, dropout=0.0), sequence_loss,
        [tokens(20, 2, 5), LENGTHS, tokens(30, 2, 4), tokens(30, 2, 4)],
    ),
    "GPT": (
        lambda: models.GPT(models.GPTConfig(20, 8, 16, 2, 2, dropout=0.0)),
        lambda net, x, y: net.loss(x, y), [tokens(20, 2, 8), tokens(20, 2, 8)],
    ),
    "BERT": (
        lambda: models.BERTForPreTraining(models.BERTConfig(30, 16, 2, 2, 24, 0.0, 8)), bert_loss,
        [tokens(30, 2, 8), tokens(5, 2, 8) % 2, LENGTHS, np.array([1, 9]), tokens(30, 2),
         tokens(5, 2) % 2],
    ),
    "ViT": (
        lambda: models.ViT(8, 4, 1, 16, 24, 2, 1, 0.0, 0.0), classify,
        [pictures(2, 1, 8, 8), tokens(10, 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_training_steps(name: str, rule: str) -> None:
    make, loss_of, arrays = NETWORKS[name]
    on_cpu = [grebe.tensor(a) for a in arrays]
    net = make()
    loss_of(net, *on_cpu)  # lazy layers take their sizes
    found = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(net).to(device)
        optimizer = getattr(grebe.optim, rule)(model.parameters(), lr=0.01)
        inputs = [t.to(device) for t in on_cpu]
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, *inputs)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            losses.append(loss.item())
        found.append((losses, model.state_dict()))
    assert found[0][0][-1] != found[0][0][0]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=2e-4, atol=1e-6)
    if rule == "SGD":  # Adam divides by gradients near 0
        for key, value in found[0][1].items():
            got = found[1][1][key].cpu().numpy()
            np.testing.assert_allclose(got, value.numpy(), rtol=2e-3, atol=2e-5, err_msg=key)


def test_generation() -> None:
    net = models.GPT(models.GPTConfig(20, 16, 16, 2, 2, dropout=0.0)).eval()
    wanted = net.generate([3, 4, 5], 6, 0.0, None, None, 0)
    assert copy.deepcopy(net).cuda().generate([3, 4, 5], 6, 0.0, None, None, 0) == wanted
