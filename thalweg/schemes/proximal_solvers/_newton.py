r"""Small dense Newton with a trust region: the workhorse of exact steps.

Two uses, one loop: minimise $f(z)$ over all $z$ (proximal steps) or over $|z| \le R$ (constrained steps). Each
iteration minimises the quadratic model, exactly, in the eigenbasis of the Hessian; the model is damped when it
promised more than it kept. Candidates that were weighed: BFGS (no Hessian, but it stalls at $10^{-8}$ of the
minimiser, since it sees $f$ only to rounding), projected gradient (linear convergence, slow on curved valleys), and
this, which converges quadratically and to rounding, at $O(n^3)$ a step: right for $n \le$ a few hundred. Beyond that
`QuasiNewton` takes over.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag, Scalar


def implicitly(fn: Callable[[Array], Scalar], start: Array, solve: Callable[[Callable[[Array], Scalar]], Any]) -> Any:
    """Run `solve` on a copy of `fn` cut off from differentiation, and return the result with that of `attach` (see
    there).
    """
    closed = eqx.filter_closure_convert(fn, start)
    frozen = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, closed)
    return closed, jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, solve(frozen))


class _Carry(eqx.Module):
    point: Array
    value: Scalar
    damping: Scalar
    residual: Scalar
    stalled: Flag
    count: Array


def _newton(
    fn: Callable[[Array], Scalar], start: Array, radius: Scalar | None, tolerance: float, max_steps: int
) -> tuple[Array, Scalar, Flag]:
    eps = jnp.finfo(start.dtype).eps
    gradient_of, hessian_of = jax.grad(fn), jax.hessian(fn)

    def residual_of(point: Array, gradient: Array) -> Scalar:
        if radius is None:
            return jnp.max(jnp.abs(gradient))
        # The first-order condition in the ball: a projected gradient step of the size of the ball does not move the
        # point.
        step = radius / jnp.maximum(jnp.linalg.norm(gradient), jnp.finfo(start.dtype).tiny)
        return jnp.linalg.norm(_project(point - step * gradient, radius) - point) / step

    def body(carry: _Carry) -> _Carry:
        gradient, hessian = gradient_of(carry.point), hessian_of(carry.point)
        values, vectors = jnp.linalg.eigh(hessian)
        scale = jnp.max(jnp.abs(values)) + jnp.finfo(start.dtype).tiny
        if radius is None:
            # The model must be convex to have a minimum: negative curvature is lifted to its size.
            lifted = jnp.maximum(jnp.abs(values), 1e-12 * scale) + carry.damping * scale
            proposal = carry.point - vectors @ ((vectors.T @ gradient) / lifted)
        else:
            damped = values + carry.damping * scale
            linear = vectors.T @ gradient - damped * (vectors.T @ carry.point)
            proposal = vectors @ _ball_minimiser(damped, linear, radius)
        value = fn(proposal)
        accepted = value <= carry.value + 8 * eps * jnp.abs(carry.value)
        point = jnp.where(accepted, proposal, carry.point)
        moved = jnp.max(jnp.abs(proposal - carry.point))
        stalled = moved <= 2 * eps * (jnp.max(jnp.abs(carry.point)) + eps)
        grown = jnp.maximum(10 * carry.damping, 1e-4)
        shrunk = jnp.where(carry.damping > 1e-10, carry.damping / 10, 0)
        return _Carry(
            point,
            jnp.where(accepted, value, carry.value),
            jnp.where(accepted, shrunk, grown),
            residual_of(point, gradient_of(point)),
            stalled,
            carry.count + 1,
        )

    def unfinished(carry: _Carry) -> Flag:
        return (carry.residual > goal) & ~carry.stalled & (carry.count < max_steps)

    begin = start if radius is None else _project(start, radius)
    first = gradient_of(begin)
    # Relative to the slope at the start, with what rounding of the gradient allows.
    goal = tolerance * jnp.maximum(jnp.max(jnp.abs(first)), jnp.finfo(start.dtype).tiny)
    zero = jnp.zeros((), start.dtype)
    carry = _Carry(begin, fn(begin), zero, residual_of(begin, first), jnp.asarray(False), jnp.asarray(0))
    last = jax.lax.while_loop(unfinished, body, carry)
    # Stalling is convergence to rounding if the slope has fallen to the square root of the unit; else it is failure.
    fine = (last.residual <= goal) | (last.stalled & (last.residual <= eps**0.5 * jnp.max(jnp.abs(first))))
    return last.point, last.residual, fine


def _project(point: Array, radius: Scalar) -> Array:
    length = jnp.linalg.norm(point)
    return jnp.where(length > radius, point * (radius / jnp.where(length > 0, length, 1)), point)


def _ball_minimiser(values: Array, linear: Array, radius: Scalar) -> Array:
    r"""$\operatorname{argmin} \tfrac12 y^\top\Lambda y + b^\top y$ over $|y| \le R$ for diagonal $\Lambda$, by
    bisection on the multiplier.

    Moré, Sorensen, *Computing a trust region step*, SIAM J. Sci. Stat. Comput. 4 (1983). In the hard case ($b$ has
    no part along the most negative curvature) a nudge of relative size ε picks one of the two equal minimisers.
    """
    eps = jnp.finfo(values.dtype).eps
    size = jnp.linalg.norm(linear)
    nudge = eps * (size + jnp.max(jnp.abs(values)) * radius)
    linear = linear.at[0].add(jnp.where(jnp.abs(linear[0]) < nudge, nudge, 0))
    floor = jnp.maximum(0, -values[0])
    low, high = floor, floor + jnp.linalg.norm(linear) / radius

    def length(multiplier: Scalar) -> Scalar:
        denominator = values + multiplier
        return jnp.linalg.norm(linear / jnp.where(denominator > 0, denominator, jnp.finfo(values.dtype).tiny))

    def halve(_: Any, bounds: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = bounds
        middle = 0.5 * (low + high)
        outside = length(middle) > radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    _, multiplier = jax.lax.fori_loop(0, 60 if values.dtype.itemsize > 4 else 30, halve, (low, high))
    interior = (values[0] > 0) & (length(jnp.zeros_like(low)) <= radius)
    multiplier = jnp.where(interior, 0, multiplier)
    return -linear / jnp.maximum(values + multiplier, jnp.finfo(values.dtype).tiny)


class NewtonBall(eqx.Module):
    r"""The exact minimiser of F in the Euclidean ball $|y - x| \le \varepsilon$, a local one where F is not convex
    there.

    **Arguments:** `tolerance`: the slope left, relative to the slope at the start; `max_steps`: of Newton's method.
    """

    tolerance: float = eqx.field(static=True, default=1e-12)
    max_steps: int = eqx.field(static=True, default=100)

    def minimise(self, fn: Callable[[Array], Scalar], start: Array, radius: Scalar) -> tuple[Array, Scalar, Flag]:
        """The minimiser, the size of the projected gradient left, and whether it converged."""
        return _newton(fn, start, radius, self.tolerance, self.max_steps)


class Newton(eqx.Module):
    r"""The proximal step $\operatorname{argmin}_y D(y, x)/(2\alpha) + F(y)$ by a damped Newton method on dense
    Hessians.

    Right up to a few hundred numbers; converges to rounding. The result is differentiable by the implicit function
    theorem.

    **Arguments:** `tolerance`: the slope left, relative to the slope at the start; `max_steps`: of Newton's method.
    """

    tolerance: float = eqx.field(static=True, default=1e-12)
    max_steps: int = eqx.field(static=True, default=100)

    def minimise(self, fn: Callable[[Array], Scalar], start: Array) -> tuple[Array, Scalar, Flag]:
        """The minimiser, the largest entry of the gradient left, and whether it converged."""
        closed, (point, residual, fine) = implicitly(
            fn,
            start,
            lambda frozen: _newton(frozen, jax.lax.stop_gradient(start), None, self.tolerance, self.max_steps),
        )
        # One more Newton step with a frozen Hessian: it changes nothing at the minimiser, and its derivative is
        # exactly that of the implicit function theorem, dz = −H⁻¹ d(∇f).
        hessian = jax.lax.stop_gradient(jax.hessian(closed)(point))
        refined = point - jnp.linalg.solve(hessian, jax.grad(closed)(point))
        return jnp.where(jnp.all(jnp.isfinite(refined)), refined, point), residual, fine
