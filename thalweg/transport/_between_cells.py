r"""The c-transform with minima between the cells.

The exact minimum over cell centres is off by up to $h^2/8\tau$ of the minimum over the plane, which moves points by a
part of a cell. `between_cells` adds what a parabola on the side of the descent sees. It never looks across the cell in
which the minimum lies, since the potential of a front has a kink there.
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
