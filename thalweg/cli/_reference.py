"""The reference answer beside the reached one, with a verdict that is computed and a tolerance that is stated.

Which answers there are depends on the kind of the named problem; what a problem does not know exactly is not compared.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._path import Path
from thalweg.cli._rows import Row
from thalweg.geometries import Euclidean, Wasserstein
from thalweg.problems import DensityProblem, Moments, RegressionProblem, TargetProblem, VectorProblem
from thalweg.schemes import AbstractScheme, Continuous
from thalweg.states import Gaussian, GridDensity, Parametric, Particles

# Draws from a Gaussian state, to take moments of functions of it.
_NUM_DRAWS = 20_000
_CERTIFIED_DIGITS = 11.0


def reference_rows(problem: Any, path: Path, geometry: Any, scheme: Any, tolerances: dict[str, float]) -> list[Row]:
    """What is known about the answer of a problem, beside the last state of a path; empty if nothing is."""
    state, time = path.final.state, float(path.final.time)
    match problem:
        case VectorProblem():
            exact = problem.exact if isinstance(scheme, Continuous) and isinstance(geometry, Euclidean) else None
            return _vector_rows(problem, state, time, exact, tolerances)
        case DensityProblem() if isinstance(geometry, Wasserstein) and _advances_time(scheme):
            return _density_rows(problem, state, time, path, tolerances)
        case TargetProblem():
            return _target_rows(problem, state, tolerances)
        case RegressionProblem():
            return _regression_rows(problem, state, tolerances)
    return []


def _advances_time(scheme: Any) -> bool:
    return isinstance(scheme, AbstractScheme) and scheme.advances_time


def _close(quantity: str, reached: Any, reference: Any, tolerance: float) -> Row:
    """A row whose error is relative to the size of the reference where that is above one."""
    reached, reference = float(reached), float(reference)
    return Row(quantity, reached, reference, abs(reached - reference) / max(1.0, abs(reference)), tolerance, "absolute")


def _vector_rows(
    problem: VectorProblem, state: Any, time: float, exact: Callable[..., Any] | None, tolerances: dict[str, float]
) -> list[Row]:
    where = problem.minimiser if exact is None else exact(time)
    label = "" if exact is None else f" at t = {time:.4g}"
    rows = [
        _close(
            "energy", problem.fn(state), problem.minimum if exact is None else problem.fn(where), tolerances["energy"]
        )
    ]
    for i, (reached, known) in enumerate(zip(np.asarray(state), np.asarray(where), strict=True)):
        rows.append(_close(f"x[{i + 1}]{label}", reached, known, tolerances["point"]))
    return rows


def _density_rows(
    problem: DensityProblem, state: Any, time: float, path: Path, tolerances: dict[str, float]
) -> list[Row]:
    if isinstance(state, GridDensity):
        return _grid_rows(problem, state, time, path, tolerances)
    if problem.exact_mean is None or problem.exact_covariance is None:
        return []
    if isinstance(state, Gaussian):
        mean, sd = state.mean, jnp.sqrt(jnp.diagonal(state.covariance))
    elif isinstance(state, Particles):
        mean, sd = state.mean(), jnp.sqrt(jnp.diagonal(state.covariance()))
    else:
        return []
    known = Moments(problem.exact_mean(time), jnp.sqrt(jnp.diagonal(problem.exact_covariance(time))))
    return _moment_rows(f"x at t = {time:.4g}", mean, sd, known, tolerances)


def _grid_rows(
    problem: DensityProblem, state: GridDensity, time: float, path: Path, tolerances: dict[str, float]
) -> list[Row]:
    grid, rows = state.grid, []
    if problem.exact is not None:
        known, label = problem.cell_averages(time, grid.shape), f"t = {time:.4g}"
    elif problem.stationary_log_density is not None:
        known, label = problem.stationary_cell_averages(grid.shape), "t = ∞"
        if problem.minimum is not None and "energies" in path.records:
            rows.append(_close("energy", path.energies[-1], problem.minimum, tolerances["energy"]))
    else:
        return []
    reached, known = np.asarray(state.values, float), np.asarray(known, float)
    distance = float(np.sum(np.abs(reached - known)) * grid.cell_volume)
    rows.append(Row(f"L1 error, {label}", distance, 0.0, distance, tolerances["density"], "absolute"))
    if grid.dim == 1:
        centres = np.asarray(grid.axis_centres(0))
        for cell in dict.fromkeys([int(np.argmax(known)), grid.shape[0] // 2]):
            error = abs(reached[cell] - known[cell]) / known.max()
            name = f"density at {centres[cell]:.3f}"
            rows.append(Row(name, reached[cell], known[cell], float(error), tolerances["density"], "relative"))
    return rows


def _target_rows(problem: TargetProblem, state: Any, tolerances: dict[str, float]) -> list[Row]:
    if isinstance(state, Particles):
        points, weights = state.positions, state.weights
    elif isinstance(state, Gaussian):
        points = state.sample(jax.random.key(0), _NUM_DRAWS)
        weights = jnp.full((_NUM_DRAWS,), 1 / _NUM_DRAWS, points.dtype)
    else:
        return []
    values = jax.vmap(problem.constrain)(points)
    rows = []
    for name, known in problem.reference.items():
        mean = jnp.tensordot(weights, values[name], axes=1)
        variance = jnp.tensordot(weights, (values[name] - mean[None]) ** 2, axes=1)
        rows += _moment_rows(name, mean, jnp.sqrt(variance), known, tolerances)
    return rows


def _moment_rows(name: str, mean: Any, sd: Any, known: Moments, tolerances: dict[str, float]) -> list[Row]:
    """Mean and standard deviation of each entry: the mean's error in standard deviations, the other's relative."""
    rows = []
    entries = zip(*(np.ravel(np.asarray(a)) for a in (mean, sd, known.mean, known.sd)), strict=True)
    for i, (m, s, known_m, known_s) in enumerate(entries):
        label = name if np.ndim(known.mean) == 0 else f"{name}[{i + 1}]"
        if known_s > 0:
            error = abs(m - known_m) / known_s
            rows.append(Row(f"{label} mean", float(m), float(known_m), float(error), tolerances["mean"], "sd"))
            error = abs(s / known_s - 1)
            rows.append(Row(f"{label} sd", float(s), float(known_s), float(error), tolerances["sd"], "relative"))
    return rows


def _regression_rows(problem: RegressionProblem, state: Any, tolerances: dict[str, float]) -> list[Row]:
    params = state.params if isinstance(state, Parametric) else state
    if getattr(params, "shape", None) != problem.certified_params.shape:
        return []
    rows = []
    for i, (reached, known) in enumerate(zip(np.asarray(params), np.asarray(problem.certified_params), strict=True)):
        relative = abs(float(reached) - float(known)) / abs(float(known))
        digits = _CERTIFIED_DIGITS if relative == 0 else min(-math.log10(relative), _CERTIFIED_DIGITS)
        rows.append(Row(f"b{i + 1}", float(reached), float(known), digits, tolerances["digits"], "digits"))
    return rows
