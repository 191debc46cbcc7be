"""What solves a JKO step of a grid density.

`Proximal` asks the solvers that it knows, in order, which of them can serve the energy and the metric; each says in
words why it cannot.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx

from thalweg._types import Flag, Scalar
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractMetric
from thalweg.states import GridDensity


class JKOStep(NamedTuple):
    r"""A JKO step: the density after it, the squared distance $D(q^+, q)$ that the solver minimised with, its
    optimality residual, whether it converged, what is remembered for the next step, and named numbers for
    `path.measurements` (a duality gap, counts).
    """

    state: GridDensity
    distance_squared: Scalar
    residual: Scalar
    converged: Flag
    memory: Any
    stats: dict[str, Any]


class AbstractJKOSolver(eqx.Module):
    r"""Solves $q^+ = \operatorname{argmin}_q D(q, q_t)/(2\alpha) + F(q)$ for grid densities."""

    # Whether it keeps the density below `decompose(energy).ceiling`.
    takes_ceiling: ClassVar[bool] = False

    @abc.abstractmethod
    def why_unsupported(self, energy: AbstractEnergy, metric: AbstractMetric) -> str | None:
        """Why it cannot take this step, or `None` if it can; nothing is compiled."""

    @abc.abstractmethod
    def init(self, energy: AbstractEnergy, metric: AbstractMetric) -> Any:
        """What it remembers before the first step (a warm start), a pytree of arrays."""

    @abc.abstractmethod
    def solve(self, energy: AbstractEnergy, metric: AbstractMetric, step_size: Scalar, memory: Any) -> JKOStep:
        """One step from `metric.state`."""

    @property
    @abc.abstractmethod
    def distance_label(self) -> str:
        """Which distance it minimises with, for `path.stats`."""
