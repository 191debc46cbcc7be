"""The host loop: a run that has been checked, driven chunk by chunk, with everything that happens between chunks."""

import copy
import time as clock
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._chunks import (
    Problem,
    cut,
    is_cut_short,
    is_finished,
    pace_of,
    record_once,
    remember_pace,
    run_chunk,
)
from thalweg._errors import CheckpointError
from thalweg._fingerprint import fingerprint
from thalweg._interrupt import Interruptions
from thalweg._path import FlowState, Path, make_path
from thalweg._result import RESULTS, is_member
from thalweg._saves import Saves
from thalweg._shapes import structure_of
from thalweg.energies import AbstractEnergy
from thalweg.schemes import AbstractScheme

# A chunk should last long enough to hide the host and short enough for progress and Ctrl-C.
_CHUNK_SECONDS = 0.1


class Progress(NamedTuple):
    """What a progress callback is told between chunks; `fraction` is how much is done, `energy` is `None` where it
    has no value.
    """

    num_steps: int
    time: float
    fraction: float
    energy: float | None
    dissipation_rate: float | None
    seconds: float


@runtime_checkable
class Checkpointer(Protocol):
    """What `checkpoint=` must offer; [`thalweg.Checkpoint`][] is one.

    `until` is the `final_time` that has begun to shorten steps, or `None` while the run is still what it would be with
    any other end. A store with `until` leaves the last one without it in place, for a run to a later time.
    """

    def restore(
        self, fingerprint: str, flow_state: Any, saves: Any, until: float | None
    ) -> tuple[Any, list[Any], float | None] | None:
        """The stored flow state and saves, shaped like those given, and the `until` they were stored with: the one
        asked for, else `None`. `None` for everything if there is nothing stored.
        """

    def store(
        self, fingerprint: str, flow_state: Any, pieces: list[Any], *, force: bool, until: float | None = None
    ) -> None:
        """Store the flow state and the pieces saved since the last call, if it is time."""

    def close(self) -> None:
        """The run is over; called once after each `restore`."""


class Run:
    """A flow that has been checked: what stays the same, where it begins (its memory still blank), and what is known
    of it.
    """

    def __init__(
        self,
        problem: Problem,
        blank: FlowState,
        final_time: float | None,
        unavailable: dict[str, str],
        stats: dict[str, Any],
    ):
        self.problem, self.blank, self.final_time = problem, blank, final_time
        self.unavailable, self.stats = unavailable, stats
        self.started = clock.perf_counter()
        # Looked up by structure once: a copy of the run keeps it.
        self.name = structure_of(run_chunk, (problem, blank))

    def again(self, energy: AbstractEnergy | None) -> "Run":
        """The same run, from now, with another energy of the same structure (`None`: the same one)."""
        run = copy.copy(self)
        run.started, run.stats = clock.perf_counter(), dict(self.stats)
        if energy is not None:
            run.problem = eqx.tree_at(lambda p: p.energy, self.problem, energy)
        return run

    def seconds(self) -> float:
        """How long ago it began."""
        return clock.perf_counter() - self.started

    def path(self, flow_state: FlowState, saves: Saves, result: Any) -> Path:
        """The path of these saves, which ends at the flow state."""
        problem, scheme, extras = self.problem, self.problem.scheme, {}
        if type(scheme).finish is not AbstractScheme.finish:
            extras = scheme.finish(problem.energy, problem.geometry, flow_state.state, flow_state.memory)
        stats = dict(self.stats)
        if not _tree.is_traced(flow_state.num_steps):
            stats |= {"seconds": round(self.seconds(), 6), "num_steps": int(np.asarray(flow_state.num_steps))}
        return make_path(saves, result, flow_state, extras, self.unavailable, stats)

    def piece(self, flow_state: FlowState, saves: tuple[Any, ...], result: Any) -> Path:
        """The same of saves that are NumPy arrays, which JAX is given when they are asked for."""

        return self.path(flow_state, Saves.later(lambda: on_device(saves, flow_state)), result)

    def cut_later(self, buffers: list[Any], end: int, flow_state: FlowState) -> Saves:
        """The saves before `end`, cut out of the buffers when they are asked for."""
        return Saves.later(lambda: on_device(cut(self.problem, buffers, 0, end), flow_state))


def on_device(saves: tuple[Any, ...], flow_state: FlowState) -> tuple[Any, ...]:
    """The parts of a path's saves as JAX arrays."""
    times, states, records, measurements = jax.device_put(saves)
    # A save holds what moves; the rest of the state (functions, data) is that of the flow.
    return times, eqx.combine(states, flow_state.state), records, measurements


class Place(NamedTuple):
    """Where a run stands between two chunks: its state, the record of it, whether it is over, and whether the next step
    may be cut by the final time.
    """

    flow_state: FlowState
    record: tuple[Any, ...] | None
    is_over: bool
    is_cut: bool


def pieces_of(
    run: Run, progress: Callable[[Progress], Any] | None = None, checkpoint: Checkpointer | None = None
) -> Iterator[Path]:
    """The pieces of the path from the start, or from where the checkpoint stands, to the end."""
    place, first = _begin(run)
    if checkpoint is None:
        yield run.piece(place.flow_state, first, RESULTS.successful)
        yield from continued(run, place, progress)
        return
    name = fingerprint(run.problem, place.flow_state)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), first)
    restored = checkpoint.restore(name, place.flow_state, shapes, run.final_time)
    try:
        until, earlier, store = None, [first], _Store(checkpoint, name)
        if restored is None:
            store(place.flow_state, first, force=True)
        else:
            place, earlier, until = _restored(run, *restored)
        for saves in earlier:
            yield run.piece(place.flow_state, saves, RESULTS.successful)
        store.until = until
        yield from continued(run, place, progress, store)
    finally:
        checkpoint.close()


class _Store:
    """The checkpoint of one run; what is stored with `until` set belongs to that final time alone."""

    def __init__(self, checkpoint: Checkpointer, name: str):
        self.checkpoint, self.name = checkpoint, name
        self.until: float | None = None

    def __call__(self, where: FlowState, saves: tuple[Any, ...] | None, *, force: bool) -> None:
        pieces = [saves] if saves is not None and len(saves[0]) else []
        self.checkpoint.store(self.name, where, pieces, force=force, until=self.until)


def continued(
    run: Run, place: Place, progress: Callable[[Progress], Any] | None = None, store: _Store | None = None
) -> Iterator[Path]:
    """The pieces from a place in the run to its end."""
    chunk_steps, compiled, interruptions = pace_of(run.name), False, Interruptions()
    ended = place.is_over
    while not ended:
        with interruptions:
            if store is not None and store.until is None and place.is_cut:
                store(place.flow_state, None, force=True)
                store.until = run.final_time
            began, before = clock.perf_counter(), place
            try:
                if interruptions.asked:
                    raise KeyboardInterrupt
                place, result, saves = _advanced(run, place, chunk_steps)
            except KeyboardInterrupt:
                place, result, saves = place, RESULTS.interrupted, None
            elapsed = clock.perf_counter() - began
            if not compiled:
                run.stats.setdefault("first_chunk_seconds", round(elapsed, 6))
                compiled = True
            else:
                chunk_steps = next_chunk(chunk_steps, elapsed)
            ended = place.is_over or not is_member(result, RESULTS.successful)
            if store is not None and is_member(result, RESULTS.stopped):
                # Resumed after the step that stopped, the run would go past it: its last chunk is not stored.
                store(before.flow_state, None, force=True)
            elif store is not None:
                store(place.flow_state, saves, force=ended)
            if ended:
                saves = _with_end(run, place, saves)
                result = _named_if_not_finite(result, saves)
            if progress is not None:
                progress(_progress(run, place))
            if ended and interruptions.asked and is_member(result, RESULTS.successful):
                result = RESULTS.interrupted
        if saves is not None and (len(saves[0]) or ended):
            yield run.piece(place.flow_state, saves, result)
    remember_pace(run.name, chunk_steps)


def _begin(run: Run) -> tuple[Place, tuple[Any, ...]]:
    """The place of the start, and its save."""
    flow_state, _, saves, record, facts = run_chunk(run.problem, run.blank, 0, begins=True)
    if not facts.is_finite:
        _, _, records, measurements = saves
        value = float((records["energies"] if "energies" in records else measurements["regular_energy"])[0])
        raise ValueError(
            f"`energy` is not finite at `initial_state`: it is {value}.\nCheck the function there, or start elsewhere."
        )
    return Place(flow_state, record, bool(facts.is_over), bool(facts.is_cut)), saves


def _advanced(run: Run, place: Place, num_steps: int) -> tuple[Place, Any, tuple[Any, ...]]:
    flow_state, result, saves, record, facts = run_chunk(run.problem, place.flow_state, num_steps)
    return Place(flow_state, record, bool(facts.is_over), bool(facts.is_cut)), result, saves


def _restored(run: Run, flow_state: FlowState, earlier: list[Any], until: float | None) -> tuple[Place, list[Any], Any]:
    """The place at which a checkpoint stands."""
    problem = run.problem
    _check_not_beyond(run, flow_state, until)
    place = Place(flow_state, None, is_finished(problem, flow_state), is_cut_short(problem, flow_state))
    if place.is_over:
        earlier = [*earlier[:-1], _with_end(run, place, earlier[-1])]
    return place, earlier, until


def _with_end(run: Run, place: Place, saves: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The saves of a run that ends here: one that ends between two saves shows its last state too."""
    due = int(np.asarray(place.flow_state.num_steps)) % int(run.problem.save_every) == 0
    if due and saves is not None:
        return saves
    record = _record_at(run, place)
    before: Any = jax.tree.map(lambda leaf: leaf[:0], record) if saves is None else saves
    return before if due else jax.tree.map(lambda a, b: np.concatenate([a, b]), before, record)


def _record_at(run: Run, place: Place) -> tuple[Any, ...]:
    return record_once(run.problem, place.flow_state) if place.record is None else place.record


def _named_if_not_finite(result: Any, saves: tuple[Any, ...]) -> Any:
    """A step looks at the energy where it begins; where the last one ended is looked at here."""
    _, _, records, measurements = saves
    last = [*records.get("energies", ())[-1:], *measurements.get("regular_energy", ())[-1:]]
    good = is_member(result, RESULTS.successful) or is_member(result, RESULTS.stopped)
    return RESULTS.non_finite if good and not np.all(np.isfinite(last)) else result


def _check_not_beyond(run: Run, flow_state: FlowState, until: float | None) -> None:
    """Raise if the stored run has come further than this one is to go."""
    problem = run.problem
    steps, last = int(flow_state.num_steps), int(problem.last_step)
    if steps > last:
        raise CheckpointError(
            f"The checkpoint stands at step {steps}, beyond `num_steps={last}`; nothing was changed.\n"
            "Give a larger `num_steps`, or another directory to start again."
        )
    if problem.final_time is not None and until is None:
        time, end = float(flow_state.time), float(problem.final_time)
        if time >= end * (1 - 64 * float(jnp.finfo(flow_state.time.dtype).eps)):
            raise CheckpointError(
                f"The checkpoint stands at time {time:.6g}, not before `final_time={end:.6g}`; nothing was changed.\n"
                "Give a later `final_time`, or another directory to start again."
            )


def next_chunk(chunk_steps: int, elapsed: float) -> int:
    """How many steps the next chunk should take, after one that took so many seconds."""
    factor = _CHUNK_SECONDS / max(elapsed, 1e-4)
    return max(1, min(int(chunk_steps * min(max(factor, 0.25), 8.0)), 2**30))


def _progress(run: Run, place: Place) -> Progress:
    problem, records = run.problem, _record_at(run, place)[2]
    number = lambda name: float(records[name][0]) if name in records else None  # noqa: E731
    steps, time = int(place.flow_state.num_steps), float(place.flow_state.time)
    fraction = steps / int(problem.last_step) if problem.final_time is None else time / float(problem.final_time)
    return Progress(steps, time, min(fraction, 1.0), number("energies"), number("dissipation_rates"), run.seconds())
