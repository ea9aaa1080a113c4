"""Networks: shapes, sizes, names, initial weights, a step that lowers the loss; resizing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grebe
from grebe import models, nn
from grebe.__main__ import MODELS, main
from grebe.datasets import Digits, Resize
from grebe.train import _LAZY, RECIPES

# Smallest image side, and parameters for 10 classes on 1 channel of that size.
LAZY = {
    "alexnet": (models.AlexNet, 65, 21_598_922),
    "vgg11": (models.VGG11, 32, 28_142_858),
    "nin": (models.NiN, 67, 1_992_166),
    "googlenet": (models.GoogLeNet, 1, 5_977_530),
    "resnet18": (models.ResNet18, 1, 11_178_378),
    "resnet34": (models.ResNet34, 1, 21_290_250),
    "resnet50": (models.ResNet50, 1, 23_548_810),
    "resnext50": (models.ResNeXt50, 1, 23_028_234),
    "densenet": (models.DenseNet, 29, 758_226),
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", LAZY)
def test_shapes_and_parameters(name: str) -> None:
    make, size, parameters = LAZY[name]
    net = models.apply_init(make(), grebe.zeros(1, 1, size, size))
    assert count(net) == parameters
    assert net.training
    assert net.eval()(grebe.randn(2, 1, size, size + 3)).shape == (2, 10)
    wide = make(num_classes=7).eval()
    assert wide(grebe.randn(1, 3, size + 9, size + 9)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 64), ("vgg11", 31), ("nin", 66), ("densenet", 28)]
)
def test_images_that_are_too_small(name: str, size: int) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        LAZY[name][0]().eval()(grebe.zeros(1, 1, size, size))


def test_configurable_networks() -> None:
    x = grebe.randn(2, 1, 32, 32)
    small = models.VGG(((1, 4), (2, 8)), num_classes=3, dropout=0.0)
    assert small(x).shape == (2, 3)
    assert [len(block) for block in list(small)[:2]] == [3, 5]
    assert models.DenseNet(16, 4, (2, 3), 5)(x).shape == (2, 5)
    assert models.ResNet(((1, 64), (1, 32)), 4)(x).shape == (2, 4)
    block = models.ResNeXtBlock(32, groups=4, bot_mul=0.5)
    assert block(grebe.randn(2, 32, 6, 5)).shape == (2, 32, 6, 5)
    assert block.conv2.groups == 4
    halved = models.ResNeXtBlock(64, 4, 0.5, use_1x1conv=True, stride=2)
    assert halved(grebe.randn(2, 32, 7, 6)).shape == (2, 64, 4, 3)
    assert models.Residual(8, True, 2)(grebe.randn(2, 4, 7, 6)).shape == (2, 8, 4, 3)
    assert models.Inception(4, (2, 6), (3, 5), 7)(grebe.randn(2, 3, 6, 6)).shape == (2, 22, 6, 6)
    assert models.DenseBlock(2, 10)(grebe.randn(4, 3, 8, 8)).shape == (4, 23, 8, 8)


def test_names() -> None:
    net = models.ResNet(((1, 64), (1, 8)))
    net(grebe.zeros(2, 1, 8, 8))
    names = [name for name, _ in net.named_parameters()]
    assert names[:4] == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]
    assert "b2.0.conv1.weight" in names
    assert "b3.0.conv3.bias" in names
    assert names[-2:] == ["last.2.weight", "last.2.bias"]
    dense = [name for name, _ in models.DenseNet().named_children()]
    assert dense == ["0", "dense_blk1", "tran_blk1", "dense_blk2", "tran_blk2", "dense_blk3",
                     "tran_blk3", "dense_blk4", "last"]  # fmt: skip


def test_initial_weights() -> None:
    net = models.apply_init(models.NiN(), grebe.zeros(1, 1, 67, 67))
    conv = net[0][0]
    bound = np.sqrt(6 / ((1 + 96) * 11 * 11))
    assert np.abs(conv.weight.detach().numpy()).max() <= bound
    assert conv.weight.detach().numpy().std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert np.abs(conv.bias.detach().numpy()).max() <= 1 / 11
    norm = models.apply_init(models.ResNet18(), grebe.randn(2, 1, 32, 32))[0][1]
    assert (norm.running_mean.numpy() == 0).all() and (norm.running_var.numpy() == 1).all()


@pytest.mark.parametrize("name", LAZY)
def test_a_step_lowers_the_loss(name: str) -> None:
    make, size, _ = LAZY[name]
    size = max(size, 40)
    grebe.manual_seed(0)
    x, y = grebe.randn(4, 1, size, size), grebe.tensor([0, 3, 3, 9])
    net = models.apply_init(make(), x)
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    optimizer = grebe.optim.SGD(net.parameters(), lr=1.0)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        slope = nn.utils.get_total_norm([p.grad for p in net.parameters()]).item()
        optimizer.param_groups[0]["lr"] = 0.02 / slope**2  # lowers the loss by 0.02 if it is linear
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_weights_load_into_fresh_networks() -> None:
    x = grebe.randn(2, 1, 32, 32)
    net = models.DenseNet(8, 4, (2, 2)).eval()
    expected = net(x).detach()
    twin = models.DenseNet(8, 4, (2, 2)).eval()
    twin.load_state_dict(net.state_dict())
    assert (twin(x).detach().numpy() == expected.numpy()).all()


# ---- the command line ----


def test_every_model_has_a_recipe() -> None:
    assert set(RECIPES) == set(MODELS)
    assert set(_LAZY) == set(LAZY)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 16), ("densenet", 32), ("mlp", 12)])
def test_training_on_digits(name: str, size: int, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    arguments = ["train", name, "--data", "digits", "--resize", str(size), "--epochs", "2"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["accuracy"] > 0.8
    assert result["image_size"] == [size, size]


@pytest.mark.parametrize(
    ("name", "size"), [("lenet", 11), ("alexnet", 64), ("vgg11", 8), ("densenet", 20)]
)
def test_resize_that_is_too_small(
    name: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    arguments = ["train", name, "--data", "digits", "--resize", str(size), "--out", str(tmp_path)]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"--resize: images of {size}x{size} are too small for {name}" in message
    assert message.count("\n") == 1


# ---- resizing ----


@pytest.mark.parametrize("size", [3, 8, 13, 96, (5, 17)])
def test_resize(size: Any) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    ramp = np.add.outer(2.0 * np.arange(8), np.arange(6)).astype(np.float32)
    y = Resize(size)(grebe.from_numpy(np.stack([ramp, ramp * 0 + 7])[:, None])).numpy()
    assert y.shape == (2, 1, height, width)
    rows = np.clip((np.arange(height) + 0.5) * 8 / height - 0.5, 0, 7)
    columns = np.clip((np.arange(width) + 0.5) * 6 / width - 0.5, 0, 5)
    np.testing.assert_allclose(y[0, 0], np.add.outer(2 * rows, columns), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[1], 7, rtol=1e-6)


def test_resize_as_a_transform() -> None:
    pytest.importorskip("sklearn")
    images, labels = next(iter(grebe.utils.data.DataLoader(Digits(transform=Resize(12)), 5)))
    assert images.shape == (5, 1, 12, 12) and labels.shape == (5,)
    assert repr(Resize(12)) == "Resize(12, 12)"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Resize(0), ValueError, "size >= 1, got 0"),
        (lambda: Resize(4)(grebe.zeros(3)), ValueError, r"got shape \[3\]"),
        (lambda: Resize(4)(grebe.zeros(3, 3, dtype=grebe.int64)), TypeError, "got int64"),
    ],
)
def test_resize_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
