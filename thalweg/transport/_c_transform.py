r"""The c-transform of a function on a grid for the quadratic cost, exactly.

$$f^c(x_i) = \min_j \frac{|x_i - y_j|^2}{2\tau} + f(y_j)$$

The square is a sum over the axes, so the minimum is taken along one axis after the other. Along a line the leftmost
minimiser $j(i)$ does not decrease with $i$ (the cost is a Monge matrix), so the rows are refined level by level: the
rows of a coarse stride are searched over all columns, and those between two known rows only between their minimisers.

The windows of a level have unequal widths, yet their total is bounded. Cut the columns into blocks of fixed width; the
pairs (interval $k$, block $B$) that must be searched form a staircase, and $k + B$ numbers its steps without a gap.
So a level is a loop over the steps of the staircase, the same number for every line, and all lines go at once. A line
of $n$ cells costs $16n$ terms for the coarse rows and about $14n$ for each level after that, of which 1024 cells need
two.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, ScalarLike
from thalweg.states import Grid

# Each level makes the rows this many times denser.
_REFINEMENT = 8
# At most this many rows are searched over all columns.
_COARSE_ROWS = 16
# Blocks of columns as narrow as this cost as many steps as they save terms.
_NARROWEST_BLOCK = 4


class CTransform(NamedTuple):
    """The values $f^c$ and, for each axis, the index of the minimiser along it (all of the grid's shape)."""

    values: Array
    argmin: tuple[Array, ...]


@functools.partial(jax.jit, static_argnames="grid")
def c_transform(values: Array, grid: Grid, step_size: ScalarLike = 0.5) -> CTransform:
    r"""$f^c(x_i) = \min_j |x_i - y_j|^2/2\tau + f(y_j)$ over all cells $j$ of the grid, exactly.

    **Arguments:** `values`: $f$ at the cell centres, shape of the grid; $+\infty$ excludes a cell; `grid`: on a
    periodic axis the distance is that to the nearest image; `step_size`: $\tau > 0$ (½: the cost $|x - y|^2$ itself).

    **Returns:** the values and the indices of the minimisers, the first one where several are equal. A NaN along the
    way of a line makes that line NaN. A cell that nothing finite reaches is $+\infty$.

    Cost $O(d N\log N)$ in time and $O(N)$ in memory for $N$ cells.

    **Source:** the separation by axes: Felzenszwalb, Huttenlocher, *Distance transforms of sampled functions* (2012);
    monotone row minima: Aggarwal et al., *Geometric applications of a matrix-searching algorithm* (1987).
    """
    argmin: list[Array] = []
    for axis in range(grid.dim):
        curvature = jnp.asarray(grid.spacing[axis] ** 2 / 2, values.dtype) / jnp.asarray(step_size, values.dtype)
        lines = jnp.moveaxis(values, axis, 0)
        shape = lines.shape
        lines, best = _along_lines(lines.reshape(shape[0], -1), curvature, grid.is_periodic(axis))
        values, best = (jnp.moveaxis(x.reshape(shape), 0, axis) for x in (lines, best))
        # The minimisers along earlier axes are those at the point from which the minimum came.
        argmin = [jnp.take_along_axis(earlier, best, axis) for earlier in argmin] + [best]
    return CTransform(values, tuple(argmin))


def _along_lines(values: Array, curvature: Array, periodic: bool) -> tuple[Array, Array]:
    """The transform of each column of `values`, shape `(n, lines)`: the lines are the last, contiguous axis."""
    n = values.shape[0]
    bad = jnp.any(jnp.isnan(values), axis=0)
    before = 0
    if periodic:
        # The nearest image of any cell is at most half a period away.
        before = (n + 1) // 2
        values = jnp.concatenate([values[n - before :], values, values[:before]])
    stride = 1
    while n > _COARSE_ROWS * stride:
        stride *= _REFINEMENT
    columns, whole = values.shape[0], max(_NARROWEST_BLOCK, stride // _REFINEMENT)
    padding = jnp.full((-columns % whole, values.shape[1]), jnp.inf, values.dtype)
    values = jnp.concatenate([values, padding])
    best = _coarse(values, curvature, -(-n // stride), stride, before)
    while stride > 1:
        best = _refined(values, curvature, best, stride, before)
        stride //= _REFINEMENT
    # A line without a finite value keeps an index inside the grid.
    best = jnp.minimum(best[:n], columns - 1)
    gap = before + jnp.arange(n, dtype=values.dtype)[:, None] - best.astype(values.dtype)
    lowest = curvature * gap**2 + jnp.take_along_axis(values, best, axis=0)
    return jnp.where(bad[None], jnp.nan, lowest), (best - before) % n if periodic else best


def _coarse(values: Array, curvature: Array, rows: int, stride: int, before: int) -> Array:
    """The minimisers of the rows 0, stride, 2 stride, … over all columns."""
    position = before + stride * jnp.arange(rows, dtype=values.dtype)[:, None]

    def column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        lowest, best = carry
        term = curvature * (position - j.astype(values.dtype)) ** 2 + values[j][None]
        return jnp.minimum(term, lowest), jnp.where(term < lowest, j, best)

    shape = (rows, values.shape[1])
    start = (jnp.full(shape, jnp.inf, values.dtype), jnp.zeros(shape, jnp.int32))
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(values.shape[0]), column, start)[1]


def _refined(values: Array, curvature: Array, best: Array, stride: int, before: int) -> Array:
    """The minimisers of the rows 0, stride / 8, 2 stride / 8, … from those of the rows 0, stride, …."""
    padded, lines = values.shape
    rows = best.shape[0]
    width = max(_NARROWEST_BLOCK, stride // _REFINEMENT)
    line = jnp.arange(lines, dtype=jnp.int32)
    # Interval k holds the blocks first[k] … first[k+1]; it is the steps k + first[k] … k + first[k+1] of the staircase.
    first = jnp.concatenate([best // width, jnp.full((1, lines), padded // width - 1, jnp.int32)])
    last_step = jnp.arange(rows, dtype=jnp.int32)[:, None] + first[1:]
    new_rows = before + (stride // _REFINEMENT) * jnp.arange(1, _REFINEMENT, dtype=values.dtype)[:, None]

    def step(carry: tuple[Array, Array, Array], number: Array) -> tuple[tuple[Array, Array, Array], Array]:
        interval, low, arg = carry
        # Where an interval's blocks are used up the next one begins, at the block that it shares with the last.
        over = number > last_step.at[interval, line].get(mode="promise_in_bounds")
        interval = interval + over.astype(jnp.int32)
        column = (number - interval) * width
        low = jnp.where(over[None], jnp.inf, low)
        chosen = _blocks(values, column, line, width)
        position = stride * interval.astype(values.dtype)
        # Without the barrier the compiler would do the look-ups again for every row.
        position, column, chosen = jax.lax.optimization_barrier((position, column, chosen))
        gap = position[None] + new_rows - column.astype(values.dtype)[None]
        for c in range(width):
            term = curvature * (gap - c) ** 2 + chosen[c][None]
            arg = jnp.where(term < low, (column + c)[None], arg)
            low = jnp.minimum(term, low)
        return (interval, low, arg), arg

    shape = (_REFINEMENT - 1, lines)
    start = (jnp.zeros((lines,), jnp.int32), jnp.full(shape, jnp.inf, values.dtype), jnp.zeros(shape, jnp.int32))
    _, args = jax.lax.scan(step, start, jnp.arange(rows + padded // width - 1, dtype=jnp.int32))
    found = jnp.take_along_axis(args, last_step[:, None], axis=0, mode="promise_in_bounds")
    return jnp.concatenate([best[:, None], found], axis=1).reshape(rows * _REFINEMENT, lines)


def _blocks(values: Array, column: Array, line: Array, width: int) -> Array:
    """For each line the values in the block that begins at its column, shape `(width, lines)`.

    By one look-up, which costs a processor more than the few values that it brings.
    """
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(0,), collapsed_slice_dims=(1,), start_index_map=(0, 1))
    places = jnp.stack([column, line], axis=-1)
    return jax.lax.gather(values, places, numbers, (width, 1), mode="promise_in_bounds")
