"""The code blocks of docs/tutorials run in order, and print what they say they print."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_tutorial(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = page.read_text(encoding="utf-8")
    printed: dict[int, str] = {}

    def record(*values: Any) -> None:
        printed[sys._getframe(1).f_lineno] = " ".join(map(str, values))

    names: dict[str, Any] = {"__name__": page.stem, "print": record}
    for block in BLOCK.finditer(content):
        above = content.count("\n", 0, block.start(1))
        exec(compile("\n" * above + block[1], str(page), "exec"), names)
    promised = {
        number: line.split("# -> ")[1]
        for number, line in enumerate(content.split("\n"), 1)
        if line.startswith("print(") and "# -> " in line
    }
    assert promised
    assert {number: printed[number] for number in promised} == promised
