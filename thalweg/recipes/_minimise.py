"""minimise(): a few lines over flow."""

from collections.abc import Callable
from typing import Any

from thalweg._flow import flow
from thalweg._measure import Stationary
from thalweg._path import Path
from thalweg._types import PyTree
from thalweg.geometries import Euclidean
from thalweg.schemes import Backtracking, Explicit


def minimise(fn: Callable[..., Any], x0: PyTree, *, tolerance: float = 1e-6, num_steps: int = 10000) -> Path:
    r"""Minimise a function of a vector by gradient descent with a step size found on the way.

    **Arguments:** `fn`: a function of an array or pytree that returns a scalar; `x0`: where to begin; `tolerance`:
    stop when $\|\nabla f\| \le$ `tolerance`; `num_steps`: the most steps taken.

    **Returns:** a [`thalweg.Path`][]; `path.result` is `tw.RESULTS.stopped` when the tolerance was reached, and
    `path.final.state` is the point. On a function that is not convex it is a stationary point, not always a minimum.
    """
    return flow(
        fn,
        x0,
        geometry=Euclidean(),
        scheme=Explicit(Backtracking()),
        num_steps=num_steps,
        save_every=max(1, num_steps // 1000),
        stop=Stationary(tolerance),
        throw=False,
    )
