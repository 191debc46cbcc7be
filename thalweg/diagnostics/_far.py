"""What an energy does far along a line, and whether its slope jumps: where a flow has found no minimum.

Nothing that is computed proves that a function has no lower bound. What can be said is that F falls along a straight
line at every length looked at, each four times the last, over forty orders of magnitude (fifteen in float32).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _compiled
from thalweg._types import Array, Scalar, State
from thalweg.diagnostics._stationarity import LARGEST_DENSE
from thalweg.energies import AbstractEnergy
from thalweg.states import moving

_FACTOR = 4.0


class FarAway(NamedTuple):
    """What was seen along a line: `never_rises`, to its end or that of the numbers (but at least over twelve orders of
    magnitude; six in float32); `without_bound`: at the end F still falls in proportion to a power of the length, and
    has fallen by twenty orders of magnitude (eight) more than its size was.
    """

    never_rises: bool
    without_bound: bool


def far_away(energy: AbstractEnergy, state: State, step: Array, size: float) -> FarAway:
    """What the energy does from a state along a step, an array of the flattened coordinates, and its multiples; `size`
    is that of the energy where the flow began.
    """
    step = jnp.asarray(step)
    info = np.finfo(step.dtype)
    largest = float(jnp.max(jnp.abs(step)))
    if not 0 < largest < np.inf:
        return FarAway(False, False)
    values = np.asarray(
        _compiled.call(_along, energy, state, step / largest, jnp.asarray(largest, step.dtype)), np.float64
    )
    here, values = values[0], values[1:]
    ends = np.flatnonzero(~np.isfinite(values))
    # Where the numbers end in −∞, F fell to the last.
    values = values[: ends[0]] if len(ends) else values
    double = info.precision > 10
    if len(values) < np.log(10) / np.log(_FACTOR) * (12 if double else 6):
        return FarAway(False, False)
    all_values = np.concatenate([[here], values])
    rounding = 64 * float(info.eps) * np.abs(all_values[:-1])
    never_rises = bool(np.all(np.diff(all_values) <= rounding))
    fallen = here - values
    # At least as F ~ −length^(1/4), over the last eight orders of magnitude or four.
    last = fallen[-(14 if double else 7) :]
    growing = bool(np.all(last[1:] >= 2**0.5 * last[:-1]) and last[0] > 0)
    deep = values[-1] < -(1e20 if double else 1e8) * size
    return FarAway(never_rises, never_rises and growing and bool(deep))


def _along(energy: AbstractEnergy, state: State, direction: Array, first: Scalar) -> Array:
    flat, unravel = ravel_pytree(moving(state))
    # Not until numbers end: what rounding has left of the other directions would be felt there.
    count = int(np.log(10) / np.log(_FACTOR) * (40 if jnp.finfo(flat.dtype).precision > 10 else 15)) + 1
    exponents = jnp.arange(count, dtype=flat.dtype)
    powers = first * jnp.asarray(_FACTOR, flat.dtype) ** exponents
    lengths = jnp.concatenate([jnp.zeros(1, flat.dtype), powers])

    def value(length: Scalar) -> Scalar:
        return jnp.asarray(energy(eqx.combine(unravel(flat + length * direction), state)), flat.dtype)

    return jax.vmap(value)(lengths) if flat.size <= LARGEST_DENSE else jax.lax.map(value, lengths)


def slope_jumps(energy: AbstractEnergy, state: State, directions: Array, span: float) -> bool:
    """Whether the slope along one of the directions (rows) jumps at the state: whether its change from one side to the
    other stays the same as the two sides come together, from a part in 10⁴ of `span` to one in 10⁹ (10⁵ in float32).

    Where F has second derivatives the change is in proportion to the distance.
    """
    double = np.finfo(np.asarray(directions).dtype).precision > 10
    lengths = span * np.logspace(-4, -9, 6) if double else span * np.logspace(-2, -5, 4)
    jumps, sizes = _compiled.call(_jumps, energy, state, directions, jnp.asarray(lengths, directions.dtype))
    jumps, sizes = np.asarray(jumps, np.float64), np.asarray(sizes, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        same = np.abs(np.diff(jumps, axis=1)) < 0.1 * np.abs(jumps[:, 1:])
    return bool(np.any(np.all(same, axis=1) & np.all(jumps > 1e-3 * sizes, axis=1)))


def _jumps(energy: AbstractEnergy, state: State, directions: Array, lengths: Array) -> tuple[Array, Array]:
    flat, unravel = ravel_pytree(moving(state))
    value = lambda z: jnp.asarray(energy(eqx.combine(unravel(z), state)), z.dtype)  # noqa: E731

    def slope(direction: Array, length: Scalar) -> Scalar:
        return jnp.vdot(jax.grad(value)(flat + length * direction), direction)

    def both(direction: Array) -> tuple[Array, Array]:
        ahead, behind = (jax.lax.map(lambda h: slope(direction, h), sign * lengths) for sign in (1, -1))
        return ahead - behind, jnp.abs(ahead) + jnp.abs(behind)

    return jax.lax.map(both, directions)
