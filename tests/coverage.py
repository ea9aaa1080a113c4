"""Which lines of the kernels no test has run: python tests/coverage.py BUILD_DIR [--functions]

BUILD_DIR was built with GREBE_INSTRUMENT=coverage; tests have run on it at every ISA level. Prints
per level and kernel file the lines that never ran, in any instance of a template, and fails if
there are any. --functions also lists the instances that never ran.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEVEL = re.compile(r"kernels_(\w+)\.dir")


def measured(build: Path) -> Iterator[tuple[str, Any]]:
    """(level, gcov's data) of the kernel sources in every object."""
    notes = sorted(build.rglob("kernels_*.dir/**/*.gcno"))
    if not notes:
        sys.exit(f"{build}: no objects built with GREBE_INSTRUMENT=coverage")
    for note in notes:
        # Without a .gcda file beside it, gcov counts nothing: the object never ran.
        command = ["gcov", "--json-format", "--stdout", str(note)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        match = LEVEL.search(str(note))
        assert match
        for file in json.loads(result.stdout)["files"]:
            if "csrc/" in file["file"]:
                file["file"] = "csrc/" + re.sub(r"\w+/\.\./", "", file["file"].split("csrc/")[1])
                yield match[1], file


def ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][-1] == n - 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def main() -> None:
    """Command line."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    lines: dict[str, Counter[tuple[str, int]]] = {}
    functions: dict[str, Counter[str]] = {}
    for level, file in measured(Path(sys.argv[1])):
        counts = lines.setdefault(level, Counter())
        for line in file["lines"]:
            counts[file["file"], line["line_number"]] += line["count"]
        instances = functions.setdefault(level, Counter())
        for function in file["functions"]:
            instances[function["demangled_name"]] += function["execution_count"]
    complete = True
    for level, counts in lines.items():
        missed: dict[str, list[int]] = {}
        for (file, number), count in sorted(counts.items()):
            if count == 0:
                missed.setdefault(file, []).append(number)
        idle = sorted(name for name, count in functions[level].items() if count == 0)
        ran, all_lines = sum(map(bool, counts.values())), len(counts)
        instances_ran = len(functions[level]) - len(idle)
        print(
            f"{level}: ran {ran} of {all_lines} lines, "
            f"{instances_ran} of {len(functions[level])} functions and their instances"
        )
        complete = complete and not missed
        if ran:
            for file, numbers in missed.items():
                print(f"  {file}: {ranges(numbers)}")
            for name in idle if "--functions" in sys.argv else []:
                print(f"  {name}")
    sys.exit(not complete)


if __name__ == "__main__":
    main()
