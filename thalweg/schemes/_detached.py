"""A computation that no derivative goes through, although it may close over what is differentiated."""

from collections.abc import Callable
from typing import TypeVar

import jax

from thalweg._types import Array

Result = TypeVar("Result")


def detached(compute: Callable[[Array], Result], given: Array) -> Result:
    """`compute(given)` as a constant of every derivative: also where it loops, and where it closes over parameters
    (those of an energy, say) that `stop_gradient` cannot reach. `given` is an array of floats; counts and flags come
    back as they were.
    """
    types = None

    def solve(_: Callable[[Array], Array], start: Array) -> tuple[Array, Result]:
        nonlocal types
        result = compute(start)
        types = jax.tree.map(lambda leaf: leaf.dtype, result)
        # The rule of `custom_root` gives each output a tangent of its own type, which only floats have.
        return start, jax.tree.map(lambda leaf: leaf.astype(start.dtype), result)

    # `custom_root` differentiates the function whose root is asked for; this one depends on nothing.
    _, result = jax.lax.custom_root(lambda values: values, given, solve, lambda _, right: right, has_aux=True)
    return jax.tree.map(lambda leaf, kind: jax.lax.stop_gradient(leaf.astype(kind)), result, types)
