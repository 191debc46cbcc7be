r"""The Wasserstein flow of a grid density over a time interval, keeping its structure.

What is wanted of the integrator of $\partial_t q = \nabla\cdot(q\nabla\xi)$: no step limit, positive values, exact
mass, the discrete steady state kept, and second order in time. Candidates that were weighed: (1) implicit Euler on
the whole grid with a sparse or Krylov solve: all but the last, and an iterative solve is positive only to its
tolerance; (2) exponential integrators: no positivity;
(3) one axis after the other, each by exponentially fitted (Scharfetter–Gummel) fluxes and tridiagonal solves. In (3)
each solve is an M-matrix, so it is positive whatever the step; it moves mass through faces, so mass is exact; the
steady state is steady along every axis, so splitting does not move it; and it compiles, vectorises over the lines
and is differentiable. (3) is used:

- one sweep takes implicit Euler once over τ and twice over τ/2; their difference, a flux along the line, cancels the
  first-order error and is limited cell by cell so that nothing becomes negative (Zalesak);
- axes alternate symmetrically (Strang), so the whole is second order;
- for a nonlinear energy the coefficients are taken at a predicted midpoint;
- the substep is adapted by the size of that difference, and a substep that would raise the energy is done again at
  half the size.

The fluxes of any energy are those of [`thalweg.schemes._fitted`][].
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.lax.linalg import tridiagonal_solve

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation
from thalweg._result import RESULTS
from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein import GridMetric, TensorMetric
from thalweg.geometries.wasserstein._grid import difference, is_proportional, neighbour, open_faces
from thalweg.schemes._fitted import FaceCoefficients, linear_coefficients, nonlinear_coefficients
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, Advance
from thalweg.states import Grid, GridDensity


class FiniteVolume(AbstractGridIntegrator):
    r"""Structure-preserving integrator of the Wasserstein flow on grids of any dimension.

    **Arguments:** `tolerance`: the first-order time error that one substep may make, in $L^1$ (in units of the mass);
    it is then removed by the second-order correction, so the error of the result is much smaller; `max_substeps`: of
    one step of the scheme.

    Order 2 in space and time for smooth positive solutions where there is diffusion across each face; without any
    (potential, interaction or remainder alone, or a drop far above the temperature) it is upwind, of first order in
    space; first order at fronts too.
    """

    tolerance: float = eqx.field(static=True, default=3e-5)
    max_substeps: int = eqx.field(static=True, default=4096)

    @property
    def reason(self) -> str:
        return "finite volumes: exponentially fitted, positive, conservative"

    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> str | None:
        if isinstance(geometry.at(state), TensorMetric):
            return (
                "With a matrix-valued mobility `Continuous` integrates a potential energy plus an entropy only; other "
                "energies need\n`scheme=tw.Explicit(step_size)` with a step below about h²/(2·dim·diffusivity)."
            )
        if not isinstance(geometry.at(state), GridMetric):
            return "`FiniteVolume` integrates grid densities in the Wasserstein geometry; use `solver=None` here."
        temperature = decompose(energy).temperature
        if temperature is not None and not _tree.is_traced(temperature) and float(temperature) < 0:
            return (
                "`Continuous` on a grid needs a non-negative temperature: entropy with a negative factor diffuses "
                f"backwards, and no\nfinite-volume solution exists; the energy has {float(temperature)}. Give the "
                "entropy a positive factor."
            )
        return None

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar) -> Any:
        # Where the adaptation begins.
        return duration / 16

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar, memory: Scalar
    ) -> Advance:
        substep, mobility = memory, getattr(geometry, "mobility", None)
        structure = decompose(energy)
        duration = jnp.asarray(duration, state.values.dtype)
        linear = None
        if structure.is_linear and is_proportional(mobility, state):
            linear = linear_coefficients(structure, state, mobility)
        smallest = duration * 1e-9

        def at(values: Array) -> tuple[FaceCoefficients, ...]:
            density = eqx.tree_at(lambda s: s.values, state, values)
            return nonlinear_coefficients(energy, structure, density, mobility) if linear is None else linear

        def value_and_rate(values: Array, here: tuple[FaceCoefficients, ...]) -> tuple[Scalar, Scalar]:
            """The energy, and the rate at which these very fluxes dissipate it."""
            value, cotangent = energy_and_first_variation(energy, eqx.tree_at(lambda s: s.values, state, values))
            return value, _dissipation(here, state.grid, values, cotangent.regular.values)

        here = at(state.values)
        value, rate = value_and_rate(state.values, here)

        def body(carry: _Carry) -> _Carry:
            left = duration - carry.time
            tau = jnp.minimum(carry.substep, left)
            tau = jnp.where(left - tau < 1e-6 * duration, left, tau)
            before = carry.here if linear is None else here
            values, error = _strang(at if linear is None else None, before, state.grid, carry.values, tau)
            new_here = at(values)
            new_value, new_rate = value_and_rate(values, new_here)
            rounding = max(1e-13, 16 * float(jnp.finfo(values.dtype).eps)) * (1 + jnp.abs(carry.value))
            # Where the substeps lie is no part of the derivative.
            error = jax.lax.stop_gradient(error)
            accepted = ((error <= self.tolerance) & (new_value <= carry.value + rounding)) | (tau <= smallest)
            # The first-order error of a substep is O(τ²).
            factor = jnp.clip(0.9 * jnp.sqrt(self.tolerance / jnp.maximum(error, 1e-30)), 0.2, 4.0)
            factor = jnp.where(accepted, jnp.maximum(factor, 0.5), jnp.minimum(factor, 0.5))
            return _Carry(
                jnp.where(accepted, carry.time + tau, carry.time),
                # A last sliver must not shrink the step of the next interval.
                jnp.where(accepted & (tau < carry.substep), jnp.maximum(carry.substep, tau * factor), tau * factor),
                jnp.where(accepted, values, carry.values),
                jnp.where(accepted, new_value, carry.value),
                jnp.where(accepted, new_rate, carry.rate),
                jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new_here, before) if linear is None else (),
                # The trapezoid rule over the substep.
                carry.dissipated + jnp.where(accepted, 0.5 * tau * (carry.rate + new_rate), 0),
                carry.count + 1,
            )

        zero = jnp.zeros((), duration.dtype)
        first = jnp.minimum(jnp.asarray(substep, duration.dtype), duration)
        begin = _Carry(zero, first, state.values, value, rate, here if linear is None else (), zero, jnp.asarray(0))
        last = eqxi.while_loop(
            lambda carry: (carry.time < duration) & (carry.count < self.max_substeps),
            body,
            begin,
            max_steps=self.max_substeps,
            kind="checkpointed",
        )
        done = last.time >= duration
        result = RESULTS.where(done, RESULTS.successful, RESULTS.inner_solver_failed)
        moved = eqx.tree_at(lambda s: s.values, state, last.values)
        return Advance(moved, last.substep, last.dissipated, result, {"substeps": last.count})


def implicit_guess(energy: AbstractEnergy, state: GridDensity, duration: Scalar) -> GridDensity:
    """One implicit Euler sweep along each axis: first order, positive, cheap; where a solver may begin."""
    structure = decompose(energy)
    if structure.is_linear:
        coefficients = linear_coefficients(structure, state)
    else:
        coefficients = nonlinear_coefficients(energy, structure, state)
    values = state.values
    for axis, faces in enumerate(coefficients):
        lines = lambda array, axis=axis: jnp.moveaxis(array, axis, -1)  # noqa: E731
        ratio = duration / state.grid.spacing[axis] ** 2
        solved = _implicit_euler(
            lines(faces.right), lines(faces.left), lines(values), ratio, state.grid.is_periodic(axis)
        )
        values = jnp.moveaxis(solved, -1, axis)
    return eqx.tree_at(lambda s: s.values, state, values)


class _Carry(eqx.Module):
    time: Scalar
    substep: Scalar
    values: Array
    value: Scalar
    rate: Scalar
    here: tuple[FaceCoefficients, ...]
    dissipated: Scalar
    count: Array


def _strang(
    at: Callable[[Array], tuple[FaceCoefficients, ...]] | None,
    here: tuple[FaceCoefficients, ...],
    grid: Grid,
    values: Array,
    tau: Scalar,
) -> tuple[Array, Scalar]:
    """One symmetric round over the axes, and the first-order error that it removed; `at` gives the coefficients where
    they depend on the density.
    """
    if at is None:
        return _round(here, grid, values, tau)
    middle, _ = _round(here, grid, values, 0.5 * tau)
    corrected, error = _round(at(middle), grid, values, tau)
    predicted, _ = _round(here, grid, values, tau)
    return corrected, error + 0.5 * jnp.sum(jnp.abs(corrected - predicted)) * grid.cell_volume


def _dissipation(faces: tuple[FaceCoefficients, ...], grid: Grid, values: Array, potential: Array) -> Scalar:
    r"""$-\sum J\,\Delta\xi$ of the fitted fluxes: the rate at which the semi-discrete flow dissipates."""
    rate = jnp.zeros((), values.dtype)
    for axis, face in enumerate(faces):
        flux = face.right * values - face.left * neighbour(values, axis)
        rate = rate - jnp.sum(flux * difference(potential, axis)) / grid.spacing[axis] ** 2
    return rate * grid.cell_volume


def _round(coefficients: tuple[FaceCoefficients, ...], grid: Grid, values: Array, tau: Scalar) -> tuple[Array, Scalar]:
    order = [(axis, 0.5) for axis in range(grid.dim - 1)]
    order = [*order, (grid.dim - 1, 1.0), *reversed(order)]
    error = jnp.zeros((), values.dtype)
    for axis, share in order:
        values, removed = _sweep(coefficients[axis], grid, axis, values, share * tau)
        error = error + removed
    return values, error


def _sweep(faces: FaceCoefficients, grid: Grid, axis: int, values: Array, tau: Scalar) -> tuple[Array, Scalar]:
    """One implicit sweep along an axis, second order by a limited correction."""
    lines = lambda array: jnp.moveaxis(array, axis, -1)  # noqa: E731
    h = grid.spacing[axis]
    periodic = grid.is_periodic(axis)
    right, left, q = lines(faces.right), lines(faces.left), lines(values)
    coarse = _implicit_euler(right, left, q, tau / h**2, periodic)
    half = _implicit_euler(right, left, q, 0.5 * tau / h**2, periodic)
    fine = _implicit_euler(right, left, half, 0.5 * tau / h**2, periodic)
    correction = fine - coarse
    # The correction moves mass along the line: as a flux it can be limited without losing mass.
    flux = -jnp.cumsum(correction, axis=-1)
    flux = flux - jnp.mean(flux, axis=-1, keepdims=True) if periodic else flux
    flux = flux * lines(jnp.broadcast_to(open_faces(grid, axis, q.dtype), grid.shape))
    before = jnp.roll(flux, 1, -1)
    leaving = jnp.maximum(flux, 0) + jnp.maximum(-before, 0)
    # Only where it must: a quotient of two tails would have no finite derivative.
    limits = (leaving > 0.99 * fine) & (leaving > jnp.finfo(q.dtype).tiny ** 0.45)
    share = jnp.where(limits, 0.99 * fine / jnp.where(limits, leaving, 1), 1)
    limited = flux * jnp.where(flux > 0, share, jnp.roll(share, -1, -1))
    result = jnp.maximum(fine - (limited - jnp.roll(limited, 1, -1)), 0)
    return jnp.moveaxis(result, -1, axis), jnp.sum(jnp.abs(correction)) * grid.cell_volume


def _implicit_euler(right: Array, left: Array, values: Array, ratio: Scalar, periodic: bool) -> Array:
    """Solve (I + τ/h² A) q⁺ = q along the last axis; A is an M-matrix whose columns sum to zero."""
    out_right, out_left = ratio * right, ratio * jnp.roll(left, 1, -1)
    diagonal = 1 + out_right + out_left
    lower, upper = -jnp.roll(out_right, 1, -1), -ratio * left
    corner_low, corner_up = lower[..., 0], upper[..., -1]
    lower, upper = lower.at[..., 0].set(0), upper.at[..., -1].set(0)
    solve = lambda d, b: tridiagonal_solve(lower, d, upper, b[..., None])[..., 0]  # noqa: E731
    if not periodic:
        return _with_mass_of(values, solve(diagonal, values))
    # Sherman–Morrison: the two corners are a rank-one change. gamma keeps the reduced matrix an M-matrix.
    gamma = -diagonal[..., 0]
    reduced = diagonal.at[..., 0].add(-gamma).at[..., -1].add(-corner_low * corner_up / gamma)
    edge = jnp.zeros_like(values).at[..., 0].set(gamma).at[..., -1].set(corner_up)
    plain, bent = solve(reduced, values), solve(reduced, edge)
    row = lambda x: x[..., 0] + corner_low / gamma * x[..., -1]  # noqa: E731
    solved = plain - (row(plain) / (1 + row(bent)))[..., None] * bent
    # Positive in exact arithmetic; the subtraction may leave a rounding below zero.
    return _with_mass_of(values, jnp.maximum(solved, 0))


def _with_mass_of(values: Array, solved: Array) -> Array:
    """The solution with the mass of each line restored: where τT/h² is large, the 1 on the diagonal has few digits."""
    mass, found = jnp.sum(values, axis=-1, keepdims=True), jnp.sum(solved, axis=-1, keepdims=True)
    # A line of tails alone keeps what was solved: a quotient of tails would have no finite derivative.
    heavy = found > jnp.finfo(values.dtype).tiny ** 0.45
    return solved * jnp.where(heavy, mass / jnp.where(heavy, found, 1), 1)
