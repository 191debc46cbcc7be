r"""Any convex function as a mirror map: its derivatives by automatic differentiation, $\nabla h^*$ by a solve.

$\nabla h^*(\theta)$ minimises $h(y) - \langle\theta, y\rangle$. Weighed: Newton's method on the equation (leaves the
domain, where the logarithms of most such $h$ give NaN), a fixed number of gradient steps (slow, and not to rounding),
and what stands here: Newton's method on the minimisation, each step halved until it stays in the domain and falls.
The answer is differentiable by the implicit function theorem, so that flows through it are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve

from thalweg import _tree
from thalweg._types import Array, Flag, PyTree, Scalar
from thalweg.geometries.bregman._base import AbstractLegendre

_MAX_STEPS = 60
_MAX_CUTS = 50


class Legendre(AbstractLegendre):
    r"""Any convex function $h$ of the state with positive definite Hessian, by automatic differentiation.

    Where $h$ has a formula of its own ([`thalweg.SimplexEntropy`][] and its like) use that: here a step solves for
    $\nabla h^*$ with dense Hessians, right up to a few hundred numbers.

    **Arguments:** `function`: $h$, from the state to a number; `inside`: a function of the state that says whether it
    lies in the domain of $h$; by default wherever $h$ is finite and its Hessian positive definite.

    **Source:** Bauschke, Borwein, *Legendre functions and the method of random Bregman projections* (1997).
    """

    function: Callable[..., Any]
    inside: Callable[..., Any] | None = None

    def value(self, point: PyTree) -> Scalar:
        return jnp.asarray(self.function(point))

    def gradient(self, point: PyTree) -> PyTree:
        return jax.grad(self.value)(point)

    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        (theta, unravel), start = ravel_pytree(dual), ravel_pytree(near)[0]

        def slope(y: Array) -> Array:
            return ravel_pytree(self.gradient(unravel(y)))[0] - theta

        def solve(_: Any, y: Array) -> Array:
            return _minimise(lambda y: self.value(unravel(y)), theta, y, lambda y: self.contains(unravel(y)))

        def tangent_solve(linear: Callable[[Array], Array], right: Array) -> Array:
            return jnp.linalg.solve(jax.jacobian(linear)(right), right)

        return unravel(jax.lax.custom_root(slope, jax.lax.stop_gradient(start), solve, tangent_solve))

    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        return jax.jvp(self.gradient, (point,), (tangent,))[1]

    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        (x, unravel), g = ravel_pytree(point), ravel_pytree(cotangent)[0]
        hessian = jax.hessian(lambda y: self.value(unravel(y)))(x)
        return unravel(cho_solve((jnp.linalg.cholesky(hessian), True), g))

    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        difference = jax.tree.map(jnp.subtract, other, point)
        return self.value(other) - self.value(point) - _tree.dot(self.gradient(point), difference)

    def contains(self, point: PyTree) -> Flag:
        # A function may be finite beyond its domain (1/x is): where it is not convex is outside too.
        x, unravel = ravel_pytree(point)
        factor = jnp.linalg.cholesky(jax.hessian(lambda y: self.value(unravel(y)))(x))
        fine = jnp.isfinite(self.value(point)) & jnp.all(jnp.isfinite(factor))
        return fine if self.inside is None else fine & jnp.asarray(self.inside(point))

    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, point, coordinates)

    @property
    def domain(self) -> str:
        return "lie in the domain of h, where it is finite and its Hessian positive definite"


def as_legendre(h: Any) -> AbstractLegendre:
    """A convex function of ours as it is, any other function by automatic differentiation."""
    if isinstance(h, AbstractLegendre):
        return h
    if not callable(h) or isinstance(h, type):
        raise TypeError(
            "`h` must be a convex function of the state or one of ours such as `tw.SimplexEntropy()`; got "
            f"{h.__name__ if isinstance(h, type) else type(h).__name__}."
        )
    return Legendre(h)


def _minimise(h: Callable[[Array], Scalar], theta: Array, start: Array, contains: Callable[[Array], Flag]) -> Array:
    """The minimiser of h(y) − ⟨θ, y⟩ by damped Newton steps; NaN where none was found."""
    eps = jnp.finfo(start.dtype).eps

    def objective(y: Array) -> Scalar:
        return h(y) - theta @ y

    def newton(carry: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        y, _, count = carry
        slope = jax.grad(objective)(y)
        factor = jnp.linalg.cholesky(jax.hessian(h)(y))
        step = cho_solve((factor, True), slope)
        decrement, value = slope @ step, objective(y)

        def too_far(search: tuple[Scalar, Any]) -> Flag:
            length, cuts = search
            trial = y - length * step
            falls = objective(trial) <= value - 1e-4 * length * decrement + 8 * eps * jnp.abs(value)
            return ~(contains(trial) & falls) & (cuts < _MAX_CUTS)

        length, _ = jax.lax.while_loop(
            too_far, lambda search: (search[0] / 2, search[1] + 1), (jnp.ones((), y.dtype), jnp.asarray(0))
        )
        moved = y - length * step
        # After a whole step below the root of the rounding the next would be below rounding: quadratic convergence.
        small = jnp.max(jnp.abs(moved - y)) <= eps**0.5 * jnp.max(jnp.abs(moved))
        return moved, small & (length == 1), count + 1

    def unfinished(carry: tuple[Array, Any, Any]) -> Flag:
        y, done, count = carry
        return ~done & (count < _MAX_STEPS) & jnp.all(jnp.isfinite(y))

    y, done, _ = jax.lax.while_loop(unfinished, newton, (start, jnp.asarray(False), jnp.asarray(0)))
    # One more whole step, by the same convergence, is to rounding.
    polished = y - cho_solve((jnp.linalg.cholesky(jax.hessian(h)(y)), True), jax.grad(objective)(y))
    return jnp.where(done, polished, jnp.nan)
