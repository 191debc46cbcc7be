"""Linear flows of densities that are known at all times: Gaussians that stay Gaussian, and modes of the heat equation
in a box."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.problems._matrices import reflection, with_eigenvalues
from thalweg.problems._problem import DensityProblem

# A box whose walls are nine standard deviations away holds all but 1e-18 of a Gaussian: less than rounding.
_BOX = 9.0


def ornstein_uhlenbeck(dim: int = 1, temperature: float = 1.0, stiffness: float = 2.0) -> DensityProblem:
    r"""Diffusion in a quadratic well: a Gaussian at all times.

    $$V = \tfrac12 (x-a)^\top A (x-a), \quad m(t) = a + e^{-At}(m_0 - a), \quad
    \Sigma(t) = TA^{-1} + e^{-At}(\Sigma_0 - TA^{-1})e^{-At}.$$

    $A$ has eigenvalues spaced evenly from 1 to `stiffness` along oblique axes (in one dimension $A = 1$); $a =
    (\tfrac12, \dots)$; the start is narrow and off centre, $m_0 = (-1, 0, \dots)$ and a diagonal $\Sigma_0 =
    T\,\mathrm{diag}(0.2, \dots, 0.4)$ that does not commute with $A$.

    **Arguments:** `dim`; `temperature`: $T > 0$; `stiffness`: the largest eigenvalue, at least 1.

    **Source:** Risken, *The Fokker–Planck Equation* (1989), section 6.5.
    """
    _require_positive(temperature=temperature)
    if not stiffness >= 1:
        raise ValueError(f"`stiffness` must be at least 1; got {stiffness}.")
    eigenvalues = np.linspace(1.0, stiffness, dim)
    precision = with_eigenvalues(eigenvalues)
    centre = np.full(dim, 0.5)
    start = np.zeros(dim)
    start[0] = -1.0
    covariance = temperature * np.diag(np.linspace(0.2, 0.4, dim))
    limit = temperature * np.linalg.inv(precision)
    basis = reflection(dim)

    def decay(time: Any, dtype: Any) -> Array:
        vectors = jnp.asarray(basis, dtype)
        return (vectors * jnp.exp(-jnp.asarray(time, dtype) * jnp.asarray(eigenvalues, dtype))[None]) @ vectors

    def mean(time: Any) -> Array:
        dtype = jnp.zeros(()).dtype
        return jnp.asarray(centre, dtype) + decay(time, dtype) @ jnp.asarray(start - centre, dtype)

    def spread(time: Any) -> Array:
        dtype = jnp.zeros(()).dtype
        matrix = decay(time, dtype)
        return jnp.asarray(limit, dtype) + matrix @ jnp.asarray(covariance - limit, dtype) @ matrix

    def potential(x: Array) -> Array:
        offset = x - jnp.asarray(centre, x.dtype)
        return 0.5 * offset @ jnp.asarray(precision, x.dtype) @ offset

    # The mean moves within a ball about the centre, and no covariance on the way exceeds the larger of its two ends.
    reach = float(np.linalg.norm(start - centre)) + _BOX * math.sqrt(temperature)
    return DensityProblem(
        name="ornstein_uhlenbeck",
        source="Risken, The Fokker-Planck Equation (1989), section 6.5",
        dim=dim,
        potential=potential,
        temperature=temperature,
        **_gaussian(mean, spread, dim),
        stationary_log_density=lambda x: _log_normal(x, jnp.asarray(centre, x.dtype), jnp.asarray(limit, x.dtype)),
        # F(stationary) = -T log of the integral of exp(-V/T), here a Gaussian integral.
        minimum=-0.5 * temperature * (dim * math.log(2 * math.pi * temperature) - float(np.sum(np.log(eigenvalues)))),
        relaxation_rate=1.0,
        lower=(0.5 - reach,) * dim,
        upper=(0.5 + reach,) * dim,
        final_time=2.0,
    )


def heat_gaussian(dim: int = 1, temperature: float = 1.0) -> DensityProblem:
    r"""A Gaussian that spreads over the whole space, $\partial_t q = T\Delta q$.

    $$q_t = N(m_0, \Sigma_0 + 2TtI), \qquad m_0 = 0, \quad \Sigma_0 = \mathrm{diag}(0.1, \dots, 0.2).$$

    The box holds it to rounding until `final_time`. There is no stationary density.

    **Source:** the heat kernel; Evans, *Partial Differential Equations* (2010), section 2.3.1.
    """
    _require_positive(temperature=temperature)
    variances = np.linspace(0.1, 0.2, dim)
    final_time = 0.5 / temperature

    def spread(time: Any) -> Array:
        dtype = jnp.zeros(()).dtype
        return jnp.diag(jnp.asarray(variances, dtype) + 2 * temperature * jnp.asarray(time, dtype))

    reach = _BOX * math.sqrt(float(variances.max()) + 2 * temperature * final_time)
    return DensityProblem(
        name="heat_gaussian",
        source="Evans, Partial Differential Equations (2010), section 2.3.1",
        dim=dim,
        temperature=temperature,
        **_gaussian(lambda time: jnp.zeros(dim), spread, dim),
        lower=(-reach,) * dim,
        upper=(reach,) * dim,
        final_time=final_time,
    )


def quadratic_interaction(dim: int = 1, temperature: float = 0.5, attraction: float = 1.0) -> DensityProblem:
    r"""Particles that attract each other like springs, $W = \tfrac{\kappa}{2}|x|^2$, and diffuse.

    The mean is conserved and the density stays Gaussian: an Ornstein–Uhlenbeck flow about its own mean,
    $\Sigma(t) = \tfrac{T}{\kappa}I + e^{-2\kappa t}(\Sigma_0 - \tfrac{T}{\kappa}I)$.

    **Arguments:** `temperature`: $T > 0$; `attraction`: $\kappa > 0$. (The minimiser is unique up to translation; the
    mean picks it.)

    **Source:** Carrillo, McCann and Villani, Rev. Mat. Iberoamericana 19 (2003).
    """
    _require_positive(temperature=temperature, attraction=attraction)
    centre, initial, limit = 0.5, 0.1, temperature / attraction

    def mean(time: Any) -> Array:
        return jnp.full((dim,), centre)

    def spread(time: Any) -> Array:
        return (
            limit + jnp.exp(-2 * attraction * jnp.asarray(time, jnp.zeros(()).dtype)) * (initial - limit)
        ) * jnp.eye(dim)

    reach = _BOX * math.sqrt(max(initial, limit))
    return DensityProblem(
        name="quadratic_interaction",
        source="Carrillo, McCann and Villani, Rev. Mat. Iberoamericana 19 (2003) 971-1018",
        dim=dim,
        interaction_kernel=lambda displacement: 0.5 * attraction * jnp.sum(displacement**2),
        temperature=temperature,
        **_gaussian(mean, spread, dim),
        stationary_log_density=lambda x: _log_normal(x, jnp.full_like(x, centre), limit * jnp.eye(dim, dtype=x.dtype)),
        # Half of the pair energy is kappa/2 times the trace of the covariance; the entropy of a Gaussian is the rest.
        minimum=0.5 * temperature * dim * (1 - math.log(2 * math.pi * math.e * limit)),
        relaxation_rate=2 * attraction,
        lower=(centre - reach,) * dim,
        upper=(centre + reach,) * dim,
        final_time=2.0 / attraction,
    )


def heat_modes(
    wavenumbers: Sequence[int] = (1,), amplitude: float = 0.5, temperature: float = 1.0, periodic: bool = False
) -> DensityProblem:
    r"""One mode of the heat equation in the unit box, between walls or on the torus.

    $$q_t(x) = 1 + a\,e^{-T|c k|^2 t}\prod_i \cos(c k_i x_i), \qquad x \in [0, 1]^d,
    \qquad c = \pi \text{ (walls)},\ 2\pi \text{ (periodic)}.$$

    On cells of width $h$ the second difference damps the mode at exactly $T\sum_i (2 - 2\cos(c k_i h))/h^2$.

    **Arguments:** `wavenumbers`: $k$, one non-negative integer an axis, not all zero; `amplitude`: $0 < a < 1$;
    `temperature`: $T > 0$; `periodic`: the torus instead of walls.

    **Source:** Fourier.
    """
    _require_positive(temperature=temperature)
    if not 0 < amplitude < 1 or not any(wavenumbers):
        raise ValueError(f"`heat_modes` needs 0 < amplitude < 1 and a mode; got {amplitude} and {tuple(wavenumbers)}.")
    frequencies = (2 if periodic else 1) * np.pi * np.asarray(wavenumbers, float)
    dim, rate = len(frequencies), temperature * float(np.sum(frequencies**2))

    def height(time: Any, x: Array) -> Array:
        return amplitude * jnp.exp(-rate * jnp.asarray(time, x.dtype))

    def exact(time: Any, x: Array) -> Array:
        return 1 + height(time, x) * jnp.prod(jnp.cos(jnp.asarray(frequencies, x.dtype) * x))

    def cumulative(time: Any, x: Array) -> Array:
        return x[0] + height(time, x) * jnp.sin(float(frequencies[0]) * x[0]) / float(frequencies[0])

    return DensityProblem(
        name="heat_modes",
        source="Fourier, Théorie analytique de la chaleur (1822)",
        dim=dim,
        temperature=temperature,
        initial_density=lambda x: exact(0.0, x),
        exact=exact,
        exact_cumulative=cumulative if dim == 1 else None,
        stationary_log_density=lambda x: jnp.zeros((), x.dtype),
        minimum=0.0,
        relaxation_rate=rate,
        lower=(0.0,) * dim,
        upper=(1.0,) * dim,
        periodic=periodic,
        final_time=2.0 / rate,
    )


def _gaussian(mean: Any, covariance: Any, dim: int) -> dict[str, Any]:
    """The fields of a problem whose solution is N(mean(t), covariance(t))."""

    def exact(time: Any, x: Array) -> Array:
        return jnp.exp(_log_normal(x, mean(time).astype(x.dtype), covariance(time).astype(x.dtype)))

    def cumulative(time: Any, x: Array) -> Array:
        return jax.scipy.special.ndtr(
            (x[0] - mean(time)[0].astype(x.dtype)) / jnp.sqrt(covariance(time)[0, 0]).astype(x.dtype)
        )

    return {
        "initial_density": lambda x: exact(0.0, x),
        "initial_mean": mean(0.0),
        "initial_covariance": covariance(0.0),
        "exact": exact,
        "exact_cumulative": cumulative if dim == 1 else None,
        "exact_mean": mean,
        "exact_covariance": covariance,
    }


def _log_normal(x: Array, mean: Array, covariance: Array) -> Array:
    factor = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(factor, x - mean, lower=True)
    return -0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(factor))) - 0.5 * x.shape[0] * math.log(2 * math.pi)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive; got {value}.")
