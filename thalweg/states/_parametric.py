"""A distribution given by the parameters of a family."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._result import RESULTS
from thalweg._types import PyTree
from thalweg.likelihoods import AbstractFamily
from thalweg.states._base import AbstractState


class Parametric(AbstractState):
    r"""The member $p(\cdot\,; \theta)$ of a parametric family: the state is $\theta$, and the family knows the
    distance between members.

    With `tw.FisherRao()` the steepest descent direction is the natural gradient $-G^{-1}\nabla F$, where the Fisher
    matrix $G$ is the Hessian of the Kullback–Leibler divergence of the family.

    **Arguments:** `params`: a pytree of floating arrays; `family`: a member of `tw.likelihoods`.

    **Raises:** `ValueError` if a parameter is not a finite floating array, or the family does not accept the
    parameters.
    """

    params: PyTree
    family: AbstractFamily

    def __check_init__(self) -> None:
        leaves = jax.tree.leaves(self.params)
        if not leaves or not all(eqx.is_inexact_array(leaf) for leaf in leaves):
            raise ValueError(
                "`params` must be a non-empty pytree of floating-point arrays; "
                f"got leaves of type {sorted({str(getattr(leaf, 'dtype', type(leaf).__name__)) for leaf in leaves})}."
            )
        if any(_tree.is_traced(leaf) for leaf in leaves):
            return
        if not all(np.all(np.isfinite(np.asarray(leaf))) for leaf in leaves):
            raise ValueError("`params` must be finite; got NaN or infinity.")

    def moving(self) -> PyTree:
        """The parameters; the family stays."""
        return eqx.tree_at(lambda s: s.family, self, None)

    def quadrature_weights(self) -> PyTree:
        """One for each parameter."""
        return jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), self.moving())

    def admissibility(self) -> Any:
        """Finite parameters in the domain of the family."""
        inside = RESULTS.where(self.family.in_domain(self.params), RESULTS.successful, RESULTS.left_domain)
        return RESULTS.where(_tree.all_finite(self.params), inside, RESULTS.non_finite)
