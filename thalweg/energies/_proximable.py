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
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, PyTree, Scalar, ScalarLike, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._parameters import check_bounds, check_weight, known, metric_like, numbers, spread, times, vector


class AbstractProximable(AbstractEnergy):
    """A convex energy of a vector or pytree with a proximal map in closed form."""

    # Whether `prox` takes a metric that differs from entry to entry.
    takes_metric: ClassVar[bool] = True

    @abc.abstractmethod
    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        r"""$\operatorname{argmin}_y \tfrac{1}{2\alpha}\sum_i d_i (y_i - x_i)^2 + g(y)$; `step` is $\alpha$,
        `metric_diagonal` is d, shaped like the point (`None`: ones).
        """

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

    def at(self, state: State) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        """The four parts, each shaped like the state."""
        return tuple(spread(part, state) for part in (self.weight, self.ridge, self.lower, self.upper))  # type: ignore[return-value]


class AbstractSeparable(AbstractProximable):
    """A proximable energy that is a sum over entries; any number of them may be added together."""

    @abc.abstractmethod
    def parts(self) -> Separable:
        """The weights and bounds, entry by entry."""

    def __call__(self, state: State) -> Scalar:
        def leaf(x: Array, weight: Array, ridge: Array, lower: Array, upper: Array) -> Scalar:
            inside = jnp.all((lower <= x) & (x <= upper))
            return jnp.where(inside, jnp.sum(weight * jnp.abs(x) + 0.5 * ridge * x**2), jnp.inf)

        point = vector(self, state)
        return _tree.total(jax.tree.map(leaf, point, *self.parts().at(point)))

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        def leaf(x: Array, weight: Array, ridge: Array, lower: Array, upper: Array, metric: Array) -> Array:
            step_here = jnp.asarray(step, x.dtype) / metric
            # On the line a convex function less its domain, then the domain: soft threshold, shrink, clip. At ties the
            # derivative is that inside, so that what is barely active counts as free; equal bounds are never free.
            cut = step_here * weight
            shrunk = jnp.where(jnp.abs(x) >= cut, x - cut * jnp.sign(x), 0) / (1 + step_here * ridge)
            below, above = shrunk < lower, shrunk > upper
            clipped = jnp.where(below, lower, jnp.where(above, upper, shrunk))
            return jnp.where(lower >= upper, lower, clipped)

        return jax.tree.map(leaf, point, *self.parts().at(point), metric_like(metric_diagonal, point))

    def least_subgradient(self, point: State, gradient: State) -> State:
        def leaf(x: Array, slope: Array, weight: Array, ridge: Array, lower: Array, upper: Array) -> Array:
            slope = slope + ridge * x
            least = jnp.where(x <= lower, -jnp.inf, slope + jnp.where(x > 0, weight, -weight))
            most = jnp.where(x >= upper, jnp.inf, slope + jnp.where(x < 0, -weight, weight))
            return jnp.clip(jnp.zeros_like(x), least, most)

        return jax.tree.map(leaf, point, gradient, *self.parts().at(point))

    def check(self, state: State) -> None:
        self.parts().at(vector(self, state))


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
    """Several separable energies added: their weights add, their bounds intersect. Made by [`joint`][]."""

    terms: tuple[AbstractSeparable, ...]
    like: State

    def parts(self) -> Separable:
        each = [term.parts().at(self.like) for term in self.terms]
        add = lambda *leaves: sum(leaves[1:], start=leaves[0])  # noqa: E731
        most = lambda *leaves: jnp.max(jnp.stack(leaves), axis=0)  # noqa: E731
        least = lambda *leaves: jnp.min(jnp.stack(leaves), axis=0)  # noqa: E731
        weight, ridge, lower, upper = (
            jax.tree.map(fold, *parts)
            for fold, parts in zip((add, add, most, least), zip(*each, strict=True), strict=True)
        )
        return Separable(weight, ridge, lower, upper)

    def scaled(self, factor: ScalarLike) -> "SeparableSum":
        scaled = (term.scaled(factor) for term in self.terms)
        return SeparableSum(tuple(term for term in scaled if isinstance(term, AbstractSeparable)), self.like)


def joint(terms: Any, state: State) -> AbstractProximable:
    """One proximable energy for the terms of a decomposition: none, one, or several separable ones.

    **Raises:** `UnsupportedCombination` if there is no joint proximal map; `ValueError` if a factor is not positive or
    bounds have nothing in common.
    """
    for term in terms:
        if not _tree.is_traced(term.scale) and not (np.isfinite(term.scale) and term.scale > 0):
            raise ValueError(
                f"`{type(term.energy).__name__}` is convex and needs a positive factor to have a proximal map; it has "
                f"{float(term.scale)}."
            )
    energies = [term.energy.scaled(term.scale) for term in terms]
    if not energies:
        return Box()
    if len(energies) == 1:
        return energies[0]
    separable = tuple(energy for energy in energies if isinstance(energy, AbstractSeparable))
    if len(separable) < len(energies):
        names = " + ".join(type(energy).__name__ for energy in energies)
        raise UnsupportedCombination(
            f"{names} has no joint proximal map in closed form.\n"
            "Only entry-wise energies can be added to each other: Box, NonNegative, L1, ElasticNet."
        )
    both = SeparableSum(separable, _tree.floating(state))
    parts = both.parts()
    if known(parts.lower, parts.upper):
        check_bounds(parts.lower, parts.upper)
    return both
