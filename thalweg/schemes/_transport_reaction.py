r"""The Hellinger–Kantorovich flow of a grid density: transport and reaction in turns.

$\partial_t q = \text{transport}\,\nabla\cdot(q\nabla\xi) - \text{reaction}\,q\,\xi$ is the sum of two gradient flows of
one energy. Candidates that were weighed: (1) reaction as a source in the implicit equations of transport: one solve,
but first order, and not exact for anything; (2) the two in turns, symmetrically (Strang). Each of the two flows has an
integrator that keeps everything there is to keep, and neither lets the energy rise, so (2) needs no more for positive
values, for the minimum (steady under both) and for the energy to fall, whatever the step. (2) is used: half of
reaction, which costs next to nothing, then transport, then the other half; two such steps are compared with one of
twice the size.
"""

from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, HellingerKantorovich, Wasserstein
from thalweg.schemes._exponential_volume import ExponentialFiniteVolume
from thalweg.schemes._finite_volume import FiniteVolume
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, Advance
from thalweg.schemes._reaction import ReplicatorIntegrator
from thalweg.states import GridDensity


class TransportReactionSplitting(AbstractGridIntegrator):
    r"""Structure-preserving integrator of the Hellinger–Kantorovich flow of a grid density by Strang splitting.

    Positive, the energy never rises, the minimum is kept, and with `conserve_mass=True` the mass; second order in time
    where both parts are. Without reaction it is its integrator of transport, without transport that of reaction.

    **Arguments:** `transport`: an integrator of the Wasserstein flow; `None` takes the one that
    [`thalweg.Continuous`][] takes in that geometry; `reaction`: a [`thalweg.ReplicatorIntegrator`][]; `tolerance`: the
    difference in $L^1$, in units of the mass, between a substep taken as a whole and in two halves, whose result is
    kept; `max_substeps`: of one step of the scheme.

    `path.measurements` counts the substeps of the splitting, and those of its transport.

    **Source:** Gallouët, Monsaingeon, *A JKO splitting scheme for Kantorovich–Fisher–Rao gradient flows*, SIAM J. Math.
    Anal. 49 (2017), with the two flows in place of their proximal steps.
    """

    transport: AbstractGridIntegrator | None = None
    reaction: ReplicatorIntegrator = ReplicatorIntegrator()
    tolerance: float = eqx.field(static=True, default=1e-5)
    max_substeps: int = eqx.field(static=True, default=4096)

    @property
    def reason(self) -> str:
        return "transport and reaction in turns (Strang), each by its own structure-preserving integrator"

    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> str | None:
        if not isinstance(geometry, HellingerKantorovich):
            return (
                "`TransportReactionSplitting` integrates grid densities in the Hellinger–Kantorovich geometry; use "
                "`solver=None` here."
            )
        refused = None if _is_zero(geometry.reaction) else self.reaction.why_unsupported_by_energy(energy)
        if refused is None and not _is_zero(geometry.transport):
            refused = self._transport(energy, state).why_unsupported(energy, Wasserstein(), state)
        return refused

    def _transport(self, energy: AbstractEnergy, state: GridDensity) -> AbstractGridIntegrator:
        if self.transport is not None:
            return self.transport
        exact = ExponentialFiniteVolume()
        return exact if exact.why_unsupported(energy, Wasserstein(), state) is None else FiniteVolume()

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar) -> Any:
        # Where the adaptation begins.
        substep = duration / 8
        carried = self._transport(energy, state).init(energy, Wasserstein(), state, substep)
        return substep, carried, substep

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar, memory: Any
    ) -> Advance:
        assert isinstance(geometry, HellingerKantorovich)
        duration = jnp.asarray(duration, state.values.dtype)
        parts = _Parts(self._transport(energy, state), self.reaction, energy, geometry, state)
        if _is_zero(geometry.transport) or _is_zero(geometry.reaction):
            here = parts.begin(memory)
            here = parts.react(here, duration) if _is_zero(geometry.transport) else parts.carry(here, duration)
            count = here.transport_substeps + here.reaction_substeps
            return _finished(here, memory[0], state, here.result, count)
        tolerance = max(self.tolerance, 64 * float(jnp.finfo(duration.dtype).eps))
        smallest = duration * 1e-9

        def body(now: _Now) -> _Now:
            left = duration - now.time
            tau = jnp.minimum(now.substep, left)
            tau = jnp.where(left - tau < 1e-6 * duration, left, tau)
            whole, halves = parts.whole_and_halves(now.here, tau)
            difference = jnp.sum(jnp.abs(halves.values - whole)) / jnp.sum(halves.values)
            # Where the substeps lie is no part of the derivative.
            error = jax.lax.stop_gradient(difference)
            accepted = (error <= tolerance) | (tau <= smallest)
            factor = jnp.clip(0.9 * jnp.cbrt(tolerance / jnp.maximum(error, 1e-30)), 0.2, 4.0)
            factor = jnp.where(accepted, jnp.maximum(factor, 0.5), jnp.minimum(factor, 0.5))
            return _Now(
                jnp.where(accepted, now.time + tau, now.time),
                # A last sliver must not shrink the step of the next interval.
                jnp.where(accepted & (tau < now.substep), jnp.maximum(now.substep, tau * factor), tau * factor),
                jax.tree.map(lambda a, b: jnp.where(accepted, a, b), halves, now.here),
                now.count + 1,
            )

        zero = jnp.zeros((), duration.dtype)
        first = jnp.minimum(jnp.asarray(memory[0], duration.dtype), duration)
        last = eqxi.while_loop(
            lambda now: (now.time < duration) & (now.count < self.max_substeps),
            body,
            _Now(zero, first, parts.begin(memory), jnp.asarray(0)),
            max_steps=self.max_substeps,
            kind="checkpointed",
        )
        done = last.time >= duration
        result = RESULTS.where(done, last.here.result, RESULTS.inner_solver_failed)
        return _finished(last.here, last.substep, state, result, last.count)


class _Here(eqx.Module):
    """A density, what the two integrators remember, and what they said so far."""

    values: Array
    carried: Any
    reacted: Any
    dissipated: Scalar
    result: Any
    transport_substeps: Array
    reaction_substeps: Array


class _Now(eqx.Module):
    time: Scalar
    substep: Scalar
    here: _Here
    count: Array


class _Parts(NamedTuple):
    """The two flows."""

    transport: AbstractGridIntegrator
    reaction: ReplicatorIntegrator
    energy: AbstractEnergy
    geometry: HellingerKantorovich
    state: GridDensity

    def begin(self, memory: Any) -> _Here:
        values = self.state.values
        zero = jnp.zeros((), values.dtype)
        return _Here(values, memory[1], memory[2], zero, RESULTS.successful, jnp.asarray(0), jnp.asarray(0))

    def strang(self, here: _Here, tau: Scalar) -> _Here:
        return self.react(self.carry(self.react(here, 0.5 * tau), tau), 0.5 * tau)

    def whole_and_halves(self, here: _Here, tau: Scalar) -> tuple[Array, _Here]:
        # In one loop, as each copy of the two integrators takes long to compile.
        def once(last: _Here, turn: Array) -> tuple[_Here, Array]:
            start = jax.tree.map(lambda a, b: jnp.where(turn == 2, a, b), last, here)
            moved = self.strang(start, jnp.where(turn == 0, tau, 0.5 * tau))
            return moved, moved.values

        halves, values = jax.lax.scan(once, here, jnp.arange(3))
        return values[0], halves

    def carry(self, here: _Here, tau: Scalar) -> _Here:
        weighted = tau * jnp.asarray(self.geometry.transport, tau.dtype)
        step = self.transport.advance(self.energy, Wasserstein(), self.at(here), weighted, here.carried)
        substeps = jnp.asarray(step.stats.get("substeps", 1))
        return _Here(
            step.state.values,
            jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), step.memory, here.carried),
            here.reacted,
            here.dissipated + step.dissipated,
            RESULTS.where(here.result == RESULTS.successful, step.result, here.result),
            here.transport_substeps + substeps,
            here.reaction_substeps,
        )

    def react(self, here: _Here, tau: Scalar) -> _Here:
        step = self.reaction.react(
            self.energy,
            self.at(here),
            tau,
            here.reacted,
            rate=self.geometry.reaction,
            conserve_mass=self.geometry.conserve_mass,
        )
        return _Here(
            step.state.values,
            here.carried,
            step.memory,
            here.dissipated + step.dissipated,
            RESULTS.where(here.result == RESULTS.successful, step.result, here.result),
            here.transport_substeps,
            here.reaction_substeps + step.stats["substeps"],
        )

    def at(self, here: _Here) -> GridDensity:
        return eqx.tree_at(lambda s: s.values, self.state, here.values)


def _finished(here: _Here, substep: Scalar, state: GridDensity, result: Any, count: Array) -> Advance:
    moved = eqx.tree_at(lambda s: s.values, state, here.values)
    stats = {"substeps": count, "transport_substeps": here.transport_substeps}
    return Advance(moved, (substep, here.carried, here.reacted), here.dissipated, result, stats)


def _is_zero(weight: Any) -> bool:
    return isinstance(weight, int | float) and weight == 0
