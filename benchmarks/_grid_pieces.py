"""Single operations on grids whose cost was aimed at: a JKO step on the line, a c-transform, an implicit step in 3D."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import thalweg as tw
from benchmarks import _harness as harness
from thalweg.transport._c_transform import c_transform


def jko_on_the_line(small: bool) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]], int]:
    """One exact step of a Gaussian, closed form: with V = λ(x − a)²/2 and temperature T the mean goes to (m₀ +
    τλa)/(1 + τλ) and the deviation to (s₀ + √(s₀² + 4τT(1 + τλ)))/(2(1 + τλ)).
    """
    n = 1_000 if small else 10_000
    rate, centre, temperature, mean, deviation, tau = 1.5, 0.3, 0.8, 1.0, 0.5, 0.5
    grid = tw.Grid(-7.0, 7.0, n)
    # Values at the centres and sums over them: what the step is of fourth order in.
    places = np.asarray(grid.centres[:, 0])
    start = tw.GridDensity.from_function(lambda x: jax.scipy.stats.norm.pdf(x[0], mean, deviation), grid)
    well = tw.PotentialEnergy(lambda x: 0.5 * rate * jnp.sum((x - centre) ** 2))
    energy = well + temperature * tw.Entropy()
    exact = (mean + tau * rate * centre) / (1 + tau * rate)
    root = np.sqrt(deviation**2 + 4 * temperature * tau * (1 + tau * rate))
    wide = (deviation + root) / (2 * (1 + tau * rate))

    def call():
        path = tw.flow(energy, start, geometry=tw.Wasserstein(), scheme=tw.Proximal(tau), num_steps=1)
        return jax.block_until_ready(path.final.state)

    def judge(state):
        values = np.asarray(state.values) * grid.cell_volume
        found = np.sum(values * places)
        off_mean = abs(found / exact - 1)
        off_width = abs(np.sqrt(np.sum(values * (places - found) ** 2)) / wide - 1)
        return {"cells": n, "error": float(max(off_mean, off_width)), "mass": abs(float(state.mass) - 1)}

    return call, judge, n


def transform(small: bool) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]], int]:
    """The exact c-transform of a function with many wells."""
    n = 128 if small else 1024
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (n, n))
    x = grid.centres
    values = jnp.sin(3 * jnp.pi * x[..., 0]) * jnp.sin(3 * jnp.pi * x[..., 1]) + 0.1 * jnp.cos(40 * x[..., 0])
    tau = 0.01

    def call():
        return jax.block_until_ready(c_transform(values, grid, tau))

    def judge(found):
        # Against the minimum over all cells, at some of them.
        flat, points = np.asarray(values).ravel(), np.asarray(x).reshape(-1, 2)
        error = 0.0
        for i in np.linspace(0, n * n - 1, 41, dtype=int):
            least = np.min(np.sum((points - points[i]) ** 2, axis=1) / (2 * tau) + flat)
            error = max(error, abs(least - float(found.values.ravel()[i])))
        return {"cells": n * n, "error": error}

    return call, judge, n


def implicit_in_3d(small: bool) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]], int]:
    """One step of implicit Euler of Barenblatt's profile for m = 2 in three dimensions."""
    n = 24 if small else 128
    problem = tw.problems.barenblatt(2.0, 3)
    start = problem.initial_state(n)
    # A tenth of the age of the profile.
    tau = 0.1 * 0.01
    solver = tw.ImplicitFiniteVolume(tolerance=None)

    def call():
        path = tw.flow(
            problem.energy(), start, geometry=tw.Wasserstein(), scheme=tw.Continuous(tau, solver=solver), num_steps=1
        )
        return jax.block_until_ready(path)

    def judge(path):
        q = path.final.state
        exact = problem.cell_averages(tau, n)
        drop = float(path.energies[1] - path.energies[0])
        counts = {name: float(path.measurements[name][-1]) for name in ("newton_steps", "linear_steps")}
        error = float(jnp.sum(jnp.abs(q.values - exact)) * q.grid.cell_volume)
        found = {"cells": n**3, "error": error, "mass": abs(float(q.mass / start.mass) - 1)}
        return found | {"least": float(jnp.min(q.values)), "energy change": drop, **counts}

    return call, judge, n


PIECES = {
    "JKO step of a Gaussian on the line": jko_on_the_line,
    "c-transform in 2D": transform,
    "implicit step of the porous medium in 3D": implicit_in_3d,
}
# Seconds of processor time, and the error where one is stated.
AIMS = {
    "JKO step of a Gaussian on the line": (0.1, 1e-8),
    "c-transform in 2D": (0.1, 1e-12),
    "implicit step of the porous medium in 3D": (30.0, None),
}


def measure(name: str, small: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of the first call and of later ones, and how good the answer is."""
    call, judge, _ = PIECES[name](small)
    answer, times = harness.timed(call, report)
    return {**times, "first": times["compile"] + times["cpu"], **judge(answer)}


def report(rows: Mapping[str, dict]) -> list[str]:
    """The section of the tables."""
    table = []
    for name, row in rows.items():
        if "failed" in row:
            table.append([f"{name}: {row['failed']}", *["–"] * 5])
            continue
        mass = f"{row['mass']:.1e}" if "mass" in row else "–"
        table.append([name, row["cells"], f"{row['first']:.2g}", f"{row['cpu']:.2g}", f"{row['error']:.1e}", mass])
    header = ["", "cells", "first call, s", "later calls, s", "error", "mass error"]
    lines = ["## Single operations", "", "Processor seconds of one thread. The error is, in this order: of mean and"]
    lines[-1] += " deviation, relative; of the values against all cells, at 41 cells; in L¹ against Barenblatt's"
    lines[-1] += " profile, which an implicit step of first order misses by what it is."
    return [*lines, "", *harness.table(header, table), ""]


def targets(rows: Mapping[str, dict]) -> Iterator[tuple[str, str, str, bool]]:
    """What was aimed at, what was measured, and whether it was met."""
    for name, (seconds, error) in AIMS.items():
        row = rows.get(name)
        if row is None or "failed" in row:
            continue
        yield (f"{name}: seconds", f"≤ {seconds:g}", f"{row['cpu']:.2g}", row["cpu"] <= seconds)
        if error is not None:
            yield (f"{name}: error", f"≤ {error:.0e}", f"{row['error']:.1e}", row["error"] <= error)
