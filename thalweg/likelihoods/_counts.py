r"""Families of yes and no, of choices and of counts, in their natural parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from thalweg._types import Array, PyTree
from thalweg.likelihoods._base import AbstractIndependent
from thalweg.likelihoods._special import sigmoid, softplus


class Bernoulli(AbstractIndependent):
    r"""A coin in each entry. Fisher matrix $p(1-p)$, the Hessian of the log likelihood itself (with its sign).

    **Parameters:** the logits $\eta = \log(p/(1-p))$, the natural parameters, of any shape.
    """

    events = 0
    support = "0 or 1"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        # Bregman divergence of the log-partition function log(1 + exp η), arguments exchanged.
        return softplus(other) - softplus(params) - sigmoid(params) * (other - params)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        return value.astype(params.dtype) * params - softplus(params)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (jnp.exp(0.5 * (jax.nn.log_sigmoid(params) + jax.nn.log_sigmoid(-params))) * tangent,)

    def supports(self, params: PyTree, value: Any) -> Any:
        return (value == 0) | (value == 1)


class Poisson(AbstractIndependent):
    r"""Counts in each entry. Fisher matrix $\lambda$.

    **Parameters:** the log rates $\eta = \log\lambda$, the natural parameters, of any shape.
    """

    events = 0
    support = "counts 0, 1, 2, …"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        # exp(z) − 1 − z keeps its digits for near members.
        return jnp.exp(params) * (jnp.expm1(other - params) - (other - params))

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        count = value.astype(params.dtype)
        return count * params - jnp.exp(params) - gammaln(count + 1)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (jnp.exp(0.5 * params) * tangent,)

    def supports(self, params: PyTree, value: Any) -> Any:
        return is_count(value)


def is_count(value: Any) -> Any:
    """Which entries of a NumPy array are 0, 1, 2, …"""
    return np.isfinite(value) & (value >= 0) & (value == np.round(value))
