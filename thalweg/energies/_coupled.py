"""Proximable energies that couple the entries: simplex, hyperplane, ball, groups."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._types import Array, PyTree, Scalar, ScalarLike, State
from thalweg.energies._parameters import (
    check_positive,
    check_weight,
    known,
    metric_like,
    numbers,
    refuse_metric,
    safe_root,
    spread,
    times,
    vector,
)
from thalweg.energies._proximable import AbstractProximable


class Simplex(AbstractProximable):
    r"""$x \ge 0$, $\sum_i x_i = t$: 0 inside, $+\infty$ outside; its proximal map is the projection, found by sorting.

    **Arguments:** `total`: $t > 0$; `axis`: `None` for all entries of the state put end to end, or the axis of each
    leaf along which every slice lies in a simplex (−1: the rows of a stochastic matrix).

    **Source:** Held, Wolfe, Crowder (1974); Duchi et al., *Efficient projections onto the ℓ1-ball* (ICML 2008).
    """

    total: Array = eqx.field(default=1.0, converter=lambda total: numbers(total))
    axis: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_positive(self.total, "total", "Simplex")

    def __call__(self, state: State) -> Scalar:
        def leaf(x: Array, _: Any) -> Scalar:
            total = self.total.astype(x.dtype)
            slack = 64 * x.shape[-1] * jnp.finfo(x.dtype).eps * total
            inside = jnp.all(x >= 0) & jnp.all(jnp.abs(jnp.sum(x, axis=-1) - total) <= slack)
            return jnp.where(inside, jnp.zeros((), x.dtype), jnp.inf)

        return _tree.total(jax.tree.leaves(self._rows(leaf, vector(self, state), None, back=False)))

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        project = lambda x, metric: _onto_simplex(x, metric, self.total.astype(x.dtype))  # noqa: E731
        return self._rows(project, point, metric_diagonal)

    def least_subgradient(self, point: State, gradient: State) -> State:
        # The velocity is −ξ projected onto the directions that stay inside: their sum is zero, and where x is zero
        # they are not negative. The multiplier τ solves Σ max(−ξ − τ, 0 where x = 0) = 0 by the same sorting: entries
        # inside count always, those at zero in order of −ξ.
        def leaf(x: Array, slope: Array) -> Array:
            return -_onto_tangent_cone(-slope, x <= 0)

        return self._rows(leaf, point, gradient)

    def scaled(self, factor: ScalarLike) -> "Simplex":
        return self

    def check(self, state: State) -> None:
        point = vector(self, state)
        if self.axis is not None and any(not -leaf.ndim <= self.axis < leaf.ndim for leaf in jax.tree.leaves(point)):
            shapes = [leaf.shape for leaf in jax.tree.leaves(point)]
            raise ValueError(f"`Simplex` with axis={self.axis} does not fit a state of shapes {shapes}.")

    def _rows(self, fn: Callable[[Array, Array], Array], point: State, other: PyTree, back: bool = True) -> Any:
        """`fn` on arrays whose last axis is one simplex, with `other` (`None`: ones) laid out the same way."""
        other = metric_like(other, point)
        if self.axis is None:
            flat, unravel = ravel_pytree(point)
            out = fn(flat, ravel_pytree(other)[0])
            return unravel(out) if back else out
        axis = self.axis
        moved = lambda x, w: fn(jnp.moveaxis(x, axis, -1), jnp.moveaxis(w, axis, -1))  # noqa: E731
        return jax.tree.map(lambda x, w: jnp.moveaxis(moved(x, w), -1, axis) if back else moved(x, w), point, other)


class Hyperplane(AbstractProximable):
    r"""One linear constraint $\sum_i a_i x_i = b$: 0 there, $+\infty$ elsewhere.

    **Arguments:** `offset`: b; `normal`: $a \ne 0$, a number (1: the entries sum to b), an array that broadcasts to the
    state, or a tree like the state.
    """

    offset: Array = eqx.field(default=0.0, converter=lambda offset: numbers(offset))
    normal: PyTree = eqx.field(default=1.0, converter=lambda normal: numbers(normal))

    def __check_init__(self) -> None:
        if known(self.offset, self.normal):
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((self.offset, self.normal))]
            if not all(np.all(np.isfinite(leaf)) for leaf in leaves) or not any(np.any(leaf) for leaf in leaves[1:]):
                raise ValueError("`Hyperplane` needs a finite `offset` and a finite `normal` that is not zero.")

    def __call__(self, state: State) -> Scalar:
        point = vector(self, state)
        normal = spread(self.normal, point)
        products = ravel_pytree(jax.tree.map(lambda a, x: a * x, normal, point))[0]
        offset = self.offset.astype(products.dtype)
        slack = 64 * jnp.finfo(products.dtype).eps * (jnp.sum(jnp.abs(products)) + jnp.abs(offset))
        return jnp.where(jnp.abs(jnp.sum(products) - offset) <= slack, jnp.zeros((), products.dtype), jnp.inf)

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        normal = spread(self.normal, point)
        across = jax.tree.map(lambda a, d: a / d, normal, metric_like(metric_diagonal, point))
        beyond = _tree.dot(normal, point)
        away = (beyond - self.offset.astype(beyond.dtype)) / _tree.dot(normal, across)
        return _tree.multiply_add(point, -away, across)

    def least_subgradient(self, point: State, gradient: State) -> State:
        normal = spread(self.normal, point)
        return _tree.multiply_add(gradient, -_tree.dot(normal, gradient) / _tree.dot(normal, normal), normal)

    def scaled(self, factor: ScalarLike) -> "Hyperplane":
        return self

    def check(self, state: State) -> None:
        spread(self.normal, vector(self, state))


class L2Ball(AbstractProximable):
    r"""$\|x - c\|_2 \le r$: 0 inside, $+\infty$ outside; its proximal map pulls back radially.

    **Arguments:** `radius`: $r > 0$; `centre`: c, a number, an array that broadcasts to the state, or a tree like it.
    """

    radius: Array = eqx.field(converter=lambda radius: numbers(radius))
    centre: PyTree = eqx.field(default=0.0, converter=lambda centre: numbers(centre))

    takes_metric = False

    def __check_init__(self) -> None:
        check_positive(self.radius, "radius", "L2Ball")

    def __call__(self, state: State) -> Scalar:
        _, length = self._offset(vector(self, state))
        slack = 1 + 32 * jnp.finfo(length.dtype).eps
        return jnp.where(length <= slack * self.radius.astype(length.dtype), jnp.zeros((), length.dtype), jnp.inf)

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        refuse_metric(self, metric_diagonal)
        offset, length = self._offset(point)
        factor = jnp.minimum(1, self.radius.astype(length.dtype) / jnp.where(length > 0, length, 1))
        centre = spread(self.centre, point)
        outside = length > self.radius.astype(length.dtype)
        return _tree.where(outside, _tree.multiply_add(centre, factor, offset), point)

    def least_subgradient(self, point: State, gradient: State) -> State:
        offset, length = self._offset(point)
        normal = _tree.scale_by(offset, 1 / jnp.where(length > 0, length, 1))
        outwards = jnp.minimum(_tree.dot(normal, gradient), 0)
        edge = length >= self.radius.astype(length.dtype) * (1 - 32 * jnp.finfo(length.dtype).eps)
        return _tree.multiply_add(gradient, jnp.where(edge, -outwards, 0), normal)

    def scaled(self, factor: ScalarLike) -> "L2Ball":
        return self

    def check(self, state: State) -> None:
        spread(self.centre, vector(self, state))

    def _offset(self, point: State) -> tuple[PyTree, Scalar]:
        offset = _tree.multiply_add(point, -1.0, spread(self.centre, point))
        return offset, safe_root(_tree.dot(offset, offset))


class GroupLasso(AbstractProximable):
    r"""$w \sum_g \|x_g\|_2$, the $\ell_{2,1}$ penalty: whole groups become zero.

    **Arguments:** `weight`: $w \ge 0$; `groups`: integer labels $0, \dots, G-1$, one for each entry of a vector, or
    `None`: every slice of a leaf along `axis` is a group (−1: the rows of a matrix, and a vector as a whole).

    **Source:** Yuan, Lin, *Model selection and estimation in regression with grouped variables* (2006).
    """

    weight: Array = eqx.field(converter=lambda weight: numbers(weight))
    groups: Any = None
    axis: int = eqx.field(static=True, default=-1)

    takes_metric = False

    def __check_init__(self) -> None:
        check_weight(self.weight, "weight", "GroupLasso")
        if jnp.ndim(self.weight) != 0:
            raise ValueError(f"`weight` of `GroupLasso` must be one number; got shape {jnp.shape(self.weight)}.")
        if self.groups is not None and not jnp.issubdtype(jnp.asarray(self.groups).dtype, jnp.integer):
            raise ValueError("`groups` of `GroupLasso` must be integer labels, one for each entry of the vector.")

    def __call__(self, state: State) -> Scalar:
        def leaf(x: Array) -> Scalar:
            return jnp.sum(safe_root(self._squares(x, at_entries=False))) * self.weight.astype(x.dtype)

        return _tree.total(jax.tree.map(leaf, vector(self, state)))

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        refuse_metric(self, metric_diagonal)

        def leaf(x: Array) -> Array:
            length = safe_root(self._squares(x))
            cut = jnp.asarray(step, x.dtype) * self.weight.astype(x.dtype)
            kept = length > cut
            return jnp.where(kept, x * (1 - cut / jnp.where(kept, length, 1)), 0)

        return jax.tree.map(leaf, point)

    def least_subgradient(self, point: State, gradient: State) -> State:
        def leaf(x: Array, slope: Array) -> Array:
            length, steepness = safe_root(self._squares(x)), safe_root(self._squares(slope))
            weight = self.weight.astype(x.dtype)
            away = slope + weight * x / jnp.where(length > 0, length, 1)
            shrunk = slope * jnp.maximum(0, 1 - weight / jnp.where(steepness > 0, steepness, 1))
            return jnp.where(length > 0, away, shrunk)

        return jax.tree.map(leaf, point, gradient)

    def scaled(self, factor: ScalarLike) -> "GroupLasso":
        return GroupLasso(times(factor, self.weight), self.groups, self.axis)

    def check(self, state: State) -> None:
        shapes = [leaf.shape for leaf in jax.tree.leaves(vector(self, state))]
        if self.groups is not None and shapes != [jnp.shape(self.groups)]:
            raise ValueError(
                f"`groups` of `GroupLasso` needs one label for each entry of a vector: it has shape "
                f"{jnp.shape(self.groups)}, the state {shapes}."
            )
        if self.groups is None and any(not -len(shape) <= self.axis < len(shape) for shape in shapes):
            raise ValueError(f"`GroupLasso` with axis={self.axis} does not fit a state of shapes {shapes}.")

    def _squares(self, x: Array, at_entries: bool = True) -> Array:
        """The squared length of each group, at each entry if `at_entries`."""
        if self.groups is None:
            squares = jnp.sum(x**2, axis=self.axis, keepdims=True)
            return jnp.broadcast_to(squares, x.shape) if at_entries else squares
        labels = jnp.asarray(self.groups)
        squares = jax.ops.segment_sum(x**2, labels, num_segments=x.size)
        return squares[labels] if at_entries else squares


def _onto_simplex(x: Array, metric: Array, total: Scalar) -> Array:
    """y = max(x − τ/d, 0) with the τ at which it sums to `total`, along the last axis."""
    order = jnp.argsort(-x * metric, axis=-1)
    ranked, across = jnp.take_along_axis(x, order, -1), jnp.take_along_axis(1 / metric, order, -1)
    levels = (jnp.cumsum(ranked, axis=-1) - total) / jnp.cumsum(across, axis=-1)
    count = jnp.sum(ranked > levels * across, axis=-1, keepdims=True)
    level = jnp.take_along_axis(levels, jnp.maximum(count - 1, 0), -1)
    # The sum once more over those that stay: it takes away what the long cumulative sum has lost.
    kept = x * metric > level
    level = (jnp.sum(jnp.where(kept, x, 0), axis=-1, keepdims=True) - total) / jnp.sum(
        jnp.where(kept, 1 / metric, 0), axis=-1, keepdims=True
    )
    return jnp.where(kept, jnp.maximum(x - level / metric, 0), 0)


def _onto_tangent_cone(x: Array, walled: Array) -> Array:
    """The nearest y with sum zero and y ≥ 0 where `walled`, along the last axis."""
    # Free entries rank first whatever their size: they count always.
    order = jnp.lexsort((-x, walled), axis=-1)
    ranked, free = jnp.take_along_axis(x, order, -1), ~jnp.take_along_axis(walled, order, -1)
    levels = jnp.cumsum(ranked, axis=-1) / jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    count = jnp.sum(free | (ranked > levels), axis=-1, keepdims=True)
    level = jnp.take_along_axis(levels, jnp.maximum(count - 1, 0), -1)
    return jnp.where(walled, jnp.maximum(x - level, 0), x - level)
