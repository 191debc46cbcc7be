r"""The transport between two densities on a line or a circle, with everything that belongs to it.

Both quantile functions are linear between the merged mass levels. So the transport is a list of pieces: an interval
of the first density that goes linearly to an interval of the second. Distance, potentials and geodesic are finite
sums over the pieces, exact for densities constant on cells.

On a circle the second quantile function may be turned by a level $\theta$: $Q_b(s + \theta)$ with $Q(s + 1) = Q(s) +
L$. The cost is convex in $\theta$, with derivative $2\int_0^L (y - Q_a(C_b(y) - \theta))\,\mathrm dy$, whose zero is
found by bisection.

**Source:** Delon, Salomon, Sobolevskii, *Fast transport optimization for Monge costs on the circle* (2010).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.states import Grid, GridDensity
from thalweg.transport._distance import (
    Certificate,
    MapCoupling,
    Transport,
    as_time,
    envelope,
    time_average,
    transport_between,
)
from thalweg.transport._grid_transport import grid_transport
from thalweg.transport._line import cumulative_mass

# Halvings of a level between -1 and 1 down to the rounding unit.
_BISECTIONS = 56
# Where a cubic is integrated exactly by two points of an interval.
_GAUSS = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)


class Quantiles(eqx.Module):
    """A quantile function, linear between its knots: `positions` at the rising `levels`, both of shape `(num_knots,)`.

    Where two knots share a level the function jumps.
    """

    levels: Array
    positions: Array

    @classmethod
    def of(cls, state: GridDensity) -> "Quantiles":
        """The quantile function of a density on a one-dimensional grid."""
        faces = line_faces(state.grid, state.values.dtype)
        return cls(cumulative_mass(state.values), faces)

    def turned(self, theta: Scalar, period: float) -> "Quantiles":
        """The same on the circle, seen from the level `theta` between -1 and 1: $Q(s + \\theta)$ for s from 0 to 1."""
        turns = jnp.arange(-1, 3, dtype=self.levels.dtype)[:, None]
        levels = (self.levels[None] + turns).reshape(-1)
        positions = (self.positions[None] + turns * period).reshape(-1)
        return Quantiles(levels - theta, positions)

    def inside(self, middle: Array) -> tuple[Array, Array]:
        """The value and the slope at levels inside the intervals between knots."""
        cell = jnp.clip(jnp.searchsorted(self.levels, middle, side="right") - 1, 0, self.levels.shape[0] - 2)
        rise = self.levels[cell + 1] - self.levels[cell]
        safe = jnp.where(rise > 0, rise, 1)
        slope = jnp.where(rise > 0, (self.positions[cell + 1] - self.positions[cell]) / safe, 0)
        return self.positions[cell] + slope * (middle - self.levels[cell]), slope


class Pieces(eqx.Module):
    """Intervals that go to intervals: a mass, the two ends where it starts, the two ends where it arrives."""

    masses: Array
    start: tuple[Array, Array]
    end: tuple[Array, Array]

    @classmethod
    def between(cls, a: Quantiles, b: Quantiles) -> "Pieces":
        """The pieces of the monotone transport; those without mass have no width and lie at the end of the last one."""
        levels = jnp.clip(jnp.sort(jnp.concatenate([a.levels, b.levels])), 0, 1)
        masses = jnp.diff(levels)
        middle = 0.5 * (levels[1:] + levels[:-1])
        ends = []
        for side in (a, b):
            centre, slope = side.inside(middle)
            half = 0.5 * slope * masses
            first = jnp.min(jnp.where(masses > 0, centre - half, jnp.inf))
            reached = jnp.maximum(jax.lax.cummax(jnp.where(masses > 0, centre + half, -jnp.inf)), first)
            ends.append((jnp.where(masses > 0, centre - half, reached), reached))
        return cls(masses, *ends)

    @property
    def cost(self) -> Scalar:
        r"""$\int |x - y|^2\,\mathrm d\gamma$."""
        return square_integral(self.masses, *(y - x for x, y in zip(self.start, self.end, strict=True)))

    def at(self, time: Scalar) -> tuple[Array, Array]:
        """The two ends of each piece on its way."""
        left, right = ((1 - time) * x + time * y for x, y in zip(self.start, self.end, strict=True))
        return left, right

    def coupling(self) -> MapCoupling:
        """Two Gauss points on each piece: exact for cubics."""
        x, y = (
            jnp.concatenate([left + c * (right - left) for c in _GAUSS])[:, None]
            for left, right in (self.start, self.end)
        )
        return MapCoupling(x, y, 0.5 * jnp.concatenate([self.masses, self.masses]))

    def curve(self, a: Grid, b: Grid) -> "Curve":
        """The graph of the map, gaps of the densities included."""
        x, y = (jnp.stack(ends, axis=1).reshape(-1) for ends in (self.start, self.end))
        if a.is_periodic(0):
            turns = jnp.arange(-2, 3, dtype=x.dtype)[:, None] * (a.upper[0] - a.lower[0])
            return Curve(*((z[None] + turns).reshape(-1) for z in (x, y)))
        ends = ((a.lower[0], a.upper[0]), (b.lower[0], b.upper[0]))
        return Curve(*(jnp.pad(z, 1, constant_values=e) for z, e in zip((x, y), ends, strict=True)))


class Curve(eqx.Module):
    """A rising curve in the plane of start and end: the map where it is a graph over the first, its inverse over the
    second.

    It is a function of one point of shape `(1,)`. On a circle the image may lie outside the period of the grid: the
    point goes to it on the straight way.
    """

    positions: Array
    images: Array

    def __call__(self, point: Array) -> Array:
        return jnp.interp(point, self.positions, self.images)

    def potential(self, faces: Array, bound: Array) -> tuple[Array, Array]:
        r"""The function with derivative $2(x - T(x))$: its cell averages, and its value at the point `bound`.

        Zero at the first face. Between two of the curve's points it is a quadratic function.
        """
        lower, upper = faces[0], faces[-1]
        knots = jnp.concatenate([jnp.clip(self.positions, lower, upper), faces, bound[None]])
        knots = jnp.sort(knots)
        width = jnp.diff(knots)
        # A linear slope is its value at the middle plus a part that is odd about it; both are read inside the segment.
        near, far = (knots[:-1] + c * width for c in _GAUSS)
        slopes = [2 * (x - jnp.interp(x, self.positions, self.images)) for x in (near, far)]
        rises = 0.5 * (slopes[0] + slopes[1]) * width
        values = jnp.concatenate([jnp.zeros((1,), knots.dtype), jnp.cumsum(rises)])
        # The mean of the potential over a segment: what each slope adds, weighted by what of the segment lies ahead.
        inner = 0.5 * ((1 - _GAUSS[0]) * slopes[0] + (1 - _GAUSS[1]) * slopes[1]) * width
        cell = jnp.clip(jnp.searchsorted(faces, 0.5 * (near + far), side="right") - 1, 0, faces.shape[0] - 2)
        sums = jax.ops.segment_sum((values[:-1] + inner) * width, cell, faces.shape[0] - 1)
        return sums / jnp.diff(faces), jnp.interp(bound, knots, values)


def square_integral(masses: Array, left: Array, right: Array) -> Scalar:
    """The integral of the square of a function that is linear on each piece, with these values at its ends."""
    return jnp.sum(masses * (left**2 + left * right + right**2)) / 3


class LineGeodesic(eqx.Module):
    """The displacement interpolation between two densities on the line or the circle.

    Between two densities constant on cells it is constant on pieces, which do not lie on a grid; `geodesic(t)` gives
    the masses that the cells of `grid` then hold, exactly, and `pieces.at(t)` the pieces themselves.
    """

    pieces: Pieces
    grid: Grid = eqx.field(static=True)

    def __call__(self, time: ScalarLike) -> GridDensity:
        """The density at a time between 0 and 1, in cell averages."""
        masses = self.pieces.masses
        left, right = self.pieces.at(as_time(time, masses.dtype))
        faces = line_faces(self.grid, masses.dtype)
        period = self.grid.upper[0] - self.grid.lower[0]
        width = right - left
        below = jnp.concatenate([jnp.zeros((1,), masses.dtype), jnp.cumsum(masses)])
        cumulative = jnp.zeros_like(faces)
        for turn in (-2, -1, 0, 1, 2) if self.grid.is_periodic(0) else (0,):
            # The mass to the left of each face: whole pieces, and a part of the one that the face cuts.
            where = faces - turn * period
            piece = jnp.clip(jnp.searchsorted(left, where, side="right") - 1, 0, left.shape[0] - 1)
            wide = width[piece] > 0
            part = jnp.clip((where - left[piece]) / jnp.where(wide, width[piece], 1), 0, 1)
            part = jnp.where(wide, part, 1)
            cumulative = cumulative + jnp.where(where >= left[0], below[piece] + masses[piece] * part, 0)
        return GridDensity.normalised(jnp.maximum(jnp.diff(cumulative), 0), self.grid)

    def velocities(self, time: ScalarLike) -> tuple[Array, Array]:
        """The velocity at the two ends of each piece, linear in between: the derivative of the positions."""
        time = as_time(time, self.pieces.masses.dtype)
        return jax.jvp(self.pieces.at, (time,), (jnp.ones_like(time),))[1]

    def action(self) -> Scalar:
        r"""$\int_0^1\!\int |v|^2\,\mathrm dq_t\,\mathrm dt$ of the pieces, from their velocities."""
        masses = self.pieces.masses
        return time_average(lambda time: square_integral(masses, *self.velocities(time)), masses.dtype)


@eqx.filter_jit
def line_transport(a: GridDensity, b: GridDensity) -> Transport:
    """The transport between two densities on one-dimensional grids, which may differ."""
    periodic = a.grid.is_periodic(0)
    if periodic != b.grid.is_periodic(0) or (periodic and (a.grid.lower, a.grid.upper) != (b.grid.lower, b.grid.upper)):
        raise ValueError(
            "Both densities must live on one space: two lines with walls, or circles with the same ends; got\n"
            f"[{a.grid.lower[0]}, {a.grid.upper[0]}] {a.grid.boundary[0]} and "
            f"[{b.grid.lower[0]}, {b.grid.upper[0]}] {b.grid.boundary[0]}."
        )
    period = a.grid.upper[0] - a.grid.lower[0]
    source, target = Quantiles.of(a), Quantiles.of(b)
    if periodic:
        target = target.turned(_best_turn(source, target, period), period)
    pieces = jax.lax.stop_gradient(Pieces.between(source, target))
    curve = pieces.curve(a.grid, b.grid)
    # The potentials are bound to each other at one place of the coupling: φ(x) + ψ(T(x)) = |x − T(x)|² there.
    x, y = pieces.start[0][0], pieces.end[0][0]
    there = (y - b.grid.lower[0]) % period + b.grid.lower[0] if periodic else y
    faces_a, faces_b = line_faces(a.grid, a.values.dtype), line_faces(b.grid, b.values.dtype)
    phi, phi_there = curve.potential(faces_a, x)
    psi, psi_there = Curve(curve.images, curve.positions).potential(faces_b, there)
    psi = psi + (x - y) ** 2 - phi_there - psi_there
    primal = pieces.cost
    mass_a, mass_b = a.values * a.grid.cell_volume, b.values * b.grid.cell_volume
    total_a, total_b = jnp.sum(mass_a), jnp.sum(mass_b)
    mean_a, mean_b = jnp.sum(phi * mass_a) / total_a, jnp.sum(psi * mass_b) / total_b
    # Each density counts as normalised, so a change of its mass alone has no effect.
    sides = (((phi - mean_a) / total_a, mass_a), ((psi - mean_b) / total_b, mass_b))
    statement = "exact for densities constant on cells: the gap is the rounding of both sides"
    return Transport(
        a,
        b,
        envelope(primal, *sides),
        curve,
        pieces.coupling(),
        (phi, psi),
        Certificate(primal, jax.lax.stop_gradient(mean_a + mean_b), statement),
        LineGeodesic(pieces, _common_grid(a.grid, b.grid)),
        "quantile functions" + (" and the best turn of the circle" if periodic else ""),
    )


def _best_turn(source: Quantiles, target: Quantiles, period: float) -> Scalar:
    """The level by which the second quantile function is turned where the cost, convex in it, is least."""

    def slope(theta: Scalar) -> Scalar:
        pieces = Pieces.between(source, target.turned(theta, period))
        (left, right), (end_left, end_right) = pieces.start, pieces.end
        # ∫(y − x(y))dy over the pieces, and over the gaps between them, the one across the seam included.
        ends = jnp.sum((end_right - end_left) * (end_right + end_left - right - left))
        following = jnp.concatenate([left[1:], left[:1] + period])
        end_following = jnp.concatenate([end_left[1:], end_left[:1] + period])
        return ends + jnp.sum((end_following - end_right) * (end_following + end_right - following - right))

    def halve(_: Array, interval: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = interval
        middle = 0.5 * (low + high)
        falling = slope(middle) < 0
        return jnp.where(falling, middle, low), jnp.where(falling, high, middle)

    one = jnp.ones((), source.levels.dtype)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-one, one))
    return jax.lax.stop_gradient(0.5 * (low + high))


def line_faces(grid: Grid, dtype: Any) -> Array:
    """The ends of the cells of a one-dimensional grid, shape `(n + 1,)`."""
    return jnp.linspace(grid.lower[0], grid.upper[0], grid.shape[0] + 1, dtype=dtype)


def _common_grid(a: Grid, b: Grid) -> Grid:
    """A grid on which both densities fit."""
    if a == b:
        return a
    lower, upper = min(a.lower[0], b.lower[0]), max(a.upper[0], b.upper[0])
    spacing = min(a.spacing[0], b.spacing[0])
    return Grid(lower, upper, round((upper - lower) / spacing), a.boundary)


@transport_between.register
def _(a: GridDensity, b: GridDensity, solver: Any) -> Transport:
    if a.grid.dim > 1:
        return grid_transport(a, b, solver)
    if solver is not None:
        raise UnsupportedCombination(
            f"On the line the transport is known exactly and takes no solver; got `{type(solver).__name__}`.\n"
            "Leave `solver=None`."
        )
    return line_transport(a, b)
