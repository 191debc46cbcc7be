r"""What norms of one kind share: how they read a state, and what follows from the kind alone."""

import abc
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from thalweg._types import Array, Scalar, State
from thalweg.geometries.norms._base import AbstractNorm, safe_sqrt
from thalweg.states import moving


class AbstractInnerProduct(AbstractNorm):
    """A norm whose square is a quadratic form."""

    def norm(self, tangent: Any) -> Scalar:
        return safe_sqrt(self.norm_squared(tangent))

    @property
    def is_smooth(self) -> bool:
        return True

    @property
    def is_inner_product(self) -> bool:
        return True


class AbstractEntryNorm(AbstractNorm):
    """A norm of the entries of a state, put end to end; no inner product."""

    @abc.abstractmethod
    def of(self, entries: Array) -> Scalar:
        """The norm of a vector."""

    @abc.abstractmethod
    def dual_of(self, entries: Array) -> Scalar:
        """The dual norm of a vector."""

    @abc.abstractmethod
    def descent_of(self, entries: Array) -> Array:
        """Steepest descent for a vector."""

    def norm(self, tangent: Any) -> Scalar:
        return self.of(ravel_pytree(tangent)[0])

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def dual_norm(self, gradient: Any) -> Scalar:
        return self.dual_of(ravel_pytree(gradient)[0])

    def descent(self, gradient: Any) -> Any:
        entries, unravel = ravel_pytree(gradient)
        return unravel(self.descent_of(entries))

    def check(self, state: State) -> None:
        del state

    @property
    def is_inner_product(self) -> bool:
        return False


class AbstractMatrixNorm(AbstractNorm):
    """A norm of a state that is one matrix; with corners, where singular values, columns or rows are equally long."""

    @abc.abstractmethod
    def of(self, matrix: Array) -> Scalar:
        """The norm of a matrix."""

    @abc.abstractmethod
    def dual_of(self, matrix: Array) -> Scalar:
        """The dual norm of a matrix."""

    @abc.abstractmethod
    def descent_of(self, matrix: Array) -> Array:
        """Steepest descent for a matrix."""

    def norm(self, tangent: Any) -> Scalar:
        return self.of(single_matrix(tangent))

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def dual_norm(self, gradient: Any) -> Scalar:
        return self.dual_of(single_matrix(gradient))

    def descent(self, gradient: Any) -> Any:
        moved = self.descent_of(single_matrix(gradient))
        return jax.tree.map(lambda _: moved, gradient)

    def check(self, state: State) -> None:
        single_matrix(moving(state), type(self).__name__)

    @property
    def is_smooth(self) -> bool:
        # A Schatten norm is; its second derivative by way of singular vectors is not, where singular values are equal.
        return False

    @property
    def is_inner_product(self) -> bool:
        return False


def single_matrix(tree: Any, owner: str = "A norm of matrices") -> Array:
    """The one matrix that a pytree holds."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        raise ValueError(
            f"`{owner}` needs a state that is one matrix; got arrays of shapes {[leaf.shape for leaf in leaves]}.\n"
            "For several arrays give each its norm: `tw.MaxProduct(norms)` with a norm for each leaf."
        )
    return leaves[0]
