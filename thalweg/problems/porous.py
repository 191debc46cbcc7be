"""Gas in a porous medium: Barenblatt's profile, spreading freely or confined by a quadratic well."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from thalweg._types import Array
from thalweg.problems._problem import DensityProblem


def barenblatt(
    exponent: float = 2.0,
    dim: int = 1,
    *,
    initial_time: float = 0.01,
    final_time: float = 0.1,
    coefficient: float = 1.0,
    confinement: float = 0.0,
) -> DensityProblem:
    r"""The self-similar solution of $\partial_t q = \gamma\Delta q^m + \lambda\nabla\cdot(qx)$ that comes from a unit
    point mass.

    $$U(x, s) = s^{-d\beta}\big(C - k|x|^2 s^{-2\beta}\big)_+^{1/(m-1)}, \qquad \beta = \frac1{d(m-1)+2},
    \qquad k = \frac{\beta(m-1)}{2m\gamma},$$

    and $q_t(x) = e^{d\lambda t}\,U(e^{\lambda t}x, s)$ with $s = s_0 + \beta(e^{\lambda t/\beta} - 1)/\lambda$
    (without confinement $s = s_0 + t$). The support is a ball whose sharp front moves at finite speed. With $\lambda
    > 0$ the limit is $\big(\tfrac{m-1}{\gamma m}(K - \tfrac{\lambda}{2}|x|^2)\big)_+^{1/(m-1)}$.

    **Arguments:** `exponent`: $m > 1$; `initial_time`: $s_0 > 0$, the age of the profile at time 0; `coefficient`:
    $\gamma > 0$; `confinement`: $\lambda \ge 0$; `final_time`: until when the box holds the support.

    **Source:** Barenblatt (1952); Vázquez, *The Porous Medium Equation* (2007), section 4.4.
    """
    if not (exponent > 1 and initial_time > 0 and coefficient > 0 and confinement >= 0):
        raise ValueError(
            "`barenblatt` needs exponent > 1, initial_time > 0, coefficient > 0 and confinement >= 0; "
            f"got {exponent}, {initial_time}, {coefficient} and {confinement}."
        )
    m, power = exponent, 1 / (exponent - 1)
    beta = 1 / (dim * (m - 1) + 2)
    k = beta * (m - 1) / (2 * m * coefficient)
    # The constant that makes the mass one.
    gammas = math.gamma(m * power) / math.gamma(m * power + dim / 2)
    constant = (math.pi ** (dim / 2) * k ** (-dim / 2) * gammas) ** (-1 / (power + dim / 2))

    def radius(time: Any, dtype: Any) -> Array:
        """The radius of the support."""
        time = jnp.asarray(time, dtype)
        if confinement == 0:
            return (initial_time + time) ** beta * math.sqrt(constant / k)
        age = initial_time + beta * jnp.expm1(confinement * time / beta) / confinement
        return jnp.exp(-confinement * time) * age**beta * math.sqrt(constant / k)

    # In the radius R every profile reads U = (C/R₀²)^power-like heights: mass one fixes the height to peak · R^-d.
    peak = constant**power * math.sqrt(constant / k) ** dim

    def exact(time: Any, x: Array) -> Array:
        front = radius(time, x.dtype)
        inside = 1 - jnp.sum(x**2) / front**2
        # The inner `where` keeps the gradient of the power finite outside the support.
        height = jnp.where(inside > 0, jnp.where(inside > 0, inside, 1.0) ** power, 0.0)
        return peak * height / front**dim

    def cumulative(time: Any, x: Array) -> Array:
        y = jnp.clip(x[0] / radius(time, x.dtype), -1.0, 1.0)
        half = jnp.asarray(0.5, x.dtype)
        return 0.5 + 0.5 * jnp.sign(y) * jax.scipy.special.betainc(half, jnp.asarray(power + 1, x.dtype), y**2)

    def stationary_log_density(x: Array) -> Array:
        inside = 1 - jnp.sum(x**2) / limit**2
        log_height = power * jnp.log(jnp.where(inside > 0, inside, 1.0))
        return jnp.where(inside > 0, log_height + math.log(peak / limit**dim), -jnp.inf)

    # As t → ∞, age → (β/λ) e^{λt/β}, so the radius tends to (β/λ)^β √(C/k).
    limit = (beta / confinement) ** beta * math.sqrt(constant / k) if confinement > 0 else math.inf
    # Means over the unit profile p ∝ (1-|y|²)^power: ∫|y|²p = d/(d + 2 + 2 power), and ∫p^m = peak^(m-1) ∫(1-|y|²)p =
    # peak^(m-1) (1 - ∫|y|²p).
    second = dim / (dim + 2 + 2 * power)
    largest = float(max(radius(0.0, jnp.zeros(()).dtype), radius(final_time, jnp.zeros(()).dtype)))
    confined = confinement > 0
    return DensityProblem(
        name="confined_barenblatt" if confined else "barenblatt",
        source="Barenblatt (1952); Vázquez, The Porous Medium Equation (2007), section 4.4",
        dim=dim,
        potential=(lambda x: 0.5 * confinement * jnp.sum(x**2)) if confined else None,
        porous_exponent=m,
        porous_coefficient=coefficient,
        initial_density=lambda x: exact(0.0, x),
        exact=exact,
        exact_cumulative=cumulative if dim == 1 else None,
        exact_mean=lambda time: jnp.zeros(dim),
        exact_covariance=lambda time: second / dim * radius(time, jnp.zeros(()).dtype) ** 2 * jnp.eye(dim),
        stationary_log_density=stationary_log_density if confined else None,
        minimum=0.5 * confinement * second * limit**2
        + coefficient * power * peak ** (m - 1) * (1 - second) * limit ** (-dim * (m - 1))
        if confined
        else None,
        # A fifth of room, so that the front is inside the box and never feels the walls.
        lower=(-1.2 * largest,) * dim,
        upper=(1.2 * largest,) * dim,
        final_time=final_time,
    )


def confined_barenblatt(exponent: float = 2.0, dim: int = 1) -> DensityProblem:
    r"""[`thalweg.problems.barenblatt`][] in the well $\tfrac12|x|^2$: a wide start contracts to the exact compactly
    supported limit.

    **Source:** Carrillo and Toscani, Indiana Univ. Math. J. 49 (2000).
    """
    return barenblatt(exponent, dim, initial_time=2.0, final_time=3.0, confinement=1.0)
