r"""Special functions whose derivatives keep their digits: in the tails, and near equality.

JAX's own are right, but their second derivatives are differences of nearly equal numbers at large arguments
($\psi_1(a) - 1/a$, $1 - A/\kappa - A^2$, $\sigma(1-\sigma)$), which is where a Fisher matrix needs them. Here they are
made of elementary functions that automatic differentiation cannot spoil.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    r"""$1/(1 + e^{-x})$, with the derivative $\sigma(x)\,\sigma(-x)$, which does not vanish before it must."""
    return jax.nn.sigmoid(x)


@sigmoid.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@jax.custom_jvp
def softplus(x: Array) -> Array:
    r"""$\log(1 + e^x)$, whose derivative is [`sigmoid`][]."""
    return jax.nn.softplus(x)


@softplus.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx


# Bernoulli numbers B_2k / (2k (2k − 1)) of Stirling's series; from an argument of 10 on, eight of them reach 1e-17.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_SHIFT = 10


def _stirling(a: Array) -> Array:
    series = jnp.zeros_like(a)
    for coefficient in reversed(_STIRLING):
        series = series / a**2 + coefficient
    return 0.5 * jnp.log(2 * np.pi / a) + series / a


def stirling_remainder(a: Array) -> Array:
    r"""$\log\Gamma(a) - a\log a + a$, the part of $\log\Gamma$ beyond entropy, for $a > 0$.

    Its second derivative is $\psi_1(a) - 1/a$, here to full relative precision at every size of $a$: by Stirling's
    series for large $a$, and for small $a$ by the series at $a + 10$ and the recurrence, all of whose terms have one
    sign.
    """
    large = a >= _SHIFT
    small = jnp.where(large, 1.0, a)
    shifted = small + _SHIFT
    # log Γ(a) = log Γ(a + 10) − Σ log(a + i)
    moved = _stirling(shifted) + shifted * jnp.log(shifted) - shifted
    moved = moved - jnp.log(math.prod((small + i for i in range(1, _SHIFT)), start=small))
    moved = moved - small * jnp.log(small) + small
    return jnp.where(large, _stirling(jnp.where(large, a, float(_SHIFT))), moved)


def bregman_stirling(there: Array, here: Array) -> Array:
    """The Bregman divergence of [`stirling_remainder`][], `g(there) − g(here) − g'(here) (there − here)`."""
    value, slope = jax.jvp(stirling_remainder, (here,), (jnp.ones_like(here),))
    return stirling_remainder(there) - value - slope * (there - here)


def bregman_entropy(there: Array, here: Array) -> Array:
    r"""The Bregman divergence of $a\log a$, $a'\log(a'/a) - a' + a$, in a form that keeps its digits."""
    ratio = jnp.log(there / here)
    return here * (jnp.exp(ratio) * ratio - jnp.expm1(ratio))


def trigamma_excess(a: Array) -> Array:
    r"""$\psi_1(a) - 1/a$, positive; about $1/2a^2$ for large $a$."""
    slope = lambda b: jax.jvp(stirling_remainder, (b,), (jnp.ones_like(b),))[1]  # noqa: E731
    return jax.jvp(slope, (a,), (jnp.ones_like(a),))[1]


# 80 terms of the power series of I₀ are exact up to κ = 30, where the series in inverse powers has reached rounding.
_BESSEL_SWITCH = 30.0
_BESSEL_TERMS = 80


def _asymptotic_bessel() -> list[float]:
    # log Σ_k a_k x^k for a_k = ((2k−1)!!)² / (k! 8^k): n c_n = n a_n − Σ_{j<n} j c_j a_{n−j}.
    count = 17
    terms = [1.0]
    for k in range(1, count):
        terms.append(terms[-1] * (2 * k - 1) ** 2 / (8 * k))
    logs = [0.0]
    for n in range(1, count):
        logs.append(terms[n] - sum(j * logs[j] * terms[n - j] for j in range(1, n)) / n)
    return logs


def log_bessel(squared: Array) -> Array:
    r"""$\log I_0(\kappa)$ as a function of $\kappa^2$: smooth at zero, with its derivatives."""
    large = squared > _BESSEL_SWITCH**2
    return _log_bessel(squared, jnp.sqrt(jnp.where(large, squared, _BESSEL_SWITCH**2)), large, 1.0)


def log_scaled_bessel(kappa: Array) -> Array:
    r"""$\log I_0(\kappa) - \kappa$; its second derivative is $A'(\kappa)$, about $1/2\kappa^2$ for large $\kappa$, to
    full relative precision.
    """
    large = kappa > _BESSEL_SWITCH
    return _log_bessel(kappa**2, jnp.where(large, kappa, _BESSEL_SWITCH), large, 0.0) - jnp.where(large, 0.0, kappa)


def _log_bessel(squared: Array, kappa: Array, large: Array, linear: float) -> Array:
    small = jnp.where(large, 1.0, squared)
    coefficients = jnp.asarray([1 / (4.0 * k * k) for k in range(_BESSEL_TERMS, 0, -1)], squared.dtype)
    # Horner's rule on positive terms.
    series, _ = jax.lax.scan(lambda total, c: (1 + total * small * c, None), jnp.ones_like(small), coefficients)
    inverse = jnp.zeros_like(kappa)
    for coefficient in reversed(_asymptotic_bessel()):
        inverse = inverse / kappa + coefficient
    asymptotic = linear * kappa - 0.5 * jnp.log(2 * np.pi * kappa) + inverse
    return jnp.where(large, asymptotic, jnp.log(series))


def along_new_axis(nodes: Any, batch: Array) -> Array:
    """Quadrature nodes on an axis after those of the batch."""
    return jnp.asarray(nodes, batch.dtype).reshape((1,) * batch.ndim + (-1,))
