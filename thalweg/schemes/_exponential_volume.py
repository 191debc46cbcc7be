r"""The linear Fokker–Planck equation on a grid, integrated exactly in time.

Exponentially fitted fluxes make the rates of a reversible jump process on the cells: positive, conservative, steady at
the discrete Gibbs density $\pi$. Detailed balance makes the generator symmetric in $u = q/\sqrt\pi$, and there its
exponential is a short sum of Chebyshev polynomials ([`thalweg.schemes._chebyshev`][]). Candidates that were weighed,
for the rotated double well at 256² to time 1:

- one sparse factorisation, reused: 0.8 s with its set-up, first order or not positive, and on the host only;
- dimension by dimension with tridiagonal solves ([`thalweg.FiniteVolume`][]): 440 substeps for the same error in time
  as in space, 11 s;
- Runge–Kutta–Chebyshev steps: the same products, but an error in time that has to be controlled;
- **the exponential itself**: 800 products, 0.1 s, no error in time; the same code on any device and in any dimension.

The exponential of the generator is positive; its polynomial is to rounding, *relative to the largest value of u*. Where
mass starts far uphill, that is more than the density itself elsewhere: the step is then halved until nothing negative
is left but rounding, which is set to zero.
"""

import math
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation
from thalweg._result import RESULTS
from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein import GridMetric, TensorMetric
from thalweg.geometries.wasserstein._grid import is_proportional
from thalweg.geometries.wasserstein._tensor import is_matrix
from thalweg.schemes._chebyshev import MAX_TERMS, exponential, num_terms
from thalweg.schemes._grid_integrator import AbstractGridIntegrator, Advance
from thalweg.schemes._jump_process import jump_process
from thalweg.states import GridDensity

# What may be lost below zero or in mass by one exponential, as a part of the mass, before it is done in two halves.
_ROUNDING = 1e-10


# The largest logarithm of q/√π, as a part of that of the largest number, for the sums of the exponential to hold it.
_FARTHEST = 0.65


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
_NODES = 0.5 * (_NODES + 1)


class ExponentialFiniteVolume(AbstractGridIntegrator):
    r"""Exact time integration of $\partial_t q = \nabla\cdot(m\,q\nabla V) + T\,\nabla\cdot(m\nabla q)$ on a grid: the
    default for a potential energy plus an entropy.

    Second order in space; no error in time; positive, conservative, and the discrete Gibbs density stays. The cost is
    $\sqrt{\rho t}$ products with the generator, whose largest rate $\rho$ is about $4dT/h^2$.

    A step is taken in substeps for two reasons only: that the dissipated energy is integrated well (they double or
    triple while its quadrature allows; where none follows, as from a point mass, it is the energy that was lost), and
    that rounding stays below 1e-10 of the mass.

    Also for a mobility that varies in space, and for one that is a matrix.

    **Arguments:** `tolerance`: the error of the exponential relative to the norm of $q/\sqrt\pi$; `max_substeps`: of
    one step of the scheme.

    **Source:** Scharfetter, Gummel (1969) for the fluxes; Tal-Ezer, Kosloff (1984) for the exponential.
    """

    tolerance: float = eqx.field(static=True, default=1e-11)
    max_substeps: int = eqx.field(static=True, default=4096)

    @property
    def reason(self) -> str:
        return "finite volumes, exact in time: the equation is linear, and its exponential is a sum of polynomials"

    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> str | None:
        if not isinstance(geometry.at(state), GridMetric | TensorMetric):
            return "`ExponentialFiniteVolume` integrates grid densities in the Wasserstein geometry."
        structure = decompose(energy)
        temperature = structure.temperature
        mobility = getattr(geometry, "mobility", None)
        if not is_matrix(mobility, state) and not is_proportional(mobility, state):
            return "`ExponentialFiniteVolume` needs a mobility that is proportional to the density."
        if not structure.is_linear or temperature is None:
            return "`ExponentialFiniteVolume` integrates the flow of a potential energy plus an entropy, and no other."
        if not _tree.is_traced(temperature) and not float(temperature) > 0:
            return f"`ExponentialFiniteVolume` needs a positive temperature; the energy has {float(temperature)}."
        if not _tree.is_traced(state.values):
            uphill = _largest_relative(energy, state)
            if not _tree.is_traced(uphill) and not float(uphill) < _FARTHEST * math.log(
                float(jnp.finfo(uphill.dtype).max)
            ):
                return (
                    "`ExponentialFiniteVolume` cannot start so far uphill: in units of the root of the Gibbs density\n"
                    "the density there is nearly infinite. Use `solver=tw.FiniteVolume()`, which has no such limit."
                )
        return None

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar) -> Any:
        # Short at first, for an initial layer; where it triples from there, the fourth substep is the last.
        return duration / (1 + 3 + 9 + 27)

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar, memory: Scalar
    ) -> Advance:
        process = jump_process(energy, geometry, state)
        generator, root, links = process.symmetric(), process.root, process.links
        grid, dtype = state.grid, state.values.dtype
        duration = jnp.asarray(duration, dtype)
        bound = jax.lax.stop_gradient(generator.spectral_bound(links))
        # The longest that the terms of one sum allow.
        longest = jnp.asarray(0.25 * MAX_TERMS**2 / 40, dtype) / bound
        tolerance = max(self.tolerance, float(jnp.finfo(dtype).eps))
        negligible = 0.5 * float(jnp.finfo(dtype).eps) / grid.num_cells
        # The energy of the mass at one temperature.
        unit = jnp.asarray(decompose(energy).temperature, dtype) * jnp.sum(state.values) * grid.cell_volume
        rounding = max(_ROUNDING, 1e4 * float(jnp.finfo(dtype).eps))

        def rate_of(values: Array) -> tuple[Scalar, tuple[Scalar, Array]]:
            """The dissipation rate of these very fluxes, the energy, and the time derivative of the values."""
            value, cotangent = energy_and_first_variation(energy, eqx.tree_at(lambda s: s.values, state, values))
            tangent, rate = process.change(values, cotangent.regular.values)
            return rate * grid.cell_volume, (value, tangent)

        def expansion_at(values: Array) -> tuple[Scalar, Scalar, Scalar]:
            """The energy, the dissipation rate, and the derivative of the rate along the flow."""
            rate, (value, tangent) = rate_of(values)
            return value, rate, jax.jvp(lambda q: rate_of(q)[0], (values,), (tangent,))[1]

        def body(carry: _Carry) -> _Carry:
            left = duration - carry.time
            # No short one is left over.
            tau = jnp.minimum(jnp.where(left < 1.25 * carry.substep, left, carry.substep), longest)
            # What is less than rounding of the mass altogether would be the largest entry where it lies far uphill.
            heavy = (carry.values > negligible * jnp.sum(carry.values)) & (root > 0)
            # Linear in the density, empty cells included: what is cut is no part of the derivative.
            kept = carry.values + jax.lax.stop_gradient(jnp.where(heavy, carry.values, 0) - carry.values)
            has_root = root > jnp.finfo(dtype).tiny ** 0.9
            relative = jnp.where(has_root, kept / jnp.where(has_root, root, 1), 0)
            moved = root * jnp.asarray(exponential(generator, tau, relative, tolerance, links))
            before, after = jnp.sum(carry.values), jnp.sum(moved)
            lost = jnp.abs(after - before) - jnp.sum(jnp.minimum(moved, 0))
            good = (lost <= rounding * before) & jnp.isfinite(after)
            moved = jnp.maximum(moved, 0)
            moved = moved * (before / jnp.sum(moved))
            value, rate, bend = expansion_at(moved)
            dissipated = _integral(tau, carry.rate, carry.bend, rate, bend)
            drop = carry.value - value
            off, unseen = jnp.abs(dissipated - drop), rounding * (unit + jnp.abs(value))
            # Nothing is dissipated at rest.
            at_once = (off <= 1e-3 * drop + unseen) | (tau * jnp.maximum(carry.rate, rate) <= unseen)
            follows = at_once | (off <= 2e-3 * drop)
            # Rates that no quadrature follows (a point mass, a start far uphill): what is dissipated is what is lost.
            dissipated = jnp.where(follows | (off <= 0.05 * drop), dissipated, drop)
            growth = jnp.where(at_once, 3.0, jnp.where(follows, 2.0, 1.0))
            factor = jax.lax.stop_gradient(jnp.where(good, growth, 0.5))
            keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
            # Nothing that is left to happen shows in the energy: the rest of the interval is at rest.
            at_rest = rate * (left - tau) <= 1e-14 * unit
            return _Carry(
                keep(jnp.where(at_rest, duration, carry.time + tau), carry.time),
                jnp.where(good & (tau < carry.substep), carry.substep, tau * factor),
                keep(moved, carry.values),
                keep(value, carry.value),
                keep(rate, carry.rate),
                keep(bend, carry.bend),
                carry.dissipated + keep(dissipated, 0),
                carry.terms + num_terms(0.5 * bound * tau, tolerance),
                carry.count + 1,
            )

        value, rate, bend = expansion_at(state.values)
        zero = jnp.zeros((), dtype)
        first = jnp.minimum(jnp.asarray(memory, dtype), duration)
        begin = _Carry(zero, first, state.values, value, rate, bend, zero, jnp.asarray(0, jnp.int32), jnp.asarray(0))
        last = eqxi.while_loop(
            lambda carry: (carry.time < duration) & (carry.count < self.max_substeps),
            body,
            begin,
            max_steps=self.max_substeps,
            kind="checkpointed",
            checkpoints=4,
        )
        result = RESULTS.where(last.time >= duration, RESULTS.successful, RESULTS.inner_solver_failed)
        moved = eqx.tree_at(lambda s: s.values, state, last.values)
        stats = {"substeps": last.count, "products": last.terms}
        return Advance(moved, last.substep, last.dissipated, result, stats)


def _integral(duration: Scalar, rate: Scalar, slope: Scalar, later_rate: Scalar, later_slope: Scalar) -> Scalar:
    r"""The integral of a rate that decays like a sum of exponentials, from its values and slopes at both ends.

    The logarithm of the rate is Hermite's cubic in $s = \log(1 + \kappa t/\tau)/\log(1 + \kappa)$, where $1 + \kappa$
    is the quotient of the rates' relative slopes: exact for one exponential ($\kappa = 0$), and for a power of the
    time since whenever it began.
    """
    positive = (rate > 0) & (later_rate > 0)
    first, last = jnp.where(positive, rate, 1), jnp.where(positive, later_rate, 1)
    value, rise = jnp.log(first), jnp.log(last) - jnp.log(first)
    begin, end = duration * slope / first, duration * later_slope / last
    slows = (begin < end) & (end < 0)
    kappa = jnp.where(slows, jnp.where(slows, begin, -1) / jnp.where(slows, end, -1) - 1, 0)
    kappa = jnp.clip(kappa, 1e-6, 1e6)
    width = jnp.log1p(kappa)
    # By s instead of time, which passes dt = τ (width/κ) e^{s width} ds.
    begin, end = begin * width / kappa, end * width * (1 + kappa) / kappa
    total = jnp.zeros_like(rate)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        bump = node * (1 - node) * ((begin - rise) * (1 - node) - (end - rise) * node)
        height = jnp.minimum(value + rise * node + bump, jnp.maximum(value, value + rise) + 1)
        total = total + 0.5 * weight * jnp.exp(height + node * width) * (width / kappa)
    # The trapezoid where the rates are rounding, or where the cubic has left them behind.
    largest = jnp.maximum(rate, later_rate)
    trusted = positive & (total <= 2 * largest)
    return duration * jnp.where(trusted, total, 0.5 * (rate + later_rate))


class _Carry(eqx.Module):
    time: Scalar
    substep: Scalar
    values: Array
    value: Scalar
    rate: Scalar
    bend: Scalar
    dissipated: Scalar
    terms: Array
    count: Array


@eqx.filter_jit
def _largest_relative(energy: AbstractEnergy, state: GridDensity) -> Scalar:
    r"""The largest $\log(q/\sqrt\pi)$ where there is mass, with the largest $\pi$ one."""
    structure = decompose(energy)
    potential, temperature = state.on_cells(structure.potential_value), structure.temperature
    lowest = jnp.min(potential if state.grid.mask is None else jnp.where(state.grid.mask, potential, jnp.inf))
    heavy = state.values > jnp.finfo(state.values.dtype).eps / state.grid.num_cells * jnp.sum(state.values)
    above = (potential - lowest) / (2 * jnp.asarray(temperature, potential.dtype))
    return jnp.max(jnp.where(heavy, jnp.log(jnp.where(heavy, state.values, 1)) + above, 0))
