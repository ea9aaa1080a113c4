"""Every ISA level that this machine can run, each in a process of its own.

A compact part of test_ops.py; .ci/run takes the whole file through every level.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
LEVELS = ["baseline", "avx2", "avx512", "avx512bf16"]
# One size below a vector, one with a tail, one with many threads.
SUBSET = "float32 and contiguous and (7 or 33 or 300x257 or 130x257)"


def python(level: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with GREBE_ISA set to `level`."""
    environment = {**os.environ, "GREBE_ISA": level}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True)


@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str) -> None:
    shown = python(level, "-c", "import grebe; print(grebe._cpu.isa())")
    if "not supported by this machine" in shown.stderr:
        pytest.skip(f"this machine or build lacks {level}")
    assert shown.stdout.strip() == level, shown.stderr
    result = python(level, "-m", "pytest", "-q", "-x", "test_ops.py", "-k", SUBSET)
    assert result.returncode == 0, result.stdout[-3000:]


def test_unknown_level_is_an_error() -> None:
    result = python("mmx", "-c", "import grebe")
    assert result.returncode != 0
    assert "GREBE_ISA=mmx" in result.stderr
