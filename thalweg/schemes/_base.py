"""How a step is taken: a map over a time α, with whatever it wants to remember from step to step.

`init` and `step` are pure functions: a user may own the loop. A scheme gets both the energy and the geometry, never
a bare vector field, since the sentence needs both.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import PRNGKey, Scalar, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry


class StepInfo(eqx.Module):
    """What a step says of itself.

    `step_size`: the time that it advanced (arc length for `Constrained`); `distance_squared`: how far it went;
    `dissipated`: the energy that it dissipated, the integral of the dissipation rate over the step, to the order of the
    scheme; `result`: a member of `RESULTS`; `stats`: named numbers, the same names at every step, which
    `path.measurements` records.
    """

    step_size: Scalar
    distance_squared: Scalar
    dissipated: Scalar
    result: Any
    stats: dict[str, Any]


class AbstractScheme(eqx.Module):
    """A way to take a step."""

    advances_time: ClassVar[bool] = True
    needs_key: ClassVar[bool] = False
    # Whether it takes constraints and penalties by their proximal maps; any other scheme would differentiate them.
    takes_proximable: ClassVar[bool] = False
    # Whether it can hold a density below a ceiling (`tw.Congestion`), which has no slope.
    takes_ceiling: ClassVar[bool] = False
    distance_label: ClassVar[str] = "step_size² · ‖v‖² (the metric's local value)"

    @abc.abstractmethod
    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        """What the scheme remembers before the first step: factorisations, warm starts, adaptation."""

    @abc.abstractmethod
    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        """One step: the new state, the new memory, and what happened."""

    @abc.abstractmethod
    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        """Raise `UnsupportedCombination` or `ValueError` if this scheme cannot work with the three other choices."""

    @abc.abstractmethod
    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "AbstractScheme":
        """The scheme with every automatic choice made; done once, before compilation."""

    @abc.abstractmethod
    def limit(self, remaining: Scalar) -> "AbstractScheme":
        """The scheme with its next step cut so that it ends exactly where `remaining` time is used up."""

    def finish(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any) -> dict[str, Any]:
        """What the scheme gathered for `path.extras` (a certificate, a transport), asked when the path is put
        together.
        """
        del energy, geometry, state, memory
        return {}

    def describe(self) -> dict[str, str]:
        """The choices that were made automatically, by name, for `path.stats`."""
        return {}


def outcome_at(value: Scalar) -> Any:
    """`RESULTS.successful` where the energy at the start of a step is finite, else `RESULTS.non_finite`.

    A state may leave the domain of its energy and keep a finite gradient (that of a logarithm is finite at negative
    numbers), so the velocity alone does not tell.
    """
    return RESULTS.where(jnp.isfinite(value), RESULTS.successful, RESULTS.non_finite)


def limited_step_size(step_size: Scalar, remaining: Scalar) -> Scalar:
    """The step size, or what remains if that is less or nearly so: rounding in a sum of steps must not leave a
    sliver for a last step.
    """
    slack = 1 + 64 * jnp.finfo(step_size.dtype).eps ** 0.5
    return jnp.where(remaining <= step_size * slack, remaining, step_size)


def check_positive(value: Any, name: str, owner: str) -> None:
    """Raise `ValueError` unless a number that is known now is positive and finite."""
    if isinstance(value, int | float) and not (value > 0 and value < float("inf")):
        raise ValueError(f"`{name}` of `{owner}` must be a positive finite number; got {value}.")
