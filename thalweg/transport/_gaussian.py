"""Optimal transport between Gaussians, in closed form."""

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.states import Gaussian


def gaussian_distance_squared(a: Gaussian, b: Gaussian) -> Scalar:
    r"""$W_2^2 = |m_a - m_b|^2 + \operatorname{tr}\left(\Sigma_a + \Sigma_b - 2(L_b^\top\Sigma_a L_b)^{1/2}\right)$
    with $\Sigma_b = L_b L_b^\top$.

    The trace is a difference of numbers of the size of the covariances, so the absolute error is their size times
    the rounding unit.

    **Source:** Olkin, Pukelsheim, *The distance between two random vectors with given dispersion matrices* (1982).
    """
    factor = jnp.linalg.cholesky(b.covariance)
    overlap = jnp.trace(symmetric_sqrt(factor.T @ a.covariance @ factor))
    return jnp.sum((a.mean - b.mean) ** 2) + jnp.trace(a.covariance) + jnp.trace(b.covariance) - 2 * overlap


@jax.custom_jvp
def symmetric_sqrt(matrix: Array) -> Array:
    """The positive root of a symmetric positive definite matrix, shape `(n, n)`; differentiable at equal eigenvalues
    too.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T


@symmetric_sqrt.defjvp
def _symmetric_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # S² = M gives S Ṡ + Ṡ S = Ṁ. Solved as one linear system: derivatives of eigenvectors, which blow up at equal
    # eigenvalues, never appear.
    root = symmetric_sqrt(primals[0])
    identity = jnp.eye(root.shape[0], dtype=root.dtype)
    system = jnp.kron(root, identity) + jnp.kron(identity, root)
    return root, jnp.linalg.solve(system, tangents[0].ravel()).reshape(root.shape)
