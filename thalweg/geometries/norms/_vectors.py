r"""Norms of the entries: a pytree is put end to end, and its shape does not matter.

| norm | dual | steepest descent |
|---|---|---|
| $\ell_2$ | $\ell_2$ | $-g$ |
| $(v^\top M v)^{1/2}$ | $(g^\top M^{-1} g)^{1/2}$ | $-M^{-1}g$ |
| $\ell_\infty$ | $\ell_1$ | $-\|g\|_1\operatorname{sign} g$; a zero entry stays at rest |
| $\ell_1$ | $\ell_\infty$ | $-g_i$ at the first largest $|g_i|$, zero elsewhere |
| $\ell_p$ | $\ell_{p'}$ | $-\|g\|_{p'}^{2-p'}|g_i|^{p'-1}\operatorname{sign} g_i$ |
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve

from thalweg import _tree
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.geometries.norms._base import flat, is_at_least, safe_sqrt
from thalweg.geometries.norms._kinds import AbstractEntryNorm, AbstractInnerProduct
from thalweg.states import moving


class Euclidean(AbstractInnerProduct):
    r"""$\|v\|^2 = \sum_i v_i^2$: steepest descent is $v = -\nabla F$, gradient descent. Leaves of a pytree are put
    end to end.
    """

    def norm_squared(self, tangent: Any) -> Scalar:
        return _tree.dot(tangent, tangent)

    def dual_norm(self, gradient: Any) -> Scalar:
        return safe_sqrt(_tree.dot(gradient, gradient))

    def descent(self, gradient: Any) -> Any:
        return _tree.scale_by(gradient, -1)

    def check(self, state: State) -> None:
        del state


class Mahalanobis(AbstractInnerProduct):
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
        known = np.asarray(matrix, float)
        if not np.all(np.isfinite(known)):
            raise ValueError("`matrix` of `Mahalanobis` must be finite; it holds NaN or infinity.")
        asymmetry = np.max(np.abs(known - known.T)) / max(np.max(np.abs(known)), np.finfo(known.dtype).tiny)
        if asymmetry > 1e-6:
            raise ValueError(
                f"`matrix` of `Mahalanobis` must be symmetric; it differs from its transpose by {asymmetry:.2g} of its "
                "largest entry.\nUse `0.5 * (matrix + matrix.T)` if that is meant."
            )
        smallest = float(np.linalg.eigvalsh(known)[0])
        if not smallest > 0:
            raise ValueError(
                f"`matrix` of `Mahalanobis` must be positive definite; its smallest eigenvalue is {smallest:.3g}.\n"
                "Add a multiple of the identity, or use `tw.Euclidean()`."
            )

    def norm_squared(self, tangent: Any) -> Scalar:
        v = flat(tangent)
        return v @ (self.matrix.astype(v.dtype) @ v)

    def dual_norm(self, gradient: Any) -> Scalar:
        g = flat(gradient)
        return safe_sqrt(g @ self._solve(g))

    def descent(self, gradient: Any) -> Any:
        g, unravel = ravel_pytree(gradient)
        return unravel(-self._solve(g))

    def _solve(self, g: Array) -> Array:
        return cho_solve((jnp.linalg.cholesky(self.matrix.astype(g.dtype)), True), g)

    def check(self, state: State) -> None:
        size = flat(moving(state)).size
        if self.matrix.shape[0] != size:
            raise ValueError(
                f"`Mahalanobis` has a matrix of shape {self.matrix.shape} but the state has {size} numbers."
            )


class MaxNorm(AbstractEntryNorm):
    r"""$\|v\| = \max_i |v_i|$: steepest descent is $v = -\|\nabla F\|_1\,\operatorname{sign}\nabla F$, sign descent.
    An entry whose derivative is zero stays at rest.
    """

    def of(self, entries: Array) -> Scalar:
        return jnp.max(jnp.abs(entries))

    def dual_of(self, entries: Array) -> Scalar:
        return jnp.sum(jnp.abs(entries))

    def descent_of(self, entries: Array) -> Array:
        return -jnp.sum(jnp.abs(entries)) * jnp.sign(entries)

    @property
    def is_smooth(self) -> bool:
        return False


class OneNorm(AbstractEntryNorm):
    r"""$\|v\| = \sum_i |v_i|$: steepest descent moves the coordinate with the largest derivative only
    (Gauss–Southwell), the first of them where several are equal.
    """

    def of(self, entries: Array) -> Scalar:
        return jnp.sum(jnp.abs(entries))

    def dual_of(self, entries: Array) -> Scalar:
        return jnp.max(jnp.abs(entries))

    def descent_of(self, entries: Array) -> Array:
        largest = jnp.argmax(jnp.abs(entries))
        return jnp.zeros_like(entries).at[largest].set(-entries[largest])

    @property
    def is_smooth(self) -> bool:
        return False


class PNorm(AbstractEntryNorm):
    r"""$\|v\| = (\sum_i |v_i|^p)^{1/p}$, $1 < p < \infty$.

    Steepest descent is $v_i = -\|\xi\|_{p'}^{2-p'}\,|\xi_i|^{p'-1}\operatorname{sign}\xi_i$ with $1/p + 1/p' = 1$.

    **Arguments:** `exponent`: $p$, dimensionless. Use [`thalweg.OneNorm`][] and [`thalweg.MaxNorm`][] for the ends.
    """

    exponent: ScalarLike

    def __check_init__(self) -> None:
        check_exponent(self.exponent, "PNorm", "OneNorm", "MaxNorm")

    def of(self, entries: Array) -> Scalar:
        return p_norm(entries, self.exponent)

    def dual_of(self, entries: Array) -> Scalar:
        return p_norm(entries, conjugate(self.exponent))

    def descent_of(self, entries: Array) -> Array:
        return p_descent(entries, self.exponent)

    @property
    def is_smooth(self) -> bool:
        # Below 2 the curvature of |v_i|^p is infinite at zero, where every proximal step begins.
        return is_at_least(self.exponent, 2.0)


def check_exponent(exponent: Any, owner: str, one: str, infinity: str) -> None:
    """Raise `ValueError` unless an exponent that is known now lies strictly between one and infinity."""
    if not _tree.is_traced(exponent) and not 1 < exponent < float("inf"):
        raise ValueError(
            f"`exponent` of `{owner}` must lie strictly between 1 and infinity; got {exponent}.\n"
            f"Use `tw.{one}()` for 1 and `tw.{infinity}()` for infinity."
        )


def conjugate(exponent: Any) -> Any:
    """The exponent p′ with 1/p + 1/p′ = 1."""
    return exponent / (exponent - 1)


def p_norm(values: Array, exponent: Any) -> Scalar:
    """The p-norm of a vector, with its derivative at zero taken as zero."""
    # Scaled by the largest entry, so that no power over- or underflows; the scale cancels and needs no derivative. At
    # zero the sum is replaced by one, since the derivative of its root there would be 0/0; that of the norm is taken
    # as zero, which is right for its square.
    exponent = jnp.asarray(exponent, values.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(values)))
    nonzero = largest > 0
    safe = jnp.where(nonzero, largest, 1)
    total = jnp.sum(jnp.abs(values / safe) ** exponent)
    return jnp.where(nonzero, safe * jnp.where(nonzero, total, 1) ** (1 / exponent), 0)


def p_descent(g: Array, exponent: Any) -> Array:
    """Steepest descent in the p-norm of a vector."""
    power = conjugate(jnp.asarray(exponent, g.dtype))
    dual = p_norm(g, power)
    scaled = jnp.abs(g) / jnp.where(dual > 0, dual, 1)
    return -dual * scaled ** (power - 1) * jnp.sign(g)
