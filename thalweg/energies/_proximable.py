r"""Constraints and penalties with a proximal map: what has a corner or a wall and is never differentiated.

A proximable energy g is convex, and

$$\operatorname{prox}_{\alpha g}(x) = \operatorname{argmin}_y \tfrac{1}{2\alpha}\|y - x\|^2 + g(y)$$

has a closed form: the sentence itself, solved exactly. A constraint is the energy that is 0 inside and $+\infty$
outside; its proximal map is the projection. Added to a smooth function, `f + tw.L1(0.1)`, it makes a composite energy
for [`thalweg.ForwardBackward`][] and [`thalweg.ProximalNewton`][].

In place of a derivative there is a *least subgradient*: of all slopes $\xi + \partial g(x)$ the shortest, whose
negative is the velocity of the gradient flow (Brézis). It is zero exactly at stationary points.
"""

import abc
import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from thalweg import _tree
from thalweg._sums import sums
from thalweg._types import Array, PyTree, Scalar, ScalarLike, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._parameters import (
    check_bounds,
    check_spread,
    check_weight,
    known,
    metric_like,
    numbers,
    spread,
    times,
    vector,
)


class AbstractProximable(AbstractEnergy):
    """A convex energy of a vector or pytree with a proximal map in closed form."""

    # Whether `prox` takes a metric that differs from entry to entry.
    takes_metric: ClassVar[bool] = True

    @abc.abstractmethod
    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        r"""$\operatorname{argmin}_y \tfrac{1}{2\alpha}\sum_i d_i (y_i - x_i)^2 + g(y)$; `step` is $\alpha$,
        `metric_diagonal` is d, shaped like the point (`None`: ones).
        """

    def inside(self, point: State) -> Scalar:
        """The energy at a point that is known to satisfy the constraints, such as what `prox` returns."""
        return self(point)

    @abc.abstractmethod
    def least_subgradient(self, point: State, gradient: State) -> State:
        r"""The element of least Euclidean norm of $\xi + \partial g(x)$, for a gradient $\xi$ of the smooth part."""

    @abc.abstractmethod
    def scaled(self, factor: ScalarLike) -> "AbstractProximable":
        """The energy times a positive factor."""

    @abc.abstractmethod
    def check(self, state: State) -> None:
        """Raise `ValueError` if the parameters do not fit the shape of the state."""


class Separable(eqx.Module):
    r"""$\sum_i w_i|x_i| + \tfrac12 r_i x_i^2$ on $l_i \le x_i \le u_i$: what every separable energy here is.

    Each part is a number, an array that broadcasts to every leaf of the state, or a tree like the state.
    """

    weight: PyTree
    ridge: PyTree
    lower: PyTree
    upper: PyTree

    @property
    def is_flat(self) -> bool:
        """Whether there are bounds only, so that the energy is zero between them."""
        return all(isinstance(part, float) and part == 0 for part in (self.weight, self.ridge))

    def at(self, state: State) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        """The four parts, each shaped like the state."""
        return tuple(spread(part, state) for part in (self.weight, self.ridge, self.lower, self.upper))  # type: ignore[return-value]

    def value(self, x: Array) -> Scalar:
        """The sum between the bounds, for one array with parts shaped like it."""
        return sums(self.weight * jnp.abs(x) + 0.5 * self.ridge * x**2)[0]

    def prox(self, x: Array, step: Array) -> Array:
        """The proximal map of one array, with a step for each entry."""
        return _entrywise(x, step, self.weight, self.ridge, self.lower, self.upper)

    def slope(self, x: Array, step: Array) -> Array:
        """The derivative of the proximal map, entry by entry."""
        return _entrywise_slope(x, step, self.weight, self.ridge, self.lower, self.upper)

    def corners(self, step: Array) -> Array:
        """Where the proximal map has corners, in four rows; infinite where there is none."""
        cut = step * self.weight
        none = jnp.full_like(cut, jnp.inf)
        bounds = [
            jnp.where(jnp.isfinite(bound), bound * (1 + step * self.ridge) + cut * jnp.sign(bound), none)
            for bound in (self.lower, self.upper)
        ]
        return jnp.stack([*bounds, jnp.where(cut > 0, -cut, none), jnp.where(cut > 0, cut, none)])


def _plain_entrywise(x: Array, step: Array, weight: Array, ridge: Array, lower: Array, upper: Array) -> Array:
    # On the line a convex function less its domain, then the domain: soft threshold, shrink, clip. At ties the
    # derivative is that inside, so that what is barely active counts as free; equal bounds are never free.
    cut = step * weight
    shrunk = jnp.where(jnp.abs(x) >= cut, x - cut * jnp.sign(x), 0) / (1 + step * ridge)
    clipped = jnp.where(shrunk < lower, lower, jnp.where(shrunk > upper, upper, shrunk))
    return jnp.where(lower >= upper, lower, clipped)


def _entrywise_slope(x: Array, step: Array, weight: Array, ridge: Array, lower: Array, upper: Array) -> Array:
    cut, shrink = step * weight, 1 / (1 + step * ridge)
    shrunk = (x - cut * jnp.sign(x)) * shrink
    free = (jnp.abs(x) >= cut) & (shrunk >= lower) & (shrunk <= upper) & (lower < upper)
    return jnp.where(free, shrink, 0)


_entrywise = jax.custom_jvp(_plain_entrywise)


@functools.partial(_entrywise.defjvp, symbolic_zeros=True)
def _(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    # One factor in place of four masks, where the point alone changes: that is what Newton's method asks for.
    if all(isinstance(tangent, SymbolicZero) for tangent in tangents[1:]):
        return _plain_entrywise(*primals), _entrywise_slope(*primals) * tangents[0]
    filled = tuple(
        jnp.zeros_like(primal) if isinstance(tangent, SymbolicZero) else tangent
        for primal, tangent in zip(primals, tangents, strict=True)
    )
    return jax.jvp(_plain_entrywise, primals, filled)


class AbstractSeparable(AbstractProximable):
    """A proximable energy that is a sum over entries; any number of them may be added together."""

    @abc.abstractmethod
    def parts(self) -> Separable:
        """The weights and bounds, entry by entry."""

    @abc.abstractmethod
    def scaled(self, factor: ScalarLike) -> "AbstractSeparable":
        """The energy times a positive factor."""

    def __call__(self, state: State) -> Scalar:
        point = vector(self, state)

        def outside(x: Array, lower: Array, upper: Array) -> Scalar:
            return sums(jnp.where((lower <= x) & (x <= upper), 0, 1).astype(x.dtype))[0]

        _, _, lower, upper = self.parts().at(point)
        number = _tree.total(jax.tree.map(outside, point, lower, upper))
        return jnp.where(number == 0, self.inside(point), jnp.inf)

    def inside(self, point: State) -> Scalar:
        parts = self.parts()
        if parts.is_flat:
            return jnp.zeros((), _tree.dtype_of(point))
        return _tree.total(jax.tree.map(lambda x, *here: Separable(*here).value(x), point, *parts.at(point)))

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        def leaf(x: Array, metric: Array, *here: Array) -> Array:
            return Separable(*here).prox(x, jnp.asarray(step, x.dtype) / metric)

        return jax.tree.map(leaf, point, metric_like(metric_diagonal, point), *self.parts().at(point))

    def least_subgradient(self, point: State, gradient: State) -> State:
        def leaf(x: Array, slope: Array, weight: Array, ridge: Array, lower: Array, upper: Array) -> Array:
            slope = slope + ridge * x
            least = jnp.where(x <= lower, -jnp.inf, slope + jnp.where(x > 0, weight, -weight))
            most = jnp.where(x >= upper, jnp.inf, slope + jnp.where(x < 0, -weight, weight))
            return jnp.clip(jnp.zeros_like(x), least, most)

        return jax.tree.map(leaf, point, gradient, *self.parts().at(point))

    def check(self, state: State) -> None:
        parts = self.parts()
        check_spread(vector(self, state), parts.weight, parts.ridge, parts.lower, parts.upper)


class Box(AbstractSeparable):
    r"""Bounds $l \le x \le u$: 0 inside, $+\infty$ outside; its proximal map clips.

    **Arguments:** `lower`, `upper`: a number, an array that broadcasts to the state, or a tree like the state; `None`
    or infinity where there is no bound. Equal bounds fix an entry.

    **Raises:** `ValueError` if the bounds cross, hold NaN, or do not fit the state.
    """

    lower: PyTree = eqx.field(default=None, converter=lambda bound: numbers(-jnp.inf if bound is None else bound))
    upper: PyTree = eqx.field(default=None, converter=lambda bound: numbers(jnp.inf if bound is None else bound))

    def __check_init__(self) -> None:
        if known(self.lower, self.upper):
            check_bounds(self.lower, self.upper)

    def parts(self) -> Separable:
        return Separable(0.0, 0.0, self.lower, self.upper)

    def scaled(self, factor: ScalarLike) -> "Box":
        return self


class NonNegative(AbstractSeparable):
    r"""$x \ge 0$: 0 inside, $+\infty$ outside; its proximal map is $\max(x, 0)$."""

    def parts(self) -> Separable:
        return Separable(0.0, 0.0, 0.0, jnp.inf)

    def scaled(self, factor: ScalarLike) -> "NonNegative":
        return self


class L1(AbstractSeparable):
    r"""The lasso penalty $\sum_i w_i |x_i|$, whose proximal map is the soft threshold. (The norm as a geometry is
    [`thalweg.OneNorm`][].)

    **Arguments:** `weight`: $w \ge 0$: a number, an array that broadcasts to the state, or a tree like the state; zero
    where an entry (an intercept) is not penalised.

    **Source:** Tibshirani, *Regression shrinkage and selection via the lasso* (1996).
    """

    weight: PyTree = eqx.field(converter=lambda weight: numbers(weight))

    def __check_init__(self) -> None:
        check_weight(self.weight, "weight", "L1")

    def parts(self) -> Separable:
        return Separable(self.weight, 0.0, -jnp.inf, jnp.inf)

    def scaled(self, factor: ScalarLike) -> "L1":
        return L1(times(factor, self.weight))


class ElasticNet(AbstractSeparable):
    r"""$\sum_i w_i|x_i| + \tfrac12 r_i x_i^2$: the lasso and ridge penalties together.

    **Arguments:** `weight`: $w \ge 0$, of the absolute values; `ridge`: $r \ge 0$, of the halved squares; each as for
    [`thalweg.L1`][].

    **Source:** Zou, Hastie, *Regularization and variable selection via the elastic net* (2005).
    """

    weight: PyTree = eqx.field(converter=lambda weight: numbers(weight))
    ridge: PyTree = eqx.field(converter=lambda ridge: numbers(ridge))

    def __check_init__(self) -> None:
        check_weight(self.weight, "weight", "ElasticNet")
        check_weight(self.ridge, "ridge", "ElasticNet")

    def parts(self) -> Separable:
        return Separable(self.weight, self.ridge, -jnp.inf, jnp.inf)

    def scaled(self, factor: ScalarLike) -> "ElasticNet":
        return ElasticNet(times(factor, self.weight), times(factor, self.ridge))


class SeparableSum(AbstractSeparable):
    """Several separable energies added: their weights add, their bounds intersect. Made by adding them."""

    terms: tuple[AbstractSeparable, ...]
    like: State

    def parts(self) -> Separable:
        own = [term.parts() for term in self.terms]
        each = [parts.at(self.like) for parts in own]
        add = lambda *leaves: sum(leaves[1:], start=leaves[0])  # noqa: E731
        most = lambda *leaves: jnp.max(jnp.stack(leaves), axis=0)  # noqa: E731
        least = lambda *leaves: jnp.min(jnp.stack(leaves), axis=0)  # noqa: E731
        weight, ridge, lower, upper = (
            jax.tree.map(fold, *parts)
            for fold, parts in zip((add, add, most, least), zip(*each, strict=True), strict=True)
        )
        if all(parts.is_flat for parts in own):
            weight = ridge = 0.0
        return Separable(weight, ridge, lower, upper)

    def scaled(self, factor: ScalarLike) -> "SeparableSum":
        return SeparableSum(tuple(term.scaled(factor) for term in self.terms), self.like)
