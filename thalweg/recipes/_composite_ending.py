"""What a minimisation with constraints and penalties ended at: a point of some kind, or a fall without end."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg._path import Path
from thalweg._result import RESULTS, is_member
from thalweg._types import Array, PyTree
from thalweg.diagnostics import (
    AroundPiece,
    Feasible,
    StationaryPoint,
    around_piece,
    downhill_on_piece,
    far_away,
    settled_curvature,
    stationary_point_on_piece,
    travels,
)
from thalweg.energies import AbstractEnergy
from thalweg.states import moving

# A last residual below this part of the tolerance, where the one before was above it, is superlinear convergence: next
# to an inflection (x³) and on the way to infinity residuals fall by a factor of four at most.
_SUPERLINEAR = 1e-2


class CompositeEnding(NamedTuple):
    """The result, the kind of the point (`None` where the flow did not come to rest), and a feasible point with a
    smaller F where there is one next to it.
    """

    result: Any
    kind: StationaryPoint | None = None
    lower: PyTree | None = None


def composite_ending(path: Path, energy: AbstractEnergy, slope: Any, tolerance: float) -> CompositeEnding:
    """How a path ended. **Arguments:** `path`, `energy`; `slope`: the norm of the least subgradient, if it is known;
    `tolerance`: that of the stop condition.
    """
    if not is_member(path.result, RESULTS.stopped):
        return CompositeEnding(_restless(path, energy))
    state = path.final.state
    kind = stationary_point_on_piece(energy, state, gradient_norm=slope)
    if bool(kind.is_saddle):
        lower = downhill_on_piece(energy, state, kind.direction)
        # Where F falls to neither side the curvature alone is negative: active bounds without a multiplier.
        return CompositeEnding(RESULTS.flat_point if lower is None else RESULTS.saddle_point, kind, lower)
    is_vertex = bool(jnp.isinf(kind.smallest_curvature))
    if bool(kind.is_minimum) and (is_vertex or _is_clear(path, energy, slope, tolerance)):
        return CompositeEnding(RESULTS.minimum, kind)
    found = around_piece(energy, state, path.final.dissipated, slope)
    return _looked_around(path, energy, kind, found)


def traced_ending(path: Path, energy: AbstractEnergy) -> tuple[Any, StationaryPoint]:
    """The result and the kind of the point as far as they can be told while JAX traces."""
    kind = stationary_point_on_piece(energy, path.final.state)
    held = around_piece(energy, path.final.state, path.final.dissipated).is_held
    held = held | jnp.isinf(kind.smallest_curvature)
    result = RESULTS.where(kind.is_saddle, RESULTS.saddle_point, RESULTS.flat_point)
    result = RESULTS.where(kind.is_minimum & held, RESULTS.minimum, result)
    result = RESULTS.where(path.result == RESULTS.stopped, result, path.result)
    return RESULTS.where(path.result == RESULTS.successful, RESULTS.out_of_steps, result), kind


def _looked_around(path: Path, energy: AbstractEnergy, kind: StationaryPoint, found: AroundPiece) -> CompositeEnding:
    state = path.final.state
    if bool(found.falls):
        _, unravel = ravel_pytree(moving(state))
        lower = downhill_on_piece(energy, state, unravel(found.step / jnp.linalg.norm(found.step)))
        return CompositeEnding(RESULTS.flat_point if lower is None else RESULTS.saddle_point, kind, lower)
    if bool(found.recedes):
        return CompositeEnding(_far(path, energy, [found.step], RESULTS.flat_point), kind)
    is_minimum = bool(kind.is_minimum) and bool(found.is_held)
    return CompositeEnding(RESULTS.minimum if is_minimum else RESULTS.flat_point, kind)


def _is_clear(path: Path, energy: AbstractEnergy, slope: Any, tolerance: float) -> bool:
    """Whether the convergence was superlinear and the curvature has settled, which costs nothing more to know and is
    true for most problems.
    """
    final = path.final
    last = float(np.asarray(final.stats["relative_residual"]))
    memory = final.memory
    # A path that goes on stops at the first residual that is small enough, so the one before was not.
    began = float(np.asarray(memory.largest_residual)) > tolerance * float(np.asarray(memory.largest_norm))
    is_superlinear = last <= _SUPERLINEAR * tolerance and (int(final.num_steps) > 1 or began)
    return is_superlinear and settled_curvature(energy, final.state, memory.diagonal, slope)


def _restless(path: Path, energy: AbstractEnergy) -> Any:
    """Why a path did not come to rest: F may fall along its last step, or all of its way, without end."""
    otherwise = RESULTS.out_of_steps if is_member(path.result, RESULTS.successful) else path.result
    asked = (RESULTS.out_of_steps, RESULTS.step_size_underflow, RESULTS.non_finite)
    if len(path) < 2 or not any(is_member(otherwise, result) for result in asked):
        return otherwise
    end, before, start = (_flat_at(path, index) for index in (-1, -2, 0))
    last, whole = end - before, end - start
    # Steps that have become short lead nowhere: along them F stays the same for want of digits.
    is_short = np.max(np.abs(last)) <= 1e-4 * np.max(np.abs(whole))
    return _far(path, energy, [whole] if is_short else [last, whole], otherwise)


def _far(path: Path, energy: AbstractEnergy, steps: list[Any], otherwise: Any) -> Any:
    """`unbounded` or `escaping` where F falls along one of the steps and its multiples, all of them feasible."""
    state, result = path.final.state, otherwise
    first = np.asarray(path.energies[:2], np.float64)
    size = float(max(abs(first[0]), abs(first[-1] - first[0])))
    for step in steps:
        way = _direction(step)
        if way is None or not travels(energy, state, way):
            continue
        far = far_away(Feasible(energy), state, jnp.asarray(step), size)
        if far.without_bound:
            return RESULTS.unbounded
        result = RESULTS.escaping if far.never_rises else result
    return result


def _direction(step: Any) -> Array | None:
    largest = float(np.max(np.abs(np.asarray(step)), initial=0))
    return jnp.asarray(step) / largest if 0 < largest < np.inf else None


def _flat_at(path: Path, index: int) -> np.ndarray:
    return np.asarray(ravel_pytree(moving(path.state_at(index)))[0])
