r"""Riemannian geometries: an inner product that changes from point to point.

$\|v\|_x^2 = v^\top G(x)\,v$ and steepest descent is $v = -G(x)^{-1}\nabla F$. Moves are straight in the coordinates of
the state, $x + \alpha v$ (the exponential map to first order); the distance is local, with the metric at the middle:
$D(y, x) = (y - x)^\top G(\tfrac{x + y}2)(y - x)$, symmetric and off by the fourth order of the length only.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Flag, Scalar, ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, flat_quadratic, unsupported_state
from thalweg.geometries.bregman import AbstractLegendre, as_legendre, hessian_matrix
from thalweg.states import AbstractState, moving


class Riemannian(AbstractGeometry):
    r"""$\|v\|_x^2 = v^\top G(x)\,v$ with a metric tensor of your own: steepest descent is $v = -G(x)^{-1}\nabla F$.

    **Arguments:** `metric_tensor`: from the state to $G(x)$, shape `(n, n)`, symmetric positive definite, where the
    state has $n$ numbers (a pytree is put end to end).

    **Raises:** `ValueError` if the tensor at the state has another shape or is not symmetric positive definite. A step
    to where it is not stops the run with `RESULTS.left_domain`.

    **Source:** Absil, Mahony, Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), section 3.6.
    """

    metric_tensor: Callable[..., Any]

    def at(self, state: State, memory: Any = None) -> "RiemannianMetric":
        return _metric_at(self, state, self.metric_tensor)

    def in_domain(self, state: State) -> Flag:
        return _is_definite(self.metric_tensor(state))


class Hessian(AbstractGeometry):
    r"""$\|v\|_x^2 = v^\top\nabla^2 h(x)\,v$ with a convex function $h$: steepest descent is $v = -\nabla^2 h(x)^{-1}
    \nabla F$; with $h = F$ it is Newton's direction.

    The norm is that of [`thalweg.Bregman`][]; moves are straight in $x$ instead of in $\nabla h(x)$, so they may leave
    the domain of $h$, which stops the run with `RESULTS.left_domain`. Both have the same `Continuous` flow.

    **Arguments:** `h`: any convex function of the state, or one of those of [`thalweg.Bregman`][].

    **Raises:** `ValueError` if its Hessian at the state is not positive definite.

    **Source:** Alvarez, Bolte, Brahic, *Hessian Riemannian gradient flows in convex programming* (2004).
    """

    h: AbstractLegendre = eqx.field(converter=as_legendre)

    def __check_init__(self) -> None:
        if not self.h.has_matrix:
            raise ValueError(
                f"`Hessian` needs an h on an open set of vectors; the tangents of `{type(self.h).__name__}` have "
                f"sum zero.\nUse `tw.Bregman(tw.{type(self.h).__name__}())`, which has the same flow."
            )

    def at(self, state: State, memory: Any = None) -> "RiemannianMetric":
        return _metric_at(self, state, self._tensor)

    def in_domain(self, state: State) -> Flag:
        # Outside its domain an h may still have a positive Hessian: that of −log x is.
        return self.h.contains(state) & _is_definite(self._tensor(state))

    def _tensor(self, state: State) -> Array:
        return hessian_matrix(self.h, state)


class RiemannianMetric(AbstractMetric):
    """An inner product at a state, from a metric tensor."""

    state: State
    tensor: Callable[..., Any]

    distance_kind = "local"
    is_riemannian = True

    def matrix(self) -> Array:
        """$G(x)$ in flat coordinates, shape `(n, n)`."""
        return self._tensor_at(self.state)

    def _tensor_at(self, state: State) -> Array:
        return jnp.asarray(self.tensor(state), _tree.dtype_of(state))

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        gradient, unravel = ravel_pytree(cotangent.regular)
        return Velocity(unravel(-cho_solve((jnp.linalg.cholesky(self.matrix()), True), gradient)))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return flat_quadratic(self.matrix(), ravel_pytree(velocity.tangent)[0])

    def move(self, velocity: Velocity, scale: ScalarLike) -> State:
        return _tree.multiply_add(self.state, scale, velocity.tangent)

    def distance_squared(self, other: State) -> Scalar:
        difference = _tree.multiply_add(moving(other), -1.0, moving(self.state))
        middle = _tree.multiply_add(self.state, 0.5, difference)
        return flat_quadratic(self._tensor_at(middle), ravel_pytree(difference)[0])

    def chart(self, coordinates: Any) -> State:
        return _tree.multiply_add(self.state, 1.0, coordinates)


def _metric_at(geometry: "Riemannian | Hessian", state: State, tensor: Callable[..., Any]) -> RiemannianMetric:
    if isinstance(state, AbstractState):
        raise unsupported_state(geometry, state, ["vectors and pytrees of arrays"])
    name, size = type(geometry).__name__, ravel_pytree(moving(state))[0].size
    shape = eqx.filter_eval_shape(lambda x: jnp.asarray(tensor(x)), state).shape
    if shape != (size, size):
        raise ValueError(
            f"The metric tensor of `{name}` must have shape {(size, size)} at a state of {size} numbers; got {shape}."
        )
    if not any(_tree.is_traced(leaf) for leaf in jax.tree.leaves((geometry, state))):
        _check_definite(np.asarray(tensor(state), float), name)
    return RiemannianMetric(state, tensor)


def _check_definite(known: np.ndarray, name: str) -> None:
    if not np.all(np.isfinite(known)):
        raise ValueError(f"The metric tensor of `{name}` is not finite at the state; start in its domain.")
    if np.max(np.abs(known - known.T)) > 1e-5 * np.max(np.abs(known)):
        raise ValueError(f"The metric tensor of `{name}` must be symmetric; at the state it is not.")
    smallest = float(np.linalg.eigvalsh(known)[0])
    if not smallest > 0:
        raise ValueError(
            f"The metric tensor of `{name}` must be positive definite; its smallest eigenvalue at the state is "
            f"{smallest:.3g}.\nStart elsewhere, or add a multiple of the identity to it."
        )


def _is_definite(matrix: Any) -> Flag:
    return jnp.all(jnp.isfinite(jnp.linalg.cholesky(jnp.asarray(matrix))))
