"""`import torch` as grebe: scripts in interpreters of their own, since it lasts for the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import grebe
from grebe import cuda, nn
from grebe.datasets import transforms

TRAINING = """
import sys
import torch
import torchvision
from torch import nn
from torch.distributions.multinomial import Multinomial
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils import data
from torchvision import transforms

assert sys.argv[1:] == ["one", "--two"], sys.argv
torch.manual_seed(1)
inputs = torch.randn(256, 1, 8, 8)
labels = (inputs.sum(axis=(1, 2, 3)) > 0).long()
loader = data.DataLoader(data.TensorDataset(inputs, labels), batch_size=64, shuffle=True)
net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
net[0].weight.data.normal_(0, 0.01)  # before it has a shape
net(inputs[:1])
net.apply(lambda m: nn.init.xavier_uniform_(m.weight) if type(m) == nn.Conv2d else None)
net = nn.DataParallel(torch.jit.script(net), device_ids=[0])
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
schedule = lr_scheduler.StepLR(optimizer, 10, 0.5)
for epoch in range(30):
    for x, y in loader:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        with torch.no_grad():
            loss.backward()
        optimizer.step()
    schedule.step()
print(float((net(inputs).argmax(axis=1) == labels).float().mean()))
assert Multinomial(10, torch.ones(3)).sample((2,)).sum(axis=-1, keepdims=True).shape == (2, 1)
assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
assert transforms.Compose([transforms.ToTensor()])(inputs[0]).shape == (1, 8, 8)
assert issubclass(torchvision.datasets.FashionMNIST, data.Dataset)
for missing in ("torch.nonsense", "torch.nn.functional.nonsense"):
    try:
        eval(missing)
    except AttributeError as error:
        assert missing in str(error) and "grebe" in str(error), error
    else:
        raise SystemExit(f"{missing} is there")
try:
    import torch.nonsense
except ModuleNotFoundError as error:
    assert "torch.nonsense" in str(error)
else:
    raise SystemExit("torch.nonsense was imported")
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_a_script_for_pytorch_runs(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    done = python("-m", "grebe", "run-as-torch", str(script), "one", "--two")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9


def test_refuses_beside_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch, grebe.as_torch"
    done = python("-c", code)
    assert done.returncode == 1 and "PyTorch is imported already" in done.stderr


def test_missing_script() -> None:
    done = python("-m", "grebe", "run-as-torch", "no-such-file.py")
    assert done.returncode == 1 and "no-such-file.py" in done.stderr and "Trace" not in done.stderr


def test_cuda_names() -> None:
    assert not cuda.is_available() and cuda.device_count() == 0
    for call in (cuda.synchronize, cuda.current_device):
        with pytest.raises(RuntimeError, match="CUDA"):
            call()


def test_data_parallel() -> None:
    net = nn.DataParallel(nn.Linear(2, 3))
    assert list(net.state_dict()) == ["module.weight", "module.bias"]
    assert net(grebe.ones(4, 2)).shape == (4, 3)
    with pytest.raises(RuntimeError, match="one device"):
        nn.DataParallel(nn.Linear(2, 3), device_ids=[0, 1])
    with pytest.raises(RuntimeError, match="one device"):
        nn.parallel.scatter(grebe.ones(4), [0, 1])
    assert len(nn.parallel.scatter(grebe.ones(4), [0])) == 1


def test_transforms() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    image = transforms.ToTensor()(pixels)
    np.testing.assert_allclose(image.numpy(), pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    middle = transforms.CenterCrop((2, 4))(image)
    np.testing.assert_array_equal(middle.numpy(), image.numpy()[:, 2:4, 2:6])
    normal = transforms.Normalize([0.5, 0.1, 0.2], [1.0, 2.0, 4.0])(image).numpy()
    np.testing.assert_allclose(normal[1], (image.numpy()[1] - 0.1) / 2, rtol=1e-5)
    mirrored = transforms.RandomHorizontalFlip(1.0)(transforms.RandomVerticalFlip(1.0)(image))
    np.testing.assert_array_equal(mirrored.numpy(), image.numpy()[:, ::-1, ::-1])
    grebe.manual_seed(0)
    assert transforms.RandomResizedCrop((5, 7))(image).shape == (3, 5, 7)
    crops = {transforms.RandomCrop(6, padding=2)(image).numpy().tobytes() for _ in range(20)}
    assert len(crops) > 5
    for broken in (
        lambda: transforms.CenterCrop(7)(image),
        lambda: transforms.CenterCrop(0),
        lambda: transforms.Normalize([0.0], [0.0]),
        lambda: transforms.RandomHorizontalFlip(2.0),
        lambda: transforms.ToTensor()(np.zeros(3)),
    ):
        with pytest.raises(ValueError, match=r"Crop|Normalize|Flip|ToTensor"):
            broken()


def test_axis_and_keepdims_beside_dim_and_keepdim() -> None:
    x = grebe.tensor([[1.0, 5.0], [7.0, 3.0]])
    assert grebe.stack([x, x], axis=2).shape == (2, 2, 2)
    assert grebe.cat([x, x], axis=1).shape == (2, 4)
    assert x.max(axis=1, keepdims=True).values.tolist() == [[5.0], [7.0]]
    assert x.softmax(axis=0).sum(axis=0).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(TypeError):
        x.cumsum(0, axis=0)
