"""The few type names that the whole library shares."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

Point: TypeAlias = Float[Array, " dim"]
"""A point of space: an array of shape `(dim,)`, also in one dimension."""

Scalar: TypeAlias = Float[Array, ""]
"""A real number as an array of shape `()`."""

ScalarLike: TypeAlias = Float[Array, ""] | float | int
"""What may be given where a real number is meant."""

Count: TypeAlias = Int[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]

PointFunction: TypeAlias = Callable[[Any], Any]
"""A function of one point that returns a scalar, such as a potential V or a log density."""

State: TypeAlias = PyTree[Any]
"""A point of the space in which the flow moves: a pytree of arrays, or one of `thalweg.states`."""

__all__ = [
    "Array",
    "Bool",
    "Count",
    "Flag",
    "Float",
    "Int",
    "PRNGKey",
    "Point",
    "PointFunction",
    "PyTree",
    "Scalar",
    "ScalarLike",
    "Shaped",
    "State",
]
