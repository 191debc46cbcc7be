"""minimise(): the point where a function is least, and what kind of point it is."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax.numpy as jnp

from thalweg import _tree
from thalweg._flow import flow
from thalweg._launch import launch
from thalweg._measure import ModelDecrease
from thalweg._path import Path
from thalweg._types import PyTree
from thalweg.energies import AbstractEnergy, Box, Zero, decompose
from thalweg.geometries import L2, Euclidean
from thalweg.recipes._composite import minimise_composite
from thalweg.recipes._inside import minimise_inside
from thalweg.recipes._leaving import settled
from thalweg.schemes import LearntDiagonal, LinearlyImplicit
from thalweg.states import GridFunction


def minimise(
    fn: Callable[..., Any],
    x0: PyTree,
    *,
    lower: Any = None,
    upper: Any = None,
    plus: AbstractEnergy | None = None,
    tolerance: float | None = None,
    num_steps: int = 1000,
) -> Path:
    r"""Minimise a function by linearly implicit steps: $x^+ = x - (G/\alpha + H)^{-1}\nabla f$ with the Hessian H by
    automatic differentiation, a step size that the model has earned, and a diagonal metric G learnt on the way, so
    that neither the units of f nor those of x matter.

    f never rises; near a minimum convergence is quadratic. Up to some hundreds of unknowns the Hessian is dense;
    beyond, it is known by Hessian-vector products.

    With bounds or `plus` the step is the proximal Newton step ([`thalweg.ProximalNewton`][]), whose points satisfy the
    constraints exactly.

    **Arguments:** `fn`: a twice differentiable function of an array or pytree that returns a scalar, or a functional of
    a [`thalweg.GridFunction`][]; `x0`: where to begin; `lower`, `upper`: bounds, a number or a pytree like `x0`
    (`None`: none on that side); `plus`: a constraint or penalty with a proximal map, such as `tw.L1(0.1)`,
    `tw.Simplex()` or `tw.NonNegative()` (or add it: `tw.minimise(fn + tw.L1(0.1), x0)`); `tolerance`: stop when the
    decrease that the quadratic model still promises is
    below `tolerance`·|f| (`None`: the rounding unit of the dtype; with bounds or `plus` it is that of
    [`thalweg.ResidualBelow`][]); `num_steps`: the most steps taken.

    **Returns:** a [`thalweg.Path`][]; `path.final.state` is the point, and `path.result` says what it is:
    `tw.RESULTS.minimum` (for a convex function *the* minimum, else one of perhaps many), or `flat_point`, where the
    curvature does not decide; [`thalweg.stationary_point`][] tells more. A saddle is left to the side on which f falls,
    and `path.stats["saddles_left"]` counts how many were; only where f falls to no side is it the end (`saddle_point`).
    Or why there is no such point: `unbounded` and `escaping` (an infimum at infinity), `corner`, `out_of_steps` when
    `num_steps` were taken before the tolerance was reached, `step_size_underflow` or `non_finite` where no step helps.
    Inside `jax.jit` and `jax.vmap` no saddle is left, and `escaping` and `corner` are not told from `flat_point`.

    **Source:** Su (2023), the section on the penalised view; Conn, Gould, Toint, *Trust-Region Methods* (2000).
    """
    has_penalty = isinstance(fn, AbstractEnergy) and bool(decompose(fn).proximable)
    if lower is not None or upper is not None or plus is not None or has_penalty:
        parts = [] if plus is None else [plus]
        if lower is not None or upper is not None:
            parts.append(Box(-jnp.inf if lower is None else lower, jnp.inf if upper is None else upper))
        penalties = reduce(add, parts) if parts else Zero()
        return minimise_composite(fn, x0, penalties, tolerance=tolerance, num_steps=num_steps)
    if tolerance is None:
        tolerance = float(jnp.finfo(_tree.dtype_of(x0)).eps)

    def choices() -> dict[str, Any]:
        return {
            "geometry": L2() if isinstance(x0, GridFunction) else Euclidean(),
            "scheme": LinearlyImplicit(scale=LearntDiagonal(memory=0.0)),
            "num_steps": num_steps,
            "save_every": max(1, num_steps // 1000),
            "stop": ModelDecrease(tolerance),
        }

    def flow_on(state: PyTree, steps: int) -> Path:
        return flow(fn, state, **{**choices(), "num_steps": steps}, throw=False)

    return launch(
        (minimise, tolerance, num_steps),
        fn,
        x0,
        choices,
        finish=lambda path: settled(path, fn, flow_on, num_steps, tolerance),
        inside=lambda: minimise_inside(fn, x0, choices),
    )
