"""The variational finite-volume JKO step: its certificate, its optimality, walls and crowds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.energies import decompose
from thalweg.schemes._implicit_euler import implicit_euler
from thalweg.schemes.proximal_solvers._linearised import LinearisedJKO

W2 = tw.Wasserstein()
BOWL = tw.PotentialEnergy(lambda x: 4 * jnp.sum(x**2) + 0.5 * jnp.sin(9 * x[0]))


def disc(grid):
    return tw.GridDensity.from_function(lambda x: jnp.maximum(0.3 - jnp.sum((x - 0.2) ** 2), 0), grid)


SQUARE = tw.Grid((-1.0, -1.0), (1.0, 1.0), (15, 14))
CEILING = 3.0


@functools.cache
def flowed(name, step, number=1):
    energy = {
        "fokker-planck": 0.1 * tw.Entropy() + BOWL,
        "porous": tw.PorousMedium(2.0) + BOWL,
        "crowd": BOWL + tw.Congestion(CEILING),
        "warm crowd": BOWL + 0.02 * tw.Entropy() + tw.Congestion(CEILING),
    }[name]
    scheme = tw.Proximal(step, solver=LinearisedJKO())
    return energy, tw.flow(energy, disc(SQUARE), geometry=W2, scheme=scheme, num_steps=number)


@pytest.mark.parametrize("step", [3e-3, 0.3])
@pytest.mark.parametrize("name", ["fokker-planck", "porous", "crowd"])
def test_a_step_is_certified_whatever_its_length(name, step):
    energy, path = flowed(name, step)
    assert float(path.measurements["residual"][1]) <= 1e-6
    assert float(path.energies[1] + path.distances_squared[1] / (2 * step)) <= float(path.energies[0])
    values = path.final.state.values
    assert float(values.min()) >= 0
    np.testing.assert_allclose(float(path.final.state.mass), 1, atol=1e-13)
    if name == "crowd":
        assert float(values.max()) <= CEILING
        assert float(energy(path.final.state)) < np.inf


def test_small_steps_are_those_of_the_implicit_scheme():
    # Both have upstream densities where there is no entropy: they differ by the term τ/2 |∇ψ|² alone.
    structure = decompose(tw.PorousMedium(2.0) + BOWL)
    solve = jax.jit(lambda q, tau: implicit_euler(structure, None, q, tau, 1e-11, jnp.asarray(True)))
    differences = []
    for step in (2e-3, 1e-3):
        _, path = flowed("porous", step)
        reference = solve(disc(SQUARE), jnp.asarray(step)).values
        moved = float(jnp.sum(jnp.abs(reference - disc(SQUARE).values)))
        differences.append(float(jnp.sum(jnp.abs(path.final.state.values - reference))) / moved)
    # It is of the order of the step, so half as much for half the step.
    assert differences[1] < 0.7 * differences[0] < 0.2


def test_a_long_flow_ends_at_the_gibbs_state():
    _, path = flowed("fokker-planck", 2.0, 8)
    gibbs = tw.GridDensity.from_log_density(lambda x: -(4 * jnp.sum(x**2) + 0.5 * jnp.sin(9 * x[0])) / 0.1, SQUARE)
    assert float(jnp.sum(jnp.abs(path.final.state.values - gibbs.values))) * SQUARE.cell_volume < 2e-3


def test_a_full_crowd_settles_as_low_as_the_ceiling_lets_it():
    _, path = flowed("warm crowd", 0.3, 5)
    values = np.asarray(path.final.state.values)
    # The bathtub: full cells lie lower than empty ones; the temperature rounds its edge.
    height = np.asarray(path.final.state.on_cells(BOWL.potential))
    full, empty = values > CEILING * (1 - 1e-3), values < 1e-3 * CEILING
    assert 10 < full.sum() < 100
    assert height[full].max() <= height[empty].min() + 1e-6


def test_a_crowd_leaves_a_room_around_an_obstacle():
    mask = np.ones((18, 12), bool)
    mask[10, :5] = mask[10, 7:] = False
    mask[6:8, 5:7] = False
    grid = tw.Grid((0.0, 0.0), (1.8, 1.2), (18, 12), mask=mask)
    x = np.asarray(grid.centres)
    start = tw.GridDensity.normalised(jnp.asarray(((x[..., 0] < 0.5) & mask) * 1.0), grid)
    # Inside the distance to the door, outside the distance walked from it.
    energy = tw.PotentialEnergy(
        lambda x: jnp.where(x[0] < 1.05, jnp.hypot(x[0] - 1.05, x[1] - 0.6), 1.05 - x[0])
    ) + tw.Congestion(2.5)
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Proximal(0.2, solver=LinearisedJKO()), num_steps=6)
    values = np.asarray(path.states.values)
    assert (values[:, ~mask] == 0).all()
    assert values.max() <= 2.5
    outside = values[:, 11:].sum((1, 2)) * grid.cell_volume
    assert outside[0] == 0
    assert outside[-1] > 0.2
    assert np.all(np.diff(outside) > -1e-9)
    assert np.all(np.asarray(path.measurements["residual"])[1:] <= 1e-6)


def test_a_mobility_that_is_not_proportional_is_refused():
    metric = tw.Wasserstein(mobility=lambda x, q: q * (1 - q)).at(disc(SQUARE))
    refused = LinearisedJKO().why_unsupported(BOWL, metric)
    assert refused is not None
    assert "a(x) q" in refused


LINE = tw.Grid(-1.0, 1.0, 24)
TEMPERATURE = 0.1


def beside_walls(potential, start, step, number=1, size=1.0):
    energy = tw.PotentialEnergy(lambda x: size * potential(x)) + size * TEMPERATURE * tw.Entropy()
    return energy, tw.flow(
        energy, start, geometry=W2, scheme=tw.Proximal(step, solver=LinearisedJKO()), num_steps=number
    )


def wall(height):
    return lambda x: x[0] ** 2 / 2 + jnp.where(jnp.abs(x[0]) > 0.93, height, 0)


def gibbs(potential):
    return tw.GridDensity.from_log_density(lambda x: -potential(x) / TEMPERATURE, LINE)


def heap(potential):
    return tw.GridDensity.from_function(
        lambda x: jnp.where(jnp.isinf(potential(x)), 0, jnp.exp(-20 * (x[0] - 0.3) ** 2)), LINE
    )


@pytest.mark.parametrize("height", [1e2, 1e6, 1e8, jnp.inf])
def test_a_wall_of_any_height_in_a_few_cells_does_not_coarsen_the_solution(height):
    potential = wall(height)
    energy, path = beside_walls(potential, heap(potential), 100.0, 2)
    # D/2τ is 1.4e-5/200 in the second step; the first pays J²/q for leaving the wall. Then 1e-6 of the energy's scale.
    least = float(energy(gibbs(potential)))
    assert abs(float(path.energies[-1]) - least) < 1e-7
    assert float(path.measurements["residual"][1:].max()) <= 1e-6
    if height < np.inf:
        solver = LinearisedJKO(tolerance=1e-10)
        scheme = tw.Proximal(100.0, solver=solver)
        sharp = tw.flow(energy, heap(potential), geometry=W2, scheme=scheme, num_steps=1)
        np.testing.assert_allclose(path.energies[1], sharp.energies[1], atol=2e-7)


@pytest.mark.parametrize("step", [1e-3, 1.0])
@pytest.mark.parametrize(
    "potential", [wall(1e8), wall(jnp.inf), lambda x: x[0] ** 2 / 2 + 1e6 * jnp.maximum(jnp.abs(x[0]) - 0.8, 0) ** 2]
)
def test_the_gibbs_state_beside_walls_is_left_where_it_is(potential, step):
    start = gibbs(potential)
    _, path = beside_walls(potential, start, step, 2)
    # Whatever moves is below the square root of the tolerance of the energy.
    assert float(jnp.sum(jnp.abs(path.final.state.values - start.values))) * LINE.cell_volume < 1e-6
    assert float(path.energies[-1]) <= float(path.energies[0])


def test_a_small_energy_for_a_long_time_is_a_large_one_for_a_short_time():
    _, one = beside_walls(wall(1.0), heap(wall(1.0)), 0.3)
    _, small = beside_walls(wall(1.0), heap(wall(1.0)), 0.3e14, size=1e-14)
    np.testing.assert_allclose(one.final.state.values, small.final.state.values, atol=1e-5)
    assert int(one.measurements["newton_steps"][1]) == int(small.measurements["newton_steps"][1])
