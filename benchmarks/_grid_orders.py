"""The order of the integrators in space and in time, on closed forms."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import thalweg as tw
from benchmarks import _harness as harness

W2 = tw.Wasserstein()


def _distance(values: Any, exact: Any, grid: tw.Grid) -> float:
    return float(jnp.sum(jnp.abs(values - exact)) * grid.cell_volume)


def _in_space(problem: Any, final_time: float, solver: Any = None) -> Callable[[int], tuple[float, float]]:
    """Cells along an axis to the error against exact cell averages; the width of a cell is what is refined."""

    def at(n: int) -> tuple[float, float]:
        start = tw.GridDensity.normalised(problem.cell_averages(0.0, n), problem.grid(n))
        scheme = tw.Continuous(final_time, solver=solver)
        path = tw.flow(problem.energy(), start, geometry=W2, scheme=scheme, final_time=final_time)
        exact = problem.cell_averages(final_time, n)
        return start.grid.spacing[0], _distance(path.final.state.values, exact, start.grid)

    return at


def _in_time(
    problem: Any, n: int, final_time: float, scheme: Callable[[float], Any], exact: Any = None
) -> Callable[[int], tuple[float, float]]:
    """Steps to the error on one grid, against `exact` (default: the exact integrator on the same grid)."""
    start = tw.GridDensity.normalised(problem.cell_averages(0.0, n), problem.grid(n))
    if exact is None:
        finest = tw.flow(problem.energy(), start, geometry=W2, scheme=tw.Continuous(final_time), final_time=final_time)
        exact = finest.final.state.values

    def at(num_steps: int) -> tuple[float, float]:
        tau = final_time / num_steps
        path = tw.flow(problem.energy(), start, geometry=W2, scheme=scheme(tau), num_steps=num_steps)
        # An adaptive solver takes the steps that its tolerance asks for.
        substeps = path.measurements.get("substeps")
        taken = num_steps if substeps is None else max(num_steps, float(np.sum(np.asarray(substeps))))
        return final_time / taken, _distance(path.final.state.values, exact, start.grid)

    return at


def _by_tolerance(problem: Any, n: int, final_time: float) -> Callable[[int], tuple[float, float]]:
    """`FiniteVolume` chooses its substeps: k asks for a tolerance of 4^{-k}·10^{-2}, so half the substep."""

    def at(k: int) -> tuple[float, float]:
        solver = tw.FiniteVolume(tolerance=1e-2 / 4**k)
        return _in_time(problem, n, final_time, lambda tau: tw.Continuous(tau, solver=solver))(1)

    return at


def _implicit(tau: float) -> Any:
    return tw.Continuous(tau, solver=tw.ImplicitFiniteVolume(tolerance=None))


class _Relaxing:
    """N(1, ½²) on [−6, 6] relaxing in V = ¾(x − 0.3)² at temperature 0.8, closed form."""

    rate, centre, temperature, mean, deviation = 1.5, 0.3, 0.8, 1.0, 0.5

    def energy(self) -> Any:
        well = tw.PotentialEnergy(lambda x: 0.5 * self.rate * jnp.sum((x - self.centre) ** 2))
        return well + self.temperature * tw.Entropy()

    def grid(self, n: int) -> tw.Grid:
        return tw.Grid(-6.0, 6.0, n)

    def cell_averages(self, time: float, n: int) -> Any:
        left = np.exp(-self.rate * time)
        final = self.temperature / self.rate
        mean = self.centre + left * (self.mean - self.centre)
        deviation = np.sqrt(final + left**2 * (self.deviation**2 - final))
        edges = jnp.linspace(-6.0, 6.0, n + 1)
        return jnp.diff(jax.scipy.stats.norm.cdf(edges, mean, deviation)) / (12 / n)


def _ornstein() -> Any:
    return _Relaxing()


# Name, what is refined, the stated order, how to ask, the small sizes and the whole ones.
TABLES: dict[str, tuple[str, str, Callable[[], Callable[[int], tuple[float, float]]], tuple, tuple]] = {
    "Ornstein–Uhlenbeck, 2D, default": (
        "space",
        "2",
        lambda: _in_space(tw.problems.ornstein_uhlenbeck(dim=2), 0.3),
        (16, 32),
        (32, 64, 128, 256),
    ),
    "heat between walls, 2D, default": (
        "space",
        "2",
        lambda: _in_space(tw.problems.heat_modes((2, 1)), 0.01),
        (16, 32),
        (32, 64, 128, 256),
    ),
    "quadratic interaction, 1D, default": (
        "space",
        "2",
        lambda: _in_space(tw.problems.quadratic_interaction(), 0.5, tw.FiniteVolume(tolerance=1e-7)),
        (20, 40),
        (20, 40, 80, 160),
    ),
    "Barenblatt, 2D, default": (
        "space",
        "1 to 2 (front)",
        lambda: _in_space(tw.problems.barenblatt(2.0, 2), 0.05),
        (24, 48),
        (24, 48, 96, 192),
    ),
    "Ornstein–Uhlenbeck, 1D, `FiniteVolume`": (
        "time",
        "2",
        lambda: _by_tolerance(_ornstein(), 80, 0.5),
        (0, 1),
        (0, 1, 2, 3, 4),
    ),
    "Ornstein–Uhlenbeck, 1D, `ImplicitFiniteVolume(tolerance=None)`": (
        "time",
        "1",
        lambda: _in_time(_ornstein(), 80, 0.5, _implicit),
        (4, 8),
        (10, 20, 40, 80),
    ),
    "Ornstein–Uhlenbeck, 1D, JKO steps": (
        "time",
        "1",
        lambda: _in_time(_ornstein(), 320, 0.5, lambda tau: tw.Proximal(tau)),
        (4, 8),
        (10, 20, 40, 80),
    ),
}


def measure(name: str, small: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """The width or the time step, and the error, size by size."""
    _, _, prepare, few, many = TABLES[name]
    started = time.process_time()
    at = prepare()
    found = []
    for size in few if small else many:
        found.append(at(size))
        report("run")
    return {
        "sizes": [pair[0] for pair in found],
        "errors": [pair[1] for pair in found],
        "cpu": time.process_time() - started,
    }


def orders(row: Mapping[str, list[float]]) -> list[float]:
    """log(e₁/e₂)/log(h₁/h₂) between neighbours."""
    sizes, errors = np.asarray(row["sizes"]), np.asarray(row["errors"])
    return list(np.log(errors[:-1] / errors[1:]) / np.log(sizes[:-1] / sizes[1:]))


def report(rows: Mapping[str, dict]) -> list[str]:
    """The section of the tables."""
    lines = ["## Orders", "", "L¹ errors against closed forms in cell averages as the cells are refined (space), and"]
    lines[-1] += " against the exact solution on the same grid as the time steps are (time). The number in brackets is"
    lines[-1] += " the order between neighbours."
    for kind, unit in (("space", "h"), ("time", "τ")):
        of_kind = {name: row for name, row in rows.items() if TABLES[name][0] == kind}
        if not of_kind:
            continue
        table = []
        for name, row in of_kind.items():
            if "failed" in row:
                table.append([name, TABLES[name][1], row["failed"]])
                continue
            found = ["", *(f" ({order:.2f})" for order in orders(row))]
            cells = [
                f"{unit} = {size:.2g}: {error:.1e}{order}"
                for size, error, order in zip(row["sizes"], row["errors"], found, strict=True)
            ]
            table.append([name, TABLES[name][1], "; ".join(cells)])
        lines += ["", *harness.table([kind, "stated", "errors"], table)]
    return [*lines, ""]


def targets(rows: Mapping[str, dict]) -> Iterator[tuple[str, str, str, bool]]:
    """What was aimed at, what was measured, and whether it was met."""
    for name, row in rows.items():
        kind, stated, *_ = TABLES[name]
        if "failed" in row or not stated.isdigit():
            continue
        last = orders(row)[-1]
        yield (f"order in {kind}: {name}", stated, f"{last:.2f}", last >= int(stated) - 0.15)
