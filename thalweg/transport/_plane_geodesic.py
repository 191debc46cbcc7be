r"""The displacement interpolation between two densities in the plane, from their potentials.

At a time t a point x of the start is at $z = x + t(T(x) - x)$, and the way back is that of the potential of the start
after a c-transform with the time as its step (Hopf and Lax),

$$u_t(z) = \min_x \frac{|x - z|^2}{t} - \varphi(x), \qquad x = z - \tfrac t2\nabla u_t(z).$$

Between the ends $u_t$ is semiconcave and semiconvex, so the way back is Lipschitz even where T jumps or the densities
have fronts; the masses of the images of cells are then what the cells hold. The same from the end gives a second
answer. They err where a map jumps inside its mass, by rows of cells that are smeared over the gap, and mostly one of
the two does: a heap that parts does so from the start only. How well each arrives at the other end, $r_0$ and $r_1$ in
$L^1$, is known; the geodesic is the mean of the two with weights one over $t\,r_0^2$ and $(1 - t)\,r_1^2$, exact at
both ends.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar, ScalarLike
from thalweg.states import Grid, GridDensity
from thalweg.transport._between_cells import between_cells
from thalweg.transport._distance import as_time, time_average
from thalweg.transport._image_mass import Moves, carried, mass_table, moves, smoothed, transport_cost


class GridMap(eqx.Module):
    """A map known at the cell centres, linear in between: a function of one point of shape `(dim,)`."""

    images: Array
    grid: Grid = eqx.field(static=True)

    def __call__(self, point: Array) -> Array:
        grid, dtype = self.grid, point.dtype
        lower, spacing = (jnp.asarray(z, dtype) for z in (grid.lower, grid.spacing))
        place = (point - lower) / spacing - 0.5
        below = jnp.floor(place)
        image = jnp.zeros((grid.dim,), dtype)
        ways = self.images - grid.centres.astype(dtype)
        for corner in range(2**grid.dim):
            sides = jnp.asarray([corner >> axis & 1 for axis in range(grid.dim)], jnp.int32)
            weight = jnp.prod(jnp.where(sides == 1, place - below, 1 - place + below))
            at = []
            for axis, n in enumerate(grid.shape):
                index = below[axis].astype(jnp.int32) + sides[axis]
                at.append(index % n if grid.is_periodic(axis) else jnp.clip(index, 0, n - 1))
            image = image + weight * ways[tuple(at)]
        return point + image


class PlaneGeodesic(eqx.Module):
    """The displacement interpolation between two densities on a plane grid: `geodesic(t)` is a density on that grid.

    (Without its mask: the way is straight, through obstacles.)

    `velocities(t)` is the velocity at the cell centres, shape `(*shape, 2)`. Mass is kept exactly and no density is
    negative: what folds of the map make negative at a front is cut off and the rest scaled.
    """

    start: GridDensity
    end: GridDensity
    potentials: tuple[Array, Array]

    def __call__(self, time: ScalarLike) -> GridDensity:
        """The density at a time between 0 and 1, in cell averages."""
        time = as_time(time, self.start.values.dtype)
        ahead, behind = self._from_both(time)
        share = self._share(*self._misses(), time)
        grid = self.start.grid
        values = (1 - share) * ahead[0] + share * behind[0]
        return GridDensity(values, Grid(grid.lower, grid.upper, grid.shape, grid.boundary))

    def _from_both(self, time: Scalar) -> tuple[tuple[Array, Moves], tuple[Array, Moves]]:
        """The density and the moves back, from the start and from the end."""
        ahead = _on_the_way(self.start, self.potentials[0], time)
        return ahead, _on_the_way(self.end, self.potentials[1], 1 - time)

    def _misses(self) -> tuple[Scalar, Scalar]:
        """The squares of what is at the wrong place where either arrives."""
        one = jnp.ones((), self.start.values.dtype)
        there, back = self._from_both(one)[0][0], self._from_both(0 * one)[1][0]
        ahead, behind = (jnp.sum(jnp.abs(x - y.values)) for x, y in ((there, self.end), (back, self.start)))
        return ahead**2, behind**2

    def _share(self, ahead: Scalar, behind: Scalar, time: Scalar) -> Scalar:
        """The weight of what comes from the end."""
        start, end = (1 - time) * behind, time * ahead
        return jnp.where(start + end > 0, end / jnp.where(start + end > 0, start + end, 1), time)

    def velocities(self, time: ScalarLike) -> Array:
        """$v_t$ at the cell centres, from the potential of the end that is further off."""
        time = as_time(time, self.start.values.dtype)
        early = time < 0.5
        ahead, behind = self._from_both(time)
        ways = jnp.where(early, centre_ways(behind[1], self.end.grid), -centre_ways(ahead[1], self.start.grid))
        return ways / jnp.where(early, 1 - time, time)

    def action(self) -> Scalar:
        r"""$\int_0^1\!\int |v|^2\,\mathrm dq_t\,\mathrm dt$, from the velocities: $W_2^2$ to the error of the cells,
        and up to a tenth too small where T jumps within blocks of some cells or the densities are rough.
        """

        misses, grid = self._misses(), self.start.grid

        def rate(time: Array) -> Array:
            ahead, behind = self._from_both(time)
            share = self._share(*misses, time)
            return (1 - share) * _squared_speed(ahead, time, grid) + share * _squared_speed(behind, 1 - time, grid)

        return time_average(rate, self.start.values.dtype)


def _squared_speed(way: tuple[Array, Moves], span: Scalar, grid: Grid) -> Scalar:
    return transport_cost(way[1], way[0], grid) / span**2


def centre_ways(moved: Moves, grid: Grid) -> Array:
    """How far the centres of the cells move, shape `(*shape, 2)`."""
    first, second = moved.normal
    ways = [0.5 * (first[1:] + first[:-1]) * grid.spacing[0], 0.5 * (second[:, 1:] + second[:, :-1]) * grid.spacing[1]]
    return jnp.stack(ways, axis=-1)


@eqx.filter_jit
def _on_the_way(density: GridDensity, potential: Array, time: Scalar) -> tuple[Array, Moves]:
    """What a density has become after a part of the way, and the moves back to where it was."""
    grid = density.grid
    started = time > 0
    step = jnp.where(started, time, 1) / 2
    later = between_cells(-potential, grid, step)
    back = moves(jnp.where(started, -later, 0), grid, step)
    arrived = jnp.maximum(carried(mass_table(density.values, grid), smoothed(back), grid), 0)
    arrived = arrived * (jnp.sum(density.values) / jnp.sum(arrived))
    return jnp.where(started, arrived, density.values), jax.tree.map(lambda z: jnp.where(started, z, 0), back)
