"""Data sets and the IDX format."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grebe
from grebe.datasets import MNIST, Digits, FashionMNIST, IDXImages, download, read_idx
from grebe.utils.data import DataLoader

TYPES = {
    0x08: np.uint8,
    0x09: np.int8,
    0x0B: np.int16,
    0x0C: np.int32,
    0x0D: np.float32,
    0x0E: np.float64,
}
FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
FILES += ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array: np.ndarray) -> bytes:
    code = next(code for code, kind in TYPES.items() if array.dtype == kind)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def make(folder: Path, n: int = 12, size: int = 5, suffix: str = "", classes: int = 10) -> None:
    """The four files of a small data set."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
        labels = (np.arange(n) % classes).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            path = folder / f"{part}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)


# ---- the file format ----


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("compressed", [False, True])
def test_read_idx(tmp_path: Path, code: int, compressed: bool) -> None:
    array = np.arange(-6, 18).astype(TYPES[code]).reshape(2, 3, 4)
    data = idx(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if compressed else data)
    got = read_idx(path)
    assert got.dtype == array.dtype
    assert got.dtype.isnative
    assert got.flags.writeable
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty file"),
        (b"\0\0\x08", "no IDX file"),
        (b"PK\x03\x04" * 9, "got 50 4b 03 04"),
        (b"\0\0\x07\x01\0\0\0\0", "no IDX file"),
        (b"\0\0\x08\x00", "no IDX file"),
        (b"\0\0\x08\x09" + bytes(36), "at most 8 dimensions"),
        (b"\0\0\x08\x02\0\0\0\x01", "header of 2 dimensions"),
        (idx(np.zeros((3, 2), np.uint8))[:-1], "truncated: .* needs 6 bytes of data, got 5"),
        (idx(np.zeros((3, 2), np.uint8)) + b"x", "after its end"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "announces shape"),
        (b"\0\0\x08\x03\0\0\0\0" + b"\xff" * 8, "announces shape"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "truncated"),
        (gzip.compress(idx(np.zeros(9, np.uint8)))[:-9], "damaged gzip"),
        (b"\x1f\x8b\x08\0garbage", "damaged gzip"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "damaged-file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=text) as caught:
        read_idx(path)
    assert "damaged-file" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever a file holds, the answer is an array or a ValueError that names the file."""
    valid = idx(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    prefix = data.draw(st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01", b"\x1f\x8b\x08", valid]))
    content = prefix[: data.draw(st.integers(0, len(prefix)))] + data.draw(st.binary(max_size=60))
    if data.draw(st.booleans()):
        content = gzip.compress(content)
    path = tmp_path / "any-file"
    path.write_bytes(content)
    try:
        assert isinstance(read_idx(path, max_bytes=1 << 20), np.ndarray)
    except ValueError as error:
        assert "any-file" in str(error)


# ---- folders ----


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("where", ["", "raw", "{name}/raw", "{name}"])
def test_folders(tmp_path: Path, kind: Any, suffix: str, where: str) -> None:
    make(tmp_path / where.format(name=kind.__name__), suffix=suffix)
    data = kind(tmp_path, train=False)
    assert len(data) == 12
    assert data.data.shape == (12, 5, 5)
    assert data.data.dtype == grebe.uint8
    assert data.targets.dtype == grebe.int64
    assert data.targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(data.classes) == 10
    assert data.class_to_idx[data.classes[3]] == 3
    assert repr(data) == f"{kind.__name__}(12 images, 5x5)"


def test_samples_and_transforms(tmp_path: Path) -> None:
    make(tmp_path)
    data = MNIST(str(tmp_path))
    image, label = data[-1]
    assert image.shape == (1, 5, 5)
    assert image.dtype == grebe.float32
    assert label == 1
    assert type(label) is int
    np.testing.assert_array_equal(image.array[0], data.data.array[-1] / np.float32(255))
    for bad in (12, -13):
        with pytest.raises(IndexError, match="out of range for 12"):
            data[bad]
    changed = MNIST(tmp_path, transform=lambda x: -x.array, target_transform=str)
    assert changed[3][1] == "3"
    np.testing.assert_array_equal(changed[3][0], -data[3][0].array)


def test_loading(tmp_path: Path) -> None:
    """The fast path, the path with a transform and the one with workers agree."""
    make(tmp_path)
    plain = MNIST(tmp_path)
    same = MNIST(tmp_path, transform=lambda image: image)
    batches = list(DataLoader(plain, 5))
    for others in (list(DataLoader(same, 5)), list(DataLoader(plain, 5, num_workers=2))):
        for (x, y), (a, b) in zip(batches, others, strict=True):
            assert x.shape[1:] == (1, 5, 5)
            np.testing.assert_array_equal(x.array, a.array)
            np.testing.assert_array_equal(y.array, b.array)


def test_any_idx_images(tmp_path: Path) -> None:
    make(tmp_path, classes=3)
    assert IDXImages(tmp_path).classes == ["0", "1", "2"]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte .* download=True"):
        MNIST(tmp_path)
    make(tmp_path)
    (tmp_path / FILES[1]).unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        FashionMNIST(tmp_path)


@pytest.mark.parametrize(
    ("file", "array", "text"),
    [
        (0, np.zeros((11, 5, 5), np.uint8), "11 images but .* 12 labels"),
        (0, np.zeros((12, 5), np.uint8), r"expected images of uint8 \[N, H, W\], got uint8"),
        (0, np.zeros((12, 5, 5), np.float32), "got float32"),
        (0, np.zeros((12, 0, 5), np.uint8), "at least one image"),
        (1, np.zeros((12, 1), np.uint8), r"expected labels of uint8 \[N\]"),
        (1, np.full(12, 10, np.uint8), "label 10 is out of range for 10 classes"),
    ],
)
def test_wrong_files(tmp_path: Path, file: int, array: np.ndarray, text: str) -> None:
    make(tmp_path)
    (tmp_path / FILES[file]).write_bytes(idx(array))
    with pytest.raises(ValueError, match=text) as caught:
        MNIST(tmp_path)
    assert FILES[file] in str(caught.value)


def test_default_root_of_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system"
    make(system, n=7)
    monkeypatch.setattr(FashionMNIST, "system_folder", str(system))
    monkeypatch.chdir(tmp_path)
    assert len(FashionMNIST()) == 7
    with pytest.raises(FileNotFoundError):
        FashionMNIST("elsewhere")
    assert len(FashionMNIST("elsewhere", download=True)) == 7
    make(tmp_path / "data" / "FashionMNIST" / "raw", n=3)
    assert len(FashionMNIST()) == 3


@pytest.mark.skipif(
    not os.path.isdir(FashionMNIST.system_folder), reason="needs Debian's dataset-fashion-mnist"
)
def test_the_real_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = FashionMNIST(train=False)
    assert data.data.shape == (10_000, 28, 28)
    assert np.bincount(data.targets.array).tolist() == [1000] * 10
    assert data.classes[data[0][1]] == "Ankle boot"


# ---- digits ----


def test_digits() -> None:
    pytest.importorskip("sklearn")
    train, test = Digits(), Digits(train=False)
    assert (len(train), len(test)) == (1437, 360)
    image, _ = train[0]
    assert image.shape == (1, 8, 8)
    assert 0 <= image.array.min() <= image.array.max() <= 1
    assert set(test.targets.tolist()) == set(range(10))


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install grebe\[data\]"):
        Digits()


# ---- download ----


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror on this disk whose files MNIST believes to be the right ones."""
    folder = tmp_path / "mirror"
    make(folder, suffix=".gz")
    sums = {f: hashlib.sha256((folder / f"{f}.gz").read_bytes()).hexdigest() for f in FILES}
    monkeypatch.setattr(MNIST, "checksums", sums)
    monkeypatch.setattr(
        MNIST, "mirrors", (f"{(tmp_path / 'gone').as_uri()}/", folder.as_uri() + "/")
    )
    return folder


def test_download(tmp_path: Path, mirror: Path) -> None:
    root = tmp_path / "root"
    assert len(MNIST(root, download=True)) == 12
    assert len(MNIST(root)) == 12
    raw = root / "MNIST" / "raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted(f"{f}.gz" for f in FILES[:2])
    (mirror / f"{FILES[0]}.gz").unlink()
    assert len(MNIST(root, download=True)) == 12  # nothing is fetched twice


def test_download_of_wrong_content(tmp_path: Path, mirror: Path) -> None:
    (mirror / f"{FILES[0]}.gz").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        MNIST(tmp_path / "root", download=True)
    assert not any((tmp_path / "root" / "MNIST" / "raw").iterdir())


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ("http://127.0.0.1:9/",))
    with pytest.raises(RuntimeError, match=r"cannot download train-images.* refused"):
        MNIST(tmp_path, download=True)


def test_official_names_and_checksums() -> None:
    for kind in (MNIST, FashionMNIST):
        assert sorted(kind.checksums) == sorted(FILES)
        assert all(len(digest) == 64 for digest in kind.checksums.values())
        assert all(mirror.startswith("https://") for mirror in kind.mirrors)
    assert download.fetch is not None
