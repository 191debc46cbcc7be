r"""The derivative of a minimiser, of any order, whatever found it: the implicit function theorem.

A point $z$ with $g(z, \theta) = 0$ moves by $\mathrm dz = -(\partial_z g)^{-1}\,\partial_\theta
g\,\mathrm d\theta$. The loop that found it is not differentiated; what must be said is how to solve with
$\partial_z g$. (One more Newton step with a frozen matrix gives the same first derivative, but silently wrong second
ones.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from thalweg._types import Array

LinearMap = Callable[[Array], Array]


def root(slope: Callable[[Array], Array], found: Array, tangent_solve: Callable[[LinearMap, Array], Array]) -> Array:
    """`found`, with the derivative of the solution of `slope(z) = 0`; `slope` may close over what it depends on."""
    frozen = jax.lax.stop_gradient(found)
    return jax.lax.custom_root(slope, frozen, lambda _, start: start, tangent_solve)


def solve_symmetric(operator: LinearMap, right: Array) -> Array:
    """Solve with a small symmetric map; directions that it does not see (redundant coordinates) stay at rest."""
    matrix = jax.lax.stop_gradient(_matrix(operator, right))
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    kept = jnp.abs(values) > 1e-12 * jnp.max(jnp.abs(values))
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)

    def solve(_: LinearMap, vector: Array) -> Array:
        return vectors @ (inverse * (vectors.T @ vector))

    return jax.lax.custom_linear_solve(operator, right, solve, symmetric=True)


def solve_square(operator: LinearMap, right: Array) -> Array:
    """Solve with a small invertible map."""
    matrix = jax.lax.stop_gradient(_matrix(operator, right))

    def solve(_: LinearMap, vector: Array) -> Array:
        return jnp.linalg.solve(matrix, vector)

    def transpose_solve(_: LinearMap, vector: Array) -> Array:
        return jnp.linalg.solve(matrix.T, vector)

    return jax.lax.custom_linear_solve(operator, right, solve, transpose_solve)


def _matrix(operator: LinearMap, like: Array) -> Array:
    return jax.vmap(operator)(jnp.eye(like.shape[0], dtype=like.dtype)).T
