r"""Newton's method for the Monge–Ampère equation of a JKO step, in the manner of Levenberg and Marquardt.

The operator is damped more when a step fails and less when one succeeds. The damping starts at a multiple of the
residual, and at a front it stays above that: with less, a front that is not yet in its place folds the map.

An [equation][thalweg.schemes.proximal_solvers._monge_ampere_equation] with a floor gets a front once its residual is
small, where fronts are wanted, and a front that nothing helps is given up for a floor, for good.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar, ScalarLike
from thalweg.schemes.proximal_solvers._monge_ampere_equation import Equation, Frame, Point

# The damping is so many residuals at the start, and no less at a front; one at most.
_AT_START = 100.0
# By these the damping shrinks and grows. A step is halved twice at most.
_LESS, _MORE, _SHORTEST = 1 / 8, 8.0, 0.25
_MOST_DAMPING = 1e5
# From this residual on there is a front, and its cells stay the same, so that Newton's method converges.
_SETTLED = 1e-3


class Found(NamedTuple):
    """The last point, and how many Newton steps and products it took."""

    point: Point
    steps: Count
    products: Count


class _Carry(NamedTuple):
    """`trial`, `frame`: what is looked at next. `length`: of the step to it, zero where it is taken however it is.
    `damping` is infinite where it begins anew. `given_up`: whether there was a front that nothing helped; `over`:
    whether nothing is left to try.
    """

    point: Point
    trial: Array
    frame: Frame
    direction: Array
    length: Scalar
    damping: Scalar
    steps: Count
    products: Count
    given_up: Flag
    over: Flag


class _Next(NamedTuple):
    """What is looked at next, and what it took to find it."""

    trial: Array
    frame: Frame
    direction: Array
    length: Scalar
    damping: Scalar
    products: Count


def solved(equation: Equation, f: Array, frame: Frame, tolerance: ScalarLike, max_steps: int, fronts: Flag) -> Found:
    """Newton's method from a function until the residual is at most `tolerance`, or nothing helps.

    Each pass looks at one function and chooses the next: the same one with another front, a shorter step, or a step in
    a new direction. So everything is compiled once.
    """

    def unfinished(c: _Carry) -> Flag:
        return (c.length == 0) | ((c.point.residual > tolerance) & ~c.over)

    def body(c: _Carry) -> _Carry:
        point, damping, taken = _looked_at(equation, c)
        floored, last = point.frame.floored, c.length <= _SHORTEST
        converged, rough = point.residual <= tolerance, point.residual > _SETTLED
        used_up = (c.steps >= jnp.where(c.given_up, 2, 1) * max_steps) & (taken | last)
        stuck = used_up | (damping >= _MOST_DAMPING) | ~jnp.isfinite(point.residual)
        gives_up = stuck & ~floored & ~converged
        begins = fronts & floored & ~rough & ~c.given_up & equation.internal.has_vacuum
        follows = taken & (c.length > 0) & ~floored & rough & ~stuck
        # The first that holds.
        reasons = jnp.stack([gives_up, begins | follows, converged | stuck, taken | last, jnp.asarray(True)])
        choice = jnp.argmax(reasons)
        n = _next(equation, c, point, damping, choice)
        steps, products = c.steps + jnp.where(choice == 3, 1, 0), c.products + n.products
        frame = (n.trial, n.frame, n.direction, n.length, n.damping)
        return _Carry(point, *frame, steps, products, c.given_up | gives_up, choice == 2)

    none, no = jnp.zeros((), jnp.int32), jnp.asarray(False)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(equation.point, f, frame))
    zero, inf = jnp.zeros_like(equation.mass), jnp.full_like(equation.mass, jnp.inf)
    begin = _Carry(empty._replace(residual=inf), f, frame, jnp.zeros_like(f), zero, inf, none, none, no, no)
    end = jax.lax.while_loop(unfinished, body, begin)
    return Found(end.point, end.steps, end.products)


def _looked_at(equation: Equation, c: _Carry) -> tuple[Point, Scalar, Flag]:
    """The point that is kept, the damping after what was seen, and whether it was taken."""
    seen = equation.point(c.trial, c.frame)
    forced, last = c.length == 0, c.length <= _SHORTEST
    fell = seen.residual <= (1 - 0.1 * c.length) * c.point.residual
    taken = forced | fell | (last & (seen.residual < c.point.residual))
    point = jax.tree.map(lambda new, old: jnp.where(taken, new, old), seen, c.point)
    success = jnp.where(c.length == 1, _LESS, jnp.where(c.length == 0.5, 1.0, 2.0))
    damping = c.damping * jnp.where(forced, 1, jnp.where(taken, success, jnp.where(last, _MORE, 1)))
    least = jnp.minimum(_AT_START * point.residual, 1)
    damping = jnp.where(taken & ~point.frame.floored, jnp.maximum(damping, least), damping)
    return point, jnp.where(jnp.isfinite(c.damping), damping, least), taken


def _next(equation: Equation, c: _Carry, point: Point, damping: Scalar, choice: Array) -> _Next:
    none, zero, one = jnp.zeros((), jnp.int32), jnp.zeros_like(c.length), jnp.ones_like(c.length)

    def with_floor() -> _Next:
        f = jnp.where(point.density > 0, point.potential, equation.potential)
        return _Next(f, equation.with_floor(), c.direction, zero, jnp.full_like(zero, jnp.inf), none)

    def with_front() -> _Next:
        f, frame = equation.with_its_front(point)
        return _Next(f, frame, c.direction, zero, jnp.where(point.frame.floored, jnp.inf, damping), none)

    def ended() -> _Next:
        return _Next(point.potential, point.frame, c.direction, one, damping, none)

    def onward() -> _Next:
        direction, products = equation.direction(point, damping)
        return _Next(point.potential + direction, point.frame, direction, one, damping, products)

    def shorter() -> _Next:
        length = 0.5 * c.length
        return _Next(point.potential + length * c.direction, point.frame, c.direction, length, damping, none)

    return jax.lax.switch(choice, (with_floor, with_front, ended, onward, shorter))
