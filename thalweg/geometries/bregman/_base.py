r"""What a convex function must offer to make a geometry: $h$ of Legendre type, its mirror map both ways, its Hessian.

Each is written by hand where there is a formula that keeps its digits; [`thalweg.Legendre`][] makes all of them from
any convex function by automatic differentiation and a solve.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag, PyTree, Scalar


class AbstractLegendre(eqx.Module):
    """A convex function $h$ on an open domain, steep at its boundary; arguments are pytrees like the state."""

    has_matrix: ClassVar[bool] = True

    @abc.abstractmethod
    def value(self, point: PyTree) -> Scalar:
        """$h(x)$."""

    @abc.abstractmethod
    def gradient(self, point: PyTree) -> PyTree:
        r"""The mirror map $\theta = \nabla h(x)$."""

    @abc.abstractmethod
    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        r"""Its inverse $x = \nabla h^*(\theta)$; `near` is a point where a solve may begin."""

    @abc.abstractmethod
    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        r"""$\nabla^2 h(x)\,v$."""

    @abc.abstractmethod
    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        r"""The tangent $v$ with $\langle\nabla^2 h(x)\,v, u\rangle = \langle\xi, u\rangle$ for all tangents $u$."""

    @abc.abstractmethod
    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        r"""$h(y) - h(x) - \langle\nabla h(x), y - x\rangle$, with digits left where $y$ is close to $x$."""

    @abc.abstractmethod
    def contains(self, point: PyTree) -> Flag:
        """Whether the point lies in the domain."""

    @abc.abstractmethod
    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        """A point of the domain for all small coordinates (all, if it can be), `point + coordinates` to first order."""

    @property
    @abc.abstractmethod
    def domain(self) -> str:
        """The domain, in words that end the sentence "The state must ..."."""


def total(values: PyTree) -> Scalar:
    """The sum of all entries of a pytree."""
    sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(values)]
    return jnp.sum(jnp.stack(sums))


def everywhere(flags: PyTree) -> Flag:
    """Whether all entries of a pytree of booleans are true."""
    return jnp.all(jnp.stack([jnp.all(leaf) for leaf in jax.tree.leaves(flags)]))


def relative_entropy_term(other: Array, point: Array) -> Array:
    r"""$y\log(y/x) - y + x$, zero at $y = x$ to second order without the loss of a difference."""
    ratio = other / point - 1
    inside = ratio > -1
    safe = jnp.where(inside, ratio, 0)
    return point * jnp.where(inside, (1 + safe) * jnp.log1p(safe) - safe, jnp.where(ratio == -1, 1, jnp.inf))
