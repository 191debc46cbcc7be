"""On from a saddle: a flow stays at one that it has met, a minimisation does not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _compiled
from thalweg._path import FlowState, Path, concatenate
from thalweg._saves import Saves
from thalweg._types import Array, State
from thalweg.diagnostics import LARGEST_DENSE
from thalweg.energies import AbstractEnergy, as_energy
from thalweg.recipes._ending import ending_of
from thalweg.states import moving

# Each leaving lowers F, but valleys of saddles without an end are not worth more.
_MOST_LEAVINGS = 20
# Lengths along the direction that leaves, each four times the last.
_EXPONENTS = np.arange(-4.0, 12.0)
# So many neighbours of the state tell the rounding of F.
_SHAKEN = 8


def settled(
    path: Path,
    energy: Callable[..., Any],
    again: Callable[[State, int], Path],
    num_steps: int,
    tolerance: float | None = None,
) -> Path:
    """The path, its result made precise, and where it ended at a saddle gone on with to both sides of it, whichever is
    lower; `path.stats["saddles_left"]` counts them.

    **Arguments:** `path`; `energy`; `again`: a function that flows on from a state for at most so many steps;
    `num_steps`: the most steps altogether; `tolerance`: that of the stop condition.
    """
    for left in range(_MOST_LEAVINGS + 1):
        ending, step, rest = ending_of(path, energy, tolerance), None, 0
        if ending.step is not None and left < _MOST_LEAVINGS:
            rest = num_steps - int(path.final.num_steps) - 1
            step = _step_down(as_energy(energy), path.final.state, ending.step) if rest > 0 else None
        if step is None:
            stats = (*path.stats_items, ("saddles_left", left))
            # As a function: a method of a module looks at every array of it, and so would cut the saves.
            return Path.but(path, result=ending.result, stats_items=stats)
        lower = eqx.combine(_moved(moving(path.final.state), step), path.final.state)
        path = _joined(path, again(lower, rest), float(jnp.sum(step**2)))
    raise AssertionError("unreachable")


def _step_down(energy: AbstractEnergy, state: State, step: Array) -> Array | None:
    """A multiple of the step, to one of its sides, after which F is visibly lower; `None` if there is none."""
    lengths = np.concatenate([4.0**_EXPONENTS, -(4.0**_EXPONENTS)])
    here, values, nearby = (
        np.asarray(v, np.float64)
        for v in _compiled.call(_beside, energy, state, step, jnp.asarray(lengths, step.dtype))
    )
    values = values.reshape(2, -1)
    # What is left of large terms that cancel: by so much F differs where the state is the same to rounding.
    noise = np.max(np.abs(nearby - here), initial=0, where=np.isfinite(nearby))
    visible = 64 * max(float(jnp.finfo(step.dtype).eps) * abs(float(here)), float(noise))
    # As far as F goes on falling; where it has risen on the way, the valley beyond is another. Until it has fallen
    # visibly, a rise that is rounding says nothing.
    before = np.concatenate([np.full((2, 1), here), values[:, :-1]], axis=1)
    goes_on = (values <= before) | (~_so_far(before < here - visible) & (values <= here + visible))
    going_down = np.logical_and.accumulate(goes_on, axis=1)
    values = np.where(going_down & np.isfinite(values), values, np.inf).ravel()
    best = int(np.argmin(values))
    return float(lengths[best]) * step if values[best] < here - visible else None


def _so_far(flags: np.ndarray) -> np.ndarray:
    return np.logical_or.accumulate(flags, axis=1)


def _beside(energy: AbstractEnergy, state: State, step: Array, lengths: Array) -> tuple[Array, Array, Array]:
    """F at the state, along the step, and where every entry differs by a few rounding errors."""
    flat, unravel = ravel_pytree(moving(state))

    def value(point: Array) -> Array:
        return jnp.asarray(energy(eqx.combine(unravel(point), state)), flat.dtype)

    def along(length: Any) -> Array:
        return value(flat + length * step)

    def shaken(key: Array) -> Array:
        return value(flat * (1 + 4 * jnp.finfo(flat.dtype).eps * jax.random.rademacher(key, flat.shape, flat.dtype)))

    every = (lambda fn, of: jax.vmap(fn)(of)) if flat.size <= LARGEST_DENSE else jax.lax.map
    return value(flat), every(along, lengths), every(shaken, jax.random.split(jax.random.key(2), _SHAKEN))


def _moved(tree: Any, step: Array) -> Any:
    flat, unravel = ravel_pytree(tree)
    return unravel(flat + step)


def _joined(path: Path, later: Path, distance_squared: float) -> Path:
    """Two paths and the step between them as one: times, counts and dissipation go on.

    The step is taken for an implicit one: D/α is what F falls by, so that its α is D over the decrease.
    """
    decrease = float(path.energies[-1]) - float(later.energies[0])
    begin, jump = path.final, jnp.asarray(distance_squared / decrease, path.times.dtype)
    records = dict(later.records)
    records["distances_squared"] = records["distances_squared"].at[0].set(distance_squared)
    records["dissipated"] = records["dissipated"] + (begin.dissipated + decrease)
    saves = Saves(later.times + (begin.time + jump), later.states, records, later.measurements)
    later = dataclasses.replace(later, saves=saves, final=_after(later.final, begin, jump, decrease))
    earlier, last = dict(path.stats_items), dict(later.stats_items)
    sums = {name: earlier[name] + last[name] for name in ("seconds", "save_bytes") if name in last}
    stats = {**earlier, **sums, "num_steps": int(later.final.num_steps)}
    return dataclasses.replace(concatenate([path, later]), stats_items=tuple(stats.items()))


def _after(final: FlowState, begin: FlowState, jump: Array, decrease: float) -> FlowState:
    return dataclasses.replace(
        final,
        time=final.time + (begin.time + jump),
        num_steps=final.num_steps + begin.num_steps + 1,
        dissipated=final.dissipated + (begin.dissipated + decrease),
    )
