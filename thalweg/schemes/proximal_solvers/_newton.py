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

from thalweg import _tree
from thalweg._types import Array, Flag, Scalar
from thalweg.schemes.proximal_solvers._implicit import root, solve_square, solve_symmetric


class _Carry(eqx.Module):
    point: Array
    value: Scalar
    gradient: Array
    hessian: Array
    proposal: Array
    damping: Scalar
    residual: Scalar
    goal: Scalar
    first_slope: Scalar
    stalled: Flag
    count: Array


def _newton(
    fn: Callable[[Array], Scalar],
    start: Array,
    radius: Scalar | None,
    size: Scalar,
    tolerance: float,
    max_steps: int,
) -> tuple[Array, Scalar, Flag]:
    """Minimise `fn`; `size` is that of the numbers to which `start` is an offset, whose rounding limits the answer."""
    eps, tiny = jnp.finfo(start.dtype).eps, jnp.finfo(start.dtype).tiny

    def residual_of(point: Array, gradient: Array) -> Scalar:
        if radius is None:
            return jnp.max(jnp.abs(gradient))
        # The first-order condition in the ball: a projected gradient step does not move the point.
        # The root of the smallest number: at a zero gradient the step is long but finite, not NaN.
        step = radius / jnp.maximum(jnp.linalg.norm(gradient), tiny**0.5)
        return jnp.linalg.norm(_project(point - step * gradient, radius) - point) / step

    def body(carry: _Carry) -> _Carry:
        # Everything is evaluated at the trial point, so that there is one copy of the derivatives to compile.
        trial = carry.proposal
        value, gradient = jax.value_and_grad(fn)(trial)
        residual = residual_of(trial, gradient)
        falls = value <= carry.value + 8 * eps * jnp.abs(carry.value)
        # Where the value has no digits left the slope still has.
        level = jnp.abs(value - carry.value) <= 1e3 * eps * (jnp.abs(value) + jnp.abs(carry.value))
        accepted = falls | (level & (residual < carry.residual))
        keep = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
        point, gradient = keep(trial, carry.point), keep(gradient, carry.gradient)
        hessian = keep(jax.hessian(fn)(trial), carry.hessian)
        grown, shrunk = jnp.maximum(10 * carry.damping, 1e-4), jnp.where(carry.damping > 1e-10, carry.damping / 10, 0)
        damping = keep(shrunk, grown)
        values, vectors = jnp.linalg.eigh(hessian)
        scale = jnp.max(jnp.abs(values)) + tiny
        if radius is None:
            # The model must be convex to have a minimum: negative curvature is lifted to its size.
            lifted = jnp.maximum(jnp.abs(values), 1e-12 * scale) + damping * scale
            proposal = point - vectors @ ((vectors.T @ gradient) / lifted)
        else:
            damped = values + damping * scale
            proposal = vectors @ _ball_minimiser(damped, vectors.T @ gradient - damped * (vectors.T @ point), radius)
        resolution = 2 * eps * (jnp.max(jnp.abs(point)) + size)
        first_slope = jnp.where(carry.count == 0, jnp.max(jnp.abs(gradient)), carry.first_slope)
        return _Carry(
            point,
            keep(value, carry.value),
            gradient,
            hessian,
            proposal,
            damping,
            keep(residual, carry.residual),
            # Relative to the slope at the start, but no finer than the slope that rounding of the point makes.
            jnp.maximum(tolerance * first_slope, 4 * resolution * scale),
            first_slope,
            jnp.max(jnp.abs(proposal - point)) <= resolution,
            carry.count + 1,
        )

    def unfinished(carry: _Carry) -> Flag:
        return (carry.residual > carry.goal) & ~carry.stalled & (carry.count < max_steps)

    begin = start if radius is None else _project(start, radius)
    number = lambda value: jnp.asarray(value, start.dtype)  # noqa: E731
    carry = _Carry(
        begin,
        number(jnp.inf),
        jnp.zeros_like(begin),
        jnp.zeros((begin.size, begin.size), begin.dtype),
        begin,
        number(0),
        number(jnp.inf),
        number(0),
        number(0),
        jnp.asarray(False),
        jnp.asarray(0),
    )
    last = jax.lax.while_loop(unfinished, body, carry)
    # Stalling is convergence to rounding if the slope has fallen to the square root of the unit; else it is failure.
    fine = (last.residual <= last.goal) | (last.stalled & (last.residual <= eps**0.5 * last.first_slope))
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
    r"""The exact minimiser of F in the ball $D(y, x) \le \varepsilon^2$, a local one where F is not convex there.

    The Euclidean ball by a trust-region Newton method; any other smooth distance (2 KL in the Fisher–Rao geometry of a
    parametric family), in which a ball is not round, by its multiplier.

    **Arguments:** `tolerance`: the slope left, relative to the slope at the start; `max_steps`: of Newton's method.
    """

    tolerance: float = eqx.field(static=True, default=1e-12)
    max_steps: int = eqx.field(static=True, default=100)

    def minimise(
        self, fn: Callable[[Array], Scalar], start: Array, radius: Scalar, size: Scalar
    ) -> tuple[Array, Scalar, Flag]:
        """The minimiser, the size of the projected gradient left, and whether it converged; `size` is that of x."""
        closed = eqx.filter_closure_convert(fn, start)
        frozen, begin, reach, size = _tree.stop_gradient((closed, start, radius, size))
        found = _newton(frozen, begin, reach, size, self.tolerance, self.max_steps)
        point, residual, fine = _tree.stop_gradient(found)
        # Where the ball holds the minimiser back, ∇f + λz = 0 and |z| = R; inside, λ = 0.
        held = jnp.linalg.norm(point) > reach * (1 - 1e3 * jnp.finfo(start.dtype).eps)
        multiplier = jnp.where(held, -(jax.grad(frozen)(point) @ point) / reach**2, 0)

        def conditions(unknowns: Array) -> Array:
            z, multiplier = unknowns[:-1], unknowns[-1]
            last = jnp.where(held, 0.5 * (z @ z - radius**2), multiplier)
            return jnp.append(jax.grad(closed)(z) + multiplier * z, last)

        return root(conditions, jnp.append(point, multiplier), solve_square)[:-1], residual, fine

    def minimise_within(
        self,
        fn: Callable[[Array], Scalar],
        distance: Callable[[Array], Scalar],
        start: Array,
        radius: Scalar,
        slope: Scalar,
        size: Scalar,
    ) -> tuple[Array, Scalar, Flag]:
        """The minimiser on `distance(z) <= radius**2` for any smooth squared distance, zero at `start`; `slope` is the
        dual norm of the first variation there.
        """
        closed, far = eqx.filter_closure_convert(fn, start), eqx.filter_closure_convert(distance, start)
        fixed, away, begin, reach, steep, scale = _tree.stop_gradient((closed, far, start, radius, slope, size))
        found = _in_ball(fixed, away, begin, reach, steep, scale, self.tolerance, self.max_steps)
        point, multiplier, residual, fine = _tree.stop_gradient(found)

        def conditions(unknowns: Array) -> Array:
            z, multiplier = unknowns[:-1], unknowns[-1]
            last = jnp.where(held, 0.5 * (far(z) - radius**2), multiplier)
            return jnp.append(jax.grad(closed)(z) + 0.5 * multiplier * jax.grad(far)(z), last)

        held = multiplier > 0
        return root(conditions, jnp.append(point, multiplier), solve_square)[:-1], residual, fine


def _in_ball(
    fn: Callable[[Array], Scalar],
    distance: Callable[[Array], Scalar],
    start: Array,
    radius: Scalar,
    slope: Scalar,
    size: Scalar,
    tolerance: float,
    max_steps: int,
) -> tuple[Array, Scalar, Scalar, Flag]:
    r"""$\min F$ on $D \le R^2$ through $\min_z F + \tfrac12\lambda D$, whose $D(z_\lambda)$ falls as $\lambda$ grows:
    bisection on $\log\lambda$ around $\|\xi\|_*/R$, the multiplier to leading order.

    A quadratic model of $D$ with Newton steps on the Lagrangian converges faster but only near the answer; this needs
    no nearness, and never leaves the neighbourhood of the start for a ball that is small.
    """

    def penalised(multiplier: Scalar, begin: Array) -> tuple[Array, Scalar, Flag, Flag]:
        point, residual, fine = _newton(
            lambda z: fn(z) + 0.5 * multiplier * distance(z), begin, None, size, tolerance, max_steps
        )
        return point, residual, fine, fine & (distance(point) <= radius**2)

    guess = jnp.log(jnp.maximum(slope, jnp.finfo(start.dtype).tiny ** 0.5) / radius)
    # λ = 0 is tried last, so that the search comes from inside the ball and a fall without bound does no harm.
    steps = 52 if start.dtype.itemsize > 4 else 26

    def halve(k: Array, carry: Any) -> Any:
        low, high, best, residual, fine = carry
        last = k == steps
        middle = 0.5 * (low + high)
        multiplier = jnp.where(last, 0.0, jnp.exp(middle))
        point, left, good, inside = penalised(multiplier, jnp.where(last, start, best))
        # The answer of the last try counts only if it lies inside: then the ball does not hold the minimiser back.
        take = inside
        keep = lambda new, old: jnp.where(take, new, old)  # noqa: E731
        low = jnp.where(inside | last, low, middle)
        high = jnp.where(inside, jnp.where(last, -jnp.inf, middle), high)
        return low, high, keep(point, best), keep(left, residual), keep(good, fine)

    number = lambda value: jnp.asarray(value, start.dtype)  # noqa: E731
    begin = (guess - 30.0, guess + 10.0, start, number(jnp.inf), jnp.asarray(False))
    _, high, point, residual, fine = jax.lax.fori_loop(0, steps + 1, halve, begin)
    held = jnp.exp(high)
    # Pressed against the ball, the point must have used it: else the inner solver failed on the way.
    used = (held == 0) | (jnp.abs(distance(point) - radius**2) <= 1e-6 * radius**2)
    return point, held, residual, fine & used


class Newton(eqx.Module):
    r"""The proximal step $\operatorname{argmin}_y D(y, x)/(2\alpha) + F(y)$ by a damped Newton method on dense
    Hessians.

    Right up to a few hundred numbers; converges to rounding. The result is differentiable by the implicit function
    theorem.

    **Arguments:** `tolerance`: the slope left, relative to the slope at the start; `max_steps`: of Newton's method.
    """

    tolerance: float = eqx.field(static=True, default=1e-12)
    max_steps: int = eqx.field(static=True, default=100)

    def minimise(self, fn: Callable[[Array], Scalar], start: Array, size: Scalar) -> tuple[Array, Scalar, Flag]:
        """The minimiser, the largest entry of the gradient left, and whether it converged; `size` is that of x."""
        # The loop runs on a copy cut off from differentiation, with everything that `fn` closes over.
        closed = eqx.filter_closure_convert(fn, start)
        frozen, begin, size = _tree.stop_gradient((closed, start, size))
        point, residual, fine = _tree.stop_gradient(_newton(frozen, begin, None, size, self.tolerance, self.max_steps))
        return root(jax.grad(closed), point, solve_symmetric), residual, fine
