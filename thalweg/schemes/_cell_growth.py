r"""How the cells of a density grow in the Fisher–Rao geometry, $\dot u = \lambda - \xi(u)$ in $u = \log q$, solved cell
by cell with one multiplier for the mass.

Positive values, the support and the mass are kept by any method in $u$; what differs is what stiff cells do, for
$\partial\xi/\partial u = q\,\partial^2_q e$ has no bound (for an f-divergence it is the relative mobility $w(p/q)$, in
the tails of $q$ as large as one likes). Candidates that were weighed:

1. explicit Runge–Kutta or exponential Euler in $u$ (mirror descent): limited by the stiffest cell;
2. implicit Euler or an L-stable SDIRK in $u$, a scalar equation for each cell: stable, not exact for anything, and a
   tail that must fill from $10^{-40}$ at once is orders of magnitude late, as its error is not one in $u$;
3. exponential Rosenbrock in $u$: exact for the Kullback–Leibler divergence, and late in the tails likewise;
4. the same in a power of $q$, chosen cell by cell.

(4) is used. In each cell $\xi$ is replaced by $A - B e^{-\theta(u - u_0)}$ with the value, the slope $J$ and the
second derivative of $\xi$ at $u_0$, so $\theta = -\partial_u\log J$; the equation is linear in $q^\theta$ and is
solved exactly:

$$(q^+/q)^\theta = e^{\kappa\tau} + J\,\frac{e^{\kappa\tau} - 1}{\kappa},\qquad \kappa = \theta(\lambda - \xi) - J.$$

It is positive whatever the step wherever $J \ge 0$, of third order for given $\lambda$, and exact for a potential, the
entropy ($\theta = 0$), and every α-divergence ($\theta = \alpha$). The multiplier is constant over a substep and found
by Newton's method; what that leaves is normalised. Together: second order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar

# Of the multiplier: two or three where the substep is short. The density is normalised in any case.
_NEWTON_STEPS = 40


class CellRates(NamedTuple):
    r"""The local part of $\xi$ in each cell as a function of $u = \log q$: its value, its slope $J$, and the power
    $\theta = -\partial_u\log J$ in which the equation of the cell is linear; `start` is the density there.
    """

    start: Array
    value: Array
    slope: Array
    power: Array


def grown(rates: CellRates, rest: Array, tau: Scalar, total: Scalar | None) -> Array:
    r"""The density after τ with these rates and the part `rest` of ξ constant; its values add up to `total`, or
    $\lambda = 0$ where that is `None`.
    """
    if total is None:
        return _grow(rates, rest, tau, jnp.zeros((), rest.dtype))[0]
    multiplier = _multiplier(*jax.lax.stop_gradient((rates, rest, tau, total)))
    # One more step of Newton's method has the derivative of the root.
    log_mass, slope = _log_mass(multiplier, rates, rest, tau)
    slope = jax.lax.stop_gradient(slope)
    rises = slope > 0
    multiplier = multiplier - jnp.where(rises, (log_mass - jnp.log(total)) / jnp.where(rises, slope, 1), 0)
    values, _ = _grow(rates, rest, tau, multiplier)
    return values * (total / jnp.sum(values))


def _grow(rates: CellRates, rest: Array, tau: Scalar, multiplier: Scalar) -> tuple[Array, Scalar]:
    """The density after τ divided by e to the second number, which is zero unless it would overflow."""
    full = rates.start > 0
    exponent = log_growth(multiplier - rates.value - rest, rates.slope, rates.power, tau)
    exponent = jnp.where(full, exponent + jnp.log(jnp.where(full, rates.start, 1)), -jnp.inf)
    shift = jax.lax.stop_gradient(jnp.maximum(jnp.max(exponent) - 200, 0))
    return jnp.exp(exponent - shift), shift


def _log_mass(multiplier: Scalar, rates: CellRates, rest: Array, tau: Scalar) -> tuple[Scalar, Scalar]:
    """The logarithm of the sum of the values after τ, and its derivative by the multiplier."""

    def log_mass(multiplier: Scalar) -> Scalar:
        grown, shift = _grow(rates, rest, tau, multiplier)
        total = jnp.sum(grown)
        return jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny)) + shift

    return jax.jvp(log_mass, (multiplier,), (jnp.ones_like(multiplier),))


def _multiplier(rates: CellRates, rest: Array, tau: Scalar, total: Scalar) -> Scalar:
    """The multiplier with which the sum of the values stays: Newton's method inside a bracket, as the mass rises with
    it.
    """
    dtype = total.dtype
    # The mean of ξ over the cells that take part in the change: in stiff ones λ does little.
    weights = rates.start * _phi1(-tau * jnp.maximum(rates.slope, 0))
    start = jnp.sum(weights * (rates.value + rest)) / jnp.sum(weights)
    precision = 16 * float(jnp.finfo(dtype).eps)

    def body(carry: tuple[Scalar, Scalar, Scalar, Scalar, Array]) -> tuple[Scalar, Scalar, Scalar, Scalar, Array]:
        multiplier, low, high, _, count = carry
        log_mass, slope = _log_mass(multiplier, rates, rest, tau)
        excess = log_mass - jnp.log(total)
        low = jnp.where(excess < 0, multiplier, low)
        high = jnp.where(excess < 0, high, multiplier)
        newton = multiplier - excess / jnp.where(slope > 0, slope, 1)
        inside = (slope > 0) & (newton > low) & (newton < high)
        middle = jnp.where(jnp.isfinite(low) & jnp.isfinite(high), 0.5 * (low + high), newton)
        return jnp.where(inside, newton, middle), low, high, jnp.abs(excess), count + 1

    infinity = jnp.asarray(jnp.inf, dtype)
    begin = (start, -infinity, infinity, infinity, jnp.asarray(0))
    return jax.lax.while_loop(lambda carry: (carry[3] > precision) & (carry[4] < _NEWTON_STEPS), body, begin)[0]


def log_growth(growth: Array, slope: Array, power: Array, tau: Scalar) -> Array:
    r"""$\log q(\tau)/q(0)$ in cells with $\dot u = G$ at the start, $G$ falling with $u$ at the rate $J$ (`slope`), and
    an equation that is linear in $q^\theta$.

    $\theta^{-1}\log(1 + \theta G\tau\varphi_1(\kappa\tau))$ with $\kappa = \theta G - J$, $\varphi_1(z) = (e^z - 1)/z$.
    """
    kappa = power * growth - slope
    # θG and J nearly cancel where a cell is far below its target. What is then left of κ may be rounding, multiplied
    # by τ in an exponent; next to J it does not count.
    noise = 32 * float(jnp.finfo(growth.dtype).eps) * (jnp.abs(power * growth) + jnp.abs(slope))
    z = tau * jnp.where(noise * tau > 1e-6, 0, kappa)
    reach = growth * tau * _phi1(jnp.minimum(z, 300.0))
    change = power * reach
    near = jnp.abs(change) < 0.5
    change = jnp.where(near, change, 0)
    ratio = jnp.where(jnp.abs(change) > 1e-7, jnp.log1p(change) / jnp.where(change == 0, 1, change), 1 - 0.5 * change)
    # The same with the larger exponential taken out, from positive terms alone.
    far_sum = jnp.exp(-jnp.maximum(-z, 0)) + slope * tau * _phi1(-jnp.abs(z))
    far_sum = jnp.where(near, 1, far_sum)
    far = (jnp.maximum(z, 0) + jnp.log(jnp.maximum(far_sum, jnp.finfo(z.dtype).tiny))) / jnp.where(near, 1, power)
    return jnp.where(near, jnp.where(near, reach, 0) * ratio, far)


def _phi1(z: Array) -> Array:
    """(eᶻ − 1)/z."""
    small = jnp.abs(z) < 1e-8
    return jnp.where(small, 1 + 0.5 * z, jnp.expm1(z) / jnp.where(small, 1, z))
