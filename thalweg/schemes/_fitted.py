r"""Exponentially fitted fluxes: any energy of a grid density as a drift and a diffusion across each face.

On each face the flux is brought to the form $-T_f\nabla q - q\nabla a$: $T_f$ is the secant of $\partial_q e$ in
$\log q$, and $a$ what remains of $\xi$, so the flux vanishes exactly where $\xi$ is constant. At a face next to an
(almost) empty cell the secant would stop a front of finite speed; there the derivative at the mean is used.

**Source:** Scharfetter, Gummel (1969); Bessemoulin-Chatard, Numer. Math. 121 (2012).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array
from thalweg.energies import AbstractEnergy, Decomposition
from thalweg.geometries.wasserstein._grid import (
    difference,
    neighbour,
    open_faces,
    quotient_on_cells,
    relative_mobility,
)
from thalweg.geometries.wasserstein._means import fitted_coefficient
from thalweg.states import Grid, GridDensity

# Ratio of densities across a face beyond which the emptier cell counts as vacuum.
_VACUUM = 1e-3


class FaceCoefficients(NamedTuple):
    """On each face along an axis: the flux is `right` · q(here) − `left` · q(next), over the spacing."""

    right: Array
    left: Array


def linear_coefficients(
    structure: Decomposition, state: GridDensity, mobility: Callable[..., Any] | None = None
) -> tuple[FaceCoefficients, ...]:
    """The coefficients of V and T alone; they depend on the density only if the mobility over the density does."""
    potential = state.on_cells(structure.potential_value)
    temperature = 0.0 if structure.temperature is None else structure.temperature
    diffusivity = jnp.asarray(temperature, potential.dtype)
    fitted = (_coefficients(difference(potential, axis), diffusivity, state.grid, axis) for axis in range(state.dim))
    return _times_mobility(tuple(fitted), state, mobility)


def nonlinear_coefficients(
    energy: AbstractEnergy,
    structure: Decomposition,
    state: GridDensity,
    mobility: Callable[..., Any] | None = None,
) -> tuple[FaceCoefficients, ...]:
    """The coefficients of any energy at this density."""
    grid, values = state.grid, state.values
    smooth = state.on_cells(structure.potential_value) if structure.potential else jnp.zeros_like(values)
    for term in structure.interaction:
        smooth = smooth + term.scale * state.convolve(term.function)
    for term in (*structure.remainder, *structure.proximable):
        variation = jax.grad(lambda q, term=term: term.energy(eqx.tree_at(lambda s: s.values, state, q)))(values)
        smooth = smooth + term.scale * variation / grid.cell_volume
    points = grid.centres.astype(values.dtype)
    coefficients = []
    for axis in range(grid.dim):
        drop = difference(smooth, axis)
        diffusivity = jnp.zeros_like(values)
        if structure.temperature is not None:
            diffusivity = diffusivity + jnp.asarray(structure.temperature, values.dtype)
        if structure.local:
            diffusivity, drop = _with_local_part(structure, values, points, axis, diffusivity, drop)
        coefficients.append(_coefficients(drop, diffusivity, grid, axis))
    return _times_mobility(tuple(coefficients), state, mobility, saturates=True)


def _times_mobility(
    coefficients: tuple[FaceCoefficients, ...],
    state: GridDensity,
    mobility: Callable[..., Any] | None,
    saturates: bool = False,
) -> tuple[FaceCoefficients, ...]:
    """The coefficients times $m/q$ on the faces, the mean of the two cells; where it falls as the density grows
    (`saturates`: it may), that of the cell to which the mass goes, so that a full cell takes no more.
    """
    if mobility is None:
        return coefficients
    factors = relative_mobility(mobility, state)
    if saturates:
        quotient = quotient_on_cells(mobility, state)
        factors = tuple(
            _downstream(face, state.values, quotient, mean, axis)
            for axis, (face, mean) in enumerate(zip(coefficients, factors, strict=True))
        )
    return tuple(FaceCoefficients(*(m * c for c in face)) for face, m in zip(coefficients, factors, strict=True))


def _downstream(face: FaceCoefficients, values: Array, quotient: Array, mean: Array, axis: int) -> Array:
    other, beyond = neighbour(values, axis), neighbour(quotient, axis)
    to_the_right = face.right * values > face.left * other
    falls = (beyond - quotient) * (other - values) < 0
    return jnp.where(falls, jnp.where(to_the_right, beyond, quotient), mean)


def _with_local_part(
    structure: Decomposition, values: Array, points: Array, axis: int, diffusivity: Array, drop: Array
) -> tuple[Array, Array]:
    """Add the diffusivity and the drop of ∂e/∂q across each face: secants in log q at fixed x, and in x at fixed q."""
    slope = jax.grad(structure.local_value)
    curvature = jax.grad(slope)
    on_cells = lambda fn: _vmap_times(fn, values.ndim)  # noqa: E731
    # The diffusivity of a fast diffusion (as of most f-divergences) is infinite in a vacuum. Taken at this density it
    # is finite, and moves no more mass than rounding does.
    least = 1e-14 * jnp.max(values)
    here, there = jnp.maximum(values, least), jnp.maximum(neighbour(values, axis), least)
    x_here, x_there = points, jnp.roll(points, -1, axis)
    s_hh, s_tt = on_cells(slope)(here, x_here), on_cells(slope)(there, x_there)
    s_ht, s_th = on_cells(slope)(here, x_there), on_cells(slope)(there, x_here)
    log_ratio = jnp.log(there) - jnp.log(here)
    middle = 0.5 * (here + there)
    at_middle = 0.5 * middle * (on_cells(curvature)(middle, x_here) + on_cells(curvature)(middle, x_there))
    # Too close for a secant, or next to vacuum where the secant would hold a front back.
    vacuum = jnp.minimum(here, there) < _VACUUM * jnp.maximum(here, there)
    degenerate = vacuum | (jnp.abs(log_ratio) < 1e-5)
    secant = 0.5 * ((s_th - s_hh) + (s_tt - s_ht)) / jnp.where(degenerate, 1.0, log_ratio)
    total_drop = drop + diffusivity * log_ratio + (s_tt - s_hh)
    # A concave part takes from the diffusivity; what there is none to take from is anti-diffusion: a part of the drop.
    diffusivity = diffusivity + jnp.where(degenerate, at_middle, secant)
    drop = drop + jnp.minimum(diffusivity, 0) * log_ratio
    diffusivity = jnp.maximum(diffusivity, 0)
    drop = drop + 0.5 * ((s_tt - s_th) + (s_ht - s_hh))
    # Next to vacuum the two need not agree on the direction of the flux. Then ξ decides, upwind: a front at rest stays
    # at rest, and every face lowers the energy.
    against = vacuum & ((diffusivity * log_ratio + drop) * total_drop <= 0)
    return jnp.where(against, 0, diffusivity), jnp.where(against, total_drop, drop)


def _coefficients(drop: Array, diffusivity: Array, grid: Grid, axis: int) -> FaceCoefficients:
    diffusivity = jnp.broadcast_to(diffusivity, drop.shape)
    flags = open_faces(grid, axis, drop.dtype)
    return FaceCoefficients(
        fitted_coefficient(drop, diffusivity) * flags, fitted_coefficient(-drop, diffusivity) * flags
    )


def _vmap_times(fn: Any, times: int) -> Any:
    for _ in range(times):
        fn = jax.vmap(fn)
    return fn
