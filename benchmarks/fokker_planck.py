"""The Fokker–Planck equation in a rotated double well, by thalweg and its peers: error against processor time.

The first part of `make bench-grid`; the problem is in `benchmarks/_rotated_well.py`, the solvers in
`benchmarks/_grid_peers.py`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _harness as harness
from benchmarks import _rotated_well as well
from benchmarks._grid_peers import OURS, SOLVERS

# What every solver should reach, and where it is asked to.
AIM, SIZE = 2.5e-4, 256

# Solver, cells along an axis, and setting. The steps of the peers are the fewest with which they come below the aim at
# 256², found by trial; at other sizes those with which the error in time is about that in space.
_EULER = {"method": "implicit Euler", "num_steps": 640}
RUNS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    *((OURS, n, {}) for n in (64, 128, 256)),
    *(("SciPy loop", n, {"num_steps": steps}) for n, steps in ((64, 10), (128, 20), (256, 20), (256, 40))),
    *(("fplanck", n, {}) for n in (64, 128, 256)),
    ("py-pde", 256, {}),
    *(("FiPy", n, {"num_steps": steps}) for n, steps in ((64, 10), (128, 15), (256, 20))),
    ("thalweg, FiniteVolume", 256, {}),
    ("SciPy loop", 256, _EULER),
    (OURS, 512, {}),
    ("SciPy loop", 512, {"num_steps": 60}),
    (OURS, 1024, {}),
    ("SciPy loop", 1024, {"num_steps": 80}),
)
SMALLEST = tuple(run for run in RUNS if run[1] == 64)


def key(solver: str, n: int, setting: Mapping[str, Any]) -> str:
    """The name of a run in the raw data."""
    words = [str(value) for value in setting.values()]
    return " ".join([solver, f"{n}²", *words])


def measure(solver: str, n: int, setting: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """One solver at one size: seconds of the first call and of later ones, the error, and what it keeps."""
    cells = well.cells(n)
    started = time.process_time()
    call = SOLVERS[solver](cells, **setting)
    imported = time.process_time() - started
    stepping = []

    def run():
        outcome = call(cells.start)
        if outcome.stepping is not None:
            stepping.append(outcome.stepping)
        return outcome

    outcome, times = harness.timed(run, report)
    report("run")
    still = call(cells.gibbs).values
    return {
        "solver": solver,
        "n": n,
        "setting": dict(setting),
        "import": imported,
        "first": times["compile"] + times["cpu"],
        **times,
        # The first one may hold a compilation.
        "stepping": min(stepping[1:] or stepping, default=None),
        "error": cells.error(outcome.values),
        "mass": cells.mass_error(outcome.values),
        "least": float(np.min(outcome.values)),
        "drift": cells.drift(still),
    }


def of(rows: Mapping[str, dict], solver: str, n: int = SIZE) -> list[dict]:
    """The runs of a solver at a size that came to an end."""
    return [row for row in rows.values() if row.get("solver") == solver and row["n"] == n and "error" in row]


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _words(row: Mapping[str, Any]) -> str:
    setting = row["setting"]
    name = row["solver"]
    if name == OURS:
        return "**thalweg**"
    if name == "SciPy loop":
        return f"SciPy loop, {setting.get('method', 'Crank–Nicolson')}, {setting['num_steps']} steps"
    if name == "FiPy":
        return f"FiPy, {setting['num_steps']} and {2 * setting['num_steps']} steps, extrapolated"
    return name


def report(rows: Mapping[str, dict]) -> list[str]:
    """The section of the tables."""
    lines = [
        "## Fokker–Planck in a rotated double well",
        "",
        f"To time 1, processor seconds of one thread. The L¹ error of {AIM:.1e} is asked of everybody at 256². `later` "
        "calls make everything anew but what is compiled; `stepping` is the part of it that is not set-up, where a "
        "solver says; `drift` is the L¹ distance to which the Gibbs state goes in time 1.",
        "",
    ]
    header = ["", "cells", "first call", "later calls", "stepping", "L¹ error", "mass error", "min q", "Gibbs drift"]
    table = []
    for row in sorted(rows.values(), key=lambda row: (row.get("n", 0) != SIZE, row.get("cpu", math.inf))):
        if "failed" in row:
            table.append([f"{row['solver']}: {row['failed']}", f"{row['n']}²", *["–"] * 7])
            continue
        numbers = [_seconds(row["first"]), _seconds(row["cpu"]), _seconds(row["stepping"])]
        kept = [_small(row[name]) for name in ("error", "mass", "least", "drift")]
        table.append([_words(row), f"{row['n']}²", *numbers, *kept])
    return [*lines, *harness.table(header, table), ""]


def targets(rows: Mapping[str, dict]) -> Iterator[tuple[str, str, str, bool]]:
    """What was aimed at, what was measured, and whether it was met."""
    for mine in of(rows, OURS):
        yield (f"well 256²: L¹ error of {OURS}", f"≤ {AIM:.1e}", f"{mine['error']:.1e}", mine["error"] <= AIM)
        yield ("well 256²: seconds with set-up", "≤ 0.5", f"{mine['cpu']:.2f}", mine["cpu"] <= 0.5)
        yield ("well 256²: Gibbs drift", "≤ 1e-12", f"{mine['drift']:.1e}", mine["drift"] <= 1e-12)
        peers = (("py-pde", "stepping", 5), ("py-pde", "first", 30), ("FiPy", "cpu", 30), ("fplanck", "cpu", 30))
        for peer, which, factor in peers:
            for row in of(rows, peer):
                ratio = row[which] / mine["cpu"]
                what = {"stepping": "its stepping alone", "first": "its first call", "cpu": "a later call"}[which]
                yield (f"well 256²: faster than {peer}, {what}", f"≥ {factor} ×", f"{ratio:.3g} ×", ratio >= factor)
        for row in of(rows, "SciPy loop"):
            if row["setting"] == {"num_steps": 20}:
                ratio = row["cpu"] / mine["cpu"]
                yield ("well 256²: faster than a SciPy loop", "–", f"{ratio:.2g} ×", ratio >= 1)
    for large in of(rows, OURS, 1024):
        yield ("well 1024²: seconds with set-up", "≤ 10", f"{large['cpu']:.1f}", large["cpu"] <= 10)


def figure(rows: Mapping[str, dict], file: Path) -> None:
    """Error against processor seconds of a later call, all solvers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plot, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    names = {"SciPy loop": "SciPy loop (Crank–Nicolson)", "FiPy": "FiPy (extrapolated)"}
    for solver, marker in zip(SOLVERS, "osDv^P", strict=True):
        mine = [row for row in rows.values() if row.get("solver") == solver and "error" in row]
        mine = sorted((row for row in mine if "method" not in row["setting"]), key=lambda row: row["cpu"])
        if not mine:
            continue
        seconds = [row["cpu"] for row in mine]
        label = names.get(solver, solver)
        (line,) = axes.loglog(seconds, [row["error"] for row in mine], marker=marker, lw=1.6, label=label)
        for row in mine:
            axes.annotate(f"{row['n']}²", (row["cpu"], row["error"]), (4, 4), textcoords="offset points", fontsize=7.5)
        if solver == "py-pde":
            (row,) = mine
            axes.loglog([row["stepping"]], [row["error"]], marker=marker, ls="", mfc="none", color=line.get_color())
            place = (row["stepping"], row["error"])
            axes.annotate("stepping alone", place, (-4, 7), textcoords="offset points", fontsize=7.5, ha="right")
    axes.margins(x=0.08)
    axes.axhline(AIM, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.set(xlabel="processor seconds of a later call, set-up included", ylabel="L¹ error at time 1")
    axes.set_title("Fokker–Planck, double well rotated by 30°", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(True, which="major", color="0.9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(file, dpi=150)
    plt.close(plot)
