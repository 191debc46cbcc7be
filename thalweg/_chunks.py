"""Chunks of steps: what runs on the device between two looks of the host.

A chunk is one compiled loop with a dynamic count and a fixed buffer of saves, so no length is compiled twice. The same
program begins a run and goes on with it. Where a chunk ends changes no number: every step is the same compiled code,
whichever chunk it falls in.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _compiled, _tree
from thalweg._advance import attempt, initial_memory
from thalweg._measure import Snapshot, record
from thalweg._packing import Packing, packing_of
from thalweg._path import FlowState
from thalweg._result import RESULTS
from thalweg._types import PRNGKey
from thalweg.geometries import AbstractGeometry
from thalweg.schemes import AbstractScheme
from thalweg.states import moving

_INSIDE = (
    "`tw.flow` and `tw.iterate` drive their loop from the host, so they cannot run inside `jax.jit`, `jax.vmap` or "
    "`jax.grad`.\nUse `tw.rollout(...)`, the same flow as a pure function of a fixed number of steps, or `tw.minimise`."
)


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
    packing: Packing = eqx.field(static=True)
    buffer_size: int = eqx.field(static=True)


class Facts(NamedTuple):
    """What the host wants to know of a chunk at once: how many saves are on schedule, the number of the result, how
    many steps have been taken, whether the run has come to its end, whether its next step may be cut by `final_time`,
    whether the energy of the last record is finite, and whether that record is a save on schedule.
    """

    num_saves: Any
    result: Any
    num_steps: Any
    is_over: Any
    is_cut: Any
    is_finite: Any
    is_last_due: Any


class Chunk(NamedTuple):
    """What a chunk leaves: the arrays of the flow state, the result, the buffers of saves, and what the host is told.

    The buffers hold the saves on schedule and, after them, the record of the last state, whether it is due or not.
    """

    arrays: Any
    result: Any
    buffers: list[Any]
    facts: Any


def run_chunk(problem: Problem, flow_state: FlowState, num_steps: int, *, begins: bool = False) -> tuple[Any, ...]:
    """At most `num_steps` steps: the flow state after them, the result, the saves (one at each multiple of
    `save_every`, and of the start if the chunk `begins` the run), the record of the last state, and the facts.

    A chunk ends before the first step that `final_time` shortens, so that the host sees the last state which another
    `final_time` shares.
    """
    try:
        chunk = _compiled.call(_chunk, *chunk_arguments(problem, flow_state, num_steps, begins))
    except ValueError as error:
        # How JAX says that a program with options of its own is called where it traces another one.
        if "top-level" in str(error):
            raise TypeError(_INSIDE) from None
        raise
    if any(_tree.is_traced(leaf) for leaf in jax.tree.leaves(chunk)):
        raise TypeError(_INSIDE)
    facts = read_facts(chunk)
    saves = cut(problem, chunk.buffers, 0, facts.num_saves)
    tail = cut(problem, chunk.buffers, last_record(facts), last_record(facts) + 1)
    static = eqx.filter(flow_state, eqx.is_array, inverse=True)
    return eqx.combine(chunk.arrays, static), on_host(chunk.result), saves, tail, facts


def run_traced(problem: Problem, blank: FlowState, num_steps: int) -> tuple[FlowState, Any, tuple[Any, ...]]:
    """The whole run inside a function that JAX traces: the last flow state, the result, and the saves of the start and
    the end.
    """
    every = dataclasses.replace(problem, save_every=np.asarray(num_steps, np.int32), buffer_size=2)
    chunk = _chunk(every, blank, *chunk_arguments(problem, blank, num_steps, True)[2:])
    # The end is behind the start whether it is due, at the last of all steps, or not.
    saves = _unpack(jax.vmap(problem.packing.unpack)([room[:2] for room in chunk.buffers]))
    static = eqx.filter(blank, eqx.is_array, inverse=True)
    return eqx.combine(chunk.arrays, static), chunk.result, saves


def on_host(result: Any) -> Any:
    """A result as it may be asked many times."""
    return jax.tree.map(np.asarray, result)


def record_once(problem: Problem, flow_state: FlowState) -> tuple[Any, ...]:
    """The save of one state: `(times, states, records, measurements)`, each with a leading axis of length one."""
    return _unpack(jax.tree.map(lambda leaf: np.asarray(leaf)[None], _compiled.call(entry_of, problem, flow_state)))


def chunk_arguments(problem: Problem, flow_state: FlowState, num_steps: int, begins: bool) -> tuple[Any, ...]:
    """The arguments of the compiled function of a chunk."""
    return problem, flow_state, np.asarray(begins), np.asarray(num_steps, np.int32)


def prepare_chunk(problem: Problem, flow_state: FlowState, num_steps: int, begins: bool) -> _compiled.Call:
    """The compiled function of a chunk, to be called with other arrays in the same places."""
    return _compiled.prepared(_chunk, *chunk_arguments(problem, flow_state, num_steps, begins))


def read_facts(chunk: Chunk) -> Facts:
    """The facts as Python numbers; waits for the chunk."""
    return Facts(*np.asarray(chunk.facts).tolist())


def last_record(facts: Facts) -> int:
    """Where in the buffers the record of the last state is."""
    return facts.num_saves - 1 if facts.is_last_due else facts.num_saves


def cut(problem: Problem, buffers: list[Any], start: int, end: int) -> tuple[Any, ...]:
    """The saves from `start` to `end` as `(times, states, records, measurements)`, copied, so that they do not hold on
    to the whole buffer.
    """
    return _unpack(problem.packing.take(buffers, start, end))


def _chunk(problem: Problem, flow_state: FlowState, begins: Any, num_steps: Any) -> Chunk:
    arrays, static = eqx.partition(flow_state, eqx.is_array)
    choices = problem.energy, problem.geometry, problem.scheme

    def begun() -> Any:
        memory = initial_memory(*choices, flow_state.state, problem.key)
        return eqx.filter(eqx.tree_at(lambda s: s.memory, flow_state, memory, is_leaf=_is_none), eqx.is_array)

    # In a few rows while the steps are taken: see `Packing`.
    layout = packing_of(arrays)
    rows = layout.pack(jax.lax.cond(begins, begun, lambda: arrays))
    # One place more than there are saves, for the record of the last state.
    buffers = problem.packing.blank(problem.buffer_size + 1)
    began_cut = _cut_short(problem, layout.unpack(rows).time)

    def body(carry: _Carry) -> _Carry:
        def step() -> tuple[list[Any], Any]:
            here = eqx.combine(layout.unpack(carry.rows), static)
            moved, result = attempt(*choices, here, problem.key, problem.final_time)
            new = layout.pack(eqx.filter(moved, eqx.is_array))
            return _tree.where(result == RESULTS.successful, new, carry.rows), result

        rows, result = jax.lax.cond(carry.begins, lambda: (carry.rows, RESULTS.successful), step)
        moved = eqx.combine(layout.unpack(rows), static)
        good = result == RESULTS.successful
        # Saves on schedule only: one at the end of the run would not be there in a longer run.
        due = good & (moved.num_steps % problem.save_every == 0)
        if problem.stop is not None:
            stopped = ~carry.begins & _asks_to_stop(problem, moved)
            result = RESULTS.where(good & stopped, RESULTS.stopped, result)
        taken = carry.taken + (~carry.begins).astype(jnp.int32)
        num_saves = carry.num_saves + due.astype(jnp.int32)
        fits = (taken < num_steps) & (num_saves < problem.buffer_size)
        same = began_cut | ~_cut_short(problem, moved.time)
        going = fits & same & ~_is_over(problem, moved.num_steps, moved.time) & (result == RESULTS.successful)

        def write(buffers: list[Any]) -> list[Any]:
            return problem.packing.put(buffers, carry.num_saves, entry_of(problem, moved))

        buffers = jax.lax.cond(due | ~going, write, lambda b: b, carry.buffers)
        return _Carry(rows, result, buffers, num_saves, taken, jnp.asarray(False), going, due)

    zero, yes = jnp.asarray(0, jnp.int32), jnp.asarray(True)
    carry = _Carry(rows, RESULTS.successful, buffers, zero, zero, jnp.asarray(begins), yes, yes)
    carry = jax.lax.while_loop(lambda carry: carry.going, body, carry)
    end, buffers = layout.unpack(carry.rows), carry.buffers
    last = carry.num_saves - carry.is_due.astype(jnp.int32)
    energy = problem.packing.look_at(buffers, last, _energy_of)
    facts = Facts(
        carry.num_saves,
        carry.result._value,  # pyright: ignore
        end.num_steps,
        _is_over(problem, end.num_steps, end.time),
        _cut_short(problem, end.time),
        jnp.isfinite(energy),
        carry.is_due,
    )
    return Chunk(end, carry.result, buffers, jnp.stack([jnp.asarray(fact).astype(jnp.int32) for fact in facts]))


class _Carry(NamedTuple):
    rows: list[Any]
    result: Any
    buffers: Any
    num_saves: Any
    taken: Any
    begins: Any
    going: Any
    is_due: Any


def _is_none(leaf: Any) -> bool:
    return leaf is None


def entry_of(problem: Problem, flow_state: FlowState) -> dict[str, Any]:
    """What one save holds, by name; traced into the chunk."""
    return entry(problem.energy, problem.geometry, problem.measure, problem.available, flow_state)


def entry(energy: Any, geometry: Any, measure: Any, available: tuple[bool, bool], flow_state: FlowState) -> Any:
    """The same from what it depends on."""
    entry = record(energy, geometry, measure, available, flow_state.state)
    entry["measurements"] = {**flow_state.stats, **entry["measurements"]}
    return {
        **entry,
        "times": flow_state.time,
        # Only what moves: the data inside a family would otherwise be copied into every save.
        "states": moving(flow_state.state),
        "distances_squared": flow_state.distance_squared,
        "dissipated": flow_state.dissipated,
    }


def _energy_of(entry: dict[str, Any]) -> Any:
    return entry["energies"] if "energies" in entry else entry["measurements"]["regular_energy"]


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


def remember_pace(name: Any, num_steps: int) -> None:
    """Keep the pace of a problem for its next run."""
    if name is not None:
        _paces[name] = num_steps
        _paces.move_to_end(name)
        while len(_paces) > 256:
            _paces.popitem(last=False)
