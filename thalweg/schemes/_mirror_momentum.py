r"""Accelerated mirror descent: Nesterov's equation where the metric changes with the point.

A momentum that gathers cotangents at different points has no meaning in a curved metric. In a Bregman geometry there is
a second point $z$ instead, which gathers them in the dual coordinates $\nabla h(z)$, and $x$ runs after $z$ on a
straight line. Both stay in the domain of $h$, which is convex.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity, energy_and_first_variation, pairing
from thalweg._types import PRNGKey, PyTree, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, NormedMetric
from thalweg.geometries.bregman import BregmanMetric
from thalweg.schemes._base import StepInfo, check_positive, outcome_at
from thalweg.schemes._damping import NesterovDamping
from thalweg.schemes._inertia import AbstractInertial, first_gradient, mean_of
from thalweg.states import quadrature_weights


class MirrorMemory(eqx.Module):
    """The point that gathers the gradients, the first variation where the last step ended, and the time."""

    leader: State
    gradient: PyTree
    age: Scalar


class MirrorMomentum(AbstractInertial):
    r"""Accelerated mirror descent, $\dot x = \tfrac rt(z - x)$, $\tfrac{\mathrm d}{\mathrm dt}\nabla h(z) = -\tfrac tr
    \xi(x)$, in a Bregman geometry.

    For convex F and $r \ge 2$ the function $\tfrac{t^2}r(F(x) - F_*) + r\,D_h(x_*, z)$ falls, so that $F(x) - F_* \le
    r^2 D_h(x_*, x_0)/t^2$ with $D_h$ the Bregman divergence (half the squared distance of the geometry); mirror descent
    has $D_h/t$. The energy itself may rise. With $h = \tfrac12|x|^2$ it is [`thalweg.Momentum`][] with
    [`thalweg.NesterovDamping`][] of order $r + 1$. Each step moves z over half the time, x over the whole, z over the
    rest, each exactly: second order, one gradient, and never outside the domain.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time; `order`: $r > 0$, dimensionless.

    **Source:** Krichene, Bayen, Bartlett, *Accelerated mirror descent in continuous and discrete time*, NeurIPS (2015);
    Wibisono, Wilson, Jordan, PNAS 113 (2016).
    """

    step_size: ScalarLike
    order: ScalarLike = 2.0

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "MirrorMomentum")
        check_positive(self.order, "order", "MirrorMomentum")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        return MirrorMemory(state, first_gradient(energy, state), jnp.zeros((), _tree.dtype_of(state)))

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        alpha = jnp.asarray(self.step_size, memory.age.dtype)
        order = jnp.asarray(self.order, alpha.dtype)
        start, middle, end = memory.age, memory.age + alpha / 2, memory.age + alpha
        before = Cotangent(memory.gradient, quadrature_weights(state))
        # ∫ s/r ds over each half, without the cancellation of squares.
        leader = _mirrored(geometry, memory.leader, before, alpha / 2 * (start + middle) / (2 * order))
        # The straight line towards z at the rate r/t: what is left of the gap is (t₀/t₁)^r.
        left, _ = NesterovDamping(order).over(start, alpha)
        gap = _tree.multiply_add(leader, -1.0, state)
        displacement = _tree.scale_by(gap, 1 - left)
        moved = _tree.multiply_add(state, 1.0, displacement)
        value, after = energy_and_first_variation(energy, moved)
        leader = _mirrored(geometry, leader, after, alpha / 2 * (middle + end) / (2 * order))
        mean = mean_of(before.regular, after.regular)
        velocity = Velocity(displacement)
        dissipated = -pairing(eqx.tree_at(lambda c: c.regular, after, mean), velocity)
        distance = geometry.at(state).norm_squared(velocity)
        info = StepInfo(alpha, distance, dissipated, outcome_at(value), {})
        return moved, MirrorMemory(leader, after.regular, end), info

    def why_not(self, geometry: AbstractGeometry, state: State) -> str | None:
        metric = geometry.at(state)
        euclidean = isinstance(metric, NormedMetric) and metric.geometry.is_inner_product
        if isinstance(metric, BregmanMetric) or euclidean:
            return None
        return (
            f"`MirrorMomentum` needs a Bregman geometry or an inner product; got `{type(geometry).__name__}`.\n"
            "Use `geometry=tw.Bregman(h)`; in other norms `scheme=tw.Momentum(step_size)`."
        )

    def describe(self) -> dict[str, str]:
        return {"what falls": "not the energy but t²(F − F*)/r + r·D_h(x*, z)"}


def _mirrored(geometry: AbstractGeometry, point: State, cotangent: Any, weight: Scalar) -> State:
    metric = geometry.at(point)
    return metric.move(metric.steepest_descent(cotangent), weight)
