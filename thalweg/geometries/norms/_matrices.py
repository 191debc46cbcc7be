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

import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.geometries.norms._base import AbstractNorm, safe_sqrt
from thalweg.geometries.norms._polar import AbstractPolar, PolarBySVD
from thalweg.geometries.norms._vectors import check_exponent, conjugate, p_descent, p_norm
from thalweg.states import moving


class SpectralNorm(AbstractNorm):
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

    def norm(self, tangent: Any) -> Scalar:
        return self.polar.largest(single_matrix(tangent))

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def dual_norm(self, gradient: Any) -> Scalar:
        return self.polar.sum(single_matrix(gradient))

    def descent(self, gradient: Any) -> Any:
        matrix = single_matrix(gradient)
        factor = self.polar.factor(matrix)
        return like(gradient, -jnp.sum(matrix * factor) * factor)

    def check(self, state: State) -> None:
        single_matrix(moving(state), "SpectralNorm")

    @property
    def is_smooth(self) -> bool:
        return False

    @property
    def is_inner_product(self) -> bool:
        return False


class NuclearNorm(AbstractNorm):
    r"""$\|V\|$ = the sum of the singular values of a matrix: steepest descent is $-s_1 u_1 v_1^\top$, a matrix of rank
    one (the step of Frank and Wolfe on matrices); the first pair where several singular values are equal.

    The state is one matrix.

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Jaggi, *Revisiting Frank–Wolfe* (2013).
    """

    def norm(self, tangent: Any) -> Scalar:
        return jnp.sum(_singular_values(tangent))

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def dual_norm(self, gradient: Any) -> Scalar:
        return jnp.max(_singular_values(gradient))

    def descent(self, gradient: Any) -> Any:
        left, singular, right = jnp.linalg.svd(single_matrix(gradient), full_matrices=False)
        return like(gradient, -singular[0] * jnp.outer(left[:, 0], right[0]))

    def check(self, state: State) -> None:
        single_matrix(moving(state), "NuclearNorm")

    @property
    def is_smooth(self) -> bool:
        return False

    @property
    def is_inner_product(self) -> bool:
        return False


class SchattenNorm(AbstractNorm):
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

    def norm(self, tangent: Any) -> Scalar:
        return p_norm(_singular_values(tangent), self.exponent)

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def dual_norm(self, gradient: Any) -> Scalar:
        return p_norm(_singular_values(gradient), conjugate(self.exponent))

    def descent(self, gradient: Any) -> Any:
        left, singular, right = jnp.linalg.svd(single_matrix(gradient), full_matrices=False)
        return like(gradient, (left * p_descent(singular, self.exponent)[None]) @ right)

    def check(self, state: State) -> None:
        single_matrix(moving(state), "SchattenNorm")

    @property
    def is_smooth(self) -> bool:
        # The norm is; its second derivative by way of singular vectors is not, where singular values are equal.
        return False

    @property
    def is_inner_product(self) -> bool:
        return False


class FrobeniusNorm(AbstractNorm):
    r"""$\|V\|^2 = \sum_{ij} V_{ij}^2$ of one matrix: gradient descent. [`thalweg.Euclidean`][] is the same for any
    state; this one, in a product of norms, says that a matrix is meant.

    **Raises:** `ValueError` if the state is not one matrix.
    """

    def norm(self, tangent: Any) -> Scalar:
        return safe_sqrt(self.norm_squared(tangent))

    def norm_squared(self, tangent: Any) -> Scalar:
        return _tree.dot(tangent, tangent)

    def dual_norm(self, gradient: Any) -> Scalar:
        return safe_sqrt(_tree.dot(gradient, gradient))

    def descent(self, gradient: Any) -> Any:
        return _tree.scale_by(gradient, -1)

    def check(self, state: State) -> None:
        single_matrix(moving(state), "FrobeniusNorm")

    @property
    def is_smooth(self) -> bool:
        return True

    @property
    def is_inner_product(self) -> bool:
        return True


def single_matrix(tree: Any, owner: str = "A norm of matrices") -> Array:
    """The one matrix that a pytree holds."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        raise ValueError(
            f"`{owner}` needs a state that is one matrix; got arrays of shapes {[leaf.shape for leaf in leaves]}.\n"
            "For several arrays give each its norm: `tw.MaxProduct(norms)` with a norm for each leaf."
        )
    return leaves[0]


def like(tree: Any, matrix: Array) -> Any:
    """The matrix, in the structure of a pytree that holds one."""
    return jax.tree.map(lambda _: matrix, tree)


def _singular_values(tree: Any) -> Array:
    return jnp.linalg.svd(single_matrix(tree), compute_uv=False)
