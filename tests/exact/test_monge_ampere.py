"""The true JKO step in the plane by Newton's method for the Monge–Ampère equation, against closed forms 8 and 9."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import thalweg as tw
from tests.exact.jko_cases import BOWL, BOWL_RADIUS, assert_lawful, averaged, disc, many_wells, square
from thalweg.transport._continuation import continuation, continued, gathered
from thalweg.transport._filling import smoothly_filled
from thalweg.transport._image_mass import carried, carried_and_sensitivity, mass_table, moves, varied
from thalweg.transport._jumps import softened, softness
from thalweg.transport._multigrid import Elliptic, hierarchy, in_single_precision, v_cycle
from thalweg.transport._unsymmetric import conjugate_residuals

W2 = tw.Wasserstein()


def flowed(energy, q0, step, num_steps=1, **options):
    scheme = tw.Proximal(step, solver=tw.MongeAmpereJKO(**options))
    return tw.flow(energy, q0, geometry=W2, scheme=scheme, num_steps=num_steps)


def test_steps_of_a_barenblatt_profile_stay_in_its_family():
    n, step, start = 64, 9.215e-5, 0.1999746
    profile = lambda radius: averaged(n, lambda r2: np.maximum(1 - r2 / radius**2, 0))  # noqa: E731
    path = flowed(tw.PorousMedium(2.0), tw.GridDensity.normalised(jnp.asarray(profile(start)), square(n)), step, 2)
    assert_lawful(path, step, 1e-6)
    for k, radius in ((1, 0.2215524), (2, 0.2387871)):
        # 7.5e-4 and 5.8e-4 were measured: of the front, where a cell is the unit.
        assert float(jnp.mean(jnp.abs(path.state_at(k).values - profile(radius)))) < 1e-3
    # The mean of |T(x) − x|² of the exact step, R₀ → R₁ with second moment ⅓ of the unit profile.
    np.testing.assert_allclose(float(path.distances_squared[1]), (0.2215524 - start) ** 2 / 3, rtol=0.02)


def test_a_large_step_of_a_gaussian_meets_its_closed_form_and_the_gibbs_state_stays():
    rate, centre, temperature, step, deviation = 1.5, 0.3, 0.8, 0.2, 0.6
    grid = tw.Grid((-6.0, -6.0), (6.0, 6.0), (64, 64))
    energy = tw.PotentialEnergy(lambda x: 0.5 * rate * jnp.sum((x - centre) ** 2)) + temperature * tw.Entropy()

    def gaussian(mean, deviation):
        return tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum((x - mean) ** 2) / (2 * deviation**2)), grid)

    path = flowed(energy, gaussian(1.0, deviation), step)
    assert_lawful(path, step, 1e-6)
    shrink = 1 + step * rate
    after = (deviation + np.sqrt(deviation**2 + 4 * temperature * step * shrink)) / (2 * shrink)
    expected, mean = gaussian((1 + step * rate * centre) / shrink, after), (1 + step * rate * centre) / shrink
    # 4e-4 of the mass was measured; a cell is a third of the deviation.
    assert float(jnp.sum(jnp.abs(path.final.state.values - expected.values)) * grid.cell_volume) < 1e-3
    exact = 2 * ((after - deviation) ** 2 + (1 - mean) ** 2)
    np.testing.assert_allclose(float(path.distances_squared[1]), exact, rtol=3e-3)
    assert abs(float(path.measurements["duality_gap"][1])) < 1e-3

    gibbs = gaussian(centre, np.sqrt(temperature / rate))
    still = flowed(energy, gibbs, step)
    np.testing.assert_array_equal(still.final.state.values, gibbs.values)
    assert int(still.measurements["newton_steps"][1]) == 0


def barenblatt(radius, n=64):
    return averaged(n, lambda r2: np.maximum(1 - r2 / radius**2, 0))


def exact_step(radius, step):
    """The radius after an exact step of `BOWL`, among the profiles of its family."""
    slope = lambda r: 8 * r / 3 - 0.4 / (3 * np.pi * r**3) + (r - radius) / (3 * step)  # noqa: E731
    return float(np.asarray(brentq(slope, 0.01, 1.0)))


def confined(radius, step, num_steps=1):
    start = tw.GridDensity.normalised(jnp.asarray(barenblatt(radius)), square(64))
    scheme = tw.Proximal(jnp.asarray(step), solver=tw.MongeAmpereJKO())
    return tw.flow(BOWL, start, geometry=W2, scheme=scheme, num_steps=num_steps, throw=False)


def test_the_distance_of_a_step_is_that_of_the_exact_one_and_a_map_that_folds_is_no_step():
    # Measured: L¹ 5e-4, 4e-4, 3e-4; distances to 2e-4, 2e-3, 3e-3.
    for radius, step in ((0.3, 0.003), (0.2, 0.01), (0.4, 0.01)):
        path, after = confined(radius, step), exact_step(radius, step)
        assert path.result == tw.RESULTS.successful
        assert float(jnp.mean(jnp.abs(path.final.state.values - barenblatt(after)))) < 1e-3
        np.testing.assert_allclose(float(path.distances_squared[1]), (after - radius) ** 2 / 3, rtol=0.01)
    # A start of a few cells that moves by many of its widths: the carried mass fits, by a map that folds, and the
    # density would be off by 5 % and 10 % of the mass.
    for radius, step in ((0.07, 0.003), (0.05, 0.001)):
        path = confined(radius, step)
        assert path.result == tw.RESULTS.inner_solver_failed
        np.testing.assert_allclose(path.final.state.values, barenblatt(radius), rtol=1e-12)


def test_a_flow_with_a_front_comes_to_rest_next_to_its_equilibrium():
    path = confined(0.4, 0.03, 16)
    assert path.result == tw.RESULTS.successful
    assert_lawful(path, 0.03, 1e-6)
    equilibrium = barenblatt(BOWL_RADIUS)
    far = [float(jnp.mean(jnp.abs(path.state_at(k).values - equilibrium))) for k in (0, 16)]
    assert far[0] > 0.2
    assert far[1] < 3e-3
    held = path.measurements["held"]
    assert int(jnp.sum(held[:6])) == 0
    rests = jnp.flatnonzero(held)
    for k in rests.tolist():
        np.testing.assert_array_equal(path.state_at(k).values, path.state_at(k - 1).values)
        assert float(path.distances_squared[k]) == 0


@pytest.mark.parametrize("boundary", [tw.NoFlux(), (tw.Periodic(), tw.NoFlux())])
def test_tiles_that_are_passed_over_are_those_where_nothing_arrives(boundary):
    grid = tw.Grid((0.0, 0.0), (1.0, 1.3), (80, 100), boundary)
    far = (grid.centres[..., 0] - 0.2) ** 2 + (grid.centres[..., 1] - 1.0) ** 2
    density = jnp.maximum(0.02 - far, 0) * (1 + 0.5 * jax.random.uniform(jax.random.key(1), grid.shape))
    table = mass_table(density, grid)
    points = grid.centres
    # Up to 24 cells to one side, with some rotation; half of it beyond a wall, or around.
    f = -0.3 * points[..., 0] + 0.2 * points[..., 1] + 0.05 * jnp.sin(3 * points[..., 0]) * points[..., 1]
    moved = moves(f, grid, 1.0)
    blocks = jnp.ones(tuple(n - 1 for n in table.occupied.shape), jnp.int32)
    everywhere = table._replace(occupied=jnp.pad(jnp.cumsum(jnp.cumsum(blocks, 0), 1), ((1, 0), (1, 0))))
    arrived, sensitivity = carried_and_sensitivity(table, moved, grid)
    expected, full = carried_and_sensitivity(everywhere, moved, grid)
    assert bool(jnp.all(full.looked_up))
    assert float(jnp.mean(sensitivity.looked_up)) < 0.7
    np.testing.assert_allclose(arrived, expected, atol=1e-14)
    np.testing.assert_allclose(carried(table, moved, grid), expected, atol=1e-14)
    change = moves(0.1 * jnp.cos(5 * points[..., 0] + points[..., 1]), grid, 1.0)
    np.testing.assert_allclose(varied(sensitivity, change), varied(full, change), atol=1e-13)
    # What is wanted is right; tiles without are not looked at.
    wanted = arrived > 0.3 * jnp.max(arrived)
    partly, known = carried_and_sensitivity(table, moved, grid, wanted)
    np.testing.assert_allclose(jnp.where(wanted, partly - expected, 0), 0, atol=1e-14)
    np.testing.assert_allclose(jnp.where(wanted, varied(known, change) - varied(full, change), 0), 0, atol=1e-13)
    # A place that is not a number is looked up, and says so.
    lost = carried(table, moves(f.at[70, 5].set(jnp.nan), grid, 1.0), grid)
    assert bool(jnp.any(jnp.isnan(lost)))


@pytest.mark.parametrize("unit", [1.0, 1e-100, 1e150])
def test_a_cycle_in_single_precision_is_the_cycle_to_its_digits_in_any_unit(unit):
    keys = jax.random.split(jax.random.key(2), 4)
    draw = lambda key: jnp.exp(4 * jax.random.normal(key, (48, 32)))  # noqa: E731
    operator = Elliptic(unit * draw(keys[0]), tuple(unit * draw(key) for key in keys[1:3]))
    right = jax.random.normal(keys[3], (48, 32)) / unit
    levels = hierarchy(operator)
    expected = v_cycle(levels, right)
    found = in_single_precision(levels)(right)
    assert float(jnp.linalg.norm((found - expected) * unit**2) / jnp.linalg.norm(expected * unit**2)) < 1e-4


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`tolerance` of `MongeAmpereJKO` must be a positive"):
        tw.MongeAmpereJKO(tolerance=-1.0)
    with pytest.raises(ValueError, match="`max_steps` of `BackAndForth` must be at least one"):
        tw.BackAndForth(max_steps=0)


@pytest.mark.slow
def test_a_disc_with_a_jump_moves_by_many_cells_and_lands_where_a_finer_grid_puts_it():
    energy, step = tw.PotentialEnergy(many_wells) + 0.05 * tw.PorousMedium(2.0), 0.005
    coarse, fine = (flowed(energy, disc(n), step, 2) for n in (64, 128))
    for path in (coarse, fine):
        assert_lawful(path, step, 1e-6)
        assert float(path.measurements["softened"][1]) > 0.05
        values = path.state_at(1).values
        # The residual is an L¹ norm as a share of the mass: that is how far from symmetric the density may be.
        assert float(jnp.mean(jnp.abs(values - values[::-1, ::-1]))) < 1e-5
        assert 9.5 < float(jnp.max(values)) < 10.5
    restricted = fine.final.state.values.reshape(64, 2, 64, 2).mean((1, 3))
    assert float(jnp.mean(jnp.abs(coarse.final.state.values - restricted))) < 0.02


@pytest.mark.slow
def test_mass_that_is_driven_to_a_wall_stays_in_the_box_and_goes_around_a_torus():
    start = tw.GridDensity.from_function(lambda x: jnp.maximum(0.15**2 - jnp.sum((x - 0.5) ** 2), 0), square(48))
    energy = tw.PotentialEnergy(lambda x: 3 * x[0]) + 0.05 * tw.PorousMedium(2.0)
    path = flowed(energy, start, 0.02, 8)
    assert_lawful(path, 0.02, 1e-6)
    assert float(path.final.state.mean()[0]) < 0.2
    # On a torus a density and its flow can be moved by any number of cells.
    torus = square(32, tw.Periodic())
    bump = lambda x: 1 + 0.9 * jnp.cos(2 * jnp.pi * x[0]) * jnp.cos(2 * jnp.pi * x[1])  # noqa: E731
    values = tw.GridDensity.from_function(bump, torus).values
    ends = []
    for by in (0, 13):
        q0 = tw.GridDensity(jnp.roll(values, (by, by), (0, 1)), torus)
        path = flowed(0.1 * tw.PorousMedium(2.0), q0, 0.02)
        assert_lawful(path, 0.02, 1e-6)
        ends.append(jnp.roll(path.final.state.values, (-by, -by), (0, 1)))
    # To the residual that both have, in L¹.
    assert float(jnp.mean(jnp.abs(ends[0] - ends[1]))) < 1e-5


@pytest.mark.parametrize("boundary", [tw.NoFlux(), (tw.Periodic(), tw.NoFlux())])
def test_what_a_map_carries_keeps_the_mass_the_sign_and_what_rests_and_has_the_derivative_that_is_used(boundary):
    grid = tw.Grid((0.0, 0.0), (1.0, 1.3), (20, 26), boundary)
    density = 0.1 + jax.random.uniform(jax.random.key(0), grid.shape)
    table, points = mass_table(density, grid), grid.centres
    f = 0.01 * jnp.sin(2 * jnp.pi * points[..., 0]) * jnp.cos(points[..., 1])
    put = lambda f: carried(table, moves(f, grid, 1.0), grid)  # noqa: E731
    np.testing.assert_allclose(put(0 * f), density, atol=1e-12)
    arrived = put(f)
    np.testing.assert_allclose(jnp.sum(arrived), jnp.sum(density), rtol=1e-13)
    assert float(jnp.min(arrived)) >= 0
    again, sensitivity = carried_and_sensitivity(table, moves(f, grid, 1.0), grid)
    np.testing.assert_allclose(again, arrived, atol=1e-12)
    change = 1e-3 * jax.random.normal(jax.random.key(1), grid.shape)
    expected = jax.jvp(put, (f,), (change,))[1]
    np.testing.assert_allclose(varied(sensitivity, moves(change, grid, 1.0)), expected, atol=1e-10)


def test_what_a_smooth_map_carries_is_right_to_second_order():
    # The density of X⁻¹ applied to q is q(X) det DX; with constants in the cells the errors would halve.
    def error(n):
        grid = square(n)
        x, y = (grid.axis_centres(axis) for axis in (0, 1))
        across = jnp.cos(2 * jnp.pi * y)[None]
        density = 1 + 0.5 * jnp.cos(jnp.pi * x)[:, None] * across
        size = 0.02
        f = size * jnp.cos(jnp.pi * x)[:, None] * jnp.ones((1, n))
        image, stretch = x - size * jnp.pi * jnp.sin(jnp.pi * x), 1 - size * jnp.pi**2 * jnp.cos(jnp.pi * x)
        exact = (1 + 0.5 * jnp.cos(jnp.pi * image)[:, None] * across) * stretch[:, None]
        return float(jnp.mean(jnp.abs(carried(mass_table(density, grid), moves(f, grid, 1.0), grid) - exact)))

    assert error(64) / error(32) < 0.3


def test_only_jumps_that_move_are_softened():
    n = 48
    grid = square(n)
    disc = jnp.asarray(averaged(n, lambda r2: (r2 < 0.04) * 1.0))
    cone = jnp.asarray(averaged(n, lambda r2: np.maximum(1 - r2 / 0.04, 0)))
    away, still = jnp.full((n, n), 12.0), jnp.zeros((n, n))
    soften = lambda q, way: softened(q, softness(q, way, grid), grid)  # noqa: E731
    np.testing.assert_array_equal(soften(disc, still), disc)
    np.testing.assert_array_equal(soften(cone, away), cone)
    soft = soften(disc, away)
    np.testing.assert_allclose(jnp.sum(soft), jnp.sum(disc), rtol=1e-13)
    assert float(jnp.min(soft)) >= 0
    steps = lambda q: float(jnp.max(jnp.abs(jnp.diff(q, axis=0))))  # noqa: E731
    assert steps(soft) < 0.4 * steps(disc)


def test_a_plane_is_filled_by_itself_and_nearly_symmetric_equations_are_solved():
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (24, 24), tw.NoFlux())
    points = grid.centres
    known = jnp.sum((points - 0.5) ** 2, axis=-1) < 0.09
    plane = 1 + points[..., 0] - 2 * points[..., 1]
    filled = smoothly_filled(jnp.where(known, plane, 0), known, grid)
    beside = jnp.sum((points - 0.5) ** 2, axis=-1) < 0.12
    np.testing.assert_allclose(filled[known], plane[known], rtol=1e-12)
    # Walls have no slope across them, so it is a plane only near what is known.
    assert float(jnp.max(jnp.abs(filled - plane)[beside])) < 0.03

    matrix = jnp.diag(jnp.linspace(1, 30, 40)) + 0.3 * jax.random.normal(jax.random.key(0), (40, 40))
    right = jnp.ones((40,))
    found, steps = conjugate_residuals(lambda v: matrix @ v, lambda v: v / jnp.diag(matrix), right, 1e-10, 80)
    assert float(jnp.linalg.norm(matrix @ found - right)) <= 1e-10 * float(jnp.linalg.norm(right))
    assert int(steps) < 60


@pytest.mark.parametrize(
    ("energy", "word"),
    [
        (tw.PotentialEnergy(lambda x: jnp.sum(x**2)), "plus one of"),
        (tw.Entropy() + tw.PorousMedium(2.0), "plus one of"),
        (tw.PorousMedium(0.5), "m > 1"),
        (tw.Entropy() + tw.Congestion(3.0), "plus one of"),
        (tw.Congestion(3.0) + tw.PotentialEnergy(lambda x: jnp.sum(x**2)), "plus one of"),
        (tw.Entropy() + tw.InteractionEnergy(lambda z: jnp.sum(z**2)), "LinearisedJKO"),
    ],
)
def test_what_it_cannot_take_is_said_before_anything_is_compiled(energy, word):
    q0 = tw.GridDensity.normalised(jnp.ones((8, 8)), square(8))
    with pytest.raises(tw.UnsupportedCombination, match=word):
        flowed(energy, q0, 0.1)


def test_what_moves_by_a_millionth_of_the_mass_moves():
    grid, step, rate = square(24), 0.05, 1e-3
    wave = jnp.cos(jnp.pi * grid.centres[..., 0])
    q0 = tw.GridDensity.normalised(1 + 1e-3 * wave, grid)
    path = flowed(rate * tw.Entropy(), q0, step, 4)
    left = float(jnp.sum((path.final.state.values - 1) * wave) / jnp.sum((q0.values - 1) * wave))
    # Of the heat equation to second order in h, and of the step to first: 0.2 % of what moved was measured.
    np.testing.assert_allclose(1 - left, 1 - (1 + step * rate * np.pi**2) ** -4, rtol=0.01)


def test_a_crowd_stays_below_its_ceiling_with_its_mass():
    energy = tw.PotentialEnergy(lambda x: 4 * x[0]) + 0.05 * tw.PorousMedium(2.0) + tw.Congestion(1.5)
    start = tw.GridDensity.from_function(lambda x: 1 + 0.2 * jnp.cos(jnp.pi * x[0]), square(24))
    path = flowed(energy, start, 0.05)
    assert_lawful(path, 0.05, 1e-6)
    assert 1.49 < float(jnp.max(path.final.state.values)) <= 1.5


def test_a_derivative_is_refused_in_words():
    q0 = tw.GridDensity.normalised(jnp.ones((16, 16)), square(16))

    def mean(slope):
        energy = tw.PotentialEnergy(lambda x: slope * x[0]) + 0.1 * tw.Entropy()
        scheme = tw.Proximal(0.05, solver=tw.MongeAmpereJKO())
        return tw.rollout(energy, q0, geometry=W2, scheme=scheme, num_steps=1).final.state.mean()[0]

    with pytest.raises(RuntimeError, match="has no derivative"):
        jax.grad(mean)(1.0)


@pytest.mark.parametrize("boundary", [tw.NoFlux(), (tw.Periodic(), tw.NoFlux())])
def test_a_parabola_goes_on_by_itself_and_what_is_gathered_from_beyond_is_all_there(boundary):
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (24, 30), boundary)
    x, y = grid.centres[..., 0], grid.centres[..., 1]
    known, curved = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.06, x**2 - 3 * x * y + y
    if grid.is_periodic(0):
        known, curved = jnp.roll(known, 11, 0), jnp.roll(curved, 11, 0)
    way = continuation(known, grid, 4, curved.dtype)
    assert bool(way.complete)
    further = continued(curved, way, 4)
    np.testing.assert_allclose(further[way.within(2)], curved[way.within(2)], atol=1e-12)
    # From the third ring on it is a line.
    assert 1e-4 < float(jnp.max(jnp.abs(further - curved)[way.within(4)])) < 0.1
    one, other = (jax.random.normal(jax.random.key(k), grid.shape) for k in (0, 1))
    there = jnp.where(way.within(4), other, 0)
    back = gathered(other, way, 4)
    np.testing.assert_allclose(jnp.sum(continued(one, way, 4) * there), jnp.sum(one * back), rtol=1e-10)
    np.testing.assert_allclose(jnp.sum(back), jnp.sum(there), rtol=1e-10)


@pytest.mark.slow
def test_a_front_that_moves_by_twenty_cells_is_found_and_where_it_is_not_a_floor_serves():
    path = flowed(tw.PotentialEnergy(many_wells) + 0.05 * tw.PorousMedium(2.0), disc(256), 0.005, 2)
    assert_lawful(path, 0.005, 1e-6)
    assert bool(jnp.all(path.measurements["newton_steps"][1:] <= 12))
    # With m = 1.5 a density ends so gently that the cells at its front say nothing.
    one = averaged(64, lambda r2: (r2 < 0.0144) * 1.0)
    twins = tw.GridDensity.normalised(jnp.asarray(np.roll(one, 13, 0) + np.roll(one, -13, 0)), square(64))
    assert_lawful(flowed(0.02 * tw.PorousMedium(1.5), twins, 0.01, 2), 0.01, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.02, 0.05])
def test_a_disc_that_falls_against_a_wall_does_without_a_front_where_it_finds_none(step):
    # The front meets the wall at an angle: some steps converge with floors alone.
    block = tw.GridDensity.normalised(jnp.asarray(averaged(64, lambda r2: (r2 < 0.0225) * 1.0)), square(64))
    path = flowed(tw.PotentialEnergy(lambda x: 3 * x[0]) + 0.05 * tw.PorousMedium(2.0), block, step, 3)
    assert_lawful(path, step, 1e-6)


@pytest.mark.slow
def test_an_entropy_spreads_a_disc_over_the_room():
    block = tw.GridDensity.normalised(jnp.asarray(averaged(64, lambda r2: (r2 < 0.0144) * 1.0)), square(64))
    path = flowed(0.1 * tw.Entropy(), block, 0.05, 2)
    # The first step starts from a jump, and stops at 3e-4.
    assert_lawful(path, 0.05, 1e-3)
    assert float(jnp.min(path.final.state.values)) > 0
