r"""Norms of the singular values of one matrix, $G = U S V^\top$.

| norm | dual | steepest descent |
|---|---|---|
| spectral, $\max_i s_i$ | nuclear | $-\|G\|_{\mathrm{nuc}} U V^\top$; the null space of $G$ stays at rest |
| nuclear, $\sum_i s_i$ | spectral | $-s_1 u_1 v_1^\top$, of the first largest singular value |
| Schatten, $(\sum_i s_i^p)^{1/p}$ | Schatten $p'$ | $-U\,\mathrm{diag}(\|s\|_{p'}^{2-p'} s_i^{p'-1})\,V^\top$ |
| Frobenius, Schatten 2 | itself | $-G$ |

A matrix of the state of any shape, also one row or one column. Batches by `jax.vmap`; several matrices by a product
of norms.
"""

from typing import Any

import jax.numpy as jnp

from thalweg import _tree
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.geometries.norms._base import safe_sqrt
from thalweg.geometries.norms._kinds import AbstractInnerProduct, AbstractMatrixNorm, single_matrix
from thalweg.geometries.norms._polar import AbstractPolar, PolarBySVD
from thalweg.geometries.norms._vectors import check_exponent, conjugate, p_descent, p_norm
from thalweg.states import moving


class SpectralNorm(AbstractMatrixNorm):
    r"""$\|V\|$ = the largest singular value of a matrix: steepest descent is $-\|\nabla F\|_{\mathrm{nuc}}\,U
    V^\top$ with $\nabla F = U S V^\top$.

    The state is one matrix. The direction is the polar factor of the gradient; the null space of the gradient stays at
    rest. With momentum and `tw.NewtonSchulz()` this is the optimiser Muon.

    **Arguments:** `polar`: how the polar factor is found: `tw.PolarBySVD()` (the default, to rounding) or
    `tw.NewtonSchulz(...)` (products of matrices only, with a gap that it reports).

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Bernstein, Newhouse, *Old optimizer, new norm: an anthology* (2024).
    """

    polar: AbstractPolar = PolarBySVD()

    def of(self, matrix: Array) -> Scalar:
        return self.polar.largest(matrix)

    def dual_of(self, matrix: Array) -> Scalar:
        return self.polar.sum(matrix)

    def descent_of(self, matrix: Array) -> Array:
        factor = self.polar.factor(matrix)
        return -jnp.sum(matrix * factor) * factor


class NuclearNorm(AbstractMatrixNorm):
    r"""$\|V\|$ = the sum of the singular values of a matrix: steepest descent is $-s_1 u_1 v_1^\top$, a matrix of rank
    one (the step of Frank and Wolfe on matrices); the first pair where several singular values are equal.

    The state is one matrix.

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Jaggi, *Revisiting Frank–Wolfe* (2013).
    """

    def of(self, matrix: Array) -> Scalar:
        return jnp.sum(_singular_values(matrix))

    def dual_of(self, matrix: Array) -> Scalar:
        return jnp.max(_singular_values(matrix))

    def descent_of(self, matrix: Array) -> Array:
        left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
        return -singular[0] * jnp.outer(left[:, 0], right[0])


class SchattenNorm(AbstractMatrixNorm):
    r"""$\|V\| = (\sum_i s_i^p)^{1/p}$ with the singular values $s$ of a matrix, $1 < p < \infty$.

    The state is one matrix; a zero singular value of the gradient stays zero.

    **Arguments:** `exponent`: $p$, dimensionless. Use [`thalweg.NuclearNorm`][] and [`thalweg.SpectralNorm`][] for the
    ends.

    **Raises:** `ValueError` if the exponent is not between 1 and infinity, or the state is not one matrix.

    **Source:** Bhatia, *Matrix Analysis* (1997), section IV.2.
    """

    exponent: ScalarLike

    def __check_init__(self) -> None:
        check_exponent(self.exponent, "SchattenNorm", "NuclearNorm", "SpectralNorm")

    def of(self, matrix: Array) -> Scalar:
        return p_norm(_singular_values(matrix), self.exponent)

    def dual_of(self, matrix: Array) -> Scalar:
        return p_norm(_singular_values(matrix), conjugate(self.exponent))

    def descent_of(self, matrix: Array) -> Array:
        left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
        return (left * p_descent(singular, self.exponent)[None]) @ right


class FrobeniusNorm(AbstractInnerProduct):
    r"""$\|V\|^2 = \sum_{ij} V_{ij}^2$ of one matrix: gradient descent. [`thalweg.Euclidean`][] is the same for any
    state; this one, in a product of norms, says that a matrix is meant.

    **Raises:** `ValueError` if the state is not one matrix.
    """

    def norm_squared(self, tangent: Any) -> Scalar:
        return _tree.dot(tangent, tangent)

    def dual_norm(self, gradient: Any) -> Scalar:
        return safe_sqrt(_tree.dot(gradient, gradient))

    def descent(self, gradient: Any) -> Any:
        return _tree.scale_by(gradient, -1)

    def check(self, state: State) -> None:
        single_matrix(moving(state), "FrobeniusNorm")


def _singular_values(matrix: Array) -> Array:
    return jnp.linalg.svd(matrix, compute_uv=False)
