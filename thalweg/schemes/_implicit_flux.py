r"""The flux between two cells for an implicit step, and its derivatives by the two densities.

With $\xi = \delta F/\delta q$ at the new density, each flux is $-M\,\Delta\xi$ with a mobility $M \ge 0$ that
vanishes with the density of the cell that mass leaves. So every face lowers the energy, the flux is zero where $\xi$ is
constant, and no cell is emptied below zero, however long the step. What M is decides the accuracy:

- with an entropy of temperature T: the exponentially fitted flux, $T\,[B(\Delta a/T)\,q_i - B(-\Delta a/T)\,q_j]$, in
  which $a = \xi - T\log q$: second order once a changes by less than T from cell to cell, upwind where by more;
- with local terms alone: the secant $M = \Delta P/\Delta e'$ of the pressure $P = q e' - e$, which makes the flux of an
  internal energy $-\Delta P$, but at most twice the density upstream;
- without any: the density upstream, first order in space.

**Source:** Scharfetter, Gummel (1969); Bessemoulin-Chatard, Filbet, SIAM J. Sci. Comput. 34 (2012); Bailo,
Carrillo, Hu, *Fully discrete positivity-preserving and energy-dissipating schemes for aggregation-diffusion equations*,
Comm. Math. Sci. 18 (2020).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag
from thalweg.energies import Decomposition
from thalweg.geometries.wasserstein._grid import difference, neighbour, open_faces
from thalweg.geometries.wasserstein._means import fitted_coefficient
from thalweg.states import GridDensity

# What counts as a vacuum, in units of `least_density`: a density of 1e-10 of the greatest.
_VACUUM = 1e4


class Face(NamedTuple):
    """A flux between a cell and the next one, and its derivatives by the two densities and by the drop."""

    flux: Array
    by_here: Array
    by_there: Array
    by_drop: Array


def least_density(values: Array) -> Array:
    """What an empty cell counts as where a slope is infinite in a vacuum; no part of a derivative."""
    return 1e-14 * jnp.max(jax.lax.stop_gradient(values))


def nonlocal_variation(structure: Decomposition, state: GridDensity, values: Array) -> Array:
    """The part of ξ that does not depend on the density at the cell alone: V, W * q and what is known by its value."""
    here = eqx.tree_at(lambda s: s.values, state, values)
    smooth = here.on_cells(structure.potential_value) if structure.potential else jnp.zeros_like(values)
    for term in structure.interaction:
        smooth = smooth + jnp.asarray(term.scale, values.dtype) * here.convolve(term.function)
    for term in structure.remainder:
        energy = lambda q, term=term: term.energy(eqx.tree_at(lambda s: s.values, state, q))  # noqa: E731
        smooth = smooth + jnp.asarray(term.scale, values.dtype) * jax.grad(energy)(values) / state.grid.cell_volume
    return smooth


def fluxes_and_rates(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    least: Array,
    upwind: Flag,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The fluxes of a density along each axis, zero at walls, and the rate at which each dissipates energy."""
    grid, values, points = state.grid, state.values, state._centres()
    smooth = nonlocal_variation(structure, state, values)
    fluxes, rates = [], []
    for axis in range(grid.dim):
        ends = (points, jnp.roll(points, -1, axis))
        drop = difference(smooth, axis)
        flux, rise = _flux(structure, mobility, values, neighbour(values, axis), drop, ends, least, upwind)
        flux = flux * (open_faces(grid, axis, values.dtype) / grid.spacing[axis])
        fluxes.append(flux)
        rates.append(-flux * rise * (grid.cell_volume / grid.spacing[axis]))
    return tuple(fluxes), tuple(rates)


def linearised_flux(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    densities: tuple[Array, Array],
    drop: Array,
    points: tuple[Array, Array],
    least: Array,
    upwind: Flag,
) -> Face:
    """The flux for `drop`, the difference of the part of ξ that is not local; all arrays of the grid's shape."""

    def flux(here: Array, there: Array, drop: Array) -> Array:
        return _flux(structure, mobility, here, there, drop, points, least, upwind)[0]

    value, push = jax.linearize(flux, *densities, drop)
    one, zero = jnp.ones_like(drop), jnp.zeros_like(drop)
    return Face(value, push(one, zero, zero), push(zero, one, zero), push(zero, zero, one))


def _flux(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    here: Array,
    there: Array,
    drop: Array,
    points: tuple[Array, Array],
    least: Array,
    upwind: Flag,
) -> tuple[Array, Array]:
    """The flux, and the rise of ξ from here to there."""
    on_cells = lambda fn: _vmap_times(fn, drop.ndim)  # noqa: E731
    x_here, x_there = points
    # Slopes may be infinite in a vacuum. Taken at this density they are finite, with the derivative that they have
    # there, and move no more mass than rounding does.
    full_here, full_there = _at_least(here, least), _at_least(there, least)
    temperature = structure.temperature
    if mobility is None and temperature is not None:
        diffusivity = jnp.broadcast_to(jnp.asarray(temperature, drop.dtype), drop.shape)
        # The local part is in the drop: a secant in log q would have no finite derivative where q = 0.
        if structure.local:
            slope = on_cells(jax.grad(structure.local_value))
            drop = drop + (slope(full_there, x_there) - slope(full_here, x_here))
        rise = drop + diffusivity * (jnp.log(full_there) - jnp.log(full_here))
        right, left = fitted_coefficient(drop, diffusivity), fitted_coefficient(-drop, diffusivity)
        return right * here - left * there, rise

    def local(density: Array, point: Array) -> Array:
        value = structure.local_value(density, point)
        return value if temperature is None else value + temperature * density * jnp.log(density)

    is_local = bool(structure.local) or temperature is not None
    mean = 0.5 * (here + there)
    if is_local:
        value, slope = on_cells(local), on_cells(jax.grad(local))
        total = pressures = jnp.zeros_like(drop)
        for point in points:
            slope_here, slope_there = slope(full_here, point), slope(full_there, point)
            total = total + (slope_there - slope_here)
            pressures = pressures + (full_there * slope_there - full_here * slope_here)
            pressures = pressures - (value(full_there, point) - value(full_here, point))
        # Too close for a secant the arithmetic mean is as good. So it is in a vacuum, where a secant is rounding, with
        # derivatives without bound: the next step began with as much diffusion and had no iterations left without it.
        near = jnp.abs(there - here) <= 1e-4 * (here + there)
        near = near | (here + there <= _VACUUM * least)
        # A constant slope moves nothing.
        some = ~near & (jnp.abs(total) > 0)
        secant = jnp.where(some, pressures, mean) / jnp.where(some, total, 1)
        low, high = jnp.minimum(here, there), jnp.maximum(here, there)
        mean = jnp.where(some, jnp.clip(secant, low, high), mean)
        drop = drop + (slope(full_there, x_there) - slope(full_here, x_here))
    upstream = jnp.where(drop < 0, here, there)
    if not (is_local or structure.remainder):
        mean = upstream
    mean = jnp.where(upwind, upstream, jnp.minimum(mean, 2 * upstream))
    if mobility is not None:
        of_cell = on_cells(mobility)
        ratio_here, ratio_there = of_cell(x_here, full_here) / full_here, of_cell(x_there, full_there) / full_there
        # A cell that lets nothing in (a full one) lets nothing in.
        downstream = jnp.where(drop < 0, ratio_there, ratio_here)
        mean = mean * jnp.minimum(0.5 * (ratio_here + ratio_there), 2 * downstream)
    return -mean * drop, drop


def _at_least(density: Array, least: Array) -> Array:
    return density + jax.lax.stop_gradient(jnp.maximum(density, least) - density)


def _vmap_times(fn: Callable[..., Any], times: int) -> Callable[..., Any]:
    for _ in range(times):
        fn = jax.vmap(fn)
    return fn
