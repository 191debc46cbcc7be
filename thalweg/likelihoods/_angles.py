r"""Angles: the von Mises family."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, PyTree
from thalweg.likelihoods._base import AbstractIndependent
from thalweg.likelihoods._special import log_bessel, log_scaled_bessel


class VonMises(AbstractIndependent):
    r"""A von Mises distribution of angles, $p(y) \propto e^{\eta\cdot(\cos y, \sin y)}$, in its natural parameters.

    $\eta = \kappa(\cos\mu, \sin\mu)$: the mean direction $\mu$ and the concentration $\kappa$ in one vector, smooth at
    $\kappa = 0$ where the direction means nothing. Fisher matrix $A'(\kappa)$ along $\eta$ and $A(\kappa)/\kappa$
    across, $A = I_1/I_0$.

    **Parameters:** $\eta$, shape `(*batch, 2)`. **Values:** angles in radians.
    """

    events = 1
    support = "finite angles"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return _von_mises_kl(params, other)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        along = params[..., 0] * jnp.cos(value) + params[..., 1] * jnp.sin(value)
        return along - log_bessel(jnp.sum(params**2, -1)) - np.log(2 * np.pi)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        squared = jnp.sum(params**2, -1)
        kappa = jnp.sqrt(jnp.where(squared > 0, squared, 1))
        direction = jnp.where(squared[..., None] > 0, params / kappa[..., None], jnp.asarray([1.0, 0.0], params.dtype))
        along = direction[..., 0] * tangent[..., 0] + direction[..., 1] * tangent[..., 1]
        across = direction[..., 0] * tangent[..., 1] - direction[..., 1] * tangent[..., 0]
        # A/κ = 2 L'(s); A' is the second derivative in κ itself, which keeps its digits where it is a small 1/2κ².
        slope = 2 * jax.jvp(log_bessel, (squared,), (jnp.ones_like(squared),))[1]
        curvature = _curvature(jnp.where(squared > 0, kappa, 0))
        return jnp.sqrt(curvature) * along, jnp.sqrt(slope) * across

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value)


def _von_mises_kl(params: Array, other: Array) -> Array:
    # The Bregman divergence of log I₀(|η|). With s = |η|² and L(s) = log I₀ the gradient is 2 L'(s) η: right
    # everywhere, but for concentrated members a difference of large numbers.
    here, there = jnp.sum(params**2, -1), jnp.sum(other**2, -1)
    value, slope = jax.jvp(log_bessel, (here,), (jnp.ones_like(here),))
    plain = log_bessel(there) - value - 2 * slope * jnp.sum(params * (other - params), -1)
    # There, log I₀ = κ + r(κ), and the part of κ is κ' (1 − cos Δ), which a cross product gives to all digits.
    both = (here > 1) & (there > 1)
    k, l = jnp.sqrt(jnp.where(both, here, 1)), jnp.sqrt(jnp.where(both, there, 1))  # noqa: E741
    inner = jnp.sum(params * other, -1)
    cross = params[..., 0] * other[..., 1] - params[..., 1] * other[..., 0]
    acute = inner > 0
    turn = jnp.where(acute, cross**2 / jnp.where(acute, k * l + inner, 1), k * l - inner) / k
    rest, rest_slope = jax.jvp(log_scaled_bessel, (k,), (jnp.ones_like(k),))
    # η̂·(η' − η) = (κ' − κ) − κ'(1 − cos Δ)
    concentrated = turn + log_scaled_bessel(l) - rest - rest_slope * (l - k - turn)
    return jnp.where(both, concentrated, plain)


def _curvature(kappa: Array) -> Array:
    slope = lambda k: jax.jvp(log_scaled_bessel, (k,), (jnp.ones_like(k),))[1]  # noqa: E731
    return jax.jvp(slope, (kappa,), (jnp.ones_like(kappa),))[1]
