"""Geometries against closed forms: operator norms by their definition, mirror descent, its flow and its proximal step,
conventions at ties and zeros, float32, and what is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

_G = jnp.asarray([[1.1, -0.4, 0.3], [0.2, 0.9, -0.7]])


@pytest.mark.parametrize(
    ("geometry", "slope"),
    [(tw.MaxNorm(), -4.5), (tw.OneNorm(), -3.0), (tw.Euclidean(), -np.sqrt(10.25))],
    ids=["maximum", "one", "euclidean"],
)
def test_unit_steps_reach_the_steepest_slope_of_their_norm(geometry, slope):
    # The example of the issue: a Euclidean direction, rescaled to the maximum norm, reaches −3.42 only.
    g = jnp.asarray([3.0, -1.0, 0.5])
    np.testing.assert_allclose(jnp.sum(g * geometry.lmo(g)), slope, rtol=1e-14)


def _rms(x):
    return np.sqrt(np.mean(x**2))


@pytest.mark.parametrize(
    ("norm", "inner", "outer", "vertices"),
    [
        (tw.OneToTwoNorm(), lambda x: np.sum(np.abs(x)), np.linalg.norm, np.eye(3)),
        (tw.OneToRMSNorm(), lambda x: np.sum(np.abs(x)), _rms, np.eye(3)),
        # The best input for an output in the maximum norm is along the row itself.
        (tw.RMSToMaxNorm(), _rms, lambda y: np.max(np.abs(y)), np.asarray(_G)),
        (tw.RMSToRMSNorm(), _rms, _rms, np.linalg.svd(np.asarray(_G))[2]),
        (tw.SpectralNorm(), np.linalg.norm, np.linalg.norm, np.linalg.svd(np.asarray(_G))[2]),
    ],
    ids=["l1 to l2", "l1 to rms", "rms to linf", "rms to rms", "spectral"],
)
def test_operator_norms_are_the_largest_stretch(norm, inner, outer, vertices):
    matrix = np.asarray(_G)
    value = float(norm.norm(_G))
    inputs = np.random.default_rng(0).normal(size=(2000, 3))
    stretches = [outer(matrix @ x) / inner(x) for x in inputs]
    assert max(stretches) <= value * (1 + 1e-12)
    np.testing.assert_allclose(max(outer(matrix @ x) / inner(x) for x in vertices), value, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_norms_of_singular_values_of_one_row_or_column_are_its_length(shape):
    v = jnp.arange(1.0, 6.0).reshape(shape)
    length = np.sqrt(55.0)
    for norm in (tw.SpectralNorm(), tw.SpectralNorm(tw.NewtonSchulz()), tw.NuclearNorm(), tw.SchattenNorm(3.0)):
        np.testing.assert_allclose([norm.norm(v), norm.dual_norm(v)], length, rtol=1e-12)
        np.testing.assert_allclose(norm.descent(v), -v, rtol=1e-12)


def test_ties_take_the_first_and_zeros_stay_at_rest():
    tied = jnp.asarray([0.7, -0.7, 0.0])
    np.testing.assert_array_equal(tw.OneNorm().lmo(tied), [-1, 0, 0])
    np.testing.assert_array_equal(tw.MaxNorm().lmo(tied), [-1, 1, 0])
    columns = jnp.asarray([[0.0, 3.0, 0.0], [5.0, 4.0, 0.0]])
    np.testing.assert_allclose(tw.GroupNorm().lmo(columns), [[0, 0, 0], [-1, 0, 0]], atol=1e-16)
    np.testing.assert_allclose(tw.OneToTwoNorm().lmo(columns), [[0, -0.6, 0], [-1, -0.8, 0]], rtol=1e-14)
    # A zero singular value: the null space stays at rest, also where rounding made it non-zero.
    rank_one = jnp.outer(jnp.asarray([0.6, 0.8]), jnp.asarray([2.0, 0.0, 1.5]))
    np.testing.assert_allclose(tw.SpectralNorm().lmo(rank_one), -rank_one / 2.5, atol=1e-14)
    # The sum moves the first of two equal parts, the maximum both.
    tree = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([5.0])}
    norms = {"a": tw.Euclidean(), "b": tw.Euclidean()}
    np.testing.assert_allclose(jnp.concatenate(jax.tree.leaves(tw.SumProduct(norms).lmo(tree))), [-0.6, -0.8, 0])
    np.testing.assert_allclose(jnp.concatenate(jax.tree.leaves(tw.MaxProduct(norms).lmo(tree))), [-0.6, -0.8, -1])


def test_newton_schulz_reports_a_gap_that_bounds_its_true_one():
    left, right = (np.linalg.qr(np.random.default_rng(i).normal(size=(8, 8)))[0] for i in (1, 2))
    singular = np.geomspace(1, 1e-5, 8)
    g = jnp.asarray((left * singular) @ right)
    for steps in (6, 8, 12):
        polar = tw.NewtonSchulz(num_steps=steps)
        unit = -tw.SpectralNorm(polar).polar.factor(g)
        missed = 1 + float(jnp.sum(g * unit)) / singular.sum()
        excess = abs(np.linalg.norm(unit, 2) - 1)
        told = polar.gap(g)
        assert 1e-14 < missed <= float(told.alignment) + 1e-14
        assert excess <= float(told.excess) + 1e-14
        assert np.linalg.norm(unit, 2) <= 1 + 1e-14
    # With enough steps the gap is what lies below `smallest`, here three singular values of 2e-4 and less.
    assert missed < 1e-3
    exact = tw.PolarBySVD().gap(g)
    assert float(exact.alignment) == float(exact.excess) == 0
    np.testing.assert_allclose(tw.NewtonSchulz().largest(g), 1, rtol=1e-13)


def test_the_polar_factor_has_a_derivative_where_singular_vectors_have_none():
    # d/dt of the polar factor of I + tA: the antisymmetric part of A.
    turn = jnp.asarray([[0.3, 1.2, 0.1], [-0.5, 0.2, 0.4], [0.7, 0.0, -0.1]])
    _, rate = jax.jvp(tw.PolarBySVD().factor, (jnp.eye(3),), (turn,))
    np.testing.assert_allclose(rate, 0.5 * (turn - turn.T), atol=1e-14)
    wide = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)))
    move = jnp.asarray(np.random.default_rng(4).normal(size=(2, 3)))
    _, rate = jax.jvp(tw.PolarBySVD().factor, (wide,), (move,))
    h = 1e-5
    difference = (tw.PolarBySVD().factor(wide + h * move) - tw.PolarBySVD().factor(wide - h * move)) / (2 * h)
    np.testing.assert_allclose(rate, difference, atol=1e-8)


_SINGLE = {
    "vector": ([tw.Euclidean(), tw.OneNorm(), tw.MaxNorm(), tw.PNorm(3.0), tw.Mahalanobis(jnp.eye(3))], _G[0]),
    "matrix": (
        [
            tw.SpectralNorm(),
            tw.SpectralNorm(tw.NewtonSchulz()),
            tw.NuclearNorm(),
            tw.SchattenNorm(1.5),
            tw.GroupNorm(),
            tw.OneToTwoNorm(),
            tw.OneToRMSNorm(),
            tw.RMSToMaxNorm(),
            tw.RMSToRMSNorm(),
            tw.MaxProduct(tw.SpectralNorm(), 2.0),
            tw.EuclideanProduct(tw.FrobeniusNorm(), 3.0),
        ],
        _G,
    ),
}


@pytest.mark.parametrize("kind", _SINGLE)
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_oracles_keep_float32_and_any_size_of_gradient(kind, size):
    norms, gradient = _SINGLE[kind]
    g = gradient.astype(jnp.float32) * jnp.float32(size)
    for norm in norms:
        unit, dual = norm.lmo(g), norm.dual_norm(g)
        assert unit.dtype == dual.dtype == jnp.float32
        np.testing.assert_allclose(norm.norm(unit), 1, rtol=1e-5)
        if size == 1:
            np.testing.assert_allclose(jnp.sum(unit * g), -dual, rtol=1e-5)
            assert norm.descent(g).dtype == jnp.float32


# A linear energy: mirror descent is then exact, whatever its steps, and so are its flow and its proximal step.
_SLOPE = jnp.asarray([0.7, -0.4, 0.3])
_PROBABLE = jnp.asarray([0.2, 0.5, 0.3])


def _linear(x):
    return jnp.sum(_SLOPE * x)


def _on_simplex(time):
    grown = _PROBABLE * jnp.exp(-time * _SLOPE)
    return grown / jnp.sum(grown)


# Each scheme with its tolerance; that of the flow is the ODE solver's.
_EXPLICIT, _PROXIMAL, _CONTINUOUS = (tw.Explicit(0.2), 1e-12), (tw.Proximal(0.2), 1e-9), (tw.Continuous(0.4), 1e-7)
_X_LOG_X = tw.Legendre(lambda x: jnp.sum(x * jnp.log(x)))
_EXACT = {
    "simplex": (tw.SimplexEntropy(), _on_simplex(0.8), (_EXPLICIT, _PROXIMAL, _CONTINUOUS)),
    "orthant": (tw.OrthantEntropy(), _PROBABLE * jnp.exp(-0.8 * _SLOPE), (_EXPLICIT,)),
    "burg": (tw.BurgEntropy(), 1 / (1 / _PROBABLE + 0.8 * _SLOPE), (_EXPLICIT, _PROXIMAL)),
    "by differentiation": (_X_LOG_X, _PROBABLE * jnp.exp(-0.8 * _SLOPE), (_EXPLICIT, _CONTINUOUS)),
}


@pytest.mark.parametrize("name", _EXACT)
def test_mirror_descent_its_flow_and_its_proximal_step_of_a_linear_energy_are_exact(name):
    h, end, schemes = _EXACT[name]
    geometry = tw.Bregman(h)
    for scheme, tolerance in schemes:
        path = tw.flow(_linear, _PROBABLE, geometry=geometry, scheme=scheme, final_time=0.8, save_every=100)
        np.testing.assert_allclose(path.final.state, end, rtol=tolerance, err_msg=type(scheme).__name__)


def test_mirror_descent_of_matrices_adds_to_the_inverse():
    start, slope = jnp.asarray([[1.5, 0.4], [0.4, 0.8]]), jnp.asarray([[0.3, 0.5], [0.1, 0.2]])
    geometry = tw.Bregman(tw.LogDeterminant())
    path = tw.flow(
        lambda x: jnp.sum(slope * x), start, geometry=geometry, scheme=tw.Explicit(0.1), num_steps=5, save_every=5
    )
    # Only the symmetric part of the slope moves a symmetric matrix.
    expected = jnp.linalg.inv(jnp.linalg.inv(start) + 0.25 * (slope + slope.T))
    np.testing.assert_allclose(path.final.state, expected, rtol=1e-12)
    # Stein's loss, twice.
    ratio = np.linalg.solve(start, expected)
    stein = 2 * (np.trace(ratio) - 2 - np.log(np.linalg.det(ratio)))
    np.testing.assert_allclose(geometry.at(start).distance_squared(expected), stein, rtol=1e-12)


def test_the_p_norm_mirror_step_moves_an_entry_that_is_zero():
    x, p = jnp.asarray([0.8, 0.0, -0.3]), 1.5
    geometry = tw.Bregman(tw.SquaredPNorm(p))
    path = tw.flow(_linear, x, geometry=geometry, scheme=tw.Explicit(0.1), num_steps=1)

    def mirror(x, p):
        return np.linalg.norm(x, p) ** (2 - p) * np.abs(x) ** (p - 1) * np.sign(x)

    expected = mirror(mirror(np.asarray(x), p) - 0.1 * np.asarray(_SLOPE), p / (p - 1))
    np.testing.assert_allclose(path.final.state, expected, rtol=1e-12)
    assert path.final.state[1] > 0


def test_hessian_of_the_energy_itself_is_newtons_direction():
    def energy(x):
        return jnp.sum(jnp.cosh(x - 0.3))

    path = tw.flow(energy, _PROBABLE, geometry=tw.Hessian(energy), scheme=tw.Explicit(1.0), num_steps=4)
    np.testing.assert_allclose(path.final.state, 0.3, rtol=1e-12)


def test_the_linearised_step_in_a_divergence_ball_has_its_length():
    radius = 1e-3
    path = tw.flow(
        _linear, _PROBABLE, geometry=tw.Bregman(tw.SimplexEntropy()), scheme=tw.Constrained(radius), num_steps=1
    )
    moved = path.final.state
    twice = 2 * float(jnp.sum(moved * jnp.log(moved / _PROBABLE)))
    np.testing.assert_allclose(twice, radius**2, rtol=1e-3)


def test_a_step_that_leaves_the_domain_stops_by_name_and_backtracking_stays_inside():
    geometry = tw.Bregman(tw.BurgEntropy())
    # 1/x + αξ would be negative: the mirror step has no end point.
    path = tw.flow(_linear, _PROBABLE, geometry=geometry, scheme=tw.Explicit(6.0), num_steps=3, throw=False)
    assert path.result == tw.RESULTS.left_domain
    np.testing.assert_array_equal(path.final.state, _PROBABLE)
    scheme = tw.Explicit(tw.Backtracking(6.0))
    energy = lambda x: jnp.sum((x - 0.5) ** 2)  # noqa: E731
    path = tw.flow(energy, _PROBABLE, geometry=geometry, scheme=scheme, num_steps=60)
    assert np.all(np.asarray(path.states) > 0)
    np.testing.assert_allclose(path.final.state, 0.5, rtol=1e-6)
    # Straight moves leave it too.
    path = tw.flow(
        _linear, _PROBABLE, geometry=tw.Hessian(tw.BurgEntropy()), scheme=tw.Explicit(9.0), num_steps=2, throw=False
    )
    assert path.result == tw.RESULTS.left_domain


def test_a_rollout_over_the_exponent_and_through_a_mirror_solve_is_differentiable():
    @jax.jit
    def end(p):
        path = tw.rollout(_linear, _PROBABLE, geometry=tw.PNorm(p), scheme=tw.Explicit(0.1), num_steps=2)
        return jnp.sum(path.states[-1])

    h = 1e-5
    np.testing.assert_allclose(jax.grad(end)(3.0), (end(3.0 + h) - end(3.0 - h)) / (2 * h), rtol=1e-6)

    def through(alpha):
        geometry = tw.Bregman(lambda x: jnp.sum(x * jnp.log(x)))
        path = tw.rollout(_linear, _PROBABLE, geometry=geometry, scheme=tw.Explicit(alpha), num_steps=1)
        return jnp.sum(path.states[-1])

    expected = jnp.sum(-_SLOPE * _PROBABLE * jnp.exp(-0.2 * _SLOPE))
    np.testing.assert_allclose(jax.grad(through)(0.2), expected, rtol=1e-10)


_REFUSED = {
    "indefinite": (lambda: tw.Mahalanobis(jnp.diag(jnp.asarray([1.0, -2.0]))), "positive definite"),
    "not symmetric": (lambda: tw.Mahalanobis(jnp.asarray([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
    "not finite": (lambda: tw.Mahalanobis(jnp.asarray([[jnp.nan, 0.0], [0.0, 1.0]])), "finite"),
    "exponent": (lambda: tw.PNorm(1.0), "OneNorm"),
    "schatten exponent": (lambda: tw.SchattenNorm(0.5), "NuclearNorm"),
    "mirror exponent": (lambda: tw.SquaredPNorm(2.5), r"\(1, 2\]"),
    "weights": (lambda: tw.MaxProduct({"a": tw.MaxNorm()}, -1.0), "positive"),
    "weights of another tree": (
        lambda: tw.SumProduct({"a": tw.MaxNorm(), "b": tw.MaxNorm()}, {"a": 1.0, "c": 2.0}),
        "pytree like `norms`",
    ),
    "not norms": (lambda: tw.MaxProduct({"a": 3.0}), "pytree of norms"),
    "another tree": (lambda: tw.MaxProduct({"a": tw.MaxNorm()}).at({"b": _G}), "begin like the state"),
    "not a matrix": (lambda: tw.SpectralNorm().at(_PROBABLE), "one matrix"),
    "negative": (lambda: tw.Bregman(tw.OrthantEntropy()).at(-_PROBABLE), "positive in every entry"),
    "off the simplex": (lambda: tw.Bregman(tw.SimplexEntropy()).at(2 * _PROBABLE), "sum to one"),
    "indefinite state": (lambda: tw.Bregman(tw.LogDeterminant()).at(-jnp.eye(2)), "positive definite"),
    "not square": (lambda: tw.Bregman(tw.LogDeterminant()).at(_G), "positive definite"),
    "zero": (lambda: tw.Bregman(tw.SquaredPNorm(1.5)).at(jnp.zeros(2)), "not be zero"),
    "outside of a domain found": (lambda: tw.Bregman(lambda x: jnp.sum(x * jnp.log(x))).at(-_PROBABLE), "domain of h"),
    "concave": (lambda: tw.Bregman(lambda x: -jnp.sum(x**2)).at(_PROBABLE), "domain of h"),
    "concave hessian": (lambda: tw.Hessian(lambda x: -jnp.sum(x**2)).at(_PROBABLE), "positive definite"),
    "hessian on the simplex": (lambda: tw.Hessian(tw.SimplexEntropy()), "tw.Bregman"),
    "tensor of another shape": (lambda: tw.Riemannian(lambda x: jnp.eye(2)).at(_PROBABLE), r"\(3, 3\)"),
    "tensor indefinite": (lambda: tw.Riemannian(lambda x: -jnp.eye(3)).at(_PROBABLE), "positive definite"),
    "tensor not symmetric": (lambda: tw.Riemannian(lambda x: jnp.triu(jnp.ones((3, 3)))).at(_PROBABLE), "symmetric"),
    "polar": (lambda: tw.NewtonSchulz(num_steps=0), "at least 1"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_makes_no_geometry_is_refused_in_words(name):
    make, words = _REFUSED[name]
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert len(str(caught.value).splitlines()) <= 5


def test_h_must_be_a_function_and_not_a_class():
    with pytest.raises(TypeError, match="SimplexEntropy"):
        tw.Bregman(tw.SimplexEntropy)
