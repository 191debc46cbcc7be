r"""Quadratic B-splines on the cells of a grid: a function with continuous slopes from one number per cell.

$$f(y) = \sum_j c_j \prod_a B(u_a - j_a), \qquad u_a = (y_a - \text{lower}_a)/h_a - \tfrac12,$$

with $B$ the quadratic B-spline of width three. Positions are counted in cells throughout: cell $j$ is $[j, j + 1]$. At
a wall the function is reflected, so its normal slope is zero there; on a periodic axis it is wrapped. Both are one
layer of cells around the coefficients.

Everything here is a loop over the $3^d$ cells around a point, written so that a compiler makes one pass of it: reading
costs about 4 ns a term and depositing 5 ns (one thread), whatever the dimension.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from thalweg._types import Array
from thalweg.states import Grid


class Taps(NamedTuple):
    """Where points read a spline: the flat index of their first cell, and along each axis the three weights, their
    first derivatives and their second ones.
    """

    base: Array
    weights: tuple[tuple[Array, Array, Array], ...]
    slopes: tuple[tuple[Array, Array, Array], ...]


# Second derivatives of the three pieces: constants.
_BENDS = (1.0, -2.0, 1.0)


def surrounded(values: Array, grid: Grid) -> Array:
    """The values with one layer of cells around them: reflected at walls, wrapped on periodic axes."""
    for axis in range(grid.dim):
        width = [(1, 1) if a == axis else (0, 0) for a in range(grid.dim)]
        values = jnp.pad(values, width, mode="wrap" if grid.is_periodic(axis) else "edge")
    return values


def gathered(padded: Array, grid: Grid) -> Array:
    """The transpose of `surrounded`: what was deposited around the grid is added where it belongs."""
    for axis in range(grid.dim):
        first, inside, last = jnp.split(padded, [1, padded.shape[axis] - 1], axis=axis)
        if grid.is_periodic(axis):
            first, last = last, first
        n = grid.shape[axis]
        low, middle, high = jnp.split(inside, [1, n - 1], axis=axis)
        padded = jnp.concatenate([low + first, middle, high + last], axis=axis)
    return padded


def strides(grid: Grid) -> tuple[int, ...]:
    """How far neighbours along each axis are apart in the flattened array with its layer of cells around."""
    shape = [n + 2 for n in grid.shape]
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(grid.dim))


def taps(positions: tuple[Array, ...], grid: Grid) -> Taps:
    """The weights of the spline at points; `positions`: one array for each axis, in cells."""
    base, weights, slopes = jnp.int32(0), [], []
    for axis, (u, stride) in enumerate(zip(positions, strides(grid), strict=True)):
        n = grid.shape[axis]
        whole = jnp.floor(u)
        if not grid.is_periodic(axis):
            whole = jnp.clip(whole, 0, n - 1)
        t = u - whole - 0.5
        cell = whole.astype(jnp.int32)
        base = base + (jnp.mod(cell, n) if grid.is_periodic(axis) else cell) * stride
        weights.append((0.5 * (0.5 - t) ** 2, 0.75 - t * t, 0.5 * (0.5 + t) ** 2))
        slopes.append((t - 0.5, -2 * t, 0.5 + t))
    return Taps(base, tuple(weights), tuple(slopes))


def _terms(grid: Grid) -> list[tuple[tuple[int, ...], int]]:
    """The 3^d cells around a point: which of the three weights along each axis, and the offset in the flat array."""
    numbers = itertools.product(range(3), repeat=grid.dim)
    return [(k, sum(i * s for i, s in zip(k, strides(grid), strict=True))) for k in numbers]


def _product(factors: list[Any]) -> Any:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def _sum_of(terms: list[Array]) -> Array:
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _read(flat: Array, index: Array) -> Array:
    return flat.at[index].get(mode="promise_in_bounds")


def value(flat: Array, at: Taps, grid: Grid) -> Array:
    """The spline at the points; `flat`: the coefficients with their layer around, flattened."""
    axes = range(grid.dim)
    return _sum_of([_read(flat, at.base + o) * _product([at.weights[a][k[a]] for a in axes]) for k, o in _terms(grid)])


def gradient(flat: Array, at: Taps, grid: Grid) -> tuple[Array, ...]:
    """The derivatives of the spline by the position in cells, one array for each axis."""
    axes = range(grid.dim)
    read = [(k, _read(flat, at.base + o)) for k, o in _terms(grid)]
    return tuple(
        _sum_of([c * _product([(at.slopes if a == b else at.weights)[a][k[a]] for a in axes]) for k, c in read])
        for b in axes
    )


def hessian(flat: Array, at: Taps, grid: Grid) -> tuple[tuple[Array, ...], ...]:
    """The second derivatives by the position in cells: row b holds the columns 0 … b."""
    axes = range(grid.dim)
    read = [(k, _read(flat, at.base + o)) for k, o in _terms(grid)]

    def factor(axis: int, k: int, first: int, second: int) -> Any:
        if axis == first == second:
            return _BENDS[k]
        return (at.slopes if axis in (first, second) else at.weights)[axis][k]

    return tuple(
        tuple(_sum_of([c * _product([factor(a, k[a], b, e) for a in axes]) for k, c in read]) for e in range(b + 1))
        for b in axes
    )


def deposit(padded: Array, amounts: Array, at: Taps, grid: Grid) -> Array:
    """Add the amounts at the points to the flat array of cells with their layer: the transpose of `value`."""
    for k, offset in _terms(grid):
        weight = _product([at.weights[a][k[a]] for a in range(grid.dim)])
        padded = padded.at[at.base + offset].add(amounts * weight, mode="promise_in_bounds")
    return padded


def deposit_slopes(padded: Array, vectors: tuple[Array, ...], at: Taps, grid: Grid) -> Array:
    """The transpose of `gradient`."""
    axes = range(grid.dim)
    for k, offset in _terms(grid):
        terms = [
            v * _product([(at.slopes if a == b else at.weights)[a][k[a]] for a in axes]) for b, v in enumerate(vectors)
        ]
        padded = padded.at[at.base + offset].add(_sum_of(terms), mode="promise_in_bounds")
    return padded


def side_weight(num_points: int) -> float:
    """What a cell's neighbour weighs in the mean of the spline over equally spaced points of the cell along an axis."""
    offsets = [(i + 0.5) / num_points - 0.5 for i in range(num_points)]
    return sum(0.5 * (0.5 + t) ** 2 for t in offsets) / num_points


def smoothed(values: Array, grid: Grid, side: float) -> Array:
    """The mean of the spline over each cell's points, $(s, 1 - 2s, s)$ along each axis; symmetric, so its own
    transpose.
    """
    for axis in range(grid.dim):
        values = values + side * second_difference(values, grid, axis)
    return values


def second_difference(values: Array, grid: Grid, axis: int) -> Array:
    """$v_{j+1} - 2v_j + v_{j-1}$, reflected at walls."""
    n = grid.shape[axis]
    width = [(1, 1) if a == axis else (0, 0) for a in range(grid.dim)]
    around = jnp.pad(values, width, mode="wrap" if grid.is_periodic(axis) else "edge")
    at = [(slice(None),) * axis + (slice(i, i + n),) for i in range(3)]
    return around[at[0]] - 2 * values + around[at[2]]


def sharpened(values: Array, grid: Grid, side: float, digits: int = 16) -> Array:
    """The inverse of `smoothed`, to a relative error of about `10**-digits`: per axis a symmetric geometric filter."""
    # 1/(1 − 2s + 2s cos k) = Σ A z^|j| e^{ijk}, with s z² + (1 − 2s) z + s = 0.
    root = math.sqrt(1 - 4 * side)
    ratio = (-(1 - 2 * side) + root) / (2 * side)
    length = max(1, min(math.ceil(digits * math.log(10) / -math.log(-ratio)), min(grid.shape)))
    for axis in range(grid.dim):
        n = grid.shape[axis]
        reach = min(length, n)
        width = [(reach, reach) if a == axis else (0, 0) for a in range(grid.dim)]
        around = jnp.pad(values, width, mode="wrap" if grid.is_periodic(axis) else "symmetric")
        shifted = lambda j, around=around, axis=axis, n=n, reach=reach: around[  # noqa: E731
            (slice(None),) * axis + (slice(reach + j, reach + j + n),)
        ]
        total = shifted(0)
        for j in range(1, reach + 1):
            total = total + ratio**j * (shifted(j) + shifted(-j))
        values = total / root
    return values
