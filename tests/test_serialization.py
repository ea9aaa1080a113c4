"""save_file, load_file, save and load."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import grebe
from grebe.serialization import atomic_write, load, load_file, save, save_file

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def random_tensor(dtype: str) -> Any:
    values = np.random.default_rng(0).integers(-100, 100, (3, 4))
    return grebe.tensor(values.astype(dtype) if dtype != "bool" else values > 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    x = random_tensor(dtype)
    save_file({"x": x}, tmp_path / "f")
    y = load_file(tmp_path / "f")["x"]
    assert y.dtype == x.dtype
    assert y.array.flags.writeable
    np.testing.assert_array_equal(y.array, x.array)


def test_bfloat16(tmp_path: Path) -> None:
    x = np.array([1.5, -2, 3e38], np.float32).astype(grebe.bfloat16)
    save_file({"x": x}, tmp_path / "f")
    y = load_file(tmp_path / "f")["x"]
    assert y.dtype == grebe.bfloat16
    assert y.array.tobytes() == x.tobytes()


def test_shapes_views_and_shared_memory(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {
        "scalar": grebe.tensor(3.0),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": base.T,
        "strided": base[::-1, ::2],
        "broadcast": np.broadcast_to(base[0], (2, 6)),
        "big endian": base.astype(">f4"),
        "leaf": grebe.tensor([1.0], requires_grad=True),
        "a": base,
        "b": base,
        "naïve name": base[0],
    }
    save_file(tensors, tmp_path / "f", {"made": "by a test"})
    got = load_file(tmp_path / "f")
    assert set(got) == set(tensors)
    for name, tensor in tensors.items():
        expected = getattr(tensor, "array", tensor)
        assert got[name].shape == expected.shape
        np.testing.assert_array_equal(got[name].array, expected)
    assert not got["leaf"].requires_grad
    got["a"].array[...] = 0
    assert got["b"].array.any()


def test_the_library_and_torch_read_our_files(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"x": x}, tmp_path / "f", {"key": "value"})
    with safetensors.safe_open(tmp_path / "f", framework="np") as file:
        assert file.metadata() == {"key": "value"}
        np.testing.assert_array_equal(file.get_tensor("x"), x)


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "text"),
    [
        ([1], None, TypeError, "expected a dict of tensors, got list"),
        ({"x": [1.0]}, None, TypeError, "'x': expected a tensor, got list"),
        ({3: np.zeros(2)}, None, TypeError, "names must be str, got int: 3"),
        ({"x": np.zeros(2, np.complex128)}, None, TypeError, "'x' has dtype complex128"),
        ({"x": np.array(["a"])}, None, TypeError, "has dtype <U1"),
        ({"__metadata__": np.zeros(2)}, None, ValueError, "reserved"),
        ({"x": np.zeros(2)}, {"a": 1}, TypeError, "metadata must map str to str"),
    ],
)
def test_save_file_errors(
    tmp_path: Path, tensors: Any, metadata: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        save_file(tensors, tmp_path / "f", metadata)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        load_file(tmp_path / "no-such-file")
    with pytest.raises(FileNotFoundError):
        save_file({}, tmp_path / "no-such-folder" / "f")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save_file({"x": np.arange(9.0)}, path)
    data = path.read_bytes()
    unknown = data.replace(b'"F64"', b'"X64"')
    for content in (b"", data[:7], data[:40], data[:-1], data + b"x", unknown, b"\xff" * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights'.*not a valid safetensors file: \w"):
            load_file(path)


def test_unknown_dtypes_of_the_format(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path = tmp_path / "f"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(ValueError, match="'x' has dtype F8_E4M3, expected one of F64"):
        load_file(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever a file holds, the answer is a dict or a ValueError that names the file."""
    path = tmp_path / "any-file"
    save({"x": np.arange(3.0), "y": [1, None, "z"]}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        if not content:
            break
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    try:
        load(path)
    except ValueError as error:
        assert "any-file" in str(error)


# ---- nested objects ----


def test_nested_objects(tmp_path: Path) -> None:
    obj = {
        "model": OrderedDict([("b.weight", grebe.tensor([1.0, 2.0])), ("a", grebe.tensor(3))]),
        "optimizer": {
            "state": {0: {"step": 7, "exp_avg": grebe.tensor([[1.5]])}, 1: {}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "fused": None, "params": [0, 1]}],
        },
        "epoch": np.int64(4),
        "best": float("inf"),
        "name": "näme",
        "flag": True,
        "array": np.arange(3),
    }
    save(obj, tmp_path / "f")
    got = load(tmp_path / "f")
    assert list(got) == list(obj)
    assert list(got["model"]) == ["b.weight", "a"]
    assert got["model"]["b.weight"].tolist() == [1, 2]
    assert got["optimizer"]["state"][0]["exp_avg"].tolist() == [[1.5]]
    assert got["optimizer"]["state"][0]["step"] == 7
    assert got["optimizer"]["state"][1] == {}
    assert got["optimizer"]["param_groups"] == obj["optimizer"]["param_groups"]
    assert got["epoch"] == 4
    assert type(got["epoch"]) is int
    assert got["best"] == float("inf")
    assert got["name"] == "näme"
    assert got["flag"] is True
    assert isinstance(got["array"], np.ndarray)
    assert "model.b.weight" in load_file(tmp_path / "f")


def test_tops_that_are_no_dict(tmp_path: Path) -> None:
    save(grebe.tensor([1.0]), tmp_path / "f")
    assert load(tmp_path / "f").tolist() == [1]
    save([1, (2,), {}], tmp_path / "f")
    assert load(tmp_path / "f") == [1, (2,), {}]


def test_paths_that_coincide(tmp_path: Path) -> None:
    x, y, z = (grebe.tensor([float(i)]) for i in range(3))
    save({"a": {"b": x}, "a.b": y, "__metadata__": z}, tmp_path / "f")
    got = load(tmp_path / "f")
    assert [got["a"]["b"].item(), got["a.b"].item(), got["__metadata__"].item()] == [0, 1, 2]


def test_plain_safetensors_files_load_as_dict(tmp_path: Path) -> None:
    save_file({"w": grebe.tensor([1.0])}, tmp_path / "f", {"format": "pt"})
    assert load(tmp_path / "f")["w"].tolist() == [1]


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
)
objects = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.tobytes() == b.tobytes() and a.shape == b.shape
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and type(a) is type(b)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(objects)
def test_any_object(tmp_path: Path, obj: Any) -> None:
    try:
        save(obj, tmp_path / "f")
    except UnicodeEncodeError:
        return  # lone surrogates
    assert same(obj, load(tmp_path / "f"))


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"a": [1, object()]}, "cannot store a object at a.1"),
        ({"a": {1.5: 2}}, "keys must be str or int, got 1.5 at a"),
        ({"a": 1j}, "cannot store a complex at a"),
        (print, "at the top level"),
    ],
)
def test_save_errors(tmp_path: Path, obj: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        save(obj, tmp_path / "f")


def test_too_deep(tmp_path: Path) -> None:
    deep: Any = []
    deep.append(deep)
    with pytest.raises(TypeError, match="100 levels"):
        save(deep, tmp_path / "f")


@pytest.mark.parametrize(
    "tree",
    ["{", "[]", '{"a":1}', '{"tensor":"no"}', '{"dict":[[[],1]]}', '{"dict":3}', "[" * 5000,
     '{"list":[' * 200 + "]}" * 200, '{"tensor":[]}', "{}"],
)  # fmt: skip
def test_damaged_nesting(tmp_path: Path, tree: str) -> None:
    save_file({"x": np.zeros(1)}, tmp_path / "f", {"grebe": tree})
    with pytest.raises(ValueError, match=r"f'.*nesting"):
        load(tmp_path / "f")


# ---- atomic writes ----


def test_atomic_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    atomic_write(path, b"old")
    monkeypatch.chdir(tmp_path)
    atomic_write("f", b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "f"
    save_file({"x": np.zeros(3)}, path)
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        save_file({"x": np.ones(3)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_metadata_of_save_is_json(tmp_path: Path) -> None:
    save({"w": grebe.tensor([1.0]), "n": 3}, tmp_path / "f")
    data = (tmp_path / "f").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["grebe"]) == {
        "dict": [["w", {"tensor": "w"}], ["n", 3]]
    }
