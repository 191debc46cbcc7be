"""W₂ between two densities: exact values, maps, couplings, potentials, geodesics and derivatives of each kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

WALL, CIRCLE = tw.NoFlux(), tw.Periodic()


def rough(grid, seed):
    """Random cell values with empty cells inside and at both ends."""
    rng = np.random.default_rng(seed)
    values = rng.random(grid.shape) * (rng.random(grid.shape) > 0.3)
    values[3:6] = values[-2:] = 0
    values[8] = 2
    return tw.GridDensity.normalised(jnp.asarray(values), grid)


def cloud(n, dim, seed, *, weighted=False, shift=0.0):
    rng = np.random.default_rng(seed)
    log_weights = rng.normal(size=n)
    log_weights = jnp.asarray(log_weights - np.log(np.exp(log_weights).sum())) if weighted else None
    return tw.Particles(jnp.asarray(rng.normal(size=(n, dim)) + shift), log_weights)


def normal(dim, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim))
    return tw.Gaussian(jnp.asarray(rng.normal(size=dim)), jnp.asarray(root @ root.T + 0.1 * np.eye(dim)))


PAIRS = {
    "two lines of different cells": lambda: (rough(tw.Grid(-1.0, 2.0, 40), 0), rough(tw.Grid(-1.5, 2.0, 31), 1)),
    "a circle": lambda: (rough(tw.Grid(-1.0, 2.0, 40, CIRCLE), 0), rough(tw.Grid(-1.0, 2.0, 31, CIRCLE), 1)),
    "Gaussians": lambda: (normal(3, 0), normal(3, 1)),
    "particles by sorting": lambda: (cloud(40, 1, 0), cloud(40, 1, 1)),
    "weighted particles on the line": lambda: (cloud(40, 1, 0, weighted=True), cloud(33, 1, 1, weighted=True)),
    "an assignment": lambda: (cloud(60, 2, 0), cloud(60, 2, 1, shift=1.0)),
    "a linear program": lambda: (cloud(20, 2, 0, weighted=True), cloud(17, 2, 1, weighted=True)),
}
ONCE = {}


def transport(name):
    if name not in ONCE:
        ONCE[name] = tw.wasserstein_distance(*PAIRS[name]())
    return ONCE[name]


def square(x, y):
    return jnp.sum((x - y) ** 2)


@pytest.mark.parametrize("name", PAIRS)
def test_coupling_potentials_and_action_all_say_the_same_distance(name):
    found = transport(name)
    value = float(found.distance_squared)
    assert value > 0.01
    assert float(found.distance) == pytest.approx(value**0.5, rel=1e-15)
    # Sums of some hundred terms of the size of squared distances and moments, each rounded.
    rounding = 3e-14 * (value + 1)
    assert abs(float(found.certificate.gap)) < rounding
    assert abs(float(found.certificate.primal) - value) < rounding
    assert abs(float(found.coupling.expect(square)) - value) < rounding
    # Benamou and Brenier: the action of the geodesic, from its velocities, is W₂².
    assert abs(float(found.geodesic.action()) - value) < rounding


def ends_of(name):
    """Points of both spaces where the potentials are known, and their values there."""
    found = transport(name)
    phi, psi = found.potentials
    if isinstance(found.start, tw.Particles):
        return (found.start.positions, phi), (found.end.positions, psi)
    x, y = found.start.nodes()[0], found.end.nodes()[0]
    return (x, jax.vmap(phi)(x)), (y, jax.vmap(psi)(y))


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("two lines of different cells", "a circle")])
def test_the_potentials_are_feasible_and_tight_on_the_coupling(name):
    found = transport(name)
    (x, phi), (y, psi) = ends_of(name)
    slack = np.sum((np.asarray(x)[:, None] - np.asarray(y)[None]) ** 2, axis=2) - phi[:, None] - psi[None]
    assert slack.min() > -1e-12
    if isinstance(found.start, tw.Particles):
        rows, columns = np.asarray(found.coupling.rows), np.asarray(found.coupling.columns)
        assert np.max(np.abs(slack[rows, columns])) < 1e-12


@pytest.mark.parametrize("name", ["two lines of different cells", "a circle"])
def test_the_potentials_of_grids_are_feasible_for_every_small_pair_of_cells(name):
    # Averaged over a pair of cells, φ + ψ ≤ |x − y|² reads φ̄_i + ψ̄_j ≤ |x_i − y_j|² + (h_a² + h_b²)/12.
    found = transport(name)
    a, b = found.start.grid, found.end.grid
    gap = np.abs(np.asarray(a.centres) - np.asarray(b.centres).T)
    if name == "a circle":
        # The mean over two cells of the distance to the nearest image; only near the antipodes is it less than this.
        gap = np.minimum(gap, 3.0 - gap)
    mean = gap**2 + (a.spacing[0] ** 2 + b.spacing[0] ** 2) / 12
    slack = mean - np.asarray(found.potentials[0])[:, None] - np.asarray(found.potentials[1])[None]
    assert slack.min() > -1e-12
    # And where mass goes from cell to cell it is tight up to the sizes of the cells.
    assert np.all(slack.min(axis=1) < 6 * a.spacing[0] ** 2)


@pytest.mark.parametrize(
    "name", ["particles by sorting", "weighted particles on the line", "an assignment", "a linear program"]
)
def test_the_coupling_of_particles_has_the_two_marginals(name):
    found = transport(name)
    coupling = found.coupling
    rows = jax.ops.segment_sum(coupling.masses, coupling.rows, found.start.num_particles)
    columns = jax.ops.segment_sum(coupling.masses, coupling.columns, found.end.num_particles)
    np.testing.assert_allclose(rows, found.start.weights, atol=1e-15)
    np.testing.assert_allclose(columns, found.end.weights, atol=1e-15)
    # The map of the start is the mean image, so the mean goes to the mean.
    np.testing.assert_allclose(found.start.weights @ found.map, found.end.mean(), atol=1e-14)


@pytest.mark.parametrize("name", ["Gaussians", "an assignment", "a linear program", "weighted particles on the line"])
def test_pieces_of_a_geodesic_add_up_to_its_length(name):
    geodesic = transport(name).geodesic
    length = float(transport(name).distance)
    times = (0.0, 0.25, 0.7, 1.0)
    parts = [
        float(tw.wasserstein_distance(geodesic(s), geodesic(t)).distance) / (t - s)
        for s, t in zip(times[:-1], times[1:], strict=True)
    ]
    np.testing.assert_allclose(parts, length, rtol=1e-12)


@pytest.mark.parametrize("name", ["two lines of different cells", "a circle"])
def test_a_geodesic_on_a_grid_holds_what_each_cell_then_has(name):
    found = transport(name)
    geodesic = found.geodesic
    for time in (0.0, 0.4, 1.0):
        state = geodesic(time)
        np.testing.assert_allclose(float(state.mass), 1, atol=1e-14)
        # Against many points carried along their straight lines and counted.
        left, right = (np.asarray(end) for end in geodesic.pieces.at(jnp.asarray(time)))
        fractions = (np.arange(2000) + 0.5) / 2000
        where = (left[:, None] + fractions * (right - left)[:, None]).ravel()
        masses = np.repeat(np.asarray(geodesic.pieces.masses) / 2000, 2000)
        lower, upper = state.grid.lower[0], state.grid.upper[0]
        if name == "a circle":
            where = (where - lower) % (upper - lower) + lower
        counted = np.histogram(where, state.grid.shape[0], (lower, upper), weights=masses)[0]
        # Each piece that a face cuts is counted to one of its 2000 parts.
        np.testing.assert_allclose(np.asarray(state.values) * state.grid.cell_volume, counted, atol=1e-4)
    if name == "a circle":
        np.testing.assert_allclose(geodesic(0.0).values[:5], found.start.values[:5], atol=1e-13)


def test_on_the_line_the_pieces_of_a_geodesic_add_up_too():
    found = transport("two lines of different cells")
    pieces = found.geodesic.pieces
    length = float(found.distance)

    def between(s, t):
        (a, b), (c, d) = (pieces.at(jnp.asarray(time)) for time in (s, t))
        left, right = c - a, d - b
        return float(jnp.sqrt(jnp.sum(pieces.masses * (left**2 + left * right + right**2)) / 3))

    np.testing.assert_allclose(between(0.0, 0.3) + between(0.3, 1.0), length, rtol=1e-14)
    # The pieces keep their order, so this coupling of two times is the monotone one: the optimal one.
    for time in (0.0, 0.3, 0.8, 1.0):
        left, right = pieces.at(jnp.asarray(time))
        assert float(jnp.min(jnp.concatenate([right - left, left[1:] - right[:-1]]))) > -1e-14


def test_on_a_circle_mass_goes_the_short_way():
    grid = tw.Grid(0.0, 1.0, 50, CIRCLE)
    one = lambda k: tw.GridDensity.normalised(jnp.zeros(50).at[k].set(1.0), grid)  # noqa: E731
    found = tw.wasserstein_distance(one(2), one(47))
    # Five cells across the seam.
    np.testing.assert_allclose(float(found.distance), 0.1, rtol=1e-13)
    middle = found.geodesic(0.4)
    np.testing.assert_allclose(float(middle.values[0] * grid.cell_volume), 1, rtol=1e-12)
    # Against all turns of a fine sampling.
    a, b = PAIRS["a circle"]()
    levels = (np.arange(3000) + 0.5) / 3000
    x, y = (
        np.interp(
            levels,
            np.concatenate([[0], np.cumsum(np.asarray(s.values) * s.grid.cell_volume)]),
            np.linspace(-1, 2, s.grid.shape[0] + 1),
        )
        for s in (a, b)
    )
    turns = [np.concatenate([y[k:], y[:k] + 3]) for k in range(3000)]
    turns += [np.concatenate([y[-k:] - 3, y[:-k]]) for k in range(1, 3000)]
    brute = min(np.mean((x - turned) ** 2) for turned in turns)
    np.testing.assert_allclose(float(transport("a circle").distance_squared), brute, rtol=2e-3)


def test_the_map_carries_one_density_to_the_other():
    found = transport("two lines of different cells")
    # The mass to the left of T(x) in b is that to the left of x in a.
    faces_a, faces_b = np.linspace(-1, 2, 41), np.linspace(-1.5, 2, 32)
    below_a, below_b = (
        np.concatenate([[0], np.cumsum(np.asarray(s.values) * s.grid.cell_volume)]) for s in (found.start, found.end)
    )
    points = np.linspace(-0.95, 1.8, 57)
    images = np.asarray(jax.vmap(found.map)(jnp.asarray(points)[:, None]))[:, 0]
    np.testing.assert_allclose(np.interp(images, faces_b, below_b), np.interp(points, faces_a, below_a), atol=1e-14)
    found = transport("Gaussians")
    matrix = found.map.matrix
    np.testing.assert_allclose(matrix @ found.start.covariance @ matrix, found.end.covariance, rtol=1e-12)
    np.testing.assert_allclose(found.map(found.start.mean), found.end.mean, rtol=1e-15)


def test_the_distance_is_differentiable_by_everything_that_moves():
    rng = np.random.default_rng(5)

    def checked(function, at, direction, size=1e-5):
        slope = float(jnp.sum(jax.grad(function)(at) * direction))
        pair = [float(function(at + sign * size * direction)) for sign in (1, -1)]
        # Central differences: size² and the rounding of the values over the size.
        np.testing.assert_allclose(slope, (pair[0] - pair[1]) / (2 * size), rtol=1e-5, atol=1e-8)
        return slope

    for name in ("two lines of different cells", "a circle"):
        a, b = PAIRS[name]()
        direction = np.asarray(a.values > 0) * rng.normal(size=40)
        direction -= np.asarray(a.values > 0) * direction.sum() / np.sum(np.asarray(a.values > 0))
        square_of = lambda v, a=a, b=b: tw.wasserstein_distance(tw.GridDensity(v, a.grid), b).distance_squared  # noqa: E731
        slope = checked(square_of, a.values, direction)
        # It is the potential.
        by_potential = float(transport(name).potentials[0] @ direction * a.grid.cell_volume)
        np.testing.assert_allclose(slope, by_potential, rtol=1e-11)
    for name in ("weighted particles on the line", "an assignment"):
        a, b = PAIRS[name]()
        of_positions = lambda x, a=a: tw.Particles(x, a.log_weights)  # noqa: E731
        square_of = lambda x, b=b, of=of_positions: tw.wasserstein_distance(of(x), b).distance_squared  # noqa: E731
        checked(square_of, a.positions, rng.normal(size=a.positions.shape))
    a, b = PAIRS["a linear program"]()
    of_weights = lambda z: tw.Particles(a.positions, z - jax.nn.logsumexp(z))  # noqa: E731
    by_weights = lambda z: tw.wasserstein_distance(of_weights(z), b).distance_squared  # noqa: E731
    checked(by_weights, a.log_weights, rng.normal(size=20))
    a, b = PAIRS["Gaussians"]()
    symmetric = rng.normal(size=(3, 3))
    by_covariance = lambda c: tw.wasserstein_distance(tw.Gaussian(a.mean, c), b).distance_squared  # noqa: E731
    checked(by_covariance, a.covariance, symmetric + symmetric.T)


def test_it_runs_inside_jit_where_nothing_needs_the_host():
    a, b = PAIRS["a circle"]()
    inside = jax.jit(lambda v: tw.wasserstein_distance(tw.GridDensity(v, a.grid), b).distance_squared)(a.values)
    np.testing.assert_allclose(inside, transport("a circle").distance_squared, rtol=1e-14)
    a, b = PAIRS["an assignment"]()
    with pytest.raises(ValueError, match="runs on the host"):
        jax.jit(lambda x: tw.wasserstein_distance(tw.Particles(x), b).distance_squared)(a.positions)


def test_sinkhorn_brackets_the_distance_and_its_coupling_has_the_marginals():
    a, b = PAIRS["an assignment"]()
    exact = float(transport("an assignment").distance_squared)
    gaps = []
    for epsilon in (0.2, 0.02):
        found = tw.wasserstein_distance(a, b, solver=tw.Sinkhorn(epsilon))
        assert float(found.certificate.dual) < exact < float(found.certificate.primal)
        assert float(found.certificate.primal) == float(found.distance_squared)
        gaps.append(float(found.certificate.gap))
        # Exponents of some hundreds lose as many units in the last place.
        rows = np.asarray(found.coupling.over_rows(lambda i, row: row))
        np.testing.assert_allclose(rows.sum(axis=0), 1 / 60, rtol=1e-12)
        np.testing.assert_allclose(rows.sum(axis=1), 1 / 60, rtol=1e-12)
        np.testing.assert_allclose(found.coupling.expect(square), found.distance_squared, rtol=1e-13)
    assert gaps[1] < 0.2 * gaps[0]
    assert "bias" in found.certificate.statement
    with pytest.raises(tw.UnsupportedCombination, match="no geodesic"):
        found.geodesic(0.5)
    short = tw.wasserstein_distance(a, b, solver=tw.Sinkhorn(0.02, max_steps=3))
    assert "stopped after 3 steps" in short.certificate.statement
    assert float(short.certificate.dual) < exact < float(short.certificate.primal)


def blob(grid, centre, width):
    scaled = lambda x: (x - jnp.asarray(centre)) / jnp.asarray(width)  # noqa: E731
    return tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum(scaled(x) ** 2)), grid)


@pytest.mark.parametrize("shape", [(9, 7), (5, 4, 4)])
def test_on_a_grid_the_bracket_holds_the_exact_distance_of_the_masses_at_the_centres(shape):
    grid = tw.Grid((0.0,) * len(shape), (1.0,) * len(shape), shape)
    rng = np.random.default_rng(2)
    a, b = (tw.GridDensity.normalised(rng.random(shape) * (rng.random(shape) > 0.2), grid) for _ in range(2))
    points = grid.centres.reshape(-1, grid.dim)
    at = lambda s: np.flatnonzero(np.asarray(s.values).ravel())  # noqa: E731
    particles = lambda s: tw.Particles(points[at(s)], jnp.log(s.values.ravel()[at(s)] * grid.cell_volume))  # noqa: E731
    exact = float(tw.wasserstein_distance(particles(a), particles(b)).distance_squared)
    found = tw.wasserstein_distance(a, b, solver=tw.Sinkhorn(3e-4))
    assert float(found.certificate.dual) < exact + 1e-13
    assert float(found.certificate.primal) > exact - 1e-13
    assert float(found.certificate.gap) < 0.05 * exact
    middle = 0.5 * (float(found.certificate.dual) + float(found.certificate.primal))
    assert float(found.distance_squared) == pytest.approx(middle, rel=1e-14)
    # Feasible for every pair of cells, the empty ones too.
    phi, psi = (np.asarray(z).ravel() for z in found.potentials)
    cost = np.sum((np.asarray(points)[:, None] - np.asarray(points)[None]) ** 2, axis=2)
    assert np.min(cost - phi[:, None] - psi[None]) > -1e-14
    # The upper bound is the cost of a coupling with the two marginals.
    plan = np.asarray(found.coupling.over_rows(lambda i, row: row))
    np.testing.assert_allclose(plan.sum(axis=1), a.values.ravel() * grid.cell_volume, atol=1e-15)
    np.testing.assert_allclose(plan.sum(axis=0), b.values.ravel() * grid.cell_volume, atol=1e-15)
    np.testing.assert_allclose(np.sum(plan * cost), found.certificate.primal, rtol=1e-12)


def sparse(grid, seed):
    rng = np.random.default_rng(seed)
    values = rng.random(grid.shape) * (rng.random(grid.shape) > 0.7)
    return tw.GridDensity.normalised(values, grid)


ROOM = np.ones((6, 6), bool)
ROOM[2:4, 1:5] = False


@pytest.mark.parametrize(
    "grid",
    [
        tw.Grid((0.0, 0.0), (1.0, 1.0), (6, 6)),
        tw.Grid((0.0, 0.0), (1.0, 1.0), (6, 6), mask=ROOM),
        tw.Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 3, 4)),
    ],
    ids=["square", "masked", "box"],
)
def test_between_sparse_densities_on_a_grid_the_bracket_is_finite_and_narrow(grid):
    points = np.asarray(grid.centres).reshape(-1, grid.dim)
    for seed in (0, 1):
        a, b = sparse(grid, seed), sparse(grid, seed + 10)
        masses = [np.asarray(s.values).ravel() * grid.cell_volume for s in (a, b)]
        held = [tw.Particles(jnp.asarray(points[m > 0]), jnp.log(m[m > 0])) for m in masses]
        exact = float(tw.wasserstein_distance(*held).distance_squared)
        found = tw.wasserstein_distance(a, b)
        dual, primal = float(found.certificate.dual), float(found.certificate.primal)
        assert dual < exact + 1e-13
        assert exact < primal + 1e-13
        # Epsilon is a fifth or less of the area of a cell here, and so about is the bias.
        assert primal - dual < min(grid.spacing) ** 2
        assert abs(float(found.distance_squared) - exact) <= 0.5 * (primal - dual) + 1e-13
        assert bool(jnp.all(jnp.isfinite(found.map.images)))
        plan = np.asarray(found.coupling.over_rows(lambda i, row: row))
        # Exponents of some hundreds.
        np.testing.assert_allclose(plan.sum(axis=1), masses[0], atol=1e-13)
        np.testing.assert_allclose(plan.sum(axis=0), masses[1], atol=1e-13)
        assert "misses" not in found.certificate.statement
        assert ("through the obstacles" in found.certificate.statement) == (grid.mask is not None)
    assert float(tw.wasserstein_distance(a, a).distance_squared) < 1e-15


def test_on_a_grid_of_narrow_cells_epsilon_is_set_by_their_narrow_side():
    grid = tw.Grid((0.0, 0.0), (4.0, 0.4), (6, 4))
    found = tw.wasserstein_distance(sparse(grid, 0), sparse(grid, 10))
    assert f"epsilon = {0.1**2 * 6 / 32:.3g}" in found.certificate.statement


@pytest.mark.slow
def test_on_a_grid_products_have_the_sum_of_the_distances_of_their_factors():
    for n in (16, 32):
        sides = [tw.Grid(0.0, length, n) for length in (1.0, 1.5)]
        grid = tw.Grid((0.0, 0.0), (1.0, 1.5), (n, n))
        shapes = [((0.4,), (0.1,), (0.6,), (0.15,)), ((0.5,), (0.15,), (0.9,), (0.1,))]
        factors = [(blob(g, c[0], c[1]), blob(g, c[2], c[3])) for g, c in zip(sides, shapes, strict=True)]
        parts = [tw.wasserstein_distance(*pair) for pair in factors]
        a, b = (
            tw.GridDensity.normalised(factors[0][k].values[:, None] * factors[1][k].values[None], grid) for k in (0, 1)
        )
        found = tw.wasserstein_distance(a, b)
        # Masses at the centres go by whole cells: longer by the variance of that rounding, about h²/6 an axis. The
        # value is the middle of a bracket of their distance.
        half = 0.5 * float(found.certificate.gap)
        assert half < 0.15 * (grid.spacing[0] ** 2 + grid.spacing[1] ** 2)
        error = float(found.distance_squared) - sum(float(p.distance_squared) for p in parts)
        assert abs(error) < (grid.spacing[0] ** 2 + grid.spacing[1] ** 2) / 6 + half
        # The map, between the centres, is that of the factors.
        point = jnp.array([0.45, 0.6])
        expected = jnp.concatenate([parts[k].map(point[k : k + 1]) for k in (0, 1)])
        np.testing.assert_allclose(found.map(point), expected, atol=0.6 * grid.spacing[1] * 16 / n)
    direction = np.random.default_rng(0).normal(size=(n, n)) * np.asarray(a.values)
    direction = jnp.asarray(direction - direction.sum() / np.asarray(a.values).sum() * np.asarray(a.values))
    slope = jax.grad(
        lambda s: tw.wasserstein_distance(tw.GridDensity(a.values + s * direction, grid), b).distance_squared
    )
    by_potential = jnp.sum(found.potentials[0] * direction) * grid.cell_volume
    np.testing.assert_allclose(slope(jnp.asarray(0.0)), by_potential, rtol=1e-12)


def test_equal_densities_are_at_distance_zero_with_a_derivative():
    a = rough(tw.Grid(-1.0, 2.0, 40), 0)
    assert float(tw.wasserstein_distance(a, a).distance_squared) < 1e-28
    gradient = jax.grad(lambda v: tw.wasserstein_distance(tw.GridDensity(v, a.grid), a).distance)(a.values)
    assert bool(jnp.all(jnp.isfinite(gradient)))


SQUARE = tw.Grid((0.0, 0.0), (1.0, 1.0), (5, 5))


def unlike(state, **fields):
    """The state with other fields, past the checks of its class."""
    copy = object.__new__(type(state))
    for name in state.__dataclass_fields__:
        object.__setattr__(copy, name, fields.get(name, getattr(state, name)))
    return copy


@pytest.mark.parametrize(
    ("pair", "error", "text"),
    [
        (lambda a: (a, normal(1, 0)), tw.UnsupportedCombination, "one kind"),
        (lambda a: (jnp.zeros(3), jnp.zeros(3)), tw.UnsupportedCombination, "two densities"),
        (lambda a: (normal(2, 0), normal(3, 0)), ValueError, "2 and 3 dimensions"),
        (lambda a: (a, unlike(a, values=0 * a.values)), ValueError, "with mass"),
        (lambda a: (a, unlike(a, values=2 * a.values)), ValueError, "equal masses"),
        (lambda a: (unlike(a, values=2 * a.values), unlike(a, values=2 * a.values)), ValueError, "mass one"),
        (lambda a: (a, unlike(a, values=a.values.at[3].set(jnp.nan))), ValueError, "NaN"),
        (lambda a: (a, unlike(a, values=a.values.at[3].set(-1.0))), ValueError, "negative"),
        (lambda a: (a, rough(tw.Grid(-1.0, 2.0, 40, CIRCLE), 0)), ValueError, "one space"),
        (
            lambda a: (blob(SQUARE, 0.5, 0.1), blob(tw.Grid((0.0, 0.0), (1.0, 1.0), (5, 6)), 0.5, 0.1)),
            ValueError,
            "one grid",
        ),
        (lambda a: (cloud(5000, 2, 0), cloud(5000, 2, 1)), tw.UnsupportedCombination, "Sinkhorn"),
    ],
)
def test_what_cannot_be_transported_says_why(pair, error, text):
    with pytest.raises(error, match=text) as raised:
        tw.wasserstein_distance(*pair(rough(tw.Grid(-1.0, 2.0, 40), 0)))
    assert len(str(raised.value).splitlines()) <= 5


def test_a_transport_and_its_certificate_print_their_numbers_in_one_line():
    grid = tw.Grid(0.0, 4.0, 16)
    a, b = (tw.GridDensity.normalised(jnp.zeros(16).at[k].set(1.0), grid) for k in (2, 10))
    found = tw.wasserstein_distance(a, b)
    assert repr(found).startswith("Transport(GridDensity to GridDensity: W₂ = 2, W₂² = 4;")
    assert "dual 4, primal 4" in repr(found.certificate)
    assert "\n" not in repr(found) + repr(found.certificate)
    # Under a transformation there are no numbers yet.
    seen = []
    jax.jit(lambda v: seen.append(repr(tw.wasserstein_distance(tw.GridDensity(v, grid), b))))(a.values)
    assert "W₂ =" not in seen[0]
