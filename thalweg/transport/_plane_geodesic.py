r"""The displacement interpolation between two densities in the plane, from their potentials.

At a time t a point x of the start is at $z = x + t(T(x) - x)$, and the way back is that of the potential of the start
after a c-transform with the time as its step (Hopf and Lax),

$$u_t(z) = \min_x \frac{|x - z|^2}{t} - \varphi(x), \qquad x = z - \tfrac t2\nabla u_t(z).$$

Between the ends $u_t$ is semiconcave and semiconvex, so the way back is Lipschitz even where T jumps or the densities
have fronts; the masses of the images of cells are then what the cells hold. The same from the end gives a second
answer; the geodesic is $(1 - t)$ times the first plus t times the second, exact at both ends.
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
        ahead, behind = _on_the_way(self.start, self.potentials[0], time), self._from_the_end(time)
        values = (1 - time) * ahead[0] + time * behind[0]
        grid = self.start.grid
        return GridDensity(values, Grid(grid.lower, grid.upper, grid.shape, grid.boundary))

    def _from_the_end(self, time: Scalar) -> tuple[Array, Moves]:
        return _on_the_way(self.end, self.potentials[1], 1 - time)

    def velocities(self, time: ScalarLike) -> Array:
        """$v_t$ at the cell centres, from the potential of the end that is further off."""
        time = as_time(time, self.start.values.dtype)
        early = time < 0.5
        ahead, behind = _on_the_way(self.start, self.potentials[0], time), self._from_the_end(time)
        ways = jnp.where(early, centre_ways(behind[1], self.end.grid), -centre_ways(ahead[1], self.start.grid))
        return ways / jnp.where(early, 1 - time, time)

    def action(self) -> Scalar:
        r"""$\int_0^1\!\int |v|^2\,\mathrm dq_t\,\mathrm dt$, from the velocities: $W_2^2$ to the error of the cells."""

        def rate(time: Array) -> Array:
            found = []
            for density, way, span in (
                (*_on_the_way(self.start, self.potentials[0], time), time),
                (*self._from_the_end(time), 1 - time),
            ):
                found.append(transport_cost(way, density, self.start.grid) / span**2)
            return (1 - time) * found[0] + time * found[1]

        return time_average(rate, self.start.values.dtype)


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
