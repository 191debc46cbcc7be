"""The sentence itself: flow() and iterate(), a host loop over compiled chunks of steps."""

import hashlib
import math
import os
import time as clock
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._advance import advance, begin
from thalweg._check import check_combination
from thalweg._errors import FlowError, FlowInterrupted
from thalweg._measure import Snapshot, record, records_energy
from thalweg._path import FlowState, Path, concatenate
from thalweg._result import RESULTS
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


class Checkpointer(Protocol):
    """What `checkpoint=` must offer; [`thalweg.Checkpoint`][] is one."""

    def restore(self, fingerprint: str, like: Any) -> tuple[Any, list[Any]] | None:
        """The stored flow state and pieces of path, or `None` if there is nothing stored."""

    def store(self, fingerprint: str, final: Any, pieces: list[Any], *, force: bool) -> None:
        """Store the flow state and the pieces saved since the last call, if it is time."""


class _Problem(eqx.Module):
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
    `error.path` while running.
    """
    pieces: list[Path] = []
    for piece in iterate(
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
    ):
        pieces.append(piece)
    path = concatenate(pieces)
    if path.result == RESULTS.interrupted:
        raise FlowInterrupted(path.message, path)
    if throw and not (path.result == RESULTS.successful or path.result == RESULTS.stopped):
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
    if scheme.needs_key and key is None:
        raise ValueError(
            f"`{type(scheme).__name__}` draws random numbers and needs a `key`: pass `key=jax.random.key(0)`."
        )
    scheme = scheme.resolve(energy, geometry, initial_state)
    problem, flow_state, unavailable, record_bytes = _prepare(
        energy, initial_state, geometry, scheme, num_steps, final_time, save_every, measure, stop, key
    )
    fingerprint = _fingerprint(problem, flow_state)
    restored = None if checkpoint is None else checkpoint.restore(fingerprint, flow_state)
    stats: dict[str, Any] = dict(scheme.describe())
    stats["distances_squared"] = scheme.distance_label
    stats["save_bytes"] = record_bytes

    def piece(saves: tuple[Any, ...], result: Any) -> Path:
        times, states, records, measurements = saves
        stats["seconds"] = round(clock.perf_counter() - started, 6)
        stats["num_steps"] = int(flow_state.num_steps)
        finish = problem.scheme.finish(energy, geometry, flow_state.state, flow_state.memory)
        items = tuple(stats.items())
        return Path(times, states, records, measurements, result, flow_state, finish, tuple(unavailable.items()), items)

    if restored is not None:
        flow_state, earlier = restored
        for saves in earlier:
            yield piece(saves, RESULTS.successful)
    else:
        first = _first_record(problem, flow_state)
        if checkpoint is not None:
            checkpoint.store(fingerprint, flow_state, [first], force=True)
        yield piece(first, RESULTS.successful)

    result, chunk_steps, compiled = RESULTS.successful, 1, False
    while not _finished(problem, flow_state) and result == RESULTS.successful:
        before = clock.perf_counter()
        try:
            flow_state, result, saves = _run_chunk_and_wait(problem, flow_state, chunk_steps)
        except KeyboardInterrupt:
            result, saves = RESULTS.interrupted, None
        elapsed = clock.perf_counter() - before
        if not compiled:
            stats["first_chunk_seconds"], compiled = round(elapsed, 6), True
        else:
            chunk_steps = _next_chunk(chunk_steps, elapsed)
        over = _finished(problem, flow_state) or not (result == RESULTS.successful)
        if over and (saves is None or len(saves[0]) == 0 or float(saves[0][-1]) != float(flow_state.time)):
            # A run that ends between two saves shows the last good state as its last save.
            last = _first_record(problem, flow_state)
            saves = (
                last
                if saves is None or len(saves[0]) == 0
                else jax.tree.map(lambda a, b: np.concatenate([a, b]), saves, last)
            )
        if checkpoint is not None:
            checkpoint.store(fingerprint, flow_state, [saves] if len(saves[0]) else [], force=over)
        if progress is not None:
            progress(_progress(problem, flow_state, started))
        if len(saves[0]) or over:
            yield piece(saves, result)


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
) -> tuple[_Problem, FlowState, dict[str, str], int]:
    dtype = _tree.dtype_of(state)
    # Numbers of the scheme become arrays, so that a run with another step size is not compiled again.
    scheme = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, scheme)
    has_energy, has_rate, unavailable = records_energy(energy, geometry, state)
    flow_state = begin(energy, geometry, scheme, state, key)
    shapes = eqx.filter_eval_shape(record, energy, geometry, measure, (has_energy, has_rate), flow_state.state)
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
    problem = _Problem(
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


def _first_record(problem: _Problem, flow_state: FlowState) -> tuple[Any, ...]:
    entry = _record_once(problem, flow_state)
    values = [*entry.get("energies", np.zeros(1)), *entry["measurements"].get("regular_energy", np.zeros(1))]
    if int(flow_state.num_steps) == 0 and not all(math.isfinite(float(v)) for v in values):
        raise ValueError(
            "`energy` is not finite at `initial_state`: it is "
            f"{[float(v) for v in values if not math.isfinite(float(v))][0]}.\n"
            "Check the function there, or start elsewhere."
        )
    return _unpack(entry)


def _unpack(entry: dict[str, Any]) -> tuple[Any, ...]:
    entry = dict(entry)
    times, states, measurements = entry.pop("times"), entry.pop("states"), entry.pop("measurements")
    return times, states, entry, measurements


def _record_once(problem: _Problem, flow_state: FlowState) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], _record_jitted(problem, flow_state))


@eqx.filter_jit
def _record_jitted(problem: _Problem, flow_state: FlowState) -> dict[str, Any]:
    return _entry(problem, flow_state)


def _entry(problem: _Problem, flow_state: FlowState) -> dict[str, Any]:
    entry = record(problem.energy, problem.geometry, problem.measure, problem.available, flow_state.state)
    entry["measurements"] = {**flow_state.stats, **entry["measurements"]}
    return {
        **entry,
        "times": flow_state.time,
        "states": eqx.filter(flow_state.state, eqx.is_array),
        "distances_squared": flow_state.distance_squared,
    }


def _run_chunk_and_wait(
    problem: _Problem, flow_state: FlowState, chunk_steps: int
) -> tuple[FlowState, Any, tuple[Any, ...]]:
    arrays, static = eqx.partition(flow_state, eqx.is_array)
    arrays, result, buffers, num_saved = _run_chunk(problem, arrays, static, jnp.asarray(chunk_steps, jnp.int32))
    count = int(num_saved)
    saves = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], buffers)
    return eqx.combine(arrays, static), result, _unpack(saves)


@eqx.filter_jit
def _run_chunk(problem: _Problem, arrays: Any, static: Any, chunk_steps: Any) -> tuple[Any, Any, Any, Any]:
    """At most `chunk_steps` steps; buffers have a fixed size and the count is dynamic, so no length is compiled
    twice.
    """
    shapes = jax.eval_shape(lambda a: _entry(problem, eqx.combine(a, static)), arrays)
    buffers = jax.tree.map(lambda s: jnp.zeros((problem.buffer_size, *s.shape), s.dtype), shapes)

    def unfinished(carry: Any) -> Any:
        arrays, result, _, saved, taken = carry
        fits = (taken < chunk_steps) & (saved < problem.buffer_size)
        over = _is_over(problem, arrays.num_steps, arrays.time)
        return fits & ~over & (result == RESULTS.successful)

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
        good = result == RESULTS.successful
        if problem.stop is not None:
            stopped = _asks_to_stop(problem, moved)
            result = RESULTS.where(good & stopped, RESULTS.stopped, result)
        over = _is_over(problem, moved.num_steps, moved.time) | (result == RESULTS.stopped)
        save = good & (over | (moved.num_steps % problem.save_every == 0))
        arrays = eqx.filter(moved, eqx.is_array)

        def write(buffers: Any) -> Any:
            entry = _entry(problem, moved)
            return jax.tree.map(lambda b, e: b.at[saved].set(e.astype(b.dtype)), buffers, entry)

        buffers = jax.lax.cond(save, write, lambda b: b, buffers)
        return arrays, result, buffers, saved + save.astype(jnp.int32), taken + 1

    zero = jnp.asarray(0, jnp.int32)
    carry = (arrays, RESULTS.successful, buffers, zero, zero)
    arrays, result, buffers, saved, _ = jax.lax.while_loop(unfinished, body, carry)
    return arrays, result, buffers, saved


def _asks_to_stop(problem: _Problem, moved: FlowState) -> Any:
    entry = record(problem.energy, problem.geometry, None, problem.available, moved.state)
    nothing = jnp.asarray(jnp.nan, moved.time.dtype)
    snapshot = Snapshot(
        moved.time, moved.state, entry.get("energies", nothing), entry.get("dissipation_rates", nothing)
    )
    assert problem.stop is not None
    return jnp.asarray(problem.stop(snapshot), bool)


def _is_over(problem: _Problem, num_steps: Any, time: Any) -> Any:
    over = num_steps >= problem.last_step
    return over if problem.final_time is None else over | (time >= problem.final_time)


def _finished(problem: _Problem, flow_state: FlowState) -> bool:
    return bool(_is_over(problem, flow_state.num_steps, flow_state.time))


def _next_chunk(chunk_steps: int, elapsed: float) -> int:
    factor = _CHUNK_SECONDS / max(elapsed, 1e-4)
    return max(1, min(int(chunk_steps * min(max(factor, 0.25), 8.0)), 2**30))


def _progress(problem: _Problem, flow_state: FlowState, started: float) -> Progress:
    entry = _record_once(problem, flow_state)
    number = lambda name: float(entry[name][0]) if name in entry else None  # noqa: E731
    steps, time = int(flow_state.num_steps), float(flow_state.time)
    fraction = steps / int(problem.last_step) if problem.final_time is None else time / float(problem.final_time)
    seconds = clock.perf_counter() - started
    return Progress(steps, time, min(fraction, 1.0), number("energies"), number("dissipation_rates"), seconds)


def _fingerprint(problem: _Problem, flow_state: FlowState) -> str:
    """A digest of everything that decides the path, less the number of steps, so that a finished run can be
    prolonged.
    """
    digest = hashlib.sha256()
    parts = (problem.energy, problem.geometry, problem.scheme, problem.key, problem.save_every, flow_state.state)
    for leaf in jax.tree.leaves(parts):
        if eqx.is_array(leaf):
            data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            array = np.asarray(data)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            name = getattr(leaf, "__qualname__", None)
            digest.update((f"{getattr(leaf, '__module__', '')}.{name}" if name else repr(leaf)).encode())
    digest.update(repr(jax.tree.map(lambda _: 0, parts)).encode())
    return digest.hexdigest()
