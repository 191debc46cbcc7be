"""Geometries elsewhere (optax, optimistix), and optax transforms and schedules here, inside `Explicit`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import thalweg as tw
from thalweg import _loop, likelihoods

GRADIENT = jnp.asarray([3.0, -1.0, 0.5])
CURVATURES = jnp.asarray([1.0, 2.0, 5.0])
START = jnp.asarray([1.0, -2.0, 0.5])
MATRIX = jnp.asarray([[1.0, -0.4, 0.2], [0.3, 0.9, -0.7]])
NORMS = [tw.Euclidean(), tw.MaxNorm(), tw.OneNorm(), tw.PNorm(3.0), tw.Mahalanobis(jnp.diag(CURVATURES))]


def quadratic(x):
    return 0.5 * jnp.sum(CURVATURES * x**2)


def by_name(value):
    return type(value).__name__


def run_optax(transformation, params, num_steps, fn=quadratic):
    state, points = transformation.init(params), [params]
    for _ in range(num_steps):
        updates, state = transformation.update(jax.grad(fn)(params), state, params)
        params = optax.apply_updates(params, updates)
        points.append(params)
    return jnp.stack(points)


# --- Elsewhere: optax ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS, ids=by_name)
def test_the_update_of_a_unit_ball_has_length_one_and_no_direction_is_steeper(norm):
    up, _ = tw.scale_by_unit_ball(norm).update(GRADIENT, optax.EmptyState())
    np.testing.assert_allclose(norm.norm(up), 1, rtol=1e-12)
    slope = float(GRADIENT @ up)
    others = jax.random.normal(jax.random.key(0), (200, 3))
    steepest = max(float(GRADIENT @ u) / float(norm.norm(u)) for u in others)
    # It points up, as every `scale_by_...` of optax does.
    assert slope > 0
    assert steepest <= slope * (1 + 1e-12)
    # And the penalised direction is the same one, ‖g‖_* long.
    v, _ = tw.scale_by_geometry(norm).update(GRADIENT, optax.EmptyState())
    np.testing.assert_allclose(v, slope * up, rtol=1e-12)


def test_known_optimisers_are_geometries():
    step = lambda t: t.update(GRADIENT, t.init(GRADIENT), GRADIENT)[0]  # noqa: E731
    np.testing.assert_array_equal(step(tw.scale_by_unit_ball(tw.MaxNorm())), step(optax.scale_by_sign()))
    descent = tw.as_optax(tw.Euclidean(), tw.Explicit(0.1))
    np.testing.assert_allclose(step(descent), step(optax.sgd(0.1)), rtol=1e-15)
    normalised = tw.as_optax(tw.Euclidean(), tw.Constrained(0.1))
    np.testing.assert_allclose(step(normalised), -0.1 * GRADIENT / jnp.linalg.norm(GRADIENT), rtol=1e-14)
    np.testing.assert_array_equal(tw.scale_by_unit_ball(tw.PNorm(3.0)).update(0 * GRADIENT, ())[0], 0 * GRADIENT)


def test_muon_is_steepest_descent_in_the_spectral_norm_of_the_momentum(standard_promotion):
    ours = optax.chain(optax.trace(0.95, nesterov=True), tw.scale_by_unit_ball(tw.SpectralNorm()))
    polar, _ = ours.update(MATRIX, ours.init(MATRIX))

    def muon(coefficients, steps):
        theirs = optax.contrib.scale_by_muon(ns_coeffs=coefficients, ns_steps=steps, beta=0.95, nesterov=True)
        return theirs.update(MATRIX, theirs.init(MATRIX))[0]

    # By coefficients whose iteration converges, f(1) = 1 and f'(1) = 0, Newton–Schulz reaches the polar factor.
    np.testing.assert_allclose(muon((2.0, -1.5, 0.5), 30), polar, atol=1e-9)
    # By its own coefficients the singular values end between 0.68 and 1.14 (the range of that iteration): its gap.
    gap = float(jnp.linalg.norm(muon((3.4445, -4.7750, 2.0315), 5) - polar, ord=2))
    assert 1e-3 < gap < 0.33
    # `Explicit` takes the same direction with length ‖T(ξ)‖_nuc.
    path_step = tw.as_optax(tw.SpectralNorm(), tw.Explicit(1.0, transform=optax.trace(0.95, nesterov=True)))
    update, _ = path_step.update(MATRIX, path_step.init(MATRIX), MATRIX)
    nuclear = jnp.sum(jnp.linalg.svd((1 + 0.95) * MATRIX, compute_uv=False))
    np.testing.assert_allclose(update, -nuclear * polar, rtol=1e-12)


def test_a_chain_of_optax_and_our_flow_take_the_same_path():
    schedule = optax.exponential_decay(0.1, 5, 0.7)
    norm, momentum = tw.PNorm(3.0), optax.trace(0.8)
    with jax.numpy_dtype_promotion("standard"):
        chain = optax.chain(momentum, tw.scale_by_geometry(norm), optax.scale_by_learning_rate(schedule))
        chained = run_optax(chain, START, 8)
    scheme = tw.Explicit(schedule, transform=momentum)
    whole = run_optax(tw.as_optax(norm, scheme), START, 8)
    path = tw.flow(quadratic, START, geometry=norm, scheme=scheme, num_steps=8)
    # optax counts in int32 and so has its schedule in float32.
    np.testing.assert_allclose(path.states, chained, rtol=1e-6)
    np.testing.assert_allclose(whole, path.states, rtol=1e-12)
    with jax.numpy_dtype_promotion("standard"):
        steps = [float(schedule(jnp.asarray(k))) for k in range(8)]
    np.testing.assert_allclose(path.times, np.concatenate([[0], np.cumsum(steps)]), rtol=1e-12)


def test_a_curved_geometry_moves_along_its_curve_and_a_chain_along_the_tangent():
    # A step that is too long along the tangent leaves the covariances; along the curve it does not.
    gaussian = tw.Gaussian(jnp.zeros(2), jnp.asarray([[1.0, 0.2], [0.2, 0.5]]))
    energy = tw.PotentialEnergy(lambda x: 2.0 * jnp.sum(x**2))
    gradient = jax.grad(energy)(gaussian)
    curved = tw.as_optax(tw.FisherRao(), tw.Explicit(1.0))
    updates, _ = curved.update(gradient, curved.init(gaussian), gaussian)
    moved = optax.apply_updates(gaussian, updates)
    expected = tw.flow(energy, gaussian, geometry=tw.FisherRao(), scheme=tw.Explicit(1.0), num_steps=1).final.state
    np.testing.assert_allclose(moved.covariance, expected.covariance, rtol=1e-12, atol=1e-15)
    assert np.all(np.linalg.eigvalsh(moved.covariance) > 0)
    straight = tw.scale_by_geometry(tw.FisherRao())
    up, _ = straight.update(gradient, straight.init(gaussian), gaussian)
    assert np.any(np.linalg.eigvalsh(gaussian.covariance - up.covariance) < 0)


def test_a_natural_gradient_step_is_the_same_here_and_in_optax():
    params, outcomes = {"logits": jnp.asarray([0.3, -0.8, 0.4])}, {"logits": jnp.asarray([1.0, 0.0, 1.0])}
    family = likelihoods.Bernoulli()
    at = lambda params: tw.Parametric(params["logits"], family)  # noqa: E731
    energy = tw.NegativeLogLikelihood(outcomes["logits"])
    gradient = jax.grad(lambda p: energy(at(p)))(params)
    natural = tw.as_optax(tw.FisherRao(), tw.Explicit(0.3), at=at)
    updates, _ = natural.update(gradient, natural.init(params), params)
    path = tw.flow(energy, at(params), geometry=tw.FisherRao(), scheme=tw.Explicit(0.3), num_steps=1)
    np.testing.assert_allclose(params["logits"] + updates["logits"], path.final.state.params, rtol=1e-12)
    descent = tw.ExplicitDescent(tw.FisherRao(), at)
    info = optx.FunctionInfo.EvalGrad(jnp.zeros(()), gradient)
    step, _ = descent.step(jnp.asarray(0.3), descent.query(params, info, descent.init(params, info)))
    np.testing.assert_allclose(step["logits"], updates["logits"], rtol=1e-12)


def test_gradients_of_weighted_particles_are_divided_by_their_weights():
    particles = tw.Particles(jnp.asarray([[1.0], [2.0], [-1.0]]), log_weights=jnp.log(jnp.asarray([0.2, 0.5, 0.3])))
    energy = tw.PotentialEnergy(lambda x: jnp.sum(x**3))
    gradient = jax.grad(energy)(particles)
    up, _ = tw.scale_by_geometry(tw.Wasserstein()).update(gradient, optax.EmptyState(), particles)
    np.testing.assert_allclose(up.positions, 3 * particles.positions**2, rtol=1e-12)


# --- Elsewhere: optimistix ----------------------------------------------------------------------------------------


def slope_and_length(descent, norm):
    info = optx.FunctionInfo.EvalGrad(jnp.zeros(()), GRADIENT)
    step, result = descent.step(jnp.asarray(1.0), descent.query(START, info, descent.init(START, info)))
    assert result == optx.RESULTS.successful
    return float(GRADIENT @ step), float(norm(step))


def test_descent_in_the_maximum_norm_reaches_the_slope_that_optimistix_does_not():
    ours = slope_and_length(tw.ConstrainedDescent(tw.MaxNorm()), optx.max_norm)
    theirs = slope_and_length(optx.SteepestDescent(norm=optx.max_norm), optx.max_norm)
    np.testing.assert_allclose(ours, (-4.5, 1.0), rtol=1e-14)
    # −(9 + 1 + 1/4)/3: the Euclidean direction, made as long as the norm allows.
    np.testing.assert_allclose(theirs, (-10.25 / 3, 1.0), rtol=1e-14)
    # The penalised step: slope −‖g‖_*², length ‖g‖_*.
    penalised = slope_and_length(tw.ExplicitDescent(tw.MaxNorm()), optx.max_norm)
    np.testing.assert_allclose(penalised, (-(4.5**2), 4.5), rtol=1e-14)


class TrustRegion(optx.AbstractBFGS):
    """BFGS's Hessian used only to judge the steps."""

    rtol: float
    atol: float
    norm: object
    use_inverse: bool
    descent: object
    search: object
    verbose: object


@pytest.mark.parametrize("kind", ["backtracking", "linear trust region", "classical trust region"])
def test_the_searches_of_optimistix_drive_our_descents_to_the_minimum(kind):
    def fn(x, _):
        return quadratic(x - 1) + jnp.sum(x**4)

    minimiser = {
        "backtracking": tw.GeometricDescent(tw.MaxNorm(), 1e-10, 1e-10),
        "linear trust region": tw.GeometricDescent(tw.PNorm(3.0), 1e-10, 1e-10, search=optx.LinearTrustRegion()),
        "classical trust region": TrustRegion(
            1e-10,
            1e-10,
            optx.max_norm,
            False,
            tw.ConstrainedDescent(tw.MaxNorm()),
            optx.ClassicalTrustRegion(),
            lambda *told, **more: None,
        ),
    }[kind]
    solution = optx.minimise(fn, minimiser, START, max_steps=1000)
    # The gradient 4x³ + c(x − 1) vanishes; the last change of f was 1e-10, so that of x is a few 1e-6.
    np.testing.assert_allclose(4 * solution.value**3 + CURVATURES * (solution.value - 1), 0, atol=1e-4)


def test_a_descent_takes_the_gradient_of_least_squares_and_asks_for_one_where_there_is_none():
    import lineax

    jacobian = jnp.asarray([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
    info = optx.FunctionInfo.ResidualJac(jnp.asarray([1.0, 3.0]), lineax.MatrixLinearOperator(jacobian))
    descent = tw.ExplicitDescent(tw.Euclidean())
    state = descent.init(START, info)
    step, _ = descent.step(jnp.asarray(1.0), descent.query(START, info, state))
    np.testing.assert_allclose(step, -jacobian.T @ jnp.asarray([1.0, 3.0]), rtol=1e-14)
    with pytest.raises(ValueError, match="needs gradients"):
        descent.query(START, optx.FunctionInfo.Eval(jnp.zeros(())), state)


# --- Here: transforms and schedules in Explicit -------------------------------------------------------------------


def test_momentum_in_explicit_is_that_of_optax_and_what_is_dissipated_is_what_the_direction_promises():
    path = tw.flow(
        quadratic,
        START,
        geometry=tw.Euclidean(),
        scheme=tw.Explicit(0.05, transform=optax.trace(0.9)),
        num_steps=40,
    )
    np.testing.assert_allclose(path.states, run_optax(optax.sgd(0.05, 0.9), START, 40), rtol=1e-11, atol=1e-14)
    gradients = CURVATURES[None] * path.states[:-1]
    promised = -jnp.sum(gradients * jnp.diff(path.states, axis=0), axis=1)
    np.testing.assert_allclose(jnp.diff(path.records["dissipated"]), promised, rtol=1e-9, atol=1e-12)
    # It really climbs at times, and says so.
    assert float(jnp.min(promised)) < -0.1
    assert float(jnp.max(jnp.diff(path.energies))) > 0.05
    # The rates are those of the energy, whatever drives the steps.
    np.testing.assert_allclose(
        path.dissipation_rates, jnp.sum((CURVATURES[None] * path.states) ** 2, axis=1), rtol=1e-12
    )


def test_a_final_time_is_hit_by_a_schedule_and_missed_by_name_where_the_schedule_ends_before():
    options = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(optax.linear_schedule(0.2, 0.0, 10))}
    path = tw.flow(quadratic, START, final_time=0.9, **options)
    assert float(path.times[-1]) == 0.9
    # 0.2 · (10 + 9 + … + 1)/10 = 1.1 is all that the schedule gives.
    short = tw.flow(quadratic, START, final_time=1.5, throw=False, **options)
    assert short.result == tw.RESULTS.unusable_step_size
    np.testing.assert_allclose(short.times[-1], 1.1, rtol=1e-12)
    # Where steps are counted, it may end at zero.
    assert tw.flow(quadratic, START, num_steps=12, **options).result == tw.RESULTS.successful


def test_steps_with_schedule_and_transform_are_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: 3)
    scheme = tw.Explicit(optax.cosine_decay_schedule(0.2, 20), transform=optax.scale_by_adam())
    options = {"geometry": tw.MaxNorm(), "scheme": scheme, "save_every": 2}
    whole = tw.flow(quadratic, START, num_steps=9, **options)
    store = tw.Checkpoint(tmp_path, every_seconds=0.0)
    tw.flow(quadratic, START, num_steps=4, checkpoint=store, **options)
    resumed = tw.flow(quadratic, START, num_steps=9, checkpoint=store, **options)
    for a, b in zip(jax.tree.leaves(resumed.final), jax.tree.leaves(whole.final), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(resumed.states, whole.states)
    assert int(whole.final.memory.count) == 9
    # A path on disk keeps the memory too: it holds arrays, not the classes of optax.
    whole.save(tmp_path / "path.npz")
    loaded = tw.load(tmp_path / "path.npz").final.memory
    np.testing.assert_array_equal(loaded.transform[1], whole.final.memory.transform[1])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: tw.Explicit(0.1, transform=0.9), "must be an `optax.GradientTransformation`"),
        (lambda: tw.Explicit(0.1, transform=optax.trace), "must be an `optax.GradientTransformation`"),
        (lambda: tw.Explicit(tw.Backtracking(), transform=optax.trace(0.9)), "asks that the energy falls"),
        (lambda: tw.Explicit(0.1, transform=optax.adam(1e-3)), "turns the sign of the gradient"),
        (lambda: tw.Explicit(0.1, transform=optax.stateless(lambda g, p: g[:2])), "of the shapes that it is given"),
        (lambda: tw.Explicit(0.1, transform=optax.stateless(lambda g, p: g["a"])), "failed when it was tried"),
        (lambda: tw.Explicit(lambda count: 0.5 - 0.1 * count), "not negative; after 6 steps it is"),
        (lambda: tw.Explicit(lambda count: jnp.ones(2)), "must return one real number"),
        (lambda: tw.Explicit(lambda count: count), "must return one real number"),
        (lambda: tw.Explicit(lambda: 0.1), "failed for a step count"),
        (lambda: tw.Explicit(lambda count: jnp.sqrt(10.0 - count)), "must be finite"),
    ],
    ids=[
        "number",
        "function",
        "line search",
        "whole optimiser",
        "other shapes",
        "other keys",
        "negative",
        "vector",
        "integer",
        "no argument",
        "nan",
    ],
)
def test_what_is_no_transform_or_schedule_is_named_before_it_runs(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        tw.flow(quadratic, START, geometry=tw.Euclidean(), scheme=make(), num_steps=1)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_schedule_that_turns_negative_unseen_stops_the_run_by_name():
    # Not looked at beforehand: between the first thousand steps and the powers of two.
    schedule = lambda count: jnp.where(count == 1500, -1.0, 1e-3)  # noqa: E731
    path = tw.flow(
        quadratic,
        START,
        geometry=tw.Euclidean(),
        scheme=tw.Explicit(schedule),
        num_steps=1600,
        save_every=500,
        throw=False,
    )
    assert path.result == tw.RESULTS.unusable_step_size
    assert int(path.final.num_steps) == 1500


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda: tw.scale_by_geometry("max"), TypeError, "geometry"),
        (lambda: tw.GeometricDescent(tw.MaxNorm, 1e-6, 1e-6), TypeError, "geometry"),
        (lambda: tw.as_optax(tw.MaxNorm(), tw.Proximal(0.1)), tw.UnsupportedCombination, "one gradient a step"),
        (lambda: tw.as_optax(tw.MaxNorm(), tw.Explicit(tw.Backtracking())), tw.UnsupportedCombination, "one gradient"),
        (lambda: tw.scale_by_geometry(tw.FisherRao()).init(START), tw.UnsupportedCombination, "no metric"),
        (lambda: tw.scale_by_geometry(tw.FisherRao()).update(START, ()), ValueError, "needs the parameters"),
        (
            lambda: tw.scale_by_geometry(tw.MaxNorm(), at=lambda p: p[:2]).init(START),
            ValueError,
            "moves by the same numbers",
        ),
        (
            lambda: tw.as_optax(tw.MaxNorm(), tw.Explicit(0.1, transform=optax.trace(0.9))).update(START, None),
            ValueError,
            "may need the parameters",
        ),
    ],
    ids=["text", "class", "proximal", "backtracking", "vector", "no params", "other shapes", "transform alone"],
)
def test_what_does_not_fit_elsewhere_is_named(call, error, complaint):
    with pytest.raises(error, match=complaint) as caught:
        call()
    # The check of types in the tests says it first, and longer.
    assert error is TypeError or len(str(caught.value).splitlines()) <= 5
