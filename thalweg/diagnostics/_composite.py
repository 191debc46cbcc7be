r"""What can be said of a point with constraints and penalties: how far from stationary, and which kind of point.

At a stationary point of $F = f + g$ the directions that keep the active bounds and the zeros form the *piece* on which
F is smooth. The derivative P of the proximal map at $x - \gamma\nabla f(x)$ is nearly the projection onto them: 1 along
straight pieces, less along curved ones (a sphere), 0 across. There $H + (P^{-1} - I)/\gamma$ is the curvature of F, the
Hessian of the Lagrangian; across the piece F has a positive slope, as long as no multiplier is zero.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg._types import Array, Flag, Scalar, State
from thalweg.diagnostics._stationarity import StationaryPoint, curvature_of
from thalweg.energies import AbstractEnergy, as_energy, decompose
from thalweg.states import moving

# Up to here all eigenvalues are found; beyond, the smallest is estimated from products.
_LARGEST_DENSE = 500
_LANCZOS_STEPS = 80
# Below this share of a unit vector a direction counts as across the piece.
_ACROSS = 1e-6


class ResidualBelow(eqx.Module):
    r"""A stop condition: the step of the forward–backward splitting, which is zero exactly where $f + g$ is
    stationary, has become short against the state.

    It reads `relative_residual` of [`thalweg.ProximalNewton`][] or [`thalweg.ForwardBackward`][]:
    $\|x - \operatorname{prox}^D_g(x - D^{-1}\nabla f)\|_D$ over the largest $\|x\|_D$ met, in the metric D of the
    scheme, so that the units of f and of x do not matter.

    **Arguments:** `tolerance`: a bound on it, dimensionless.
    """

    tolerance: float

    def __call__(self, snapshot: Any) -> Flag:
        if "relative_residual" not in snapshot.stats:
            raise ValueError(
                "`ResidualBelow` reads the residual of `tw.ProximalNewton` and `tw.ForwardBackward`.\n"
                "Use `stop=tw.Stationary(tolerance)` with this scheme."
            )
        return snapshot.stats["relative_residual"] <= self.tolerance


def stationary_point_on_piece(energy: AbstractEnergy | Callable[..., Any], state: State) -> StationaryPoint:
    r"""What kind of stationary point of a function with constraints and penalties a state is, by the smallest curvature
    along the directions that keep its active bounds and zeros.

    A minimum needs a positive curvature along the piece and a positive multiplier for everything that is active; where
    a multiplier is zero the direction counts as free. At a vertex, where nothing is free, the curvature is infinite.
    It does not check that the state is stationary: look at `gradient_norm`, the norm of the least subgradient.

    **Arguments:** `energy`: for example `f + tw.Box(0, 1)`; `state`: a vector or pytree.

    **Returns:** a [`thalweg.StationaryPoint`][].

    **Source:** Nocedal, Wright, *Numerical Optimization* (2006), theorems 12.5 and 12.6.
    """
    return _on_piece(as_energy(energy), state)


@eqx.filter_jit
def _on_piece(energy: AbstractEnergy, state: State) -> StationaryPoint:
    structure = decompose(energy)
    smooth, kinks = structure.smooth(), structure.joint_proximable(state)
    flat, unravel = ravel_pytree(moving(state))
    slope = jax.grad(lambda x: smooth(eqx.combine(unravel(x), state)).astype(flat.dtype))
    gradient = slope(flat)
    least = ravel_pytree(kinks.least_subgradient(unravel(flat), unravel(gradient)))[0]
    # A step that is short against the slopes and the curvature, so that the proximal map sees what is active at x.
    _, product = jax.linearize(slope, flat)
    step = 1 / jnp.maximum(_largest(product, flat), jnp.finfo(flat.dtype).tiny)
    forward = flat - step * gradient

    def prox(v: Array) -> Array:
        return ravel_pytree(kinks.prox(unravel(v), step))[0]

    if flat.size <= _LARGEST_DENSE:
        smallest, direction, sign = _dense(jax.jacfwd(slope)(flat), jax.jacfwd(prox)(forward), step)
    else:
        smallest, direction, sign = _by_lanczos(product, jax.linearize(prox, forward)[1], step, flat)
    return StationaryPoint(
        smallest,
        unravel(direction),
        jnp.linalg.norm(least),
        sign > 0,
        sign < 0,
        sign == 0,
        flat.size > _LARGEST_DENSE,
    )


def _dense(hessian: Array, projection: Array, step: Scalar) -> tuple[Scalar, Array, Scalar]:
    size = hessian.shape[0]
    hessian, projection = 0.5 * (hessian + hessian.T), 0.5 * (projection + projection.T)
    shares, basis = jnp.linalg.eigh(projection)
    free = shares > _ACROSS
    bent = jnp.where(free, (1 / jnp.where(free, shares, 1) - 1) / step, 0)
    along = basis.T @ hessian @ basis + jnp.diag(bent)
    # Directions across the piece take no part: they are given a curvature that is never the smallest.
    size_of = jnp.max(jnp.where(free[:, None] & free[None], jnp.abs(along), 0))
    walls = jnp.diag(jnp.where(free, 0, size * jnp.where(size_of > 0, size_of, 1)))
    along = jnp.where(free[:, None] & free[None], along, 0) + walls
    smallest, coefficients, sign = curvature_of(along, None, jnp.ones(size, hessian.dtype))
    vertex = ~jnp.any(free)
    return jnp.where(vertex, jnp.inf, smallest), basis @ coefficients, jnp.where(vertex, 1, sign)


def _largest(product: Callable[[Array], Array], like: Array) -> Scalar:
    def once(_: Any, carry: tuple[Array, Scalar]) -> tuple[Array, Scalar]:
        image = product(carry[0])
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1), size

    start = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
    return jax.lax.fori_loop(0, 20, once, (start / jnp.linalg.norm(start), jnp.zeros((), like.dtype)))[1]


def _by_lanczos(
    product: Callable[[Array], Array], project: Callable[[Array], Array], step: Scalar, like: Array
) -> tuple[Scalar, Array, Scalar]:
    """The smallest Ritz value on the piece after some steps with full orthogonalisation: an upper bound."""

    def reduced(v: Array) -> Array:
        inside = project(v)
        return project(product(inside)) + project(v - inside) / step

    def step_on(k: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, diagonal, beside = carry
        image = reduced(basis[k])
        diagonal = diagonal.at[k].set(image @ basis[k])
        for _ in range(2):  # once is not enough
            image = image - basis.T @ (basis @ image)
        left = jnp.linalg.norm(image)
        usable = left > 1e3 * jnp.finfo(like.dtype).eps * jnp.abs(diagonal[0])
        basis = basis.at[k + 1].set(jnp.where(usable, image / jnp.where(usable, left, 1), 0))
        return basis, diagonal, beside.at[k].set(jnp.where(usable, left, 0))

    steps = _LANCZOS_STEPS
    start = project(jax.random.normal(jax.random.key(0), like.shape, like.dtype))
    length = jnp.linalg.norm(start)
    start = start / jnp.where(length > 0, length, 1)
    basis = jnp.zeros((steps + 1, like.size), like.dtype).at[0].set(start)
    zeros = jnp.zeros((steps,), like.dtype)
    basis, diagonal, beside = jax.lax.fori_loop(0, steps, step_on, (basis, zeros, zeros))
    # Steps after the space was exhausted stand for nothing.
    used = jnp.any(basis[:-1] != 0, axis=1)
    most = jnp.max(jnp.abs(diagonal)) + jnp.max(beside)
    diagonal = jnp.where(used, diagonal, 2 * most)
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
    zero = 1e3 * jnp.finfo(like.dtype).eps * most
    sign = jnp.where(jnp.abs(values[0]) <= zero, 0, jnp.sign(values[0]))
    vertex = length == 0
    return jnp.where(vertex, jnp.inf, values[0]), basis[:-1].T @ vectors[:, 0], jnp.where(vertex, 1, sign)
