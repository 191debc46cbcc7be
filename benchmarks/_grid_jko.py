r"""JKO steps in two dimensions: Barenblatt's profile in closed form, and a porous medium in a potential of many wells.

*Accuracy*: a step keeps Barenblatt's family. In the plane with $m = 2$ and unit mass the profile is $(2/\pi)(1 -
|y|^2)_+$ in units of its radius, and the new radius minimises $(R - R_0)^2/6\tau + 4/(3\pi R^2)$.

*Speed*: $V = \sin 3\pi x\,\sin 3\pi y$, energy $\int V\,dq + 0.05\int q^2$, $\tau = 0.005$, from a disc of radius 0.1
and mass one in the middle of the unit square (Jacobs, Lee, Léger, *The back-and-forth method for Wasserstein gradient
flows*, ESAIM: COCV 27 (2021)).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import thalweg as tw
from benchmarks import _harness as harness

W2 = tw.Wasserstein()
UNIT = ((0.0, 0.0), (1.0, 1.0))
START_TIME, ACCURACY_STEP, SPEED_STEP = 1.57e-4, 9.215e-5, 0.005
COUNTS = (1, 2, 5, 20)
# The C++ of the method's authors: L¹ at 256² after 1 and 20 steps; processor seconds of the first step and of later
# ones at 1024², stopped at an L¹ error of 1e-2.
THEIR_ERRORS = {1: 2.2e-3, 20: 1.26e-2}
THEIR_SECONDS = (86.0, 16.0)
AIMS = {1: 5e-4, 20: 2e-3}
SECONDS = {512: (3.0, 1.0), 1024: (12.0, 4.0)}


def solvers() -> dict[str, Any]:
    """The solvers of a JKO step on a rectangle that this release has."""
    names = ("MongeAmpereJKO", "BackAndForth", "LinearisedJKO")
    return {name: getattr(tw, name) for name in names if hasattr(tw, name)}


def tasks(small: bool) -> dict[str, tuple[Any, ...]]:
    """Names of the rows, and the arguments of `measure`. The linearised distance is compared at one size."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in solvers():
        sizes = {64: 20}
        if name == "MongeAmpereJKO":
            sizes |= {128: 20, 256: 20}
        for n, num_steps in ({32: 2} if small else sizes).items():
            found[f"accuracy {name} {n}²"] = ("accuracy", name, n, num_steps)
        large = {"MongeAmpereJKO": (64, 128, 256, 512, 1024), "BackAndForth": (64, 128, 256)}.get(name, (64,))
        for n in (32,) if small else large:
            found[f"speed {name} {n}²"] = ("speed", name, n, 2 if small else 4)
    return found


def radii(num_steps: int) -> np.ndarray:
    """The radius of the profile at the start and after each step."""
    radius = [START_TIME**0.25 * np.sqrt((1 / (8 * np.pi)) ** 0.5 * 16)]
    for _ in range(num_steps):
        here = radius[-1]
        slope = lambda r, here=here: (r - here) / (3 * ACCURACY_STEP) - 8 / (3 * np.pi * r**3)  # noqa: E731
        radius.append(scipy.optimize.brentq(slope, here, 2 * here, xtol=1e-15))
    return np.array(radius)


def profile(radius: float, n: int) -> Any:
    """Averages over the cells."""

    def density(x):
        return 2 / jnp.pi * jnp.maximum(1 - jnp.sum((x - 0.5) ** 2) / radius**2, 0) / radius**2

    return tw.problems.cell_averages(density, *UNIT, (n, n))


def _accuracy(name: str, n: int, num_steps: int) -> dict[str, Any]:
    grid, exact = tw.Grid(*UNIT, (n, n)), radii(num_steps)
    start = tw.GridDensity.normalised(profile(exact[0], n), grid)
    scheme = tw.Proximal(ACCURACY_STEP, solver=solvers()[name]())
    begun = time.process_time()
    path = tw.flow(tw.PorousMedium(2.0), start, geometry=W2, scheme=scheme, num_steps=num_steps, throw=False)
    found = np.asarray(path.states.values)
    cpu = time.process_time() - begun
    # A run that stopped has the steps before.
    reached = num_steps if path.result == tw.RESULTS.successful else len(path) - 1
    counts = [count for count in COUNTS if count <= reached]
    errors = [float(np.sum(np.abs(found[k] - profile(exact[k], n))) * grid.cell_volume) for k in counts]
    return {"solver": name, "n": n, "steps": counts, "errors": errors, "cpu": cpu, **_kept(path)}


def _speed(name: str, n: int, num_steps: int, report: Callable[[str], None]) -> dict[str, Any]:
    grid = tw.Grid(*UNIT, (n, n))
    inside = lambda x: jnp.where(jnp.sum((x - 0.5) ** 2) <= 0.1**2, 1.0, 0.0)  # noqa: E731
    start = tw.GridDensity.normalised(tw.problems.cell_averages(inside, *UNIT, (n, n)), grid)
    well = tw.PotentialEnergy(lambda x: jnp.sin(3 * jnp.pi * x[0]) * jnp.sin(3 * jnp.pi * x[1]))
    energy, scheme = well + 0.05 * tw.PorousMedium(2.0), tw.Proximal(SPEED_STEP, solver=solvers()[name]())

    def run(count: int) -> tuple[Any, float]:
        begun = time.process_time()
        path = tw.flow(energy, start, geometry=W2, scheme=scheme, num_steps=count, throw=False)
        jax.block_until_ready(path.final.state)
        return path, time.process_time() - begun

    _, compiling = run(1)
    report("run")
    _, first = run(1)
    report("run")
    # Steps from warm starts, less the first one.
    path, several = run(num_steps)
    later = (several - first) / (num_steps - 1)
    # The step that did not converge, none if all did.
    stopped = None if path.result == tw.RESULTS.successful else len(path)
    found = {"solver": name, "n": n, "cpu": first, "later": later, "compile": compiling - first, "stopped": stopped}
    return found | _kept(path)


def _kept(path: Any) -> dict[str, Any]:
    values = np.asarray(path.states.values).reshape(len(path), -1)
    masses = values.sum(axis=1)
    residual = path.measurements.get("residual")
    found = {"mass": float(np.max(np.abs(masses / masses[0] - 1))), "least": float(values.min())}
    return found | {"residual": None if residual is None else float(np.max(np.asarray(residual)))}


def measure(kind: str, name: str, n: int, num_steps: int, report: Callable[[str], None]) -> dict[str, Any]:
    """One solver at one size."""
    return _accuracy(name, n, num_steps) if kind == "accuracy" else _speed(name, n, num_steps, report)


def report(rows: Mapping[str, dict]) -> list[str]:
    """The section of the tables."""
    lines = ["## JKO steps in two dimensions", "", "Barenblatt's profile: L¹ distance to the exact steps, in cell"]
    lines[-1] += " averages. The C++ of the back-and-forth method has 2.2e-3 after 1 step and 1.26e-2 after 20 at 256²."
    table = []
    for name, row in rows.items():
        if "failed" in row:
            table.append([f"{name}: {row['failed']}", *["–"] * 7])
        elif "errors" in row:
            errors = [f"{error:.1e}" for error in row["errors"]]
            errors += ["–"] * (len(COUNTS) - len(errors))
            residual = "–" if row["residual"] is None else f"{row['residual']:.1e}"
            table.append([row["solver"], f"{row['n']}²", *errors, f"{row['mass']:.1e}", residual])
    header = ["", "cells", *(f"{k} steps" for k in COUNTS), "mass error", "residual"]
    lines += [
        "",
        *harness.table(header, table),
        "",
        "The porous medium in many wells, processor seconds of one thread.",
    ]
    lines[-1] += " The C++ takes 86 s for the first step and 16 s for later ones at 1024², to an L¹ error of 1e-2."
    table = []
    for row in rows.values():
        if "later" in row:
            residual = "–" if row["residual"] is None else f"{row['residual']:.1e}"
            seconds = [f"{row[key]:.2g}" for key in ("compile", "cpu", "later")]
            if row.get("stopped") is not None:
                seconds[1:] = [f"step {row['stopped']} does not converge", "–"]
            table.append([row["solver"], f"{row['n']}²", *seconds, f"{row['mass']:.1e}", residual])
    header = ["", "cells", "compilation", "first step", "later steps", "mass error", "residual"]
    return [*lines, "", *harness.table(header, table), ""]


def targets(rows: Mapping[str, dict]) -> Iterator[tuple[str, str, str, bool]]:
    """What was aimed at, what was measured, and whether it was met: of the true step."""
    for name, row in rows.items():
        if row.get("solver") == "LinearisedJKO":
            continue
        if "failed" in row:
            kind, solver, size = name.split()
            if solver == "MongeAmpereJKO":
                n = int(size.rstrip("²"))
                for what, aim in _aims(kind, n):
                    yield (what, aim, str(row["failed"]), False)
            continue
        for k, error in zip(row.get("steps", ()), row.get("errors", ()), strict=True):
            if row["n"] == 256 and k in AIMS:
                aim = AIMS[k]
                yield (f"JKO 256²: L¹ error after {k} steps", f"≤ {aim:.0e}", f"{error:.1e}", error <= aim)
        reached = set(row.get("steps", ()))
        if "errors" in row and row["n"] == 256:
            for k in AIMS.keys() - reached:
                yield (f"JKO 256²: L¹ error after {k} steps", f"≤ {AIMS[k]:.0e}", "does not converge", False)
        if "later" in row and row["n"] in SECONDS:
            residual = row["residual"] if row["residual"] is not None else float("inf")
            found = (row["cpu"], row["later"], residual, row["mass"])
            limits = (*SECONDS[row["n"]], 1e-6, 1e-13)
            for (what, aim), value, limit in zip(_aims("speed", row["n"]), found, limits, strict=True):
                if row.get("stopped") is None:
                    yield (what, aim, f"{value:.2g}", value <= limit)
                else:
                    yield (what, aim, f"step {row['stopped']} does not converge", False)


def _aims(kind: str, n: int) -> list[tuple[str, str]]:
    """What is aimed at in a row, and the bounds."""
    if kind == "accuracy":
        return [(f"JKO {n}²: L¹ error after {k} steps", f"≤ {aim:.0e}") for k, aim in AIMS.items()] if n == 256 else []
    if n not in SECONDS:
        return []
    seconds = zip(("first", "later"), SECONDS[n], strict=True)
    aims = [(f"JKO {n}²: seconds of the {word} step", f"≤ {aim:g}") for word, aim in seconds]
    return [*aims, (f"JKO {n}²: optimality residual", "≤ 1e-6"), (f"JKO {n}²: mass error", "≤ 1e-13")]
