"""One step of a flow, shared by `flow` and `rollout`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._path import FlowState
from thalweg._result import RESULTS
from thalweg._shapes import shapes_of
from thalweg._types import PRNGKey, Scalar, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, admissibility_in
from thalweg.schemes import AbstractScheme


def begin(
    energy: AbstractEnergy, geometry: AbstractGeometry, scheme: AbstractScheme, state: State, key: PRNGKey | None
) -> FlowState:
    """The flow before its first step; every number gets a definite dtype so that no step changes the types."""
    dtype = _tree.dtype_of(state)
    state = jax.tree.map(_strong, state)
    memory = initial_memory(energy, geometry, scheme, state, key)
    _, _, info = shapes_of(_step, scheme, energy, geometry, state, memory, _init_key(key))
    stats = {name: jnp.zeros(value.shape, value.dtype) for name, value in info.stats.items()}
    zero = jnp.zeros((), dtype)
    return FlowState(state, memory, zero, zero, jnp.zeros((), jnp.int32), zero, zero, stats)


def blank(
    energy: AbstractEnergy, geometry: AbstractGeometry, scheme: AbstractScheme, state: State, key: PRNGKey | None
) -> FlowState:
    """`begin(...)` with a memory of zeros, found by shapes alone: what a compiled loop fills in when it begins."""
    state = jax.tree.map(_strong, state)
    shapes = shapes_of(begin, energy, geometry, scheme, state, key)
    return eqx.tree_at(lambda s: s.state, jax.tree.map(_zeros, shapes), state, is_leaf=lambda leaf: leaf is None)


def initial_memory(
    energy: AbstractEnergy, geometry: AbstractGeometry, scheme: AbstractScheme, state: State, key: PRNGKey | None
) -> Any:
    """What the scheme remembers before the first step."""
    return jax.tree.map(_strong, scheme.init(energy, geometry, state, _init_key(key)))


def _init_key(key: PRNGKey | None) -> PRNGKey | None:
    return None if key is None else jax.random.fold_in(key, 2**31 - 1)


def _zeros(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return np.zeros(leaf.shape, leaf.dtype)


def advance(
    energy: AbstractEnergy,
    geometry: AbstractGeometry,
    scheme: AbstractScheme,
    flow_state: FlowState,
    key: PRNGKey | None,
    final_time: Scalar | None,
) -> tuple[FlowState, Any]:
    """The flow one step on, or unchanged if the step failed, and what became of it."""
    new, result = attempt(energy, geometry, scheme, flow_state, key, final_time)
    return _tree.where(result == RESULTS.successful, new, flow_state), result


def attempt(
    energy: AbstractEnergy,
    geometry: AbstractGeometry,
    scheme: AbstractScheme,
    flow_state: FlowState,
    key: PRNGKey | None,
    final_time: Scalar | None,
) -> tuple[FlowState, Any]:
    """The flow after one step, whatever became of it, and what did."""
    time, old = flow_state.time, flow_state
    step_key = None if key is None else jax.random.fold_in(key, old.num_steps)
    energy_key = None if step_key is None else jax.random.fold_in(step_key, 1)
    # The energy is frozen for the step: schedules see the time, mini-batches the key.
    frozen = energy.at(time, energy_key)
    if final_time is not None:
        scheme = scheme.limit(final_time - time)
    state, memory, info = scheme.step(frozen, geometry, old.state, old.memory, step_key)
    result = RESULTS.where(info.result == RESULTS.successful, admissibility_in(geometry, state), info.result)
    # A NaN says more than the solver that tripped over it.
    result = RESULTS.where(_tree.all_finite(state), result, RESULTS.non_finite)
    # Compensated summation: a million small steps in float32 still add up.
    increment = info.step_size.astype(time.dtype) - old.time_rest
    new_time = time + increment
    rest = (new_time - time) - increment
    if final_time is not None:
        arrived = jnp.abs(final_time - new_time) <= 64 * jnp.finfo(time.dtype).eps * jnp.abs(final_time)
        new_time = jnp.where(arrived, final_time, new_time)
    new = FlowState(
        _like(state, old.state),
        _like(memory, old.memory),
        new_time,
        rest,
        old.num_steps + 1,
        info.distance_squared.astype(time.dtype),
        old.dissipated + info.dissipated.astype(time.dtype),
        info.stats,
    )
    return new, result


def _step(scheme: AbstractScheme, *args: Any) -> Any:
    return scheme.step(*args)


def _strong(leaf: Any) -> Any:
    if not _is_number(leaf) or not leaf.weak_type:
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _like(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: a.astype(b.dtype) if _is_number(a) else a, new, old)
