r"""Linear solvers for operators that are not symmetric, each preconditioned from the right.

`bicgstab` keeps eight vectors whatever it takes and is the faster where it is solved to the end. `conjugate_residuals`
(generalised, Orthomin(k)) never lets the residual grow, so that what it has after a given number of steps is of use;
it keeps the last few directions, and for a symmetric operator one would do.

**Source:** van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992); Eisenstat, Elman, Schultz, *Variational iterative
methods for nonsymmetric systems of linear equations*, SIAM J. Numer. Anal. 20 (1983).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Scalar, ScalarLike

# So many directions are kept.
_WINDOW = 4


class _TwoSided(NamedTuple):
    solution: Array
    left: Array
    direction: Array
    image: Array
    rho: Scalar
    alpha: Scalar
    omega: Scalar
    count: Count


def bicgstab(
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    right: Array,
    tolerance: Scalar,
    max_steps: int,
) -> tuple[Array, Count]:
    r"""About $A^{-1}b$, from zero, until $\|b - Ax\| \le$ `tolerance` $\|b\|$: the solution and the number of steps, of
    two products each.
    """
    norm = lambda vector: jnp.sqrt(jnp.sum(vector**2))  # noqa: E731
    goal = tolerance * norm(right)

    def quotient(a: Scalar, b: Scalar) -> Scalar:
        some = jnp.abs(b) > jnp.finfo(right.dtype).tiny
        return jnp.where(some, a / jnp.where(some, b, 1), 0)

    def body(c: _TwoSided) -> _TwoSided:
        rho = jnp.sum(right * c.left)
        beta = quotient(rho, c.rho) * quotient(c.alpha, c.omega)
        direction = c.left + beta * (c.direction - c.omega * c.image)
        first = precondition(direction)
        image = product(first)
        alpha = quotient(rho, jnp.sum(right * image))
        half = c.left - alpha * image
        second = precondition(half)
        turned = product(second)
        omega = quotient(jnp.sum(turned * half), jnp.sum(turned**2))
        solution = c.solution + alpha * first + omega * second
        return _TwoSided(solution, half - omega * turned, direction, image, rho, alpha, omega, c.count + 1)

    one, zeros = jnp.ones((), right.dtype), jnp.zeros_like(right)
    begin = _TwoSided(zeros, right, zeros, zeros, one, one, one, jnp.zeros((), jnp.int32))
    unfinished = lambda c: (norm(c.left) > goal) & (c.count < max_steps) & (c.rho != 0)  # noqa: E731
    end = jax.lax.while_loop(unfinished, body, begin)
    return end.solution, end.count


class _Directions(NamedTuple):
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

    def unfinished(c: _Directions) -> Array:
        return c.going & (jnp.linalg.norm(c.left) > goal) & (c.count < max_steps)

    def body(c: _Directions) -> _Directions:
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
        return _Directions(
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
    begin = _Directions(jnp.zeros_like(right), right, kept, kept, ones, jnp.asarray(0, jnp.int32), jnp.asarray(True))
    end = jax.lax.while_loop(unfinished, body, begin)
    return end.values, end.count
