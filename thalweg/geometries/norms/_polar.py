r"""The polar factor $U V^\top$ of a matrix $G = U S V^\top$: the steepest direction in the spectral norm.

Exactly, by a singular value decomposition; or by Newton–Schulz iterations.
"""

import abc

import equinox as eqx
import jax.numpy as jnp

from thalweg._types import Array, Scalar


class AbstractPolar(eqx.Module):
    """A way to the polar factor, and to the two norms that go with it."""

    @abc.abstractmethod
    def factor(self, matrix: Array) -> Array:
        r"""$U V^\top$ of $U S V^\top$, over the singular values that are not zero to rounding."""

    @abc.abstractmethod
    def largest(self, matrix: Array) -> Scalar:
        """The largest singular value."""

    @abc.abstractmethod
    def sum(self, matrix: Array) -> Scalar:
        """The sum of the singular values."""


class PolarBySVD(AbstractPolar):
    """The polar factor by a singular value decomposition, to rounding."""

    def factor(self, matrix: Array) -> Array:
        left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
        # Directions that rounding alone made non-zero stay at rest.
        cut = jnp.finfo(matrix.dtype).eps * max(matrix.shape) * singular[0]
        kept = jnp.where(singular > cut, 1, 0).astype(matrix.dtype)
        return (left * kept[None]) @ right

    def largest(self, matrix: Array) -> Scalar:
        return jnp.max(jnp.linalg.svd(matrix, compute_uv=False))

    def sum(self, matrix: Array) -> Scalar:
        return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))
