r"""Implicit Euler steps of the Wasserstein flow of a grid density: Newton's method with a multigrid for transport.

$$q^+ - q + \tau\,\nabla_h\cdot J(q^+) = 0,$$

with fluxes that lower the energy, empty no cell and vanish where $\xi$ is constant
([`thalweg.schemes._implicit_flux`][]). For a convex energy each step lowers it, by at least $\tau$ times the rate at
its end. Every term is taken at the new density, interaction too; where a concave one makes a step raise the energy, the
step is cut.

- Newton's matrix is, but for the nonlocal terms, a transport operator: what leaves a cell arrives in its neighbours.
  Scaled by what leaves each cell, so that it is symmetric for a porous medium even next to a vacuum, one multigrid
  cycle preconditions BiCGStab; the nonlocal terms enter by their products.
- From a vacuum a front moves by one cell in a step of Newton's method. So a long step begins with added diffusion,
  which is taken away tenfold each time the residual is down to a part of the mass.
- Where the more accurate flux keeps Newton's method from converging, the step is solved with upstream densities; if
  that fails too, it is cut to a quarter. Both are counted.

Other candidates are weighed in `docs/implicit.md`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Array, Count, Flag, Scalar
from thalweg.energies import AbstractEnergy, Decomposition, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein._grid import GridMetric, difference, divergence, neighbour, open_faces
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, Advance
from thalweg.schemes._implicit_flux import Face, linearised_flux
from thalweg.states import GridDensity
from thalweg.transport._multigrid import Transport, hierarchy, v_cycle

_MAX_NEWTON = 40
_MAX_KRYLOV = 60
_COUNTS = ("substeps", "cut", "rejected", "upwind", "newton_steps", "linear_steps")


class ImplicitFiniteVolume(AbstractGridIntegrator):
    r"""Implicit Euler finite volumes for any smooth energy of a grid density: unconditionally positive, conservative,
    energy-dissipating and well-balanced.

    First order in time. In space second order for smooth positive solutions where the energy has local terms; first
    order for potential and interaction alone, and where a potential changes by more than the temperature from cell to
    cell.

    **Arguments:** `tolerance`: the error of the energy that one substep may make, relative to the sum of the sizes of
    the energy's terms; `None` takes each step of the scheme as one implicit step; `max_substeps`: of one step of the
    scheme; `newton_tolerance`: the $L^1$ norm of the residual at which Newton's method ends, in units of the mass (or
    what rounding leaves, if that is more).

    `path.measurements` has `substeps`, `cut` (where Newton's method failed or the energy rose, and the substep was
    taken again, a quarter as long), `rejected` (too inaccurate), `upwind` (solved with upstream densities),
    `newton_steps` and `linear_steps`. No derivatives in reverse mode.

    **Source:** Bailo, Carrillo, Hu (2020) for the scheme; the solver is this library's.
    """

    tolerance: float | None = eqx.field(static=True, default=1e-4)
    max_substeps: int = eqx.field(static=True, default=4096)
    newton_tolerance: float = eqx.field(static=True, default=1e-11)

    @property
    def reason(self) -> str:
        return "implicit Euler finite volumes: positive, conservative, dissipating the energy; Newton and multigrid"

    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> str | None:
        if not isinstance(geometry.at(state), GridMetric):
            return (
                "`ImplicitFiniteVolume` integrates grid densities in the Wasserstein geometry; use `solver=None` here."
            )
        structure = decompose(energy)
        if structure.ceiling is not None or structure.proximable:
            return (
                "`ImplicitFiniteVolume` has no constraints; use `scheme=tw.Proximal(step, solver=tw.LinearisedJKO())`."
            )
        return None

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar) -> Any:
        return jnp.asarray(duration if self.tolerance is None else duration / 16)

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar, memory: Any
    ) -> Advance:
        structure = decompose(energy)
        mobility = getattr(geometry, "mobility", None)
        dtype = state.values.dtype
        duration = jnp.asarray(duration, dtype)
        smallest = 1e-9 * duration

        def at(values: Array) -> GridDensity:
            return eqx.tree_at(lambda s: s.values, state, values)

        def body(c: _Progress) -> _Progress:
            left = duration - c.time
            tau = jnp.minimum(c.substep, left)
            tau = jnp.where(left - tau < 1e-6 * duration, left, tau)
            step = implicit_euler(structure, mobility, at(c.values), tau, self.newton_tolerance, c.upwind)
            value, size = _value_and_size(structure, at(step.values))
            solved = step.converged & (value <= c.value + 1e-13 * jnp.maximum(size, c.size))
            # Implicit Euler loses more energy than its rate says, by O(τ²).
            error = jnp.abs(c.value - value - tau * step.dissipation)
            allowed = jnp.asarray(jnp.inf if self.tolerance is None else self.tolerance, dtype) * size
            accepted = solved & ((error <= allowed) | (tau <= smallest))
            again = ~solved & ~c.upwind
            growth = jnp.clip(0.9 * jnp.sqrt(allowed / jnp.maximum(error, 1e-30)), 0.2, 4.0)
            growth = jnp.where(accepted, jnp.maximum(growth, 0.5), jnp.minimum(growth, 0.5))
            growth = jnp.where(solved, growth, jnp.where(again, 1.0, 0.25))
            following = tau * growth
            following = jnp.where(accepted & (tau < c.substep), jnp.maximum(c.substep, following), following)
            # What happened: in the order of `_COUNTS`.
            events = (accepted, ~solved & ~again, solved & ~accepted, accepted & c.upwind, step.newton, step.krylov)
            keep = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
            return _Progress(
                keep(c.time + tau, c.time),
                following,
                keep(step.values, c.values),
                keep(value, c.value),
                keep(size, c.size),
                c.dissipated + keep(tau * step.dissipation, 0),
                again,
                c.failed | (~solved & ~again & (tau <= smallest)),
                c.counts + jnp.stack([jnp.asarray(n, c.counts.dtype) for n in events]),
            )

        zero = jnp.zeros((), dtype)
        value, size = _value_and_size(structure, state)
        begin = _Progress(
            zero,
            jnp.asarray(duration if self.tolerance is None else jnp.minimum(memory, duration), dtype),
            state.values,
            value,
            size,
            zero,
            jnp.asarray(False),
            jnp.asarray(False),
            jnp.zeros((len(_COUNTS),), jnp.int32),
        )
        end = jax.lax.while_loop(
            lambda c: (c.time < duration) & ~c.failed & (jnp.sum(c.counts[:3]) < self.max_substeps), body, begin
        )
        done = end.time >= duration
        result = RESULTS.where(done, RESULTS.successful, RESULTS.inner_solver_failed)
        stats = {name: count for name, count in zip(_COUNTS, end.counts, strict=True)}
        return Advance(at(end.values), end.substep, end.dissipated, result, stats)


class _Progress(NamedTuple):
    time: Scalar
    substep: Scalar
    values: Array
    value: Scalar
    size: Scalar
    dissipated: Scalar
    upwind: Flag
    failed: Flag
    counts: Array


def _value_and_size(structure: Decomposition, state: GridDensity) -> tuple[Scalar, Scalar]:
    """The energy, and the sum of the sizes of its terms."""
    terms = structure.potential + structure.local + structure.interaction + structure.remainder
    parts = [jnp.asarray(term.scale, state.values.dtype) * term.energy(state) for term in terms]
    if structure.temperature is not None:
        parts.append(jnp.asarray(structure.temperature, state.values.dtype) * state.negative_entropy())
    parts = jnp.stack(parts)
    return jnp.sum(parts), jnp.sum(jnp.abs(parts))


class _Step(NamedTuple):
    values: Array
    dissipation: Scalar
    converged: Flag
    newton: Count
    krylov: Count
    residual: Scalar


class _Newton(NamedTuple):
    """The last density accepted, the direction from it and how much of it is tried; the diffusion added, in units of
    what leaves a cell in the step; the residual, the dissipation rate and the counts.
    """

    values: Array
    direction: Array
    length: Scalar
    added: Scalar
    residual: Scalar
    dissipation: Scalar
    done: Flag
    newton: Count
    krylov: Count


class _Linearised(NamedTuple):
    """The residual, Newton's matrix, its preconditioner, the dissipation rate, what rounding leaves of the residual,
    and the largest part of a cell that leaves it in the step.
    """

    residual: Array
    product: Callable[[Array], Array]
    precondition: Callable[[Array], Array]
    dissipation: Scalar
    rounding: Scalar
    stiffness: Scalar


def implicit_euler(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    tau: Scalar,
    tolerance: float,
    upwind: Flag,
) -> _Step:
    """One step of implicit Euler from a density."""
    before, volume = state.values, state.grid.cell_volume
    mass = jnp.sum(before)

    def at(values: Array, added: Scalar) -> _Linearised:
        return _linearised(structure, mobility, state, values, tau, added, upwind)

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
            accuracy = jnp.clip(0.1 * found, 1e-6, 1e-2)
            direction, steps = jax.lax.cond(
                done,
                lambda: (jnp.zeros_like(values), jnp.zeros((), jnp.int32)),
                lambda: _bicgstab(linear.product, linear.precondition, -linear.residual, accuracy, _MAX_KRYLOV),
            )
            # With less diffusion it is another equation, whose residual starts anew.
            residual = jnp.where(lower, jnp.inf, found)
            one = jnp.ones_like(tau)
            return _Newton(
                values, direction, one, added, residual, linear.dissipation, done, c.newton + 1, c.krylov + steps
            )

        def shorter() -> _Newton:
            return c._replace(length=0.5 * c.length, newton=c.newton + 1)

        return jax.lax.cond(found < c.residual, accepted, shorter)

    zero, none, inf = jnp.zeros_like(tau), jnp.zeros((), jnp.int32), jnp.full_like(tau, jnp.inf)
    added = zero
    if structure.temperature is None or structure.local or structure.remainder:
        stiffness = at(before, zero).stiffness
        added = jnp.where(stiffness > 2, stiffness, 0)
    begin = _Newton(
        before, jnp.zeros_like(before), jnp.ones_like(tau), added, inf, zero, jnp.asarray(False), none, none
    )
    end = jax.lax.while_loop(lambda c: ~c.done & (c.newton < _MAX_NEWTON) & (c.length > 1e-3), body, begin)
    return _Step(end.values, end.dissipation, end.done, end.newton, end.krylov, end.residual)


def _linearised(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    values: Array,
    tau: Scalar,
    added: Scalar,
    upwind: Flag,
) -> _Linearised:
    grid, dtype, before = state.grid, values.dtype, state.values
    points = state._centres()
    least = 1e-14 * jnp.max(before)
    nonlocal_part = lambda q: nonlocal_variation(structure, state, q)  # noqa: E731
    if structure.interaction or structure.remainder:
        smooth, push = jax.linearize(nonlocal_part, values)
    else:
        smooth, push = nonlocal_part(values), None
    faces, fluxes, forward, backward = [], [], [], []
    outflow = jnp.ones_like(values)
    dissipation = rounding = jnp.zeros((), dtype)
    for axis in range(grid.dim):
        there = neighbour(values, axis)
        drop = difference(smooth, axis)
        ends = (points, jnp.roll(points, -1, axis))
        face = linearised_flux(structure, mobility, (values, there), drop, ends, least, upwind)
        scale = open_faces(grid, axis, dtype) / grid.spacing[axis]
        dissipation = dissipation - jnp.sum(scale * face.flux * face.rise) * grid.cell_volume / grid.spacing[axis]
        face = Face(scale * face.flux, scale * face.by_here, scale * face.by_there, scale * face.by_drop, face.rise)
        share = added * open_faces(grid, axis, dtype) * grid.spacing[axis] / tau
        face = face._replace(
            flux=face.flux + share * (values - there), by_here=face.by_here + share, by_there=face.by_there - share
        )
        faces.append(face)
        fluxes.append(face.flux)
        ratio = tau / grid.spacing[axis]
        a, b = jnp.maximum(ratio * face.by_here, 0), jnp.maximum(-ratio * face.by_there, 0)
        forward.append(a)
        backward.append(b)
        outflow = outflow + a + jnp.roll(b, 1, axis)
        rounding = rounding + jnp.sum(a * values + b * there)
    residual = values - before + tau * divergence(tuple(fluxes), grid)
    scale = 1 / outflow
    operator = Transport(
        scale,
        tuple(a * scale for a in forward),
        tuple(b * neighbour(scale, axis) for axis, b in enumerate(backward)),
    )
    levels = hierarchy(operator, grid.spacing)

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

    def precondition(vector: Array) -> Array:
        found = scale * v_cycle(levels, vector)
        # A coarse cell may hold cells on both sides of a wall.
        return found if grid.mask is None else jnp.where(grid.mask, found, 0)

    return _Linearised(residual, product, precondition, dissipation, rounding, jnp.max(outflow) - 1)


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


class _Krylov(NamedTuple):
    solution: Array
    left: Array
    direction: Array
    image: Array
    rho: Scalar
    alpha: Scalar
    omega: Scalar
    count: Count


def _bicgstab(
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    right: Array,
    tolerance: Scalar,
    max_steps: int,
) -> tuple[Array, Count]:
    """BiCGStab from zero, preconditioned from the right (van der Vorst 1992)."""
    norm = lambda vector: jnp.sqrt(jnp.sum(vector**2))  # noqa: E731
    goal = tolerance * norm(right)

    def quotient(a: Scalar, b: Scalar) -> Scalar:
        some = jnp.abs(b) > jnp.finfo(right.dtype).tiny
        return jnp.where(some, a / jnp.where(some, b, 1), 0)

    def body(c: _Krylov) -> _Krylov:
        rho = jnp.sum(right * c.left)
        beta = quotient(rho, c.rho) * quotient(c.alpha, c.omega)
        direction = c.left + beta * (c.direction - c.omega * c.image)
        first = precondition(direction)
        image = product(first)
        alpha = quotient(rho, jnp.sum(right * image))
        half = c.left - alpha * image
        second = precondition(half)
        turned = product(second)
        omega = quotient(jnp.sum(turned * half), jnp.sum(turned**2))
        solution = c.solution + alpha * first + omega * second
        return _Krylov(solution, half - omega * turned, direction, image, rho, alpha, omega, c.count + 1)

    one, zeros = jnp.ones((), right.dtype), jnp.zeros_like(right)
    begin = _Krylov(zeros, right, zeros, zeros, one, one, one, jnp.zeros((), jnp.int32))
    unfinished = lambda c: (norm(c.left) > goal) & (c.count < max_steps) & (c.rho != 0)  # noqa: E731
    end = jax.lax.while_loop(unfinished, body, begin)
    return end.solution, end.count
