"""What is recorded along a path: energy, dissipation, distance, and whatever the user asks for."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import energy_and_first_variation
from thalweg._shapes import shapes_of
from thalweg._types import Array, Flag, Scalar, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry
from thalweg.schemes._descent import tangent_of


class Snapshot(eqx.Module):
    """What a `stop` condition may look at after each step; `stats` is what the scheme said of the step, by name."""

    time: Scalar
    state: State
    energy: Scalar
    dissipation_rate: Scalar
    stats: dict[str, Array]


class Stationary(eqx.Module):
    r"""A stop condition: the dissipation rate $\|\xi\|_*^2$ has fallen to `tolerance`² (in energy per time).

    **Arguments:** `tolerance`: a bound on the dual norm of the first variation.
    """

    tolerance: float

    def __call__(self, snapshot: Snapshot) -> Flag:
        return snapshot.dissipation_rate <= self.tolerance**2


class ModelDecrease(eqx.Module):
    r"""A stop condition for [`thalweg.LinearlyImplicit`][]: what the quadratic model without a limit still promised
    before the last step, $\tfrac12\,\nabla F^\top H^{-1}\nabla F$, is at most `tolerance` times |F|.

    It has no units, so it asks the same of a function in millimetres and in miles; where the model has no minimum it
    never holds. (Near F = 0 the reference is ε times the decrease since the start, with ε the rounding unit.) It also
    holds when F has not visibly fallen for several steps and the model promises no more than 10⁻⁶·|F|, or a rounding
    unit of the decrease since the start: the rest is lost in the rounding of F itself.

    **Arguments:** `tolerance`: dimensionless.
    """

    tolerance: float

    def __call__(self, snapshot: Snapshot) -> Flag:
        if "relative_decrement" not in snapshot.stats:
            raise ValueError("`ModelDecrease` needs a scheme with a quadratic model: `tw.LinearlyImplicit()`.")
        promised = snapshot.stats["relative_decrement"]
        return (promised <= self.tolerance) | snapshot.stats["has_stalled"]


def records_energy(
    energy: AbstractEnergy, geometry: AbstractGeometry, state: State
) -> tuple[bool, bool, dict[str, str]]:
    """Whether energy and dissipation rate have values in this representation, and if not, why; found by shapes
    alone.
    """
    try:
        _, cotangent = shapes_of(energy_and_first_variation, energy, state)
    except UnsupportedCombination as error:
        reason = str(error)
        return False, False, {"energies": reason, "dissipation_rates": reason}
    if cotangent.temperature is not None:
        reason = (
            "the entropy of particles without a density model has no value; "
            "`path.measurements['regular_energy']` is the energy without it"
        )
        return False, False, {"energies": reason, "dissipation_rates": reason}
    try:
        shapes_of(tangent_of, geometry, state, cotangent)
    except (UnsupportedCombination, ValueError) as error:
        return True, False, {"dissipation_rates": str(error)}
    return True, True, {}


def record(
    energy: AbstractEnergy,
    geometry: AbstractGeometry,
    measure: Callable[..., Any] | None,
    available: tuple[bool, bool],
    state: State,
) -> dict[str, Any]:
    """The measurements at one state, as a dictionary of arrays."""
    value, cotangent = energy_and_first_variation(energy, state)
    dtype = _tree.dtype_of(state)
    measurements: dict[str, Any] = {}
    entry: dict[str, Any] = {}
    if available[0]:
        entry["energies"] = value.astype(dtype)
    else:
        measurements["regular_energy"] = value.astype(dtype)
    if available[1]:
        metric = geometry.at(state)
        entry["dissipation_rates"] = metric.norm_squared(metric.steepest_descent(cotangent)).astype(dtype)
    if measure is not None:
        extra = measure(state)
        measurements.update(extra if isinstance(extra, dict) else {"measure": extra})
    entry["measurements"] = jax.tree.map(jnp.asarray, measurements)
    return entry
