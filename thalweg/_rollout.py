"""The flow as one pure function, to differentiate and vectorise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._advance import advance, begin
from thalweg._check import check_combination, check_key
from thalweg._measure import record, records_energy
from thalweg._path import FlowState, Path
from thalweg._result import RESULTS
from thalweg._saves import Saves
from thalweg._types import PRNGKey, State
from thalweg.energies import as_energy, with_walls
from thalweg.geometries import AbstractGeometry
from thalweg.schemes import AbstractScheme
from thalweg.states import moving


def rollout(
    energy: Any,
    initial_state: State,
    *,
    geometry: AbstractGeometry,
    scheme: AbstractScheme,
    num_steps: int,
    save_every: int = 1,
    measure: Callable[..., Any] | None = None,
    key: PRNGKey | None = None,
) -> Path:
    """The same flow as [`thalweg.flow`][], as one pure `lax.scan`: `jax.jit` and `jax.vmap` go through it.

    So does `jax.grad`, but for `LinearlyImplicit` (forward mode only) and `ProximalNewton` (no derivative);
    `Continuous` has reverse mode only.

    There is no progress, checkpoint or early stop; a step that fails leaves the state where it was for the rest of
    the run, and `path.result` says so. Where stiffness cannot be measured (while tracing) `Continuous(solver=None)`
    takes the explicit solver.

    **Arguments:** as for `flow`; `num_steps` must be a multiple of `save_every`.

    **Returns:** a [`thalweg.Path`][]; `path.final.state` is the last state.
    """
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"`num_steps` must be a positive integer; got {num_steps!r}.")
    if not isinstance(save_every, int | np.integer) or save_every < 1 or num_steps % save_every:
        raise ValueError(f"`num_steps` must be a multiple of `save_every`; got {num_steps} and {save_every}.")
    energy = as_energy(energy)
    check_combination(energy, initial_state, geometry, scheme)
    initial_state = with_walls(energy, initial_state)
    check_key(energy, scheme, key)
    scheme = scheme.resolve(energy, geometry, initial_state)
    dtype = _tree.dtype_of(initial_state)
    scheme = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, scheme)
    has_energy, has_rate, unavailable = records_energy(energy, geometry, initial_state)
    start = begin(energy, geometry, scheme, initial_state, key)
    arrays, static = eqx.partition(start, eqx.is_array)

    def entry(arrays: Any) -> tuple[Any, ...]:
        here: FlowState = eqx.combine(arrays, static)
        values = record(energy, geometry, measure, (has_energy, has_rate), here.state)
        measurements = {**here.stats, **values.pop("measurements")}
        values["distances_squared"] = here.distance_squared
        values["dissipated"] = here.dissipated
        return here.time, moving(here.state), values, measurements

    def one_step(carry: Any, _: None) -> tuple[Any, None]:
        arrays, result = carry
        moved, outcome = advance(energy, geometry, scheme, eqx.combine(arrays, static), key, None)
        going = result == RESULTS.successful
        arrays = _tree.where(going, eqx.filter(moved, eqx.is_array), arrays)
        return (arrays, RESULTS.where(going, outcome, result)), None

    def one_save(carry: Any, _: None) -> tuple[Any, Any]:
        carry, _ = jax.lax.scan(one_step, carry, None, length=int(save_every))
        return carry, entry(carry[0])

    first = entry(arrays)
    (arrays, result), saves = jax.lax.scan(
        one_save, (arrays, RESULTS.successful), None, length=int(num_steps) // int(save_every)
    )
    times, states, records, measurements = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, saves)
    # A step looks at the energy where it begins; where the last one ended is looked at here.
    ended = jnp.isfinite((records["energies"] if has_energy else measurements["regular_energy"])[-1])
    result = RESULTS.where((result == RESULTS.successful) & ~ended, RESULTS.non_finite, result)
    final = eqx.combine(arrays, static)
    states = eqx.combine(states, final.state)
    extras = scheme.finish(energy, geometry, final.state, final.memory)
    stats = tuple({**geometry.at(final.state).describe(), **scheme.describe()}.items())
    saves = Saves(times, states, records, measurements)
    return Path(saves, result, final, extras, tuple(unavailable.items()), stats)
