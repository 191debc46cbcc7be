"""The sentence itself: flow() and iterate(), and what is checked and chosen before the first step."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from thalweg import _tree
from thalweg._advance import blank
from thalweg._check import check_combination, check_key
from thalweg._chunks import Problem, entry
from thalweg._errors import FlowError, FlowInterrupted
from thalweg._loop import Checkpointer, Progress, Run, pieces_of
from thalweg._measure import records_energy
from thalweg._packing import packing_of
from thalweg._path import Path, concatenate
from thalweg._result import RESULTS, ended_well, is_member
from thalweg._shapes import shapes_of
from thalweg._types import PRNGKey, State
from thalweg.energies import as_energy, with_walls
from thalweg.geometries import AbstractGeometry
from thalweg.schemes import AbstractScheme

# Saves that one chunk holds on the device at once.
_BUFFER_BYTES = 2**24
_BUFFER_SAVES = 256


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
    - `measure`: a function of the state, whose value is recorded at each save: a dictionary of arrays goes into
      `path.measurements` by its names, an array as `path.measurements["measure"]`.
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
    pieces = iterate(
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
    path = collected(pieces)
    if throw and not ended_well(path.result):
        raise FlowError(
            f"The flow stopped after step {int(path.final.num_steps)} at time "
            f"{float(path.final.time):.6g}.\n{path.message}\n"
            "`error.path` holds the path so far; `throw=False` returns it instead.",
            path,
        )
    return path


def collected(consecutive: Iterator[Path]) -> Path:
    """The pieces of a path put together. **Raises:** [`thalweg.FlowInterrupted`][] with them at Ctrl-C."""
    pieces: list[Path] = []
    try:
        for piece in consecutive:
            pieces.append(piece)
    except KeyboardInterrupt:
        # `iterate` waits for the end of a chunk; this one came between two pieces, or was the second.
        if not pieces:
            raise
        pieces[-1] = Path.but(pieces[-1], result=RESULTS.interrupted)
    path = concatenate(pieces)
    if is_member(path.result, RESULTS.interrupted):
        raise FlowInterrupted(path.message, path)
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
    if checkpoint is not None and not isinstance(checkpoint, Checkpointer):
        raise TypeError(f"`checkpoint` must be a `tw.Checkpoint(directory)`; got {type(checkpoint).__name__}.")
    run = prepare(
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
    )
    yield from pieces_of(run, progress, checkpoint)


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


def prepare(
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
) -> Run:
    """The flow of these arguments, checked and with every automatic choice made; nothing has been computed yet."""
    energy, state = as_energy(energy), initial_state
    _check_counts(num_steps, final_time, save_every, scheme)
    check_combination(energy, state, geometry, scheme)
    state = with_walls(energy, state)
    check_key(energy, scheme, key)
    scheme = scheme.resolve(energy, geometry, state)
    dtype = _tree.dtype_of(state)
    # Numbers of the scheme become arrays, so that a run with another step size is not compiled again.
    scheme = jax.tree.map(lambda leaf: np.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, scheme)
    has_energy, has_rate, unavailable = records_energy(energy, geometry, state)
    start = blank(energy, geometry, scheme, state, key)
    packing = packing_of(shapes_of(entry, energy, geometry, measure, (has_energy, has_rate), start))
    bytes_per_save = packing.num_bytes
    total = _check_size(bytes_per_save, num_steps, final_time, save_every, scheme)
    problem = Problem(
        energy,
        geometry,
        scheme,
        measure,
        stop,
        key,
        None if final_time is None else np.asarray(final_time, dtype),
        np.asarray(2**31 - 2 if num_steps is None else num_steps, np.int32),
        np.asarray(save_every, np.int32),
        (has_energy, has_rate),
        packing,
        max(1, min(_BUFFER_SAVES, _BUFFER_BYTES // max(bytes_per_save, 1))),
    )
    stats = {**geometry.at(initial_state).describe(), **scheme.describe()}
    stats |= {"distances_squared": scheme.distance_label, "save_bytes": total}
    return Run(problem, start, final_time, unavailable, stats)


def _check_size(
    bytes_per_save: int, num_steps: int | None, final_time: float | None, save_every: int, scheme: Any
) -> int:
    """The bytes that will be saved, about. **Raises:** `ValueError` if that is more than the memory that is free."""
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
    return total


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
