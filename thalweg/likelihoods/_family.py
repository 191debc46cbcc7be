"""Parametric families with one definition of the Fisher matrix: the Hessian of their Kullback–Leibler divergence.

$$G(\\theta) = \\nabla^2_{\\theta'}
\\,\\mathrm{KL}\\big(p(\\cdot;\\theta)\\,\\|\\,p(\\cdot;\\theta')\\big)\\Big|_{\\theta'=\\theta}.$$

A family states its divergence in closed form and nothing else; the matrix, the natural gradient and the distance
follow from it.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, PyTree, Scalar


class AbstractFamily(eqx.Module):
    """A family of distributions indexed by a pytree of parameters."""

    @abc.abstractmethod
    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        r"""$\mathrm{KL}(p(\cdot;\theta)\,\|\,p(\cdot;\theta'))$ in closed form."""

    @abc.abstractmethod
    def log_density(self, params: PyTree, value: Array) -> Scalar:
        r"""$\log p(y;\theta)$ of one observation."""

    @abc.abstractmethod
    def in_domain(self, params: PyTree) -> Array:
        """Whether the parameters name a member of the family, as a boolean array of shape `()`."""


class Normal(AbstractFamily):
    r"""$N(\mu, \sigma^2)$ in each entry, with known standard deviation.

    **Arguments:** `scale`: $\sigma > 0$. **Parameters:** the means $\mu$, an array of any shape.
    """

    scale: float = 1.0

    def __check_init__(self) -> None:
        if isinstance(self.scale, int | float) and not self.scale > 0:
            raise ValueError(f"`scale` of `Normal` must be positive; got {self.scale}.")

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        return 0.5 * jnp.sum(((params - other) / self.scale) ** 2)

    def log_density(self, params: PyTree, value: Array) -> Scalar:
        return jnp.sum(-0.5 * ((value - params) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * jnp.log(2 * jnp.pi))

    def in_domain(self, params: PyTree) -> Array:
        return jnp.asarray(True)


class NormalMeanScale(AbstractFamily):
    r"""$N(\mu, \sigma^2)$ on the line with both unknown. **Parameters:** `{"mean": μ, "log_scale": log σ}`, arrays
    of shape `()`.
    """

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        ratio = jnp.exp(2 * (params["log_scale"] - other["log_scale"]))
        shift = (params["mean"] - other["mean"]) ** 2 * jnp.exp(-2 * other["log_scale"])
        return 0.5 * (ratio + shift - 1) + other["log_scale"] - params["log_scale"]

    def log_density(self, params: PyTree, value: Array) -> Scalar:
        white = (value - params["mean"]) * jnp.exp(-params["log_scale"])
        return -0.5 * white**2 - params["log_scale"] - 0.5 * jnp.log(2 * jnp.pi)

    def in_domain(self, params: PyTree) -> Array:
        return jnp.asarray(True)


class Bernoulli(AbstractFamily):
    r"""A coin in each entry. **Parameters:** the logits $\eta = \log(p/(1-p))$, the natural parameters, of any
    shape.
    """

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        # Bregman divergence of the log-partition function log(1 + exp η), arguments exchanged.
        mean = jax.nn.sigmoid(params)
        return jnp.sum(jax.nn.softplus(other) - jax.nn.softplus(params) - mean * (other - params))

    def log_density(self, params: PyTree, value: Array) -> Scalar:
        return jnp.sum(value * params - jax.nn.softplus(params))

    def in_domain(self, params: PyTree) -> Array:
        return jnp.asarray(True)


class Poisson(AbstractFamily):
    r"""Counts in each entry. **Parameters:** the log rates $\eta = \log\lambda$, the natural parameters, of any
    shape.
    """

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        return jnp.sum(jnp.exp(other) - jnp.exp(params) - jnp.exp(params) * (other - params))

    def log_density(self, params: PyTree, value: Array) -> Scalar:
        return jnp.sum(value * params - jnp.exp(params) - jax.scipy.special.gammaln(value + 1))

    def in_domain(self, params: PyTree) -> Array:
        return jnp.asarray(True)


class Regression(AbstractFamily):
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

    def log_density(self, params: PyTree, value: Array) -> Scalar:
        return self.likelihood.log_density(self.model(params, self.inputs), value)

    def in_domain(self, params: PyTree) -> Array:
        return self.likelihood.in_domain(self.model(params, self.inputs))
