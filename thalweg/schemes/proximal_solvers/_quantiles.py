"""The quantile function of a density on the line, to fourth order in the width of the cells, found from both ends."""

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array
from thalweg.geometries.wasserstein._grid import line_faces
from thalweg.states import GridDensity

# The largest |(log q)'| h that the correction of the quantiles knows; up to 1.7 they keep rising.
_STEEPEST = 1.5


def _rank(level: Array, rest: Array) -> Array:
    """A rising function of the level that keeps the digits of both tails, from minus to plus infinity."""
    left = level < 0.5
    return jax.lax.stop_gradient(jnp.where(left, -1.0, 1.0) / jnp.where(left, level, rest))


def both_sides(mass: Array) -> tuple[Array, Array]:
    """The mass to the left and to the right of each face: in the right tail only the second still has digits."""
    zero = jnp.zeros((1,), mass.dtype)
    below = jnp.concatenate([zero, jnp.cumsum(mass)])
    above = jnp.concatenate([jnp.cumsum(mass[::-1])[::-1], zero])
    return below, above


class Quantiles(eqx.Module):
    """The quantile function of the old density, tabulated once for all iterations."""

    mass: Array
    faces: Array
    below: Array
    above: Array
    integral: Array
    slopes: Array
    width: float = eqx.field(static=True)

    @classmethod
    def of(cls, state: GridDensity) -> "Quantiles":
        """The tables of a density; `integral` is that of the quantile up to each face, `slopes` are $h(\\log
        q)'$ at the faces.
        """
        width, mass = state.grid.cell_volume, state.values * state.grid.cell_volume
        faces = line_faces(state.grid, mass.dtype)
        both = mass[1:] + mass[:-1]
        slopes = jnp.where(both > 0, 2 * jnp.diff(mass) / jnp.where(both > 0, both, 1), 0)
        # Zero at the walls: the first quantile is the wall itself.
        slopes = jnp.pad(jnp.clip(slopes, -_STEEPEST, _STEEPEST), 1)
        moments = mass * (faces[:-1] + width * (0.5 + (slopes[1:] + slopes[:-1]) / 48))
        return cls(mass, faces, *both_sides(mass), jnp.cumsum(moments) - moments, slopes, width)

    def back_map(self, level: Array, rest: Array) -> tuple[Array, Array, Array]:
        """The quantile Q at each level, one over the density there, and ∫₀Q; looked up from the nearer end."""
        n, mass = self.mass.shape[0], self.mass
        found = jnp.searchsorted(_rank(self.below, self.above), _rank(level, rest), side="right")
        cell = jnp.clip(found - 1, 0, n - 1)
        from_left = level < 0.5
        # One over a denormal mass is infinite: such a cell is empty.
        inside = mass[cell] > jnp.finfo(mass.dtype).tiny ** 0.9
        safe = jnp.where(inside, mass[cell], 1)
        from_right = 1 - (rest - self.above[cell + 1]) / safe
        fraction = jnp.where(from_left, (level - self.below[cell]) / safe, from_right)
        fraction = jnp.where(inside, jnp.clip(fraction, 0, 1), 0.5)
        # The correction is a cubic in the place of the level in its cell.
        t, first = fraction, self.slopes[cell]
        rise = self.slopes[cell + 1] - first
        bump, bump_slope = 0.5 * t * (1 - t) - 1 / 24, 0.5 - t
        place = t + bump * (first + rise * t)
        stretch = 1 + bump_slope * (first + rise * t) + bump * rise
        integral = t * (0.5 * t + first * (t / 4 - t**2 / 6 - 1 / 24) + rise * t * (t / 6 - t**2 / 8 - 1 / 48))
        antiderivative = self.integral[cell] + mass[cell] * (self.faces[cell] * t + self.width * integral)
        return self.faces[cell] + self.width * place, jnp.where(inside, self.width * stretch / safe, 0), antiderivative
