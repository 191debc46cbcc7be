r"""One step of implicit Euler for the flow of a grid density: Newton's method with a multigrid for transport.

$$q^+ + \tau\,\nabla_h\cdot\bigl(w\,J(q^+)\bigr) = q,$$

with the fluxes of [`thalweg.schemes._implicit_flux`][] and a share $w$ of the step for each face (one, but in the steps
of second order).

- Newton's matrix is, but for the nonlocal terms, a transport operator: what leaves a cell arrives in its neighbours.
  Scaled by what leaves each cell, so that it is symmetric for a porous medium even next to a vacuum, one multigrid
  cycle preconditions BiCGStab; the nonlocal terms enter by their products.
- From a vacuum a front moves by one cell in a step of Newton's method. So a long step begins with added diffusion,
  which is taken away tenfold each time the residual is down to a part of the mass.

Other candidates are weighed in `docs/implicit.md`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar
from thalweg.energies import Decomposition
from thalweg.geometries.wasserstein._grid import difference, divergence, neighbour, open_faces
from thalweg.schemes._implicit_flux import Face, least_density, linearised_flux, nonlocal_variation
from thalweg.states import GridDensity
from thalweg.transport._multigrid import Transport, hierarchy, v_cycle
from thalweg.transport._unsymmetric import bicgstab

_MAX_NEWTON = 40
_MAX_KRYLOV = 60


class Step(NamedTuple):
    """A density, whether the equation holds at it, and what that took."""

    values: Array
    converged: Flag
    newton: Count
    krylov: Count
    residual: Scalar


class _Newton(NamedTuple):
    """The last density accepted, the direction from it and how much of it is tried; the diffusion added, in units of
    what leaves a cell in the step; the residual and the counts.
    """

    values: Array
    direction: Array
    length: Scalar
    added: Scalar
    residual: Scalar
    done: Flag
    newton: Count
    krylov: Count


class Linearised(NamedTuple):
    """The residual, Newton's matrix, what makes its preconditioner, what rounding leaves of the residual, and the
    largest part of a cell that leaves it in the step.

    The preconditioner is made where it is used, in a branch: what a branch is given is computed once, while beside the
    fluxes the compiler would fuse the two and compute the derivatives of a flux anew for each neighbour.
    """

    residual: Array
    product: Callable[[Array], Array]
    preconditioner: Callable[[], Callable[[Array], Array]]
    rounding: Scalar
    stiffness: Callable[[], Scalar]


def implicit_euler(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    tau: Scalar,
    tolerance: float,
    upwind: Flag,
    weights: tuple[Array, ...] | None = None,
    guess: Array | None = None,
) -> Step:
    """One step of implicit Euler from a density.

    **Arguments:** `tolerance`: of the $L^1$ norm of the residual; `upwind`: whether the flux takes the density
    upstream; `weights`: a share of the step for the faces along each axis, in the grid's shape, one if `None`;
    `guess`: where Newton's method begins, of the same mass; the density itself if `None`.
    """
    before, volume = state.values, state.grid.cell_volume
    mass = jnp.sum(before)
    start = before if guess is None else guess

    def at(values: Array, added: Scalar) -> Linearised:
        return linearised(structure, mobility, state, values, tau, added, upwind, weights)

    def body(c: _Newton) -> _Newton:
        values = jnp.maximum(c.values + c.length * c.direction, 0.05 * c.values)
        # A linear solve conserves mass to its tolerance only.
        values = values * (mass / jnp.sum(values))
        linear = at(values, c.added)
        found = jnp.sum(jnp.abs(linear.residual)) * volume

        def accepted() -> _Newton:
            lower = (c.added > 0) & (found <= 0.3 * mass * volume)
            added = jnp.where(lower, jnp.where(c.added > 0.01, 0.1 * c.added, 0), c.added)
            done = (c.added == 0) & (found <= jnp.maximum(tolerance, linear.rounding))
            # In proportion to what is left, Newton's method stays quadratic; while far off, a rough direction will do.
            accuracy = jnp.clip(found / (mass * volume), 1e-6, 0.1)
            direction, steps = jax.lax.cond(
                done,
                lambda: (jnp.zeros_like(values), jnp.zeros((), jnp.int32)),
                lambda: bicgstab(linear.product, linear.preconditioner(), -linear.residual, accuracy, _MAX_KRYLOV),
            )
            # With less diffusion it is another equation, whose residual starts anew.
            residual = jnp.where(lower, jnp.inf, found)
            one = jnp.ones_like(tau)
            return _Newton(values, direction, one, added, residual, done, c.newton + 1, c.krylov + steps)

        def shorter() -> _Newton:
            return c._replace(length=0.5 * c.length, newton=c.newton + 1)

        return jax.lax.cond(found < c.residual, accepted, shorter)

    none, inf = jnp.zeros((), jnp.int32), jnp.full_like(tau, jnp.inf)
    added = jnp.zeros_like(tau)
    if structure.temperature is None or structure.local or structure.remainder:
        stiffness = at(start, added).stiffness()
        added = jnp.where(stiffness > 2, stiffness, 0)
    begin = _Newton(start, jnp.zeros_like(start), jnp.ones_like(tau), added, inf, jnp.asarray(False), none, none)
    end = jax.lax.while_loop(lambda c: ~c.done & (c.newton < _MAX_NEWTON) & (c.length > 1e-3), body, begin)
    return Step(end.values, end.done, end.newton, end.krylov, end.residual)


def linearised(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    values: Array,
    tau: Scalar,
    added: Scalar,
    upwind: Flag,
    weights: tuple[Array, ...] | None = None,
) -> Linearised:
    """The equation of the step from a density (`state`), linearised at another one (`values`)."""
    grid, dtype, before = state.grid, values.dtype, state.values
    points = state._centres()
    least = least_density(before)
    nonlocal_part = lambda q: nonlocal_variation(structure, state, q)  # noqa: E731
    if structure.interaction or structure.remainder:
        smooth, push = jax.linearize(nonlocal_part, values)
    else:
        smooth, push = nonlocal_part(values), None
    faces, fluxes = [], []
    rounding = jnp.zeros((), dtype)
    for axis in range(grid.dim):
        there = neighbour(values, axis)
        drop = difference(smooth, axis)
        ends = (points, jnp.roll(points, -1, axis))
        face = linearised_flux(structure, mobility, (values, there), drop, ends, least, upwind)
        scale = open_faces(grid, axis, dtype) / grid.spacing[axis]
        scale = scale if weights is None else scale * weights[axis]
        face = Face(*(scale * part for part in face))
        share = added * open_faces(grid, axis, dtype) * grid.spacing[axis] / tau
        face = face._replace(
            flux=face.flux + share * (values - there), by_here=face.by_here + share, by_there=face.by_there - share
        )
        faces.append(face)
        fluxes.append(face.flux)
        out, back = _carried(face, tau / grid.spacing[axis])
        rounding = rounding + jnp.sum(out * values + back * there)
    residual = values - before + tau * divergence(tuple(fluxes), grid)

    def leaving() -> tuple[list[tuple[Array, Array]], Array]:
        """What each face carries either way, and one with what leaves each cell."""
        carried = [_carried(face, tau / grid.spacing[axis]) for axis, face in enumerate(faces)]
        outflow = jnp.ones_like(values)
        for axis, (out, back) in enumerate(carried):
            outflow = outflow + out + jnp.roll(back, 1, axis)
        return carried, outflow

    def preconditioner() -> Callable[[Array], Array]:
        carried, outflow = leaving()
        scale = 1 / outflow
        forward = tuple(out * scale for out, _ in carried)
        backward = tuple(back * neighbour(scale, axis) for axis, (_, back) in enumerate(carried))
        levels = hierarchy(Transport(scale, forward, backward), grid.spacing)

        def precondition(vector: Array) -> Array:
            if grid.mask is None:
                return scale * v_cycle(levels, vector)
            # A coarse cell may hold cells on both sides of a wall; what is in the wall stays.
            return jnp.where(grid.mask, scale * v_cycle(levels, jnp.where(grid.mask, vector, 0)), vector)

        return precondition

    def product(vector: Array) -> Array:
        drops = None if push is None else push(vector)
        changes = []
        for axis, face in enumerate(faces):
            change = face.by_here * vector + face.by_there * neighbour(vector, axis)
            if drops is not None:
                change = change + face.by_drop * difference(drops, axis)
            changes.append(change)
        return vector + tau * divergence(tuple(changes), grid)

    rounding = 8 * jnp.finfo(dtype).eps * (rounding + jnp.sum(values)) * grid.cell_volume

    return Linearised(residual, product, preconditioner, rounding, lambda: jnp.max(leaving()[1]) - 1)


def _carried(face: Face, ratio: Scalar) -> tuple[Array, Array]:
    """The parts of the densities on both sides that a face carries to the other side in the step."""
    return jnp.maximum(ratio * face.by_here, 0), jnp.maximum(-ratio * face.by_there, 0)
