"""The sentence itself: flow() and iterate(), a host loop over compiled chunks of steps."""

import dataclasses
import math
import os
import time as clock
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._advance import begin
from thalweg._check import check_combination, check_key
from thalweg._chunks import (
    Problem,
    is_cut_short,
    is_finished,
    pace_of,
    record_once,
    remember_pace,
    run_chunk,
    save_shapes,
)
from thalweg._errors import CheckpointError, FlowError, FlowInterrupted
from thalweg._fingerprint import fingerprint
from thalweg._interrupt import Interruptions
from thalweg._measure import record, records_energy
from thalweg._path import FlowState, Path, concatenate
from thalweg._result import RESULTS, ended_well
from thalweg._shapes import shapes_of, structure_of
from thalweg._types import PRNGKey, State
from thalweg.energies import as_energy
from thalweg.geometries import AbstractGeometry
from thalweg.schemes import AbstractScheme

# A chunk should last long enough to hide the host and short enough for progress and Ctrl-C.
_CHUNK_SECONDS = 0.1
# Saves that one chunk holds on the device at once.
_BUFFER_BYTES = 2**24
_BUFFER_SAVES = 256


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


def flow(
    energy: Any,
    initial_state: State,
    *,
    geometry: AbstractGeometry,
    scheme: AbstractScheme,
    num_steps: int | None = None,
    final_time: float | None = None,
    save_every: int = 1,
    measure: Callable[..., Any] | None = None,
    stop: Callable[..., Any] | None = None,
    key: PRNGKey | None = None,
    progress: Callable[[Progress], Any] | None = None,
    checkpoint: Checkpointer | None = None,
    throw: bool = True,
) -> Path:
    r"""The gradient flow of an energy: $x_{t+1} = \operatorname{argmin}_x D(x, x_t)/(2\alpha) + F(x)$, step after step.

    **Arguments:**

    - `energy`: F, a function of the state (for vectors, any Python function) or a named energy.
    - `initial_state`: where to begin: an array or pytree, or a density state.
    - `geometry`: how far is far. - `scheme`: how a step is taken.
    - `num_steps` or `final_time`: exactly one; `final_time` is hit exactly, the last step being cut if need be.
    - `save_every`: steps between two saves; the start and the end are always saved. Memory does not grow with steps
      that are not saved.
    - `measure`: a function of the state, whose value (an array, or a dictionary of arrays) is recorded at each save.
    - `stop`: a function of a [`thalweg.Snapshot`][] that returns a boolean, asked after every step; for example
      `tw.Stationary(1e-8)`.
    - `key`: a JAX random key, for schemes that draw noise.
    - `progress`: a function of a [`thalweg.Progress`][], called between chunks. - `checkpoint`: a
      [`thalweg.Checkpoint`][].
    - `throw`: whether a run that fails raises (the error holds the path so far) or returns the path with its `result`.

    **Returns:** a [`thalweg.Path`][].

    **Raises:** `UnsupportedCombination`, `ValueError` before anything is compiled; [`thalweg.FlowError`][] with
    `error.path` while running; [`thalweg.FlowInterrupted`][] with `error.path` at Ctrl-C, after the chunk of steps that
    is being computed (a second Ctrl-C does not wait).
    """
    pieces: list[Path] = []
    consecutive = iterate(
        energy,
        initial_state,
        geometry=geometry,
        scheme=scheme,
        num_steps=num_steps,
        final_time=final_time,
        save_every=save_every,
        measure=measure,
        stop=stop,
        key=key,
        progress=progress,
        checkpoint=checkpoint,
    )
    try:
        for piece in consecutive:
            pieces.append(piece)
    except KeyboardInterrupt:
        # `iterate` waits for the end of a chunk; this one came between two pieces, or was the second.
        if not pieces:
            raise
        pieces[-1] = dataclasses.replace(pieces[-1], result=RESULTS.interrupted)
    path = concatenate(pieces)
    if path.result == RESULTS.interrupted:
        raise FlowInterrupted(path.message, path)
    if throw and not ended_well(path.result):
        raise FlowError(
            f"The flow stopped after step {int(path.final.num_steps)} at time "
            f"{float(path.final.time):.6g}.\n{path.message}\n"
            "`error.path` holds the path so far; `throw=False` returns it instead.",
            path,
        )
    return path


def iterate(
    energy: Any,
    initial_state: State,
    *,
    geometry: AbstractGeometry,
    scheme: AbstractScheme,
    num_steps: int | None = None,
    final_time: float | None = None,
    save_every: int = 1,
    measure: Callable[..., Any] | None = None,
    stop: Callable[..., Any] | None = None,
    key: PRNGKey | None = None,
    progress: Callable[[Progress], Any] | None = None,
    checkpoint: Checkpointer | None = None,
) -> Iterator[Path]:
    """The pieces of a path as they are computed; [`thalweg.flow`][] puts them together.

    Takes the arguments of `flow` (less `throw`). Each piece is a [`thalweg.Path`][] of the saves since the last one;
    its `final` can be looked at, and the loop may be left at any time.
    """
    started = clock.perf_counter()
    energy = as_energy(energy)
    _check_counts(num_steps, final_time, save_every, scheme)
    check_combination(energy, initial_state, geometry, scheme)
    check_key(energy, scheme, key)
    if checkpoint is not None and not isinstance(checkpoint, Checkpointer):
        raise TypeError(f"`checkpoint` must be a `tw.Checkpoint(directory)`; got {type(checkpoint).__name__}.")
    scheme = scheme.resolve(energy, geometry, initial_state)
    problem, flow_state, unavailable, record_bytes = _prepare(
        energy, initial_state, geometry, scheme, num_steps, final_time, save_every, measure, stop, key
    )
    stats: dict[str, Any] = dict(scheme.describe())
    stats["distances_squared"] = scheme.distance_label
    stats["save_bytes"] = record_bytes

    def piece(saves: tuple[Any, ...], result: Any) -> Path:
        times, states, records, measurements = jax.device_put(saves)
        # A save holds what moves; the rest of the state (functions, data) is that of the flow.
        states = eqx.combine(states, flow_state.state)
        stats["seconds"] = round(clock.perf_counter() - started, 6)
        stats["num_steps"] = int(flow_state.num_steps)
        finish = problem.scheme.finish(energy, geometry, flow_state.state, flow_state.memory)
        items = tuple(stats.items())
        return Path(times, states, records, measurements, result, flow_state, finish, tuple(unavailable.items()), items)

    def store(where: FlowState, saves: tuple[Any, ...], force: bool) -> None:
        if checkpoint is not None:
            checkpoint.store(name, where, [saves] if len(saves[0]) else [], force=force, until=until)

    name, restored, until = "", None, None
    if checkpoint is not None:
        name = fingerprint(problem, flow_state)
        restored = checkpoint.restore(name, flow_state, save_shapes(problem, flow_state), final_time)
    try:
        if restored is None:
            earlier = [_first_save(problem, flow_state)]
            store(flow_state, earlier[0], force=True)
        else:
            flow_state, earlier, until = restored
            _check_not_beyond(problem, flow_state, until)
            if is_finished(problem, flow_state):
                earlier[-1] = _with_end(problem, flow_state, earlier[-1])
        for saves in earlier:
            yield piece(saves, RESULTS.successful)

        nothing = jax.tree.map(lambda leaf: leaf[:0], earlier[-1])
        problem_name = structure_of(run_chunk, (problem, flow_state))
        result, chunk_steps, compiled, interruptions = RESULTS.successful, pace_of(problem_name), False, Interruptions()
        while result == RESULTS.successful and not is_finished(problem, flow_state):
            with interruptions:
                if until is None and is_cut_short(problem, flow_state):
                    store(flow_state, nothing, force=True)
                    until = final_time
                before, begin_state = clock.perf_counter(), flow_state
                try:
                    if interruptions.asked:
                        raise KeyboardInterrupt
                    flow_state, result, saves = run_chunk(problem, flow_state, chunk_steps)
                except KeyboardInterrupt:
                    result, saves = RESULTS.interrupted, nothing
                elapsed = clock.perf_counter() - before
                if not compiled:
                    stats["first_chunk_seconds"], compiled = round(elapsed, 6), True
                else:
                    chunk_steps = _next_chunk(chunk_steps, elapsed)
                over = is_finished(problem, flow_state) or not (result == RESULTS.successful)
                if result == RESULTS.stopped:
                    # Resumed after the step that stopped, the run would go past it: its last chunk is not stored.
                    store(begin_state, nothing, force=True)
                else:
                    store(flow_state, saves, force=over)
                if over:
                    saves = _with_end(problem, flow_state, saves)
                    result = _named_if_not_finite(result, saves)
                if progress is not None:
                    progress(_progress(problem, flow_state, started))
                if over and interruptions.asked and result == RESULTS.successful:
                    result = RESULTS.interrupted
            if len(saves[0]) or over:
                yield piece(saves, result)
        remember_pace(problem_name, chunk_steps)
    finally:
        if checkpoint is not None:
            checkpoint.close()


def _check_counts(num_steps: Any, final_time: Any, save_every: Any, scheme: Any) -> None:
    if (num_steps is None) == (final_time is None):
        raise ValueError("Give exactly one of `num_steps` and `final_time`.")
    if num_steps is not None and (not isinstance(num_steps, int | np.integer) or num_steps < 1):
        raise ValueError(f"`num_steps` must be a positive integer; got {num_steps!r}.")
    if final_time is not None and not (math.isfinite(final_time) and final_time > 0):
        raise ValueError(f"`final_time` must be a positive finite number; got {final_time!r}.")
    if not isinstance(save_every, int | np.integer) or save_every < 1:
        raise ValueError(f"`save_every` must be a positive integer; got {save_every!r}.")
    if final_time is not None and isinstance(scheme, AbstractScheme) and not scheme.advances_time:
        raise ValueError(
            f"`{type(scheme).__name__}` advances arc length, not time, so it cannot run to a `final_time`; "
            "use `num_steps`."
        )


def _prepare(
    energy: Any,
    state: State,
    geometry: AbstractGeometry,
    scheme: AbstractScheme,
    num_steps: int | None,
    final_time: float | None,
    save_every: int,
    measure: Callable[..., Any] | None,
    stop: Callable[..., Any] | None,
    key: PRNGKey | None,
) -> tuple[Problem, FlowState, dict[str, str], int]:
    dtype = _tree.dtype_of(state)
    # Numbers of the scheme become arrays, so that a run with another step size is not compiled again.
    scheme = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, scheme)
    has_energy, has_rate, unavailable = records_energy(energy, geometry, state)
    flow_state = begin(energy, geometry, scheme, state, key)
    shapes = shapes_of(record, energy, geometry, measure, (has_energy, has_rate), flow_state.state)
    bytes_per_save = _tree.num_bytes((shapes, eqx.filter(state, eqx.is_array)))
    count = num_steps if num_steps is not None else _expected_steps(scheme, final_time)
    total = bytes_per_save * (2 + (count // save_every if count else 0))
    available = _available_memory()
    if available and total > 0.8 * available:
        needed = math.ceil(save_every * total / (0.4 * available))
        raise ValueError(
            f"This run would save {total / 2**30:.1f} GiB ({bytes_per_save} bytes a save) and "
            f"{available / 2**30:.1f} GiB are free.\n"
            f"Use a larger `save_every`, for example `save_every={needed}`."
        )
    problem = Problem(
        energy,
        geometry,
        scheme,
        measure,
        stop,
        key,
        None if final_time is None else jnp.asarray(final_time, dtype),
        jnp.asarray(2**31 - 2 if num_steps is None else num_steps, jnp.int32),
        jnp.asarray(save_every, jnp.int32),
        (has_energy, has_rate),
        max(1, min(_BUFFER_SAVES, _BUFFER_BYTES // max(bytes_per_save, 1))),
    )
    return problem, flow_state, unavailable, total


def _expected_steps(scheme: Any, final_time: float | None) -> int:
    step_size = getattr(scheme, "step_size", None)
    try:
        return math.ceil(float(final_time) / float(step_size))  # type: ignore[arg-type]
    except TypeError:
        return 0


def _available_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _first_save(problem: Problem, flow_state: FlowState) -> tuple[Any, ...]:
    save = record_once(problem, flow_state)
    _, _, records, measurements = save
    values = [*records.get("energies", np.zeros(1)), *measurements.get("regular_energy", np.zeros(1))]
    if not all(math.isfinite(float(v)) for v in values):
        raise ValueError(
            "`energy` is not finite at `initial_state`: it is "
            f"{[float(v) for v in values if not math.isfinite(float(v))][0]}.\n"
            "Check the function there, or start elsewhere."
        )
    return save


def _with_end(problem: Problem, flow_state: FlowState, saves: tuple[Any, ...]) -> tuple[Any, ...]:
    """The saves of a run that ends here: one that ends between two saves shows its last state too."""
    if int(flow_state.num_steps) % int(problem.save_every) == 0:
        return saves
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), saves, record_once(problem, flow_state))


def _named_if_not_finite(result: Any, saves: tuple[Any, ...]) -> Any:
    """A step looks at the energy where it begins; where the last one ended is looked at here."""
    _, _, records, measurements = saves
    last = [*records.get("energies", ())[-1:], *measurements.get("regular_energy", ())[-1:]]
    good = result == RESULTS.successful or result == RESULTS.stopped
    return RESULTS.non_finite if good and not np.all(np.isfinite(last)) else result


def _check_not_beyond(problem: Problem, flow_state: FlowState, until: float | None) -> None:
    """Raise if the stored run has come further than this one is to go."""
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


def _next_chunk(chunk_steps: int, elapsed: float) -> int:
    factor = _CHUNK_SECONDS / max(elapsed, 1e-4)
    return max(1, min(int(chunk_steps * min(max(factor, 0.25), 8.0)), 2**30))


def _progress(problem: Problem, flow_state: FlowState, started: float) -> Progress:
    records = record_once(problem, flow_state)[2]
    number = lambda name: float(records[name][0]) if name in records else None  # noqa: E731
    steps, time = int(flow_state.num_steps), float(flow_state.time)
    fraction = steps / int(problem.last_step) if problem.final_time is None else time / float(problem.final_time)
    seconds = clock.perf_counter() - started
    return Progress(steps, time, min(fraction, 1.0), number("energies"), number("dissipation_rates"), seconds)
