"""minimise_composite(): the minimum of a function with constraints and penalties, a few lines over flow."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._check import check_state
from thalweg._flow import flow
from thalweg._path import Path
from thalweg._result import RESULTS
from thalweg._types import PyTree
from thalweg.diagnostics import ResidualBelow, stationary_point_on_piece
from thalweg.energies import AbstractEnergy, as_energy, decompose
from thalweg.geometries import Euclidean
from thalweg.schemes import ProximalNewton


def minimise_composite(
    fn: Callable[..., Any],
    x0: PyTree,
    proximable: AbstractEnergy,
    *,
    tolerance: float | None = None,
    num_steps: int = 1000,
) -> Path:
    r"""Minimise $f(x) + g(x)$ by proximal Newton steps, g a constraint or penalty such as `tw.Box(0, 1)`,
    `tw.L1(0.1)` or `tw.L1(0.1) + tw.NonNegative()`.

    A start outside the constraints is projected onto them; `path.stats["start"]` says so. f is evaluated at points that
    satisfy the constraints only.

    **Arguments:** `fn`: a twice differentiable function of an array or pytree that returns a scalar; `x0`: where to
    begin; `proximable`: g; `tolerance`: stop when the relative residual (see [`thalweg.ResidualBelow`][]) is below it
    (`None`: 1e-10 in float64, 1e-5 in float32); `num_steps`: the most steps taken.

    **Returns:** a [`thalweg.Path`][]; `path.final.state` satisfies the constraints exactly. `path.result` says which
    kind of stationary point it is, by the smallest curvature along the active bounds and zeros, which is kept in
    `path.extras["stationary_point"]`; or why there is none. Where f is not convex a minimum is one of perhaps many.
    """
    check_state(x0)
    energy = as_energy(fn) + proximable
    structure = decompose(energy)
    kinks = structure.joint_proximable(x0)
    kinks.check(x0)
    start, note = x0, "as given"
    if not bool(jnp.isfinite(kinks(x0))):
        start = kinks.prox(x0, 1.0)
        moved = max(
            float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0))
            for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(x0), strict=True)
        )
        note = f"projected onto the constraints: the given start did not satisfy them (largest change {moved:.3g})"
    if tolerance is None:
        tolerance = 1e-10 if min(leaf.dtype.itemsize for leaf in jax.tree.leaves(x0)) >= 8 else 1e-5
    path = flow(
        energy,
        start,
        geometry=Euclidean(),
        scheme=ProximalNewton(),
        num_steps=num_steps,
        save_every=max(1, num_steps // 1000),
        stop=ResidualBelow(tolerance),
        throw=False,
    )
    path = dataclasses.replace(path, stats_items=(*path.stats_items, ("start", note)))
    if not bool(path.result == RESULTS.stopped):
        return path
    kind = stationary_point_on_piece(energy, path.final.state)
    result = RESULTS.where(kind.is_saddle, RESULTS.saddle_point, RESULTS.flat_point)
    result = RESULTS.where(kind.is_minimum, RESULTS.minimum, result)
    return dataclasses.replace(path, result=result, extras={**path.extras, "stationary_point": kind})
