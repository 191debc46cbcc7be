"""How badly a member of a parametric family explains the data."""

import functools
from typing import Any

import jax.numpy as jnp

from thalweg._types import PyTree, Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.likelihoods import Normal, Regression


class NegativeLogLikelihood(AbstractEnergy):
    r"""$F(\theta) = -\log p(y;\theta)$ of the data under a [`thalweg.Parametric`][] state.

    **Arguments:** `outputs`: the observations $y$, shaped like the parameters of the family (or the outputs of its
    model).
    """

    outputs: PyTree

    def __call__(self, state: State) -> Scalar:
        return -jnp.asarray(state.family.log_density(state.params, self.outputs))


class HalfDeviance(AbstractEnergy):
    r"""$F(\theta) = \log p(y;\hat\theta_y) - \log p(y;\theta)$ with $\hat\theta_y$ the best member for the data:
    half the sum of squares $\tfrac12\sum_n (y_n-\mu_n)^2/\sigma^2$ for a normal likelihood.

    It differs from [`thalweg.NegativeLogLikelihood`][] by a constant, in whose rounding a small misfit would be lost.
    Families other than `Normal` have no constant to leave out, and the two agree.

    **Arguments:** `outputs`: the observations $y$.

    **Source:** McCullagh, Nelder, *Generalized Linear Models* (1989), section 2.3.
    """

    outputs: PyTree

    def __call__(self, state: State) -> Scalar:
        return jnp.asarray(_half_deviance(state.family, state.params, self.outputs))


@functools.singledispatch
def _half_deviance(family: Any, params: PyTree, outputs: PyTree) -> Scalar:
    return -family.log_density(params, outputs)


@_half_deviance.register
def _(family: Normal, params: PyTree, outputs: PyTree) -> Scalar:
    return family.kl(jnp.broadcast_to(jnp.asarray(outputs), params.shape), params)


@_half_deviance.register
def _(family: Regression, params: PyTree, outputs: PyTree) -> Scalar:
    return _half_deviance(family.likelihood, family.model(params, family.inputs), outputs)
