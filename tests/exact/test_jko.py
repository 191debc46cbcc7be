"""Case (d): the JKO step against closed forms 8 and 9, and the PDE that it tends to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

W2 = tw.Wasserstein()


def jko_gaussian(mean, deviation, step, rate, centre, temperature):
    """Closed form 8."""
    mean = (mean + step * rate * centre) / (1 + step * rate)
    root = np.sqrt(deviation**2 + 4 * temperature * step * (1 + step * rate))
    return mean, (deviation + root) / (2 * (1 + step * rate))


ENERGY = tw.PotentialEnergy(lambda x: 0.5 * 1.5 * jnp.sum((x - 0.3) ** 2)) + 0.8 * tw.Entropy()


def moments(state):
    mean, variance = float(state.mean()[0]), float(state.covariance()[0, 0])
    return mean, np.sqrt(variance)


def gaussian_on(grid, mean, deviation):
    """Cell averages, so that the discrete start has the moments of the exact one."""
    edges = jnp.linspace(grid.lower[0], grid.upper[0], grid.shape[0] + 1)
    return tw.GridDensity.normalised(jnp.diff(jax.scipy.stats.norm.cdf(edges, mean, deviation)), grid)


@pytest.mark.parametrize("step", [0.02, 0.5, 20.0])
def test_a_step_of_a_gaussian_meets_its_closed_form_with_second_order(step):
    errors = []
    for n in (80, 160):
        q0 = gaussian_on(tw.Grid(-6.0, 6.0, n), 1.0, 0.5)
        path = tw.flow(ENERGY, q0, geometry=W2, scheme=tw.Proximal(step), num_steps=1)
        expected = jko_gaussian(1.0, 0.5, step, 1.5, 0.3, 0.8)
        errors.append(np.max(np.abs(np.array(moments(path.final.state)) - expected)))
        # The certificate, for the numbers that are stored.
        after = float(path.energies[1] + path.distances_squared[1] / (2 * step))
        assert after <= float(path.energies[0]) + 1e-12
        assert float(path.measurements["residual"][1]) < 1e-6
        assert float(jnp.min(path.final.state.values)) > 0
        np.testing.assert_allclose(float(path.final.state.mass), 1, atol=1e-13)
    h = 12 / 160
    assert errors[1] < 0.3 * h**2
    assert np.log2(errors[0] / errors[1]) > 1.7


def test_many_steps_follow_the_recursion_and_stop_at_the_fixed_point():
    q0 = gaussian_on(tw.Grid(-6.0, 6.0, 150), 1.0, 0.5)
    path = tw.flow(ENERGY, q0, geometry=W2, scheme=tw.Proximal(1.0), num_steps=30)
    mean, deviation = 1.0, 0.5
    for k in range(1, 31):
        mean, deviation = jko_gaussian(mean, deviation, 1.0, 1.5, 0.3, 0.8)
        np.testing.assert_allclose(moments(path.state_at(k)), (mean, deviation), atol=2e-3)
    # The fixed point s² = T/λ does not depend on the step, and is the discrete Gibbs state itself.
    gibbs = tw.GridDensity.from_log_density(lambda x: -1.5 / 0.8 * 0.5 * jnp.sum((x - 0.3) ** 2), q0.grid)
    assert float(jnp.max(jnp.abs(path.final.state.values - gibbs.values))) < 1e-7
    assert np.all(np.diff(np.asarray(path.energies)) <= 1e-13)


def test_small_steps_tend_to_the_fokker_planck_equation():
    q0 = gaussian_on(tw.Grid(-6.0, 6.0, 100), 1.0, 0.5)
    pde = tw.flow(ENERGY, q0, geometry=W2, scheme=tw.Continuous(0.4), final_time=0.4)
    errors = []
    for step in (0.1, 0.05, 0.025):
        jko = tw.flow(ENERGY, q0, geometry=W2, scheme=tw.Proximal(step), final_time=0.4)
        errors.append(float(jnp.sum(jnp.abs(jko.final.state.values - pde.final.state.values)) * q0.grid.cell_volume))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all((orders > 0.8) & (orders < 1.3)), errors


def test_a_step_of_barenblatts_profile_meets_its_closed_form():
    # Closed form 9 in one dimension, m = 2, γ = M = 1: p = (3/4)(1 − y²), I = ∫y²p = 1/5, E₁ = ∫p² = 3/5;
    # the new radius minimises (R − R₀)² I/(2τ) + E₁/R, so (R − R₀) R² = τ E₁/I = 3τ.
    radius, step, n = 0.8, 0.05, 200
    grid = tw.Grid(-2.0, 2.0, n)
    edges = jnp.linspace(-2.0, 2.0, n + 1)

    def profile(r):
        y = jnp.clip(edges / r, -1, 1)
        return tw.GridDensity.normalised(jnp.diff(0.75 * (y - y**3 / 3)), grid)

    path = tw.flow(tw.PorousMedium(2.0), profile(radius), geometry=W2, scheme=tw.Proximal(step), num_steps=1)
    roots = np.roots([1.0, -radius, 0.0, -3 * step])
    expected = float(roots[np.abs(roots.imag) < 1e-12].real.max())
    error = float(jnp.sum(jnp.abs(path.final.state.values - profile(expected).values)) * grid.cell_volume)
    assert expected > radius + 0.1
    assert error < 5 * grid.cell_volume**2


def test_the_gaussian_state_takes_the_same_step_exactly():
    start = tw.Gaussian(jnp.array([1.0]), jnp.array([[0.25]]))
    path = tw.flow(ENERGY, start, geometry=W2, scheme=tw.Proximal(0.5), num_steps=1)
    mean, deviation = jko_gaussian(1.0, 0.5, 0.5, 1.5, 0.3, 0.8)
    np.testing.assert_allclose(path.final.state.mean, [mean], rtol=1e-9)
    np.testing.assert_allclose(path.final.state.covariance, [[deviation**2]], rtol=1e-9)
