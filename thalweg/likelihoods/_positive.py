r"""Families on the half line and on simplices: exponential, gamma, beta, Dirichlet.

Their log-partition functions are made of $\log\Gamma(a) = (a\log a - a) + g(a)$. The entropy parts combine to a
divergence of proportions, and what is left of $g$ is small and smooth, so that sharply concentrated members keep their
digits.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from thalweg._types import Array, PyTree
from thalweg.likelihoods._base import AbstractIndependent
from thalweg.likelihoods._special import bregman_entropy, bregman_stirling, trigamma_excess


class Exponential(AbstractIndependent):
    r"""$p(y) = \lambda e^{-\lambda y}$ in each entry. Fisher matrix 1 in $\log\lambda$.

    **Parameters:** the log rates $\log\lambda$, of any shape (log of an inverse unit of $y$).
    """

    events = 0
    support = "positive numbers or zero"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return jnp.expm1(other - params) - (other - params)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        return params - jnp.exp(params) * value

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (tangent,)

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value) & (value >= 0)


class Gamma(AbstractIndependent):
    r"""A gamma distribution of mean $m$ and shape $a$ (rate $a/m$) in each entry. Fisher matrix
    $\operatorname{diag}(a,\ a^2(\psi_1(a) - 1/a))$ in $(\log m, \log a)$.

    Mean and shape are orthogonal, where shape and rate become nearly collinear at large shapes.

    **Parameters:** `{"log_mean": log m, "log_shape": log a}`, arrays of one shape.
    """

    events = {"log_mean": 0, "log_shape": 0}
    support = "positive numbers"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        change = params["log_mean"] - other["log_mean"]
        here, there = jnp.exp(params["log_shape"]), jnp.exp(other["log_shape"])
        return bregman_stirling(there, here) + there * (jnp.expm1(change) - change)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        shape, relative = jnp.exp(params["log_shape"]), jnp.log(value) - params["log_mean"]
        return shape * (params["log_shape"] + relative - jnp.exp(relative)) - gammaln(shape) - jnp.log(value)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        shape = jnp.exp(params["log_shape"])
        return (
            jnp.sqrt(shape) * tangent["log_mean"],
            shape * jnp.sqrt(trigamma_excess(shape)) * tangent["log_shape"],
        )

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value) & (value > 0)


class Beta(AbstractIndependent):
    r"""A beta distribution in each entry. Fisher matrix $\operatorname{diag}(\psi_1(\alpha), \psi_1(\beta)) -
    \psi_1(\alpha+\beta)$ in $(\alpha, \beta)$.

    **Parameters:** `{"log_alpha": log α, "log_beta": log β}`, arrays of one shape.
    """

    events = {"log_alpha": 0, "log_beta": 0}
    support = "numbers strictly between 0 and 1"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return _dirichlet_kl(_pair(params), _pair(other))

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        alpha, beta = jnp.exp(params["log_alpha"]), jnp.exp(params["log_beta"])
        powers = (alpha - 1) * jnp.log(value) + (beta - 1) * jnp.log1p(-value)
        return powers + gammaln(alpha + beta) - gammaln(alpha) - gammaln(beta)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (_dirichlet_root(_pair(params), _pair(tangent)),)

    def supports(self, params: PyTree, value: Any) -> Any:
        return (value > 0) & (value < 1)


class Dirichlet(AbstractIndependent):
    r"""A Dirichlet distribution on the simplex of $K$ proportions. Fisher matrix $\operatorname{diag}\psi_1(\alpha_i) -
    \psi_1(\sum\alpha)\,11^\top$ in $\alpha$.

    **Parameters:** the logs of the concentrations $\log\alpha$, shape `(*batch, K)`. **Values:** positive proportions
    that sum to one, of the same shape.
    """

    events = 1
    value_event = 1
    support = "positive proportions that sum to 1"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return _dirichlet_kl(params, other)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        alpha = jnp.exp(params)
        return jnp.sum((alpha - 1) * jnp.log(value) - gammaln(alpha), -1) + gammaln(jnp.sum(alpha, -1))

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (_dirichlet_root(params, tangent),)

    def supports(self, params: PyTree, value: Any) -> Any:
        close = np.abs(np.sum(value, -1) - 1) <= 1e3 * float(np.finfo(value.dtype).eps)
        return close & np.all(value > 0, -1) & (value.shape[-1] == params.shape[-1])


def _pair(params: PyTree) -> Array:
    return jnp.stack([params["log_alpha"], params["log_beta"]], -1)


def _dirichlet_kl(params: Array, other: Array) -> Array:
    # The Bregman divergence of Σ log Γ(α_i) − log Γ(Σ α), in the parts of log Γ; the linear parts cancel.
    here, there = jnp.exp(params), jnp.exp(other)
    whole, whole_there = jnp.sum(here, -1), jnp.sum(there, -1)
    proportions = jnp.sum(bregman_entropy(there, here), -1) - bregman_entropy(whole_there, whole)
    return proportions + jnp.sum(bregman_stirling(there, here), -1) - bregman_stirling(whole_there, whole)


def _dirichlet_root(params: Array, tangent: Array) -> Array:
    r"""A square root of $D - c\,11^\top$ is $(I - \gamma uu^\top)D^{1/2}$, with $u = D^{-1/2}1$ and $\gamma = (1 -
    \sqrt{1 - c|u|^2})/|u|^2$.
    """
    alpha = jnp.exp(params)
    whole = jnp.sum(alpha, -1, keepdims=True)
    own = 1 / alpha + trigamma_excess(alpha)
    # 1 − c|u|² without the difference: c = 1/α₀ + e₀ and 1/ψ₁(α_i) = α_i − α_i e_i/ψ₁(α_i), whose first parts cancel.
    excess = trigamma_excess(whole)
    size = jnp.sum(1 / own, -1, keepdims=True)
    rest = jnp.sum(alpha * trigamma_excess(alpha) / own, -1, keepdims=True) / whole - excess * size
    gamma = (1 / whole + excess) / (1 + jnp.sqrt(rest))
    white = jnp.sqrt(own) * alpha * tangent
    unit = 1 / jnp.sqrt(own)
    return white - gamma * unit * jnp.sum(unit * white, -1, keepdims=True)
