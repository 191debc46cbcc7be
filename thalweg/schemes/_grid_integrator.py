"""What integrates the flow of a grid density over an interval of time, keeping the laws of its equation.

`Continuous` asks the integrators that it knows, in order, which of them can serve the energy and the geometry; each
says in words why it cannot.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Scalar
from thalweg.energies import AbstractEnergy, Decomposition
from thalweg.geometries import AbstractGeometry
from thalweg.states import GridDensity

# A cell that holds more of the mass than this stands for a peak that the grid does not resolve.
_RESOLVED = 0.2


def resolution_of(structure: Decomposition, before: GridDensity, after: GridDensity) -> Any:
    """`RESULTS.concentrated` where the attraction of an energy has gathered a fifth of the mass in one cell, else
    `RESULTS.successful`.
    """
    if not structure.interaction:
        return RESULTS.successful
    peak = jnp.max(after.values)
    held = peak > _RESOLVED * jnp.sum(after.values)
    return RESULTS.where(held & (peak > jnp.max(before.values)), RESULTS.concentrated, RESULTS.successful)


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
