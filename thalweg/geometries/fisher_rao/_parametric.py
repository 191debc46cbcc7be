"""The Fisher metric of a parametric family: the natural gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric, flat_quadratic
from thalweg.geometries.fisher_rao._geometry import FisherRao, metric_at
from thalweg.states import Parametric


class ParametricMetric(AbstractMetric):
    r"""$\|\dot\theta\|^2 = \dot\theta^\top G\dot\theta$, $G =
    \nabla^2_{\theta'}\mathrm{KL}(p_\theta\|p_{\theta'})|_{\theta'=\theta}$, and $D = 2\,\mathrm{KL}$.

    Following the article, $D(\theta', \theta) = 2\,\mathrm{KL}(p_{\theta'}\|p_\theta)$; the factor makes
    $D/\varepsilon^2 \to \|\dot\theta\|^2$. Damping adds its own square to both.
    """

    state: Parametric
    damping: Any

    distance_kind = "local"

    def matrix(self) -> Array:
        """The Fisher matrix in flat coordinates, with the damping, shape `(n, n)`."""
        fisher = self._fisher()
        return fisher + jnp.asarray(self.damping, fisher.dtype) * jnp.diag(jnp.diagonal(fisher))

    def _fisher(self) -> Array:
        flat, unravel = ravel_pytree(self.state.params)
        family, here = self.state.family, self.state.params
        # The gradient of the divergence vanishes at equality, so this Hessian has no second derivatives of a model
        # in it: it is JᵀGJ.
        return jax.hessian(lambda other: family.kl(here, unravel(other)))(flat)

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        gradient, unravel = ravel_pytree(cotangent.regular.params)
        step = _solve_scaled(self.matrix(), gradient)
        tangent = eqx.tree_at(lambda s: s.params, cotangent.regular, unravel(-step))
        return Velocity(tangent)

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return flat_quadratic(self.matrix(), ravel_pytree(velocity.tangent.params)[0])

    def move(self, velocity: Velocity, scale: ScalarLike) -> Parametric:
        return self._moved(scale, velocity.tangent.params)

    def distance_squared(self, other: Parametric) -> Scalar:
        divergence = 2 * self.state.family.kl(other.params, self.state.params)
        if isinstance(self.damping, int | float) and self.damping == 0:
            return divergence
        offset, _ = ravel_pytree(_tree.multiply_add(other.params, -1.0, self.state.params))
        damping = jnp.asarray(self.damping, offset.dtype)
        return divergence + damping * jnp.sum(jnp.diagonal(self._fisher()) * offset**2)

    def chart(self, coordinates: Any) -> Parametric:
        return self._moved(1.0, coordinates.params)

    def _moved(self, scale: ScalarLike, direction: Any) -> Parametric:
        moved = _tree.multiply_add(self.state.params, scale, direction)
        return eqx.tree_at(lambda s: s.params, self.state, moved)


def _solve_scaled(matrix: Array, vector: Array) -> Array:
    # Scaled to a unit diagonal first: parameters of sizes 1e-4 and 1e4 are common, and Cholesky's error is that of
    # the scaled matrix.
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), jnp.finfo(matrix.dtype).tiny))
    scaled, right = matrix / scale[:, None] / scale[None], vector / scale
    # Factors are not differentiated (equal eigenvalues would make NaN): the solution is, as that of a linear system.
    frozen = jax.lax.stop_gradient(scaled)
    factor = jnp.linalg.cholesky(frozen)
    # A singular matrix has directions that do not change the distribution: they stay at rest (pseudo-inverse).
    values, vectors = jnp.linalg.eigh(frozen)
    kept = values > matrix.shape[0] * jnp.finfo(matrix.dtype).eps * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)

    def solve(_: Any, right: Array) -> Array:
        by_factor = cho_solve((factor, True), right)
        by_eigenvectors = vectors @ (inverse * (vectors.T @ right))
        return jnp.where(jnp.all(jnp.isfinite(factor)), by_factor, by_eigenvectors)

    return jax.lax.custom_linear_solve(lambda v: scaled @ v, right, solve, symmetric=True) / scale


@metric_at.register
def _(state: Parametric, geometry: FisherRao) -> ParametricMetric:
    return ParametricMetric(state, geometry.damping)
