"""Linearly implicit steps and tw.minimise, against closed forms and known minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

RNG = np.random.default_rng(5)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rotated(values):
    basis = np.linalg.qr(RNG.normal(size=(len(values), len(values))))[0]
    return jnp.asarray(basis @ np.diag(values) @ basis.T)


def test_on_a_quadratic_a_step_is_the_proximal_step():
    matrix, start = rotated([0.5, 2.0, 30.0]), jnp.asarray([1.0, -2.0, 0.5])
    gram = rotated([1.0, 2.0, 5.0])
    energy = lambda x: 0.5 * x @ matrix @ x - x[0]  # noqa: E731
    scheme, alpha = tw.LinearlyImplicit(0.3), 0.3
    for geometry, g in ((tw.Euclidean(), jnp.eye(3)), (tw.Mahalanobis(gram), gram)):
        path = tw.flow(energy, start, geometry=geometry, scheme=scheme, num_steps=1)
        expected = start - jnp.linalg.solve(g / alpha + matrix, matrix @ start - jnp.eye(3)[0])
        np.testing.assert_allclose(path.final.state, expected, rtol=1e-12)
        np.testing.assert_allclose(path.final.time, alpha, rtol=1e-14)
        displacement = expected - start
        np.testing.assert_allclose(path.distances_squared[-1], displacement @ g @ displacement, rtol=1e-10)


def test_with_a_limit_it_is_the_flow_to_first_order():
    energy = lambda x: 0.25 * jnp.sum(x**4) + 0.5 * (x[0] - x[1]) ** 2  # noqa: E731
    start, errors = jnp.asarray([1.5, -0.5]), []
    exact = tw.flow(energy, start, geometry=tw.Euclidean(), scheme=tw.Continuous(1.0), final_time=1.0).final.state
    for alpha in (0.02, 0.01):
        path = tw.flow(energy, start, geometry=tw.Euclidean(), scheme=tw.LinearlyImplicit(alpha), final_time=1.0)
        assert float(path.final.time) == 1.0
        errors.append(float(jnp.linalg.norm(path.final.state - exact)))
    assert 0.9 < np.log2(errors[0] / errors[1]) < 1.1


def test_near_a_saddle_a_limited_step_follows_the_flow():
    energy = lambda x: 0.5 * (x[0] ** 2 - x[1] ** 2)  # noqa: E731
    scheme, start = tw.LinearlyImplicit(0.01), jnp.asarray([1.0, 1e-3])
    path = tw.flow(energy, start, geometry=tw.Euclidean(), scheme=scheme, final_time=1.0)
    # Linearly implicit Euler on each eigendirection, (1 + αλ)^{-100}; the rule for the radius may cut a step.
    np.testing.assert_allclose(path.final.state, [1.01**-100, 1e-3 * 0.99**-100], rtol=1e-6)


def test_an_estimate_that_has_not_converged_makes_no_minimum():
    curvatures = jnp.logspace(-6, 6, 2000).at[1000].set(-1e-3)
    found = tw.stationary_point(lambda x: 0.5 * jnp.sum(curvatures * x**2), jnp.zeros(2000))
    assert found.estimated
    assert not found.is_minimum
    plain = tw.stationary_point(lambda x: jnp.sum(jnp.linspace(1.0, 5.0, 2000) * x**2), jnp.zeros(2000))
    assert plain.is_minimum


def test_the_unit_of_the_energy_does_not_matter_without_a_learnt_scale():
    start = jnp.asarray([-1.2, 1.0], jnp.float32)
    for unit in (1.0, 1e-15):
        path = tw.flow(
            lambda x, unit=unit: unit * rosenbrock(x),
            start,
            geometry=tw.Euclidean(),
            scheme=tw.LinearlyImplicit(),
            num_steps=60,
        )
        np.testing.assert_allclose(path.final.state, 1.0, atol=1e-3)


def test_the_energy_never_rises_and_the_end_is_quadratic():
    path = tw.minimise(rosenbrock, jnp.asarray([-1.2, 1.0, -0.5]))
    assert bool(path.result == tw.RESULTS.minimum), path.message
    assert np.all(np.diff(path.energies) <= 0)
    errors = np.linalg.norm(np.asarray(path.states) - 1, axis=1)
    late = [i for i in range(1, len(errors)) if 1e-7 < errors[i - 1] < 1e-2]
    assert late
    # Newton's constant is about |f‴|/(2 λ_min), some hundreds here, where the step is not limited any more.
    assert all(errors[i] <= 1e3 * errors[i - 1] ** 2 for i in late)
    assert errors[-1] < 1e-12


def test_units_do_not_matter():
    scale = jnp.asarray([1e-6, 1e5, 1e3])
    plain = tw.minimise(rosenbrock, jnp.asarray([-1.2, 1.0, -0.5]))
    scaled = tw.minimise(lambda x: 1e-7 * rosenbrock(x / scale), jnp.asarray([-1.2, 1.0, -0.5]) * scale)
    assert bool(scaled.result == tw.RESULTS.minimum)
    np.testing.assert_allclose(scaled.final.state / scale, 1.0, atol=1e-9)
    # The very same path, but for rounding.
    assert abs(int(plain.final.num_steps) - int(scaled.final.num_steps)) <= 1


def test_pytrees_are_minimised_leaf_by_leaf():
    fn = lambda p: jnp.sum((p["a"] - 2) ** 4) + jnp.exp(p["b"]) - p["b"]  # noqa: E731
    path = tw.minimise(fn, {"a": jnp.zeros((2, 2)), "b": jnp.asarray(3.0)})
    # The quartic part (a − 2)⁴ is lost in the rounding of f = 1 below 1e-4.
    np.testing.assert_allclose(path.final.state["a"], 2.0, atol=1e-3)
    np.testing.assert_allclose(path.final.state["b"], 0.0, atol=1e-10)


def test_a_saddle_is_left_and_a_flat_point_is_named():
    saddle = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4  # noqa: E731
    path = tw.minimise(saddle, jnp.zeros(2))
    assert bool(path.result == tw.RESULTS.minimum)
    np.testing.assert_allclose(abs(path.final.state[1]), np.sqrt(0.5), atol=1e-9)

    valley = tw.minimise(lambda x: (x[0] * x[0] + x[1] * x[1] - 1) ** 2, jnp.asarray([2.0, 1.0]))
    assert bool(valley.result == tw.RESULTS.flat_point), valley.message


def test_many_unknowns_go_by_products_alone():
    weights = jnp.asarray(10.0 ** RNG.uniform(-3, 3, 400))
    target = jnp.asarray(RNG.normal(size=400))
    fn = lambda x: jnp.sum(weights * (jnp.cosh(x - target) - 1))  # noqa: E731
    path = tw.minimise(fn, jnp.zeros(400), num_steps=60)
    assert path.stats["solver"] == "Krylov"
    assert bool(path.result == tw.RESULTS.minimum), path.message
    np.testing.assert_allclose(path.final.state, target, atol=1e-7)


def test_the_krylov_space_of_full_size_takes_the_dense_step():
    start = jnp.asarray([-1.2, 1.0, -0.5, 0.7])
    options = {"geometry": tw.Euclidean(), "num_steps": 3}
    dense = tw.flow(rosenbrock, start, scheme=tw.LinearlyImplicit(solver=tw.DenseSpectrum()), **options)
    krylov = tw.flow(rosenbrock, start, scheme=tw.LinearlyImplicit(solver=tw.Krylov(8)), **options)
    # Where the Hessian is indefinite the space is the whole space; else it ends when the linear system is solved to a
    # tenth, and the step is another one.
    np.testing.assert_allclose(krylov.energies[:3], dense.energies[:3], rtol=1e-9)
    assert float(krylov.energies[3]) < 0.2 * float(krylov.energies[2])


def test_bounds_hold_exactly_and_the_rest_is_at_rest():
    path = tw.minimise(rosenbrock, jnp.asarray([-1.2, 0.3]), upper=jnp.asarray([0.5, jnp.inf]))
    np.testing.assert_allclose(path.final.state, [0.5, 0.25], atol=1e-9)
    sparse = tw.minimise(lambda x: 0.5 * jnp.sum((x - jnp.asarray([2.0, 0.05])) ** 2), jnp.ones(2), plus=tw.L1(0.1))
    np.testing.assert_allclose(sparse.final.state, [1.9, 0.0], atol=1e-10)


def test_a_penalty_that_is_part_of_the_function_is_a_penalty_all_the_same():
    bowl = tw.as_energy(lambda x: 0.5 * jnp.sum((x - jnp.asarray([2.0, 0.05])) ** 2))
    for fn in (bowl + tw.L1(0.1), tw.L1(0.1) + bowl, 0.5 * (2.0 * bowl + 0.2 * tw.L1(1.0))):
        path = tw.minimise(fn, jnp.ones(2))
        assert path.result == tw.RESULTS.minimum
        np.testing.assert_allclose(path.final.state, [1.9, 0.0], atol=1e-10)
    bounded = tw.minimise(bowl + tw.L1(0.1), jnp.ones(2), upper=1.5)
    np.testing.assert_allclose(bounded.final.state, [1.5, 0.0], atol=1e-10)


@pytest.mark.parametrize(
    ("fn", "x0", "words"),
    [
        (lambda x: x, jnp.ones(2), "`energy`"),
        (lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2), "not finite"),
        (lambda x: jnp.sum(jnp.abs(x) ** 2), jnp.ones(2, complex), "real floating"),
        (lambda x: jnp.sum(x**2), jnp.ones(2, int), "real floating"),
        (lambda x: 0.0, {}, "empty"),
    ],
    ids=["not scalar", "not finite", "complex", "integers", "empty"],
)
def test_bad_input_is_refused_in_few_lines(fn, x0, words):
    with pytest.raises(ValueError, match=words) as caught:
        tw.minimise(fn, x0)
    assert len(str(caught.value).splitlines()) <= 5


def test_bounds_that_cross_are_refused():
    with pytest.raises(ValueError, match="lower"):
        tw.minimise(rosenbrock, jnp.zeros(2), lower=1.0, upper=0.0)


def test_a_norm_without_an_inner_product_is_refused():
    why = tw.why_unsupported(rosenbrock, jnp.zeros(2), geometry=tw.MaxNorm(), scheme=tw.LinearlyImplicit())
    assert why is not None
    assert "inner product" in why


@pytest.mark.parametrize(
    ("fn", "kind", "smallest"),
    [
        (lambda x: 1e-9 * x[0] ** 2 + 1e9 * x[1] ** 2, "minimum", 2e-9),
        (lambda x: x[0] * x[1], "saddle", -1.0),
        (lambda x: x[0] ** 2 + x[1] ** 4, "flat", 0.0),
        (lambda x: -jnp.sum(x**2), "saddle", -2.0),
    ],
    ids=["badly scaled", "saddle", "quartic", "maximum"],
)
def test_the_kind_of_a_stationary_point(fn, kind, smallest):
    found = tw.stationary_point(fn, jnp.zeros(2))
    assert found.kind == kind
    np.testing.assert_allclose(found.smallest_curvature, smallest, rtol=1e-6, atol=1e-15)


def test_curvature_is_measured_in_the_geometry():
    found = tw.stationary_point(
        lambda x: x[0] ** 2 + 3 * x[1] ** 2, jnp.zeros(2), geometry=tw.Mahalanobis(jnp.diag(jnp.asarray([4.0, 1.0])))
    )
    np.testing.assert_allclose(found.smallest_curvature, 0.5, rtol=1e-12)


def test_fit_reaches_a_zero_misfit_that_a_constant_would_hide():
    inputs = jnp.linspace(0.0, 3.0, 30)
    model = lambda p, x: p["a"] * jnp.exp(-p["b"] * x) + p["c"]  # noqa: E731
    truth = {"a": jnp.asarray(2.0), "b": jnp.asarray(1.5), "c": jnp.asarray(-0.3)}
    start = jax.tree.map(jnp.ones_like, truth)
    path = tw.fit(model, inputs, model(truth, inputs), start)
    assert bool(path.result == tw.RESULTS.minimum), path.message
    for name, value in truth.items():
        np.testing.assert_allclose(path.final.state.params[name], value, rtol=1e-12)
    assert float(path.energies[-1]) < 1e-25


def test_fit_of_counts_is_fishers_scoring():
    inputs = jnp.asarray(RNG.normal(size=(200, 3)))
    outputs = jnp.asarray(RNG.poisson(np.exp(np.asarray(inputs) @ [0.5, -0.2, 0.1])), float)
    path = tw.fit(lambda p, x: x @ p, inputs, outputs, jnp.zeros(3), likelihood=tw.likelihoods.Poisson())
    residual = inputs.T @ (jnp.exp(inputs @ path.final.state.params) - outputs)
    # The score equations of a generalised linear model, relative to a sum of 200 terms.
    assert float(jnp.max(jnp.abs(residual))) < 1e-9


@pytest.mark.parametrize("dataset", ["Lanczos3", "ENSO"])
def test_fit_goes_on_where_the_rounding_of_the_misfit_hides_its_decrease(dataset):
    # Lanczos3: outputs of 2 with residuals of 1e-5, so the misfit has rounding errors of 1e-11 of itself. ENSO: a large
    # misfit, where convergence is linear. Both certified to 11 digits.
    problem = tw.problems.nist_regression(dataset)
    path = tw.fit(problem.model, problem.inputs, problem.outputs, problem.starts[1])
    assert bool(path.result == tw.RESULTS.minimum), path.message
    assert float(problem.log_relative_error(path.final.state.params)) > 9
