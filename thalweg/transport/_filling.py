r"""A function that is known on some cells of a grid, filled smoothly elsewhere: with the least $\int(\Delta f)^2$, so
that its slope goes on where the known cells end.
"""

import jax.numpy as jnp

from thalweg._types import Array
from thalweg.states import Grid, open_faces
from thalweg.transport._multigrid import Elliptic, apply, conjugate_gradients

_MOST_STEPS, _TOLERANCE = 600, 1e-4


def smoothly_filled(values: Array, known: Array, grid: Grid) -> Array:
    """The values, and on cells that are not known those that make the sum of squared second differences least.

    By conjugate gradients, for grids that are coarse: their number grows with the square of that of the cells between
    what is known and what is not.
    """

    zeros = jnp.zeros_like(values)
    operator = Elliptic(zeros, tuple(zeros + open_faces(grid, axis).astype(values.dtype) for axis in range(grid.dim)))
    squared = lambda u: apply(operator, apply(operator, u))  # noqa: E731
    free = lambda u: jnp.where(known, 0, u)  # noqa: E731
    number = jnp.maximum(jnp.sum(known.astype(values.dtype)), 1)
    start = jnp.where(known, values, jnp.sum(jnp.where(known, values, 0)) / number)
    right = free(-squared(start))
    goal = _TOLERANCE * jnp.sqrt(jnp.sum(right**2))
    found, _ = conjugate_gradients(lambda u: free(squared(free(u))), lambda r: r, right, goal, _MOST_STEPS)
    return start + found
