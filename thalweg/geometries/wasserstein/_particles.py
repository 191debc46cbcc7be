"""The Wasserstein metric at particles: each moves by its own velocity."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity, zero_velocity
from thalweg._types import PRNGKey, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric, require_resolved
from thalweg.geometries.wasserstein._geometry import Wasserstein, metric_at, refuse_mobility
from thalweg.states import Particles


class ParticleMetric(AbstractMetric):
    r"""$\|v\|^2 = \sum_i w_i |v_i|^2$; the weights do not change.

    The squared distance keeps each particle with itself, an upper bound of $W_2^2$ that is exact for small moves.
    """

    state: Particles

    distance_kind = "upper bound"
    is_constant = True

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        require_resolved(cotangent, "Steepest descent in the Wasserstein geometry")
        return self._velocity(-cotangent.regular.positions)

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return jnp.sum(self.state.weights * jnp.sum(velocity.tangent.positions**2, axis=-1))

    def move(self, velocity: Velocity, scale: ScalarLike) -> Particles:
        return _tree.multiply_add(self.state, scale, velocity.tangent)

    def distance_squared(self, other: Particles) -> Scalar:
        return jnp.sum(self.state.weights * jnp.sum((other.positions - self.state.positions) ** 2, axis=-1))

    def noise(self, key: PRNGKey) -> Velocity:
        positions = self.state.positions
        return self._velocity(jax.random.normal(key, positions.shape, positions.dtype))

    def chart(self, coordinates: Any) -> Particles:
        return eqx.tree_at(lambda s: s.positions, self.state, self.state.positions + coordinates.positions)

    def _velocity(self, velocities: Any) -> Velocity:
        at_rest = zero_velocity(self.state).tangent
        return Velocity(eqx.tree_at(lambda s: s.positions, at_rest, velocities))


@metric_at.register
def _(state: Particles, geometry: Wasserstein) -> ParticleMetric:
    refuse_mobility(state, geometry)
    return ParticleMetric(state)
