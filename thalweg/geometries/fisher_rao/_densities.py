"""The Fisher–Rao metric on Gaussians and on grid densities."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Flag, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric
from thalweg.geometries.fisher_rao._geometry import FisherRao, metric_at
from thalweg.states import Gaussian, GridDensity


class GaussianFisherMetric(AbstractMetric):
    r"""$\|v\|^2 = \dot m^\top\Sigma^{-1}\dot m + \tfrac12\operatorname{tr}(\Sigma^{-1}\dot\Sigma)^2$; steepest
    descent $\dot m = -\Sigma\xi_m$, $\dot\Sigma = -2\Sigma\xi_\Sigma\Sigma$.

    `move` multiplies from both sides by $I + \tfrac\alpha2\dot\Sigma\Sigma^{-1}$, so the covariance stays positive
    definite at every step size.
    """

    state: Gaussian

    distance_kind = "local"
    is_riemannian = True

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        covariance, gradient = self.state.covariance, cotangent.regular.covariance
        symmetric = 0.5 * (gradient + gradient.T)
        tangent = eqx.tree_at(
            lambda s: (s.mean, s.covariance),
            self.state,
            (-covariance @ cotangent.regular.mean, -2 * covariance @ symmetric @ covariance),
        )
        return Velocity(tangent)

    def norm_squared(self, velocity: Velocity) -> Scalar:
        relative = jnp.linalg.solve(self.state.covariance, velocity.tangent.covariance)
        shift = velocity.tangent.mean
        return shift @ jnp.linalg.solve(self.state.covariance, shift) + 0.5 * jnp.trace(relative @ relative)

    def move(self, velocity: Velocity, scale: ScalarLike) -> Gaussian:
        covariance = self.state.covariance
        relative = jnp.linalg.solve(covariance, velocity.tangent.covariance)
        stretch = jnp.eye(self.state.dim, dtype=covariance.dtype) + 0.5 * scale * relative.T
        moved = stretch @ covariance @ stretch.T
        mean = self.state.mean + scale * velocity.tangent.mean
        return eqx.tree_at(lambda s: (s.mean, s.covariance), self.state, (mean, 0.5 * (moved + moved.T)))

    def distance_squared(self, other: Gaussian) -> Scalar:
        """$2\\,\\mathrm{KL}$ of the other from this one, in closed form."""
        factor = jnp.linalg.cholesky(self.state.covariance)
        relative = jnp.linalg.solve(self.state.covariance, other.covariance)
        shift = other.mean - self.state.mean
        log_ratio = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) - 2 * jnp.sum(
            jnp.log(jnp.diagonal(jnp.linalg.cholesky(other.covariance)))
        )
        return jnp.trace(relative) - self.state.dim + shift @ jnp.linalg.solve(self.state.covariance, shift) + log_ratio


class GridFisherMetric(AbstractMetric):
    r"""$\|v\|^2 = \int v^2/q$ with $\int v = 0$; steepest descent is $v = -q\,(\xi - \int\xi\,\mathrm dq)$.

    `move` multiplies, $q \propto q\,e^{\alpha v/q}$, and so keeps the density positive and its mass one.
    """

    state: GridDensity

    distance_kind = "exact"

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        values, volume = self.state.values, self.state.grid.cell_volume
        xi = cotangent.regular.values
        mean = jnp.sum(xi * values) * volume / self.state.mass
        return Velocity(eqx.tree_at(lambda s: s.values, self.state, -values * (xi - mean)))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        values = self.state.values
        rate = self._relative(velocity)
        return jnp.sum(values * rate**2) * self.state.grid.cell_volume

    def move(self, velocity: Velocity, scale: ScalarLike) -> GridDensity:
        exponent = scale * self._relative(velocity)
        grown = self.state.values * jnp.exp(exponent - jnp.max(exponent))
        mass = jnp.sum(grown) * self.state.grid.cell_volume
        return eqx.tree_at(lambda s: s.values, self.state, grown * (self.state.mass / mass))

    def free_motion(self, momentum: GridDensity, duration: ScalarLike) -> tuple[GridDensity, GridDensity, Flag]:
        r"""A great circle: $\sqrt q$ turns at the rate $\omega = \tfrac12\|v\|$ on its sphere, to $\sqrt q\,(\cos\omega
        t + \tfrac12 r\,t\operatorname{sinc}\omega t)$ with the relative rate $r = v/q$; as far as it stays positive.
        """
        values, mass = self.state.values, self.state.mass
        mean = jnp.sum(momentum.values * values) * self.state.grid.cell_volume / mass
        rate = mean - momentum.values
        squared = 0.25 * jnp.sum(values * rate**2) * self.state.grid.cell_volume / mass
        turning = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
        angle = turning * duration
        # sin(ωt)/ω, also at rest.
        reach = duration * jnp.sinc(angle / jnp.pi)
        factor = jnp.cos(angle) + 0.5 * rate * reach
        after = rate * jnp.cos(angle) - 2 * squared * reach
        positive = factor > 0
        moved = eqx.tree_at(lambda s: s.values, self.state, values * factor**2)
        slower = eqx.tree_at(lambda s: s.values, momentum, -after / jnp.where(positive, factor, 1))
        return moved, slower, jnp.all(positive)

    def distance_squared(self, other: GridDensity) -> Scalar:
        r"""The squared spherical Hellinger distance, $4\arccos^2\int\sqrt{q q'}$."""
        # From the chord |√q − √q'| = 2 sin(angle/2), which keeps its digits when the two are close.
        chord = jnp.sum((jnp.sqrt(self.state.values) - jnp.sqrt(other.values)) ** 2) * self.state.grid.cell_volume
        angle = 2 * jnp.arcsin(jnp.minimum(0.5 * jnp.sqrt(chord), 1.0))
        return 4 * angle**2

    def _relative(self, velocity: Velocity) -> Array:
        values = self.state.values
        return jnp.where(values > 0, velocity.tangent.values / jnp.where(values > 0, values, 1), 0)


def _refuse_damping(state: Gaussian | GridDensity, geometry: FisherRao) -> None:
    if not (isinstance(geometry.damping, int | float) and geometry.damping == 0):
        raise UnsupportedCombination(
            f"`FisherRao(damping=...)` damps the Fisher matrix of a `Parametric` state; a `{type(state).__name__}` "
            "has none.\nUse `geometry=tw.FisherRao()`."
        )


@metric_at.register
def _(state: Gaussian, geometry: FisherRao) -> Any:
    _refuse_damping(state, geometry)
    return GaussianFisherMetric(state)


@metric_at.register
def _(state: GridDensity, geometry: FisherRao) -> Any:
    _refuse_damping(state, geometry)
    return GridFisherMetric(state)
