r"""Generalised conjugate residuals: a linear solver for operators that are nearly, but not quite, symmetric.

Each step takes one product and one application of the preconditioner, and never lets the residual grow. The last few
directions are kept, so that the new one's image is orthogonal to theirs; for a symmetric operator one would do.

**Source:** Eisenstat, Elman, Schultz, *Variational iterative methods for nonsymmetric systems of linear equations*,
SIAM J. Numer. Anal. 20 (1983): Orthomin(k).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, ScalarLike

# So many directions are kept.
_WINDOW = 4


class _Carry(NamedTuple):
    values: Array
    left: Array
    directions: Array
    images: Array
    squares: Array
    count: Count
    going: Array


def conjugate_residuals(
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    right: Array,
    tolerance: ScalarLike,
    max_steps: int,
) -> tuple[Array, Count]:
    r"""About $A^{-1}b$, from zero, until $\|b - Ax\| \le$ `tolerance` $\|b\|$: the solution and the number of steps."""
    goal = tolerance * jnp.linalg.norm(right)

    def unfinished(c: _Carry) -> Array:
        return c.going & (jnp.linalg.norm(c.left) > goal) & (c.count < max_steps)

    def body(c: _Carry) -> _Carry:
        direction = precondition(c.left)
        image = product(direction)
        axes = tuple(range(1, image.ndim + 1))
        parts = jnp.sum(c.images * image[None], axis=axes) / c.squares
        direction = direction - jnp.tensordot(parts, c.directions, 1)
        image = image - jnp.tensordot(parts, c.images, 1)
        square = jnp.sum(image**2)
        usable = square > 0
        size = jnp.where(usable, jnp.sum(c.left * image) / jnp.where(usable, square, 1), 0)
        slot = c.count % _WINDOW
        return _Carry(
            c.values + size * direction,
            c.left - size * image,
            c.directions.at[slot].set(direction),
            c.images.at[slot].set(image),
            c.squares.at[slot].set(jnp.where(usable, square, 1)),
            c.count + 1,
            usable & jnp.isfinite(square),
        )

    kept = jnp.zeros((_WINDOW, *right.shape), right.dtype)
    ones = jnp.ones((_WINDOW,), right.dtype)
    begin = _Carry(jnp.zeros_like(right), right, kept, kept, ones, jnp.asarray(0, jnp.int32), jnp.asarray(True))
    end = jax.lax.while_loop(unfinished, body, begin)
    return end.values, end.count
