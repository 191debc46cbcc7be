r"""Derivatives of cell values: differences across the faces between neighbouring cells.

A face at a wall, at the end of an axis that is not periodic, or next to a cell outside of the domain is closed: there
the difference is zero. A sum of squares over the open faces therefore has the no-flux condition as its natural boundary
condition, and automatic differentiation gives $-\Delta_h$ with it at every cell, corners included.
"""

import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.states._grid import Grid


def open_faces(grid: Grid, axis: int) -> np.ndarray:
    """Whether the face between a cell and the next one along an axis is open; broadcastable to the grid's shape."""
    n = grid.shape[axis]
    flags = np.ones(n, bool)
    flags[n - 1] = grid.is_periodic(axis)
    flags = flags.reshape(tuple(n if i == axis else 1 for i in range(grid.dim)))
    return flags if grid.mask is None else flags & grid.mask & np.roll(grid.mask, -1, axis)


def shifted(values: Array, offset: tuple[int, ...]) -> Array:
    """The values an offset further on, wrapping."""
    axes = tuple(axis for axis, k in enumerate(offset) if k)
    return jnp.roll(values, tuple(-offset[axis] for axis in axes), axes)


def shifted_back(values: Array, offset: tuple[int, ...]) -> Array:
    """The values an offset before, wrapping."""
    return shifted(values, tuple(-k for k in offset))


def face_gradients(values: Array, grid: Grid) -> tuple[Array, ...]:
    """For each axis the difference quotient from each cell to the next one, zero at closed faces."""
    return tuple(
        jnp.where(open_faces(grid, axis), (jnp.roll(values, -1, axis) - values) / grid.spacing[axis], 0)
        for axis in range(grid.dim)
    )


def gradient_squared(values: Array, grid: Grid) -> Array:
    """The squared gradient on the cells: along each axis the mean of the squares at the two faces of a cell."""
    total = jnp.zeros_like(values)
    for axis, slope in enumerate(face_gradients(values, grid)):
        square = slope**2
        total = total + 0.5 * (square + jnp.roll(square, 1, axis))
    return total
