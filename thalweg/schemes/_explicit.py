"""Explicit steps: F to first order, D to second."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation
from thalweg._result import RESULTS
from thalweg._types import Count, Flag, PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size, outcome_at
from thalweg.states import admissibility


class Backtracking(eqx.Module):
    r"""A step size found by trial: halved until the state stays in its space and the energy falls by at least
    $c\,\alpha\|v\|^2$, doubled after each success.

    **Arguments:** `maximum`: the largest step size tried, also the first; `sufficient`: $c$, the share of the
    predicted decrease that is asked for
    (Armijo); `max_cuts`: after so many halvings in one step the run stops with a named result.

    **Source:** Nocedal, Wright, *Numerical Optimization* (2006), algorithm 3.1.
    """

    maximum: ScalarLike = 1.0
    sufficient: float = eqx.field(static=True, default=1e-4)
    max_cuts: int = eqx.field(static=True, default=60)

    def __check_init__(self) -> None:
        check_positive(self.maximum, "maximum", "Backtracking")


class Explicit(AbstractScheme):
    r"""$x^+ = \mathrm{move}(\alpha v)$ with $v$ the steepest descent direction at $x$: gradient descent, sign
    descent, natural gradient, mirror descent.

    On a grid with [`thalweg.Wasserstein`][] it is the article's $q^+ = q + \alpha\nabla\cdot(q\nabla\,\delta
    F/\delta q)$, stable only for step sizes below about $h^2/(2dT)$; a step that makes the density negative stops
    the run with a named result.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time, or `tw.Backtracking(...)`.

    First order in time. **Source:** Su (2023), the section on gradient descent.
    """

    step_size: Any

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "Explicit")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        if isinstance(self.step_size, Backtracking):
            return jnp.asarray(self.step_size.maximum, _tree.dtype_of(state))
        return None

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        metric = geometry.at(state)
        value, cotangent = energy_and_first_variation(energy, state)
        velocity = metric.steepest_descent(cotangent)
        rate = metric.norm_squared(velocity)
        if not isinstance(self.step_size, Backtracking):
            alpha = jnp.asarray(self.step_size, rate.dtype)
            moved = metric.move(velocity, alpha)
            return moved, memory, StepInfo(alpha, alpha**2 * rate, alpha * rate, outcome_at(value), {})

        search = self.step_size
        first = jnp.minimum(memory, jnp.asarray(search.maximum, memory.dtype)).astype(rate.dtype)

        def falls_enough(alpha: Scalar) -> Flag:
            # Near the minimum the decrease is below the rounding of F itself; that much is forgiven.
            rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
            trial = metric.move(velocity, alpha)
            # An energy may go on falling outside its space (a potential energy of a negative density does).
            inside = admissibility(trial) == RESULTS.successful
            return inside & (energy(trial) <= value - search.sufficient * alpha * rate + rounding)

        def cut(carry: tuple[Scalar, Flag, Count]) -> tuple[Scalar, Flag, Count]:
            alpha, _, cuts = carry
            return alpha / 2, falls_enough(alpha / 2), cuts + 1

        alpha, good, cuts = jax.lax.while_loop(
            lambda carry: ~carry[1] & (carry[2] < search.max_cuts), cut, (first, falls_enough(first), jnp.asarray(0))
        )
        result = RESULTS.where(good, RESULTS.successful, RESULTS.step_size_underflow)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        moved = metric.move(velocity, alpha)
        return (
            moved,
            (2 * alpha).astype(memory.dtype),
            StepInfo(alpha, alpha**2 * rate, alpha * rate, result, {"cuts": cuts}),
        )

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        eqx.filter_eval_shape(
            lambda s: metric.steepest_descent(energy_and_first_variation(energy, s)[1]).tangent, state
        )

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Explicit":
        return self

    def limit(self, remaining: Scalar) -> "Explicit":
        if isinstance(self.step_size, Backtracking):
            maximum = jnp.asarray(self.step_size.maximum, remaining.dtype)
            return eqx.tree_at(lambda s: s.step_size.maximum, self, limited_step_size(maximum, remaining))
        step_size = jnp.asarray(self.step_size, remaining.dtype)
        return eqx.tree_at(lambda s: s.step_size, self, limited_step_size(step_size, remaining))

    def describe(self) -> dict[str, str]:
        if isinstance(self.step_size, Backtracking):
            return {"step_size": "found by backtracking (Armijo)"}
        return {}
