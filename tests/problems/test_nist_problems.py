"""The NIST regressions against their own certified figures."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thalweg import problems
from thalweg.problems.nist import parse

ALL = {name: problems.nist_regression(name) for name in problems.DATASETS}
# Not Lanczos1: its data are exact, so that rounding the parameters to 11 digits changes its sum of squares at once.
NOISY = [name for name in ALL if name != "Lanczos1"]


@functools.cache
def figures(name):
    """The residual sums of squares at the certified parameters and the two starts, and the Jacobian at the former."""
    problem = ALL[name]

    @jax.jit
    def compute(certified, starts):
        rss = jax.vmap(problem.residual_sum_of_squares)(jnp.concatenate([certified[None], starts]))
        return rss, jax.jacfwd(problem.model)(certified, problem.inputs)

    return [np.asarray(value) for value in compute(problem.certified_params, problem.starts)]


@pytest.mark.parametrize("name", NOISY)
def test_the_model_at_the_certified_parameters_has_the_certified_residual_sum_of_squares(name):
    # The certified value has 11 digits; the sum is stationary there, so the rounded parameters cost nothing more.
    np.testing.assert_allclose(figures(name)[0][0], ALL[name].certified_rss, rtol=1e-10)


def test_lanczos1_fits_its_exact_data_as_closely_as_eleven_digits_allow():
    # An error of 5e-11 in parameters of size one, in 24 observations: 24 * (several 5e-11)^2.
    assert figures("Lanczos1")[0][0] < 1e-18


@pytest.mark.parametrize("name", NOISY)
def test_the_certified_standard_deviations_follow_from_the_model(name):
    jacobian = figures(name)[1]
    num_observations, num_params = jacobian.shape
    # (J^T J)^-1 by a QR factorisation of the scaled Jacobian: the condition numbers reach 1e9 before scaling.
    scale = np.linalg.norm(jacobian, axis=0)
    inverse = np.linalg.inv(np.linalg.qr(jacobian / scale, mode="r"))
    variance = ALL[name].certified_rss / (num_observations - num_params)
    sd = np.linalg.norm(inverse, axis=1) / scale * np.sqrt(variance)
    np.testing.assert_allclose(sd, ALL[name].certified_sd, rtol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_both_starts_are_worse_than_the_certified_parameters(name):
    assert ALL[name].starts.shape == (2, len(ALL[name].certified_params))
    rss = figures(name)[0]
    assert rss[1:].min() > rss[0]


def test_the_numbers_of_misra1a_are_those_of_its_file():
    problem = ALL["Misra1a"]
    np.testing.assert_array_equal(problem.starts, [[500, 0.0001], [250, 0.0005]])
    np.testing.assert_array_equal(problem.certified_params, [2.3894212918e02, 5.5015643181e-04])
    np.testing.assert_array_equal(problem.outputs[jnp.array([0, 13])], [10.07, 81.78])
    np.testing.assert_array_equal(problem.inputs[jnp.array([0, 13])], [77.6, 760.0])
    assert problem.source.endswith("Dental Research Monomolecular Adsorption Study.")


def test_the_score_counts_correct_digits():
    problem = ALL["Misra1a"]
    assert float(problem.log_relative_error(problem.certified_params)) == pytest.approx(11)
    worse = problem.certified_params * jnp.array([1 + 1e-7, 1 - 1e-4])
    assert float(problem.log_relative_error(worse)) == pytest.approx(4, abs=1e-6)


def test_least_squares_and_likelihood_have_the_same_gradient():
    problem = ALL["DanWood"]
    state = problem.initial_parametric(1, scale=2.0)
    np.testing.assert_array_equal(state.params, problem.initial_state(1))
    # -log likelihood is RSS / (2 scale^2) and a constant.
    through_model = eqx.filter_grad(problem.statistical_energy())(state).params
    np.testing.assert_allclose(through_model, jax.grad(problem.energy())(state.params) / 4, rtol=1e-10)


def test_a_file_that_is_not_of_the_collection_is_refused():
    with pytest.raises(ValueError, match="Not a NIST StRD file"):
        parse("y x\n1 2\n")


def test_an_unknown_data_set_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="must be one of Chwirut1") as caught:
        problems.nist_regression("Misra")
    assert len(str(caught.value).splitlines()) <= 5
