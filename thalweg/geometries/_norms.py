r"""Norms on a vector space, each with its steepest descent.

For a norm $\|\cdot\|$ with dual $\|\cdot\|_*$ the direction of steepest descent is $v = \|\xi\|_*\,u$, where $u$
minimises $\langle\xi, u\rangle$ over the unit ball; so $-\langle\xi, v\rangle = \|v\|^2 = \|\xi\|_*^2$ in every
norm. At ties (equal largest entries, zero entries, zero singular values) the minimiser is not unique: `OneNorm`
takes the first largest entry, `MaxNorm` gives a zero entry no motion, `SpectralNorm` leaves the null space at rest.
The identity still holds; the norm of $v$ is then read off the dual norm.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state
from thalweg.states import AbstractState, moving


class AbstractNorm(AbstractGeometry):
    """A geometry in which D is the square of one norm, the same everywhere."""

    @abc.abstractmethod
    def norm(self, tangent: Any) -> Scalar:
        """The norm of a vector, a pytree like the moving part of the state."""

    @abc.abstractmethod
    def norm_squared(self, tangent: Any) -> Scalar:
        """The squared norm, with right first and second derivatives at zero where it is smooth."""

    @abc.abstractmethod
    def descent(self, gradient: Any) -> Any:
        """The direction of steepest descent, $\\|\\xi\\|_*$ times the minimiser over the unit ball."""

    @abc.abstractmethod
    def check(self, state: State) -> None:
        """Raise `ValueError` if the norm does not fit the shape of the state."""

    @property
    @abc.abstractmethod
    def is_smooth(self) -> bool:
        """Whether the squared norm is differentiable."""


class NormedMetric(AbstractMetric):
    """The metric of a norm: the same at every point."""

    state: State
    geometry: AbstractNorm

    distance_kind = "exact"

    @property
    def distance_is_smooth(self) -> bool:
        """Whether the squared norm is differentiable."""
        return self.geometry.is_smooth

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        return Velocity(self.geometry.descent(cotangent.regular))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return self.geometry.norm_squared(velocity.tangent)

    def move(self, velocity: Velocity, scale: ScalarLike) -> State:
        return _tree.multiply_add(self.state, scale, velocity.tangent)

    def distance_squared(self, other: State) -> Scalar:
        difference = _tree.multiply_add(moving(other), -1.0, moving(self.state))
        return self.geometry.norm_squared(difference)

    def chart(self, coordinates: Any) -> State:
        return _tree.multiply_add(self.state, 1.0, coordinates)


def _normed(geometry: AbstractNorm, state: State) -> NormedMetric:
    if isinstance(state, AbstractState):
        raise unsupported_state(geometry, state, ["vectors and pytrees of arrays"])
    geometry.check(state)
    return NormedMetric(state, geometry)


def _flat(tree: Any) -> Array:
    return ravel_pytree(tree)[0]


def _safe_sqrt(value: Array) -> Array:
    # The derivative of a norm at zero is taken as zero, not NaN.
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0)


class Euclidean(AbstractNorm):
    r"""$\|v\|^2 = \sum_i v_i^2$: steepest descent is $v = -\nabla F$, gradient descent. Leaves of a pytree are put
    end to end.
    """

    def norm(self, tangent: Any) -> Scalar:
        return _safe_sqrt(self.norm_squared(tangent))

    def norm_squared(self, tangent: Any) -> Scalar:
        return _tree.dot(tangent, tangent)

    def descent(self, gradient: Any) -> Any:
        return _tree.scale_by(gradient, -1)

    def check(self, state: State) -> None:
        del state

    @property
    def is_smooth(self) -> bool:
        return True

    def at(self, state: State, memory: Any = None) -> NormedMetric:
        return _normed(self, state)


class Mahalanobis(AbstractNorm):
    r"""$\|v\|^2 = v^\top M v$: steepest descent is $v = -M^{-1}\nabla F$, preconditioned gradient descent.

    **Arguments:** `matrix`: $M$, shape `(n, n)`, symmetric positive definite, where the state has $n$ numbers (a
    pytree is put end to end).

    **Raises:** `ValueError` if the matrix is not square, symmetric and positive definite.
    """

    matrix: Array

    def __check_init__(self) -> None:
        matrix = self.matrix
        if _tree.is_traced(matrix):
            return
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"`matrix` of `Mahalanobis` must be square; got shape {matrix.shape}.")
        known = np.asarray(matrix)
        symmetric = np.max(np.abs(known - known.T)) <= 1e-6 * np.max(np.abs(known))
        if not symmetric or not np.all(np.linalg.eigvalsh(known) > 0):
            raise ValueError("`matrix` of `Mahalanobis` must be symmetric positive definite.")

    def norm(self, tangent: Any) -> Scalar:
        return _safe_sqrt(self.norm_squared(tangent))

    def norm_squared(self, tangent: Any) -> Scalar:
        flat = _flat(tangent)
        return flat @ (self.matrix.astype(flat.dtype) @ flat)

    def descent(self, gradient: Any) -> Any:
        flat, unravel = ravel_pytree(gradient)
        factor = jnp.linalg.cholesky(self.matrix.astype(flat.dtype))
        return unravel(-cho_solve((factor, True), flat))

    def check(self, state: State) -> None:
        size = _flat(moving(state)).size
        if self.matrix.shape[0] != size:
            raise ValueError(
                f"`Mahalanobis` has a matrix of shape {self.matrix.shape} but the state has {size} numbers."
            )

    @property
    def is_smooth(self) -> bool:
        return True

    def at(self, state: State, memory: Any = None) -> NormedMetric:
        return _normed(self, state)


class MaxNorm(AbstractNorm):
    r"""$\|v\| = \max_i |v_i|$: steepest descent is $v = -\|\nabla F\|_1\,\operatorname{sign}\nabla F$, sign descent."""

    def norm(self, tangent: Any) -> Scalar:
        return jnp.max(jnp.abs(_flat(tangent)))

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def descent(self, gradient: Any) -> Any:
        flat, unravel = ravel_pytree(gradient)
        return unravel(-jnp.sum(jnp.abs(flat)) * jnp.sign(flat))

    def check(self, state: State) -> None:
        del state

    @property
    def is_smooth(self) -> bool:
        return False

    def at(self, state: State, memory: Any = None) -> NormedMetric:
        return _normed(self, state)


class OneNorm(AbstractNorm):
    r"""$\|v\| = \sum_i |v_i|$: steepest descent moves the coordinate with the largest derivative only
    (Gauss–Southwell).
    """

    def norm(self, tangent: Any) -> Scalar:
        return jnp.sum(jnp.abs(_flat(tangent)))

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def descent(self, gradient: Any) -> Any:
        flat, unravel = ravel_pytree(gradient)
        largest = jnp.argmax(jnp.abs(flat))
        return unravel(jnp.zeros_like(flat).at[largest].set(-flat[largest]))

    def check(self, state: State) -> None:
        del state

    @property
    def is_smooth(self) -> bool:
        return False

    def at(self, state: State, memory: Any = None) -> NormedMetric:
        return _normed(self, state)


class PNorm(AbstractNorm):
    r"""$\|v\| = (\sum_i |v_i|^p)^{1/p}$, $1 < p < \infty$.

    Steepest descent is $v_i = -\|\xi\|_{p'}^{2-p'}\,|\xi_i|^{p'-1}\operatorname{sign}\xi_i$ with $1/p + 1/p' = 1$.

    **Arguments:** `exponent`: $p$, dimensionless. Use [`thalweg.OneNorm`][] and [`thalweg.MaxNorm`][] for the ends.
    """

    exponent: float

    def __check_init__(self) -> None:
        if not 1 < self.exponent < float("inf"):
            raise ValueError(f"`exponent` of `PNorm` must lie strictly between 1 and infinity; got {self.exponent}.")

    def norm(self, tangent: Any) -> Scalar:
        return _p_norm(_flat(tangent), self.exponent)

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def descent(self, gradient: Any) -> Any:
        flat, unravel = ravel_pytree(gradient)
        conjugate = self.exponent / (self.exponent - 1)
        dual = _p_norm(flat, conjugate)
        scaled = jnp.abs(flat) / jnp.where(dual > 0, dual, 1)
        return unravel(-dual * scaled ** (conjugate - 1) * jnp.sign(flat))

    def check(self, state: State) -> None:
        del state

    @property
    def is_smooth(self) -> bool:
        # Below 2 the curvature of |v_i|^p is infinite at zero, where every proximal step begins.
        return self.exponent >= 2

    def at(self, state: State, memory: Any = None) -> NormedMetric:
        return _normed(self, state)


def _p_norm(flat: Array, exponent: float) -> Scalar:
    # Scaled by the largest entry, so that no power over- or underflows; the scale cancels and needs no derivative. At
    # zero the sum is replaced by one, since the derivative of its root there would be 0/0; that of the norm is taken
    # as zero, which is right for its square.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat)))
    nonzero = largest > 0
    safe = jnp.where(nonzero, largest, 1)
    total = jnp.sum(jnp.abs(flat / safe) ** exponent)
    return jnp.where(nonzero, safe * jnp.where(nonzero, total, 1) ** (1 / exponent), 0)


class SpectralNorm(AbstractNorm):
    r"""$\|V\|$ = the largest singular value of a matrix: steepest descent is $-\|\nabla F\|_{\mathrm{nuc}}\,U
    V^\top$ with $\nabla F = U S V^\top$.

    The state is one matrix. The direction is the polar factor of the gradient, found by a singular value decomposition.
    """

    def norm(self, tangent: Any) -> Scalar:
        return jnp.max(jnp.linalg.svd(_single_matrix(tangent), compute_uv=False))

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def descent(self, gradient: Any) -> Any:
        flat, unravel = ravel_pytree(gradient)
        matrix = _single_matrix(gradient)
        left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
        # Directions that rounding alone made non-zero stay at rest.
        cut = jnp.finfo(matrix.dtype).eps * max(matrix.shape) * singular[0]
        kept = jnp.where(singular > cut, 1, 0).astype(matrix.dtype)
        return unravel((-jnp.sum(singular) * (left * kept[None]) @ right).reshape(flat.shape))

    def check(self, state: State) -> None:
        _single_matrix(moving(state))

    @property
    def is_smooth(self) -> bool:
        return False

    def at(self, state: State, memory: Any = None) -> NormedMetric:
        return _normed(self, state)


def _single_matrix(tree: Any) -> Array:
    leaves = jax.tree.leaves(tree)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        raise ValueError(
            f"`SpectralNorm` needs a state that is one matrix; got arrays of shapes {[leaf.shape for leaf in leaves]}."
        )
    return leaves[0]
