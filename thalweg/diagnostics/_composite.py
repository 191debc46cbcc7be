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
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _compiled, _tree
from thalweg._types import Array, Flag, PyTree, Scalar, State
from thalweg.diagnostics._stationarity import StationaryPoint
from thalweg.energies import AbstractEnergy, as_energy, decompose
from thalweg.states import moving

# Up to here all eigenvalues are found; beyond, the smallest is estimated from products.
LARGEST_DENSE_PIECE = 500
_LANCZOS_STEPS = 80
# Below this share of a unit vector a direction counts as across the piece.
_ACROSS = 1e-6
# So many neighbours of a state tell the rounding of F.
_SHAKEN = 8


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


def stationary_point_on_piece(
    energy: AbstractEnergy | Callable[..., Any], state: State, *, gradient_norm: Any = None
) -> StationaryPoint:
    r"""What kind of stationary point of a function with constraints and penalties a state is, by the smallest curvature
    along the directions that keep its active bounds and zeros.

    A minimum needs a positive curvature along the piece and a positive multiplier for everything that is active; where
    a multiplier is zero the direction counts as free. At a vertex, where nothing is free, the curvature is infinite.
    It does not check that the state is stationary: look at `gradient_norm`, the norm of the least subgradient.

    **Arguments:** `energy`: for example `f + tw.Box(0, 1)`; `state`: a vector or pytree; `gradient_norm`: if it is
    known already.

    **Returns:** a [`thalweg.StationaryPoint`][]; flat where the second derivatives are not finite.

    **Source:** Nocedal, Wright, *Numerical Optimization* (2006), theorems 12.5 and 12.6.
    """
    energy = as_energy(energy)
    size = sum(leaf.size for leaf in jax.tree.leaves(moving(state)))
    if size > LARGEST_DENSE_PIECE:
        smallest, direction, sign, norm = run_compiled(_estimated, energy, state, gradient_norm)
    else:
        *parts, norm = run_compiled(second_order, energy, state, gradient_norm)
        # On the host a decomposition needs nothing compiled.
        traced = any(_tree.is_traced(part) for part in parts)
        hessian, projection, step = parts if traced else map(np.asarray, parts)
        smallest, direction, sign = _dense(hessian, projection, step, jnp if traced else np)
    up, down, flat = (jnp.asarray(flag) for flag in (sign > 0, sign < 0, sign == 0))
    estimated = size > LARGEST_DENSE_PIECE
    return StationaryPoint(jnp.asarray(smallest), _shaped(direction, state), norm, up, down, flat, estimated)


def downhill_on_piece(energy: AbstractEnergy | Callable[..., Any], state: State, direction: PyTree) -> State | None:
    r"""A feasible point with a smaller F, along a direction of negative curvature from a stationary point; `None` where
    F falls to neither side by more than its rounding.

    Lengths are doubled as long as F keeps falling, so that the point lies in the valley next to the state, not in
    another one. Each is projected onto the constraints, and f is evaluated there only.

    **Arguments:** `energy`: for example `f + tw.Box(0, 1)`; `state`: a stationary point; `direction`: shaped like what
    moves in it, such as `stationary_point_on_piece(energy, state).direction`.
    """
    found, falls = run_compiled(_downhill, as_energy(energy), state, direction)
    return eqx.combine(found, state) if bool(falls) else None


def _downhill(energy: AbstractEnergy, state: State, direction: PyTree) -> tuple[PyTree, Flag]:
    structure = decompose(energy)
    smooth, kinks = structure.smooth(), structure.joint_proximable(state)
    flat, unravel = ravel_pytree(moving(state))
    way = ravel_pytree(direction)[0]
    eps = jnp.finfo(flat.dtype).eps
    size = jnp.maximum(jnp.max(jnp.abs(flat)), 1)

    def at(length: Scalar, origin: Array = flat) -> tuple[Array, Scalar]:
        # With a step of zero the proximal map is the nearest feasible point.
        point = kinks.prox(unravel(origin + length * way), jnp.zeros((), flat.dtype))
        value = smooth(eqx.combine(point, state)).astype(flat.dtype) + kinks.inside(point).astype(flat.dtype)
        return ravel_pytree(point)[0], value

    start = at(jnp.zeros((), flat.dtype))[1]
    # What is left of large terms that cancel: by so much F differs where the state is the same to rounding.
    signs = jax.vmap(lambda key: jax.random.rademacher(key, flat.shape, flat.dtype))(
        jax.random.split(jax.random.key(2), _SHAKEN)
    )
    nearby = jax.vmap(lambda sign: at(jnp.zeros((), flat.dtype), flat * (1 + 4 * eps * sign))[1])(signs)
    noise = jnp.max(jnp.where(jnp.isfinite(nearby), jnp.abs(nearby - start), 0))
    rounding = 16 * jnp.maximum(eps * jnp.abs(start), noise)

    def along(sign: Array) -> tuple[Array, Scalar]:
        def longer(carry: tuple[Array, Scalar, Scalar, Flag]) -> tuple[Array, Scalar, Scalar, Flag]:
            best, lowest, length, _ = carry
            point, value = at(sign * length)
            falls = value < lowest - rounding
            # Below the rounding of F nothing is known yet, so the length grows; once F has fallen it has to go on.
            unknown = (lowest >= start) & ~(value > start + 4 * rounding) & jnp.isfinite(value)
            return (
                jnp.where(falls, point, best),
                jnp.where(falls, value, lowest),
                2 * length,
                (falls | unknown) & (length < size / eps),
            )

        first = jnp.sqrt(eps) * 1e-2 * size
        carry = (flat, start, first, jnp.asarray(True))
        return jax.lax.while_loop(lambda carry: carry[3], longer, carry)[:2]

    points, values = jax.vmap(along)(jnp.asarray([1.0, -1.0], flat.dtype))
    best = jnp.argmin(values)
    return unravel(points[best]), values[best] < start


def run_compiled(fn: Callable[..., Any], energy: AbstractEnergy, state: State, *rest: Any) -> Any:
    """The function compiled, or as it is where it is being traced already."""
    traced = any(_tree.is_traced(leaf) for leaf in jax.tree.leaves((energy, state, rest)))
    return fn(energy, state, *rest) if traced else _compiled.call(fn, energy, state, *rest)


def _least_norm(energy: AbstractEnergy, state: State, gradient: Array, known: Any) -> Any:
    if known is not None:
        return known
    _, unravel = ravel_pytree(moving(state))
    least = decompose(energy).joint_proximable(state).least_subgradient(moving(state), unravel(gradient))
    return jnp.sqrt(_tree.dot(least, least))


def _parts_of(energy: AbstractEnergy, state: State) -> tuple[Array, Callable[..., Any], Callable[..., Any]]:
    """The state as one vector; its slope; and the proximal map, as functions of such vectors."""
    structure = decompose(energy)
    smooth, kinks = structure.smooth(), structure.joint_proximable(state)
    flat, unravel = ravel_pytree(moving(state))
    slope = jax.grad(lambda x: smooth(eqx.combine(unravel(x), state)).astype(flat.dtype))
    return flat, slope, lambda v, step: ravel_pytree(kinks.prox(unravel(v), step))[0]


def _short(size: Scalar, flat: Array, gradient: Array) -> Scalar:
    """A step that is short against the curvature, so that the proximal map sees what is active."""
    reach, steepness = (jnp.sqrt(jnp.sum(v**2)) for v in (flat, gradient))
    linear = jnp.where((reach > 0) & (steepness > 0), reach / jnp.where(steepness > 0, steepness, 1), 1)
    return jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), linear)


def second_order(energy: AbstractEnergy, state: State, norm: Any) -> tuple[Array, Array, Scalar, Any]:
    """The Hessian of the smooth part, the derivative of the proximal map, the step of that map, and the norm of the
    least subgradient.
    """
    flat, slope, prox = _parts_of(energy, state)

    def twice(x: Array) -> tuple[Array, Array]:
        gradient = slope(x)
        return gradient, gradient

    hessian, gradient = jax.jacfwd(twice, has_aux=True)(flat)
    step = _short(jnp.sqrt(jnp.sum(hessian**2)), flat, gradient)
    _, project = jax.linearize(lambda v: prox(v, step), flat - step * gradient)
    projection = jax.vmap(project)(jnp.eye(flat.size, dtype=flat.dtype))
    return hessian, projection, step, _least_norm(energy, state, gradient, norm)


def _dense(hessian: Any, projection: Any, step: Any, xp: Any) -> tuple[Any, Any, Any]:
    """The smallest curvature, its direction and its sign, by NumPy or, while tracing, its stand-in `xp`."""
    size, eps = hessian.shape[0], xp.finfo(hessian.dtype).eps
    if xp is np and not (np.all(np.isfinite(hessian)) and np.all(np.isfinite(projection))):
        return np.full_like(step, np.nan), np.zeros_like(hessian[0]), np.zeros_like(step)
    free, basis, along, root = reduced_to_piece(hessian, projection, step, xp)
    values, vectors = xp.linalg.eigh(along)
    least = xp.linalg.eigvalsh(along / root[:, None] / root[None])[0]
    sign = xp.where(xp.abs(least) <= 100 * size * eps, 0, xp.sign(least))
    vertex = ~xp.any(free)
    return xp.where(vertex, xp.inf, values[0]), basis @ vectors[:, 0], xp.where(vertex, 1, sign)


def reduced_to_piece(hessian: Any, projection: Any, step: Any, xp: Any) -> tuple[Any, Any, Any, Any]:
    """Which directions of a basis are free on the piece, the basis (columns), the curvature in it, and a root with
    which its rows are of size one (Ruiz, 2001).
    """
    size = hessian.shape[0]
    hessian, projection = 0.5 * (hessian + hessian.T), 0.5 * (projection + projection.T)
    shares, basis = xp.linalg.eigh(projection)
    free = shares > _ACROSS
    both = free[:, None] & free[None]
    bent = xp.where(free, (1 / xp.where(free, shares, 1) - 1) / step, 0)
    along = xp.where(both, basis.T @ hessian @ basis + xp.diag(bent), 0)
    # Directions across the piece take no part: they are given a curvature that is never the smallest.
    most = xp.max(xp.abs(along))
    along = along + xp.diag(xp.where(free, 0, size * xp.where(most > 0, most, 1)).astype(along.dtype))
    root = xp.ones_like(shares)
    for _ in range(8):
        largest = xp.max(xp.abs(along) / root[:, None] / root[None], axis=1)
        root = xp.where(largest > 0, root * xp.sqrt(largest), root)
    return free, basis, along, root


def _shaped(direction: Any, state: State) -> Any:
    """A vector shaped like what moves in the state."""
    leaves, structure = jax.tree.flatten(moving(state))
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = [direction[end - leaf.size : end].reshape(leaf.shape) for end, leaf in zip(ends, leaves, strict=True)]
    return jax.tree.unflatten(structure, [jnp.asarray(p, leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)])


def _largest(product: Callable[[Array], Array], like: Array) -> Scalar:
    def once(_: Any, carry: tuple[Array, Scalar]) -> tuple[Array, Scalar]:
        image = product(carry[0])
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1), size

    return jax.lax.fori_loop(0, 20, once, (_any_direction(like), jnp.zeros((), like.dtype)))[1]


def _any_direction(like: Array) -> Array:
    """A fixed direction that has a part along every other."""
    return jnp.asarray(np.random.default_rng(0).normal(size=like.size) / like.size**0.5, like.dtype)


def _estimated(energy: AbstractEnergy, state: State, norm: Any) -> tuple[Scalar, Array, Scalar, Any]:
    flat, gradient, reduced, project = _products(energy, state)
    return *_by_lanczos(reduced, project, flat)[:3], _least_norm(energy, state, gradient, norm)


def estimated_parts(energy: AbstractEnergy, state: State) -> tuple[Array, Any, Any, tuple[Scalar, Array], Scalar]:
    """The state as a vector; products with the curvature on the piece, and with the derivative of the proximal map;
    the smallest curvature with its vector, and the largest.
    """
    flat, _, reduced, project = _products(energy, state)
    smallest, vector, _, most = _by_lanczos(reduced, project, flat)
    return flat, reduced, project, (smallest, vector), most


def _products(energy: AbstractEnergy, state: State) -> tuple[Array, Array, Any, Any]:
    flat, slope, prox = _parts_of(energy, state)
    gradient, product = jax.linearize(slope, flat)
    step = _short(_largest(product, flat), flat, gradient)
    _, project = jax.linearize(lambda v: prox(v, step), flat - step * gradient)

    def reduced(v: Array) -> Array:
        inside = project(v)
        return project(product(inside)) + project(v - inside) / step

    return flat, gradient, reduced, project


def _by_lanczos(
    reduced: Callable[[Array], Array], project: Callable[[Array], Array], like: Array
) -> tuple[Scalar, Array, Scalar, Scalar]:
    """The smallest Ritz value on the piece after some steps with full orthogonalisation, an upper bound; its vector and
    sign; and about the largest curvature.
    """

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
    start = project(_any_direction(like))
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
    return jnp.where(vertex, jnp.inf, values[0]), basis[:-1].T @ vectors[:, 0], jnp.where(vertex, 1, sign), most
