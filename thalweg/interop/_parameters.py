"""Between the parameters and gradients of other libraries and our states, cotangents and velocities.

Elsewhere a point is a pytree of parameters and a gradient is a pytree of the same structure. Here a metric lives at a
state, and a first variation is the gradient divided by the quadrature weights. Both have the same numbers in the same
order, so the way between them is to take leaves from one tree and hang them into the other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import Cotangent
from thalweg._types import PyTree, State
from thalweg.geometries import AbstractGeometry, AbstractMetric, AbstractNorm, NormedMetric
from thalweg.states import moving, quadrature_weights


def state_of(params: PyTree, at: Callable[[PyTree], State] | None) -> State:
    """The state at which the geometry is asked for its metric: the parameters, or what `at` makes of them."""
    state = params if at is None else at(params)
    there = [jnp.shape(leaf) for leaf in jax.tree.leaves(moving(state))]
    here = [jnp.shape(leaf) for leaf in jax.tree.leaves(_tree.floating(params))]
    if here != there:
        raise ValueError(
            f"`at` must return a state that moves by the same numbers as the parameters, in the same order;\n"
            f"the parameters have arrays of shapes {here} and what moves of the state {there}."
        )
    return state


def state_for(geometry: AbstractGeometry, gradient: PyTree, params: PyTree, at: Callable[..., Any] | None) -> State:
    """As `state_of`; a norm, being the same everywhere, may be asked without parameters."""
    if params is None:
        if at is None and isinstance(geometry, AbstractNorm):
            return gradient
        raise ValueError(
            f"`{type(geometry).__name__}` is not the same everywhere, so it needs the parameters: "
            "call `update(gradient, state, params)`."
        )
    return state_of(params, at)


def cotangent_of(gradient: PyTree, state: State) -> Cotangent:
    """The first variation whose gradient in the coordinates of the state is given."""
    weights = quadrature_weights(state)
    free = jax.tree.unflatten(jax.tree.structure(moving(state)), jax.tree.leaves(_tree.floating(gradient)))
    regular = jax.tree.map(lambda g, w: g / _tree.broadcast_weight(w, g), free, weights)
    return Cotangent(regular, weights)


def like(params: PyTree, tree: PyTree) -> PyTree:
    """The numbers of a tangent, hung into the tree of the parameters."""
    return jax.tree.unflatten(jax.tree.structure(_tree.floating(params)), jax.tree.leaves(tree))


def displacement(metric: AbstractMetric, velocity: Any, scale: Any) -> PyTree:
    """`move(velocity, scale) − x` in the coordinates of the state; where moves are straight, without the rounding of
    the difference.
    """
    if isinstance(metric, NormedMetric):
        return _tree.scale_by(velocity.tangent, scale)
    return _tree.multiply_add(moving(metric.move(velocity, scale)), -1.0, moving(metric.state))


def unit_scale(metric: AbstractMetric, velocity: Any) -> Any:
    """One over the length of a velocity; zero at rest."""
    length = jnp.sqrt(metric.norm_squared(velocity))
    return jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
