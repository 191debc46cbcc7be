r"""Forward–backward splitting: an explicit step of the smooth part, then a proximal step of the rest.

Energies with corners and walls, F = f + g with g a proximable energy, have a gradient flow all the same, $-\dot x \in
\nabla f + \partial g$. Its simplest scheme linearises f in the sentence and keeps g whole.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._result import RESULTS
from thalweg._types import Count, Flag, PRNGKey, Scalar, State
from thalweg.energies import AbstractEnergy, AbstractProximable, decompose, nearest_feasible
from thalweg.geometries import AbstractGeometry, Euclidean
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._explicit import Backtracking
from thalweg.states import AbstractState, moving


class Memory(eqx.Module):
    """What the scheme remembers: the next step size to try, and the largest norm of the state met."""

    step_size: Scalar
    largest_norm: Scalar


class ForwardBackward(AbstractScheme):
    r"""$x^+ = \operatorname{argmin}_y \dfrac{\|y - x\|^2}{2\alpha} + \langle\nabla f(x), y - x\rangle + g(y)
    = \operatorname{prox}_{\alpha g}(x - \alpha\nabla f(x))$: proximal gradient, ISTA, projected gradient.

    F is a function f plus constraints and penalties g (`f + tw.L1(0.1)`, `f + tw.Box(0, 1)`). With
    `tw.Backtracking()` $\alpha$ is halved until f lies below its linearisation plus $\|y - x\|^2/2\alpha$, which makes
    F fall by at least $\|y - x\|^2/2\alpha$; a given $\alpha$ does so below one over the largest curvature of f.

    Each step records `residual`, $\|x - \operatorname{prox}_g(x - \nabla f(x))\|$ at its end, zero exactly where F is
    stationary, and `relative_residual` for `stop=tw.ResidualBelow(tolerance)`.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time, or `tw.Backtracking(...)`.

    First order in time. **Source:** Lions, Mercier, *Splitting algorithms for the sum of two nonlinear operators*
    (1979); Beck, Teboulle, *A fast iterative shrinkage-thresholding algorithm* (2009), section 3.
    """

    step_size: Any

    takes_proximable = True
    distance_label = "‖x⁺ − x‖²"

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "ForwardBackward")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        first = self.step_size.maximum if isinstance(self.step_size, Backtracking) else self.step_size
        dtype = _tree.dtype_of(state)
        return Memory(jnp.asarray(first, dtype), jnp.zeros((), dtype))

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Memory, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        smooth, kinks = split(energy, state)
        here = moving(state)
        value, gradient = jax.value_and_grad(lambda x: smooth(eqx.combine(x, state)))(here)

        def trial(alpha: Scalar) -> tuple[Any, Scalar]:
            moved = kinks.prox(_tree.multiply_add(here, -alpha, gradient), alpha)
            return moved, _squared_distance(moved, here)

        def lies_below(alpha: Scalar) -> Flag:
            moved, squared = trial(alpha)
            change = _tree.multiply_add(moved, -1.0, here)
            there, slope = jax.value_and_grad(lambda x: smooth(eqx.combine(x, state)))(moved)
            bend = there - value - _tree.dot(gradient, change)
            # Below the rounding of f the slopes tell the same: half of <∇f(y) - ∇f(x), y - x>.
            rounded = jnp.abs(bend) <= 256 * jnp.finfo(value.dtype).eps * jnp.abs(value)
            bend = jnp.where(rounded, 0.5 * _tree.dot(_tree.multiply_add(slope, -1.0, gradient), change), bend)
            return bend <= squared / (2 * alpha)

        stats: dict[str, Any] = {}
        result = RESULTS.successful
        if isinstance(self.step_size, Backtracking):
            search = self.step_size
            first = jnp.minimum(memory.step_size, jnp.asarray(search.maximum, memory.step_size.dtype)).astype(
                value.dtype
            )

            def cut(carry: tuple[Scalar, Flag, Count]) -> tuple[Scalar, Flag, Count]:
                alpha, _, cuts = carry
                return alpha / 2, lies_below(alpha / 2), cuts + 1

            alpha, good, cuts = jax.lax.while_loop(
                lambda carry: ~carry[1] & (carry[2] < search.max_cuts), cut, (first, lies_below(first), jnp.asarray(0))
            )
            result = RESULTS.where(good, result, RESULTS.step_size_underflow)
            following = 2 * alpha
            stats["cuts"] = cuts
        else:
            alpha = following = jnp.asarray(self.step_size, value.dtype)
        moved, squared = trial(alpha)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        new_gradient = jax.grad(lambda x: smooth(eqx.combine(x, state)))(moved)
        reach = jnp.maximum(_tree.dot(here, here), _tree.dot(moved, moved))
        reach = jnp.maximum(jnp.sqrt(reach), memory.largest_norm.astype(reach.dtype))
        again = kinks.prox(_tree.multiply_add(moved, -alpha, new_gradient), alpha)
        stats["residual"] = residual_of(kinks, moved, new_gradient)
        stats["relative_residual"] = jnp.sqrt(_squared_distance(again, moved)) / jnp.where(reach > 0, reach, 1)
        dtype = memory.step_size.dtype
        memory = Memory(following.astype(dtype), reach.astype(dtype))
        return eqx.combine(moved, state), memory, StepInfo(alpha, squared, squared / alpha, result, stats)

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        check_composite(self, energy, geometry, state)

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "ForwardBackward":
        return self

    def limit(self, remaining: Scalar) -> "ForwardBackward":
        if isinstance(self.step_size, Backtracking):
            maximum = jnp.asarray(self.step_size.maximum, remaining.dtype)
            return eqx.tree_at(lambda s: s.step_size.maximum, self, limited_step_size(maximum, remaining))
        step_size = jnp.asarray(self.step_size, remaining.dtype)
        return eqx.tree_at(lambda s: s.step_size, self, limited_step_size(step_size, remaining))

    def describe(self) -> dict[str, str]:
        if isinstance(self.step_size, Backtracking):
            return {"step_size": "found by backtracking (f below its quadratic upper bound)"}
        return {}


def split(energy: AbstractEnergy, state: State) -> tuple[AbstractEnergy, AbstractProximable]:
    """The two parts of a composite energy: the function f, and the constraints and penalties g as one."""
    structure = decompose(energy)
    return structure.smooth(), structure.joint_proximable(state)


def residual_of(kinks: AbstractProximable, point: Any, gradient: Any) -> Scalar:
    r"""$\|x - \operatorname{prox}_g(x - \nabla f(x))\|$, zero exactly at the stationary points of f + g."""
    return jnp.sqrt(_squared_distance(point, kinks.prox(_tree.multiply_add(point, -1.0, gradient), 1.0)))


def check_composite(scheme: Any, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
    """Raise unless the state is a vector in the Euclidean geometry at which the constraints hold."""
    name = type(scheme).__name__
    if isinstance(state, AbstractState) or not isinstance(geometry, Euclidean):
        given = type(state).__name__ if isinstance(state, AbstractState) else type(geometry).__name__
        raise UnsupportedCombination(
            f"`{name}` works on vectors and pytrees of arrays in the Euclidean geometry; got {given}.\n"
            "Use `geometry=tw.Euclidean()`; the proximal maps are those of its distance."
        )
    kinks = decompose(energy).joint_proximable(state)
    value, _ = nearest_feasible(kinks, state)
    if not _tree.is_traced(value) and not bool(jnp.isfinite(value)):
        raise ValueError(
            f"`initial_state` does not satisfy the constraint `{type(kinks).__name__}`, where the energy is infinite.\n"
            "Project it first, `x0 = constraint.prox(x0, 1.0)`; `tw.minimise` does so by itself."
        )


def _squared_distance(left: Any, right: Any) -> Scalar:
    difference = _tree.multiply_add(left, -1.0, right)
    return _tree.dot(difference, difference)
