"""The IDX file format of MNIST (http://yann.lecun.com/exdb/mnist): a big-endian array in a file.

Two zero bytes, one for the dtype, one for the number of dimensions, four per dimension, the data.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_CHUNK = 1 << 22
MAX_BYTES = 1 << 33


def read_idx(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> NDArray[Any]:
    """The array in an IDX file, plain or compressed by gzip (told by its content, not its name).

    Args:
        path: the file.
        max_bytes: refuse a file whose header announces more data than this.

    Returns:
        An array of native byte order with the file's shape and dtype.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no IDX file, is truncated, or has data after its end. The message names
            the file.
    """
    name = os.fspath(path)
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if compressed else raw
        try:
            return _parse(stream, name, max_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{name!r}: damaged gzip file: {error}") from None


def _parse(stream: IO[bytes], name: str, max_bytes: int) -> NDArray[Any]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise ValueError(
            f"{name!r} is no IDX file: expected magic bytes 00 00 TYPE NDIM, got "
            f"{magic.hex(' ') or 'an empty file'}"
        )
    dtype, ndim = _DTYPES[magic[2]], magic[3]
    if ndim > 8:
        raise ValueError(f"{name!r}: expected at most 8 dimensions, got {ndim}")
    header = stream.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError(f"{name!r} is truncated: its header of {ndim} dimensions is not complete")
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, 4 * ndim, 4))
    # An empty array may still have a shape whose other sizes overflow NumPy's.
    extent = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if extent > max_bytes:
        raise ValueError(
            f"{name!r}: its header announces shape {shape}, {extent} bytes; expected at most "
            f"{max_bytes}"
        )
    expected = math.prod(shape) * dtype.itemsize
    data = _read(stream, expected + 1)
    if len(data) != expected:
        problem = "is truncated" if len(data) < expected else "has data after its end"
        raise ValueError(
            f"{name!r} {problem}: shape {shape} of {dtype.name} needs {expected} bytes of data, "
            f"got {len(data)}{' or more' if len(data) > expected else ''}"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    native: NDArray[Any] = array.astype(dtype.newbyteorder("="), copy=False)
    return native


def _read(stream: IO[bytes], size: int) -> bytearray:
    """Up to `size` bytes; memory grows with what is there, not with what a header announces."""
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(_CHUNK, size - len(data)))
        if not chunk:
            break
        data += chunk
    return data
