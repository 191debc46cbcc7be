r"""The density $(X^{-1})_\#q$ that $X = y + \tau\nabla f$ carries to the cells of a plane grid, and its derivative.

The mass of a cell is that of $q$ in the cell's image, a quadrangle whose sides it shares with its neighbours, so that
none is lost. With $\Psi$ the mass to the lower left of a point, Green's formula makes it a sum over the sides
$\int\partial_2\Psi\,dx_2$, each the difference of $\Psi$ between the side's ends, taken at the $x_1$ of its middle; and
the same with the axes exchanged, of which the mean is taken. A side moves along its normal by the slope of $f$ between
the two cells beside it, and its ends by the mean of two such slopes: $f$ has no mode of alternating signs that X does
not see.

Within a cell $q$ is linear, with slopes that are limited so that it stays positive and no new extremum is made. With
constants instead, what arrives has an error of first order with the sign of the map's place between the cells. At rest
the carried density is $q$ itself, to rounding.

The derivative by $f$ is a sum over the same sides of $\partial\Psi$ times the moves, which costs no look-up once the
$\partial\Psi$ are known. It is $-\tau\nabla\cdot(q(X)\operatorname{cof}(DX)\nabla)$: elliptic while X is monotone.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, Scalar, ScalarLike
from thalweg.states import Grid, open_faces

# Look-ups are by tiles of so many cells a side; those whose image is empty are passed over.
_TILE = 32
# Whether an image is empty is told from blocks of so many cells a side.
_BLOCK = 8


class MassTable(NamedTuple):
    r"""$\Psi$ at the corners of the cells, and the sums along rows (columns) of the slopes along columns (rows);
    `occupied`: the number of blocks of cells with mass to the lower left of a corner of a block.
    """

    below: Array
    first: Array
    second: Array
    occupied: Array


class Moves(NamedTuple):
    """How far, in cells, sides move along their normals, and corners and the middles of sides along each axis.

    `normal[a]` has one more entry than the grid along axis a, `corner[a]` along both, `middle[a]` along the other.
    """

    normal: tuple[Array, Array]
    corner: tuple[Array, Array]
    middle: tuple[Array, Array]


class Sensitivity(NamedTuple):
    r"""Differences of $\partial\Psi$ over the ends of the sides, and its values there: (over, at the end, at the
    start), for the sides normal to the first axis by both forms, and for those normal to the second. `looked_up`: the
    cells for which they are known; in the others nothing arrives.
    """

    across_first: tuple[Array, Array, Array]
    along_first: tuple[Array, Array, Array]
    across_second: tuple[Array, Array, Array]
    along_second: tuple[Array, Array, Array]
    looked_up: Array


_Both = tuple[Array, Sensitivity]
_Result = TypeVar("_Result")


def mass_table(values: Array, grid: Grid) -> MassTable:
    """The table of a density. On a periodic axis it goes on for half a period to both sides."""
    values = jnp.pad(values, [(margin, margin) for margin in _margins(grid)], mode="wrap")
    slopes = [_limited(values, axis) for axis in (0, 1)]
    largest = jnp.abs(slopes[0]) + jnp.abs(slopes[1])
    share = jnp.minimum(1, 2 * values / jnp.where(largest > 0, largest, 1))
    below = jnp.pad(jnp.cumsum(jnp.cumsum(values, 0), 1), ((1, 0), (1, 0)))
    first = jnp.pad(jnp.cumsum(share * slopes[0], 1), ((0, 1), (1, 0)))
    second = jnp.pad(jnp.cumsum(share * slopes[1], 0), ((1, 0), (0, 1)))
    occupied = jnp.cumsum(jnp.cumsum(_any(values != 0, _BLOCK).astype(jnp.int32), 0), 1)
    return MassTable(below, first, second, jnp.pad(occupied, ((1, 0), (1, 0))))


def moves(potential: Array, grid: Grid, step_size: ScalarLike) -> Moves:
    r"""$\tau\nabla f$ in cells; nothing goes through a wall. Linear in `potential`."""
    normal, corner, middle = [], [], []
    for axis in (0, 1):
        other = 1 - axis
        slope = jnp.diff(_surrounded(potential, axis, grid), axis=axis) * (step_size / grid.spacing[axis] ** 2)
        normal.append(slope)
        corner.append(_mean(_surrounded(slope, other, grid), other))
        middle.append(_mean(corner[-1], axis))
    return jax.lax.optimization_barrier(Moves(tuple(normal), tuple(corner), tuple(middle)))


def smoothed(moved: Moves) -> Moves:
    """Sides that move like the mean of their ends: for an f that is rough from cell to cell, whose alternating part
    this does not see.
    """
    first, second = moved.corner
    return moved._replace(normal=(_mean(first, 1), _mean(second, 0)))


def carried(table: MassTable, moved: Moves, grid: Grid) -> Array:
    """The density that arrives in each cell."""
    rows, columns = grid.shape

    def put(out: Array, start: tuple[Array, Array], tile: Moves) -> Array:
        values, _, _ = _look_up(table, *_places(tile, start, grid))
        return jax.lax.dynamic_update_slice(out, _sums(_unstacked(values, tile)), start)

    arrives = _arrives(table, moved, grid)
    return _over_tiles(arrives, moved, grid, jnp.zeros((rows, columns), table.below.dtype), put)


def carried_and_sensitivity(
    table: MassTable, moved: Moves, grid: Grid, wanted: Array | None = None
) -> tuple[Array, Sensitivity]:
    """The density that arrives in each cell, and what its derivative takes; right in the cells that are `wanted`, and
    zero where nothing of a tile is.
    """
    arrives = _arrives(table, moved, grid)
    if wanted is not None:
        arrives = arrives & _any(wanted, _TILE)
    rows, columns = grid.shape

    def put(out: _Both, start: tuple[Array, Array], tile: Moves) -> _Both:
        values, by_first, by_second = _look_up(table, *_places(tile, start, grid))
        a, b = _unstacked(by_first, tile), _unstacked(by_second, tile)
        parts = (
            (a[1] - a[0], b[1], b[0]),
            (a[3] - a[2], b[3], b[2]),
            (b[5] - b[4], a[5], a[4]),
            (b[7] - b[6], a[7], a[6]),
        )
        found = (_sums(_unstacked(values, tile)), Sensitivity(*parts, jnp.ones(_cells(tile), bool)))
        return jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice(whole, part, start), out, found)

    none, one, other = (
        jnp.zeros(shape, table.below.dtype) for shape in ((rows, columns), (rows + 1, columns), (rows, columns + 1))
    )
    nothing = Sensitivity(
        (one, one, one), (other, other, other), (other, other, other), (one, one, one), jnp.zeros_like(none, bool)
    )
    return _over_tiles(arrives, moved, grid, (none, nothing), put)


def varied(sensitivity: Sensitivity, change: Moves) -> Array:
    """The derivative of the density that arrives, for a change of the moves."""
    (n0, n1), (c0, c1), (m0, m1) = change
    over, end, start = sensitivity.across_first
    right = over * n0 + end * _after(c1, 1) - start * _before(c1, 1)
    over, end, start = sensitivity.along_first
    top = over * m0 + end * _after(c1, 0) - start * _before(c1, 0)
    over, end, start = sensitivity.across_second
    top = over * n1 + end * _after(c0, 0) - start * _before(c0, 0) - top
    over, end, start = sensitivity.along_second
    right = right - (over * m1 + end * _after(c0, 1) - start * _before(c0, 1))
    return jnp.where(sensitivity.looked_up, 0.5 * (jnp.diff(right, axis=0) + jnp.diff(top, axis=1)), 0)


def conductances(sensitivity: Sensitivity, grid: Grid, step_size: ScalarLike) -> tuple[Array, Array]:
    """What passes between each cell and the next one for a unit difference of f: the diagonal of the tensor, as faces
    of an operator on cells (the last one wraps).
    """
    faces = []
    for axis, (over, _, _) in enumerate((sensitivity.across_first, sensitivity.across_second)):
        face = _after(jnp.maximum(over, 0), axis) * (step_size / grid.spacing[axis] ** 2)
        face = jnp.where(open_faces(grid, axis), face, 0)
        faces.append(face)
    return faces[0], faces[1]


def transport_cost(moved: Moves, density: Array, grid: Grid) -> Scalar:
    r"""$\int q\,|X - y|^2$ of a density on the target, with moves that are linear between opposite sides of a cell."""
    total = jnp.zeros_like(density)
    for axis, way in enumerate(moved.normal):
        before, after = _before(way, axis), _after(way, axis)
        total = total + grid.spacing[axis] ** 2 * (before**2 + before * after + after**2) / 3
    return jnp.sum(density * total) * grid.cell_volume


def _margins(grid: Grid) -> list[int]:
    return [(n + 1) // 2 if grid.is_periodic(axis) else 0 for axis, n in enumerate(grid.shape)]


def _limited(values: Array, axis: int) -> Array:
    """Slopes in a cell: the central one, at most twice either one-sided one, zero at an extremum and at a border."""
    steps = jnp.diff(jnp.pad(values, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge"), axis=axis)
    left, right = _before(steps, axis), _after(steps, axis)
    size = jnp.minimum(0.5 * jnp.abs(left + right), 2 * jnp.minimum(jnp.abs(left), jnp.abs(right)))
    return jnp.where(left * right > 0, jnp.sign(left) * size, 0)


def _arrives(table: MassTable, moved: Moves, grid: Grid) -> Array:
    """The tiles near the bounding box of whose image there is any mass."""
    # Where a move is not a number nothing is passed over.
    known = jnp.all(jnp.isfinite(moved.normal[0])) & jnp.all(jnp.isfinite(moved.normal[1]))
    lower, upper = [], []
    for axis, margin in enumerate(_margins(grid)):
        blocks = table.occupied.shape[axis] - 1
        least, most = -_extreme(moved, axis, margin, grid, -1), _extreme(moved, axis, margin, grid, 1)
        # What is beyond a wall is taken at the wall.
        lower.append(jnp.clip(jnp.floor(jnp.nan_to_num(least) / _BLOCK), 0, blocks - 1).astype(jnp.int32))
        upper.append(jnp.clip(jnp.floor(jnp.nan_to_num(most) / _BLOCK) + 1, 1, blocks).astype(jnp.int32))
    (i, j), (k, m) = lower, upper
    count = table.occupied
    return ((count[k, m] - count[i, m] - count[k, j] + count[i, j]) > 0) | ~known


def _extreme(moved: Moves, axis: int, margin: int, grid: Grid, sign: int) -> Array:
    """For each tile `sign` times the largest, or least, place along an axis of its sides and corners."""
    sides, corners = moved.normal[axis], moved.corner[axis]
    shape = tuple(-1 if a == axis else 1 for a in (0, 1))
    at = margin + jnp.arange(grid.shape[axis] + 1, dtype=sides.dtype).reshape(shape)
    # A side lies between two corners along the other axis.
    most = jnp.maximum(_most(sign * (sides + at), 1 - axis, _TILE, 0), _most(sign * (corners + at), 1 - axis, _TILE, 1))
    return _most(most, axis, _TILE, 1)


def _most(values: Array, axis: int, size: int, overlap: int) -> Array:
    """The largest along an axis of each group of so many, and of the one after it if they overlap by one."""
    n = values.shape[axis] - overlap
    groups = -(-n // size)
    width = [(0, groups * size + overlap - n - overlap) if a == axis else (0, 0) for a in (0, 1)]
    padded = jnp.pad(values, width, mode="edge")
    within = jax.lax.slice_in_dim(padded, 0, groups * size, axis=axis)
    shape = (*values.shape[:axis], groups, size, *values.shape[axis + 1 :])
    most = jnp.max(within.reshape(shape), axis=axis + 1)
    if overlap:
        most = jnp.maximum(most, jax.lax.slice_in_dim(padded, size, groups * size + 1, size, axis=axis))
    return most


def _any(cells: Array, size: int) -> Array:
    """Whether there is any in each square of so many a side."""
    return _most(_most(cells.astype(jnp.int32), 0, size, 0), 1, size, 0) > 0


def _over_tiles(
    chosen: Array,
    moved: Moves,
    grid: Grid,
    begin: _Result,
    put: Callable[[_Result, tuple[Array, Array], Moves], _Result],
) -> _Result:
    """One tile after the other: from its first cell and its moves what it adds to the result."""
    size = tuple(min(_TILE, n) for n in grid.shape)
    chosen_ones = jnp.nonzero(chosen.reshape(-1), size=chosen.size, fill_value=0)[0].astype(jnp.int32)

    def body(number: Array, result: _Result) -> _Result:
        tile = chosen_ones[number]
        numbers = (tile // chosen.shape[1], tile % chosen.shape[1])
        # The last tile of a row begins earlier, so that it is as large as the others.
        first, second = (jnp.minimum(k * t, n - t) for k, t, n in zip(numbers, size, grid.shape, strict=True))
        part = lambda x, a, b: jax.lax.dynamic_slice(x, (first, second), (size[0] + a, size[1] + b))  # noqa: E731
        (n0, n1), (c0, c1), (m0, m1) = moved
        tile_moves = Moves(
            (part(n0, 1, 0), part(n1, 0, 1)), (part(c0, 1, 1), part(c1, 1, 1)), (part(m0, 0, 1), part(m1, 1, 0))
        )
        return put(result, (first, second), tile_moves)

    return jax.lax.fori_loop(0, jnp.sum(chosen), body, begin)


def _cells(tile: Moves) -> tuple[int, int]:
    rows, columns = tile.corner[0].shape
    return rows - 1, columns - 1


def _places(tile: Moves, start: tuple[Array, Array], grid: Grid) -> tuple[Array, Array]:
    """The eight families of points at which Ψ is looked up, stacked: their coordinates in the table, in cells."""
    rows, columns = _cells(tile)
    dtype = tile.normal[0].dtype
    below, left = (margin + first.astype(dtype) for margin, first in zip(_margins(grid), start, strict=True))
    at_rows = below + jnp.arange(rows + 1, dtype=dtype)[:, None]
    at_columns = left + jnp.arange(columns + 1, dtype=dtype)[None, :]
    n0, n1 = tile.normal[0] + at_rows, tile.normal[1] + at_columns
    c0, c1 = tile.corner[0] + at_rows, tile.corner[1] + at_columns
    m0, m1 = tile.middle[0] + at_rows[:-1] + 0.5, tile.middle[1] + at_columns[:, :-1] + 0.5
    points = [
        *((n0, _before(c1, 1)), (n0, _after(c1, 1)), (m0, _before(c1, 0)), (m0, _after(c1, 0))),
        *((_before(c0, 0), n1), (_after(c0, 0), n1), (_before(c0, 1), m1), (_after(c0, 1), m1)),
    ]
    flat = lambda axis: jnp.concatenate([point[axis].reshape(-1) for point in points])  # noqa: E731
    return flat(0), flat(1)


def _unstacked(found: Array, tile: Moves) -> list[Array]:
    rows, columns = _cells(tile)
    across, along = (rows + 1, columns), (rows, columns + 1)
    shapes = [across, across, along, along, along, along, across, across]
    ends = np.cumsum([a * b for a, b in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(jnp.split(found, ends), shapes, strict=True)]


def _sums(v: list[Array]) -> Array:
    """From Ψ at the points to the mass of each cell's image."""
    right, top = v[1] - v[0] - (v[7] - v[6]), v[5] - v[4] - (v[3] - v[2])
    return 0.5 * (jnp.diff(right, axis=0) + jnp.diff(top, axis=1))


def _look_up(table: MassTable, first: Array, second: Array) -> tuple[Array, Array, Array]:
    """Ψ and its two derivatives; a point outside is taken at the wall, wherever it goes."""
    rows, columns = table.below.shape
    moves_first = (first >= 0) & (first <= rows - 1)
    moves_second = (second >= 0) & (second <= columns - 1)
    first, second = jnp.clip(first, 0, rows - 1), jnp.clip(second, 0, columns - 1)
    i, j = jnp.clip(jnp.floor(first), 0, rows - 2), jnp.clip(jnp.floor(second), 0, columns - 2)
    u, v = first - i, second - j
    at = i.astype(jnp.int32) * columns + j.astype(jnp.int32)

    def entries(array: Array, *offsets: int) -> list[Array]:
        flat = array.reshape(-1)
        return [flat.at[at + k].get(mode="promise_in_bounds") for k in offsets]

    # Behind a barrier: XLA would gather anew for each of the three results.
    here, right, up, both, slope, slope_right, tilt, tilt_up = jax.lax.optimization_barrier(
        entries(table.below, 0, 1, columns, columns + 1)
        + entries(table.first, 0, 1)
        + entries(table.second, 0, columns)
    )
    by_second = right - here
    bend = both - up - by_second
    by_first = up - here + bend * v
    row, column = slope + (slope_right - slope) * v, tilt + (tilt_up - tilt) * u
    bump, swell = 0.5 * u * (u - 1), 0.5 * v * (v - 1)
    value = here + by_second * v + by_first * u + bump * row + swell * column
    by_first = by_first + (u - 0.5) * row + swell * (tilt_up - tilt)
    by_second = by_second + bend * u + bump * (slope_right - slope) + (v - 0.5) * column
    return value, jnp.where(moves_first, by_first, 0), jnp.where(moves_second, by_second, 0)


def _surrounded(values: Array, axis: int, grid: Grid) -> Array:
    mode = "wrap" if grid.is_periodic(axis) else "edge"
    return jnp.pad(values, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode=mode)


def _mean(values: Array, axis: int) -> Array:
    return 0.5 * (_before(values, axis) + _after(values, axis))


def _before(values: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(values, 0, values.shape[axis] - 1, axis=axis)


def _after(values: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(values, 1, values.shape[axis], axis=axis)
