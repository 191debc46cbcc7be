"""Continuous steps: the gradient flow itself, solved accurately over each interval."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation
from thalweg._result import RESULTS
from thalweg._types import PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein import GridMetric, TensorMetric
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._descent import check_descent, descend
from thalweg.schemes._exponential import ExponentialRosenbrock
from thalweg.schemes._exponential_volume import ExponentialFiniteVolume
from thalweg.schemes._finite_volume import FiniteVolume
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, resolution_of
from thalweg.schemes._ode import ODESolver, choose_solver, default_tolerances
from thalweg.schemes._reaction import ReplicatorIntegrator
from thalweg.schemes._transport_reaction import TransportReactionSplitting
from thalweg.states import GridDensity


class Continuous(AbstractScheme):
    r"""$x^+ = \Phi_\alpha(x)$, the solution after time $\alpha$ of $\dot x = $ steepest descent: the gradient flow.

    With `solver=None` the best integrator is chosen before the run and named in `path.stats`: for densities on a
    grid in the Wasserstein geometry a structure-preserving finite-volume integrator ([`thalweg.FiniteVolume`][]); for
    everything else by the largest rate of the flow at the start: an explicit solver of diffrax (Tsit5) where it is not
    stiff, else [`thalweg.ExponentialRosenbrock`][] where the metric is one inner product for the whole space, else an
    implicit solver of diffrax (Kvaerno5). `path.measurements` counts the substeps of each step, and those rejected.

    **Arguments:** `step_size`: $\alpha > 0$, the time between two points of the path, not an accuracy; `solver`:
    `None`, `tw.FiniteVolume(...)`, `tw.ExponentialRosenbrock(...)`, `tw.ODESolver(...)` or any diffrax solver.

    **Source:** Su (2023), the section on gradient flow.
    """

    step_size: ScalarLike
    solver: Any = None
    reason: str = eqx.field(static=True, default="given")

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "Continuous")
        if isinstance(self.solver, str | int | float | type):
            raise TypeError(
                "`solver` of `Continuous` must be an object such as `tw.FiniteVolume()` or `diffrax.Tsit5()`, or "
                f"`None`; got {self.solver!r}."
            )

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        dtype = _tree.dtype_of(state)
        solver = self._resolved(energy, geometry, state).solver
        duration = jnp.asarray(self.step_size, dtype)
        if isinstance(solver, AbstractGridIntegrator):
            return solver.init(energy, geometry, state, duration)
        return jnp.asarray(solver.first_substep(duration), dtype)

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        alpha = jnp.asarray(self.step_size, _tree.dtype_of(state))
        solver = self._resolved(energy, geometry, state).solver
        moved, memory, dissipated, result, counts = solver.advance(energy, geometry, state, alpha, memory)
        if isinstance(solver, AbstractGridIntegrator):
            unresolved = resolution_of(decompose(energy), state, moved)
            result = RESULTS.where(result == RESULTS.successful, unresolved, result)
        metric = geometry.at(state)
        value, cotangent = energy_and_first_variation(energy, state)
        velocity, stats, found = descend(metric, cotangent, value)
        rate = metric.norm_squared(velocity)
        result = RESULTS.where(result == RESULTS.successful, found, result)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        return moved, memory, StepInfo(alpha, alpha**2 * rate, dissipated, result, {**counts, **stats})

    def _resolved(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Continuous":
        # Inside a trace (a user's own loop) the stiffness cannot be looked at: the explicit solver is the default
        # there.
        if self.solver is not None:
            return (
                self
                if not isinstance(self.solver, diffrax.AbstractSolver)
                else _with_solver(self, ODESolver(self.solver), "given")
            )
        integrator = grid_integrator(energy, geometry, state)
        if integrator is not None:
            return _with_solver(self, integrator, integrator.reason)
        default = ODESolver(diffrax.Tsit5(), *default_tolerances(state))
        return _with_solver(self, default, "Tsit5 (explicit): chosen while tracing, where stiffness cannot be measured")

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        check_descent(energy, geometry, state)
        solver = self.solver
        if solver is None and isinstance(metric, GridMetric | TensorMetric):
            # The reasons of the last one are those that no integrator can serve.
            solver = grid_integrator(energy, geometry, state) or _GRID_INTEGRATORS[-1]()
        if isinstance(solver, AbstractGridIntegrator):
            refused = _why_not(solver, energy, geometry, state)
            if refused is not None:
                raise ValueError(refused)
        if isinstance(self.solver, ExponentialRosenbrock):
            refused = self.solver.why_unsupported(energy, geometry, state)
            if refused is not None:
                raise ValueError(
                    f"`ExponentialRosenbrock` needs a metric that is one inner product for the whole space, an energy "
                    f"that is twice differentiable, and float64; {refused}.\nUse `solver=None`, or "
                    "`solver=diffrax.Kvaerno5()` where the flow is stiff."
                )

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Continuous":
        if self.solver is None and grid_integrator(energy, geometry, state) is None:
            solver, reason = choose_solver(energy, geometry, state, self.step_size)
            return _with_solver(self, solver, reason)
        return self._resolved(energy, geometry, state)

    def limit(self, remaining: Scalar) -> "Continuous":
        step_size = limited_step_size(jnp.asarray(self.step_size, remaining.dtype), remaining)
        return eqx.tree_at(lambda s: s.step_size, self, step_size)

    def describe(self) -> dict[str, str]:
        return {"solver": self.reason}


# In the order in which they are asked.
_GRID_INTEGRATORS: tuple[type[AbstractGridIntegrator], ...] = (
    ReplicatorIntegrator,
    TransportReactionSplitting,
    ExponentialFiniteVolume,
    FiniteVolume,
)


def grid_integrator(energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> AbstractGridIntegrator | None:
    """The structure-preserving integrator for a grid density in this geometry, if there is one."""
    candidates = (integrator() for integrator in _GRID_INTEGRATORS)
    return next((found for found in candidates if _why_not(found, energy, geometry, state) is None), None)


def _why_not(
    integrator: AbstractGridIntegrator, energy: AbstractEnergy, geometry: AbstractGeometry, state: State
) -> str | None:
    if not isinstance(state, GridDensity):
        return f"`{type(integrator).__name__}` integrates the flows of grid densities; use `solver=None` here."
    return integrator.why_unsupported(energy, geometry, state)


def _with_solver(scheme: Continuous, solver: Any, reason: str) -> Continuous:
    return Continuous(scheme.step_size, solver, reason)
