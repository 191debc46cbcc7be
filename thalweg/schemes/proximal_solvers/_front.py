r"""What a JKO step of a density with a vacuum takes at its front, where the pressure $f - V$ ends.

With f kept at V in the vacuum, as a floor, f has a kink at the front, and the slope of V beyond is not that of the
map: a cell that the front cuts would be brought from far, and $W_2^2$ of a front that hardly moves comes out many times
too large. So for the cost f goes on from the cells within the front as
[`thalweg.transport._continuation`][] says. What goes on from an f that is rough may be anything, and the smaller of
the two costs counts: both are of maps that carry the density, the front's own cells apart.
"""

import jax.numpy as jnp

from thalweg._types import Array, Scalar, ScalarLike
from thalweg.states import Grid
from thalweg.transport._continuation import continuation, continued
from thalweg.transport._image_mass import moves, transport_cost

# So many rings are continued; the last one only serves the map of those before it.
RINGS = 5
COUNTED = RINGS - 1
# A cell that the front cuts is empty below this part of the largest density: in the next step the map would have to
# tell such a cell from an empty one.
HARDLY = 1e-3
# Where less than this part of the largest pressure is left, no front begins.
_LITTLE = 1e-6


def slopes(values: Array, grid: Grid) -> tuple[Array, Array]:
    """By how much the values vary within a cell along each axis: half the difference of the neighbours."""
    found = []
    for axis, n in enumerate(grid.shape):
        mode = "wrap" if grid.is_periodic(axis) else "edge"
        padded = jnp.pad(values, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode=mode)
        before, after = (padded[k : n + k] if axis == 0 else padded[:, k : n + k] for k in (0, 2))
        found.append(0.5 * jnp.abs(after - before))
    return found[0], found[1]


def within(pressure: Array, part: float, grid: Grid) -> Array:
    """The cells all of whose pressures are positive; or that part of them."""
    first, second = slopes(pressure, grid)
    return pressure > part * 0.5 * (first + second)


def pressed(pressure: Array, density: Array, arrived: Array) -> Array:
    """The cells of a density with a floor where there is some pressure and something arrives: an implicit Euler step,
    the start, has tails where nothing does.
    """
    return (pressure > _LITTLE * jnp.max(pressure)) & (arrived > 0.5 * density)


def cost_with_floor(
    f: Array, potential: Array, density: Array, arrived: Array, grid: Grid, step_size: ScalarLike
) -> Scalar:
    """What it costs to bring a density, found with a floor in the vacuum, to its place."""
    known = pressed(f - potential, density, arrived) & within(f - potential, 1.0, grid)
    way = continuation(known, grid, RINGS, f.dtype)
    # Further out than the rings nothing may be.
    beyond = jnp.any((density > HARDLY * jnp.max(density)) & ~way.within(COUNTED))
    smooth = jnp.where(way.complete & ~beyond, continued(f, way, RINGS), f)
    first, second = (transport_cost(moves(g, grid, step_size), density, grid) for g in (f, smooth))
    return jnp.fmin(first, second)
