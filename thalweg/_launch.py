"""The same flow again and again, with other data: what depends on its structure alone is done once.

A small problem is solved in a tenth of a millisecond; to check it, to choose for it and to look its program up takes
the host twenty times as long. So a recipe that is called often keeps what it found the first time, and a second call is
one call of the compiled program, from the start to the end, with other arrays in the same places.
"""

import dataclasses
import itertools
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _compiled, _tree
from thalweg._chunks import Chunk, Facts, cut, pace_of, prepare_chunk, read_facts, remember_pace, run_traced
from thalweg._errors import Unavailable
from thalweg._flow import collected, prepare
from thalweg._loop import Place, Run, continued, next_chunk, on_device, pieces_of
from thalweg._path import FlowState, Path
from thalweg._result import RESULTS, member
from thalweg._saves import Saves
from thalweg._shapes import structure_of
from thalweg._types import State
from thalweg.energies import as_energy

_LARGEST = 256
# Buffers above this are cut to what was saved at once, those below when somebody looks.
_KEPT_BYTES = 2**20
# XLA runs a program whose every array is at most so large in one go, and hands the operations of any other to a queue,
# which for small problems takes three times as long. So where the state and a matrix over it are that small, nothing is
# saved on the way: whoever looks at the path has its steps taken again, by the same program and so to the same bits.
_SMALL_BYTES = 512
_NEVER = np.asarray(2**31 - 1, np.int32)


class _Known(NamedTuple):
    """A run as a compiled program, and its arrays but for those of the energy and of the state; whether it is small;
    whether its buffers are large.
    """

    run: Run
    program: Callable[[list[Any]], Any]
    between: list[Any]
    behind: list[Any]
    static: Any
    is_small: bool
    is_large: bool


_known: OrderedDict[Any, _Known] = OrderedDict()


def launch(
    name: Hashable,
    energy: Any,
    state: State,
    choose: Callable[[], dict[str, Any]],
    *,
    finish: Callable[[Path], Path] = lambda path: path,
    inside: Callable[[], Path] | None = None,
) -> Path:
    """`flow(energy, state, **choose(), throw=False)`, quick from the second time on.

    `name` stands for all that `choose` depends on. Only for choices that are checked and resolved by structure alone,
    not by the values of the energy's and the state's arrays (that those of the state are finite is looked at).
    `finish` is applied to the path. While JAX traces (`jax.jit`, `jax.vmap`, `jax.grad`), be it a value that the
    energy only closes over, `inside()` is returned in place of it; without it the path holds the start and the end,
    and has no derivatives.

    **Raises:** as [`thalweg.flow`][].
    """
    key = structure_of(launch, (name, energy, state))
    known = None if key is None else _known.get(key)
    if known is None and depends_on_traced(energy, state):
        return run_inside(energy, state, choose) if inside is None else inside()
    path = None
    if known is not None:
        _known.move_to_end(key)
        path = _relaunched(known, energy, state)
    elif key is not None:
        known = _known[key] = _as_known(prepare(energy, state, **choose()))
        while len(_known) > _LARGEST:
            _known.popitem(last=False)
        # A large run is begun like any other, a short chunk first: nobody knows yet how long its steps take.
        path = _relaunched(known, energy, state) if known.is_small else collected(pieces_of(known.run))
    if path is None:
        path = collected(pieces_of(prepare(energy, state, **choose())))
    return finish(path)


def depends_on_traced(energy: Any, state: State) -> bool:
    """Whether an energy or a state depends on a value that is only traced."""
    if any(_tree.is_traced(leaf) for leaf in jax.tree.leaves((energy, state))):
        return True
    try:
        closed = eqx.filter_make_jaxpr(energy)(state)[0]
    except Exception:  # What is wrong with it is said by the checks before a run.
        return False
    return any(_tree.is_traced(constant) for constant in closed.consts)


def run_inside(energy: Any, state: State, choose: Callable[[], dict[str, Any]]) -> Path:
    """The path of a run inside a function that JAX traces; to ask for a derivative of it is an error."""
    path = _traced(prepare(energy, state, **choose()))
    arrays, rest = eqx.partition(path, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(_without_derivative, arrays), rest)


@jax.custom_jvp
def _without_derivative(value: Any) -> Any:
    return value


@_without_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise TypeError(
        "This minimisation has no derivative: its steps end when the state no longer moves.\n"
        "`tw.minimise` without bounds and penalties has one (that of the minimiser); else use "
        "`jax.lax.stop_gradient` on what it reads,\nor a `tw.rollout` of a scheme with a derivative."
    )


def _traced(run: Run) -> Path:
    """The path of a run inside `jax.jit` or `jax.vmap`: its start and its end, for its length is not known."""
    flow_state, result, saves = run_traced(run.problem, run.blank, int(run.problem.last_step))
    times, states, records, measurements = saves
    saves = Saves(times, eqx.combine(states, flow_state.state), records, measurements)
    return run.path(flow_state, saves, result)


def _as_known(run: Run) -> _Known:
    num_bytes = _tree.num_bytes(eqx.filter(run.blank.state, eqx.is_array))
    itemsize = _tree.dtype_of(run.blank.state).itemsize
    is_small = num_bytes**2 <= _SMALL_BYTES * itemsize and run.problem.packing.num_bytes <= _SMALL_BYTES // 2
    problem = run.problem
    if is_small:
        problem = dataclasses.replace(problem, save_every=_NEVER, buffer_size=2)
    program, arrays = prepare_chunk(problem, run.blank, 0, begins=True)
    # A plain function has the arrays of the energy it becomes. An energy is the first field of a problem, the state
    # that of a flow state; a flag and a count come last.
    given, moved = len(_arrays(problem.energy)), len(_arrays(run.blank.state))
    in_problem = len(_arrays(problem))
    static = eqx.filter(run.blank, _compiled.is_array, inverse=True)
    bytes_kept = run.problem.buffer_size * _tree.num_bytes(eqx.filter(run.blank, eqx.is_array))
    # On the device, for there they are needed each time.
    between, behind = jax.device_put((arrays[given:in_problem], arrays[in_problem + moved : -2]))
    static = static if jax.tree.leaves(static) else None
    return _Known(run, program, between, behind, static, is_small, bytes_kept > _KEPT_BYTES)


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _compiled.is_array(leaf)]


def _relaunched(known: _Known, energy: Any, state: State) -> Path | None:
    """The path, or `None` where the start is not what it must be, which the slow way says better."""
    # A NumPy array may be written to before somebody looks at the path.
    given, moved = ([jnp.array(a) if isinstance(a, np.ndarray) else a for a in _arrays(t)] for t in (energy, state))
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in moved if getattr(leaf.dtype, "kind", "") == "f"):
        return None
    run = known.run.again(as_energy(energy) if given else None)

    def begin(num_steps: int) -> Chunk:
        last = np.True_, np.asarray(num_steps, np.int32)
        return known.program([*given, *known.between, *moved, *known.behind, *last])

    def go_on(arrays: Any, num_steps: int) -> Chunk:
        last = np.False_, np.asarray(num_steps, np.int32)
        return known.program([*given, *known.between, *jax.tree.leaves(arrays), *last])

    if known.is_small:
        return _small(known, run, begin, go_on)
    chunk = begin(pace_of(run.name))
    facts = read_facts(chunk)
    result, ended = _outcome(facts)
    if _never_began(facts):
        return None
    flow_state = _whole(known, chunk.arrays)
    # The record of the last state is behind the saves on schedule, unless it is one of them.
    end = facts.num_saves + (1 if ended and not facts.is_last_due else 0)
    if known.is_large:
        path = run.piece(flow_state, cut(run.problem, chunk.buffers, 0, end), result)
    else:
        path = run.path(flow_state, run.cut_later(chunk.buffers, end, flow_state), result)
    if ended:
        return path
    place = Place(flow_state, None, False, bool(facts.is_cut))
    return collected(itertools.chain([path], continued(run, place)))


def _small(known: _Known, run: Run, begin: Callable[[int], Chunk], go_on: Callable[[Any, int], Chunk]) -> Path | None:
    """The path of a small run, which saves nothing on the way."""
    num_steps = pace_of(run.name)
    chunk = begin(num_steps)
    facts = read_facts(chunk)
    if _never_began(facts):
        return None
    result, ended = _outcome(facts)
    try:
        while not ended:
            began = clock.perf_counter()
            chunk = go_on(chunk.arrays, num_steps)
            facts = read_facts(chunk)
            result, ended = _outcome(facts)
            num_steps = next_chunk(num_steps, clock.perf_counter() - began)
        remember_pace(run.name, num_steps)
    except KeyboardInterrupt:
        result = RESULTS.interrupted
    flow_state = _whole(known, chunk.arrays)
    every, taken = int(run.problem.save_every), facts.num_steps

    arrays = chunk.arrays

    def again() -> tuple[Any, ...]:
        try:
            chunk = begin(0)
            records = [cut(run.problem, chunk.buffers, 0, 1)]
            for done in range(0, taken, every):
                chunk = go_on(chunk.arrays, min(every, taken - done))
                # Nothing is due: the record of the last state stands first.
                records.append(cut(run.problem, chunk.buffers, 0, 1))
        except Exception as error:
            raise _cannot_repeat(f"{type(error).__name__}: {error}".splitlines()[0][:120]) from error
        if not _same_place(chunk.arrays, arrays):
            raise _cannot_repeat("it ends elsewhere than it did")
        return on_device(jax.tree.map(lambda *leaves: np.concatenate(leaves), *records), flow_state)

    path = run.path(flow_state, Saves.later(again), result)
    return collected(iter([path])) if result is RESULTS.interrupted else path


def _same_place(one: FlowState, other: FlowState) -> bool:
    pairs = zip(jax.tree.leaves((one.state, one.time)), jax.tree.leaves((other.state, other.time)), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)


def _cannot_repeat(reason: str) -> Unavailable:
    return Unavailable(
        f"The saves of this path are computed when they are first asked for, and cannot be any more: {reason}.\n"
        "What the function reads, or a setting of JAX, has changed since the run, or an array was deleted; "
        "look at the path before. `path.final` is what was reached."
    )


def _whole(known: _Known, arrays: Any) -> FlowState:
    return arrays if known.static is None else eqx.combine(arrays, known.static)


def _outcome(facts: Facts) -> tuple[Any, bool]:
    """The result of a chunk, and whether the run has come to its end."""
    result = member(facts.result)
    ended = bool(facts.is_over) or result is not RESULTS.successful
    if ended and not facts.is_finite and (result is RESULTS.successful or result is RESULTS.stopped):
        result = RESULTS.non_finite
    return result, ended


def _never_began(facts: Facts) -> bool:
    """Whether the energy has no value where the run was to begin."""
    return facts.num_steps == 0 and not facts.is_finite
