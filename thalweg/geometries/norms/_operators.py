r"""Operator norms of one matrix $V$, and the group norm that is dual to one of them.

A matrix of shape $(m, n)$ is a map $x \mapsto Vx$ from $n$ numbers to $m$ (a layer that multiplies from the right has
the transpose). With $\|x\|_{\mathrm{RMS}} = \|x\|_2/\sqrt n$, the size of a typical entry, the columns $v_j$ and rows
$r_i$ of $V$, and $g_j$, $h_i$ those of the gradient $G = U S W^\top$:

| norm | formula | dual | oracle |
|---|---|---|---|
| group, ℓ₂,₁ | Σⱼ ‖vⱼ‖₂ | maxⱼ ‖gⱼ‖₂ | −gⱼ/‖gⱼ‖₂ at the first longest column, zero elsewhere |
| ℓ₁ → ℓ₂ | maxⱼ ‖vⱼ‖₂ | Σⱼ ‖gⱼ‖₂ | every column −gⱼ/‖gⱼ‖₂ |
| ℓ₁ → RMS | maxⱼ ‖vⱼ‖₂/√m | √m Σⱼ ‖gⱼ‖₂ | every column −√m gⱼ/‖gⱼ‖₂ |
| RMS → ℓ∞ | √n maxᵢ ‖rᵢ‖₂ | Σᵢ ‖hᵢ‖₂/√n | every row −hᵢ/(√n ‖hᵢ‖₂) |
| RMS → RMS | √(n/m) maxᵢ sᵢ(V) | √(m/n) Σᵢ sᵢ | −√(m/n) U Wᵀ |

A column or row of the gradient that is zero stays at rest.

Sources: Bernstein, Newhouse, *Old optimizer, new norm: an anthology* (2024); *Modular duality in deep learning* (2024).
"""

import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.geometries.norms._base import safe_sqrt
from thalweg.geometries.norms._kinds import AbstractMatrixNorm
from thalweg.geometries.norms._polar import AbstractPolar, PolarBySVD


class GroupNorm(AbstractMatrixNorm):
    r"""$\|V\|_{2,1} = \sum_j \|v_j\|_2$ over the columns of a matrix: steepest descent moves one column, the first one
    whose gradient is longest (Gauss–Southwell by groups).

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Yuan, Lin, *Model selection and estimation in regression with grouped variables* (2006).
    """

    def of(self, matrix: Array) -> Scalar:
        return jnp.sum(_lengths(matrix, 0))

    def dual_of(self, matrix: Array) -> Scalar:
        return jnp.max(_lengths(matrix, 0))

    def descent_of(self, matrix: Array) -> Array:
        longest = jnp.argmax(_lengths(matrix, 0))
        return jnp.zeros_like(matrix).at[:, longest].set(-matrix[:, longest])


class OneToTwoNorm(AbstractMatrixNorm):
    r"""$\|V\|_{1\to2} = \max_j \|v_j\|_2$ over the columns of a matrix: steepest descent normalises every column.

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Bernstein, Newhouse, *Old optimizer, new norm* (2024).
    """

    def of(self, matrix: Array) -> Scalar:
        return jnp.max(_lengths(matrix, 0))

    def dual_of(self, matrix: Array) -> Scalar:
        return jnp.sum(_lengths(matrix, 0))

    def descent_of(self, matrix: Array) -> Array:
        return _normalised(matrix, 0, 1.0)


class OneToRMSNorm(AbstractMatrixNorm):
    r"""$\|V\|_{1\to\mathrm{RMS}} = \max_j \|v_j\|_2/\sqrt m$ over the columns of a matrix with $m$ rows: the norm of
    an embedding, whose inputs are one-hot and whose outputs should have entries of size one.

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Bernstein, Newhouse, *Modular duality in deep learning* (2024) (embedding layers).
    """

    def of(self, matrix: Array) -> Scalar:
        return jnp.max(_lengths(matrix, 0)) / matrix.shape[0] ** 0.5

    def dual_of(self, matrix: Array) -> Scalar:
        return matrix.shape[0] ** 0.5 * jnp.sum(_lengths(matrix, 0))

    def descent_of(self, matrix: Array) -> Array:
        return _normalised(matrix, 0, float(matrix.shape[0]))


class RMSToMaxNorm(AbstractMatrixNorm):
    r"""$\|V\|_{\mathrm{RMS}\to\infty} = \sqrt n\,\max_i \|r_i\|_2$ over the rows of a matrix with $n$ columns: how
    much the largest output can change; for the last layer of a classifier.

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Bernstein, Newhouse, *Old optimizer, new norm* (2024).
    """

    def of(self, matrix: Array) -> Scalar:
        return matrix.shape[1] ** 0.5 * jnp.max(_lengths(matrix, 1))

    def dual_of(self, matrix: Array) -> Scalar:
        return jnp.sum(_lengths(matrix, 1)) / matrix.shape[1] ** 0.5

    def descent_of(self, matrix: Array) -> Array:
        return _normalised(matrix, 1, 1 / matrix.shape[1])


class RMSToRMSNorm(AbstractMatrixNorm):
    r"""$\|V\|_{\mathrm{RMS}\to\mathrm{RMS}} = \sqrt{n/m}\,\max_i s_i$ of a matrix of shape $(m, n)$: the norm of a
    dense layer whose inputs and outputs have entries of size one, the same at every width.

    **Arguments:** `polar`: as for [`thalweg.SpectralNorm`][].

    **Raises:** `ValueError` if the state is not one matrix.

    **Source:** Bernstein, Newhouse, *Modular duality in deep learning* (2024) (linear layers).
    """

    polar: AbstractPolar = PolarBySVD()

    def of(self, matrix: Array) -> Scalar:
        return self.polar.largest(matrix) / _stretch(matrix)

    def dual_of(self, matrix: Array) -> Scalar:
        return _stretch(matrix) * self.polar.sum(matrix)

    def descent_of(self, matrix: Array) -> Array:
        factor = self.polar.factor(matrix)
        return -(_stretch(matrix) ** 2) * jnp.sum(matrix * factor) * factor


def _stretch(matrix: Array) -> float:
    return (matrix.shape[0] / matrix.shape[1]) ** 0.5


def _lengths(matrix: Array, axis: int) -> Array:
    """The Euclidean lengths of the columns (axis 0) or rows (axis 1)."""
    largest = jnp.max(jnp.abs(matrix), axis=axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    return jnp.squeeze(scale, axis) * safe_sqrt(jnp.sum((matrix / scale) ** 2, axis=axis))


def _normalised(matrix: Array, axis: int, factor: float) -> Array:
    """Steepest descent where the norm is `factor^-½` times the longest column or row."""
    lengths = _lengths(matrix, axis)
    units = matrix / jnp.expand_dims(jnp.where(lengths > 0, lengths, 1), axis)
    return -factor * jnp.sum(lengths) * units
