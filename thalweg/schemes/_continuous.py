"""Continuous steps: the gradient flow itself, solved accurately over each interval."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation, first_variation
from thalweg._result import RESULTS
from thalweg._types import PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._descent import descend
from thalweg.schemes._exponential import ExponentialRosenbrock
from thalweg.schemes._finite_volume import FiniteVolume
from thalweg.schemes._ode import ODESolver, choose_solver, default_tolerances


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

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        dtype = _tree.dtype_of(state)
        solver = self._resolved(energy, geometry, state).solver
        return jnp.asarray(solver.first_substep(jnp.asarray(self.step_size, dtype)), dtype)

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        alpha = jnp.asarray(self.step_size, _tree.dtype_of(state))
        solver = self._resolved(energy, geometry, state).solver
        if isinstance(solver, FiniteVolume):
            moved, memory, dissipated, result, count = solver.advance(energy, state, alpha, memory)
            counts = {"substeps": count}
        else:
            moved, memory, dissipated, result, counts = solver.advance(energy, geometry, state, alpha, memory)
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
        if isinstance(geometry.at(state), GridMetric):
            return _with_solver(self, FiniteVolume(), "finite volumes: exponentially fitted, positive, conservative")
        default = ODESolver(diffrax.Tsit5(), *default_tolerances(state))
        return _with_solver(self, default, "Tsit5 (explicit): chosen while tracing, where stiffness cannot be measured")

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        eqx.filter_eval_shape(lambda s: metric.steepest_descent(first_variation(energy, s)).tangent, state)
        if isinstance(self.solver, FiniteVolume) and not isinstance(metric, GridMetric):
            raise ValueError(
                "`FiniteVolume` integrates grid densities in the Wasserstein geometry; use `solver=None` here."
            )
        if isinstance(self.solver, ExponentialRosenbrock):
            refused = self.solver.why_unsupported(energy, geometry, state)
            if refused is not None:
                raise ValueError(
                    f"`ExponentialRosenbrock` needs a metric that is one inner product for the whole space, an energy "
                    f"that is twice differentiable, and float64; {refused}.\nUse `solver=None`, or "
                    "`solver=diffrax.Kvaerno5()` where the flow is stiff."
                )
        if isinstance(metric, GridMetric) and (self.solver is None or isinstance(self.solver, FiniteVolume)):
            temperature = decompose(energy).temperature
            if temperature is not None and not _tree.is_traced(temperature) and float(temperature) < 0:
                raise ValueError(
                    "`Continuous` on a grid needs a non-negative temperature: entropy with a negative factor diffuses "
                    f"backwards, and no\nfinite-volume solution exists; the energy has {float(temperature)}. Give the "
                    "entropy a positive factor."
                )

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Continuous":
        if self.solver is None and not isinstance(geometry.at(state), GridMetric):
            solver, reason = choose_solver(energy, geometry, state, self.step_size)
            return _with_solver(self, solver, reason)
        return self._resolved(energy, geometry, state)

    def limit(self, remaining: Scalar) -> "Continuous":
        step_size = limited_step_size(jnp.asarray(self.step_size, remaining.dtype), remaining)
        return eqx.tree_at(lambda s: s.step_size, self, step_size)

    def describe(self) -> dict[str, str]:
        return {"solver": self.reason}


def _with_solver(scheme: Continuous, solver: Any, reason: str) -> Continuous:
    return Continuous(scheme.step_size, solver, reason)
