"""The Wasserstein metric on a grid: mass moves through the faces between cells."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import states
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric
from thalweg.geometries.wasserstein._geometry import Wasserstein, metric_at
from thalweg.geometries.wasserstein._means import arithmetic_mean, logarithmic_mean
from thalweg.geometries.wasserstein._tensor import TensorMetric, is_matrix
from thalweg.states import Grid, GridDensity
from thalweg.transport import line_distance_squared


class FaceField(eqx.Module):
    """What flows through the faces: for each axis the velocity and the density on the face, in the grid's shape.

    Entry $i$ along the axis is the face between cells $i$ and $i+1$; the last one wraps, and is zero where the axis
    is not periodic.
    """

    velocities: tuple[Array, ...]
    mobilities: tuple[Array, ...]

    @property
    def fluxes(self) -> tuple[Array, ...]:
        """Density times velocity."""
        return tuple(m * u for m, u in zip(self.mobilities, self.velocities, strict=True))


class GridMetric(AbstractMetric):
    r"""$\|v\|^2 = \sum_{\text{faces}} h^d\,J^2/\bar q$ for the fluxes $J$ with $v = -\nabla_h\cdot J$.

    Steepest descent has $J = -\bar q\,\nabla_h\xi$, so that $-\langle\xi, v\rangle = \|v\|^2$ holds exactly, by
    summation by parts. The density $\bar q$ on a face is the logarithmic mean where the energy has a logarithmic
    part (its flux is then exact for the entropy, and cells do not empty), and the arithmetic mean elsewhere (so that
    fronts can enter empty cells). A mobility $m(x, q)$ multiplies it by the mean of $m/q$ of the two cells.
    """

    state: GridDensity
    mobility: Callable[..., Any] | None = None

    distance_kind = "exact"

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        xi, grid, values = cotangent.regular.values, self.state.grid, self.state.values
        mean = logarithmic_mean if cotangent.positive else arithmetic_mean
        velocities, mobilities = [], []
        factors = None if self.mobility is None else relative_mobility(self.mobility, self.state)
        for axis in range(grid.dim):
            mobility = mean(values, neighbour(values, axis)) * open_faces(grid, axis, values.dtype)
            mobility = mobility if factors is None else mobility * factors[axis]
            velocities.append(-difference(xi, axis) / grid.spacing[axis])
            mobilities.append(mobility)
        field = FaceField(tuple(velocities), tuple(mobilities))
        tangent = eqx.tree_at(lambda s: s.values, self.state, -divergence(field.fluxes, grid))
        return Velocity(tangent, field)

    def norm_squared(self, velocity: Velocity) -> Scalar:
        # No division by a density: next to vacuum its square has no reciprocal, and derivatives would be NaN.
        field = velocity.field
        terms = [jnp.sum(m * u**2) for m, u in zip(field.mobilities, field.velocities, strict=True)]
        return sum(terms[1:], start=terms[0]) * self.state.grid.cell_volume

    def move(self, velocity: Velocity, scale: ScalarLike) -> GridDensity:
        moved = self.state.values - scale * divergence(velocity.field.fluxes, self.state.grid)
        return eqx.tree_at(lambda s: s.values, self.state, moved)


class LineMetric(GridMetric):
    """The grid metric in one dimension with walls, where $W_2$ itself is known exactly for densities constant on cells.

    The norm is that of the discrete fluxes; it agrees with the distance to $O(h^2)$.
    """

    def distance_squared(self, other: GridDensity) -> Scalar:
        faces = line_faces(self.state.grid, self.state.values.dtype)
        width = self.state.grid.cell_volume
        return line_distance_squared(other.values * width, faces, self.state.values * width, faces)


@metric_at.register
def _(state: GridDensity, geometry: Wasserstein) -> AbstractMetric:
    if geometry.mobility is not None and is_matrix(geometry.mobility, state):
        return TensorMetric(state, geometry.mobility)
    if state.grid.dim == 1 and not state.grid.is_periodic(0) and state.grid.mask is None:
        if geometry.mobility is None:
            return LineMetric(state)
    return GridMetric(state, geometry.mobility)


def relative_mobility(mobility: Callable[..., Any], state: GridDensity) -> tuple[Array, ...]:
    """$m(x, q)/q$ on the faces along each axis, the mean of the two cells."""
    quotient = quotient_on_cells(mobility, state)
    return tuple(0.5 * (quotient + neighbour(quotient, axis)) for axis in range(state.dim))


def quotient_on_cells(mobility: Callable[..., Any], state: GridDensity) -> Array:
    """$m(x, q)/q$ at the cells."""
    # In a vacuum it is taken at a density that moves no more mass than rounding does.
    floored = jnp.maximum(state.values, 1e-14 * jnp.max(state.values))
    return mobility_on_cells(mobility, state, floored) / floored


def mobility_on_cells(mobility: Callable[..., Any], state: GridDensity, values: Array) -> Array:
    """$m(x, q)$ at the cells, for these values of the density; never negative, zero outside of the domain."""
    points = state.grid.centres.astype(values.dtype).reshape(-1, state.dim)
    found = jax.vmap(mobility)(points, values.reshape(-1)).astype(values.dtype).reshape(values.shape)
    found = jnp.maximum(found, 0)
    return found if state.grid.mask is None else jnp.where(state.grid.mask, found, 0)


def check_mobility(mobility: Callable[..., Any], state: GridDensity) -> None:
    """Raise `ValueError` if a mobility is NaN or negative at a cell of this density, naming the cell."""
    with jax.ensure_compile_time_eval():
        points = state.grid.centres.astype(state.values.dtype).reshape(-1, state.dim)
        found = np.asarray(jax.vmap(mobility)(points, state.values.reshape(-1))).reshape(state.grid.shape)
    bad = ~(found >= 0) if state.grid.mask is None else ~(found >= 0) & state.grid.mask
    if np.any(bad):
        index = tuple(np.argwhere(bad)[0])
        place = [round(float(c), 4) for c in np.asarray(state.grid.centres)[index]]
        raise ValueError(
            f"`mobility(x, q)` must be a number that is not negative; it is {float(found[index]):.4g} at "
            f"{int(bad.sum())} of {bad.size} cells, first at x = {place}\nwhere the density is "
            f"{float(state.values[index]):.4g}. Where a mobility may fall below zero write `jnp.maximum(..., 0)`: mass "
            "then stays where it is."
        )


def is_proportional(mobility: Callable[..., Any] | None, state: GridDensity) -> bool:
    """Whether $m(x, q)/q$ does not depend on $q$, as far as three densities tell."""
    if mobility is None:
        return True
    with jax.ensure_compile_time_eval():
        ones = jnp.ones(state.grid.shape, state.values.dtype)
        found = [np.asarray(mobility_on_cells(mobility, state, q * ones)) / q for q in (1.0, 0.37, 2.9)]
    return all(np.allclose(other, found[0], rtol=1e-12, atol=0) for other in found[1:])


def line_faces(grid: Grid, dtype: Any) -> Array:
    """The ends of the cells of a one-dimensional grid, shape `(n + 1,)`."""
    return jnp.linspace(grid.lower[0], grid.upper[0], grid.shape[0] + 1, dtype=dtype)


def neighbour(values: Array, axis: int) -> Array:
    """The value in the next cell along an axis (wrapping)."""
    return jnp.roll(values, -1, axis)


def difference(values: Array, axis: int) -> Array:
    """The next value less this one, at each face along an axis (wrapping)."""
    return neighbour(values, axis) - values


def open_faces(grid: Grid, axis: int, dtype: Any) -> Array:
    """One at faces through which mass may pass, zero at walls; broadcastable to the grid's shape."""
    return jnp.asarray(states.open_faces(grid, axis), dtype)


def divergence(fluxes: tuple[Array, ...], grid: Grid) -> Array:
    r"""$\nabla_h\cdot J$ at the cells."""
    parts = [(flux - jnp.roll(flux, 1, axis)) / grid.spacing[axis] for axis, flux in enumerate(fluxes)]
    return sum(parts[1:], start=parts[0])
