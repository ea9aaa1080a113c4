"""The installed package: version, size, and what importing it loads."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import grebe

OPTIONAL = ["sklearn", "matplotlib", "scipy", "torch", "pandas", "tqdm", "safetensors"]


@pytest.fixture
def installed() -> str:
    """The version that pip knows; skips in a source tree that was never installed."""
    try:
        return importlib.metadata.version("grebe")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("grebe is not installed")


def test_version_comes_from_one_place(installed: str) -> None:
    assert installed == grebe.__version__


def test_extension_is_small(installed: str) -> None:
    """A wheel is a zip of which the extension is nearly all: under 10 MB, as compressed there."""
    assert len(zlib.compress(Path(grebe._cpu.__file__).read_bytes())) < 10e6


def test_import_loads_nothing_optional() -> None:
    code = f"import sys, grebe; print([m for m in {OPTIONAL} if m in sys.modules])"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert loaded.strip() == "[]"
