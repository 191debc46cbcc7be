"""Measuring fairly: one worker process with a wall limit, a warm-up apart from the repeated runs, and one rule for
what counts as solved.
"""

import dataclasses
import importlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

# What a worker starts with. Every solver gets one thread: the machines on which this runs share their cores, and the
# problems are small.
WORKER_ENVIRONMENT = {
    "JAX_ENABLE_X64": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    # What XLA's pool of threads on a CPU is sized by; the flag above does not reach it.
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}

# Runs after the warm-up: at least three, and as many as fit into a tenth of a second, for clocks are coarse.
# A run longer than _LONG is not repeated.
_MIN_RUNS, _MAX_RUNS, _RUN_SECONDS, _LONG = 3, 15, 0.1, 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What ends a measurement: `first` seconds for the first call, which compiles; `run` seconds for each later one."""

    first: float = 90.0
    run: float = 20.0


class Answer:
    """What a solver hands back: the point, its count of iterations (`None` if it keeps none) and its own last word."""

    def __init__(self, point: Any, num_steps: int | None = None, message: str = ""):
        self.point, self.num_steps, self.message = point, num_steps, message


def timed(call: Callable[[], Answer], report: Callable[[str], None] = lambda phase: None) -> tuple[Answer, dict]:
    """Call once to compile, then repeatedly.

    **Returns:** the last answer, and `seconds` (the median of the later calls), `cpu` (the same in processor time,
    which other users of the machine disturb less), `compile` (the first call less that median, in processor time) and
    `runs`.
    """
    started = time.process_time()
    answer = call()
    first = time.process_time() - started
    seconds: list[float] = []
    cpu: list[float] = []
    while len(seconds) < _MIN_RUNS or (sum(seconds) < _RUN_SECONDS and len(seconds) < _MAX_RUNS):
        report("run")
        started, started_cpu = time.perf_counter(), time.process_time()
        answer = call()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
        if cpu[-1] > _LONG:
            break
    median_cpu = statistics.median(cpu)
    times = {"seconds": statistics.median(seconds), "cpu": median_cpu, "compile": max(0.0, first - median_cpu)}
    return answer, times | {"runs": len(seconds)}


def is_solved(value: float, best: float, start: float, tolerance: float = 1e-6) -> bool:
    """Whether f ≤ best + tolerance·(f₀ − best); a value that is not finite never is."""
    if not (math.isfinite(value) and math.isfinite(best) and math.isfinite(start)):
        return False
    return value <= best + tolerance * max(start - best, 0.0)


def best_value(values: Iterable[float | None]) -> float:
    """The least finite value that any solver reached; infinity if none did."""
    return min((value for value in values if value is not None and math.isfinite(value)), default=math.inf)


PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "optimistix", "optax", "lineax", "sif2jax")


def environment(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions and the machine, without names."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"cpus": str(os.cpu_count()), "machine": platform.machine()}


def _serve(connection: Any, module: str) -> None:
    warnings.simplefilter("ignore")
    measure = importlib.import_module(module).measure
    connection.send(("ready", None))
    while (task := connection.recv()) is not None:
        try:
            connection.send(("done", measure(*task, lambda phase: connection.send((phase, None)))))
        except Exception as error:  # A solver that fails on a problem is a result, and the next one must still run.
            connection.send(("done", {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}))


class Worker:
    """A process that measures one task after another, and is replaced when a task exceeds its limit.

    `module`: the dotted name of a module with a function `measure(*task, report) -> dict`; `report("run")` restarts
    the clock for the next run.
    """

    def __init__(self, module: str, limits: Limits | None = None):
        self.module, self.limits = module, limits or Limits()
        self.process: Any = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.module), daemon=True)
        before = dict(os.environ)
        os.environ.update(WORKER_ENVIRONMENT)
        try:
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        # A worker that dies closes its end only if nobody here holds a copy of it.
        theirs.close()
        self.connection.recv()

    def measure(self, *task: Any) -> dict:
        """The worker's answer, or `{"error": ...}` where a limit was exceeded or the process died."""
        if self.process is None:
            self._start()
        self.connection.send(task)
        phase, limit = "compile", self.limits.first
        while True:
            if not self.connection.poll(limit):
                self.close(at_once=True)
                what = "the first call" if phase == "compile" else "a run after compilation"
                return {"error": f"{what} took longer than {limit:g} s"}
            try:
                phase, answer = self.connection.recv()
            except EOFError:
                self.close(at_once=True)
                return {"error": "the process died"}
            if phase == "done":
                return answer
            limit = self.limits.run

    def close(self, at_once: bool = False) -> None:
        """End the process; it is started again when something is asked of it."""
        if self.process is None:
            return
        if at_once:
            self.process.kill()
        else:
            self.connection.send(None)
        self.process.join()
        self.connection.close()
        self.process = None


def load(file: Path) -> dict:
    """A table's raw data, or an empty dictionary."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def save(file: Path, data: Mapping[str, Any]) -> None:
    """Write raw data, one line for each problem, so that a change shows as a few lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head = [f"  {json.dumps(key)}: {json.dumps(data[key])}," for key in data if key != "problems"]
    rows = [f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(data["problems"].items())]
    text = "\n".join(["{", *head, '  "problems": {', ",\n".join(rows), "  }", "}"]) + "\n"
    file.with_suffix(".new").write_text(text, encoding="utf-8")
    file.with_suffix(".new").replace(file)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " --: |" * (len(header) - 1)]
    return lines + ["| " + " | ".join(str(entry) for entry in row) + " |" for row in rows]


def milliseconds(seconds: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if seconds is None or not math.isfinite(seconds) else f"{1e3 * seconds:.3g}"


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    values = list(values)
    return statistics.median(values) if values else math.nan


def described(found: Mapping[str, str]) -> str:
    """The environment as one line."""
    return ", ".join(f"{name} {value}" for name, value in found.items())
