r"""Implicit steps of the Wasserstein flow of a grid density, of first and second order in time.

$$q^+ - q + \tau\,\nabla_h\cdot J(q^+) = 0,$$

with fluxes that lower the energy, empty no cell and vanish where $\xi$ is constant
([`thalweg.schemes._implicit_flux`][]), or two such steps that are of second order together
([`thalweg.schemes._second_order`][]). For a convex energy each implicit step lowers it, by at least $\tau$ times the
rate at its end. Every term is taken at the new density, interaction too.

A substep is tried in turn (1) as it is; (2) if Newton's method fails or the energy rises: with order two, as two plain
steps of implicit Euler; (3) with upstream densities in the fluxes; (4) a quarter as long. Each is counted.
"""

from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Array, Count, Flag, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein._grid import GridMetric
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, Advance
from thalweg.schemes._rounding import terms_of
from thalweg.schemes._second_order import composed_step
from thalweg.states import GridDensity

_COUNTS = ("substeps", "cut", "rejected", "upwind", "newton_steps", "linear_steps")
_SECOND_ORDER_COUNTS = ("limited", "euler")
# Densities kept for the derivative of one step of the scheme; the substeps between are taken again.
_CHECKPOINTS = 6


class ImplicitFiniteVolume(AbstractGridIntegrator):
    r"""Implicit finite volumes for any smooth energy of a grid density: positive, conservative, energy-dissipating and
    well-balanced, however long the step.

    In time of first order, or with `order=2` of second order for smooth positive solutions. In space second order for
    smooth positive solutions where the energy has local terms; first order for potential and interaction alone, and
    where a potential changes by more than the temperature from cell to cell.

    **Arguments:** `tolerance`: the error of the energy that one substep may make, relative to the sum of the sizes of
    the energy's terms; `None` takes each step of the scheme as one implicit step; `max_substeps`: of one step of the
    scheme; `newton_tolerance`: the $L^1$ norm of the residual at which Newton's method ends, in units of the mass (or
    what rounding leaves, if that is more); `order`: 1, implicit Euler, or 2, Alexander's method, whose extrapolation is
    limited face by face where it would empty a cell, and left out where the energy would rise or Newton's method fails.

    `path.measurements` has `substeps`, `cut` (where Newton's method failed or the energy rose, and the substep was
    taken again, a quarter as long), `rejected` (too inaccurate), `upwind` (solved with upstream densities),
    `newton_steps` and `linear_steps`; with order 2 also `limited`, the substeps in which more than 1e-8 of the mass met
    a limited face, and `euler`, those taken as two plain steps of implicit Euler: of first order, the former at those
    faces only.

    Differentiable in reverse mode, by the adjoint of each step; the lengths of the substeps are constants of the
    derivative. Each step of the scheme keeps ten densities or so.

    **Source:** Bailo, Carrillo, Hu (2020) for the scheme; Alexander (1977) for order 2; the solver is this library's.
    """

    tolerance: float | None = eqx.field(static=True, default=1e-4)
    max_substeps: int = eqx.field(static=True, default=4096)
    newton_tolerance: float = eqx.field(static=True, default=1e-11)
    order: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"`order` of `ImplicitFiniteVolume` must be 1 or 2; got {self.order!r}.")

    @property
    def reason(self) -> str:
        method = "implicit Euler" if self.order == 1 else "Alexander's implicit method of order two, limited,"
        return f"{method} on finite volumes: positive, conservative, dissipating the energy; Newton and multigrid"

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
            upwind, euler = c.attempt >= self.order, (c.attempt > 0) & (self.order == 2)
            step = composed_step(
                structure, mobility, at(c.values), tau, self.order, self.newton_tolerance, upwind, euler
            )
            value, size = terms_of(structure, at(step.values))
            solved = step.converged & (value <= c.value + 1e-13 * jnp.maximum(size, c.size))
            # The energy lost differs from what the rates of the stages say by O(τ²), with order two by O(τ³). Where the
            # substeps lie is no part of the derivative.
            error = jax.lax.stop_gradient(jnp.abs(c.value - value - step.dissipated))
            allowed = jax.lax.stop_gradient(jnp.asarray(jnp.inf if self.tolerance is None else self.tolerance) * size)
            accepted = solved & ((error <= allowed) | (tau <= smallest))
            again = ~solved & (c.attempt < self.order)
            power = jnp.where((self.order == 2) & ~euler & ~step.limited, 1 / 3, 1 / 2).astype(dtype)
            growth = jnp.clip(0.9 * (allowed / jnp.maximum(error, 1e-30)) ** power, 0.2, 4.0)
            growth = jnp.where(accepted, jnp.maximum(growth, 0.5), jnp.minimum(growth, 0.5))
            growth = jnp.where(solved, growth, jnp.where(again, 1.0, 0.25))
            following = tau * growth
            following = jnp.where(accepted & (tau < c.substep), jnp.maximum(c.substep, following), following)
            # What happened: in the order of `_COUNTS`.
            events = (accepted, ~solved & ~again, solved & ~accepted, accepted & upwind, step.newton, step.krylov)
            events += (accepted & step.limited, accepted & euler)
            keep = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
            return _Progress(
                keep(c.time + tau, c.time),
                jax.lax.stop_gradient(following),
                keep(step.values, c.values),
                keep(value, c.value),
                keep(size, c.size),
                c.dissipated + keep(step.dissipated, 0),
                jnp.where(again, c.attempt + 1, 0),
                c.failed | (~solved & ~again & (tau <= smallest)),
                c.counts + jnp.stack([jnp.asarray(n, c.counts.dtype) for n in events]),
            )

        zero = jnp.zeros((), dtype)
        value, size = terms_of(structure, state)
        names = _COUNTS + _SECOND_ORDER_COUNTS
        begin = _Progress(
            zero,
            jax.lax.stop_gradient(
                jnp.asarray(duration if self.tolerance is None else jnp.minimum(memory, duration), dtype)
            ),
            state.values,
            value,
            size,
            zero,
            jnp.zeros((), jnp.int32),
            jnp.asarray(False),
            jnp.zeros((len(names),), jnp.int32),
        )
        end = eqxi.while_loop(
            lambda c: (c.time < duration) & ~c.failed & (jnp.sum(c.counts[:3]) < self.max_substeps),
            body,
            begin,
            kind="checkpointed",
            checkpoints=_CHECKPOINTS,
        )
        done = end.time >= duration
        result = RESULTS.where(done, RESULTS.successful, RESULTS.inner_solver_failed)
        stats = {name: count for name, count in zip(names, end.counts, strict=True)}
        if self.order == 1:
            stats = {name: stats[name] for name in _COUNTS}
        return Advance(at(end.values), end.substep, end.dissipated, result, stats)


class _Progress(NamedTuple):
    time: Scalar
    substep: Scalar
    values: Array
    value: Scalar
    size: Scalar
    dissipated: Scalar
    attempt: Count
    failed: Flag
    counts: Array
