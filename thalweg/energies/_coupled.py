r"""Proximable energies of Euclidean lengths: ball, groups, and what may be added to them.

A function $\ell$ of the length alone and a positively homogeneous g, $g(tx) = t\,g(x)$ for $t > 0$, have the joint
proximal map $\operatorname{prox}_\ell \circ \operatorname{prox}_g$: the outer one scales along a ray, on which the
subgradients of g stay what they are.

**Source:** Yu, *On decomposing the proximal map* (NeurIPS 2013); Simon et al., *A sparse-group lasso* (2013).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Flag, PyTree, Scalar, ScalarLike, State
from thalweg.energies._parameters import (
    check_positive,
    check_weight,
    known,
    numbers,
    refuse_metric,
    safe_root,
    spread,
    times,
    vector,
)
from thalweg.energies._proximable import AbstractProximable, AbstractSeparable


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

    def inside(self, point: State) -> Scalar:
        return jnp.zeros((), _tree.dtype_of(point))

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

    def is_centred(self) -> Flag:
        """Whether the centre is the origin."""
        return jnp.all(jnp.stack([jnp.all(leaf == 0) for leaf in jax.tree.leaves(self.centre)]))


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


class LengthAndSeparable(AbstractProximable):
    """A ball around the origin or the lengths of groups, plus a positively homogeneous separable energy (L1, signs).
    Made by adding the two.
    """

    length: L2Ball | GroupLasso
    separable: AbstractSeparable

    takes_metric = False

    def __call__(self, state: State) -> Scalar:
        return self.length(state) + self.separable(state)

    def inside(self, point: State) -> Scalar:
        return self.length.inside(point) + self.separable.inside(point)

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        refuse_metric(self, metric_diagonal)
        return self._or_nan(self.length.prox(self.separable.prox(point, step), step))

    def least_subgradient(self, point: State, gradient: State) -> State:
        # Entries at zero have no part in the direction of the ray, so the two shorten the slope one after the other.
        return self._or_nan(self.length.least_subgradient(point, self.separable.least_subgradient(point, gradient)))

    def scaled(self, factor: ScalarLike) -> "LengthAndSeparable":
        return LengthAndSeparable(self.length.scaled(factor), self.separable.scaled(factor))

    def check(self, state: State) -> None:
        self.length.check(state)
        self.separable.check(state)
        if isinstance(self.length, L2Ball) and known(self.length.centre) and not bool(self.length.is_centred()):
            raise UnsupportedCombination(
                "`L2Ball` has a joint proximal map with `L1` and `NonNegative` only around the origin; `centre` is not "
                "zero.\nMove the origin to the centre in the function, or keep one of the two in the function."
            )

    def _or_nan(self, point: State) -> State:
        # A centre that could not be looked at beforehand.
        if not isinstance(self.length, L2Ball):
            return point
        return _tree.where(self.length.is_centred(), point, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), point))
