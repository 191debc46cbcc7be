r"""Minimum, saddle or flat: what the smallest curvature says of a stationary point.

Where $\mathrm dF = 0$, the sign of the smallest eigenvalue of the Hessian decides: positive at a minimum, negative at a
saddle (or a maximum), and zero where the second derivatives do not tell. The signs do not depend on coordinates
(Sylvester), so they are counted on a Hessian whose rows and columns are scaled to size one, where zero means zero to
rounding; a badly scaled problem is not called flat.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._first_variation import first_variation
from thalweg._types import Array, Flag, PyTree, Scalar, State
from thalweg.energies import AbstractEnergy, as_energy
from thalweg.states import moving, quadrature_weights

# Up to here all eigenvalues are found; beyond, the smallest is estimated from Hessian-vector products.
LARGEST_DENSE = 1000
_LANCZOS_STEPS = 80


class StationaryPoint(eqx.Module):
    r"""What is known of a point where the first variation (nearly) vanishes.

    `smallest_curvature`: the smallest eigenvalue $\lambda$ of $Hv = \lambda Gv$, with G the Gram matrix of the
    geometry (Euclidean: that of the Hessian); `direction`: its eigenvector, shaped like what moves in the state;
    `gradient_norm`: $\|\xi\|_*$; `is_minimum`, `is_saddle`, `is_flat`: exactly one is true, by the sign of the smallest
    curvature (flat: zero to rounding, so that second derivatives do not tell); `estimated`: whether it was found from
    Hessian-vector products, in which case it is an upper bound, and the point is called flat where the estimate has
    not converged.
    """

    smallest_curvature: Scalar
    direction: PyTree
    gradient_norm: Scalar
    is_minimum: Flag
    is_saddle: Flag
    is_flat: Flag
    estimated: bool = eqx.field(static=True)

    @property
    def kind(self) -> str:
        """`"minimum"`, `"saddle"` or `"flat"`."""
        return "minimum" if self.is_minimum else "saddle" if self.is_saddle else "flat"


def stationary_point(
    energy: AbstractEnergy | Callable[..., Any], state: State, *, geometry: Any = None
) -> StationaryPoint:
    r"""What kind of stationary point a state is, by the smallest curvature of the energy there.

    It does not check that the state is one: look at `gradient_norm`.

    **Arguments:** `energy`; `state`; `geometry`: in which curvature is measured (`None`: that of the plain
    coordinates). The kind does not depend on it.

    **Returns:** a [`thalweg.StationaryPoint`][].

    **Raises:** `ValueError` if the energy is not twice differentiable in finite numbers there.

    **Source:** Nocedal, Wright, *Numerical Optimization* (2006), theorems 2.3 and 2.4.
    """
    found = _stationary_point(as_energy(energy), state, geometry)
    if not _tree.is_traced(found.smallest_curvature) and not bool(jnp.isfinite(found.smallest_curvature)):
        raise ValueError(
            "The curvature of `energy` at this state is not finite, so its kind cannot be told.\n"
            "Check that the energy is twice differentiable there."
        )
    return found


@eqx.filter_jit
def _stationary_point(energy: AbstractEnergy, state: State, geometry: Any) -> StationaryPoint:
    flat, unravel = ravel_pytree(moving(state))
    metric = None if geometry is None else geometry.at(state)

    def value(z: Array) -> Scalar:
        return energy(eqx.combine(unravel(z), state))

    gradient = jax.grad(value)(flat)
    gram = metric.matrix() if metric is not None and metric.matrix is not None else None
    if metric is None:
        norm = jnp.sqrt(jnp.sum(gradient**2 / _flat_weights(state, flat)))
    else:
        norm = jnp.sqrt(metric.norm_squared(metric.steepest_descent(first_variation(energy, state))))
    if flat.size <= LARGEST_DENSE:
        smallest, direction, sign = curvature_of(jax.hessian(value)(flat), gram, _flat_weights(state, flat))
    else:
        smallest, _, direction, sign = lowest_by_lanczos(lambda v: jax.jvp(jax.grad(value), (flat,), (v,))[1], flat)
    return StationaryPoint(smallest, unravel(direction), norm, sign > 0, sign < 0, sign == 0, flat.size > LARGEST_DENSE)


def curvature_of(hessian: Array, gram: Array | None, weights: Array) -> tuple[Scalar, Array, Scalar]:
    """The smallest generalised eigenvalue, its eigenvector, and its sign: 0 where it is zero to rounding."""
    hessian = 0.5 * (hessian + hessian.T)
    if gram is None:
        root = jnp.sqrt(weights)
        values, vectors = jnp.linalg.eigh(hessian / root[:, None] / root[None])
        smallest, direction = values[0], vectors[:, 0] / root
    else:
        factor = jnp.linalg.cholesky(gram)
        half = jax.scipy.linalg.solve_triangular(factor, hessian, lower=True)
        whole = jax.scipy.linalg.solve_triangular(factor, half.T, lower=True)
        values, vectors = jnp.linalg.eigh(0.5 * (whole + whole.T))
        smallest = values[0]
        direction = jax.scipy.linalg.solve_triangular(factor, vectors[:, 0], lower=True, trans=1)
    scale = equilibrating_root(hessian)
    least = jnp.linalg.eigvalsh(hessian / scale[:, None] / scale[None])[0]
    zero = negligible_curvature(hessian.shape[0], float(jnp.finfo(hessian.dtype).eps))
    sign = jnp.where(jnp.abs(least) <= zero, 0, jnp.sign(least))
    return smallest, direction, sign


def equilibrating_root(matrix: Any, xp: Any = jnp) -> Any:
    """r such that the largest entry of each row of $H_{ij}/(r_i r_j)$ is about one (Ruiz, 2001), by JAX or NumPy."""

    def once(_: Any, root: Any) -> Any:
        largest = xp.max(xp.abs(matrix) / root[:, None] / root[None], axis=1)
        return xp.where(largest > 0, root * xp.sqrt(largest), root)

    root = xp.ones_like(matrix[0])
    if xp is jnp:
        return jax.lax.fori_loop(0, 8, once, root)
    for step in range(8):
        root = once(step, root)
    return root


def negligible_curvature(size: int, eps: float) -> float:
    """What is zero to rounding, for the eigenvalues of a matrix with rows of size one and as many unknowns."""
    return 100 * size * eps


def _flat_weights(state: State, like: Array) -> Array:
    weights = jax.tree.map(lambda leaf, w: _tree.broadcast_weight(w, leaf), moving(state), quadrature_weights(state))
    return ravel_pytree(weights)[0].astype(like.dtype)


def lowest_by_lanczos(product: Callable[[Array], Array], like: Array) -> tuple[Scalar, Scalar, Array, Scalar]:
    """The smallest Ritz value after some steps with full orthogonalisation, which is an upper bound of the eigenvalue;
    the largest in size; the vector of the smallest, and its sign.
    """
    size, steps = like.shape[0], _LANCZOS_STEPS

    def step(k: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, diagonal, beside = carry
        image = product(basis[k])
        diagonal = diagonal.at[k].set(image @ basis[k])
        for _ in range(2):  # once is not enough
            image = image - basis.T @ (basis @ image)
        size_left = jnp.linalg.norm(image)
        # The space may be exhausted before all steps are taken: then all there is to know is known.
        goes_on = size_left > 1e2 * jnp.finfo(like.dtype).eps * (jnp.max(jnp.abs(diagonal)) + jnp.max(beside))
        basis = basis.at[k + 1].set(jnp.where(goes_on, image / jnp.where(goes_on, size_left, 1), 0))
        return basis, diagonal, beside.at[k].set(jnp.where(goes_on, size_left, 0))

    start = jax.random.normal(jax.random.key(0), (size,), like.dtype)
    basis = jnp.zeros((steps + 1, size), like.dtype).at[0].set(start / jnp.linalg.norm(start))
    zeros = jnp.zeros((steps,), like.dtype)
    basis, diagonal, beside = jax.lax.fori_loop(0, steps, step, (basis, zeros, zeros))
    # Steps after the space was exhausted stand for nothing: they must not be the smallest.
    most = 2 * (jnp.max(jnp.abs(diagonal)) + jnp.max(beside))
    diagonal = jnp.where(jnp.any(basis[:-1] != 0, axis=1), diagonal, most)
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
    # A Ritz value is an upper bound: one below zero proves a direction of descent, one above proves nothing until it
    # has converged, which its residual tells.
    zero = 1e3 * jnp.finfo(like.dtype).eps * jnp.max(jnp.abs(values))
    residual = beside[-1] * jnp.abs(vectors[-1, 0])
    sign = jnp.where(values[0] < -zero, -1, jnp.where(values[0] - residual > zero, 1, 0)).astype(like.dtype)
    return values[0], jnp.max(jnp.abs(values)), basis[:-1].T @ vectors[:, 0], sign
