"""The same flow again and again, with other data: what depends on its structure alone is done once.

A small problem is solved in a tenth of a millisecond; to check it, to choose for it and to look its program up takes
the host twenty times as long. So a recipe that is called often keeps what it found the first time, and a second call is
one call of the compiled program, from the start to the end, with other arrays in the same places.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from thalweg import _compiled, _tree
from thalweg._chunks import cut, pace_of, prepare_chunk, read_facts, run_traced
from thalweg._flow import collected, prepare
from thalweg._loop import Place, Run, continued, pieces_of
from thalweg._path import Path
from thalweg._result import RESULTS, member
from thalweg._saves import Saves
from thalweg._shapes import structure_of
from thalweg._types import State
from thalweg.energies import as_energy

_LARGEST = 256
# Buffers above this are cut to what was saved at once, those below when somebody looks.
_KEPT_BYTES = 2**20


class _Known(NamedTuple):
    """A run as a compiled program, and its arrays but for those of the energy and of the state."""

    run: Run
    program: Callable[[list[Any]], Any]
    between: list[Any]
    behind: list[Any]
    static: Any
    is_large: bool


_known: OrderedDict[Any, _Known] = OrderedDict()


def launch(name: Hashable, energy: Any, state: State, choose: Callable[[], dict[str, Any]]) -> Path:
    """`flow(energy, state, **choose(), throw=False)`, quick from the second time on.

    `name` stands for all that `choose` depends on. Only for choices that are checked and resolved by structure alone,
    not by the values of the energy's and the state's arrays (that those of the state are finite is looked at).

    While JAX traces (`jax.jit`, `jax.vmap`) the path holds the start and the end.

    **Raises:** as [`thalweg.flow`][].
    """
    if any(_tree.is_traced(leaf) for leaf in jax.tree.leaves((energy, state))):
        return _traced(prepare(energy, state, **choose()))
    key = structure_of(launch, (name, energy, state))
    known = None if key is None else _known.get(key)
    if known is None:
        run = prepare(energy, state, **choose())
        if key is not None:
            _known[key] = _as_known(run)
            while len(_known) > _LARGEST:
                _known.popitem(last=False)
        return collected(pieces_of(run))
    _known.move_to_end(key)
    path = _relaunched(known, energy, state)
    return collected(pieces_of(prepare(energy, state, **choose()))) if path is None else path


def _traced(run: Run) -> Path:
    """The path of a run inside `jax.jit` or `jax.vmap`: its start and its end, for its length is not known."""
    flow_state, result, saves = run_traced(run.problem, run.blank, int(run.problem.last_step))
    times, states, records, measurements = saves
    saves = Saves(times, eqx.combine(states, flow_state.state), records, measurements)
    return run.path(flow_state, saves, result)


def _as_known(run: Run) -> _Known:
    program, arrays = prepare_chunk(run.problem, run.blank, 0, begins=True)
    # A plain function has the arrays of the energy it becomes. An energy is the first field of a problem, the state
    # that of a flow state; a flag and a count come last.
    given, moved = len(_arrays(run.problem.energy)), len(_arrays(run.blank.state))
    in_problem = len(_arrays(run.problem))
    static = eqx.filter(run.blank, _compiled.is_array, inverse=True)
    bytes_kept = run.problem.buffer_size * _tree.num_bytes(eqx.filter(run.blank, eqx.is_array))
    # On the device, for there they are needed each time.
    between, behind = jax.device_put((arrays[given:in_problem], [*arrays[in_problem + moved : -2], np.True_]))
    nothing = not jax.tree.leaves(static)
    return _Known(run, program, between, behind, None if nothing else static, bytes_kept > _KEPT_BYTES)


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _compiled.is_array(leaf)]


def _relaunched(known: _Known, energy: Any, state: State) -> Path | None:
    """The path, or `None` where the start is not what it must be, which the slow way says better."""
    given, moved = _arrays(energy), _arrays(state)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in moved if getattr(leaf.dtype, "kind", "") == "f"):
        return None
    run = known.run.again(as_energy(energy) if given else None)
    # Not long enough to wait for: at Ctrl-C in the first chunk there is no path.
    pace = np.asarray(pace_of(run.name), np.int32)
    chunk = known.program([*given, *known.between, *moved, *known.behind, pace])
    facts = read_facts(chunk)
    result = member(facts.result)
    if result is RESULTS.non_finite and facts.num_steps == 0:
        return None
    flow_state = chunk.arrays if known.static is None else eqx.combine(chunk.arrays, known.static)
    ended = bool(facts.is_over) or result is not RESULTS.successful
    if ended and not facts.is_finite and (result is RESULTS.successful or result is RESULTS.stopped):
        result = RESULTS.non_finite
    # The record of the last state is behind the saves on schedule, unless it is one of them.
    end = facts.num_saves + (1 if ended and not facts.is_last_due else 0)
    if known.is_large:
        saves = cut(run.problem, chunk.buffers, 0, end)
        path = run.piece(flow_state, saves, result)
    else:
        path = run.path(flow_state, run.cut_later(chunk.buffers, end, flow_state), result)
    if ended:
        return collected(iter([path]))
    place = Place(flow_state, None, False, bool(facts.is_cut))
    return collected(itertools.chain([path], continued(run, place)))
