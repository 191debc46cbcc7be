r"""A function that is known on some cells of a plane grid, continued over the rings of cells around them.

A cell of a ring takes the mean, over the directions in which known cells and those of lower rings follow each other,
of what they say: the first two rings the parabola through three cells, $3f(j+\delta) - 3f(j+2\delta) + f(j+3\delta)$,
where there are three, all others the line $2f(j+\delta) - f(j+2\delta)$; for the eight directions $\delta$, diagonals
with half the weight. Linear functions are kept. With E the continuation, the transpose $E^\mathsf T$ gathers what is on
the rings into the known cells; as constants are kept, it loses nothing.

The cells of the rings are kept as lists, of a length that is a multiple of the grid's circumference.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from thalweg._types import Array, Flag
from thalweg.states import Grid

_DIRECTIONS = [d for d in itertools.product((-1, 0, 1), repeat=2) if any(d)]
_OFFSETS = np.array([[[k * d[axis] for k in (1, 2, 3) for d in _DIRECTIONS]] for axis in (0, 1)], np.int32)[:, None]
_WEIGHTS = np.array([[[1.0 if 0 in d else 0.5 for d in _DIRECTIONS]]])
# So many rings go on with their curvature.
_CURVED = 2
# The lists hold so many times the cells around the grid.
_ROOM = 2
_FAR = 100


class Continuation(NamedTuple):
    """`ring`: zero where known, then the number of the ring. For each ring its cells, those that they take from, and by
    which factors. `complete`: whether the lists hold all.
    """

    ring: Array
    cells: Array
    sources: Array
    factors: Array
    complete: Flag

    def within(self, rings: int) -> Array:
        """The known cells and so many rings."""
        return self.ring <= rings


def continuation(known: Array, grid: Grid, rings: int, dtype: DTypeLike) -> Continuation:
    """From the known cells to so many rings."""
    ring = jnp.where(known, 0, _FAR).astype(jnp.int32)
    near = known
    for k in range(1, rings + 1):
        near = grown(near, grid)
        ring = jnp.where(near & (ring == _FAR), k, ring)
    flat = ring.reshape(-1)
    # Lists of a fixed length: what is not needed of one has factors of zero.
    number = jnp.arange(1, rings + 1, dtype=jnp.int32)
    listed = jax.vmap(lambda k: jnp.nonzero(flat == k, size=_length(grid), fill_value=0)[0])
    cells = listed(number).astype(jnp.int32)
    rows, columns = grid.shape
    i, j = (cells // columns)[..., None] + _OFFSETS[0], (cells % columns)[..., None] + _OFFSETS[1]
    inside = ((i >= 0) & (i < rows) | grid.is_periodic(0)) & ((j >= 0) & (j < columns) | grid.is_periodic(1))
    sources = (i % rows) * columns + j % columns
    real = flat[cells] == number[:, None]
    lower = inside & (flat[sources] < number[:, None, None]) & real[..., None]
    first, second, third = jnp.split(lower, 3, axis=-1)
    line = jnp.where(first & second, jnp.asarray(_WEIGHTS, dtype), 0)
    line = line / jnp.maximum(jnp.sum(line, -1, keepdims=True), _WEIGHTS.min())
    bend = jnp.where(third & (number <= _CURVED)[:, None, None], line, 0)
    factors = jnp.concatenate([2 * line + bend, -line - 2 * bend, bend], -1)
    complete = jnp.sum((flat > 0) & (flat < _FAR)) <= jnp.sum(real)
    return Continuation(ring, cells, sources, factors, complete)


def everything(grid: Grid, rings: int, dtype: DTypeLike) -> Continuation:
    """All cells are known."""
    shape = (rings, _length(grid))
    nowhere = jnp.zeros((*shape, _OFFSETS.shape[-1]), jnp.int32)
    ring = jnp.zeros(grid.shape, jnp.int32)
    return Continuation(ring, jnp.zeros(shape, jnp.int32), nowhere, nowhere.astype(dtype), jnp.asarray(True))


def _length(grid: Grid) -> int:
    return min(2 * _ROOM * sum(grid.shape), grid.num_cells)


def continued(values: Array, way: Continuation, rings: int) -> Array:
    """The known values, and those of so many rings; zero beyond."""
    flat = jnp.where(way.ring == 0, values, 0).reshape(-1)
    for cells, sources, factors in zip(way.cells[:rings], way.sources[:rings], way.factors[:rings], strict=True):
        flat = flat.at[cells].add(jnp.sum(factors * flat[sources], -1))
    return flat.reshape(values.shape)


def gathered(values: Array, way: Continuation, rings: int) -> Array:
    """The transpose: what is on so many rings, brought to the known cells."""
    flat = jnp.where(way.ring <= rings, values, 0).reshape(-1)
    for k in reversed(range(rings)):
        flat = flat.at[way.sources[k]].add(way.factors[k] * flat[way.cells[k]][:, None])
    return jnp.where(way.ring == 0, flat.reshape(values.shape), 0)


def grown(cells: Array, grid: Grid) -> Array:
    """The cells and those around them."""
    for axis in (0, 1):
        width = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
        p = jnp.pad(cells, width, mode="wrap" if grid.is_periodic(axis) else "constant")
        parts = (p[:-2], p[1:-1], p[2:]) if axis == 0 else (p[:, :-2], p[:, 1:-1], p[:, 2:])
        cells = parts[0] | parts[1] | parts[2]
    return cells
