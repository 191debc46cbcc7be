r"""$q\,f(p/q)$ for the named generators, exact from vacuum to vacuum.

By automatic differentiation the derivative $f(r) - r f'(r)$ of $q\,f(p/q)$ is a difference of two large numbers: for
$f = (\sqrt r - 1)^2$ at $r = 10^{40}$ all digits of $1 - \sqrt r$ are lost. Here the slope, and its derivative $w(r)/q$
with $w = r^2 f''$, are in closed form, as functions of $u = \log r$, since $r$ itself may overflow.

Slopes that grow like a power of $r$ or $1/r$ are kept below the largest number to the power 0.4 (1e123), so that their
squares do not overflow: there $r$ counts as the ratio that has that slope.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from thalweg import generators
from thalweg._types import Array, Scalar

_LOG_2 = math.log(2.0)


class Perspective(NamedTuple):
    r"""A generator in closed form.

    `value`: $q f(p/q)$ of $(q, p, u)$; `slope`: $f - r f'$ and `mobility`: $w = r^2 f''$, both of $u = \log r$;
    `growth`: $|f - r f'|$ grows like $r^g$ as $r \to \infty$; `decay`: and like $r^{-k}$ as $r \to 0$; `at_zero`:
    $f(0)$.
    """

    value: Callable[[Array, Array, Array], Array]
    slope: Callable[[Array], Array]
    mobility: Callable[[Array], Array]
    growth: float
    decay: float
    at_zero: float


def perspective(generator: Callable[..., Any]) -> Perspective | None:
    """The closed form of a named generator, `None` for any other."""
    try:
        return _closed_form(generator)
    except TypeError:  # not hashable, so not one of ours
        return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def perspective_value(form: Perspective, density: Array, log_target: Array) -> Scalar:
    r"""$q\,f(p/q)$ for a density and a log density; $+\infty$ where $p = 0 < q$ and $f(0)$ is infinite."""
    ratio = _log_ratio(form, density, log_target)
    q = jnp.maximum(density, jnp.finfo(density.dtype).tiny)
    value = form.value(q, jnp.exp(log_target), ratio)
    at_zero = jnp.where(density > 0, form.at_zero, 0) * (q if math.isfinite(form.at_zero) else 1)
    return jnp.where(jnp.isneginf(log_target), at_zero.astype(value.dtype), value)


@perspective_value.defjvp
def _(form: Perspective, primals: Any, tangents: Any) -> tuple[Scalar, Scalar]:
    (density, log_target), (d_density, d_log_target) = primals, tangents
    value, slope = perspective_value(form, density, log_target), perspective_slope(form, density, log_target)
    by_target = jnp.where(jnp.isneginf(log_target), 0, value - density * slope)
    return value, slope * d_density + by_target * d_log_target


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def perspective_slope(form: Perspective, density: Array, log_target: Array) -> Scalar:
    r"""$f(r) - r f'(r)$."""
    return form.slope(_log_ratio(form, density, log_target))


@perspective_slope.defjvp
def _(form: Perspective, primals: Any, tangents: Any) -> tuple[Scalar, Scalar]:
    (density, log_target), (d_density, d_log_target) = primals, tangents
    mobility = form.mobility(_log_ratio(form, density, log_target))
    numbers = jnp.finfo(density.dtype)
    most = float(numbers.max) ** 0.94
    q = jnp.maximum(density, numbers.tiny)
    # w/q, but finite: next to vacuum it is large enough.
    beyond = mobility >= most * q
    curvature = jnp.where(beyond, most, jnp.where(beyond, 0, mobility) / q)
    by_target = jnp.where(jnp.isneginf(log_target), 0, -mobility)
    return perspective_slope(form, density, log_target), curvature * d_density + by_target * d_log_target


def _log_ratio(form: Perspective, density: Array, log_target: Array) -> Array:
    numbers = jnp.finfo(density.dtype)
    largest = math.log(float(numbers.max))
    above, below = (0.4 * largest / power if power > 0.4 else 0.98 * largest for power in (form.growth, form.decay))
    ratio = log_target - jnp.log(jnp.maximum(density, numbers.tiny))
    return jnp.clip(ratio, -below, above)


@functools.lru_cache(maxsize=128)
def _closed_form(generator: Callable[..., Any]) -> Perspective | None:
    if isinstance(generator, generators.Alpha):
        return _alpha(generator.exponent)
    return _NAMED.get(generator)


def _alpha(a: float) -> Perspective:
    return Perspective(
        lambda q, p, u: (q * jnp.exp(a * u) - a * p + (a - 1) * q) / (a * (a - 1)),
        lambda u: -jnp.expm1(a * u) / a,
        lambda u: jnp.exp(a * u),
        max(a, 0.0),
        max(-a, 0.0),
        1 / a if a > 0 else math.inf,
    )


def _softplus(u: Array) -> Array:
    """log((1 + r)/2), the logarithm of the middle relative to q."""
    return jnp.logaddexp(u, 0.0) - _LOG_2


_NAMED: dict[Callable[..., Any], Perspective] = {
    generators.reverse_kl: Perspective(
        lambda q, p, u: -q * u, lambda u: 1 - u, lambda u: jnp.ones_like(u), 0.0, 0.0, math.inf
    ),
    generators.forward_kl: Perspective(lambda q, p, u: p * u, lambda u: -jnp.exp(u), jnp.exp, 1.0, 0.0, 0.0),
    generators.pearson_chi2: Perspective(
        lambda q, p, u: (p - q) * jnp.expm1(u), lambda u: -jnp.expm1(2 * u), lambda u: 2 * jnp.exp(2 * u), 2.0, 0.0, 1.0
    ),
    generators.neyman_chi2: Perspective(
        lambda q, p, u: (q - p) * jnp.expm1(-u),
        lambda u: 2 * jnp.expm1(-u),
        lambda u: 2 * jnp.exp(-u),
        0.0,
        1.0,
        math.inf,
    ),
    generators.squared_hellinger: Perspective(
        lambda q, p, u: (jnp.sqrt(p) - jnp.sqrt(q)) ** 2,
        lambda u: -jnp.expm1(0.5 * u),
        lambda u: 0.5 * jnp.exp(0.5 * u),
        0.5,
        0.0,
        1.0,
    ),
    generators.jensen_shannon: Perspective(
        lambda q, p, u: -0.5 * (p * _softplus(-u) + q * _softplus(u)),
        lambda u: -0.5 * _softplus(u),
        lambda u: 0.5 * jax.nn.sigmoid(u),
        0.0,
        0.0,
        0.5 * _LOG_2,
    ),
    generators.jeffreys: Perspective(
        lambda q, p, u: (p - q) * u, lambda u: -jnp.expm1(u) - u, lambda u: 1 + jnp.exp(u), 1.0, 0.0, math.inf
    ),
}
