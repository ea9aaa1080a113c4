"""Fetching the files of a data set."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence

from ..serialization import atomic_write

_TIMEOUT = 30.0  # seconds without any byte
_MAX_BYTES = 1 << 28


def fetch(name: str, mirrors: Sequence[str], sha256: str, folder: str) -> str:
    """Download file `name` from the first mirror that has it intact; returns its path.

    Raises:
        RuntimeError: no mirror gave a file with that SHA-256; the message tells why for each.
        OSError: it cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    problems = []
    for mirror in mirrors:
        url = mirror + name
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                data = response.read(_MAX_BYTES)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problems.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        digest = hashlib.sha256(data).hexdigest()
        if digest != sha256:
            problems.append(f"{url}: expected SHA-256 {sha256}, got {digest}")
            continue
        path = os.path.join(folder, name)
        atomic_write(path, data)
        return path
    raise RuntimeError(
        f"cannot download {name}; put it into {folder!r} by hand, or try again with a network. "
        + "; ".join(problems)
    )
