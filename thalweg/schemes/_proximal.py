"""Proximal steps: the sentence itself."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._result import RESULTS
from thalweg._types import PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry, AbstractMetric
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._grid_integrator import resolution_of
from thalweg.schemes._rounding import value_and_size
from thalweg.schemes.proximal_solvers import AbstractJKOSolver, LinearisedJKO, LineJKO, Newton, QuasiNewton
from thalweg.states import AbstractState, GridDensity, moving

# Beyond this many unknowns a dense Hessian costs more than a quasi-Newton method's extra iterations.
_LARGEST_DENSE = 200


class Proximal(AbstractScheme):
    r"""$x^+ = \operatorname{argmin}_y \dfrac{D(y, x)}{2\alpha} + F(y)$: implicit Euler, the KL-proximal step, the
    JKO step when $D = W_2^2$.

    Every step is certified: $F(x^+) + D(x^+, x)/2\alpha \le F(x)$, but for some rounding units of the sizes of the
    terms, whatever the units of the energy; else the run stops with a named result. Where F is not convex the minimiser
    is a local one, found from $x$.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time, as large as wanted; `solver`: `None` (chosen before
    the run and named in `path.stats`), `tw.Newton()`, `tw.QuasiNewton()`, or `tw.LineJKO()` for grid densities on
    the line.

    First order in time. **Source:** Su (2023), the sections on the penalised view and on the JKO scheme; Jordan,
    Kinderlehrer, Otto (1998).
    """

    step_size: ScalarLike
    solver: Any = None

    distance_label = "the squared distance of the step itself (for densities on grids, of path.stats['distance'])"
    takes_ceiling = True

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "Proximal")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        solver, metric = self.solver, geometry.at(state)
        solver = solver if solver is not None else _default_solver(energy, metric)
        return solver.init(energy, metric) if isinstance(solver, AbstractJKOSolver) else None

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        metric = geometry.at(state)
        alpha = jnp.asarray(self.step_size, _tree.dtype_of(state))
        solver = self.solver if self.solver is not None else _default_solver(energy, metric)
        stats: dict[str, Any] = {}
        if isinstance(solver, AbstractJKOSolver):
            moved, distance, residual, converged, memory, stats = solver.solve(energy, metric, alpha, memory)
        else:
            moved, residual, converged = _minimise(solver, energy, metric, alpha)
            assert metric.distance_squared is not None  # `check` has seen to it
            distance = metric.distance_squared(moved)
        (before, size_before), (after, size_after) = value_and_size(energy, state), value_and_size(energy, moved)
        sizes = size_before + size_after + distance / (2 * alpha)
        rounding = 64 * jnp.finfo(before.dtype).eps * jnp.where(jnp.isfinite(sizes), sizes, 0)
        certified = after + distance / (2 * alpha) <= before + rounding
        result = RESULTS.where(certified, RESULTS.successful, RESULTS.energy_increased)
        result = RESULTS.where(converged, result, RESULTS.inner_solver_failed)
        if isinstance(state, GridDensity):
            unresolved = resolution_of(decompose(energy), state, moved)
            result = RESULTS.where(result == RESULTS.successful, unresolved, result)
        return moved, memory, StepInfo(alpha, distance, distance / alpha, result, {"residual": residual, **stats})

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        eqx.filter_eval_shape(energy, state)
        solver = self.solver if self.solver is not None else _default_solver(energy, metric)
        if decompose(energy).ceiling is not None and not _takes_ceiling(solver):
            raise UnsupportedCombination(_why_no_ceiling(solver))
        if solver is None:
            raise UnsupportedCombination(_why_no_solver(metric, geometry, state))
        if isinstance(solver, AbstractJKOSolver):
            refused = solver.why_unsupported(energy, metric)
            if refused is not None:
                raise UnsupportedCombination(refused)
            if _tree.dtype_of(state).itemsize < 8:
                raise ValueError(
                    f"The JKO step (`{type(solver).__name__}`) solves to many digits and needs float64; this density "
                    f"is {_tree.dtype_of(state)}.\n"
                    'Run `jax.config.update("jax_enable_x64", True)` before making any array, or use '
                    "`scheme=tw.Continuous(step_size)`."
                )
        # Newton's methods see only slopes and curvatures, which tell nothing at the corners of a distance.
        elif metric.chart is None or not metric.distance_is_smooth:
            raise UnsupportedCombination(_why_no_solver(metric, geometry, state))

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Proximal":
        if self.solver is not None:
            return self
        return eqx.tree_at(
            lambda s: s.solver, self, _default_solver(energy, geometry.at(state)), is_leaf=lambda leaf: leaf is None
        )

    def limit(self, remaining: Scalar) -> "Proximal":
        step_size = limited_step_size(jnp.asarray(self.step_size, remaining.dtype), remaining)
        return eqx.tree_at(lambda s: s.step_size, self, step_size)

    def describe(self) -> dict[str, str]:
        described = {"solver": type(self.solver).__name__}
        if isinstance(self.solver, AbstractJKOSolver):
            described["distance"] = self.solver.distance_label
        return described


# In the order in which they are asked.
_JKO_SOLVERS: tuple[type[AbstractJKOSolver], ...] = (LineJKO, LinearisedJKO)


def _default_solver(energy: AbstractEnergy, metric: AbstractMetric) -> Any:
    ceiling = decompose(energy).ceiling is not None
    for solver in _JKO_SOLVERS:
        if (not ceiling or solver.takes_ceiling) and solver().why_unsupported(energy, metric) is None:
            return solver()
    if ceiling or metric.chart is None or metric.distance_squared is None or not metric.distance_is_smooth:
        return None
    size = ravel_pytree(moving(metric.state))[0].size
    return Newton() if size <= _LARGEST_DENSE else QuasiNewton()


def _minimise(solver: Any, energy: AbstractEnergy, metric: AbstractMetric, alpha: Scalar) -> Any:
    assert metric.chart is not None
    assert metric.distance_squared is not None
    here, unravel = ravel_pytree(moving(metric.state))

    def objective(coordinates: Any) -> Scalar:
        candidate = metric.chart(unravel(coordinates))  # type: ignore[misc]
        return energy(candidate) + metric.distance_squared(candidate) / (2 * alpha)  # type: ignore[misc]

    coordinates, residual, converged = solver.minimise(objective, jnp.zeros_like(here), jnp.max(jnp.abs(here)))
    return metric.chart(unravel(coordinates)), residual, converged


def _takes_ceiling(solver: Any) -> bool:
    return isinstance(solver, AbstractJKOSolver) and solver.takes_ceiling


def _why_no_ceiling(solver: Any) -> str:
    able = [name.__name__ for name in _JKO_SOLVERS if name.takes_ceiling]
    given = "no solver of this step" if solver is None else f"`{type(solver).__name__}`, which has no such constraint"
    there = f"{', '.join(able)} can, on its grids" if able else "no solver can as yet"
    return (
        f"`Congestion` needs a solver that keeps the density below its ceiling; there is {given}.\nOf those: {there}."
    )


def _why_no_solver(metric: AbstractMetric, geometry: AbstractGeometry, state: State) -> str:
    name = type(geometry).__name__
    kind = type(state).__name__ if isinstance(state, AbstractState) else "a vector"
    if isinstance(metric, GridMetric):
        return (
            "The JKO step on a grid (`Proximal` with `Wasserstein`) is there in one dimension with walls only;\n"
            f"this grid has shape {metric.state.grid.shape} and boundary {metric.state.grid.boundary}.\n"
            "Use `scheme=tw.Continuous(step_size)`, whose limit it is."
        )
    return (
        f"`Proximal` needs a differentiable squared distance; `{name}` at {kind} has none.\n"
        "Use `scheme=tw.Explicit(step_size)` or `scheme=tw.Constrained(radius)`, which need the norm only."
    )
