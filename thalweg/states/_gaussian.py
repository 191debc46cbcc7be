"""The Gaussian family, as a space of its own: a mean and a covariance."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._result import RESULTS
from thalweg._types import Array, PRNGKey, PyTree, Scalar
from thalweg.states._base import AbstractDensity, is_concrete

# Up to here a tensor rule of seven nodes per axis is affordable.
_LARGEST_TENSOR = 3


class Gaussian(AbstractDensity):
    r"""The normal distribution $N(m, \Sigma)$.

    Integrals use fixed quadrature nodes $m + \Sigma^{1/2} z_k$: a tensor Gauss–Hermite rule with seven nodes per
    axis up to three dimensions (exact for polynomials of degree 13 in each variable), and the cubature rule of $2d$
    nodes beyond (exact to degree 3). The entropy is exact.

    **Arguments:** `mean`: shape `(dim,)`; `covariance`: shape `(dim, dim)`, symmetric positive definite.

    **Raises:** `ValueError` for a wrong shape or a covariance that is not positive definite.
    """

    mean: Array
    covariance: Array

    def __check_init__(self) -> None:
        if not is_concrete(self.mean, self.covariance):
            return
        if self.covariance.shape != (*self.mean.shape, *self.mean.shape[-1:]):
            raise ValueError(
                "`Gaussian(mean, covariance)` needs shapes (dim,) and (dim, dim); "
                f"got {self.mean.shape} and {self.covariance.shape}."
            )
        matrix = np.asarray(self.covariance)
        symmetric = np.allclose(matrix, np.swapaxes(matrix, -1, -2), rtol=1e-5, atol=1e-8)
        if not (np.all(np.isfinite(matrix)) and symmetric and np.all(np.linalg.eigvalsh(matrix) > 0)):
            raise ValueError("`covariance` must be symmetric positive definite; it is not.")

    @property
    def dim(self) -> int:
        """The dimension of the space."""
        return self.mean.shape[-1]

    @property
    def knows_density(self) -> bool:
        """True: the density is that of the normal distribution."""
        return True

    def log_density(self, point: Array) -> Array:
        """The log density at one point of shape `(dim,)`."""
        factor = jnp.linalg.cholesky(self.covariance)
        white = jax.scipy.linalg.solve_triangular(factor, point - self.mean, lower=True)
        return (
            -0.5 * jnp.sum(white**2)
            - jnp.sum(jnp.log(jnp.diagonal(factor)))
            - jnp.asarray(0.5 * self.dim * math.log(2 * math.pi), self.mean.dtype)
        )

    def sample(self, key: PRNGKey, num_samples: int) -> Array:
        """Independent draws, shape `(num_samples, dim)`."""
        noise = jax.random.normal(key, (num_samples, self.dim), self.mean.dtype)
        return self.mean[None] + noise @ jnp.linalg.cholesky(self.covariance).T

    def nodes(self) -> tuple[Array, Array]:
        """The quadrature nodes, shape `(num_nodes, dim)`, and their weights, shape `(num_nodes,)`."""
        base, weights = _standard_nodes(self.dim)
        factor = jnp.linalg.cholesky(self.covariance)
        return self.mean[None] + jnp.asarray(base, self.mean.dtype) @ factor.T, jnp.asarray(weights, self.mean.dtype)

    def expect(self, potential: Callable[..., Any]) -> Scalar:
        r"""$\sum_k \omega_k V(x_k)$ over the quadrature nodes."""
        points, weights = self.nodes()
        return jnp.sum(weights * jax.vmap(potential)(points))

    def expect_pair(self, kernel: Callable[..., Any]) -> Scalar:
        r"""$E\,W(x - y)$: the difference of two independent draws is $N(0, 2\Sigma)$, so the same nodes serve."""
        difference = eqx.tree_at(
            lambda s: (s.mean, s.covariance), self, (jnp.zeros_like(self.mean), 2 * self.covariance)
        )
        return difference.expect(kernel)

    def integrate(self, integrand: Callable[..., Any]) -> Scalar:
        r"""$\sum_k \omega_k\, e(q(x_k), x_k)/q(x_k)$ over the quadrature nodes."""
        if self.dim > _LARGEST_TENSOR:
            raise UnsupportedCombination(
                f"An internal energy or f-divergence of a `Gaussian` has no accurate quadrature in {self.dim} "
                "dimensions "
                f"(at most {_LARGEST_TENSOR}).\n"
                "`tw.KL`, `tw.Entropy` and potentials work in every dimension; else use `tw.Particles` with "
                "a density model."
            )
        points, weights = self.nodes()
        values = jnp.exp(jax.vmap(self.log_density)(points))
        return jnp.sum(weights * jax.vmap(integrand)(values, points) / values)

    def negative_entropy(self) -> Scalar:
        r"""$-\tfrac12\log\det(2\pi e\,\Sigma)$."""
        factor = jnp.linalg.cholesky(self.covariance)
        constant = 0.5 * self.dim * (1 + math.log(2 * math.pi))
        return -jnp.asarray(constant, self.mean.dtype) - jnp.sum(jnp.log(jnp.diagonal(factor)))

    def moving(self) -> PyTree:
        """The mean and the covariance."""
        return self

    def quadrature_weights(self) -> PyTree:
        """One: the coordinates are a vector."""
        return jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), self.moving())

    def admissibility(self) -> Any:
        """Finite, with a positive definite covariance."""
        definite = jnp.all(jnp.isfinite(jnp.linalg.cholesky(self.covariance)))
        result = RESULTS.where(definite, RESULTS.successful, RESULTS.left_domain)
        return RESULTS.where(_tree.all_finite(self), result, RESULTS.non_finite)


def _standard_nodes(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the standard normal distribution."""
    if dim <= _LARGEST_TENSOR:
        points, weights = np.polynomial.hermite_e.hermegauss(7)
        weights = weights / weights.sum()
        nodes = np.array(list(itertools.product(points, repeat=dim)))
        return nodes, np.array([math.prod(row) for row in itertools.product(weights, repeat=dim)])
    # The symmetric rule of degree 3 (Arasaratnam and Haykin, IEEE Trans. Automat. Control 54, 2009).
    return math.sqrt(dim) * np.concatenate([np.eye(dim), -np.eye(dim)]), np.full(2 * dim, 0.5 / dim)
