r"""A geometry in which D is the square of one norm, and what every such norm owes.

For a norm $\|\cdot\|$ with dual $\|g\|_* = \max_{\|v\| \le 1}\langle g, v\rangle$ the linear minimisation oracle is
$\operatorname{lmo}(g) = \operatorname{argmin}_{\|v\| \le 1}\langle g, v\rangle$ and steepest descent is $v =
\|g\|_*\operatorname{lmo}(g)$, so $-\langle g, v\rangle = \|v\|^2 = \|g\|_*^2$ in every norm. A norm gives `descent`,
from which the oracle follows by that identity; not the other way round, since $v$ of a smooth norm has a derivative at
$g = 0$ and the oracle has none.

At ties the minimiser is not unique, and each class says which it takes. Everywhere a zero gradient gives a zero
velocity and a zero oracle.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state
from thalweg.states import AbstractState, moving


class AbstractNorm(AbstractGeometry):
    """A geometry in which D is the square of one norm, the same everywhere."""

    @abc.abstractmethod
    def norm(self, tangent: Any) -> Scalar:
        r"""$\|v\|$ of a vector, a pytree like the moving part of the state."""

    @abc.abstractmethod
    def norm_squared(self, tangent: Any) -> Scalar:
        """The squared norm, with right first and second derivatives at zero where it is smooth."""

    @abc.abstractmethod
    def dual_norm(self, gradient: Any) -> Scalar:
        r"""$\|g\|_* = \max_{\|v\| \le 1}\langle g, v\rangle$."""

    @abc.abstractmethod
    def descent(self, gradient: Any) -> Any:
        r"""The direction of steepest descent, $\operatorname{argmin}_v\langle g, v\rangle + \tfrac12\|v\|^2 = \|g\|_*
        \operatorname{lmo}(g)$.
        """

    @abc.abstractmethod
    def check(self, state: State) -> None:
        """Raise `ValueError` if the norm does not fit the shape of the state."""

    @property
    @abc.abstractmethod
    def is_smooth(self) -> bool:
        """Whether the squared norm is differentiable (twice, by automatic differentiation)."""

    @property
    @abc.abstractmethod
    def is_inner_product(self) -> bool:
        """Whether the squared norm is a quadratic form, so that the metric has a matrix."""

    def lmo(self, gradient: Any) -> Any:
        r"""The linear minimisation oracle $\operatorname{argmin}_{\|v\| \le 1}\langle g, v\rangle$: $\|\mathrm{lmo}\| =
        1$ and $\langle g, \mathrm{lmo}\rangle = -\|g\|_*$; zero at a zero gradient.
        """
        return dual_and_lmo(self, gradient)[1]

    def at(self, state: State, memory: Any = None) -> "NormedMetric":
        """The metric of the norm at a state."""
        if isinstance(state, AbstractState):
            raise unsupported_state(self, state, ["vectors and pytrees of arrays"])
        self.check(state)
        return NormedMetric(state, self)


class NormedMetric(AbstractMetric):
    """The metric of a norm: the same at every point."""

    state: State
    geometry: AbstractNorm

    distance_kind = "exact"
    is_constant = True

    @property
    def distance_is_smooth(self) -> bool:
        """Whether the squared norm is differentiable."""
        return self.geometry.is_smooth

    @property
    def matrix(self) -> Callable[[], Array] | None:
        """The Gram matrix in flat coordinates, shape `(n, n)`; `None` where the norm is not an inner product."""
        return self._gram if self.geometry.is_inner_product else None

    def _gram(self) -> Array:
        flat, unravel = ravel_pytree(moving(self.state))
        return jax.hessian(lambda v: 0.5 * self.geometry.norm_squared(unravel(v)))(jnp.zeros_like(flat))

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        return Velocity(self.geometry.descent(cotangent.regular))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return self.geometry.norm_squared(velocity.tangent)

    def move(self, velocity: Velocity, scale: ScalarLike) -> State:
        return _tree.multiply_add(self.state, scale, velocity.tangent)

    def distance_squared(self, other: State) -> Scalar:
        difference = _tree.multiply_add(moving(other), -1.0, moving(self.state))
        return self.geometry.norm_squared(difference)

    def chart(self, coordinates: Any) -> State:
        return _tree.multiply_add(self.state, 1.0, coordinates)


def dual_and_lmo(norm: AbstractNorm, gradient: Any) -> tuple[Scalar, Any]:
    r"""The dual norm and the oracle by one call of `descent`: $\|g\|_*^2 = -\langle g, v\rangle$."""
    # Scaled to a largest entry of one, so that no product under- or overflows; descent is homogeneous.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]))
    scale = jnp.where(largest > 0, largest, 1)
    scaled = _tree.scale_by(gradient, 1 / scale)
    velocity = norm.descent(scaled)
    dual = safe_sqrt(-_tree.dot(scaled, velocity))
    return scale * dual, _tree.scale_by(velocity, 1 / jnp.where(dual > 0, dual, 1))


def flat(tree: Any) -> Array:
    """The entries of a pytree, end to end."""
    return ravel_pytree(tree)[0]


def safe_sqrt(value: Array) -> Array:
    """The root, zero below zero, with the derivative at zero taken as zero, not NaN: that of a norm."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0)


def is_at_least(number: Any, bound: float) -> bool:
    """Whether a number reaches a bound; one that cannot be looked at while JAX traces is taken to have been looked at
    before.
    """
    return _tree.is_traced(number) or bool(number >= bound)
