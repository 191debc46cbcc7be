r"""Implicit Euler steps of the Wasserstein flow of a grid density: Newton's method with a multigrid for transport."""

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
    r"""Implicit Euler steps."""

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
        stats = dict(zip(_COUNTS, end.counts, strict=True))
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


class Step(NamedTuple):
    values: Array
    dissipation: Scalar
    residual: Scalar
    converged: Flag
    newton: Count
    krylov: Count


class Linearised(NamedTuple):
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
) -> Step:
    grid, before = state.grid, state.values
    mass = jnp.sum(before)
    volume = grid.cell_volume

    def size(residual: Array) -> Scalar:
        return jnp.sum(jnp.abs(residual)) * volume

    class Carry(NamedTuple):
        values: Array
        direction: Array
        length: Scalar
        extra: Scalar
        size: Scalar
        dissipation: Scalar
        done: Flag
        newton: Count
        krylov: Count

    def body(c: Carry) -> Carry:
        candidate = c.values + c.length * c.direction
        candidate = jnp.maximum(candidate, 0.05 * c.values)
        # What the inexact solves leave is no mass of the flow's.
        candidate = candidate * (mass / jnp.sum(candidate))
        linear = linearise(structure, mobility, state, candidate, before, tau, c.extra, upwind)
        found = size(linear.residual)
        better = found < c.size
        # Less is added once the residual is a part of the mass.
        less = (c.extra > 0) & (found <= 0.3 * mass * volume)
        extra = jnp.where(less, jnp.where(c.extra > 0.01, 0.1 * c.extra, 0), c.extra)

        def accept() -> Carry:
            done = (c.extra == 0) & (found <= jnp.maximum(tolerance, linear.rounding))
            forcing = jnp.clip(0.1 * found, 1e-6, 1e-2)
            direction, steps = jax.lax.cond(
                done,
                lambda: (jnp.zeros_like(candidate), jnp.zeros((), jnp.int32)),
                lambda: bicgstab(linear.product, linear.precondition, -linear.residual, forcing, _MAX_KRYLOV),
            )
            return Carry(
                candidate,
                direction,
                jnp.ones_like(tau),
                extra,
                jnp.where(less, jnp.inf, found),
                linear.dissipation,
                done,
                c.newton + 1,
                c.krylov + steps,
            )

        def shorten() -> Carry:
            return c._replace(length=c.length / 2, newton=c.newton + 1)

        return jax.lax.cond(better, accept, shorten)

    zero = jnp.zeros((), before.dtype)
    begin = Carry(
        before,
        jnp.zeros_like(before),
        jnp.ones_like(tau),
        start_extra(structure, mobility, state, tau, upwind),
        zero + jnp.inf,
        zero,
        jnp.asarray(False),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(lambda c: ~c.done & (c.newton < _MAX_NEWTON) & (c.length > 1e-3), body, begin)
    return Step(end.values, end.dissipation, end.size, end.done, end.newton, end.krylov)


def linearise(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    values: Array,
    before: Array,
    tau: Scalar,
    extra: Scalar,
    upwind: Flag,
) -> Linearised:
    grid, dtype = state.grid, values.dtype
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
        face = Face(*(scale * part for part in face[:4]), face.rise)
        if structure.temperature is None:
            share = extra * open_faces(grid, axis, dtype) * grid.spacing[axis] / tau
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
    return Linearised(
        residual, product, lambda r: scale * v_cycle(levels, r), dissipation, rounding, jnp.max(outflow) - 1
    )


def start_extra(structure, mobility, state, tau, upwind):
    if structure.temperature is not None and not (structure.local or structure.remainder):
        return jnp.zeros_like(tau)
    linear = linearise(structure, mobility, state, state.values, state.values, tau, jnp.zeros_like(tau), upwind)
    return jnp.where(linear.stiffness > 2, linear.stiffness, 0)


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


def bicgstab(product, precondition, right, tolerance, max_steps):
    class Carry(NamedTuple):
        x: Array
        r: Array
        p: Array
        v: Array
        rho: Scalar
        alpha: Scalar
        omega: Scalar
        count: Count

    goal = tolerance * jnp.linalg.norm(right)
    shadow = right

    def divide(a, b):
        some = jnp.abs(b) > jnp.finfo(right.dtype).tiny
        return jnp.where(some, a / jnp.where(some, b, 1), 0)

    def body(c):
        rho = jnp.vdot(shadow, c.r)
        beta = divide(rho, c.rho) * divide(c.alpha, c.omega)
        p = c.r + beta * (c.p - c.omega * c.v)
        y = precondition(p)
        v = product(y)
        alpha = divide(rho, jnp.vdot(shadow, v))
        s = c.r - alpha * v
        z = precondition(s)
        t = product(z)
        omega = divide(jnp.vdot(t, s), jnp.vdot(t, t))
        return Carry(c.x + alpha * y + omega * z, s - omega * t, p, v, rho, alpha, omega, c.count + 1)

    one = jnp.ones((), right.dtype)
    zeros = jnp.zeros_like(right)
    begin = Carry(zeros, right, zeros, zeros, one, one, one, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(
        lambda c: (jnp.linalg.norm(c.r) > goal) & (c.count < max_steps) & (c.rho != 0), body, begin
    )
    return end.x, end.count
