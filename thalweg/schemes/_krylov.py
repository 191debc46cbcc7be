r"""The quadratic model restricted to a Krylov space: what Hessian-vector products can tell of it.

From the slope $g$ the Lanczos process builds an orthonormal basis $Q$ of $\{g, Hg, H^2g, \dots\}$ in which the
Hessian is tridiagonal. The minimiser of the model in a ball is then found in that small space, for every radius that
is tried, without another product (Gould, Lucidi, Roma, Toint, *Solving the trust-region subproblem using the Lanczos
method*, SIAM J. Optim. 9, 1999). Truncated conjugate gradients stop at the first negative curvature; this does not.
The price is the memory of the basis, `num_vectors` vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar


class KrylovSpace(NamedTuple):
    """Ritz values, slopes in the Ritz basis, the basis (columns), and the number of products."""

    values: Array
    slopes: Array
    basis: Array
    products: Scalar


def krylov_space(product: Callable[[Array], Array], slope: Array, num_vectors: int, residual: Scalar) -> KrylovSpace:
    """The model in the Krylov space of its slope, of at most `num_vectors` dimensions; built until the linear system
    $Hs = -g$ is solved to the relative `residual`, if the Hessian is positive definite.
    """
    count = min(num_vectors, slope.shape[0])
    dtype, size = slope.dtype, jnp.linalg.norm(slope)
    eps = jnp.finfo(dtype).eps

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, _, beside, k, left, _ = carry
        broken = (k > 0) & (beside[jnp.maximum(k - 1, 0)] <= 0)
        return (k < count) & ((left > residual) | (k < 2)) & ~broken

    def extend(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, diagonal, beside, k, left, pivot = carry
        image = product(basis[k])
        along = image @ basis[k]
        for _ in range(2):  # once is not enough
            image = image - basis.T @ (basis @ image)
        beyond = jnp.linalg.norm(image)
        beyond = jnp.where(beyond > 10 * eps * jnp.abs(along), beyond, 0)
        before = jnp.where(k > 0, beside[jnp.maximum(k - 1, 0)], 0)
        # The pivots of the LDLᵀ factors of the tridiagonal matrix give the residual of conjugate gradients.
        pivot = along - jnp.where(k > 0, before**2 / jnp.where(pivot != 0, pivot, 1), 0)
        left = jnp.where(pivot > 0, left * beyond / jnp.where(pivot > 0, pivot, 1), jnp.inf)
        basis = basis.at[k + 1].set(image / jnp.where(beyond > 0, beyond, 1))
        return basis, diagonal.at[k].set(along), beside.at[k].set(beyond), k + 1, left, pivot

    basis = jnp.zeros((count + 1, slope.shape[0]), dtype).at[0].set(slope / jnp.where(size > 0, size, 1))
    zeros, one = jnp.zeros((count,), dtype), jnp.ones((), dtype)
    start = (basis, zeros, zeros, jnp.asarray(0, jnp.int32), one, one)
    basis, diagonal, beside, k, _, _ = jax.lax.while_loop(unfinished, extend, start)
    # Rows that were not reached stand apart, with a curvature among the others and no slope.
    place = jnp.arange(count, dtype=jnp.int32)
    reached = place < k
    diagonal = jnp.where(reached, diagonal, diagonal[0])
    coupling = jnp.where(place < k - 1, beside, 0)[: count - 1]
    matrix = jnp.diag(diagonal) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
    values, vectors = jnp.linalg.eigh(matrix)
    rows = jnp.where(reached[:, None], basis[:count], 0)
    return KrylovSpace(values, size * vectors[0], rows.T @ vectors, k)
