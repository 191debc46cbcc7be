"""Several sums in one pass over memory.

To the compiler a sum is a loop of its own, and each loop costs about as much to compile as a page of arithmetic. What
is summed together is one loop.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar

# Beyond this many terms each sum is its own, in pairs: one after another the rounding grows with the number.
_LARGEST = 4096


@jax.custom_jvp
def sums(*terms: Array) -> tuple[Scalar, ...]:
    """The sum of all entries of each array; the arrays have one shape and dtype."""
    return folded(terms)


@sums.defjvp
def _(terms: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[tuple[Scalar, ...], tuple[Scalar, ...]]:
    return sums(*terms), tuple(jnp.sum(tangent) for tangent in tangents)


def folded(terms: Sequence[Array], most: Sequence[Array] = (), least: Sequence[Array] = ()) -> tuple[Scalar, ...]:
    """Sums, then largest, then smallest entries, of arrays of one shape and dtype; not to be differentiated."""
    everything = [*terms, *most, *least]
    if math.prod(everything[0].shape) > _LARGEST:
        return (*map(jnp.sum, terms), *map(jnp.max, most), *map(jnp.min, least))
    folds = [jax.lax.add] * len(terms) + [jax.lax.max] * len(most) + [jax.lax.min] * len(least)
    starts = [0.0] * len(terms) + [-jnp.inf] * len(most) + [jnp.inf] * len(least)
    if len(everything) == 1:
        # One alone would be taken apart into a tree of loops.
        everything, folds, starts = everything * 2, [*folds, jax.lax.max], [*starts, -jnp.inf]
    starts = tuple(jnp.asarray(start, everything[0].dtype) for start in starts)

    def together(left: tuple[Scalar, ...], right: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        return tuple(fold(a, b) for fold, a, b in zip(folds, left, right, strict=True))

    found = jax.lax.reduce(tuple(everything), starts, together, tuple(range(everything[0].ndim)))
    return tuple(found[: len(terms) + len(most) + len(least)])
