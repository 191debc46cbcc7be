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

from typing import Any, NamedTuple

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
    """Where free motion ends, with which momentum, the mean velocity on the way, the rounds that the solution took and
    whether it was found.
    """

    state: State
    momentum: PyTree
    velocity: Velocity
    num_rounds: Count
    converged: Flag


def drift(geometry: AbstractGeometry, state: State, momentum: PyTree, duration: Scalar) -> Drift:
    r"""Free motion over a time from a state with a momentum: a cotangent whose *steepest descent* is the velocity, so
    minus the $p$ above.
    """
    metric = geometry.at(state)
    weights = quadrature_weights(state)
    invert = lambda regular: metric.steepest_descent(Cotangent(regular, weights))  # noqa: E731
    if metric.is_constant:
        velocity = invert(momentum)
        moved = metric.move(velocity, duration)
        return Drift(moved, momentum, velocity, jnp.asarray(0, jnp.int32), jnp.asarray(True))

    # Linear in the momentum: what does not depend on it, the factors of the matrix, is made once, outside the loop.
    start, solve = jax.linearize(lambda regular: invert(regular).tangent, momentum)
    free = moving(state)

    def kinetic(point: PyTree, tangent: PyTree) -> Scalar:
        return 0.5 * geometry.at(eqx.combine(point, state)).norm_squared(Velocity(tangent))

    def halves(tangent: PyTree) -> tuple[PyTree, PyTree]:
        """$h/4\\,\\partial_x(v^\\top Gv)$ and $Gv$ at the middle, as cotangents."""
        middle = _tree.multiply_add(free, duration / 2, tangent)
        force, image = jax.grad(kinetic, argnums=(0, 1))(middle, tangent)
        return _tree.scale_by(force, duration / 2), image

    def residual(tangent: PyTree) -> PyTree:
        force, image = halves(tangent)
        return jax.tree.map(lambda p, f, g: p - f + g, momentum, force, image)

    def length(cotangent: PyTree, direction: PyTree) -> Scalar:
        """That of a direction in the metric at the start, where it is the steepest of a cotangent."""
        return jnp.sqrt(jnp.maximum(-_tree.dot(cotangent, direction), 0))

    eps, size = jnp.finfo(_tree.dtype_of(state)).eps, length(momentum, start)

    def unfinished(carry: tuple[Any, ...]) -> Flag:
        _, change, earlier, count = carry
        return (count < _MAX_ROUNDS) & (change > 4 * eps * size) & ((change < 0.9 * earlier) | (count < 3))

    def improve(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        tangent, change, _, count = carry
        left = residual(tangent)
        added = solve(left)
        tangent = _tree.multiply_add(tangent, 1.0, added)
        return tangent, length(left, added), change, count + 1

    unknown = jnp.asarray(jnp.inf, _tree.dtype_of(state))
    first = (start, unknown, unknown, jnp.asarray(0, jnp.int32))
    tangent, change, _, count = jax.lax.while_loop(unfinished, improve, first)
    force, _ = halves(tangent)
    momentum = jax.tree.map(lambda p, f: p - 2 * f, momentum, force)
    moved = _tree.multiply_add(state, duration, tangent)
    # What stagnates is rounding times the condition of the matrix; more than this is a step too long to be solved for.
    return Drift(moved, momentum, Velocity(tangent), count, change <= eps ** (2 / 3) * size)
