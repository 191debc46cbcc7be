"""Chunks of steps: what runs on the device between two looks of the host.

A chunk is one compiled loop with a dynamic count and a fixed buffer of saves, so no length is compiled twice. Where a
chunk ends changes no number: every step is the same compiled code, whichever chunk it falls in.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._advance import advance
from thalweg._measure import Snapshot, record
from thalweg._path import FlowState
from thalweg._result import RESULTS
from thalweg._types import PRNGKey
from thalweg.geometries import AbstractGeometry
from thalweg.schemes import AbstractScheme
from thalweg.states import moving


class Problem(eqx.Module):
    """What stays the same from chunk to chunk."""

    energy: Any
    geometry: AbstractGeometry
    scheme: AbstractScheme
    measure: Callable[..., Any] | None
    stop: Callable[..., Any] | None
    key: PRNGKey | None
    final_time: Any
    last_step: Any
    save_every: Any
    available: tuple[bool, bool] = eqx.field(static=True)
    buffer_size: int = eqx.field(static=True)


def run_chunk(problem: Problem, flow_state: FlowState, chunk_steps: int) -> tuple[FlowState, Any, tuple[Any, ...]]:
    """At most `chunk_steps` steps: the flow state after them, the result, and the saves, one at each multiple of
    `save_every`.

    A chunk ends before the first step that `final_time` shortens, so that the host sees the last state which another
    `final_time` shares.
    """
    arrays, static = eqx.partition(flow_state, eqx.is_array)
    arrays, result, buffers, num_saved = _run_chunk(problem, arrays, static, jnp.asarray(chunk_steps, jnp.int32))
    count = int(num_saved)
    # A copy, so that the piece does not hold on to the whole buffer.
    saves = jax.tree.map(lambda leaf: np.asarray(leaf)[:count].copy(), buffers)
    # On the host, where it is asked many times.
    result = jax.tree.map(np.asarray, result)
    return eqx.combine(arrays, static), result, _unpack(saves)


@eqx.filter_jit
def _run_chunk(problem: Problem, arrays: Any, static: Any, chunk_steps: Any) -> tuple[Any, Any, Any, Any]:
    shapes = jax.eval_shape(lambda a: entry_of(problem, eqx.combine(a, static)), arrays)
    buffers = jax.tree.map(lambda s: jnp.zeros((problem.buffer_size, *s.shape), s.dtype), shapes)
    began_cut = _cut_short(problem, arrays.time)

    def unfinished(carry: Any) -> Any:
        arrays, result, _, saved, taken = carry
        fits = (taken < chunk_steps) & (saved < problem.buffer_size)
        over = _is_over(problem, arrays.num_steps, arrays.time)
        same = began_cut | ~_cut_short(problem, arrays.time)
        return fits & same & ~over & (result == RESULTS.successful)

    def body(carry: Any) -> Any:
        arrays, _, buffers, saved, taken = carry
        moved, result = advance(
            problem.energy,
            problem.geometry,
            problem.scheme,
            eqx.combine(arrays, static),
            problem.key,
            problem.final_time,
        )
        # Saves on schedule only: one at the end of the run would not be there in a longer run.
        save = (result == RESULTS.successful) & (moved.num_steps % problem.save_every == 0)
        if problem.stop is not None:
            stopped = _asks_to_stop(problem, moved)
            result = RESULTS.where((result == RESULTS.successful) & stopped, RESULTS.stopped, result)
        arrays = eqx.filter(moved, eqx.is_array)

        def write(buffers: Any) -> Any:
            entry = entry_of(problem, moved)
            return jax.tree.map(lambda b, e: b.at[saved].set(e.astype(b.dtype)), buffers, entry)

        buffers = jax.lax.cond(save, write, lambda b: b, buffers)
        return arrays, result, buffers, saved + save.astype(jnp.int32), taken + 1

    zero = jnp.asarray(0, jnp.int32)
    carry = (arrays, RESULTS.successful, buffers, zero, zero)
    arrays, result, buffers, saved, _ = jax.lax.while_loop(unfinished, body, carry)
    return arrays, result, buffers, saved


def record_once(problem: Problem, flow_state: FlowState) -> tuple[Any, ...]:
    """The save of one state: `(times, states, records, measurements)`, each with a leading axis of length one."""
    return _unpack(jax.tree.map(lambda leaf: np.asarray(leaf)[None], _record_jitted(problem, flow_state)))


@eqx.filter_jit
def _record_jitted(problem: Problem, flow_state: FlowState) -> dict[str, Any]:
    return entry_of(problem, flow_state)


def entry_of(problem: Problem, flow_state: FlowState) -> dict[str, Any]:
    """What one save holds, by name; traced into the chunk."""
    entry = record(problem.energy, problem.geometry, problem.measure, problem.available, flow_state.state)
    entry["measurements"] = {**flow_state.stats, **entry["measurements"]}
    return {
        **entry,
        "times": flow_state.time,
        # Only what moves: the data inside a family would otherwise be copied into every save.
        "states": moving(flow_state.state),
        "distances_squared": flow_state.distance_squared,
        "dissipated": flow_state.dissipated,
    }


def save_shapes(problem: Problem, flow_state: FlowState) -> tuple[Any, ...]:
    """The shapes and dtypes of a save, without its leading axis."""
    return _unpack(eqx.filter_eval_shape(entry_of, problem, flow_state))


def _unpack(entry: dict[str, Any]) -> tuple[Any, ...]:
    entry = dict(entry)
    times, states, measurements = entry.pop("times"), entry.pop("states"), entry.pop("measurements")
    return times, states, entry, measurements


def _asks_to_stop(problem: Problem, moved: FlowState) -> Any:
    entry = record(problem.energy, problem.geometry, None, problem.available, moved.state)
    nothing = jnp.asarray(jnp.nan, moved.time.dtype)
    snapshot = Snapshot(
        moved.time, moved.state, entry.get("energies", nothing), entry.get("dissipation_rates", nothing), moved.stats
    )
    assert problem.stop is not None
    return jnp.asarray(problem.stop(snapshot), bool)


def _is_over(problem: Problem, num_steps: Any, time: Any) -> Any:
    over = num_steps >= problem.last_step
    return over if problem.final_time is None else over | (time >= problem.final_time)


def is_finished(problem: Problem, flow_state: FlowState) -> bool:
    """Whether the last step or the final time has been reached."""
    return bool(_is_over(problem, flow_state.num_steps, flow_state.time))


def is_cut_short(problem: Problem, flow_state: FlowState) -> bool:
    """Whether the next step may come out otherwise than it would with a later `final_time`."""
    return problem.final_time is not None and bool(_cut_short(problem, flow_state.time))


def _cut_short(problem: Problem, time: Any) -> Any:
    if problem.final_time is None:
        return jnp.asarray(False)
    # A little less than remains: a step that ends at `final_time` to rounding is moved onto it, so it counts as cut.
    margin = 64 * jnp.finfo(time.dtype).eps * jnp.abs(problem.final_time)
    limited = problem.scheme.limit(problem.final_time - time - margin)
    leaves = jax.tree.leaves(limited), jax.tree.leaves(problem.scheme)
    if len(leaves[0]) != len(leaves[1]):
        return jnp.asarray(True)
    changed = [jnp.any(a != jnp.asarray(b, a.dtype)) for a, b in zip(*leaves, strict=True) if eqx.is_array(a)]
    return jnp.any(jnp.stack(changed)) if changed else jnp.asarray(False)


# How many steps filled a chunk of the problems met last: a second run need not find out again.
_paces: OrderedDict[Any, int] = OrderedDict()


def pace_of(name: Any) -> int:
    """How many steps to begin with, for a problem known by its structure (`None`: unknown)."""
    return 1 if name is None else _paces.get(name, 1)


def remember_pace(name: Any, chunk_steps: int) -> None:
    """Keep the pace of a problem for its next run."""
    if name is not None:
        _paces[name] = chunk_steps
        _paces.move_to_end(name)
        while len(_paces) > 256:
            _paces.popitem(last=False)
