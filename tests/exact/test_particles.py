"""Cases (e) and (f): Langevin particles and the f-divergence ODE, against closed forms 1, 16, 19 and the PDE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

W2 = tw.Wasserstein()
# A random mean over N particles is within five standard errors but once in two million keys; the keys are fixed.
Z = 5.0


def ou(time, mean, variance, rate, centre, temperature):
    """Closed form 1 in one direction."""
    decay = np.exp(-rate * time)
    return centre + decay * (mean - centre), temperature / rate + decay**2 * (variance - temperature / rate)


def check_moments(positions, mean, variance):
    n = positions.shape[0]
    assert np.all(np.abs(np.mean(positions, axis=0) - mean) < Z * np.sqrt(variance / n))
    assert np.all(np.abs(np.var(positions, axis=0) - variance) < Z * variance * np.sqrt(2 / n))


def test_langevin_particles_follow_ornstein_uhlenbeck_with_their_known_bias():
    rates, centre, temperature = np.array([1.0, 3.0]), np.array([0.5, -1.0]), 0.7
    energy = tw.PotentialEnergy(lambda x: 0.5 * jnp.sum(jnp.asarray(rates) * (x - jnp.asarray(centre)) ** 2))
    energy = energy + temperature * tw.Entropy()
    key = jax.random.key(1)
    x0 = tw.Particles.sample(tw.Gaussian(jnp.array([2.0, 0.0]), 0.25 * jnp.eye(2)), 20000, key=key)
    alpha, steps = 0.05, 20
    path = tw.flow(energy, x0, geometry=W2, scheme=tw.Langevin(alpha), num_steps=steps, key=key, save_every=steps)
    # The chain is linear, so its moments are known exactly at every step: x⁺ = (1 − αλ)x + αλa + √(2Tα)η.
    mean, variance = np.array([2.0, 0.0]), np.full(2, 0.25)
    for _ in range(steps):
        mean = mean + alpha * rates * (centre - mean)
        variance = (1 - alpha * rates) ** 2 * variance + 2 * temperature * alpha
    check_moments(np.asarray(path.final.state.positions), mean, variance)
    # And they tend to the flow's as the step goes to zero: the bias here is of order αλ.
    exact_mean, exact_variance = ou(1.0, np.array([2.0, 0.0]), 0.25, rates, centre, temperature)
    assert np.all(np.abs(mean - exact_mean) < alpha * rates * np.abs(exact_mean - centre) + 0.1)
    assert np.all(np.abs(variance / exact_variance - 1) < alpha * rates)


def test_the_stationary_variance_of_unadjusted_langevin_is_biased_as_closed_form_19_says():
    rate, alpha = 2.0, 0.4
    target = tw.Target(lambda x: -0.5 * rate * jnp.sum(x**2), 1)
    key = jax.random.key(2)
    x0 = tw.Particles(jax.random.normal(key, (20000, 1)))
    path = tw.flow(tw.KL(target), x0, geometry=W2, scheme=tw.Langevin(alpha), num_steps=60, key=key, save_every=60)
    variance = (1 / rate) / (1 - alpha * rate / 2)
    check_moments(np.asarray(path.final.state.positions), 0.0, variance)
    assert variance / (1 / rate) > 1.5  # the bias is large enough to be seen
    assert "biased" in path.stats["bias"]


def test_the_energy_of_particles_without_a_density_is_unavailable_and_says_so():
    target = tw.Target(lambda x: -0.5 * jnp.sum(x**2), 1)
    key = jax.random.key(0)
    x0 = tw.Particles(jax.random.normal(key, (50, 1)))
    path = tw.flow(tw.KL(target), x0, geometry=W2, scheme=tw.Langevin(0.1), num_steps=3, key=key)
    assert set(path.unavailable) == {"energies", "dissipation_rates"}
    with pytest.raises(tw.Unavailable, match="density model"):
        _ = path.energies
    expected = jnp.mean(0.5 * jnp.sum(path.states.positions**2, axis=-1), axis=-1)
    np.testing.assert_allclose(path.measurements["regular_energy"], expected, rtol=1e-12)


def test_the_kernel_density_ode_follows_ornstein_uhlenbeck_without_noise():
    target = tw.Target(lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), 1)
    # Particles at the quantiles of N(0, 0.25): no sampling noise, so what is left is the kernel's error.
    levels = jnp.asarray((np.arange(300) + 0.5) / 300)
    x0 = tw.Particles(0.5 * jax.scipy.stats.norm.ppf(levels)[:, None], density=tw.KernelDensity())
    path = tw.flow(tw.KL(target), x0, geometry=W2, scheme=tw.Continuous(0.5), final_time=1.0)
    mean, variance = ou(1.0, 0.0, 0.25, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(float(path.final.state.mean()[0]), mean, atol=2e-3)
    # The estimate is consistent on Gaussians up to the spacing of the particles and the tails: a few per cent.
    np.testing.assert_allclose(float(path.final.state.covariance()[0, 0]), variance, rtol=0.04)
    # The discretised energy falls at exactly its rate.
    assert path.energy_balance().relative_error < 1e-3


@pytest.mark.parametrize(
    "generator",
    [tw.generators.squared_hellinger, tw.generators.jensen_shannon],
    ids=["squared_hellinger", "jensen_shannon"],
)
def test_the_particle_ode_of_an_f_divergence_agrees_with_its_pde(generator):
    target = tw.Target(lambda x: -0.5 * jnp.sum(x**2) - 0.5 * jnp.log(2 * jnp.pi), 1)
    energy = tw.FDivergence(generator, target)
    levels = jnp.asarray((np.arange(200) + 0.5) / 200)
    spread = 1.2 * jax.scipy.stats.norm.ppf(levels)[:, None] + 0.4
    x0 = tw.Particles(spread, density=tw.KernelDensity())
    particles = tw.flow(energy, x0, geometry=W2, scheme=tw.Continuous(0.5), final_time=1.0)
    grid = tw.Grid(-7.0, 7.0, 140)
    q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum((x - 0.4) ** 2) / 1.44), grid)
    density = tw.flow(energy, q0, geometry=W2, scheme=tw.Continuous(1.0), final_time=1.0).final.state
    # The flow moves the mean by 0.1 to 0.2 and the variance by 0.2.
    moved = particles.final.state
    np.testing.assert_allclose(float(moved.mean()[0]), float(density.mean()[0]), atol=0.02)
    np.testing.assert_allclose(float(moved.covariance()[0, 0]), float(density.covariance()[0, 0]), atol=0.05)
    assert abs(float(density.mean()[0]) - 0.4) > 0.05


def test_the_forward_kl_field_of_particles_is_right_while_their_density_is_smooth():
    # For q = N(m, s²) and p = N(0, 1) the mean moves at E_p[(x − m)/s²] = −m/s²: closed form 20 with w = r.
    # Over longer times raw forward KL freezes the tails and the estimate departs from the PDE (docs/numerics.md).
    target = tw.Target(lambda x: -0.5 * jnp.sum(x**2) - 0.5 * jnp.log(2 * jnp.pi), 1)
    levels = jnp.asarray((np.arange(200) + 0.5) / 200)
    x0 = tw.Particles(1.2 * jax.scipy.stats.norm.ppf(levels)[:, None] + 0.4, density=tw.KernelDensity())
    xi = tw.first_variation(tw.FDivergence(tw.generators.forward_kl, target), x0)
    drift = W2.at(x0).steepest_descent(xi).tangent.positions
    np.testing.assert_allclose(float(drift.mean()), -0.4 / 1.44, rtol=0.01)
