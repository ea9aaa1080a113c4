"""Saving and loading tensors as safetensors files: no pickle, every write atomic.

The format (https://github.com/huggingface/safetensors): eight bytes of header length, a JSON header
with name, dtype, shape and byte range of each tensor, then the bytes. `save` also keeps the nesting
of dictionaries and lists, as JSON in the header's metadata, so that its files are still readable by
every safetensors reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from ._cpu import wrap
from .tensor import Tensor, check_device

__all__ = ["load", "load_file", "save", "save_file"]

Path = str | os.PathLike[str]

_TREE = "grebe"  # metadata key of the nesting
_MAX_DEPTH = 100
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    Raises:
        OSError: the file cannot be written; its old content is untouched.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)[:64]}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _umask() -> int:
    """The process's umask. Linux tells it without changing it, which other threads would notice."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: str) -> None:
    """Make a rename in `folder` durable, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_file(
    tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a safetensors file, atomically.

    Views and non-contiguous tensors are stored as contiguous copies, tensors that share memory once
    per name.

    Args:
        tensors: names to tensors (or NumPy arrays) of any shape and of dtype bool, (u)int8 to
            (u)int64, float16, bfloat16, float32 or float64.
        path: the file to make or replace.
        metadata: names to strings, kept in the header.

    Raises:
        TypeError: a name, tensor, dtype or metadata entry of another type.
        OSError: the file cannot be written.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save_file: expected a dict of tensors, got {type(tensors).__name__}")
    arrays = {name: _storable(name, tensor, path) for name, tensor in tensors.items()}
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"save_file: metadata must map str to str, got {key!r}: {type(value).__name__}"
            )
    try:
        data = safetensors.numpy.save(arrays, dict(metadata) if metadata else None)
    except safetensors.SafetensorError as error:
        raise ValueError(f"save_file: cannot write {os.fspath(path)!r}: {error}") from None
    atomic_write(path, data)


def _storable(name: Any, tensor: Any, path: Path) -> np.ndarray[Any, Any]:
    """A little-endian C-contiguous array with the content of `tensor`."""
    where = f"save_file: cannot write {os.fspath(path)!r}: "
    if not isinstance(name, str):
        raise TypeError(f"{where}names must be str, got {type(name).__name__}: {name!r}")
    if name == "__metadata__":
        raise ValueError(f"{where}the name '__metadata__' is reserved by the format")
    array = tensor.detach().cpu().array if isinstance(tensor, Tensor) else tensor
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{where}{name!r}: expected a tensor, got {type(tensor).__name__}")
    native = array.dtype.newbyteorder("=")
    if native not in _NAMES:
        known = ", ".join(str(dtype) for dtype in _NAMES)
        raise TypeError(f"{where}{name!r} has dtype {array.dtype}, expected one of {known}")
    return np.require(array, native.newbyteorder("<"), "C")  # keeps 0-d, unlike ascontiguousarray


def load_file(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, in the order of their bytes in it.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is no valid safetensors file, or has a dtype that grebe does not know. The
            message names the file and what is wrong.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with open(path, "rb") as file:
        data = file.read()
    where = f"{os.fspath(path)!r} is not a valid safetensors file: "
    try:
        items = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValueError(where + str(error).removeprefix("Error while deserializing: ")) from None
    # The library has checked the header; it only does not hand out order and metadata.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    metadata = header.pop("__metadata__", None) or {}
    items.sort(key=lambda item: header[item[0]]["data_offsets"])
    tensors = {}
    for name, item in items:
        dtype = _DTYPES.get(item["dtype"])
        if dtype is None:
            raise ValueError(
                f"{os.fspath(path)!r}: tensor {name!r} has dtype {item['dtype']}, expected one of "
                + ", ".join(_DTYPES)
            )
        array = np.frombuffer(item["data"], dtype.newbyteorder("<")).astype(dtype, copy=False)
        if not array.flags.writeable or not array.flags.aligned:
            array = array.copy()
        tensors[name] = wrap(_reshaped(array, item["shape"], name, path))
    return tensors, metadata


def _reshaped(
    array: np.ndarray[Any, Any], shape: list[int], name: str, path: Path
) -> np.ndarray[Any, Any]:
    try:
        return array.reshape(shape)
    except ValueError as error:  # more dimensions than NumPy has, or an empty shape too large
        raise ValueError(
            f"{os.fspath(path)!r}: tensor {name!r} has the impossible shape {shape}: {error}"
        ) from None


def save(obj: Any, path: Path) -> None:
    """Write a state dict, or any nesting of dicts, lists and tuples of tensors, to `path`.

    The file is a safetensors file with one tensor per leaf, named by its path (`model.0.weight`);
    nesting and plain values are in its metadata. There is no pickle: objects of other types are
    refused, and reading a file never runs code.

    Args:
        obj: dicts with str or int keys, lists, tuples, tensors, NumPy arrays, numbers, strings,
            bools and None, nested as you like (up to 100 deep).
        path: the file to make or replace, atomically.

    Raises:
        TypeError: an object of another type; the message tells where in `obj`.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Any] = {}
    tree = _flatten(obj, (), tensors)
    save_file(tensors, path, {_TREE: json.dumps(tree, separators=(",", ":"))})


def load(path: Path, map_location: Any = None) -> Any:
    """Read what `save` wrote; of another safetensors file, the dict of its tensors.

    Args:
        path: the file.
        map_location: the device of the tensors; files don't say where theirs were, so by default
            it is the CPU.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is no valid file; the message names it and what is wrong.
    """
    device = check_device("load", "cpu" if map_location is None else map_location)
    tensors, metadata = _read(path)
    if device != "cpu":
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    if _TREE not in metadata:
        return tensors
    try:
        return _unflatten(json.loads(metadata[_TREE]), tensors, 0)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{os.fspath(path)!r}: the nesting in its metadata is damaged: {error}"
        ) from None


def _flatten(obj: Any, where: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    """JSON for `obj`, whose tensors go to `tensors` under unique names."""
    here = ".".join(where) or "the top level"
    if len(where) > _MAX_DEPTH:
        raise TypeError(f"save: more than {_MAX_DEPTH} levels of nesting at {here}")
    if obj is None or isinstance(obj, (bool, str)):
        return obj
    if isinstance(obj, (int, float)):
        return int(obj) if isinstance(obj, int) else float(obj)
    if isinstance(obj, np.generic) and obj.dtype.kind in "biuf":
        return obj.item()
    if isinstance(obj, (Tensor, np.ndarray)):
        name = _unique(".".join(where) or "tensor", tensors)
        tensors[name] = obj
        return {"tensor" if isinstance(obj, Tensor) else "array": name}
    if isinstance(obj, Mapping):
        return {"dict": [[_key(k, here), _flatten(v, (*where, str(k)), tensors)]
                         for k, v in obj.items()]}  # fmt: skip
    if isinstance(obj, (list, tuple)):
        items = [_flatten(v, (*where, str(i)), tensors) for i, v in enumerate(obj)]
        return {"tuple" if isinstance(obj, tuple) else "list": items}
    raise TypeError(
        f"save: cannot store a {type(obj).__name__} at {here}; expected tensors, numbers, strings, "
        "bools or None in dicts, lists or tuples"
    )


def _key(key: Any, here: str) -> str | int:
    if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
        return key
    raise TypeError(f"save: dict keys must be str or int, got {key!r} at {here}")


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or with a suffix: {'a': {'b': x}, 'a.b': y} has two leaves of one path."""
    return next(candidate for candidate in _candidates(name) if candidate not in taken)


def _candidates(name: str) -> Iterator[str]:
    if name != "__metadata__":
        yield name
    suffix = 2
    while True:
        yield f"{name}#{suffix}"
        suffix += 1


def _unflatten(tree: Any, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise ValueError("a list where an object was expected")
        return tree
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels")
    ((kind, content),) = tree.items()
    if kind in ("tensor", "array"):
        tensor = tensors[content]
        return tensor if kind == "tensor" else tensor.array
    if kind == "dict":
        return {key: _unflatten(value, tensors, depth + 1) for key, value in content}
    if kind in ("list", "tuple"):
        items = [_unflatten(value, tensors, depth + 1) for value in content]
        return items if kind == "list" else tuple(items)
    raise ValueError(f"unknown kind {kind!r}")
