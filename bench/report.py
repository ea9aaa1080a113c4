"""Writes benchmark results into the documents: python bench/report.py RESULTS.csv FILE.md...

In each Markdown file, what stands between the lines `<!-- bench SECTION -->` and
`<!-- end of bench -->` is replaced by a table of that section. Where a job was measured more than
once, the last row counts.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(<!-- bench (\w+) -->\n).*?(<!-- end of bench -->)", re.DOTALL)

Rows = dict[tuple[str, str], dict[str, dict[str, Any]]]  # (job, mode) -> library -> row


def read(path: Path) -> dict[str, Rows]:
    """The rows of a CSV file by section, job and library."""
    sections: dict[str, Rows] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            jobs = sections.setdefault(row["section"], {})
            jobs.setdefault((row["job"], row["mode"]), {})[row["library"]] = row
    return sections


def table(rows: Rows) -> str:
    """A Markdown table: grebe's rate, and the time of the others over grebe's."""
    others = list(dict.fromkeys(name for row in rows.values() for name in row if name != "grebe"))
    head = ["job", "pass", "grebe", "of peak", *(f"{name} / grebe" for name in others)]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for (job, mode), row in rows.items():
        own = row["grebe"]
        share = f"{100 * float(own['share']):.0f}%" if own["share"] else ""
        ratios = [f"{float(row[name]['ratio']):.2f}" if name in row else "" for name in others]
        lines.append([f"`{job}`", mode, f"{own['rate']} {own['unit']}", share, *ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def caption(rows: Rows) -> str:
    """Where and with what the rows were measured."""
    row = next(iter(rows.values()))["grebe"]
    versions = {f"{r['library']} {r['version']}" for jobs in rows.values() for r in jobs.values()}
    return (
        f"{row['machine']}, {row['threads']} threads, ISA level {row['isa']}, {row['date']}; "
        f"{', '.join(sorted(versions))}. Ratios above 1: grebe is faster."
    )


def main() -> None:
    """Command line."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sections = read(Path(sys.argv[1]))

    def fill(match: re.Match[str]) -> str:
        rows = sections.get(match[2])
        if not rows:
            return match[0]
        return f"{match[1]}\n{table(rows)}\n\n{caption(rows)}\n\n{match[3]}"

    for name in sys.argv[2:]:
        path = Path(name)
        path.write_text(BLOCK.sub(fill, path.read_text()))


if __name__ == "__main__":
    main()
