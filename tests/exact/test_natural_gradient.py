"""Case (b): natural gradient, against closed form 17 and certified regressions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import thalweg as tw


def one_step(family, energy, start):
    state = tw.Parametric(start, family)
    return tw.flow(energy, state, geometry=tw.FisherRao(), scheme=tw.Explicit(1.0), num_steps=1).final.state.params


@pytest.mark.parametrize(
    ("family", "target", "start"),
    [
        (tw.likelihoods.Bernoulli(), jnp.array([0.7, -0.2]), jnp.array([-0.3, 0.4])),
        (tw.likelihoods.Poisson(), jnp.array([0.5, 1.2]), jnp.array([0.1, 0.9])),
    ],
    ids=["bernoulli", "poisson"],
)
def test_one_step_in_natural_parameters_is_exact_for_reverse_kl_and_not_for_forward(family, target, start):
    reverse = one_step(family, lambda s: s.family.kl(s.params, target), start)
    np.testing.assert_allclose(reverse, target, rtol=1e-12)
    forward = one_step(family, lambda s: s.family.kl(target, s.params), start)
    assert float(jnp.max(jnp.abs(forward - target))) > 1e-2


def test_the_fisher_matrix_is_the_covariance_of_the_score():
    # Bernoulli: Var(y − p) = p (1 − p), summed over both outcomes exactly.
    logits = jnp.array([0.3, -1.1])
    state = tw.Parametric(logits, tw.likelihoods.Bernoulli())
    matrix = tw.FisherRao().at(state).matrix()
    probability = jax.nn.sigmoid(logits)
    scores = lambda y: jax.grad(lambda eta: state.family.log_density(eta, y))(logits)  # noqa: E731
    covariance = jnp.diag(probability * scores(jnp.ones(2)) ** 2 + (1 - probability) * scores(jnp.zeros(2)) ** 2)
    np.testing.assert_allclose(matrix, covariance, rtol=1e-12, atol=1e-14)


def test_the_natural_gradient_does_not_depend_on_the_coordinates():
    # Mean and log scale against mean and log precision: the velocity transforms as a vector, so the small steps agree.
    family = tw.likelihoods.NormalMeanScale()
    target = {"mean": jnp.asarray(1.0), "log_scale": jnp.asarray(0.3)}
    start = {"mean": jnp.asarray(-0.5), "log_scale": jnp.asarray(-0.2)}
    velocity = tw.FisherRao().at(tw.Parametric(start, family))
    xi = tw.first_variation(lambda s: family.kl(s.params, target), tw.Parametric(start, family))
    tangent = velocity.steepest_descent(xi).tangent.params
    # In coordinates (μ, log precision = −2 log σ) the Fisher matrix is diag(1/σ², 1/2).
    sigma = jnp.exp(start["log_scale"])
    gradient = jax.grad(lambda p: family.kl({"mean": p[0], "log_scale": -0.5 * p[1]}, target))(
        jnp.stack([start["mean"], -2 * start["log_scale"]])
    )
    np.testing.assert_allclose(tangent["mean"], -(sigma**2) * gradient[0], rtol=1e-12)
    np.testing.assert_allclose(-2 * tangent["log_scale"], -2 * gradient[1], rtol=1e-12)


@pytest.mark.parametrize(("name", "start"), [("misra1a", 1), ("danwood", 0), ("rat42", 0), ("chwirut2", 1)])
def test_a_regression_reaches_its_certified_values(name, start):
    problem = tw.problems.get(name)
    path = tw.fit(problem.model, problem.inputs, problem.outputs, problem.starts[start])
    assert path.result == tw.RESULTS.minimum
    # The certified values have eleven digits.
    assert float(problem.log_relative_error(path.final.state.params)) > 9
    np.testing.assert_allclose(2 * path.energies[-1], problem.certified_rss, rtol=1e-8)


@pytest.mark.parametrize("scale", [None, 0.05])
def test_the_fisher_matrix_gives_the_standard_errors_of_a_fit(scale):
    inputs = np.linspace(0.0, 3.0, 20)
    outputs = 2 * np.exp(-1.5 * inputs) + 0.05 * np.cos(37 * inputs**2)
    path = tw.fit(
        lambda p, t: p[0] * jnp.exp(-p[1] * t),
        jnp.asarray(inputs),
        jnp.asarray(outputs),
        jnp.ones(2),
        likelihood=None if scale is None else tw.likelihoods.Normal(scale),
    )
    params, family = path.final.state.params, path.final.state.family
    covariance = np.linalg.inv(family.fisher(params))
    if scale is None:
        covariance *= 2 * float(path.energies[-1]) / (len(inputs) - 2)
    sigma = None if scale is None else np.full(len(inputs), scale)
    _, expected = scipy.optimize.curve_fit(
        lambda t, a, b: a * np.exp(-b * t),
        inputs,
        outputs,
        [1.0, 1.0],
        sigma=sigma,
        absolute_sigma=scale is not None,
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
    )
    np.testing.assert_allclose(covariance, expected, rtol=1e-6)
