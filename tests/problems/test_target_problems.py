"""The targets: densities against their samplers and by quadrature; eight schools against an integral over two
numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thalweg import problems

NUM_SAMPLES = 20_000
# With fixed keys: a z-score beyond 4.5 among the hundred compared here has probability below 1e-3.
Z_SCORE = 4.5
SAMPLED = {
    "gaussian": problems.gaussian(3),
    "banana": problems.banana(),
    "unequal_mixture": problems.unequal_mixture(),
    "unequal_mixture, 3D": problems.unequal_mixture(3, separation=3.0),
    "funnel": problems.funnel(4),
}
sampled = pytest.mark.parametrize("problem", SAMPLED.values(), ids=SAMPLED.keys())


def z_scores(values, expected):
    values = np.asarray(values)
    return (values.mean(axis=0) - expected) / (values.std(axis=0) / math.sqrt(len(values)))


@sampled
def test_the_sampler_draws_from_the_density(problem):
    # Stein: E[grad log p] = 0 and E[g_i d_j log p + d_j g_i] = 0 hold for the samples of p alone.
    # tanh in place of x: bounded, so that the mean of a heavy-tailed density obeys the central limit theorem.
    @jax.jit
    @jax.vmap
    def stein(x):
        score = jax.grad(problem.log_density)(x)
        return score, jnp.tanh(x)[:, None] * score[None, :] + jnp.diag(1 - jnp.tanh(x) ** 2)

    scores, identities = stein(problem.sample(jax.random.key(0), NUM_SAMPLES))
    assert np.abs(z_scores(scores, 0.0)).max() < Z_SCORE
    assert np.abs(z_scores(identities.reshape(NUM_SAMPLES, -1), 0.0)).max() < Z_SCORE


@sampled
def test_the_reference_moments_are_those_of_the_sampler(problem):
    draws = problem.sample(jax.random.key(1), NUM_SAMPLES)
    for name, values in jax.jit(jax.vmap(problem.constrain))(draws).items():
        reference = problem.reference[name]
        assert float(jnp.max(reference.standard_error)) == 0
        if problem.name == "funnel" and name == "x":
            # Its kurtosis is 3 e^9: no sample of this size shows its variance. Given v it is exact.
            values = values * jnp.exp(-draws[:, :1] / 2)
            np.testing.assert_allclose(reference.sd, math.exp(9 / 4), rtol=1e-12)
            reference = problems.Moments(jnp.zeros(3), jnp.ones(3))
        values, mean = np.asarray(values), np.asarray(reference.mean)
        assert np.abs(z_scores(values, mean)).max() < Z_SCORE
        assert np.abs(z_scores((values - mean) ** 2, reference.sd**2)).max() < Z_SCORE


@pytest.mark.parametrize(
    ("problem", "half_widths", "bend"),
    [
        (problems.gaussian(2), (10.0, 10.0), lambda u: u + 1.0),
        (problems.banana(), (90.0, 9.0), lambda u: jnp.array([u[0], u[1] + 0.03 * (u[0] ** 2 - 100)])),
        (problems.unequal_mixture(2), (13.0, 12.0), lambda u: u),
        # x = e^(v/2) z, a map with Jacobian e^(v/2) that is corrected for below.
        (problems.funnel(2), (27.0, 9.0), lambda u: jnp.array([u[0], jnp.exp(u[0] / 2) * u[1]])),
    ],
    ids=["gaussian", "banana", "unequal_mixture", "funnel"],
)
def test_the_density_integrates_to_its_evidence(problem, half_widths, bend):
    axes = [np.linspace(-w, w, 601) for w in half_widths]
    nodes = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2))

    def integrand(u):
        return jnp.exp(problem.log_density(bend(u))) * jnp.abs(jnp.linalg.det(jax.jacfwd(bend)(u)))

    total = jnp.sum(jax.jit(jax.vmap(integrand))(nodes)) * (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    # The trapezoidal rule converges faster than any power of h; the box holds nine standard deviations.
    assert math.log(float(total)) == pytest.approx(problem.log_evidence, abs=1e-10)


def test_the_energy_of_the_gaussian_problem_is_the_closed_form():
    problem = problems.gaussian(2, 4.0)
    state = problem.initial_gaussian()
    covariance = np.linalg.inv(-np.asarray(jax.hessian(problem.log_density)(jnp.zeros(2))))
    precision = np.linalg.inv(covariance)
    # KL(N(0, I) | N(a, S)) = (tr S^-1 + a' S^-1 a - d + log det S) / 2 with a = (1, 1).
    expected = 0.5 * (np.trace(precision) + precision.sum() - 2 + math.log(np.linalg.det(covariance)))
    assert float(problem.energy()(state)) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(problem.reference["x"].sd, np.sqrt(np.diag(covariance)), rtol=1e-12)
    assert np.linalg.cond(covariance) == pytest.approx(4.0)


def test_initial_particles_have_the_customary_spread():
    problem = problems.unequal_mixture()
    particles = problem.initial_state(4000, key=jax.random.key(2))
    # The relative standard error of a variance from 4000 draws is 0.022.
    np.testing.assert_allclose(jnp.diag(particles.covariance()), 9.0, rtol=0.1)


EFFECTS = np.array([28, 8, -3, 7, -1, 1, 18, 12.0])
ERRORS = np.array([15, 10, 16, 11, 9, 11, 10, 18.0])


def schools_marginal(mu, log_tau):
    """log p(y, mu, log tau): the effects are integrated out, y_j ~ N(mu, sigma_j^2 + tau^2)."""
    tau = np.exp(log_tau)
    total = -0.5 * np.log(2 * np.pi * 25) - mu**2 / 50 + np.log(2 / (5 * np.pi)) - np.log1p(tau**2 / 25) + log_tau
    for effect, error in zip(EFFECTS, ERRORS, strict=True):
        variance = error**2 + tau**2
        total = total - 0.5 * np.log(2 * np.pi * variance) - (effect - mu) ** 2 / (2 * variance)
    return total


@pytest.mark.parametrize(("mu", "log_tau"), [(4.0, 1.0), (-3.0, -2.0), (10.0, 3.0)])
def test_integrating_out_the_effects_of_eight_schools_leaves_the_marginal_of_mean_and_scale(mu, log_tau):
    problem = problems.eight_schools()

    def conditional(effects):
        return problem.log_density(jnp.concatenate([effects, jnp.array([mu, log_tau])]))

    # Quadratic in the effects, so that one Newton step finds the mode and Laplace's formula is exact.
    derivatives = jax.jit(lambda x: (*jax.value_and_grad(conditional)(x), jax.hessian(conditional)(x)))
    value, gradient, hessian = (np.asarray(entry) for entry in derivatives(jnp.zeros(8)))
    top = value - 0.5 * gradient @ np.linalg.solve(hessian, gradient)
    integral = top + 4 * math.log(2 * math.pi) - 0.5 * np.linalg.slogdet(-hessian)[1]
    assert float(integral) == pytest.approx(float(schools_marginal(mu, log_tau)), rel=1e-13)


def test_the_reference_moments_and_evidence_of_eight_schools_are_those_of_the_integral():
    problem = problems.eight_schools()
    mu, log_tau = np.linspace(-60, 60, 601)[:, None], np.linspace(-25, 14, 1001)[None, :]
    weights = np.exp(schools_marginal(mu, log_tau))
    evidence = weights.sum() * (mu[1, 0] - mu[0, 0]) * (log_tau[0, 1] - log_tau[0, 0])
    assert math.log(evidence) == pytest.approx(problem.log_evidence, abs=2e-10)
    weights, tau = weights / weights.sum(), np.exp(log_tau)

    def compare(reference, mean, second_moment):
        sd = math.sqrt(second_moment - mean**2)
        error = sd / math.sqrt(10_000)
        assert abs(float(reference[0]) - mean) < 4 * error
        # The draws' standard deviation has a relative error of 0.5 sqrt((kurtosis - 1) / n), a few percent for tau.
        assert float(reference[1]) == pytest.approx(sd, rel=0.05)
        assert float(reference[2]) == pytest.approx(error, rel=0.05)

    def entry(name, index=()):
        moments = problem.reference[name]
        return moments.mean[index], moments.sd[index], moments.standard_error[index]

    compare(entry("mu"), (weights * mu).sum(), (weights * mu**2).sum())
    compare(entry("tau"), (weights * tau).sum(), (weights * tau**2).sum())
    for j in range(8):
        # theta_j given mu and tau is normal with a precision-weighted mean.
        variance = 1 / (1 / tau**2 + 1 / ERRORS[j] ** 2)
        mean = mu + variance / ERRORS[j] ** 2 * (EFFECTS[j] - mu)
        compare(entry("theta", j), (weights * mean).sum(), (weights * (mean**2 + variance)).sum())


def test_the_constrained_quantities_of_eight_schools_are_the_effects_their_mean_and_their_scale():
    values = problems.eight_schools().constrain(jnp.concatenate([jnp.arange(8.0), jnp.array([2.0, math.log(3.0)])]))
    np.testing.assert_allclose(values["theta"], 2 + 3 * np.arange(8.0), rtol=1e-14)
    assert (float(values["mu"]), float(values["tau"])) == (2.0, pytest.approx(3.0))


def test_a_parameter_out_of_range_is_named():
    with pytest.raises(ValueError, match="condition_number"):
        problems.gaussian(2, 0.1)
    with pytest.raises(ValueError, match="dim >= 2"):
        problems.funnel(1)
