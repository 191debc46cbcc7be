"""Natural gradient: three forms of one solve, proved rows, KL steps and balls, and what is not the Fisher matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import thalweg as tw
from benchmarks import natural_gradient as bench
from thalweg.energies import as_energy
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


LINE = jnp.concatenate([INPUTS[:, :2], INPUTS[:, :1], jnp.zeros((9, 1))], 1)
FORMS = {
    "dense": tw.DenseFisher(),
    "kernel": tw.KernelFisher(),
    "matrix-free": tw.MatrixFreeFisher(),
}


def steps_of_natural_gradient(geometry, energy, state, num_steps):
    """The last state and the result of the first step that failed, by the scheme alone."""
    scheme, energy = tw.Explicit(1.0), as_energy(energy)
    memory = scheme.init(energy, geometry, state, None)
    step = eqx.filter_jit(lambda s: scheme.step(energy, geometry, s, memory, None)[::2])
    for _ in range(num_steps):
        moved, info = step(state)
        if not bool(info.result == tw.RESULTS.successful):
            return state, info
        state = moved
    return state, info


@pytest.mark.parametrize("damping", [0.0, 1e-2], ids=["undamped", "damped"])
@pytest.mark.parametrize("name", FORMS)
def test_a_singular_fisher_matrix_is_solved_or_named_in_every_form(name, damping):
    # Two equal columns, and one of zeros: the last parameter changes nothing.
    outputs, start = jnp.arange(9.0) / 4, jnp.asarray([0.3, -0.2, 0.1, 0.4])
    state = tw.Parametric(start, L.Regression(lambda p, x: x @ p, LINE, L.Normal(1.0)))
    geometry = tw.FisherRao(damping, FORMS[name])
    # The gradient of a likelihood is in the range of the matrix, also where nothing but rounding is left of it.
    energy = tw.HalfDeviance(outputs)
    end, info = steps_of_natural_gradient(geometry, energy, state, 8)
    assert info.result == tw.RESULTS.successful
    best = np.asarray(LINE) @ np.linalg.lstsq(np.asarray(LINE), np.asarray(outputs), rcond=None)[0]
    np.testing.assert_allclose(energy(end), 0.5 * np.sum((best - outputs) ** 2), rtol=1e-12)
    # What changes nothing stays at rest, and equal columns share what is to be done.
    assert float(end.params[3]) == 0.4
    np.testing.assert_allclose(end.params[0] - end.params[2], 0.2, rtol=1e-9)

    # The gradient of a prior is not in the range: there is no direction of steepest descent.
    posterior = lambda s: 0.5 * jnp.sum(s.params**2) - s.family.log_density(s.params, outputs)  # noqa: E731
    end, info = steps_of_natural_gradient(geometry, posterior, state, 3)
    assert info.result == tw.RESULTS.unsolved_metric
    assert np.isfinite(info.dissipated)
    np.testing.assert_array_equal(end.params, start)


def test_conjugate_gradients_that_end_early_say_so():
    # A Fisher matrix of condition 1e6 with 60 eigenvalues, each of which takes a product or more.
    matrix = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(60, 60)))[0])
    inputs = (matrix * jnp.geomspace(1, 1e-3, 60)[None]) @ matrix.T
    state = tw.Parametric(jnp.zeros(60), L.Regression(lambda p, x: x @ p, inputs, L.Normal(1.0)))
    energy = tw.HalfDeviance(jnp.ones(60))

    def run(form):
        return steps_of_natural_gradient(tw.FisherRao(0.0, form), energy, state, 1)[1]

    # Ended by the number that was asked for: the residual is recorded.
    info = run(tw.MatrixFreeFisher(max_steps=5))
    assert info.result == tw.RESULTS.successful
    assert 1e-3 < float(info.stats["descent_residual"]) < 1
    # Ended by the number that it may take by itself: a named failure.
    info = run(tw.MatrixFreeFisher())
    assert info.result == tw.RESULTS.unsolved_metric
    assert float(info.stats["descent_residual"]) > 1e-6
    # The exact form has what its conditioning allows.
    info = run(tw.DenseFisher())
    assert info.result == tw.RESULTS.successful
    assert float(info.stats["descent_residual"]) < 1e-9
    with pytest.raises(ValueError, match="`max_steps` of `MatrixFreeFisher`"):
        tw.MatrixFreeFisher(max_steps=0)


def test_the_choice_of_a_form_is_written_in_the_path():
    state = tw.Parametric(jnp.zeros(3), L.Regression(lambda p, x: x @ p, INPUTS[:2], L.Normal(1.0)))
    options = {"geometry": tw.FisherRao(), "scheme": tw.Explicit(0.1), "num_steps": 1}
    paths = [run(tw.HalfDeviance(OUTCOMES[:2]), state, **options) for run in (tw.flow, tw.rollout)]
    for path in paths:
        assert path.stats["fisher matrix"].startswith("kernel: 2 observed numbers, 3 parameters, about")
        assert float(path.measurements["descent_residual"][-1]) < 1e-8
