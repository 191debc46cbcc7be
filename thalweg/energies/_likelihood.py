"""How badly a member of a parametric family explains the data."""

import jax.numpy as jnp

from thalweg._types import PyTree, Scalar, State
from thalweg.energies._base import AbstractEnergy


class NegativeLogLikelihood(AbstractEnergy):
    r"""$F(\theta) = -\log p(y;\theta)$ of the data under a [`thalweg.Parametric`][] state.

    **Arguments:** `outputs`: the observations $y$, shaped like the parameters of the family (or the outputs of its
    model).
    """

    outputs: PyTree

    def __call__(self, state: State) -> Scalar:
        return -jnp.asarray(state.family.log_density(state.params, self.outputs))
