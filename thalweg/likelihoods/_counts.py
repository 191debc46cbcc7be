r"""Families of yes and no, of choices and of counts, in their natural parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from thalweg import _tree
from thalweg._types import Array, PyTree
from thalweg.likelihoods._base import AbstractIndependent
from thalweg.likelihoods._special import along_new_axis, sigmoid, softplus


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
        return _is_count(value)


class Geometric(AbstractIndependent):
    r"""The number of failures before the first success in each entry, $p(y) = p\,(1-p)^y$. Fisher matrix $1 - p$ in the
    logit.

    **Parameters:** the logits $\eta = \log(p/(1-p))$ of success, of any shape.
    """

    events = 0
    support = "counts 0, 1, 2, …"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        # log p = −softplus(−η), log(1 − p) = −softplus(η), mean e^−η; the sum is (KL of the coin) / p.
        coin = softplus(other) - softplus(params) - sigmoid(params) * (other - params)
        return coin * (1 + jnp.exp(-params))

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        return -softplus(-params) - value.astype(params.dtype) * softplus(params)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (jnp.exp(0.5 * jax.nn.log_sigmoid(-params)) * tangent,)

    def supports(self, params: PyTree, value: Any) -> Any:
        return _is_count(value)


class Binomial(AbstractIndependent):
    r"""The number of heads among `trials` coins in each entry. Fisher matrix $n p (1-p)$ in the logit.

    **Arguments:** `trials`: $n \ge 1$, a number or an array of the shape of the observations. **Parameters:** the
    logits $\eta = \log(p/(1-p))$, the natural parameters, of any shape.

    **Raises:** `ValueError` if `trials` is less than one.
    """

    trials: Any

    events = 0
    support = "counts from 0 to `trials`"

    def __check_init__(self) -> None:
        if not _tree.is_traced(self.trials) and np.any(np.asarray(self.trials) < 1):
            raise ValueError(f"`trials` of `Binomial` must be at least 1; got {np.min(np.asarray(self.trials))}.")

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        coin = softplus(other) - softplus(params) - sigmoid(params) * (other - params)
        return jnp.asarray(self.trials, params.dtype) * coin

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        trials, count = jnp.asarray(self.trials, params.dtype), value.astype(params.dtype)
        ways = gammaln(trials + 1) - gammaln(count + 1) - gammaln(trials - count + 1)
        return ways + count * params - trials * softplus(params)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        coin = jnp.exp(0.5 * (jax.nn.log_sigmoid(params) + jax.nn.log_sigmoid(-params)))
        return (jnp.sqrt(jnp.asarray(self.trials, params.dtype)) * coin * tangent,)

    def supports(self, params: PyTree, value: Any) -> Any:
        return _is_count(value) & (value <= np.asarray(self.trials))


class Categorical(AbstractIndependent):
    r"""One of $K$ classes in each entry. Fisher matrix $\operatorname{diag} p - pp^\top$.

    It is singular: adding one number to all logits changes nothing. Steepest descent leaves that direction at rest.

    **Parameters:** the logits, shape `(*batch, K)`. **Values:** the index of the class, 0 to K − 1, of the shape of the
    batch.
    """

    events = 1
    support = "the index of a class (0 to K − 1, K the length of the last axis of the logits)"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        # With z the change of the log probabilities, −Σ p z = Σ p (e^z − 1 − z): a sum of positive terms.
        log_p = jax.nn.log_softmax(params, -1)
        change = jax.nn.log_softmax(other, -1) - log_p
        return jnp.sum(jnp.exp(log_p) * (jnp.expm1(change) - change), -1)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        index = value.astype(jnp.int32)[..., None]
        return jnp.take_along_axis(jax.nn.log_softmax(params, -1), index, -1)[..., 0]

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        log_p = jax.nn.log_softmax(params, -1)
        mean = jnp.sum(jnp.exp(log_p) * tangent, -1, keepdims=True)
        return (jnp.exp(0.5 * log_p) * (tangent - mean),)

    def supports(self, params: PyTree, value: Any) -> Any:
        return _is_count(value) & (value < params.shape[-1])


class NegativeBinomial(AbstractIndependent):
    r"""Counts of mean $m$ and variance $m + m^2/r$ in each entry. Fisher matrix $\operatorname{diag}(mr/(m+r),\ \cdot)$
    in $(\log m, \log r)$.

    The divergence to a member with another $r$ has no closed form. With Malmsten's integral for $\log\Gamma$ and the
    generating function of the counts, $M(t) = (1 + m(1 - e^{-t})/r)^{-r}$,

    $$E\log\frac{\Gamma(y+r)\Gamma(r')}{\Gamma(r)\Gamma(y+r')} = \int_0^\infty \frac{(e^{-r't} - e^{-rt})(1 - M(t))}{(1
    - e^{-t})\,t}\,\mathrm dt,$$

    by the trapezoidal rule in $\log t$, which converges to rounding for every $m$, $r$ and $r'$ (within nine decades of
    $r$).

    **Parameters:** `{"log_mean": log m, "log_dispersion": log r}`, arrays of one shape. Where $r \gg m^2$ the counts
    are nearly Poisson and $r$ leaves no trace: its entry of the Fisher matrix is then about $m^2/2r^2$.
    """

    events = {"log_mean": 0, "log_dispersion": 0}
    support = "counts 0, 1, 2, …"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        mean, size = jnp.exp(params["log_mean"]), jnp.exp(params["log_dispersion"])
        mean_there, size_there = jnp.exp(other["log_mean"]), jnp.exp(other["log_dispersion"])
        change = lambda t: jnp.exp(-size_there[..., None] * t) - jnp.exp(-size[..., None] * t)  # noqa: E731
        gammas = _over_times(lambda t: change(t) * _one_minus_m(mean, size, t) / -jnp.expm1(-t), size)
        # r log(r/(r+m)) + m log(m/(r+m)), less that of the other member
        own = -size * jnp.log1p(mean / size) - mean * jnp.log1p(size / mean)
        return (
            gammas + own + size_there * jnp.log1p(mean_there / size_there) + mean * jnp.log1p(size_there / mean_there)
        )

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        count = value.astype(params["log_mean"].dtype)
        mean, size = jnp.exp(params["log_mean"]), jnp.exp(params["log_dispersion"])
        ways = gammaln(count + size) - gammaln(size) - gammaln(count + 1)
        return ways - size * jnp.log1p(mean / size) - count * jnp.log1p(size / mean)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        mean, size = jnp.exp(params["log_mean"]), jnp.exp(params["log_dispersion"])

        def information(t: Array) -> Array:
            # ψ₁(r) − E ψ₁(r + y) − (1/r − 1/(r+m)), all under one integral
            excess = t * _one_minus_m(mean, size, t) / -jnp.expm1(-t) + jnp.expm1(-mean[..., None] * t)
            return excess * t * jnp.exp(-size[..., None] * t)

        own = size * jnp.sqrt(jnp.maximum(_over_times(information, size), 0))
        return jnp.sqrt(mean / (1 + mean / size)) * tangent["log_mean"], own * tangent["log_dispersion"]

    def supports(self, params: PyTree, value: Any) -> Any:
        return _is_count(value)


# t = e^x / r from 1e-26/r to 1e10/r. The integrand is analytic for |Im x| < π/2, so the error is exp(−π²/h) = 5e-16.
_LOG_TIMES = np.arange(-60.0, 23.0, 0.28)


def _over_times(integrand: Any, size: Array) -> Array:
    times = along_new_axis(np.exp(_LOG_TIMES), size) / size[..., None]
    return 0.28 * jnp.sum(integrand(times), -1)


def _one_minus_m(mean: Array, size: Array, times: Array) -> Array:
    mean, size = mean[..., None], size[..., None]
    return -jnp.expm1(-size * jnp.log1p(-jnp.expm1(-times) * (mean / size)))


def _is_count(value: Any) -> Any:
    return np.isfinite(value) & (value >= 0) & (value == np.round(value))
