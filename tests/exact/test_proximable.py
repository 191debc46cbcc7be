"""Constraints and penalties: proximal maps against their definition, and minima against enumeration, KKT and SciPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import thalweg as tw
from thalweg.energies import AbstractEnergy, AbstractProximable
from thalweg.recipes import minimise_composite

LABELS = jnp.asarray([0, 0, 1, 1, 2])
ENERGIES = {
    "box": tw.Box(-0.3, 0.4),
    "box with infinite and equal bounds": tw.Box(
        jnp.asarray([-jnp.inf, 0.2, -0.1, 0.0, -jnp.inf]), jnp.asarray([jnp.inf, 0.2, jnp.inf, 0.5, -0.3])
    ),
    "non-negative": tw.NonNegative(),
    "l1": tw.L1(jnp.asarray([0.2, 0.0, 0.5, 1.0, 0.3])),
    "elastic net": tw.ElasticNet(0.2, 0.7),
    "l1 in a box": tw.L1(0.2) + 0.5 * tw.ElasticNet(0.1, 0.4) + tw.Box(-0.5, 0.1),
    "simplex": tw.Simplex(),
    "hyperplane": tw.Hyperplane(0.3, jnp.asarray([1.0, 2.0, -1.0, 0.0, 0.5])),
    "ball": tw.L2Ball(0.5, 0.1),
    "group lasso": tw.GroupLasso(0.5),
    "group lasso with labels": tw.GroupLasso(0.3, LABELS),
    "box on a hyperplane": tw.Box(-0.3, 0.4) + tw.Hyperplane(0.2, jnp.asarray([1.0, 2.0, -1.0, 0.0, 0.5])),
    "l1 in a box on a hyperplane": tw.L1(0.2)
    + tw.ElasticNet(0.1, 0.4)
    + tw.Box(-0.5, 0.6)
    + tw.Hyperplane(0.3, jnp.asarray([1.0, -2.0, -1.0, 0.5, 0.5])),
    "elastic net on a hyperplane": tw.ElasticNet(0.4, 0.3) + tw.Hyperplane(1.0),
    "simplex with bounds": tw.Box(0.05, 0.4) + tw.Simplex(),
    "sparse group lasso": tw.GroupLasso(0.3, LABELS) + tw.L1(0.2),
    "group lasso without signs": tw.GroupLasso(0.3, LABELS) + tw.NonNegative(),
    "l1 in a quarter of a ball": tw.L2Ball(0.5) + tw.L1(0.2) + tw.NonNegative(),
}


def kinks_of(energy, point):
    return tw.decompose(energy).joint_proximable(point)


class Quadratic(AbstractEnergy):
    """½xᵀHx + cᵀx with its numbers as arrays, so that one compilation serves all."""

    matrix: jax.Array
    vector: jax.Array

    def __call__(self, state):
        return 0.5 * state @ (self.matrix @ state) + self.vector @ state


class Logistic(AbstractEnergy):
    """The mean of log(1 + exp(−margin))."""

    margins: jax.Array

    def __call__(self, state):
        return jnp.mean(jnp.logaddexp(0.0, -self.margins @ state))


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def solved(path):
    assert str(path.message).startswith("The flow reached a minimum"), path.message
    # Rounding of F is 1e-16; nothing rises by more.
    assert np.all(np.diff(path.energies) <= 1e-13 * (1 + np.abs(path.energies[:-1])))
    return np.asarray(path.final.state)


@eqx.filter_jit
def _objective(kinks, candidates, centre, step, metric):
    return jax.vmap(lambda y: kinks(y) + jnp.sum(metric * (y - centre) ** 2) / (2 * step))(candidates)


@pytest.mark.parametrize("name", ENERGIES)
def test_a_proximal_map_is_the_minimiser_that_defines_it_and_no_nearby_point_is_better(name):
    draw = np.random.default_rng(7)
    kinks = kinks_of(ENERGIES[name], jnp.zeros(5))
    prox = eqx.filter_jit(jax.vmap(lambda v, d: kinks.prox(v, 0.7, d), in_axes=(0, None)))
    metrics = [np.ones(5)] + ([np.exp(draw.normal(size=5))] if kinks.takes_metric else [])
    for metric in map(jnp.asarray, metrics):
        given = metric if kinks.takes_metric else None
        centre = jnp.asarray(draw.normal(size=5))
        best = np.asarray(prox(centre[None], given))
        # Feasible points of all sizes around it, as projections of others.
        spread = draw.normal(size=(300, 5)) * 10.0 ** draw.uniform(-4, 0.5, size=(300, 1))
        others = np.asarray(prox(jnp.asarray(best + spread), given))
        values = np.asarray(_objective(kinks, jnp.asarray(np.vstack([best, others])), centre, 0.7, metric))
        assert np.isfinite(values).all()
        assert values[0] <= np.min(values) + 1e-14
        # A proximal map moves no two points apart.
        again = others - np.asarray(prox(jnp.asarray(best), given))
        before, after = (np.sqrt(np.sum(np.asarray(metric) * gap**2, axis=1)) for gap in (spread, again))
        assert np.all(after <= before * (1 + 1e-9) + 1e-14)


@pytest.mark.parametrize("name", ENERGIES)
def test_the_least_subgradient_is_the_velocity_of_the_splitting_and_none_of_its_kind_is_shorter(name):
    draw = np.random.default_rng(8)
    kinks = kinks_of(ENERGIES[name], jnp.zeros(5))

    @eqx.filter_jit
    def both(point, slope):
        x = kinks.prox(point, 1.0)
        step = 1e-6
        return kinks.least_subgradient(x, slope), (x - kinks.prox(x - step * slope, step)) / step

    for _ in range(20):
        least, limit = both(jnp.asarray(draw.normal(size=5)), jnp.asarray(draw.normal(size=5)))
        # The limit is off by the step times a curvature.
        np.testing.assert_allclose(least, limit, atol=3e-5)


def test_the_projection_onto_the_simplex_is_the_known_one_and_takes_rows_and_trees():
    # Sorting by hand: τ = (0.9 + 0.6 − 1)/2 = 0.25.
    np.testing.assert_allclose(
        tw.Simplex().prox(jnp.asarray([0.9, 0.6, -0.2, 0.2]), 3.0), [0.65, 0.35, 0.0, 0.0], atol=1e-15
    )
    rows = tw.Simplex(2.0, axis=-1).prox(jnp.asarray([[3.0, 0.5], [1.0, 1.0]]), 1.0)
    np.testing.assert_allclose(rows, [[2.0, 0.0], [1.0, 1.0]], atol=1e-15)
    tree = tw.Simplex().prox({"a": jnp.asarray([0.9, 0.6]), "b": jnp.asarray([-0.2, 0.2])}, 1.0)
    np.testing.assert_allclose(tree["a"], [0.65, 0.35], atol=1e-15)
    big = tw.Simplex().prox(jnp.asarray(np.random.default_rng(0).normal(size=5000)), 1.0)
    assert float(jnp.min(big)) == 0
    np.testing.assert_allclose(jnp.sum(big), 1.0, rtol=1e-14)


def on_a_hyperplane_by_sorting(x, step, normal, offset, weight, lower, upper):
    """argmin Σ(yᵢ − xᵢ)²/2αᵢ + wᵢ|yᵢ| in bounds with Σaᵢyᵢ = b: all corners of the multiplier are sorted, and where the
    sum passes b it is a straight line. In extended precision.
    """
    x, step, normal, weight, lower, upper = (
        np.broadcast_to(np.asarray(v, np.longdouble), x.shape) for v in (x, step, normal, weight, lower, upper)
    )

    def point(multiplier):
        z = x - multiplier * step * normal
        return np.clip(np.sign(z) * np.maximum(np.abs(z) - step * weight, 0), lower, upper)

    ends = [b + step * weight * np.sign(b) for b in (lower, upper)] + [step * weight, -step * weight]
    moves = normal != 0
    corners = np.concatenate([((x - end)[moves] / (step * normal)[moves]) for end in ends])
    corners = np.sort(corners[np.isfinite(corners)])
    corners = np.concatenate([[corners[0] - 1], corners, [corners[-1] + 1]])
    sums = np.asarray([np.sum(normal * point(corner)) for corner in corners])
    k = np.clip(np.searchsorted(-sums, -offset, side="right"), 1, len(sums) - 1)
    fall = sums[k - 1] - sums[k]
    share = (sums[k - 1] - offset) / fall if fall > 0 else 0
    return point(corners[k - 1] + share * (corners[k] - corners[k - 1])).astype(float)


@eqx.filter_jit
def _on_a_hyperplane(energy, x, step, metric):
    return kinks_of(energy, x).prox(x, step, metric)


@pytest.mark.parametrize("penalised", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_bounds_and_weights_on_a_hyperplane_agree_with_sorting_all_corners(scale, penalised):
    draw = np.random.default_rng(11)
    for _ in range(60):
        x, metric = draw.normal(size=6) * scale, np.exp(draw.normal(size=6))
        normal = draw.normal(size=6) * (draw.random(6) < 0.8)
        normal[0] = 1.0
        weight = scale * draw.uniform(0, 2, 6) * (draw.random(6) < 0.5) * penalised
        lower = np.where(draw.random(6) < 0.3, -np.inf, -draw.uniform(0, 1, 6) * (draw.random(6) < 0.7))
        upper = np.where(draw.random(6) < 0.3, np.inf, draw.uniform(0, 1, 6))
        offset = float(normal @ np.clip(draw.normal(size=6), lower, upper))
        energy = tw.Box(jnp.asarray(lower), jnp.asarray(upper)) + tw.Hyperplane(offset, jnp.asarray(normal))
        energy = energy + tw.L1(jnp.asarray(weight)) if penalised else energy
        found = np.asarray(_on_a_hyperplane(energy, jnp.asarray(x), 0.7, jnp.asarray(metric)))
        expected = on_a_hyperplane_by_sorting(x, 0.7 / metric, normal, offset, weight, lower, upper)
        # What x is rounded to moves the point by as much.
        np.testing.assert_allclose(found, expected, atol=1e-13 * max(scale, 1))
        assert np.all((lower <= found) & (found <= upper))
        # However far away x is, the constraint holds to the rounding of the point itself: (4 + √n) ε is asked for.
        assert abs(normal @ found - offset) <= 1.5e-15 * (np.sum(np.abs(normal * found)) + abs(offset))


def test_the_projection_onto_box_and_hyperplane_by_hand_and_its_derivative():
    # Σy = 1 in [0, ½]³ from (0.9, 0.2, −0.4): the first is at ½, the others share the rest: 0.2 + t and 0, t = 0.3.
    x = jnp.asarray([0.9, 0.1, -0.05])

    @jax.jit
    def by_all(x, upper, offset):
        def prox(x, upper, offset):
            return kinks_of(tw.Box(0.0, upper) + tw.Hyperplane(offset), x).prox(x, 3.0)

        return (
            prox(x, upper, offset),
            *jax.jacfwd(prox, (0, 1))(x, upper, offset),
            jax.jacrev(prox, 2)(x, upper, offset),
        )

    point, project, by_bound, by_offset = by_all(x, jnp.asarray(0.5), jnp.asarray(1.0))
    np.testing.assert_allclose(point, [0.5, 0.325, 0.175], atol=1e-15)
    np.testing.assert_allclose(project, [[0, 0, 0], [0, 0.5, -0.5], [0, -0.5, 0.5]], atol=1e-15)
    # What the first gains with its bound the others lose; one more in the sum is shared by the two (backwards too).
    np.testing.assert_allclose(by_bound, [1, -0.5, -0.5], atol=1e-15)
    np.testing.assert_allclose(by_offset, [0, 0.5, 0.5], atol=1e-15)
    # At a vertex the multiplier is any of an interval, and nothing is free.
    corner = kinks_of(tw.Box(0.0, 1.0) + tw.Hyperplane(2.0), jnp.zeros(4))
    vertex = jnp.asarray([1.0, 0.0, 1.0, 0.0])
    project = jax.jit(jax.jacfwd(lambda v: (corner.prox(v, 1.0),) * 2, has_aux=True))
    derivative, point = project(3 * vertex)
    np.testing.assert_array_equal(point, vertex)
    np.testing.assert_array_equal(derivative, np.zeros((4, 4)))


def test_a_constrained_minimum_is_found_inside_jit_and_vmap_and_moves_with_its_bound():
    @jax.jit
    @jax.vmap
    def ends(upper, start):
        path = tw.minimise(lambda x: jnp.sum((x - jnp.asarray([2.0, 0.3])) ** 2), start, lower=0.0, upper=upper)
        return path.final.state, (path.result == tw.RESULTS.minimum) & jnp.all(jnp.isfinite(path.energies))

    points, found = ends(jnp.asarray([1.0, 0.2, 3.0]), jnp.asarray([[0.1, 0.2], [-3.0, 0.1], [1.0, 1.0]]))
    np.testing.assert_allclose(points, [[1.0, 0.3], [0.2, 0.2], [2.0, 0.3]], atol=1e-12)
    assert np.all(found)


def test_whole_groups_and_single_entries_vanish_by_two_thresholds_one_after_the_other():
    # (3, −4, ½) less ½ each is (2.5, −3.5, 0), of length √18.5, which shrinks by 1.
    kinks = kinks_of(tw.GroupLasso(1.0) + tw.L1(0.5), jnp.zeros(3))
    shrink = 1 - 1 / np.sqrt(18.5)
    np.testing.assert_allclose(kinks.prox(jnp.asarray([3.0, -4.0, 0.5]), 1.0), [2.5 * shrink, -3.5 * shrink, 0.0])
    ball = kinks_of(tw.L2Ball(1.0) + tw.NonNegative(), jnp.zeros(3))
    np.testing.assert_allclose(ball.prox(jnp.asarray([3.0, -4.0, 4.0]), 1.0), [0.6, 0.0, 0.8], atol=1e-15)


def test_the_dual_of_a_support_vector_machine_ends_at_the_solution_it_was_made_for():
    draw = np.random.default_rng(12)
    inputs, labels = draw.normal(size=(20, 2)), np.where(np.arange(20) < 10, 1.0, -1.0)
    kernel = np.exp(-0.5 * np.sum((inputs[:, None] - inputs[None]) ** 2, axis=-1)) + 1e-3 * np.eye(20)
    side = np.arange(20) % 3 - 1  # at 0, free, at the cost
    solution = np.select([side < 0, side > 0], [0.0, 2.0], draw.uniform(0.4, 1.6, 20))
    multipliers = -side * draw.uniform(0.1, 1, 20) + 0.4 * labels
    matrix = kernel * labels[:, None] * labels
    path = tw.minimise(
        Quadratic(jnp.asarray(matrix), jnp.asarray(multipliers - matrix @ solution)),
        jnp.zeros(20),
        lower=0.0,
        upper=2.0,
        plus=tw.Hyperplane(float(labels @ solution), jnp.asarray(labels)),
    )
    x = solved(path)
    assert "projected" in path.stats["start"]
    # The smallest curvature on the piece is 1e-3 or more, the residual 1e-10 of the size of the point.
    np.testing.assert_allclose(x, solution, atol=1e-6)
    np.testing.assert_array_equal(x[side != 0], solution[side != 0])
    assert path.extras["stationary_point"].smallest_curvature > 1e-3


def enumerated(matrix, vector, lower, upper):
    """The minimum of a convex quadratic in a box: every choice of active bounds, the best feasible one."""
    best, where = np.inf, None
    for choice in itertools.product((-1, 0, 1), repeat=len(vector)):
        choice = np.asarray(choice)
        x = np.where(choice < 0, lower, np.where(choice > 0, upper, 0.0))
        if not np.all(np.isfinite(x)):
            continue
        free = choice == 0
        rest = vector + matrix[:, ~free] @ x[~free]
        x[free] = np.linalg.solve(matrix[np.ix_(free, free)], -rest[free])
        if np.all((lower <= x) & (x <= upper)) and 0.5 * x @ matrix @ x + vector @ x < best:
            best, where = 0.5 * x @ matrix @ x + vector @ x, x
    return where


@pytest.mark.parametrize(
    "case", ["plain", "badly scaled", "equal bounds", "infinite bounds", "all active", "start on a bound", "outside"]
)
def test_box_constrained_quadratics_end_at_the_enumerated_minimum(case):
    draw = np.random.default_rng(len(case))
    n = 5
    root = draw.normal(size=(n, n))
    matrix, vector = root @ root.T + 0.1 * np.eye(n), 3 * draw.normal(size=n)
    lower, upper, start = np.full(n, -0.6), np.full(n, 0.5), np.zeros(n)
    if case == "badly scaled":
        units = np.geomspace(1e-3, 1e3, n)  # curvatures from 1e-6 to 1e6
        matrix, vector = matrix * units[:, None] * units, vector * units
        lower, upper = lower / units, upper / units
    if case == "equal bounds":
        lower[1:3] = upper[1:3] = [0.2, -0.3]
    if case == "infinite bounds":
        lower[:3], upper[2:] = -np.inf, np.inf
    if case == "all active":
        vector = 50 * np.sign(vector)
    start = {"start on a bound": upper, "outside": 3 + lower}.get(case, np.clip(start, lower, upper))
    path = minimise_composite(
        Quadratic(jnp.asarray(matrix), jnp.asarray(vector)),
        jnp.asarray(start),
        tw.Box(jnp.asarray(lower), jnp.asarray(upper)),
    )
    x, expected = solved(path), enumerated(matrix, vector, lower, upper)
    # ‖x − x*‖ is at most the residual, 1e-10, over the smallest curvature, 0.1, in the units of each entry.
    size = np.where(np.isfinite(upper), np.abs(upper), 1)
    np.testing.assert_allclose(x / size, expected / size, atol=1e-9)
    states = np.asarray(path.states)
    assert np.all((lower <= states) & (states <= upper))
    np.testing.assert_array_equal(x[(x - lower) < 1e-9 * size], lower[(x - lower) < 1e-9 * size])
    assert ("projected" in path.stats["start"]) == (case == "outside")
    # Newton on the pieces: a few systems, where forward-backward steps alone would take hundreds.
    assert np.sum(path.measurements["inner_steps"]) <= 20
    if case == "all active":
        assert path.extras["stationary_point"].smallest_curvature == jnp.inf


def test_bounded_least_squares_agree_with_scipy():
    draw = np.random.default_rng(2)
    design, outputs = draw.normal(size=(30, 12)), draw.normal(size=30) * 3
    energy = Quadratic(jnp.asarray(design.T @ design), jnp.asarray(-design.T @ outputs))
    x = solved(minimise_composite(energy, jnp.ones(12), tw.NonNegative()))
    expected, _ = scipy.optimize.nnls(design, outputs)
    np.testing.assert_allclose(x, expected, atol=1e-9)
    assert np.all((x == 0) == (expected == 0))
    # More unknowns than equations: the minimum is not unique, its value is.
    wide = Quadratic(jnp.asarray(design[:6].T @ design[:6]), jnp.asarray(-design[:6].T @ outputs[:6]))
    path = minimise_composite(wide, jnp.ones(12), tw.NonNegative())
    expected, distance = scipy.optimize.nnls(design[:6], outputs[:6])
    value = 2 * float(path.energies[-1]) + outputs[:6] @ outputs[:6]
    np.testing.assert_allclose(value, distance**2, atol=1e-9 * (outputs[:6] @ outputs[:6]))


def lasso_violation(energy, weight, x):
    """How far 0 is from ∇f + w∂‖x‖₁, at the largest entry."""
    slope = np.asarray(jax.grad(energy)(jnp.asarray(x)))
    return np.max(np.where(x == 0, np.maximum(np.abs(slope) - weight, 0), np.abs(slope + weight * np.sign(x))))


def test_the_lasso_is_soft_thresholding_for_an_orthogonal_design_and_satisfies_its_conditions_for_any():
    draw = np.random.default_rng(3)
    design, _ = np.linalg.qr(draw.normal(size=(40, 12)))
    outputs = draw.normal(size=40) * 2
    correlation = design.T @ outputs
    weight = tw.L1(jnp.asarray(0.5))
    x = solved(minimise_composite(Quadratic(jnp.eye(12), jnp.asarray(-correlation)), jnp.zeros(12), weight))
    np.testing.assert_allclose(x, np.sign(correlation) * np.maximum(np.abs(correlation) - 0.5, 0), atol=1e-14)
    # Strongly correlated columns, condition number 1e8, from a start that is dense.
    design = draw.normal(size=(40, 12)) @ np.linalg.cholesky(0.05 * np.eye(12) + 0.95).T * np.geomspace(1e-2, 1, 12)
    energy = Quadratic(jnp.asarray(design.T @ design), jnp.asarray(-design.T @ outputs))
    x = solved(minimise_composite(energy, jnp.ones(12), weight))
    assert 0 < np.sum(x == 0) < 12
    assert lasso_violation(energy, 0.5, x) < 1e-8


def test_a_logistic_lasso_satisfies_its_conditions_matrix_free():
    draw = np.random.default_rng(4)
    inputs = draw.normal(size=(80, 12))
    labels = np.sign(inputs[:, 0] - 2 * inputs[:, 1] + 0.5 * draw.normal(size=80))
    energy = Logistic(jnp.asarray(labels[:, None] * inputs))
    path = tw.flow(
        energy + tw.L1(jnp.asarray(0.03)),
        jnp.zeros(12),
        geometry=tw.Euclidean(),
        scheme=tw.ProximalNewton(dense=False),
        num_steps=30,
        stop=tw.ResidualBelow(1e-10),
    )
    assert path.result == tw.RESULTS.stopped
    x = np.asarray(path.final.state)
    assert 0 < np.sum(x == 0) < 12
    assert lasso_violation(energy, 0.03, x) < 1e-10


def test_rosenbrock_with_active_bounds_has_its_known_minimum_and_converges_superlinearly():
    path = minimise_composite(rosenbrock, jnp.asarray([-1.2, 1.0]), tw.Box(-2.0, jnp.asarray([0.5, 2.0])))
    np.testing.assert_allclose(solved(path), [0.5, 0.25], atol=1e-12)
    kind = path.extras["stationary_point"]
    np.testing.assert_allclose(kind.smallest_curvature, 200.0, rtol=1e-9)  # ∂²f/∂y², along the wall x = ½
    assert float(kind.gradient_norm) < 1e-8
    last = np.asarray(path.measurements["residual"])[-3:]
    assert last[1] < 1e-3 * last[0]
    assert len(path) < 30


@pytest.mark.parametrize(
    ("constraint", "start"),
    [
        pytest.param(tw.L2Ball(1.0), 0.3, id="ball"),
        pytest.param(tw.Simplex(), 0.25, id="simplex"),
        pytest.param(tw.Hyperplane(1.0), 0.25, id="hyperplane", marks=pytest.mark.slow),
        pytest.param(tw.GroupLasso(0.5), 0.3, id="group lasso", marks=pytest.mark.slow),
    ],
)
def test_a_curved_valley_in_each_set_is_solved_as_well_as_by_scipy(constraint, start):
    path = minimise_composite(rosenbrock, jnp.full(4, start), constraint)
    x = solved(path)
    assert float(path.measurements["residual"][-1]) < 1e-8
    if isinstance(constraint, tw.GroupLasso):
        fun, rules = lambda z: float(rosenbrock(jnp.asarray(z))) + 0.5 * np.linalg.norm(z), []
    else:
        fun = lambda z: float(rosenbrock(jnp.asarray(z)))  # noqa: E731
        ball = {"type": "ineq", "fun": lambda z: 1 - z @ z}
        rules = [ball] if isinstance(constraint, tw.L2Ball) else [{"type": "eq", "fun": lambda z: np.sum(z) - 1}]
    bounds = [(0, None)] * 4 if isinstance(constraint, tw.Simplex) else None
    peer = scipy.optimize.minimize(
        fun, np.full(4, start), method="SLSQP", bounds=bounds, constraints=rules, options={"ftol": 1e-12}
    )
    # SLSQP with differences is right to about 1e-7; the start is the same, and so is the valley.
    np.testing.assert_allclose(x, peer.x, atol=1e-4)
    assert fun(x) <= peer.fun + 1e-9


def test_a_saddle_is_left_along_a_feasible_direction_in_which_the_energy_falls(monkeypatch):
    # −½x² on [−1, 1]²: the first entry begins on the ridge, the second ends at its bound.
    ridge = Quadratic(-jnp.eye(2), jnp.zeros(2))
    start = jnp.asarray([0.0, 0.3])
    path = minimise_composite(ridge, start, tw.Box(-1.0, 1.0))
    np.testing.assert_array_equal(np.abs(solved(path)), [1.0, 1.0])
    assert path.stats["saddles_left"] == 1
    # One path: the leap is a step like the others.
    states = np.asarray(path.states)
    leaps = np.sum(np.diff(states, axis=0) ** 2, axis=1)
    np.testing.assert_allclose(path.distances_squared[1:], leaps, atol=1e-15)
    np.testing.assert_allclose(path.times[-1], np.sum(np.sqrt(leaps)), rtol=1e-12)
    assert path.energy_balance().relative_error < 1e-12
    # From a corner one side alone is feasible.
    corner = minimise_composite(Quadratic(jnp.diag(jnp.asarray([-2.0, 1.0])), jnp.zeros(2)), start, tw.Box(0.0, 1.0))
    np.testing.assert_allclose(solved(corner), [1.0, 0.0], atol=1e-12)
    # xy with x, y ≥ 0 is least at the origin, though its curvature along (1, −1) is negative: nothing falls.
    product = minimise_composite(
        Quadratic(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), jnp.zeros(2)), jnp.zeros(2), tw.Box(0.0, 1.0)
    )
    assert product.result == tw.RESULTS.flat_point
    assert float(product.extras["stationary_point"].smallest_curvature) < 0
    # No more leaps than allowed, and then it is called what it is.
    monkeypatch.setattr("thalweg.recipes._composite._MOST_LEFT", 0)
    path = minimise_composite(ridge, start, tw.Box(-1.0, 1.0))
    assert path.result == tw.RESULTS.saddle_point
    assert path.stats["saddles_left"] == 0
    np.testing.assert_allclose(path.extras["stationary_point"].smallest_curvature, -1.0, rtol=1e-12)
    assert minimise_composite(ridge, start, tw.Box(-1.0, 1.0), num_steps=1).result == tw.RESULTS.out_of_steps


class OneOf(eqx.Module):
    """One of several functions; compiled once for all of them."""

    which: jax.Array
    functions: tuple = eqx.field(static=True)

    def __call__(self, x):
        return jax.lax.switch(self.which, self.functions, x)


ENDINGS = {
    "falls to zero": (lambda x: jnp.exp(-x[0]) + x[1] ** 2, 0.0, np.inf, "escaping"),
    "falls by a power": (lambda x: 1 / (1 + x[0]) + x[1] ** 2, 0.0, np.inf, "escaping"),
    "no lower bound": (lambda x: -x[0] + x[1] ** 2, 0.0, np.inf, "unbounded"),
    "falls as far as a bound": (lambda x: jnp.exp(-x[0]) + x[1] ** 2, 0.0, 45.0, "flat_point"),  # no visible multiplier
    "inflection": (lambda x: x[0] ** 3 + x[1] ** 2, -1.0, 1.0, "minimum"),
    "inflection aslant": (lambda x: (x[0] - x[1]) ** 3 + 1e4 * (x[0] + x[1] - 1) ** 2, 0.0, 1.0, "minimum"),
    "quartic": (lambda x: (x[0] - 2) ** 4 + x[1] ** 2, -5.0, np.inf, "flat_point"),
    "curved valley": (lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, -2.0, 2.0, "minimum"),
    "no multiplier": (lambda x: jnp.cosh(x[0]) - 1 + x[1] ** 2, 0.0, np.inf, "minimum"),
}
ENDS = {"falls as far as a bound": [45, 0], "inflection": [-1, 0], "inflection aslant": [0, 1], "no multiplier": [0, 0]}


def ended_in_bounds(name, x):
    functions = tuple(fn for fn, *_ in ENDINGS.values())
    lower, upper = (jnp.full(2, bound) for bound in ENDINGS[name][1:3])
    return tw.minimise(OneOf(jnp.asarray(list(ENDINGS).index(name)), functions), x, lower=lower, upper=upper)


def name_of(result):
    return next(name for name in tw.RESULTS._name_to_item if bool(result == getattr(tw.RESULTS, name)))


@pytest.mark.parametrize("name", ENDINGS)
def test_with_bounds_too_an_end_is_called_what_it_is(name):
    path = ended_in_bounds(name, jnp.asarray([0.6, 0.3]))
    assert name_of(path.result) == ENDINGS[name][3]
    if name in ENDS:
        np.testing.assert_allclose(path.final.state, ENDS[name], atol=1e-7)
    assert (path.stats["saddles_left"] > 0) == (name in ("falls as far as a bound", "inflection", "inflection aslant"))


def test_on_a_hyperplane_an_inflection_is_left_too():
    plus, start = tw.Box(-1.0, 1.0) + tw.Hyperplane(1.0), jnp.asarray([0.6, 0.2, 0.2])
    path = tw.minimise(lambda x: (x[0] - x[1]) ** 3 + (x[0] - x[2]) ** 2, start, plus=plus)
    assert (name_of(path.result), path.stats["saddles_left"]) == ("minimum", 1)
    np.testing.assert_allclose(path.final.state, [-1, 1, 1], atol=1e-12)


def test_inside_jit_no_curvature_that_does_not_last_makes_a_minimum():
    functions = tuple(fn for fn, *_ in ENDINGS.values())

    @eqx.filter_jit
    def result(which, lower, upper):
        return tw.minimise(OneOf(which, functions), jnp.asarray([0.6, 0.3]), lower=lower, upper=upper).result

    for name, expected in {
        "falls to zero": "flat_point",
        "falls as far as a bound": "flat_point",
        "inflection": "flat_point",
        "inflection aslant": "flat_point",
        "curved valley": "minimum",
        "no multiplier": "minimum",
    }.items():
        lower, upper = (jnp.full(2, bound) for bound in ENDINGS[name][1:3])
        assert name_of(result(jnp.asarray(list(ENDINGS).index(name)), lower, upper)) == expected, name


def test_the_curvature_on_a_sphere_is_the_gap_of_eigenvalues():
    # −½xᵀAx in the unit ball: the leading eigenvector; along the sphere the curvature is λ₁ − λ₂.
    values, (basis, _) = np.asarray([3.0, 2.2, 1.0]), np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    leading = Quadratic(-jnp.asarray(basis * values @ basis.T), jnp.zeros(3))
    path = minimise_composite(leading, jnp.asarray([0.3, 0.2, -0.1]), tw.L2Ball(1.0))
    x = solved(path)
    np.testing.assert_allclose(np.abs(basis[:, 0] @ x), 1.0, rtol=1e-12)
    np.testing.assert_allclose(path.extras["stationary_point"].smallest_curvature, 0.8, rtol=1e-6)


def test_the_function_is_not_asked_outside_its_domain_and_entries_of_trees_keep_their_places():
    # √x has no value below zero, log(1 − x) none from one on.
    def partial(tree):
        x, y = tree["x"], tree["y"]
        return jnp.sum(-jnp.sqrt(x) - 0.1 * jnp.log(1 - y) + 2 * x * y) + jnp.sum(x**2)

    start = {"x": jnp.asarray([0.5, 2.0]), "y": jnp.asarray(0.9)}
    path = minimise_composite(partial, start, tw.Box({"x": 0.01, "y": 0.0}, {"x": 4.0, "y": 0.95}))
    assert path.result == tw.RESULTS.minimum
    end = path.final.state
    # With y at its bound 0: −½x^−½ + 2x = 0.
    np.testing.assert_allclose(end["x"], 0.25 ** (2 / 3), rtol=1e-9)
    assert float(end["y"]) == 0


def test_forward_backward_steps_follow_the_flow_of_a_function_with_a_corner_to_first_order():
    # ẋ ∈ −x − w ∂|x|: x(t) = (x₀ + w) e^{−t} − w until it reaches zero, where it stays.
    energy = Quadratic(jnp.eye(3), jnp.zeros(3)) + tw.L1(jnp.asarray(0.5))
    start, time = np.asarray([1.0, -2.0, 0.2]), 0.8
    exact = np.sign(start) * np.maximum((np.abs(start) + 0.5) * np.exp(-time) - 0.5, 0)
    errors = []
    for num in (20, 40, 80):
        path = tw.flow(
            energy, jnp.asarray(start), geometry=tw.Euclidean(), scheme=tw.ForwardBackward(time / num), final_time=time
        )
        errors.append(np.max(np.abs(path.final.state - exact)))
    assert np.all(np.abs(np.log2(np.divide(errors[:-1], errors[1:])) - 1) < 0.1), errors
    assert float(path.final.state[2]) == 0
    # The rate at which F falls is the square of the least subgradient: at rest it is zero, at the corner too.
    np.testing.assert_allclose(path.dissipation_rates[0], np.sum((np.abs(start) + 0.5) ** 2), rtol=1e-14)
    assert path.energy_balance().relative_error < 0.03


def test_backtracking_forward_backward_steps_find_the_same_lasso():
    draw = np.random.default_rng(3)
    design = draw.normal(size=(40, 12))
    energy = Quadratic(jnp.asarray(design.T @ design), jnp.asarray(-design.T @ draw.normal(size=40)))
    weight = tw.L1(jnp.asarray(3.0))
    path = tw.flow(
        energy + weight,
        jnp.ones(12),
        geometry=tw.Euclidean(),
        scheme=tw.ForwardBackward(tw.Backtracking()),
        num_steps=2000,
        stop=tw.ResidualBelow(1e-10),
    )
    assert path.result == tw.RESULTS.stopped
    assert np.all(np.diff(path.energies) <= 1e-13 * np.abs(path.energies[:-1]))
    np.testing.assert_allclose(path.final.state, solved(minimise_composite(energy, jnp.ones(12), weight)), atol=1e-8)


@pytest.mark.slow
def test_sparse_logistic_regression_with_a_thousand_unknowns_is_solved_from_products():
    draw = np.random.default_rng(5)
    inputs = draw.normal(size=(300, 1000))
    labels = np.sign(inputs[:, :10].sum(axis=1) + 0.1 * draw.normal(size=300))
    energy = Logistic(jnp.asarray(labels[:, None] * inputs))
    path = minimise_composite(energy, jnp.zeros(1000), tw.L1(jnp.asarray(0.02)), num_steps=60)
    assert "matrix-free" in path.stats["curvature"]
    x = solved(path)
    assert 5 < np.sum(x != 0) < 150
    assert lasso_violation(energy, 0.02, x) < 1e-9


class _Silent(AbstractProximable):
    """Not separable, to be added to another one."""

    def __call__(self, state):
        return jnp.zeros(())

    def prox(self, point, step, metric_diagonal=None):
        return point

    def least_subgradient(self, point, gradient):
        return gradient

    def scaled(self, factor):
        return self

    def check(self, state):
        return None


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: tw.Box(1.0, 0.0), "cross"),
        (lambda: tw.Box(jnp.asarray([0.0, jnp.nan]), 1.0), "NaN"),
        (lambda: tw.Box(jnp.zeros(2), jnp.zeros(3)), "shapes"),
        (lambda: tw.Box(jnp.inf), "cross"),
        (lambda: tw.L1(-0.1), "not negative"),
        (lambda: tw.L1(jnp.asarray([0.1, jnp.inf])), "finite"),
        (lambda: tw.ElasticNet(0.1, -1.0), "`ridge`"),
        (lambda: tw.Simplex(0.0), "positive"),
        (lambda: tw.L2Ball(-1.0), "positive"),
        (lambda: tw.Hyperplane(1.0, 0.0), "not zero"),
        (lambda: tw.GroupLasso(0.1, jnp.asarray([0.5, 1.0])), "integer"),
        (lambda: tw.L2Ball(1.0).prox(jnp.ones(3), 1.0, jnp.ones(3)), "Euclidean metric only"),
    ],
    ids=range(12),
)
def test_parameters_that_make_no_sense_are_refused_when_they_are_given(make, complaint):
    with pytest.raises((ValueError, tw.UnsupportedCombination), match=complaint):
        make()


def _why(energy, state=None, scheme=None, geometry=None):
    return tw.why_unsupported(
        energy,
        jnp.full(3, 0.5) if state is None else state,
        geometry=tw.Euclidean() if geometry is None else geometry,
        scheme=tw.ProximalNewton() if scheme is None else scheme,
    )


def _square(x):
    return jnp.sum(x**2)


@pytest.mark.parametrize(
    ("why", "complaint"),
    [
        (lambda: _why(_square + tw.L1(jnp.ones(2))), "shapes"),
        (lambda: _why(_square + tw.Box(0, 1) + tw.Box(2, 3)), "cross"),
        (lambda: _why(_square + tw.Box(1, 2)), "does not satisfy"),
        (lambda: _why(tw.as_energy(_square) - tw.L1(1.0)), "positive factor"),
        (lambda: _why(_square + tw.L1(1.0) + _Silent()), "no joint proximal map"),
        (lambda: _why(_square + tw.Simplex() + tw.Hyperplane(1.0)), "Solve the others for some of the entries"),
        (lambda: _why(_square + tw.GroupLasso(1.0) + tw.Box(-1, 1)), "go L1 and NonNegative"),
        (lambda: _why(_square + tw.L2Ball(2.0) + tw.Hyperplane(1.5)), "Keep one of"),
        (lambda: _why(_square + tw.L2Ball(2.0, 0.3) + tw.L1(1.0)), "only around the origin"),
        (lambda: _why(_square + tw.Box(0, 1) + tw.Hyperplane(4.0)), "No point satisfies both"),
        (lambda: _why(_square + tw.L1(1.0), geometry=tw.MaxNorm()), "Euclidean geometry"),
        (lambda: _why(_square + tw.GroupLasso(1.0, LABELS)), "one label"),
        (lambda: _why(_square + tw.L1(1.0), scheme=tw.Explicit(0.1)), "ProximalNewton"),
        (lambda: _why(_square + tw.Box(0, 1), scheme=tw.Proximal(0.1)), "ForwardBackward"),
        (lambda: _why(_square + tw.Box(0, 1), scheme=tw.Continuous(0.1)), "corners or walls"),
        (lambda: _why(tw.L1(1.0), tw.Particles(jnp.ones((2, 1))), geometry=tw.Wasserstein()), "vectors and pytrees"),
    ],
    ids=range(16),
)
def test_what_cannot_be_put_together_is_said_before_anything_runs(why, complaint):
    assert complaint in why()
