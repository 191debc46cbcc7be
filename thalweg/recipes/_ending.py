"""What kind of point a minimisation ended at, and why it ended where it found none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._path import Path
from thalweg._result import RESULTS, is_member
from thalweg._types import Array
from thalweg.diagnostics import far_away, is_held, slope_jumps, surroundings
from thalweg.energies import AbstractEnergy, as_energy
from thalweg.schemes import DenseSpectrum, SecondOrder
from thalweg.states import moving

# Coordinates up to so many are asked one by one for a corner.
_FEW = 16
# A last decrement below this part of the tolerance, where the one before was above it: faster than any linear
# convergence with a changing curvature, whose decrements fall by a factor of 16 at most.
_SUPERLINEAR = 1e-2
# The largest relative change of the curvature over the last step where it has settled: where it has not, Newton's steps
# change it by a third or more each time (x³ by a half, x⁴ by 5/9, e⁻ˣ by 0.6).
_SETTLED = 0.02
# An energy that has fallen by so much more than its size at the start has no bound that could be known.
_DEEP = 1e20


_ASKED = ("relative_decrement", "curvature_change", "lowest_curvature", "largest_curvature")


class Ending(NamedTuple):
    """The result, a member of `RESULTS`, and where the point is no minimum a step away from it, in flat coordinates."""

    result: Any
    step: Array | None = None


def ended(path: Path, energy: Callable[..., Any], *, tolerance: float | None = None) -> Path:
    """The path with its result made precise: which kind of point it ended at, or why there is none.

    **Arguments:** `path`: of [`thalweg.LinearlyImplicit`][] with `stop=tw.ModelDecrease(tolerance)` and
    `tw.LearntDiagonal()`; `energy`; `tolerance`: as given (`None`: the rounding unit).
    """
    # As a function: a method of a module looks at every array of it, and so would cut the saves.
    return Path.but(path, result=ending_of(path, energy, tolerance).result)


def ending_of(path: Path, energy: Callable[..., Any], tolerance: float | None = None) -> Ending:
    """How a path ended."""
    if _tree.is_traced(path.final.num_steps):
        return Ending(result_inside(path, as_energy(energy)))
    if is_member(path.result, RESULTS.stopped):
        if _clearly_a_minimum(path, tolerance):
            return Ending(RESULTS.minimum)
        return _at_rest(path, as_energy(energy))
    if any(
        is_member(path.result, result)
        for result in (RESULTS.successful, RESULTS.step_size_underflow, RESULTS.non_finite)
    ):
        otherwise = RESULTS.out_of_steps if is_member(path.result, RESULTS.successful) else path.result
        return Ending(_restless(path, as_energy(energy), otherwise))
    return Ending(path.result)


def result_inside(path: Path, energy: AbstractEnergy) -> Any:
    """The result as far as it can be told while JAX traces, which is without following a line to its end."""
    sign, held = is_held(energy, path.final.state, path.energies[0])
    kind = RESULTS.where(sign < 0, RESULTS.saddle_point, RESULTS.flat_point)
    kind = RESULTS.where((sign > 0) & held, RESULTS.minimum, kind)
    result = RESULTS.where(path.result == RESULTS.stopped, kind, path.result)
    return RESULTS.where(result == RESULTS.successful, RESULTS.out_of_steps, result)


def _clearly_a_minimum(path: Path, tolerance: float | None) -> bool:
    """Whether the curvature is positive and has settled, along every coordinate and in the lowest direction, and the
    decrement fell as it does only then. Costs nothing, and is true for most small problems, whatever their units.
    """
    stats = path.final.stats
    chosen = dict(path.stats_items)
    if chosen.get("solver") != DenseSpectrum.__name__ or chosen.get("curvature") != SecondOrder.__name__:
        return False
    number = {name: np.asarray(stats[name]).item() for name in _ASKED}
    diagonal = path.final.memory.diagonal
    eps = float(np.finfo(diagonal.dtype).eps)
    return bool(
        number["relative_decrement"] <= _SUPERLINEAR * (eps if tolerance is None else tolerance)
        and number["curvature_change"] <= _SETTLED
        and number["lowest_curvature"] > 1e3 * diagonal.size * eps * number["largest_curvature"]
    )


def _at_rest(path: Path, energy: AbstractEnergy) -> Ending:
    """The kind of a point where the model promises nothing more."""
    state = path.final.state
    found = surroundings(energy, state, _first_value(path))
    step = jnp.asarray(found.step)
    if not found.is_finite:
        return Ending(_restless(path, energy, otherwise=RESULTS.non_finite))
    if found.sign < 0 or found.falls:
        return Ending(RESULTS.saddle_point, step)
    if found.recedes:
        far = far_away(energy, state, step, _size(path))
        kind = RESULTS.escaping if far.never_rises else RESULTS.flat_point
        return Ending(RESULTS.unbounded if far.without_bound else kind)
    # On a line, F that turns on both sides has a minimum between, whatever its curvature.
    if found.sign > 0 and (found.is_quadratic or (step.size == 1 and found.is_enclosed)):
        return Ending(RESULTS.minimum)
    return Ending(RESULTS.flat_point)


def _first_value(path: Path) -> float:
    """The energy at the start; the scheme has kept it, so that the saves need not be looked at."""
    kept = getattr(path.final.memory, "first_value", None)
    return float(path.energies[0]) if kept is None else float(np.asarray(kept))


def _restless(path: Path, energy: AbstractEnergy, otherwise: Any) -> Any:
    """Why a path that did not come to rest did not."""
    size, value = _size(path), float(path.energies[-1])
    if value < -size * _DEEP and _near_the_end_of_numbers(path, value, otherwise):
        return RESULTS.unbounded
    escapes = False
    # Steps that have become short lead nowhere: along them F stays the same for want of digits.
    ways = _ways(path)[1:] if _is_held(path) else _ways(path)
    for step in ways if np.isfinite(value) else ():
        far = far_away(energy, path.final.state, jnp.asarray(step), size)
        if far.without_bound:
            return RESULTS.unbounded
        escapes = escapes or far.never_rises
    if escapes:
        return RESULTS.escaping
    held = is_member(otherwise, RESULTS.non_finite) or _is_held(path)
    return RESULTS.corner if held and _at_corner(path, energy) else otherwise


def _near_the_end_of_numbers(path: Path, value: float, otherwise: Any) -> bool:
    """Whether the energy, or where it is a pole its slope and curvature, are about to overflow."""
    largest = float(np.finfo(_tree.dtype_of(path.final.state)).max)
    return value < -(largest**0.9) or is_member(otherwise, RESULTS.non_finite)


def _is_held(path: Path) -> bool:
    """Whether the last step was short against the way: at a corner the steps shrink with the distance to it."""
    last, whole = _ways(path) or (np.ones(1), np.ones(1))
    return bool(np.max(np.abs(last)) <= 1e-4 * np.max(np.abs(whole)))


def _at_corner(path: Path, energy: AbstractEnergy) -> bool:
    end, start = (_flat_at(path, index) for index in (-1, 0))
    span = float(np.max(np.abs(end - start)))
    if not 0 < span < np.inf:
        return False
    # A kink is crossed by almost every line; of many coordinates a few lines are tried.
    lines = np.eye(end.size) if end.size <= _FEW else np.random.default_rng(0).normal(size=(2, end.size))
    lines = np.concatenate([lines, (end - start)[None] / span])
    lines = lines / np.linalg.norm(lines, axis=1, keepdims=True)
    return slope_jumps(energy, path.final.state, jnp.asarray(lines, end.dtype), span)


def _ways(path: Path) -> list[np.ndarray]:
    """The ways a path went: its last step, and all of it."""
    end = _flat_at(path, -1)
    return [end - _flat_at(path, -2), end - _flat_at(path, 0)] if len(path) > 1 else []


def _flat_at(path: Path, index: int) -> np.ndarray:
    return np.asarray(ravel_pytree(moving(path.state_at(index)))[0])


def _size(path: Path) -> float:
    """The size of the energy where the flow began: of its value, or of its first decrease."""
    first = np.asarray(path.energies[:2], np.float64)
    return float(max(abs(first[0]), abs(first[-1] - first[0])))
