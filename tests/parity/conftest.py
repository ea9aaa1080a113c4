"""Comparisons with PyTorch: collected only where it is installed (`pip install ".[parity]"`)."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
