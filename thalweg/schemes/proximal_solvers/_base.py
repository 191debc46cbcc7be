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
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes._base import check_positive
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

    def __check_init__(self) -> None:
        name, steps = type(self).__name__, getattr(self, "max_steps", 1)
        check_positive(getattr(self, "tolerance", 1.0), "tolerance", name)
        if isinstance(steps, int) and steps < 1:
            raise ValueError(f"`max_steps` of `{name}` must be at least one; got {steps}.")

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


def why_not_in_the_plane(name: str, metric: AbstractMetric, torus: bool) -> str | None:
    """Why a solver of the true step in the plane cannot serve a metric: its kind, its mobility or its grid. `torus`:
    whether the solver takes periodic axes.
    """
    if not isinstance(metric, GridMetric):
        return f"`{name}` solves the JKO step of a `GridDensity` in the Wasserstein geometry."
    if metric.mobility is not None:
        return f"`{name}` knows the quadratic cost only: use `tw.Wasserstein()` without a mobility."
    grid = metric.state.grid
    joined = any(grid.is_periodic(axis) for axis in range(grid.dim))
    if grid.dim != 2 or grid.mask is not None or (joined and not torus):
        kind = "two dimensions without a mask" if torus else "two dimensions with walls and without a mask"
        return (
            f"`{name}` is for grids of {kind}; this one has shape {grid.shape}.\n"
            "Use `solver=tw.LinearisedJKO()` or `tw.Continuous(step_size)`."
        )
    return None
