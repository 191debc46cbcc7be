"""Models whose outputs are the parameters of a family: regression, and several families side by side."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._types import Array, PyTree, Scalar
from thalweg.likelihoods._base import AbstractFamily, AbstractIndependent, AbstractRowwise
from thalweg.likelihoods._rows import rows_are_independent


class Regression(AbstractRowwise):
    r"""A likelihood whose parameters are the outputs of a model: $y_n \sim p(\cdot\,; f(\theta, x_n))$.

    The divergence is summed over the inputs, so the Fisher matrix is $\sum_n J_n^\top G(f_n) J_n$ (Gauss–Newton for
    `Normal`).

    **Arguments:** `model(params, inputs) -> outputs`; `inputs`: whatever the model takes; `likelihood`: another
    family, on the outputs.
    """

    model: Callable[..., Any]
    inputs: PyTree
    likelihood: AbstractFamily

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        return self.likelihood.kl(self.model(params, self.inputs), self.model(other, self.inputs))

    def log_density(self, params: PyTree, value: PyTree) -> Scalar:
        return self.likelihood.log_density(self.model(params, self.inputs), value)

    def in_domain(self, params: PyTree) -> Array:
        return self.likelihood.in_domain(self.model(params, self.inputs))

    @property
    def whiten(self) -> Any:  # type: ignore[override]
        """The root of the likelihood's matrix on what the model's outputs do, or `None` if the likelihood has none."""
        return None if self.likelihood.whiten is None else self._whiten

    def _whiten(self, params: PyTree, tangent: PyTree) -> Array:
        return _whiten_outputs(self.model, self.likelihood, self.inputs, params, tangent)

    def row_whiten(self, params: PyTree) -> tuple[Callable[..., Any], int] | None:
        count = rows_are_independent(self.model, params, self.inputs)
        arrays = [leaf for leaf in jax.tree.leaves(self.likelihood) if hasattr(leaf, "shape") and len(leaf.shape) > 0]
        if count is None or any(leaf.shape[0] != count for leaf in arrays):
            return None
        if not isinstance(self.likelihood, AbstractIndependent):
            # Others may order their factor differently.
            return None

        def one_row(i: Array, tangent: PyTree) -> Array:
            # A likelihood may hold one number for each observation, such as its standard deviation.
            def cut(leaf: Any) -> Any:
                return jax.lax.dynamic_slice_in_dim(leaf, i, 1) if len(jnp.shape(leaf)) > 0 else leaf

            inputs = jax.tree.map(lambda leaf: cut(jnp.asarray(leaf)), self.inputs)
            likelihood = jax.tree.map(lambda leaf: cut(leaf) if hasattr(leaf, "shape") else leaf, self.likelihood)
            return _whiten_outputs(self.model, likelihood, inputs, params, tangent)

        return one_row, count

    def check(self, params: PyTree, outputs: PyTree) -> None:
        """Raise `ValueError` if observations do not have the shape of the model's outputs, or one lies outside the
        support of the likelihood.
        """
        if self.likelihood.check is not None:
            self.likelihood.check(eqx.filter_eval_shape(self.model, params, self.inputs), outputs)


def _whiten_outputs(model: Any, likelihood: AbstractFamily, inputs: Any, params: PyTree, tangent: PyTree) -> Array:
    assert likelihood.whiten is not None
    outputs, change = jax.jvp(lambda p: model(p, inputs), (params,), (tangent,))
    return likelihood.whiten(outputs, change)


class Product(AbstractFamily):
    r"""Several families side by side, independent of each other: a model with outputs of several kinds.

    **Arguments:** `families`: a tuple of families. **Parameters:** a tuple, with the parameters of each. **Values:** a
    tuple, with the observations of each.
    """

    families: tuple[AbstractFamily, ...]

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        parts = zip(self.families, params, other, strict=True)
        return _tree.total([family.kl(here, there) for family, here, there in parts])

    def log_density(self, params: PyTree, value: PyTree) -> Scalar:
        self._check_length(value)
        parts = zip(self.families, params, value, strict=True)
        return _tree.total([family.log_density(here, seen) for family, here, seen in parts])

    def in_domain(self, params: PyTree) -> Array:
        return jnp.all(jnp.stack([f.in_domain(part) for f, part in zip(self.families, params, strict=True)]))

    @property
    def whiten(self) -> Any:  # type: ignore[override]
        """The roots of all families, or `None` if one has none."""
        return None if any(family.whiten is None for family in self.families) else self._whiten

    def _whiten(self, params: PyTree, tangent: PyTree) -> Array:
        parts = zip(self.families, params, tangent, strict=True)
        return jnp.concatenate([family.whiten(here, change) for family, here, change in parts])  # type: ignore[misc]

    def check(self, params: PyTree, outputs: PyTree) -> None:
        """Raise `ValueError` if the observations of one family do not fit it."""
        self._check_length(outputs)
        for family, here, seen in zip(self.families, params, outputs, strict=True):
            if family.check is not None:
                family.check(here, seen)

    def _check_length(self, outputs: PyTree) -> None:
        if not isinstance(outputs, tuple | list) or len(outputs) != len(self.families):
            given = f"{len(outputs)} of them" if isinstance(outputs, tuple | list) else type(outputs).__name__
            raise ValueError(f"`outputs` of `Product` must be a tuple of {len(self.families)}; got {given}.")
