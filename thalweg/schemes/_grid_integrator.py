"""What integrates the flow of a grid density over an interval of time, keeping the laws of its equation.

`Continuous` asks the integrators that it knows, in order, which of them can serve the energy and the geometry; each
says in words why it cannot.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy, Decomposition
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein._grid import open_faces
from thalweg.states import GridDensity

# A cell that holds more of the mass than this stands for a peak that the grid does not resolve.
_RESOLVED = 0.5


def resolution_of(structure: Decomposition, before: GridDensity, after: GridDensity) -> Any:
    """`RESULTS.concentrated` where the attraction of an energy has gathered half of the mass in one cell, else
    `RESULTS.successful`.

    It is the attraction if the potential of the interactions holds the peak more firmly than the rest of the potential
    does: if its least rise to a neighbouring cell is the larger.
    """
    if not structure.interaction:
        return RESULTS.successful
    values = after.values
    place = jnp.argmax(values)
    attraction = jnp.zeros_like(values)
    for term in structure.interaction:
        attraction = attraction + term.scale * after.convolve(term.function)
    outside = after.on_cells(structure.potential_value) if structure.potential else jnp.zeros_like(values)
    inward, other = _least_rise(attraction, after, place), _least_rise(outside, after, place)
    gathered = jnp.max(values) > _RESOLVED * jnp.sum(values)
    grown = jnp.max(values) > jnp.max(before.values)
    alarm = gathered & grown & (inward > 0) & (inward > other)
    return RESULTS.where(alarm, RESULTS.concentrated, RESULTS.successful)


def _least_rise(potential: Array, state: GridDensity, place: Array) -> Scalar:
    """How far a potential rises at least from a cell to its neighbours inside of the domain."""
    least = jnp.asarray(jnp.inf, potential.dtype)
    for axis in range(state.dim):
        is_open = jnp.broadcast_to(open_faces(state.grid, axis, potential.dtype), potential.shape) > 0
        ahead = jnp.where(is_open, jnp.roll(potential, -1, axis) - potential, jnp.inf)
        behind = jnp.where(jnp.roll(is_open, 1, axis), jnp.roll(potential, 1, axis) - potential, jnp.inf)
        least = jnp.minimum(least, jnp.minimum(ahead.reshape(-1)[place], behind.reshape(-1)[place]))
    return least


class Advance(NamedTuple):
    """A density after an interval of time, what the integrator remembers, the energy that was dissipated, a member of
    `RESULTS`, and named numbers for `path.measurements`.
    """

    state: GridDensity
    memory: Any
    dissipated: Scalar
    result: Any
    stats: dict[str, Any]


class AbstractGridIntegrator(eqx.Module):
    """Integrates the gradient flow of a grid density."""

    @abc.abstractmethod
    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> str | None:
        """Why it cannot integrate this flow, or `None` if it can; nothing is compiled."""

    @abc.abstractmethod
    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar) -> Any:
        """What it remembers before the first interval, a pytree of arrays."""

    @abc.abstractmethod
    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity, duration: Scalar, memory: Any
    ) -> Advance:
        """The density after `duration`."""

    @property
    @abc.abstractmethod
    def reason(self) -> str:
        """What it does in a few words, for `path.stats`."""
