"""The Hellinger–Kantorovich metric on a grid: mass moves through the faces of a cell, and grows inside it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric
from thalweg.geometries.hellinger_kantorovich._geometry import HellingerKantorovich, metric_at
from thalweg.geometries.wasserstein._geometry import Wasserstein
from thalweg.geometries.wasserstein._grid import FaceField
from thalweg.states import GridDensity


class GrowthField(eqx.Module):
    r"""What moves and what grows: the fluxes through the faces as of the Wasserstein metric, and the relative rate of
    growth $\rho$ of the cells.
    """

    faces: FaceField
    growth: Array


class GridTransportReactionMetric(AbstractMetric):
    r"""$\|v\|^2 = \tfrac1{\text{transport}}\sum_{\text{faces}} h^d J^2/\bar q + \tfrac1{\text{reaction}}\sum_i h^d
    q_i\rho_i^2$ for the split $v = -\nabla_h\cdot J + q\rho$ that is carried in the velocity.

    Steepest descent has $J = -\text{transport}\,\bar q\,\nabla_h\xi$ and $\rho = -\text{reaction}\,\xi$, the split of
    least cost, and $-\langle\xi, v\rangle = \|v\|^2$ holds exactly. `move` carries, then multiplies.
    """

    state: GridDensity
    geometry: HellingerKantorovich

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        values, xi = self.state.values, cotangent.regular.values
        carried = Wasserstein().at(self.state).steepest_descent(cotangent)
        transport = jnp.asarray(self.geometry.transport, values.dtype)
        faces = FaceField(tuple(transport * u for u in carried.field.velocities), carried.field.mobilities)
        mean = jnp.sum(values * xi) / jnp.sum(values) if self.geometry.conserve_mass else 0.0
        # What ξ is where there is nothing that could grow makes no difference, infinity included.
        growth = jnp.where(values > 0, -self.geometry.reaction * (xi - mean), 0)
        rate = transport * carried.tangent.values + values * growth
        return Velocity(eqx.tree_at(lambda s: s.values, self.state, rate), GrowthField(faces, growth))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        field, values = velocity.field, self.state.values
        carried = Wasserstein().at(self.state).norm_squared(Velocity(velocity.tangent, field.faces))
        grown = jnp.sum(values * field.growth**2) * self.state.grid.cell_volume
        return _over(carried, self.geometry.transport) + _over(grown, self.geometry.reaction)

    def move(self, velocity: Velocity, scale: ScalarLike) -> GridDensity:
        field = velocity.field
        moved = Wasserstein().at(self.state).move(Velocity(velocity.tangent, field.faces), scale)
        grown = moved.values * jnp.exp(scale * field.growth)
        if self.geometry.conserve_mass:
            grown = grown * (jnp.sum(self.state.values) / jnp.sum(grown))
        return eqx.tree_at(lambda s: s.values, self.state, grown)


class GridReactionMetric(GridTransportReactionMetric):
    r"""The same without transport, where the distance is known: that of Hellinger, $D = \tfrac4{\text{reaction}}
    \int(\sqrt q - \sqrt{q'})^2$, and with mass conserved the angle on its sphere.
    """

    state: GridDensity
    geometry: HellingerKantorovich

    distance_kind = "exact"

    def distance_squared(self, other: GridDensity) -> Scalar:
        volume, mass = self.state.grid.cell_volume, self.state.mass
        chord_squared = jnp.sum((jnp.sqrt(self.state.values) - jnp.sqrt(other.values)) ** 2) * volume
        if self.geometry.conserve_mass:
            # From the chord, which keeps its digits when the two are close.
            half_angle = jnp.arcsin(jnp.minimum(0.5 * jnp.sqrt(chord_squared / mass), 1.0))
            chord_squared = mass * (2 * half_angle) ** 2
        return 4 * chord_squared / self.geometry.reaction


def _over(value: Scalar, weight: Any) -> Scalar:
    """A quotient of which both are zero where there is no motion of that kind."""
    weight = jnp.asarray(weight, value.dtype)
    return value / jnp.where(weight > 0, weight, 1)


@metric_at.register
def _(state: GridDensity, geometry: HellingerKantorovich) -> GridTransportReactionMetric:
    if isinstance(geometry.transport, int | float) and geometry.transport == 0:
        return GridReactionMetric(state, geometry)
    return GridTransportReactionMetric(state, geometry)
