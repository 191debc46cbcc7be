"""Weights and bounds: a number, an array or a tree, checked when made and shaped like the state when used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, PyTree, ScalarLike, State
from thalweg.states import AbstractState


def vector(energy: Any, state: State) -> PyTree:
    """The state, if it is a vector or a pytree of arrays."""
    if isinstance(state, AbstractState):
        raise UnsupportedCombination(
            f"`{type(energy).__name__}` is an energy of vectors and pytrees of arrays; got {type(state).__name__}."
        )
    return _tree.floating(state)


def spread(part: PyTree, point: PyTree) -> PyTree:
    """A number, an array or a tree, shaped like the point."""
    try:
        if jax.tree.structure(part) == jax.tree.structure(point):
            return jax.tree.map(lambda p, x: jnp.broadcast_to(jnp.asarray(p, x.dtype), x.shape), part, point)
        leaves = jax.tree.leaves(part)
        if len(leaves) == 1 and jax.tree.structure(part) == jax.tree.structure(0):
            return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(leaves[0], x.dtype), x.shape), point)
    except ValueError:
        pass
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (part, point)]
    raise ValueError(
        f"A bound or weight must be a number, broadcast to every leaf of the state, or be shaped like it: it has "
        f"shapes {shapes[0]}, the state {shapes[1]}."
    )


def check_spread(point: PyTree, *parts: PyTree) -> None:
    """Raise `ValueError` unless each number, array or tree can be shaped like the point; looks at shapes alone."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(point)]
    for part in parts:
        leaves = [jnp.shape(leaf) for leaf in jax.tree.leaves(part)]
        if leaves == [()] or (len(leaves) == len(shapes) == 1 and leaves == shapes):
            continue
        spread(part, point)


def metric_like(metric_diagonal: PyTree, point: PyTree) -> PyTree:
    """The diagonal of a metric, shaped like the point; ones where there is none."""
    return jax.tree.map(jnp.ones_like, point) if metric_diagonal is None else spread(metric_diagonal, point)


def refuse_metric(energy: Any, metric_diagonal: PyTree) -> None:
    """Raise if a metric is given to a proximal map that has no closed form in one."""
    if metric_diagonal is not None:
        raise UnsupportedCombination(
            f"`{type(energy).__name__}` has a proximal map in the Euclidean metric only; leave `metric_diagonal` out."
        )


def safe_root(value: Array) -> Array:
    """The square root with derivative zero at zero."""
    # The derivative of a length at zero is taken as zero, not NaN.
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1)), 0)


def numbers(tree: PyTree) -> PyTree:
    """Arrays in place of numbers, so that another value does not compile again."""
    return jax.tree.map(_number, tree)


def _number(leaf: Any) -> Any:
    if _tree.is_traced(leaf) or (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)):
        return leaf
    dtype = jnp.result_type(leaf)
    return jnp.asarray(leaf, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float))


def times(factor: ScalarLike, tree: PyTree) -> PyTree:
    """A tree of parameters times a number."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def known(*trees: PyTree) -> bool:
    """Whether all values can be looked at now."""
    return not any(_tree.is_traced(leaf) for leaf in jax.tree.leaves(trees))


def check_weight(weight: PyTree, name: str, owner: str) -> None:
    """Raise `ValueError` unless every number is finite and not negative."""
    if not known(weight):
        return
    for leaf in jax.tree.leaves(weight):
        values = np.asarray(leaf)
        good = np.isfinite(values) & (values >= 0)
        if not np.all(good):
            bad = values[~good].flat[0]
            raise ValueError(f"`{name}` of `{owner}` must be finite and not negative; got {bad}.")


def check_positive(value: Array, name: str, owner: str) -> None:
    """Raise `ValueError` unless it is one positive finite number."""
    if known(value) and not (jnp.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` of `{owner}` must be one positive finite number; got {np.asarray(value)}.")


def check_bounds(lower: PyTree, upper: PyTree) -> None:
    """Raise `ValueError` if bounds cross, hold NaN or leave nothing between them."""
    if jax.tree.structure(lower) != jax.tree.structure(upper):
        # One is a number for every leaf, the other a tree; each pair is looked at when the state is known.
        single = jax.tree.structure(0)
        if jax.tree.structure(lower) == single:
            lower = jax.tree.map(lambda _: lower, upper)
        elif jax.tree.structure(upper) == single:
            upper = jax.tree.map(lambda _: upper, lower)
        else:
            raise ValueError("`lower` and `upper` of `Box` must be trees of the same structure.")
    for below, above in zip(jax.tree.leaves(lower), jax.tree.leaves(upper), strict=True):
        below, above = np.asarray(below), np.asarray(above)
        if np.any(np.isnan(below)) or np.any(np.isnan(above)):
            raise ValueError("The bounds hold NaN; use infinity (or `None`) where there is no bound.")
        try:
            below, above = np.broadcast_arrays(below, above)
        except ValueError as error:
            raise ValueError(f"The bounds have shapes {below.shape} and {above.shape}, which do not fit.") from error
        crossed = (below > above) | (below == np.inf) | (above == -np.inf)
        if np.any(crossed):
            where = tuple(int(i) for i in np.argwhere(crossed)[0])
            raise ValueError(
                f"The bounds cross at entry {where}: lower {below[where]} and upper {above[where]} leave no number "
                f"between them ({int(crossed.sum())} of {crossed.size} entries)."
            )
