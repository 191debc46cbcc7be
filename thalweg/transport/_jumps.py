r"""Softer jumps of a density, where a map moves them by more than a cell.

Where mass spreads from a jump, the map of the target is flat: many cells have their image within one cell at the jump,
and which of them are full depends on a hundredth of a cell. The equation for the map is then as hard as the jump is
sharp, and its solution no better for it, as the grid knows the place of the jump to a cell only. Made some cells wide,
the jump costs an error of the same order, and the map is smooth. A jump that moves by a few cells only stays as it is.

A jump is a difference of neighbours of a good part of the largest density, and several times larger than those two
cells further on both sides together: no tail is one, and no front that is some cells wide.
"""

import jax
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


def softness(values: Array, way: Array, grid: Grid) -> Array:
    """Where jumps are to be softened, and by which part; `way` says by how many cells each cell is moved."""
    near = jnp.zeros_like(values, dtype=bool)
    for axis, one in enumerate(_units(grid)):
        two = tuple(2 * k for k in one)
        step = jnp.where(open_faces(grid, axis), jnp.abs(shifted(values, one) - values), 0)
        beside = shifted(step, two) + shifted_back(step, two)
        jump = (step > _LARGER * beside) & (step > _LEAST * jnp.max(values))
        near = near | jump | shifted_back(jump, one)
    for _ in range(_PASSES):
        for axis, one in enumerate(_units(grid)):
            opened = jnp.broadcast_to(open_faces(grid, axis), values.shape)
            near = near | (shifted(near, one) & opened) | shifted_back(near & opened, one)
    return jnp.where(near, jnp.clip((way - _STAYS) / (_MOVES - _STAYS), 0, 1), 0)


def softened(values: Array, part: Array, grid: Grid, steeper: float = 1.0) -> Array:
    """The density with jumps that are some cells wide, where `part` says so, made so much steeper and cut off at what
    was there before. Mass and sign are kept.
    """

    def wider(_: object, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        values, highest, lowest = carry
        for axis, one in enumerate(_units(grid)):
            opened = jnp.broadcast_to(open_faces(grid, axis), values.shape)
            for way, there in ((shifted, opened), (shifted_back, shifted_back(opened, one))):
                highest = jnp.maximum(highest, jnp.where(there, way(highest, one), highest))
                lowest = jnp.minimum(lowest, jnp.where(there, way(lowest, one), lowest))
        return averaged(values, part, grid), highest, lowest

    soft, highest, lowest = jax.lax.fori_loop(0, _PASSES, wider, (values, values, values))
    middle = 0.5 * (highest + lowest)
    steep = jnp.where(part > 0, jnp.clip(middle + steeper * (soft - middle), lowest, highest), values)
    changed = jnp.where(part > 0, steep, 0)
    total = jnp.sum(changed)
    return steep + changed * ((jnp.sum(values) - jnp.sum(steep)) / jnp.where(total > 0, total, 1))


def averaged(values: Array, part: Array, grid: Grid) -> Array:
    """The density once averaged with its neighbours, where `part` says so."""
    for axis, one in enumerate(_units(grid)):
        share = jnp.where(open_faces(grid, axis), 0.25 * jnp.minimum(part, shifted(part, one)), 0)
        flow = share * (shifted(values, one) - values)
        values = values + flow - shifted_back(flow, one)
    return values


def _units(grid: Grid) -> list[tuple[int, ...]]:
    return [tuple(int(a == axis) for a in range(grid.dim)) for axis in range(grid.dim)]
