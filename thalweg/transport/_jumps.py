r"""Softer jumps of a density, where a map moves them by more than a cell.

Where mass spreads from a jump, the map of the target is flat: many cells have their image within one cell at the jump,
and which of them are full depends on a hundredth of a cell. The equation for the map is then as hard as the jump is
sharp, and its solution no better for it, as the grid knows the place of the jump to a cell only. Made some cells wide,
the jump costs an error of the same order, and the map is smooth. A jump that moves by a few cells only stays as it is.

A jump is a difference of neighbours of a good part of the largest density, and several times larger than those two
cells further on both sides together: no tail is one, and no front that is some cells wide.
"""

import jax.numpy as jnp

from thalweg._types import Array
from thalweg.states import Grid, open_faces, shifted, shifted_back

# A jump is so many times larger than the differences on both sides of it, and not less than this part of the largest
# value.
_LARGER, _LEAST = 4.0, 0.3
# Averages with the neighbours: each widens by half a cell squared.
_PASSES = 6
# Jumps that move by less than the first number of cells stay as they are, from the second on they are softened whole.
_STAYS, _MOVES = 3.0, 12.0


def softened(values: Array, way: Array, grid: Grid) -> Array:
    """The density with softened jumps; `way` says by how many cells each cell is moved. Mass and sign are kept."""
    dim = values.ndim
    unit = lambda axis: tuple(int(a == axis) for a in range(dim))  # noqa: E731
    near = jnp.zeros_like(values, dtype=bool)
    for axis in range(dim):
        two = tuple(2 * k for k in unit(axis))
        step = jnp.where(open_faces(grid, axis), jnp.abs(shifted(values, unit(axis)) - values), 0)
        beside = shifted(step, two) + shifted_back(step, two)
        jump = (step > _LARGER * beside) & (step > _LEAST * jnp.max(values))
        near = near | jump | shifted_back(jump, unit(axis))
    for _ in range(_PASSES):
        for axis in range(dim):
            opened = jnp.broadcast_to(open_faces(grid, axis), values.shape)
            near = near | (shifted(near, unit(axis)) & opened) | shifted_back(near & opened, unit(axis))
    weight = jnp.where(near, jnp.clip((way - _STAYS) / (_MOVES - _STAYS), 0, 1), 0)
    shares = [
        jnp.where(open_faces(grid, axis), 0.25 * jnp.minimum(weight, shifted(weight, unit(axis))), 0)
        for axis in range(dim)
    ]
    for _ in range(_PASSES):
        for axis, share in enumerate(shares):
            flow = share * (shifted(values, unit(axis)) - values)
            values = values + flow - shifted_back(flow, unit(axis))
    return values
