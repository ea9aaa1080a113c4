"""Times grebe beside PyTorch, NumPy and ONNX Runtime.

python bench/run.py [--ops REGEX] [--against torch,numpy] [--threads N] [--out FILE.csv]

Every library runs in a process of its own, so that two thread pools never compete. The parent lets
them work in turn, sample by sample: what disturbs the machine disturbs all. Each job of jobs.py is
checked against the float64 reference before it is timed.

--threads 1,2 measures at both numbers, --neighbour also beside a process that keeps one core busy,
--fresh in new processes for each job, whose peak memory is then recorded.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import datetime
import importlib
import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
JEMALLOC = Path(f"/usr/lib/{platform.machine()}-linux-gnu/libjemalloc.so.2")
JEMALLOC_MODES = ("torch-jemalloc", "torch-channels-last", "torch-compile")
SAMPLE = 0.04  # seconds that one sample takes at least
WARM = 0.06  # seconds of calls before each sample: threads of a process that waited start cold
SETTLE = 0.1  # seconds between samples: OpenBLAS's threads spin that long for more work
ROUNDS = 9  # samples per job and library, at least
COLUMNS = (
    "date machine threads isa section job mode library version seconds spread rate unit share ratio"
    " neighbour memory"
)

# ---- the process of one library ----


def serve(name: str) -> None:
    """Answers requests from standard input: prepare a job, or time calls of the prepared one."""
    import jobs
    import onnx_jobs
    from jobs import JOBS

    library, _, jobs.mode = name.partition("-")
    jobs.mode = jobs.mode.removeprefix("jemalloc")
    lib = importlib.import_module(library)
    call: Any = None
    answer(
        version=lib.__version__, isa=lib._cpu.isa() if name == "grebe" else "", memory=peak_memory()
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "job" in request:
            chosen = JOBS[request["job"]]
            call = None  # frees the last job's memory first
            if name == "onnxruntime":
                call = onnx_jobs.prepare(chosen.onnx, lib) if chosen.onnx else None
            elif chosen.runs_in(jobs.mode):
                call = chosen.prepare(lib)
            if call and name == "grebe" and chosen.case:
                check_case(chosen.case)
            answer(seconds=calibrate(call) if call else None)
        else:
            warm_up(call)
            answer(seconds=timed(call, request["calls"]), memory=peak_memory())


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def peak_memory() -> float:
    """The most memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def check_case(case: Any) -> None:
    """Raises AssertionError if grebe's results are off."""
    from check import check, expected, run

    inputs = case.draw(np.float32)
    plain, truth = expected(case, inputs, np.float32), expected(case, inputs, np.float64)
    for got, p, t in zip(run(case, inputs), plain, truth, strict=True):
        check(str(case), got, p, t, case.floor)


def timed(call: Any, calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def warm_up(call: Any) -> None:
    """Calls until the threads are awake and on cores of their own."""
    end = time.perf_counter() + WARM
    while time.perf_counter() < end:
        call()


def calibrate(call: Any) -> float:
    """A first estimate of the seconds per call, caches and allocators warm."""
    calls = 1
    while True:
        seconds = timed(call, calls)
        if seconds * calls > SAMPLE / 2:
            return seconds
        calls *= 4


# ---- the parent ----


class Worker:
    """The process in which one library runs, with a number of threads."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        counts = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
        )
        preload = {"LD_PRELOAD": str(JEMALLOC)} if name in JEMALLOC_MODES else {}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **counts, **preload},
        )
        self.facts = self.receive()
        self.memory = 0.0  # MB that the job took beyond the imported library

    def ask(self, **request: Any) -> float | None:
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        values = self.receive()
        self.memory = values.get("memory", 0.0) - self.facts["memory"]
        seconds: float | None = values["seconds"]
        return seconds

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: worker ended, see above")
        values: dict[str, Any] = json.loads(line)
        return values


class Neighbour:
    """A process that keeps one core busy while `working`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.process.send_signal(signal.SIGSTOP)
        atexit.register(self.process.kill)

    @contextmanager
    def working(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGCONT)
        yield
        self.process.send_signal(signal.SIGSTOP)


# Which samples: the library's process, and whether the neighbour was busy.
Samples = dict[tuple[Worker, bool], list[float]]


def measure(workers: list[Worker], index: int, seconds: float, beside: Neighbour | None) -> Samples:
    """Samples of job `index`, taken in turn, for about `seconds` per library."""
    calls = {}
    for worker in workers:
        estimate = worker.ask(job=index)
        if estimate is not None:
            calls[worker] = max(1, round(SAMPLE / estimate))
    samples: Samples = {(w, busy): [] for busy in (False, True)[: 1 + bool(beside)] for w in calls}
    end = time.monotonic() + seconds * len(samples)
    rounds = 0
    while rounds < ROUNDS or time.monotonic() < end:
        for (worker, busy), times in samples.items():
            time.sleep(SETTLE)
            with beside.working() if beside and busy else nullcontext():
                times.append(worker.ask(calls=calls[worker]) or 0.0)
        rounds += 1
    return samples


def peaks(threads: int) -> tuple[float, float]:
    """This machine's float32 GFLOP/s and GB/s by peak.cpp."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/peak"
        flags = ["-std=gnu++20", "-O3", "-march=native", "-fopenmp"]
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, *flags, HERE / "peak.cpp", "-o", program], check=True)
        result = subprocess.run([program, str(threads)], check=True, stdout=subprocess.PIPE)
    flops, bandwidth = map(float, result.stdout.split())
    return flops, bandwidth


def machine() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1].strip() if found else platform.machine()


def rate_of(job: Any, seconds: float, peak: tuple[float, float]) -> tuple[float, str, float]:
    """Rate, its unit and its share of the machine's peak (0 where there is none)."""
    if job.flops:
        return job.flops / seconds / 1e9, "GFLOP/s", job.flops / seconds / 1e9 / peak[0]
    if job.bytes:
        return job.bytes / seconds / 1e9, "GB/s", job.bytes / seconds / 1e9 / peak[1]
    if job.samples:
        return job.samples / seconds, "samples/s", 0.0
    return 1e6 * seconds, "us", 0.0


def rows_of(
    job: Any, samples: Samples, peak: dict[int, tuple[float, float]]
) -> list[dict[str, Any]]:
    """One row per library, number of threads and neighbour.

    `ratio` is its time over grebe's under the same circumstances, the median over the rounds.
    """
    grebe = {(w.threads, busy): times for (w, busy), times in samples.items() if w.name == "grebe"}
    rows = []
    for (worker, busy), times in samples.items():
        low, middle, high = statistics.quantiles(times, n=4)
        ratios = [t / own for t, own in zip(times, grebe[worker.threads, busy], strict=True)]
        rate, unit, share = rate_of(job, middle, peak[worker.threads])
        rows.append(
            {
                "threads": worker.threads,
                "section": job.section,
                "job": job.name,
                "mode": job.mode,
                "library": worker.name,
                "version": worker.facts["version"],
                "seconds": f"{middle:.4g}",
                "spread": f"{(high - low) / middle:.3f}",
                "rate": f"{rate:.4g}",
                "unit": unit,
                "share": f"{share:.3f}" if share else "",
                "ratio": f"{statistics.median(ratios):.3f}",
                "neighbour": int(busy),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    words = [f"{first['section']:9} {first['job']:42} {first['mode']:17}"]
    for row in rows:
        setting = f"/{row['threads']}" + "+" * row["neighbour"]
        share = f" {100 * float(row['share']):.0f}%" if row["share"] else ""
        ratio = f" x{row['ratio']}" if row["library"] != "grebe" else ""
        memory = f" {row['memory']} MB" if row.get("memory") else ""
        words.append(f"{row['library']}{setting} {row['rate']} {row['unit']}{share}{ratio}{memory}")
    print("  ".join(words), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default="", help="only jobs whose 'section job mode' matches")
    parser.add_argument(
        "--against",
        default="torch,numpy",
        help="torch, torch-jemalloc, "
        "torch-channels-last and torch-compile (both with jemalloc), numpy, onnxruntime",
    )
    parser.add_argument("--threads", default=str(os.cpu_count()), help="one number or several: 1,2")
    parser.add_argument("--neighbour", action="store_true", help="also beside a busy process")
    parser.add_argument("--fresh", action="store_true", help="new processes for each job")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per job and library")
    parser.add_argument("--out", type=Path, help="CSV file, appended to")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    others = [name for name in arguments.against.split(",") if name]
    if set(JEMALLOC_MODES) & set(others) and not JEMALLOC.exists():
        sys.exit(f"{', '.join(JEMALLOC_MODES)} need {JEMALLOC} (Debian: libjemalloc2)")
    run(arguments, ["grebe", *others], [int(n) for n in arguments.threads.split(",")])


def run(arguments: argparse.Namespace, libraries: list[str], threads: list[int]) -> None:
    """Measures, shows and writes all jobs asked for."""
    from jobs import JOBS

    peak = {n: peaks(n) for n in threads}
    for n in threads:
        print(f"{machine()}, {n} threads: {peak[n][0]} GFLOP/s, {peak[n][1]} GB/s")
    beside = Neighbour() if arguments.neighbour else None
    workers: list[Worker] = []
    for index, job in enumerate(JOBS):
        if not re.search(arguments.ops, f"{job.section} {job.name} {job.mode}"):
            continue
        if not workers:
            workers = [Worker(name, n) for n in threads for name in libraries]
        samples = measure(workers, index, arguments.seconds, beside)
        common = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "isa": workers[0].facts["isa"],
        }
        rows = [{**common, **row} for row in rows_of(job, samples, peak)]
        if arguments.fresh:
            for row, (worker, _) in zip(rows, samples, strict=True):
                row["memory"] = f"{worker.memory:.0f}"
            while workers:
                workers.pop().stop()
        show(rows)
        if arguments.out:
            write(arguments.out, rows)


def write(path: Path, table: list[dict[str, Any]]) -> None:
    """Appends `table` to the CSV file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS.split())
        if fresh:
            writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
