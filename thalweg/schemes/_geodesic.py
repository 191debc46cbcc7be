r"""Free motion: the point goes straight on, at the speed of its momentum.

Where the norm is the same everywhere, that is a straight line. In an inner product $G(x)$ that changes with the point
it is a geodesic, and the momentum (a cotangent, $p = Gv$) changes with it: $\dot x = G^{-1}p$, $\dot p =
\tfrac12\partial_x(v^\top G v)$ at fixed $v$, which keeps $\tfrac12 p^\top G^{-1}p$.

The step here is the one of the discrete action $h\cdot\tfrac12 v^\top G(\bar x)v$ with $v = (x_1 - x_0)/h$ and the
metric at the middle $\bar x = x_0 + hv/2$. Its equations,

$$ p_0 = G(\bar x)v - \tfrac h4\,\partial_x(v^\top G v), \qquad p_1 = G(\bar x)v + \tfrac h4\,\partial_x(v^\top Gv), $$

are symplectic, symmetric in time and of second order, and they hold one unknown, $v$. They need only the kinetic
energy $\tfrac12\|v\|_x^2$ as a function of point and velocity: one gradient gives both $Gv$ and the force, whatever
form $G$ has. The iteration $v \leftarrow v + G(x_0)^{-1}r$ with the residual $r$ of the first equation contracts by
about $h\,|v|\,|\partial G|/|G|$, and factors the matrix once for all its rounds.

**Source:** Marsden, West, *Discrete mechanics and variational integrators*, Acta Numerica 10 (2001), section 2.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Count, Flag, PyTree, Scalar, State
from thalweg.geometries import AbstractGeometry
from thalweg.states import moving, quadrature_weights

# A contraction by 0.7 gains as many digits in 100 rounds as there are; a slower one asks for shorter steps.
_MAX_ROUNDS = 100


class Drift(NamedTuple):
    """Where free motion ends, with which momentum, the mean velocity on the way, the square of the speed where it
    began, the rounds that its solution took and whether it was found.
    """

    state: State
    momentum: PyTree
    velocity: Velocity
    speed_squared: Scalar
    num_rounds: Count
    converged: Flag


def drift(geometry: AbstractGeometry, state: State, momentum: PyTree, duration: Scalar) -> Drift:
    r"""Free motion over a time from a state with a momentum: a cotangent whose *steepest descent* is the velocity, so
    minus the $p$ above.
    """
    metric = geometry.at(state)
    if metric.is_riemannian:
        return _along_geodesic(geometry, state, momentum, duration)
    velocity = metric.steepest_descent(Cotangent(momentum, quadrature_weights(state)))
    square, none = metric.norm_squared(velocity), jnp.asarray(0, jnp.int32)
    if metric.free_motion is None:
        return Drift(metric.move(velocity, duration), momentum, velocity, square, none, jnp.asarray(True))
    moved, momentum, found = metric.free_motion(momentum, duration)
    difference = _tree.multiply_add(moving(moved), -1.0, moving(state))
    return Drift(moved, momentum, Velocity(_tree.scale_by(difference, 1 / duration)), square, none, found)


class _Round(NamedTuple):
    tangent: PyTree
    change: Scalar
    earlier: Scalar
    count: Count


def _along_geodesic(geometry: AbstractGeometry, state: State, momentum: PyTree, duration: Scalar) -> Drift:
    metric, weights, free = geometry.at(state), quadrature_weights(state), moving(state)
    # Linear in the momentum: what does not depend on it, the factors of the matrix, is made once, outside the loop.
    start, solve = jax.linearize(lambda p: metric.steepest_descent(Cotangent(p, weights)).tangent, momentum)

    def kinetic(point: PyTree, tangent: PyTree) -> Scalar:
        return 0.5 * geometry.at(eqx.combine(point, state)).norm_squared(Velocity(tangent))

    def halves(tangent: PyTree) -> tuple[PyTree, PyTree]:
        """$h/4\\,\\partial_x(v^\\top Gv)$ and $Gv$ at the middle, as cotangents."""
        force, image = jax.grad(kinetic, argnums=(0, 1))(_tree.multiply_add(free, duration / 2, tangent), tangent)
        return _tree.scale_by(force, duration / 2), image

    def length(cotangent: PyTree, direction: PyTree) -> Scalar:
        """That of a direction in the metric at the start, where it is the steepest of a cotangent."""
        return jnp.sqrt(jnp.maximum(-_tree.dot(cotangent, direction), 0))

    eps, size = jnp.finfo(_tree.dtype_of(state)).eps, length(momentum, start)

    def unfinished(here: _Round) -> Flag:
        shrinks = (here.change < 0.9 * here.earlier) | (here.count < 3)
        return (here.count < _MAX_ROUNDS) & (here.change > 4 * eps * size) & shrinks

    def improve(here: _Round) -> _Round:
        left = jax.tree.map(lambda p, f, g: p - f + g, momentum, *halves(here.tangent))
        added = solve(left)
        return _Round(_tree.multiply_add(here.tangent, 1.0, added), length(left, added), here.change, here.count + 1)

    unknown = jnp.asarray(jnp.inf, _tree.dtype_of(state))
    end = jax.lax.while_loop(unfinished, improve, _Round(start, unknown, unknown, jnp.asarray(0, jnp.int32)))
    force, _ = halves(end.tangent)
    momentum = jax.tree.map(lambda p, f: p - 2 * f, momentum, force)
    moved = _tree.multiply_add(state, duration, end.tangent)
    # What stagnates is rounding times the condition of the matrix; more than this is a step too long to be solved for.
    converged = end.change <= eps ** (2 / 3) * size
    return Drift(moved, momentum, Velocity(end.tangent), size**2, end.count, converged)
