"""minimise_composite(): the minimum of a function with constraints and penalties, a few lines over flow."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._check import check_state
from thalweg._flow import flow
from thalweg._launch import launch
from thalweg._path import Path, concatenate
from thalweg._saves import Saves
from thalweg._types import PyTree
from thalweg.diagnostics import ResidualBelow
from thalweg.energies import (
    AbstractEnergy,
    AbstractProximable,
    AbstractSeparable,
    as_energy,
    decompose,
    nearest_feasible,
)
from thalweg.geometries import Euclidean
from thalweg.recipes._composite_ending import composite_ending, traced_ending
from thalweg.schemes import ProximalNewton

# Each time a saddle is left F falls, so this is no loop; it is a bound on what a strange function can cost.
_MOST_LEFT = 10


def minimise_composite(
    fn: Callable[..., Any],
    x0: PyTree,
    proximable: AbstractEnergy,
    *,
    tolerance: float | None = None,
    num_steps: int = 1000,
) -> Path:
    r"""Minimise $f(x) + g(x)$ by proximal Newton steps, g a constraint or penalty such as `tw.Box(0, 1)`,
    `tw.L1(0.1)` or `tw.Box(0, 1) + tw.Hyperplane(0.0, labels)`.

    A start outside the constraints is projected onto them; `path.stats["start"]` says so. f is evaluated at points that
    satisfy the constraints only. A saddle or inflection is left along a feasible direction in which F falls, up
    to ten times; `path.stats["saddles_left"]` counts.

    **Arguments:** `fn`: a twice differentiable function of an array or pytree that returns a scalar; `x0`: where to
    begin; `proximable`: g; `tolerance`: stop when the relative residual (see [`thalweg.ResidualBelow`][]) is below it
    (`None`: 1e-10 in float64, 1e-5 in float32); `num_steps`: the most steps taken.

    **Returns:** a [`thalweg.Path`][]; `path.final.state` satisfies the constraints exactly. `path.result` says which
    kind of point it is: a `minimum` has a positive curvature along the active bounds and zeros, and one that lasts on
    the way along them; the smallest is kept in `path.extras["stationary_point"]`. `flat_point` is where neither is
    certain, and also where the curvature is negative, but F falls to neither side as far as the constraints let it:
    active bounds without a multiplier. Or why there is none: `escaping` and `unbounded` along a ray that satisfies the
    constraints, `out_of_steps`. Where f is not convex a minimum is one of perhaps many. Inside `jax.jit` and `jax.vmap`
    no saddle is left, `escaping` is not told from `flat_point`, and the path holds the start and the end.
    """
    check_state(x0)
    energy = as_energy(fn) + proximable
    kinks = decompose(energy).joint_proximable(x0)
    kinks.check(x0)
    if tolerance is None:
        tolerance = 1e-10 if min(leaf.dtype.itemsize for leaf in jax.tree.leaves(x0)) >= 8 else 1e-5

    def choices(steps: int) -> dict[str, Any]:
        return {
            "geometry": Euclidean(),
            "scheme": ProximalNewton(),
            "num_steps": steps,
            "save_every": max(1, num_steps // 1000),
            "stop": ResidualBelow(tolerance),
        }

    state, note = _feasible(kinks, x0)
    path = launch((minimise_composite, tolerance, num_steps), energy, state, lambda: choices(num_steps))
    if _tree.is_traced(path.final.num_steps):
        return _ended_while_tracing(path, energy)
    pieces, taken = [path], int(path.final.num_steps)
    while True:
        # To ask for a save costs time, and compiling the least subgradient does where it is not entry by entry.
        slope = None if isinstance(kinks, AbstractSeparable) else path.dissipation_rates[-1] ** 0.5
        ending = composite_ending(path, energy, slope, tolerance)
        if ending.lower is None or taken >= num_steps or len(pieces) > _MOST_LEFT:
            break
        path = flow(energy, ending.lower, **choices(num_steps - taken), throw=False)
        taken += int(path.final.num_steps)
        pieces.append(path)
    path = _joined(pieces)
    items = (*path.stats_items, ("start", note), ("saddles_left", len(pieces) - 1))
    extras = path.extras if ending.kind is None else {**path.extras, "stationary_point": ending.kind}
    # As a function: a method of a module looks at every array of it, and so would cut the saves.
    return Path.but(path, result=ending.result, extras=extras, stats_items=items)


def _feasible(kinks: AbstractProximable, x0: PyTree) -> tuple[PyTree, str]:
    """The start, projected if it has to be, and what to say of it."""
    value, nearest = nearest_feasible(kinks, x0)
    if _tree.is_traced(value):
        return _tree.where(jnp.isfinite(value), x0, nearest), ""
    if bool(np.isfinite(value)):
        return x0, "as given"
    moved = max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0))
        for a, b in zip(jax.tree.leaves(nearest), jax.tree.leaves(x0), strict=True)
    )
    return nearest, f"projected onto the constraints: the given start did not satisfy them (largest change {moved:.3g})"


def _ended_while_tracing(path: Path, energy: AbstractEnergy) -> Path:
    """The path with its result made precise inside `jax.jit` and `jax.vmap`, where no saddle is left."""
    result, kind = traced_ending(path, energy)
    items = (*path.stats_items, ("saddles_left", 0))
    return Path.but(path, result=result, extras={**path.extras, "stationary_point": kind}, stats_items=items)


def _joined(pieces: list[Path]) -> Path:
    """One path of several runs, each of which begins a leap away from where the last one ended: `times` is arc length,
    and the leaps count.
    """
    shifted, time, steps, dissipated = [], 0.0, 0, 0.0
    for k, path in enumerate(pieces):
        if k:
            before = pieces[k - 1]
            gaps = jax.tree.map(lambda a, b: a[0] - b[-1], *(_numpy(p.states) for p in (path, before)))
            leap = sum(float(np.sum(gap**2)) for gap in jax.tree.leaves(gaps))
            time += float(before.final.time) + leap**0.5
            steps += int(before.final.num_steps)
            dissipated += float(before.final.dissipated) + float(before.energies[-1]) - float(path.energies[0])
            path = _moved(path, time, steps, dissipated, leap)
        shifted.append(path)
    return concatenate(shifted)


def _moved(path: Path, time: float, steps: int, dissipated: float, leap: float) -> Path:
    """The path as the continuation of another one."""
    squared = np.array(path.distances_squared)
    squared[0] = leap
    records = {**path.records, "distances_squared": squared, "dissipated": np.asarray(path.records["dissipated"])}
    records["dissipated"] = records["dissipated"] + records["dissipated"].dtype.type(dissipated)
    times = np.asarray(path.times)
    times, records = jax.device_put((times + times.dtype.type(time), records))
    saves = Saves(times, path.states, records, path.measurements)
    counters = lambda f: (f.time, f.num_steps, f.dissipated)  # noqa: E731
    sums = (a + jnp.asarray(b, a.dtype) for a, b in zip(counters(path.final), (time, steps, dissipated), strict=True))
    final = eqx.tree_at(counters, path.final, tuple(sums))
    return Path.but(path, saves=saves, final=final)


def _numpy(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, _tree.floating(tree))
