r"""Fokker–Planck flows in a potential that is not quadratic: the limit $e^{-V/T}/Z$ is exact, the path to it is not
known in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.problems._problem import DensityProblem

# exp(-36) is 2e-16: where the potential stands 36 T above its minimum, the density is zero to rounding.
_NEGLIGIBLE = 36.0


def double_well(
    dim: int = 1, temperature: float = 0.5, *, barrier: float = 1.0, tilt: float = 0.0, final_time: float | None = None
) -> DensityProblem:
    r"""Two wells with a barrier between them.

    $$V(x) = b\,(x_1^2 - 1)^2 + c\,x_1 + \tfrac12\textstyle\sum_{i \ge 2} x_i^2, \qquad q_\infty = e^{-V/T}/Z.$$

    $Z$ is a trapezoidal sum over the box, accurate to rounding since the integrand vanishes with all its derivatives
    at the ends. The relaxation rate is the first non-zero eigenvalue of the generator in $x_1$, computed once to
    about five digits. The start is a narrow Gaussian in the left well.

    **Arguments:** `temperature`: $T > 0$; `barrier`: $b > 0$; `tilt`: $c$, which makes the wells unequal;
    `final_time`: by default nine relaxation times.

    **Source:** Risken, *The Fokker–Planck Equation* (1989), section 5.10; Gibbs density: Jordan, Kinderlehrer and
    Otto (1998).
    """
    if not (temperature > 0 and barrier > 0):
        raise ValueError(f"`double_well` needs temperature > 0 and barrier > 0; got {temperature} and {barrier}.")

    def along(x: np.ndarray | float) -> np.ndarray:
        return np.asarray(barrier * (np.asarray(x) ** 2 - 1) ** 2 + tilt * np.asarray(x))

    depth = float(along(np.linspace(-3, 3, 6001)).min())
    edge = 1.5
    while min(along(edge), along(-edge)) - depth < _NEGLIGIBLE * temperature:
        edge += 0.1
    nodes = np.linspace(-edge, edge, 4001)
    weights = np.exp(-along(nodes) / temperature)
    log_normaliser = math.log(np.sum(weights) * (nodes[1] - nodes[0])) + 0.5 * (dim - 1) * math.log(
        2 * math.pi * temperature
    )
    lateral = math.sqrt(2 * _NEGLIGIBLE * max(temperature, 0.1))

    def potential(x: Array) -> Array:
        return barrier * (x[0] ** 2 - 1) ** 2 + tilt * x[0] + 0.5 * jnp.sum(x[1:] ** 2)

    mean = np.zeros(dim)
    mean[0] = -0.9
    sd = 0.15

    def initial_density(x: Array) -> Array:
        white = (x - jnp.asarray(mean, x.dtype)) / sd
        return jnp.exp(-0.5 * jnp.sum(white**2)) / (sd * math.sqrt(2 * math.pi)) ** dim

    rate = _spectral_gap(along(nodes[::2]), float(nodes[2] - nodes[0]), temperature)
    # The other coordinates relax at rate one.
    rate = rate if dim == 1 else min(rate, 1.0)
    return DensityProblem(
        name="double_well",
        source="Risken, The Fokker-Planck Equation (1989), section 5.10",
        dim=dim,
        potential=potential,
        temperature=temperature,
        initial_density=initial_density,
        initial_mean=jnp.asarray(mean),
        initial_covariance=sd**2 * jnp.eye(dim),
        stationary_log_density=lambda x: -potential(x) / temperature - log_normaliser,
        minimum=-temperature * log_normaliser,
        relaxation_rate=rate,
        lower=(-edge,) + (-lateral,) * (dim - 1),
        upper=(edge,) + (lateral,) * (dim - 1),
        # Nine relaxation times leave 1e-4 of the slowest mode.
        final_time=9 / rate if final_time is None else final_time,
    )


def metastable_double_well() -> DensityProblem:
    r"""[`thalweg.problems.double_well`][] ten temperatures deep: until `final_time` almost nothing crosses the barrier.

    The path comes to rest in the left well long before it reaches equilibrium, and its energy stays $T\log 2$ above
    the minimum (to the small mass that has leaked). A run that stops when the energy no longer falls stops too early.

    **Source:** Kramers, Physica 7 (1940).
    """
    problem = double_well(temperature=0.1, final_time=5.0)
    return dataclasses.replace(problem, name="metastable_double_well", source="Kramers, Physica 7 (1940) 284-304")


def von_mises(dim: int = 1, temperature: float = 0.5, strength: float = 1.0) -> DensityProblem:
    r"""A periodic force on the circle, or the same along each axis of a torus.

    $$V(x) = -\kappa\textstyle\sum_i \cos x_i,
    \qquad q_\infty = \prod_i \frac{e^{(\kappa/T)\cos x_i}}{2\pi I_0(\kappa/T)}, \qquad x \in [-\pi, \pi]^d.$$

    The start is a bump near the top of the potential, off centre: $\propto \prod_i e^{2\cos(x_i - 2.5)}$.

    **Arguments:** `temperature`: $T > 0$; `strength`: $\kappa$.

    **Source:** Mardia and Jupp, *Directional Statistics* (2000), section 3.5.4.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive; got {temperature}.")
    ratio = strength / temperature

    def log_von_mises(x: Array, concentration: float, centre: float) -> Array:
        # i0e is the Bessel function without its exponential growth: nothing overflows at low temperature.
        scaled = jax.scipy.special.i0e(jnp.asarray(concentration, x.dtype))
        cosines = concentration * jnp.cos(x - centre) - abs(concentration)
        return jnp.sum(cosines) - dim * jnp.log(2 * jnp.pi * scaled)

    # -T log of the integral of exp(-V/T).
    log_bessel = (
        math.log(float(np.i0(ratio))) if abs(ratio) < 700 else abs(ratio) - 0.5 * math.log(2 * math.pi * abs(ratio))
    )
    return DensityProblem(
        name="von_mises",
        source="Mardia and Jupp, Directional Statistics (2000), section 3.5.4",
        dim=dim,
        potential=lambda x: -strength * jnp.sum(jnp.cos(x)),
        temperature=temperature,
        initial_density=lambda x: jnp.exp(log_von_mises(x, 2.0, 2.5)),
        stationary_log_density=lambda x: log_von_mises(x, ratio, 0.0),
        minimum=-temperature * dim * (math.log(2 * math.pi) + log_bessel),
        lower=(-math.pi,) * dim,
        upper=(math.pi,) * dim,
        periodic=True,
        final_time=10.0,
    )


def _spectral_gap(potential: np.ndarray, spacing: float, temperature: float) -> float:
    """The first non-zero eigenvalue of -(T∂² + ∂V') on a line with walls, to O(h²), from its symmetric three-point
    form."""
    # Imported here, for it takes longer to import than everything else in this folder.
    from scipy.linalg import eigvalsh_tridiagonal

    # Cells far up the walls carry no mass, and their rates would swamp the small eigenvalues by rounding.
    values = potential[potential - potential.min() < _NEGLIGIBLE * temperature]
    # Jumps i → i+1 at rate (T/h²) exp(-(V_{i+1} - V_i)/2T) are reversible for exp(-V/T); conjugated by its root the
    # matrix is symmetric.
    coupling = temperature / spacing**2
    half = np.diff(values) / (2 * temperature)
    diagonal = np.zeros(len(values))
    diagonal[:-1] += coupling * np.exp(-half)
    diagonal[1:] += coupling * np.exp(half)
    off_diagonal = np.full(len(values) - 1, -coupling)
    return float(eigvalsh_tridiagonal(diagonal, off_diagonal, select="i", select_range=(1, 1))[0])
