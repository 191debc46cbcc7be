"""Natural gradient: three forms of one solve, proved rows, KL steps and balls, and what is not the Fisher matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import thalweg as tw
from benchmarks import natural_gradient as bench
from thalweg.likelihoods import hessian_of_divergence, rows_are_independent

L = tw.likelihoods
KEYS = jax.random.split(jax.random.key(0), 4)
INPUTS = jax.random.normal(KEYS[0], (9, 3))
PARAMS = {"w": jax.random.normal(KEYS[1], (3, 4)), "b": jnp.full(4, 0.1), "v": jax.random.normal(KEYS[2], (4,))}
OUTCOMES = (jnp.arange(9) % 2).astype(float)


def network(params, inputs):
    return jnp.tanh(inputs @ params["w"] + params["b"][None]) @ params["v"]


def velocity(geometry, state, outputs):
    @jax.jit
    def both():
        metric, xi = geometry.at(state), tw.first_variation(tw.NegativeLogLikelihood(outputs), state)
        found = metric.steepest_descent(xi)
        return ravel_pytree(found.tangent.params)[0], tw.pairing(xi, found), metric.norm_squared(found)

    return both()


@pytest.mark.parametrize("damping", [0.0, 1e-3], ids=["undamped", "damped"])
def test_the_three_forms_solve_one_system(damping):
    # 9 observations, 20 parameters: without damping the matrix is singular, and each takes the solution of least norm.
    state = tw.Parametric(PARAMS, L.Regression(network, INPUTS, L.Bernoulli()))
    assert isinstance(tw.FisherRao(damping).at(state).form, tw.KernelFisher)
    answers = [
        velocity(tw.FisherRao(damping, form), state, OUTCOMES)
        for form in (tw.DenseFisher(), tw.KernelFisher(), tw.MatrixFreeFisher(1e-13, 200))
    ]
    matrix = hessian_of_divergence(state.family, PARAMS)
    damped = matrix + damping * jnp.diag(jnp.diagonal(matrix))
    scale = np.sqrt(np.diagonal(matrix))
    xi = ravel_pytree(jax.grad(lambda p: -state.family.log_density(p, OUTCOMES))(PARAMS))[0]
    expected = -np.linalg.lstsq(np.asarray(damped) / np.outer(scale, scale), xi / scale, rcond=1e-13)[0] / scale
    for found, slope, square in answers:
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * np.max(np.abs(expected)))
        np.testing.assert_allclose(-slope, square, rtol=1e-9)


def test_the_form_follows_the_shapes():
    def form(num, dim):
        inputs = jax.ShapeDtypeStruct((num, dim), jnp.float64)
        family = L.Regression(lambda p, x: x @ p, jnp.zeros(inputs.shape), L.Normal())
        return tw.FisherRao().at(tw.Parametric(jnp.zeros(dim), family)).form

    assert isinstance(form(30, 5), tw.DenseFisher)
    assert isinstance(form(5, 30), tw.KernelFisher)
    assert isinstance(form(11_000, 10_500), tw.MatrixFreeFisher)


MIXED = {
    "the mean of the batch": lambda p, x: network(p, x) - jnp.mean(x),
    "the size of the batch": lambda p, x: network(p, x) / x.shape[0],
    "one number for each row": lambda p, x: network(p, x) * np.arange(9.0),
    "the next row": lambda p, x: jnp.roll(network(p, x), 1),
    "the index of the row": lambda p, x: network(p, x) * jnp.arange(x.shape[0]),
    "the order of rows": lambda p, x: network(p, x)[::-1],
    "a sum over rows": lambda p, x: network(p, x) + 0 * jnp.sum(network(p, x)),
}
APART = {
    "a network": network,
    "one point at a time": lambda p, x: jax.vmap(lambda a: network(p, a[None])[0])(x),
    "a Laplacian": lambda p, x: jax.vmap(lambda a: jnp.trace(jax.hessian(lambda b: network(p, b[None])[0])(a)))(x),
    "softmax": lambda p, x: jax.nn.softmax(jax.nn.gelu(x @ p["w"])),
}


@pytest.mark.parametrize("name", [*MIXED, *APART])
def test_rows_are_taken_apart_only_where_that_is_proved(name):
    with jax.numpy_dtype_promotion("standard"):
        assert rows_are_independent({**MIXED, **APART}[name], PARAMS, INPUTS) == (9 if name in APART else None)


def test_the_factor_is_right_where_rows_mix_and_where_they_do_not():
    for model in (network, MIXED["the mean of the batch"]):
        family = L.Regression(model, INPUTS, L.Normal(jnp.linspace(0.5, 1.5, 9)))
        factor, hessian = jax.jit(lambda p, f=family: (f.fisher_factor(p), hessian_of_divergence(f, p)))(PARAMS)
        np.testing.assert_allclose(factor.T @ factor, hessian, atol=1e-12)


def test_natural_gradient_solves_a_badly_conditioned_logistic_regression():
    # Condition number 1e3, n = 1000, d = 50; the reference is Newton's method in extended precision.
    found = bench.logistic(12)
    assert found["steps"] is not None
    assert found["steps"] <= 12
    assert found["parameter error"] < 1e-11


def test_a_kl_proximal_step_agrees_with_the_linearised_step_to_second_order():
    family, start, target = L.Bernoulli(), jnp.asarray([0.3, -1.0]), jnp.asarray([-0.4, 0.9])
    energy = lambda s: s.family.kl(s.params, target)  # noqa: E731
    gaps = []
    for alpha in (0.02, 0.01):
        ends = [
            tw.flow(
                energy, tw.Parametric(start, family), geometry=tw.FisherRao(), scheme=scheme, num_steps=1
            ).final.state
            for scheme in (tw.Proximal(alpha), tw.Explicit(alpha))
        ]
        gaps.append(np.linalg.norm(ravel_pytree(ends[0].params)[0] - ravel_pytree(ends[1].params)[0]))
    assert np.log2(gaps[0] / gaps[1]) >= 1.9


@pytest.mark.parametrize("radius", [0.3, 50.0])
def test_the_constrained_step_is_the_minimiser_in_the_kl_ball(radius):
    family, here, target = L.Poisson(), jnp.asarray([0.3, -0.5]), jnp.asarray([1.5, 0.9])
    state = tw.Parametric(here, family)
    energy = lambda s: s.family.kl(s.params, target)  # noqa: E731
    scheme = tw.Constrained(radius, tw.NewtonBall())
    found = tw.flow(energy, state, geometry=tw.FisherRao(), scheme=scheme, num_steps=1).final.state.params
    if radius > 10:
        # The minimum lies inside.
        np.testing.assert_allclose(found, target, rtol=1e-12)
        return
    np.testing.assert_allclose(2 * family.kl(found, here), radius**2, rtol=1e-10)
    # ∇F is parallel to ∇D, and points outwards.
    slope = jax.grad(family.kl)(found, target)
    outwards = jax.grad(family.kl)(found, here)
    cosine = slope @ outwards / jnp.linalg.norm(slope) / jnp.linalg.norm(outwards)
    np.testing.assert_allclose(cosine, -1, rtol=1e-12)


def test_a_singular_fisher_matrix_leaves_what_means_nothing_at_rest():
    state = tw.Parametric(jnp.asarray([[0.3, -1.0, 0.5]]), L.Categorical())
    found, slope, square = velocity(tw.FisherRao(), state, jnp.asarray([1]))
    # One constant added to all logits changes nothing. Scaled by √p(1−p), the answer has no part along it.
    p = jax.nn.softmax(state.params[0])
    weights = p * (1 - p)
    np.testing.assert_allclose(found @ weights, 0, atol=1e-13)
    np.testing.assert_allclose(-slope, square, rtol=1e-12)
    assert np.all(np.isfinite(found))


def test_the_empirical_fisher_warns_and_is_the_sum_of_outer_products_of_scores():
    state = tw.Parametric(PARAMS, L.Regression(network, INPUTS, L.Bernoulli()))
    with pytest.warns(UserWarning, match="is not the Fisher matrix"):
        geometry = tw.EmpiricalFisher(OUTCOMES, damping=0.1)
    each = lambda p: L.Bernoulli().log_density_each(network(p, INPUTS), OUTCOMES)  # noqa: E731
    scores = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(jax.jit(jax.jacrev(each))(PARAMS)))
    expected = scores.T @ scores
    expected += 0.1 * np.diag(np.diagonal(expected))
    np.testing.assert_allclose(jax.jit(lambda: geometry.at(state).matrix())(), expected, atol=1e-12)
    found, slope, square = velocity(geometry, state, OUTCOMES)
    np.testing.assert_allclose(expected @ found, scores.sum(0), atol=1e-9)
    np.testing.assert_allclose(-slope, square, rtol=1e-10)
