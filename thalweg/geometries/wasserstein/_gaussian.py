"""The Wasserstein metric on Gaussians (the Bures–Wasserstein manifold): mass moves by affine velocity fields."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Flag, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric
from thalweg.geometries.wasserstein._geometry import Wasserstein, metric_at, refuse_mobility
from thalweg.states import Gaussian
from thalweg.transport import gaussian_distance_squared


class GaussianMetric(AbstractMetric):
    r"""Velocity fields $u(x) = \dot m + A(x - m)$ with symmetric $A$: $\dot\Sigma = A\Sigma + \Sigma A$, $\|v\|^2 =
    |\dot m|^2 + \operatorname{tr} A\Sigma A$.

    The field is kept beside the tangent, since moving by $(I + \alpha A)\Sigma(I + \alpha A)$ stays positive
    definite and is a geodesic.

    **Source:** Lambert, Chewi, Bach, Bonnabel, Rigollet, *Variational inference via Wasserstein gradient flows* (2022).
    """

    state: Gaussian

    distance_kind = "exact"

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        gradient = cotangent.regular.covariance
        # ⟨ξ_Σ, AΣ + ΣA⟩ + ½ tr(AΣA) is least at A = −2ξ_Σ for symmetric ξ_Σ.
        return self._velocity(-cotangent.regular.mean, -(gradient + gradient.T))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        matrix = velocity.field
        return jnp.sum(velocity.tangent.mean**2) + jnp.trace(matrix @ self.state.covariance @ matrix)

    def move(self, velocity: Velocity, scale: ScalarLike) -> Gaussian:
        return self._affine(scale * velocity.tangent.mean, scale * velocity.field)

    def free_motion(self, momentum: Gaussian, duration: ScalarLike) -> tuple[Gaussian, Gaussian, Flag]:
        r"""Every particle goes straight on, $x \mapsto x + t\,u(x)$, and $A$ becomes $A(I + tA)^{-1}$; as far as no two
        particles meet.
        """
        matrix = -(momentum.covariance + momentum.covariance.T)
        moved = self._affine(-duration * momentum.mean, duration * matrix)
        rates, axes = jnp.linalg.eigh(matrix)
        stretches = 1 + duration * rates
        apart = jnp.all(stretches > 0)
        after = (axes * (rates / jnp.where(stretches > 0, stretches, 1))[None]) @ axes.T
        return moved, eqx.tree_at(lambda s: s.covariance, momentum, -0.5 * after), apart

    def distance_squared(self, other: Gaussian) -> Scalar:
        return gaussian_distance_squared(self.state, other)

    def chart(self, coordinates: Any) -> Gaussian:
        symmetric = 0.5 * (coordinates.covariance + coordinates.covariance.T)
        # exp keeps the map I + A positive definite whatever the coordinates, so solvers cannot fold the space.
        return self._affine(
            coordinates.mean, jax.scipy.linalg.expm(symmetric) - jnp.eye(self.state.dim, dtype=symmetric.dtype)
        )

    def _affine(self, shift: Array, matrix: Array) -> Gaussian:
        stretch = jnp.eye(self.state.dim, dtype=self.state.mean.dtype) + matrix
        covariance = stretch @ self.state.covariance @ stretch.T
        return eqx.tree_at(
            lambda s: (s.mean, s.covariance), self.state, (self.state.mean + shift, _symmetric(covariance))
        )

    def _velocity(self, shift: Array, matrix: Array) -> Velocity:
        rate = matrix @ self.state.covariance
        tangent = eqx.tree_at(lambda s: (s.mean, s.covariance), self.state, (shift, rate + rate.T))
        return Velocity(tangent, matrix)


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


@metric_at.register
def _(state: Gaussian, geometry: Wasserstein) -> GaussianMetric:
    refuse_mobility(state, geometry)
    return GaussianMetric(state)
