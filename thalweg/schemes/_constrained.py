"""Constrained steps: the best point within a given distance."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Velocity, energy_and_first_variation
from thalweg._result import RESULTS
from thalweg._types import PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, AbstractMetric, Euclidean
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive
from thalweg.schemes._descent import check_descent, descend
from thalweg.schemes.proximal_solvers import NewtonBall
from thalweg.states import moving


class Constrained(AbstractScheme):
    r"""$x^+ = \operatorname{argmin} F$ on $D(y, x) \le \varepsilon^2$, to leading order in $\varepsilon$: $x^+ =
    \mathrm{move}(\varepsilon v/\|v\|)$.

    Normalised gradient descent in the Euclidean norm, sign descent in the maximum norm. It advances arc length, not
    time: `path.times` counts arc length. Near a minimum the linearised step oscillates with amplitude
    $\varepsilon/2$; where the gradient is zero it stays.

    **Arguments:** `radius`: $\varepsilon > 0$, in units of the norm; `solver`: `None` for the linearised step, or
    [`thalweg.NewtonBall`][] for the exact minimiser in the ball $D(y, x) \le \varepsilon^2$, in every geometry with a
    smooth squared distance: Euclidean vectors, the ball $2\,\mathrm{KL}(y\|x) \le \varepsilon^2$ of a parametric
    family.

    **Source:** Su (2023), the section on steepest descent.
    """

    radius: ScalarLike
    solver: NewtonBall | None = None

    advances_time = False
    distance_label = "radius² (the length of a step)"

    def __check_init__(self) -> None:
        check_positive(self.radius, "radius", "Constrained")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        return None

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        metric = geometry.at(state)
        value, cotangent = energy_and_first_variation(energy, state)
        velocity, stats, result = descend(metric, cotangent, value)
        length = jnp.sqrt(metric.norm_squared(velocity))
        radius = jnp.asarray(self.radius, length.dtype)
        linearised = radius / jnp.where(length > 0, length, 1)
        if self.solver is None:
            moved = metric.move(velocity, linearised)
            travelled = jnp.where(length > 0, radius, 0)
            result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
            return moved, memory, StepInfo(travelled, travelled**2, travelled * length, result, stats)

        if not isinstance(geometry, Euclidean):
            return self._in_curved_ball(energy, metric, velocity, length, memory)
        _, unravel = ravel_pytree(velocity.tangent)
        objective = lambda offset: energy(_tree.multiply_add(state, 1.0, unravel(offset)))  # noqa: E731
        start, _ = ravel_pytree(_tree.scale_by(velocity.tangent, linearised))
        offset, residual, converged = self.solver.minimise(
            objective, start, radius, jnp.max(jnp.abs(ravel_pytree(state)[0]))
        )
        travelled = jnp.sqrt(jnp.sum(offset**2))
        result = RESULTS.where(converged, RESULTS.successful, RESULTS.inner_solver_failed)
        moved = _tree.multiply_add(state, 1.0, unravel(offset))
        return moved, memory, StepInfo(travelled, travelled**2, travelled * length, result, {"residual": residual})

    def _in_curved_ball(
        self, energy: AbstractEnergy, metric: AbstractMetric, velocity: Velocity, length: Scalar, memory: Any
    ) -> tuple[State, Any, StepInfo]:
        assert self.solver is not None
        here, unravel = ravel_pytree(moving(metric.state))
        point_at = lambda z: metric.chart(unravel(z))  # type: ignore[misc]  # noqa: E731
        distance_at = lambda z: metric.distance_squared(point_at(z))  # type: ignore[misc]  # noqa: E731
        radius = jnp.asarray(self.radius, length.dtype)
        coordinates, residual, converged = self.solver.minimise_within(
            lambda z: energy(point_at(z)), distance_at, jnp.zeros_like(here), radius, length, jnp.max(jnp.abs(here))
        )
        travelled = jnp.sqrt(jnp.maximum(distance_at(coordinates), 0))
        result = RESULTS.where(converged, RESULTS.successful, RESULTS.inner_solver_failed)
        info = StepInfo(travelled, travelled**2, travelled * length, result, {"residual": residual})
        return point_at(coordinates), memory, info

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        check_descent(energy, geometry, state)
        smooth = metric.chart is not None and metric.distance_squared is not None and metric.distance_is_smooth
        if self.solver is not None and not (isinstance(geometry, Euclidean) or smooth):
            raise UnsupportedCombination(
                f"`NewtonBall` needs a ball with a smooth squared distance; `{type(geometry).__name__}` has none.\n"
                "Use `solver=None` for the linearised step in any geometry, or `geometry=tw.Euclidean()`."
            )

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Constrained":
        return self

    def limit(self, remaining: Scalar) -> "Constrained":
        # A constrained step has no time to cut; `flow` refuses `final_time` for it before it gets here.
        return eqx.tree_at(lambda s: s.radius, self, jnp.asarray(self.radius, remaining.dtype))

    def describe(self) -> dict[str, str]:
        return {"parameter": "arc length: `times` counts the length of the steps"}
