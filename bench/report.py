"""Writes benchmark results into the documents: python bench/report.py RESULTS.csv FILE.md...

In each Markdown file, what stands between the lines `<!-- TABLE SECTION -->` and
`<!-- end of TABLE -->` is replaced by a table of that section. TABLE is one of

    bench      grebe's rate, and the time of the others over grebe's
    scaling    for each library the time with the fewest threads over that with the most
    neighbour  for each library the time beside a busy process over that without
    memory     for each library the peak memory in MB

Where a job was measured more than once, the last row counts.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Jobs = dict[tuple[str, str], dict[str, Row]]  # (job, mode) -> library -> row


def read(path: Path) -> dict[str, list[Row]]:
    """The rows of a CSV file by section."""
    sections: dict[str, list[Row]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            row["neighbour"] = row["neighbour"] or "0"  # rows from before there was the column
            sections.setdefault(row["section"], []).append(row)
    return sections


def chosen(rows: list[Row], pick: Callable[..., str] = max, neighbour: str = "0") -> Jobs:
    """The last row of each job and library with the most (`pick`) threads."""
    threads = pick((r["threads"] for r in rows), key=int)
    jobs: Jobs = {}
    for row in rows:
        if row["threads"] == threads and row["neighbour"] == neighbour:
            jobs.setdefault((row["job"], row["mode"]), {})[row["library"]] = row
    return jobs


def libraries(jobs: Jobs) -> list[str]:
    """The libraries of a table, grebe first."""
    return list(dict.fromkeys(["grebe", *(name for row in jobs.values() for name in row)]))


def bench(rows: list[Row]) -> list[list[str]]:
    jobs = chosen(rows)
    others = libraries(jobs)[1:]
    lines = [["grebe", "of peak", *(f"{name} / grebe" for name in others)]]
    for row in jobs.values():
        own = row["grebe"]
        share = f"{100 * float(own['share']):.0f}%" if own["share"] else ""
        ratios = [f"{float(row[name]['ratio']):.2f}" if name in row else "" for name in others]
        lines.append([f"{own['rate']} {own['unit']}", share, *ratios])
    return label(jobs, lines)


def quotients(above: Jobs, below: Jobs) -> list[list[str]]:
    """Per job and library the time `above` over the time `below`."""
    shared = {job: row for job, row in above.items() if job in below}
    names = libraries(shared)
    lines = [names]
    for job, row in shared.items():
        both = [name in row and name in below[job] for name in names]
        lines.append(
            [
                f"{float(row[name]['seconds']) / float(below[job][name]['seconds']):.2f}" * known
                for name, known in zip(names, both, strict=True)
            ]
        )
    return label(shared, lines)


def scaling(rows: list[Row]) -> list[list[str]]:
    return quotients(chosen(rows, min), chosen(rows))


def neighbour(rows: list[Row]) -> list[list[str]]:
    return quotients(chosen(rows, neighbour="1"), chosen(rows))


def memory(rows: list[Row]) -> list[list[str]]:
    jobs = chosen([row for row in rows if row["memory"]])
    names = libraries(jobs)
    lines = [
        [row[name]["memory"] if name in row else "" for name in names] for row in jobs.values()
    ]
    return label(jobs, [names, *lines])


def label(jobs: Jobs, lines: list[list[str]]) -> list[list[str]]:
    """Puts the jobs' names before the lines, whose first is the head."""
    names = [["job", "pass"], *([f"`{job}`", mode] for job, mode in jobs)]
    return [name + line for name, line in zip(names, lines, strict=True)]


TABLES = {"bench": bench, "scaling": scaling, "neighbour": neighbour, "memory": memory}
BLOCK = re.compile(
    rf"(<!-- ({'|'.join(TABLES)}) (\w+) -->\n).*?(<!-- end of \2 -->)",
    re.DOTALL,
)


def markdown(lines: list[list[str]]) -> str:
    rule = ["---"] * 2 + ["---:"] * (len(lines[0]) - 2)
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def caption(rows: list[Row]) -> str:
    """Where and with what the rows were measured."""
    jobs = chosen(rows)
    row = next(iter(jobs.values()))["grebe"]
    versions = {f"{r['library']} {r['version']}" for job in jobs.values() for r in job.values()}
    return (
        f"{row['machine']}, {row['threads']} threads, ISA level {row['isa']}, {row['date']}; "
        f"{', '.join(sorted(versions))}."
    )


def main() -> None:
    """Command line."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sections = read(Path(sys.argv[1]))

    def fill(match: re.Match[str]) -> str:
        rows = sections.get(match[3])
        if not rows:
            return match[0]
        table = markdown(TABLES[match[2]](rows))
        return f"{match[1]}\n{table}\n\n{caption(rows)}\n\n{match[4]}"

    for name in sys.argv[2:]:
        path = Path(name)
        path.write_text(BLOCK.sub(fill, path.read_text()))


if __name__ == "__main__":
    main()
