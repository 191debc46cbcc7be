r"""A step of first or second order made of implicit Euler steps: positive, conservative, dissipating the energy.

Alexander's method of order two, with $\alpha = 1 - 1/\sqrt 2$, takes two implicit steps,

$$q_1 = q - \alpha\tau\,\nabla_h\cdot J(q_1), \qquad q_2 = q_1 - (1 - 2\alpha)\tau\,\nabla_h\cdot J(q_1) -
\alpha\tau\,\nabla_h\cdot J(q_2).$$

It damps what is stiff (L-stable, stiffly accurate) and rests where implicit Euler rests. The second line begins with an
extrapolation past $q_1$, which may empty a cell: where the density falls by more than two fifths in the first part of
the step. So on each face only a share $s$ of it is explicit,

$$q_2 = q_1 - (1 - 2\alpha)\tau\,\nabla_h\cdot(s J(q_1)) - \tau\,\nabla_h\cdot\bigl((1 - \alpha - s(1 - 2\alpha))
J(q_2)\bigr),$$

which is of second order where $s = 1$, two steps of implicit Euler where $s = 0$, and consistent for every $s$ between,
as the explicit and the implicit shares of each face sum to one. $s$ is the largest (to a few sweeps) that leaves a
hundredth of $q_1$ in each cell; the implicit step from there is positive. With $s = 0$ on all faces the energy falls.

No linear method of order two is positive for all steps (Bolley, Crouzeix 1978); other candidates are weighed in
`docs/implicit.md`.

**Source:** Alexander, *Diagonally implicit Runge–Kutta methods for stiff O.D.E.'s*, SIAM J. Numer. Anal. 14 (1977);
Zalesak, J. Comput. Phys. 31 (1979), for limited fluxes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar
from thalweg.energies import Decomposition
from thalweg.geometries.wasserstein._grid import divergence, neighbour
from thalweg.schemes._implicit_derivative import implicit_step
from thalweg.schemes._implicit_flux import fluxes_and_rates, least_density
from thalweg.states import Grid, GridDensity

_ALPHA = 1 - 1 / math.sqrt(2)
# Of each cell that the explicit part of a step leaves.
_LEFT = 0.01
_SWEEPS = 12
# The part of the mass that a limited step holds back at least.
_NOTICED = 1e-8


class Composed(NamedTuple):
    """A density after a step, the energy that its fluxes dissipate, whether all equations were solved, whether the
    explicit share was limited for a part of the mass, and the counts.
    """

    values: Array
    dissipated: Scalar
    converged: Flag
    limited: Flag
    newton: Count
    krylov: Count


class _Stage(NamedTuple):
    """Where the next implicit step starts from, its share of each face, and what has been gathered."""

    values: Array
    guess: Array
    weights: tuple[Array, ...]
    dissipated: Scalar
    converged: Flag
    limited: Flag
    newton: Count
    krylov: Count


def composed_step(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    tau: Scalar,
    order: int,
    tolerance: float,
    upwind: Flag,
    euler: Flag,
) -> Composed:
    """A step of implicit Euler (`order` 1) or of Alexander's method (2); with `euler` no share of that is explicit."""
    grid, before, dtype = state.grid, state.values, state.values.dtype
    first = _ALPHA if order == 2 else 1.0

    def at(values: Array) -> GridDensity:
        return eqx.tree_at(lambda s: s.values, state, values)

    def stage(c: _Stage, explicit: Scalar) -> tuple[_Stage, None]:
        solved = implicit_step(structure, mobility, at(c.values), tau, tolerance, upwind, c.weights, c.guess)
        fluxes, rates = fluxes_and_rates(structure, mobility, at(solved.values), least_density(before), upwind)
        moving = tuple(explicit * tau * flux for flux in fluxes)
        shares, limited = c.weights, jnp.asarray(False)
        if order == 2:
            shares, limited = _shares(solved.values, moving, grid)
        moved = tuple(share * flux for share, flux in zip(shares, moving, strict=True))
        # The shares leave a part of each cell, but for rounding.
        following = jnp.maximum(solved.values - divergence(moved, grid), 0)
        # What this density's fluxes do in the whole step; the next one's do the rest.
        done = tuple(w + explicit * share for w, share in zip(c.weights, shares, strict=True))
        spent = [jnp.sum(share * rate) for share, rate in zip(done, rates, strict=True)]
        return _Stage(
            following,
            solved.values,
            tuple(1 - share for share in done),
            c.dissipated + tau * sum(spent[1:], start=spent[0]),
            c.converged & solved.converged,
            c.limited | limited,
            c.newton + solved.newton,
            c.krylov + solved.krylov,
        ), None

    none = jnp.zeros((), jnp.int32)
    weights = tuple(jnp.full(grid.shape, first, dtype) for _ in range(grid.dim))
    begin = _Stage(before, before, weights, jnp.zeros((), dtype), jnp.asarray(True), jnp.asarray(False), none, none)
    if order == 1:
        end, _ = stage(begin, jnp.zeros((), dtype))
    else:
        # One stage is compiled once.
        extrapolated = jnp.where(euler, 0, 1 - 2 * _ALPHA).astype(dtype)
        end, _ = jax.lax.scan(stage, begin, jnp.stack([extrapolated, jnp.zeros_like(extrapolated)]))
    return Composed(end.values, end.dissipated, end.converged, end.limited, end.newton, end.krylov)


def _shares(values: Array, fluxes: tuple[Array, ...], grid: Grid) -> tuple[tuple[Array, ...], Flag]:
    """For each face the share of its flux that may pass so that a part of every cell is left, and whether that is
    noticed. `fluxes` are those of the whole step.
    """
    spare = (1 - _LEFT) * values
    scaled = tuple(flux / grid.spacing[axis] for axis, flux in enumerate(fluxes))

    def on_faces(cells: Array) -> tuple[Array, ...]:
        """Of the cell that the flux leaves."""
        return tuple(jnp.where(flux > 0, cells, neighbour(cells, axis)) for axis, flux in enumerate(scaled))

    def through(shares: tuple[Array, ...]) -> tuple[Array, Array]:
        """What leaves each cell and what enters it."""
        leaving, entering = jnp.zeros_like(values), jnp.zeros_like(values)
        for axis, (share, flux) in enumerate(zip(shares, scaled, strict=True)):
            right, left = share * jnp.maximum(flux, 0), share * jnp.maximum(-flux, 0)
            leaving = leaving + right + jnp.roll(left, 1, axis)
            entering = entering + left + jnp.roll(right, 1, axis)
        return leaving, entering

    ones = jnp.ones_like(values)
    whole, _ = through(on_faces(ones))
    smallest = jnp.finfo(values.dtype).tiny ** 0.45  # a quotient of two tails would have no finite derivative

    def sweep(cells: Array, _: Any) -> tuple[Array, Any]:
        _, entering = through(on_faces(cells))
        limits = (whole > spare + entering) & (whole > smallest)
        return jnp.where(limits, (spare + entering) / jnp.where(limits, whole, 1), 1), None

    def enough(cells: Array) -> Flag:
        leaving, entering = through(on_faces(cells))
        return jnp.all(leaving <= (1 - 0.5 * _LEFT) * values + entering + smallest)

    # From above it ends with the largest share, but only its end is sure to leave enough; from below each one does.
    above, _ = jax.lax.scan(sweep, ones, None, length=_SWEEPS)
    below, _ = jax.lax.scan(sweep, jnp.zeros_like(values), None, length=_SWEEPS)
    cells = jnp.where(enough(above), above, below)
    allowed = on_faces(cells)
    withheld = [jnp.sum((1 - share) * jnp.abs(flux)) for share, flux in zip(allowed, scaled, strict=True)]
    # What a vacuum keeps back is no matter.
    return allowed, sum(withheld[1:], start=withheld[0]) > _NOTICED * jnp.sum(values)
