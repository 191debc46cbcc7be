r"""The Fisher–Rao flow of a grid density: every cell grows or shrinks by itself, all of them bound by the mass alone.

The cells are solved by `_cell_growth.py`. The non-local rest of $\xi$ is frozen over half a substep and then taken at
the middle, an exponential midpoint rule. Two halves are compared with a whole; a substep that raises the energy is done
again at half the size.
"""

from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.energies import AbstractEnergy, Decomposition, Entropy, decompose
from thalweg.energies._base import Sum
from thalweg.energies._decompose import Term
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.fisher_rao import GridFisherMetric
from thalweg.schemes._cell_growth import CellRates, grown
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, Advance
from thalweg.states import GridDensity

# Beyond it a power is that of a corner in e, not of the equation of a cell.
_LARGEST_POWER = 8.0


class ReplicatorIntegrator(AbstractGridIntegrator):
    r"""Structure-preserving integrator of the Fisher–Rao flow of a grid density, $\partial_t q = -q\,(\xi -
    \int\xi\,\mathrm dq)$.

    Positive, of constant mass to rounding, and the energy never rises. For a potential energy plus an entropy (so for
    [`thalweg.KL`][]) one substep is exact whatever the time, $q \propto q_0^a\,\pi^{1-a}$ with $a = e^{-t}$, and the
    energy that it dissipates is taken from the difference of the energies. Every other local energy is solved cell by
    cell to second order, stable whatever the stiffness; non-local parts (interactions, any functional) by an
    exponential midpoint rule, explicit: its substeps resolve their rates. A cell that is empty stays empty.

    **Arguments:** `tolerance`: the difference in $L^1$, in units of the mass, between a substep taken as a whole and
    in two halves, whose result is kept; `max_substeps`: of one step of the scheme.

    What is dissipated is Simpson's rule on the rates of the substeps; where a rate falls too fast for it, the
    difference of the energies.

    **Source:** the flow is the replicator equation, Harper, *Information geometry and evolutionary game theory*
    (2009), after Shahshahani (1979).
    """

    tolerance: float = eqx.field(static=True, default=1e-6)
    max_substeps: int = eqx.field(static=True, default=4096)

    @property
    def reason(self) -> str:
        return "replicator equation: solved cell by cell in a power of the density, positive, conservative"

    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> str | None:
        if not isinstance(geometry.at(state), GridFisherMetric):
            return (
                "`ReplicatorIntegrator` integrates grid densities in the Fisher–Rao geometry; use `solver=None` here."
            )
        return self.why_unsupported_by_energy(energy)

    def why_unsupported_by_energy(self, energy: AbstractEnergy) -> str | None:
        """Why it cannot integrate the flow of this energy in any geometry that has growth."""
        if decompose(energy).ceiling is None:
            return None
        return (
            "`ReplicatorIntegrator` follows the slope of an energy, and `Congestion` is a wall without one.\n"
            "Use a steep penalty instead, such as `tw.PorousMedium(20.0)`."
        )

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar) -> Any:
        # Where the adaptation begins.
        return duration / 16

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar, memory: Any
    ) -> Advance:
        return self.react(energy, state, duration, memory, rate=1.0, conserve_mass=True)

    def react(
        self,
        energy: AbstractEnergy,
        state: GridDensity,
        duration: Scalar,
        memory: Any,
        *,
        rate: ScalarLike,
        conserve_mass: bool,
    ) -> Advance:
        r"""The flow of $\partial_t q = -\text{rate}\cdot q\,(\xi - \lambda)$, where $\lambda$ keeps the mass or is
        zero.
        """
        flow = _Flow(energy, decompose(energy), state, conserve_mass)
        duration = jnp.asarray(duration, state.values.dtype)
        rate = jnp.asarray(rate, state.values.dtype)
        if flow.structure.is_linear:
            return self._exact(flow, duration, rate, memory)
        return self._adaptive(flow, duration, rate, memory)

    def _exact(self, flow: "_Flow", duration: Scalar, rate: Scalar, memory: Any) -> Advance:
        values = flow.state.values
        moved = flow.with_values(flow.grown(values, flow.rates(values), jnp.zeros_like(values), rate * duration))
        dissipated = flow.energy(flow.state) - flow.energy(moved)
        return Advance(moved, memory, dissipated, RESULTS.successful, {"substeps": jnp.asarray(1)})

    def _adaptive(self, flow: "_Flow", duration: Scalar, rate: Scalar, memory: Any) -> Advance:
        dtype = duration.dtype
        # Below this the two results differ by rounding.
        tolerance = max(self.tolerance, 64 * float(jnp.finfo(dtype).eps))
        smallest = duration * 1e-9

        def body(carry: _Carry) -> _Carry:
            left = duration - carry.time
            tau = jnp.minimum(carry.substep, left)
            tau = jnp.where(left - tau < 1e-6 * duration, left, tau)
            here = carry.here

            def half(last: _Look, _: None) -> tuple[_Look, _Look]:
                # The rest, linear in time, is that of the middle on average over both halves.
                rest = 2 * last.rest - here.rest
                new = flow.look(flow.grown(last.values, last.rates, rest, 0.5 * rate * tau))
                return new, new

            new, looks = jax.lax.scan(half, here, None, length=2)
            middle = jax.tree.map(lambda leaf: leaf[0], looks)
            whole = flow.grown(here.values, here.rates, middle.rest, rate * tau)
            # Where the substeps lie is no part of the derivative.
            error = jax.lax.stop_gradient(jnp.sum(jnp.abs(new.values - whole)) / jnp.sum(new.values))
            rounding = max(1e-13, 16 * float(jnp.finfo(dtype).eps)) * (1 + jnp.abs(here.value))
            accepted = ((error <= tolerance) & (new.value <= here.value + rounding)) | (tau <= smallest)
            factor = jnp.clip(0.9 * jnp.cbrt(tolerance / jnp.maximum(error, 1e-30)), 0.2, 4.0)
            factor = jnp.where(accepted, jnp.maximum(factor, 0.5), jnp.minimum(factor, 0.5))
            # Simpson's rule over the substep. A start of enormous rate (a chi-squared divergence from its tails) is
            # over before it is resolved: then what the energy has lost.
            dissipated = rate * tau / 6 * (here.rate + 4 * middle.rate + new.rate)
            trapezoid = rate * tau / 4 * (here.rate + 2 * middle.rate + new.rate)
            resolved = jnp.abs(dissipated - trapezoid) <= 0.05 * dissipated
            dissipated = jnp.where(resolved, dissipated, here.value - new.value)
            return _Carry(
                jnp.where(accepted, carry.time + tau, carry.time),
                # A last sliver must not shrink the step of the next interval.
                jnp.where(accepted & (tau < carry.substep), jnp.maximum(carry.substep, tau * factor), tau * factor),
                jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, here),
                carry.dissipated + jnp.where(accepted, dissipated, 0),
                carry.count + 1,
            )

        zero = jnp.zeros((), dtype)
        first = jnp.minimum(jnp.asarray(memory, dtype), duration)
        last = eqxi.while_loop(
            lambda carry: (carry.time < duration) & (carry.count < self.max_substeps),
            body,
            _Carry(zero, first, flow.look(flow.state.values), zero, jnp.asarray(0)),
            max_steps=self.max_substeps,
            kind="checkpointed",
        )
        result = RESULTS.where(last.time >= duration, RESULTS.successful, RESULTS.inner_solver_failed)
        moved = flow.with_values(last.here.values)
        return Advance(moved, last.substep, last.dissipated, result, {"substeps": last.count})


class _Look(eqx.Module):
    """What is known at a density: its rates, the non-local rest of ξ, the energy, and how fast it is dissipated."""

    values: Array
    rates: CellRates
    rest: Array
    value: Scalar
    rate: Scalar


class _Carry(eqx.Module):
    time: Scalar
    substep: Scalar
    here: _Look
    dissipated: Scalar
    count: Array


class _Flow(NamedTuple):
    """One flow: what is the same at all its densities."""

    energy: AbstractEnergy
    structure: Decomposition
    state: GridDensity
    conserve_mass: bool

    def with_values(self, values: Array) -> GridDensity:
        return eqx.tree_at(lambda s: s.values, self.state, values)

    def variation(self, energy: AbstractEnergy, values: Array) -> Array:
        """δF/δq at the cells."""
        gradient = jax.grad(lambda q: energy(self.with_values(q)))(values)
        return gradient / jnp.asarray(self.state.grid.cell_volume, values.dtype)

    def rates(self, values: Array) -> CellRates:
        """The local part of ξ and its derivatives by log q; zero at empty cells, where nothing grows."""
        structure = self.structure
        terms = structure.potential
        full = values > 0
        potential = self.variation(_sum(terms), values) if terms else jnp.zeros_like(values)
        if not structure.local:
            temperature = 0.0 if structure.temperature is None else structure.temperature
            slope = jnp.full_like(values, temperature)
            value = potential + slope * (1 + jnp.log(jnp.where(full, values, 1)))
            return CellRates(values, jnp.where(full, value, 0), slope, jnp.zeros_like(values))
        terms = structure.local
        if structure.temperature is not None:
            terms = (*terms, Term(structure.temperature, Entropy(), Entropy()))
        energy = _sum(terms)
        # Differentiated along q itself, that is by log q, in every cell at once: a local Hessian is diagonal.
        value = lambda q: self.variation(energy, q)  # noqa: E731
        slope = lambda q: jax.jvp(value, (q,), (q,))[1]  # noqa: E731
        # Where the rate of a cell is beyond all bounds, the cell is full long before anything else has moved; from
        # where it begins makes no difference, and energies that bound their slopes do it further down.
        numbers = jnp.finfo(values.dtype)
        most, lift = float(numbers.max) ** 0.2, float(numbers.max) ** -0.16
        start = jnp.maximum(values, float(numbers.tiny) ** 0.4)
        beyond = jax.lax.stop_gradient(slope(start)) > most
        start = jnp.where(beyond, jnp.maximum(start, lift * jnp.max(values)), start)
        steep, bend = jax.jvp(slope, (start,), (start,))
        # Where ξ does not rise with q the equation of the cell is not stable, and is solved in log q.
        convex = full & (steep > 0)
        power = jnp.where(convex, -bend / jnp.where(convex, steep, 1), 0)
        return CellRates(
            jnp.where(full, start, 0),
            jnp.where(full, value(start) + potential, 0),
            jnp.where(full, steep, 0),
            jnp.clip(power, -_LARGEST_POWER, _LARGEST_POWER),
        )

    def rest(self, values: Array) -> Array:
        """The non-local part of ξ."""
        terms = (*self.structure.interaction, *self.structure.remainder, *self.structure.proximable)
        return jnp.where(values > 0, self.variation(_sum(terms), values), 0) if terms else jnp.zeros_like(values)

    def look(self, values: Array) -> "_Look":
        rates, rest = self.rates(values), self.rest(values)
        xi = rates.value + rest
        mean = jnp.sum(values * xi) / jnp.sum(values) if self.conserve_mass else jnp.zeros((), values.dtype)
        rate = jnp.sum(values * (xi - mean) ** 2) * self.state.grid.cell_volume
        return _Look(values, rates, rest, self.energy(self.with_values(values)), rate)

    def grown(self, values: Array, rates: CellRates, rest: Array, tau: Scalar) -> Array:
        return grown(rates, rest, tau, jnp.sum(values) if self.conserve_mass else None)


def _sum(terms: tuple[Term, ...]) -> AbstractEnergy:
    return Sum(tuple(term.energy for term in terms), tuple(term.scale for term in terms))
