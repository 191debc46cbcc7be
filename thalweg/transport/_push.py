r"""Where a c-transform's minimum lies between the cells, and the mass that the gradient of a potential carries.

The exact minimum over cell centres is off by up to $h^2/8\tau$ of the minimum over the plane, which moves points by a
part of a cell. `between_cells` adds what a parabola on the side of the descent sees. It never looks across the cell in
which the minimum lies, since the potential of a front has a kink there.

The map $X = y + \tau\nabla f$ goes from the target back to the source, and $(X^{-1})_\#q_t$ of a cell is the mass of
$q_t$ in the image of the cell. That is a quadrangle whose corners it shares with its neighbours, so no mass is lost.
With $\Psi$ the mass to the lower left of a point, bilinear in each cell, Green's formula makes it a sum over edges
$\int \partial_2\Psi\,dx_2$, each taken as the difference of $\Psi$ along the edge at the edge's middle $x_1$; and the
same with the axes exchanged, of which the mean is taken. At rest this is the density itself, to rounding.
"""

import jax.numpy as jnp

from thalweg._types import Array, ScalarLike
from thalweg.states import Grid
from thalweg.transport._c_transform import c_transform

# A vertex further than this from its cell is not the parabola's to tell.
_FURTHEST = 0.75
# How an axis goes on beyond its ends.
_MODES = {False: "edge", True: "wrap"}


def between_cells(values: Array, grid: Grid, step_size: ScalarLike) -> Array:
    r"""$f^c(x_i) = \min_y |x_i - y|^2/2\tau + f(y)$ over the plane, with f a parabola around the best cell."""
    found = c_transform(values, grid, step_size)
    shape, dim = grid.shape, grid.dim
    index = [
        jnp.arange(n, dtype=jnp.int32).reshape(tuple(-1 if a == k else 1 for a in range(dim)))
        for k, n in enumerate(shape)
    ]
    flat = jnp.zeros(shape, jnp.int32)
    for axis, n in enumerate(shape):
        flat = flat * n + found.argmin[axis]
    slopes, curvatures = [], []
    for axis in range(dim):
        stiffness = grid.spacing[axis] ** 2 / step_size
        steps, n, mode = found.argmin[axis] - index[axis], shape[axis], _MODES[grid.is_periodic(axis)]
        if grid.is_periodic(axis):
            steps = (steps + n // 2) % n - n // 2
        gap = steps.astype(values.dtype) * stiffness
        forward = jnp.diff(_surrounded(values, axis, mode), axis=axis)
        before, after = _parts(forward, axis)
        bend = after - before
        below, above = _neighbours(bend, axis, mode)
        left = gap + (before + 0.5 * below).reshape(-1)[flat]
        right = gap + (after - 0.5 * above).reshape(-1)[flat]
        down, up = left > 0, (right < 0) & (left <= 0)
        slopes.append(jnp.where(down, left, jnp.where(up, right, 0)))
        bent = jnp.where(down, below.reshape(-1)[flat], above.reshape(-1)[flat])
        curvatures.append(jnp.maximum(stiffness + bent, 0.1 * stiffness))
    if dim == 2:
        mixed = _mixed(values, grid).reshape(-1)[flat]
        # Of a positive matrix, and none where one of the two rests at a kink.
        bound = 0.9 * jnp.sqrt(curvatures[0] * curvatures[1])
        mixed = jnp.where((slopes[0] == 0) | (slopes[1] == 0), 0, jnp.clip(mixed, -bound, bound))
        determinant = curvatures[0] * curvatures[1] - mixed**2
        moves = [
            (mixed * slopes[1] - curvatures[1] * slopes[0]) / determinant,
            (mixed * slopes[0] - curvatures[0] * slopes[1]) / determinant,
        ]
    else:
        mixed = jnp.zeros_like(values)
        moves = [-slope / curvature for slope, curvature in zip(slopes, curvatures, strict=True)]
    moves = [jnp.clip(move, -_FURTHEST, _FURTHEST) for move in moves]
    change = sum(
        (m * s + 0.5 * c * m**2 for m, s, c in zip(moves, slopes, curvatures, strict=True)), jnp.zeros_like(values)
    )
    if dim == 2:
        change = change + mixed * moves[0] * moves[1]
    return found.values + jnp.minimum(change, 0)


def carried(values: Array, potential: Array, grid: Grid, step_size: ScalarLike) -> Array:
    r"""The density $(X^{-1})_\#q$, $X = y + \tau\nabla f$, of a plane density with walls (`values`)."""
    maps = []
    for axis in range(2):
        other = 1 - axis
        padded = _surrounded(_surrounded(potential, axis, "edge"), other, "edge")
        slope = jnp.diff(padded, axis=axis) / grid.spacing[axis] ** 2
        first, second = _parts(slope, other)
        n = grid.shape[axis]
        rest = jnp.arange(n + 1, dtype=values.dtype).reshape((-1, 1) if axis == 0 else (1, -1))
        maps.append(jnp.clip(rest + step_size * 0.5 * (first + second), 0, n))
    below = jnp.pad(jnp.cumsum(jnp.cumsum(values, 0), 1), ((1, 0), (1, 0)))
    mass = 0.5 * (_around(below, maps[0], maps[1]) + _around(below.T, maps[1].T, maps[0].T).T)
    return mass


def _around(below: Array, first: Array, second: Array) -> Array:
    """The mass in each quadrangle by the integrals of ∂₂Ψ dx₂ along its edges."""
    along_second = _edge(below, first[:, :-1], first[:, 1:], second[:, :-1], second[:, 1:])
    along_first = _edge(below, first[:-1], first[1:], second[:-1], second[1:])
    return (along_second[1:] - along_second[:-1]) - (along_first[:, 1:] - along_first[:, :-1])


def _edge(below: Array, first0: Array, first1: Array, second0: Array, second1: Array) -> Array:
    middle = 0.5 * (first0 + first1)
    return _bilinear(below, middle, second1) - _bilinear(below, middle, second0)


def _bilinear(table: Array, first: Array, second: Array) -> Array:
    rows, columns = table.shape
    i = jnp.clip(jnp.floor(first), 0, rows - 2)
    j = jnp.clip(jnp.floor(second), 0, columns - 2)
    u, v = first - i, second - j
    at = i.astype(jnp.int32) * columns + j.astype(jnp.int32)
    flat = table.reshape(-1)
    low = flat[at] * (1 - v) + flat[at + 1] * v
    high = flat[at + columns] * (1 - v) + flat[at + columns + 1] * v
    return low * (1 - u) + high * u


def _surrounded(values: Array, axis: int, mode: str) -> Array:
    return jnp.pad(values, [(1, 1) if a == axis else (0, 0) for a in range(values.ndim)], mode=mode)


def _parts(values: Array, axis: int) -> tuple[Array, Array]:
    """All but the last, and all but the first."""
    n = values.shape[axis]
    take = lambda a, b: tuple(slice(a, b) if k == axis else slice(None) for k in range(values.ndim))  # noqa: E731
    return values[take(0, n - 1)], values[take(1, n)]


def _neighbours(values: Array, axis: int, mode: str) -> tuple[Array, Array]:
    padded = _surrounded(values, axis, mode)
    n = padded.shape[axis]
    take = lambda a, b: tuple(slice(a, b) if k == axis else slice(None) for k in range(values.ndim))  # noqa: E731
    return padded[take(0, n - 2)], padded[take(2, n)]


def _mixed(values: Array, grid: Grid) -> Array:
    padded = values
    for axis in (0, 1):
        padded = _surrounded(padded, axis, _MODES[grid.is_periodic(axis)])
    return 0.25 * (padded[2:, 2:] - padded[2:, :-2] - padded[:-2, 2:] + padded[:-2, :-2])
