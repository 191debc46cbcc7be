"""Every f-divergence flow in three ways at equal times: the PDE on a grid, the particle ODE and the particle SDE.

The particles read the density from the path of the grid, so what is compared is the equation of each, not an estimate
of a density: closed forms 20 and 21, $\\dot x = w(r)\\,\\nabla\\log r$ and $\\mathrm dx = (w\\nabla\\log p + \\nabla
w)\\,\\mathrm dt + \\sqrt{2w}\\,\\mathrm dW$ with $w(r) = r^2 f''(r)$ and $r = p/q_t$.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import generators

GRID = tw.Grid(-5.0, 5.0, 160)
X = np.asarray(GRID.centres[:, 0])
FINAL_TIME, NUM_SAVES = 0.4, 60
# What happens at once, where r is large or small, is left to the grid: the particles start after it.
WAIT = 12
NUM_PARTICLES = 4000
# Tails of equal weight, so that no ratio p/q is extreme: it is the equations that are compared.
LOG_TARGET = lambda x: jnp.sum(jnp.log(0.97 * jnp.exp(-((x - 0.8) ** 2)) + 0.03 * jnp.exp(-0.15 * x**2)))  # noqa: E731
LOG_START = lambda x: jnp.sum(jnp.log(0.9 * jnp.exp(-1.5 * (x + 0.7) ** 2) + 0.1 * jnp.exp(-0.15 * x**2)))  # noqa: E731
GENERATORS = {**generators.KNOWN, "alpha 0.5": generators.alpha(0.5), "alpha -1": generators.alpha(-1.0)}


def normalised_target():
    values = tw.GridDensity.from_log_density(LOG_TARGET, GRID).values
    # Jensen–Shannon and Jeffreys need the normaliser, which on these cells is that of the grid.
    shift = float(jnp.log(values[80]) - LOG_TARGET(GRID.centres[80]))
    return tw.Target(lambda x: LOG_TARGET(x) + shift, 1)


@functools.cache
def grid_path(name):
    start = tw.GridDensity.from_log_density(LOG_START, GRID)
    energy = tw.FDivergence(GENERATORS[name], normalised_target())
    scheme = tw.Continuous(FINAL_TIME / NUM_SAVES)
    return tw.flow(energy, start, geometry=tw.Wasserstein(), scheme=scheme, num_steps=WAIT + NUM_SAVES)


def drift_and_mobility(name):
    """On the cells at each save: the velocity of the ODE, the drift of the SDE, and w."""
    values = jnp.asarray(grid_path(name).states.values)[WAIT:]
    log_p = jnp.log(tw.GridDensity.from_log_density(LOG_TARGET, GRID).values)
    log_ratio = log_p[None] - jnp.log(values)
    weight = jax.vmap(jax.vmap(generators.relative_mobility(GENERATORS[name])))(jnp.exp(log_ratio))
    slope = functools.partial(jnp.gradient, axis=-1)
    h = GRID.spacing[0]
    return weight * slope(log_ratio) / h, weight * slope(log_p)[None] / h + slope(weight) / h, weight


@functools.partial(jax.jit, static_argnames="noisy")
def transported(points, velocity, weight, key, noisy):
    """Euler–Maruyama (Heun without noise) with small steps, the fields linear in space and time."""
    substeps = 12
    dt = FINAL_TIME / NUM_SAVES / substeps

    def at(field, time, x):
        k = jnp.minimum(jnp.floor(time), NUM_SAVES - 1).astype(int)
        part = time - k.astype(x.dtype)
        return jnp.interp(x, jnp.asarray(X), (1 - part) * field[k] + part * field[k + 1])

    def body(i, carry):
        x, key = carry
        time = i.astype(x.dtype) / substeps
        first = at(velocity, time, x)
        if noisy:
            key, use = jax.random.split(key)
            kick = jnp.sqrt(2 * jnp.maximum(at(weight, time, x), 0) * dt) * jax.random.normal(use, x.shape, x.dtype)
            x = x + dt * first + kick
        else:
            x = x + 0.5 * dt * (first + at(velocity, time + 1 / substeps, x + dt * first))
        # The walls of the grid reflect.
        return jnp.clip(jnp.where(x > 5.0, 10.0 - x, jnp.where(x < -5.0, -10.0 - x, x)), -5.0, 5.0), key

    return jax.lax.fori_loop(0, NUM_SAVES * substeps, body, (points, key))[0]


def largest_gap(points, values):
    """The Kolmogorov distance between particles and a density on the grid."""
    faces = np.linspace(-5.0, 5.0, 161)
    cumulative = np.r_[0, np.cumsum(np.asarray(values)) * GRID.cell_volume]
    below = np.searchsorted(np.sort(np.asarray(points)), faces) / len(points)
    return float(np.max(np.abs(below - cumulative)))


# Each generator is compiled anew; the others are run with -m slow.
_QUICK = ("reverse_kl", "pearson_chi2", "jensen_shannon")
_CASES = [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GENERATORS]


@pytest.mark.parametrize("name", _CASES)
def test_pde_ode_and_sde_agree_at_equal_times(name):
    path = grid_path(name)
    first, last = np.asarray(path.states.values[WAIT]), np.asarray(path.states.values[-1])
    # Quantiles of the start: no sampling noise in the ODE.
    levels = (np.arange(NUM_PARTICLES) + 0.5) / NUM_PARTICLES
    cumulative = np.r_[0, np.cumsum(first) * GRID.cell_volume]
    points = jnp.asarray(np.interp(levels, cumulative, np.linspace(-5.0, 5.0, 161)))
    velocity, drift, weight = drift_and_mobility(name)
    moved = largest_gap(points, last)
    key = jax.random.key(4)
    by_ode = largest_gap(transported(points, velocity, weight, key, False), last)
    by_sde = largest_gap(transported(points, drift, weight, key, True), last)
    # The flow has gone further than what is compared.
    assert moved > 0.04
    # Fields linear between cells and saves: h² = 0.004.
    assert by_ode < 0.004
    # The Kolmogorov distance of N draws exceeds 1.95/√N once in a thousand times; a bias of first order comes on top.
    assert by_sde < 1.95 / NUM_PARTICLES**0.5 + 0.005
