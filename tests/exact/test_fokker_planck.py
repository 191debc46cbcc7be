"""Case (c): Wasserstein flows of grid densities against closed forms 1 to 6 and 10."""

import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

W2 = tw.Wasserstein()


def l1(values, expected, grid):
    return float(jnp.sum(jnp.abs(values - expected)) * grid.cell_volume)


def run(energy, q0, final_time, **options):
    return tw.flow(energy, q0, geometry=W2, scheme=tw.Continuous(final_time), final_time=final_time, **options)


def cell_means(problem, shape, time):
    return problem.cell_averages(time, shape)


def kept(path):
    """Mass, sign and energy along the whole path."""
    mass = jnp.sum(path.states.values.reshape(len(path), -1), axis=1) * path.final.state.grid.cell_volume
    np.testing.assert_allclose(mass, 1, atol=1e-12)
    assert float(jnp.min(path.states.values)) >= 0
    scale = float(jnp.max(jnp.abs(path.energies))) + 1
    assert float(jnp.max(jnp.diff(path.energies))) <= 1e-13 * scale


@pytest.mark.parametrize(("name", "order"), [("ornstein_uhlenbeck", 1.8), ("quadratic_interaction", 1.8)])
def test_gaussian_solutions_are_met_with_second_order(name, order):
    problem = tw.problems.get(name)
    time = 0.5 * problem.final_time
    errors = []
    for n in (40, 80):
        q0 = tw.GridDensity.normalised(problem.cell_averages(0.0, n), problem.grid(n))
        path = run(problem.energy(), q0, time)
        kept(path)
        errors.append(l1(path.final.state.values, problem.cell_averages(time, n), q0.grid))
    assert errors[1] < 1e-2
    assert np.log2(errors[0] / errors[1]) > order


def test_no_flux_heat_damps_each_cosine_at_its_rate():
    n, wave, amplitude, temperature, time = 64, 3, 0.5, 0.7, 0.02
    grid = tw.Grid(0.0, 1.0, n)
    x = grid.centres[:, 0]
    q0 = tw.GridDensity(1 + amplitude * jnp.cos(wave * jnp.pi * x), grid)
    path = run(temperature * tw.Entropy(), q0, time)
    kept(path)
    # The discrete rate, closed form 2: only the error in time is left.
    rate = (2 - 2 * np.cos(wave * np.pi / n)) / (1 / n) ** 2
    expected = 1 + amplitude * np.exp(-temperature * rate * time) * np.cos(wave * np.pi * np.asarray(x))
    assert l1(path.final.state.values, expected, grid) < 1e-4


def test_periodic_heat_damps_and_keeps_the_phase_of_a_wave():
    n, time = 60, 0.5
    grid = tw.Grid(-jnp.pi, jnp.pi, n, boundary=tw.Periodic())
    x = grid.centres[:, 0]
    q0 = tw.GridDensity((1 + 0.8 * jnp.cos(x - 1.0)) / (2 * jnp.pi), grid)
    path = run(tw.Entropy(), q0, time)
    kept(path)
    h = 2 * np.pi / n
    rate = (2 - 2 * np.cos(h)) / h**2
    expected = (1 + 0.8 * np.exp(-rate * time) * np.cos(np.asarray(x) - 1.0)) / (2 * np.pi)
    assert l1(path.final.state.values, expected, grid) < 1e-4


@pytest.mark.parametrize("boundary", [(tw.NoFlux(), tw.NoFlux()), (tw.Periodic(), tw.NoFlux())], ids=["walls", "mixed"])
@pytest.mark.parametrize("scheme", [tw.Continuous(0.5), tw.Explicit(1e-3)], ids=["continuous", "explicit"])
def test_the_discrete_gibbs_state_stays_in_any_potential(boundary, scheme):
    def potential(x):
        return jnp.sin(2 * x[0]) + 0.3 * x[1] ** 2 + 0.5 * jnp.cos(x[0]) * x[1]

    grid = tw.Grid((-jnp.pi, -2.0), (jnp.pi, 2.0), (24, 20), boundary=boundary)
    gibbs = tw.GridDensity.from_log_density(lambda x: -potential(x) / 0.4, grid)
    energy = tw.PotentialEnergy(potential) + 0.4 * tw.Entropy()
    path = tw.flow(energy, gibbs, geometry=W2, scheme=scheme, num_steps=5)
    assert float(jnp.max(jnp.abs(path.final.state.values - gibbs.values))) < 1e-12


def test_a_2d_flow_with_correlated_potential_reaches_gibbs():
    grid = tw.Grid((-2.5, -2.5), (2.5, 2.5), (32, 32))
    log_p = lambda x: -(x[0] ** 2 + x[1] ** 2 + 1.2 * x[0] * x[1])  # noqa: E731
    q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-4 * jnp.sum((x - 0.7) ** 2)), grid)
    path = run(tw.KL(tw.Target(log_p, 2)), q0, 12.0)
    kept(path)
    expected = tw.GridDensity.from_log_density(log_p, grid).values
    # The slowest rate is 0.8, so e^{-9.6} = 7e-5 of the start is left.
    assert l1(path.final.state.values, expected, grid) < 2e-4


def test_the_explicit_update_of_the_article_is_the_pde_where_it_is_stable_and_named_where_not():
    problem = tw.problems.get("ornstein_uhlenbeck")
    n, time = 60, 0.2
    q0 = tw.GridDensity.normalised(problem.cell_averages(0.0, n), problem.grid(n))
    h, temperature = q0.grid.cell_volume, problem.temperature
    limit = h**2 / (2 * temperature)
    small = tw.flow(problem.energy(), q0, geometry=W2, scheme=tw.Explicit(0.4 * limit), final_time=time)
    fine = run(problem.energy(), q0, time)
    # First order in time: the two differ by O(step).
    assert l1(small.final.state.values, fine.final.state.values, q0.grid) < 20 * limit
    large = tw.flow(problem.energy(), q0, geometry=W2, scheme=tw.Explicit(8 * limit), final_time=time, throw=False)
    assert large.result == tw.RESULTS.negative_density
    assert float(jnp.min(large.final.state.values)) >= 0
    assert "h²" in large.message


def test_fronts_move_as_barenblatts():
    problem = tw.problems.get("barenblatt")
    time = problem.final_time
    errors = []
    for n in (50, 100):
        q0 = tw.GridDensity.normalised(problem.cell_averages(0.0, n), problem.grid(n))
        path = run(problem.energy(), q0, time)
        kept(path)
        errors.append(l1(path.final.state.values, problem.cell_averages(time, n), q0.grid))
    # The profile has a kink at its front, so the order lies between one and two.
    assert errors[1] < 5e-3
    assert errors[0] / errors[1] > 1.8


def test_a_confined_gas_comes_to_rest_in_barenblatts_profile():
    problem = tw.problems.get("confined_barenblatt")
    n, time = 60, problem.final_time
    q0 = tw.GridDensity.normalised(problem.cell_averages(0.0, n), problem.grid(n))
    path = run(problem.energy(), q0, time)
    kept(path)
    # What is left is where in its cell the front lies: the square of the width.
    error = l1(path.final.state.values, problem.cell_averages(time, n), q0.grid)
    assert error < 0.2 * q0.grid.cell_volume**2


def test_the_porous_medium_in_a_well_keeps_its_steady_state():
    # Closed form 6 with m = 2, γ = 1: q = (C − V)₊/2 on the support.
    grid = tw.Grid(-2.0, 2.0, 80)
    x = grid.centres[:, 0]
    q0 = tw.GridDensity.normalised(jnp.maximum(1.0 - x**2, 0), grid)
    scale = float(1 / (jnp.sum(jnp.maximum(1.0 - x**2, 0)) * grid.cell_volume))
    energy = tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: 2 * scale * jnp.sum(x**2))
    path = run(energy, q0, 1.0)
    kept(path)
    # Exact inside; the two cells at the front see a first variation that is not constant into the vacuum.
    assert l1(path.final.state.values, q0.values, grid) < 2e-3


@pytest.mark.parametrize(
    "generator", [tw.generators.squared_hellinger, tw.generators.jensen_shannon, tw.generators.alpha(0.5)]
)
def test_f_divergence_flows_keep_their_target_and_move_towards_it(generator):
    grid = tw.Grid(-3.0, 3.0, 60)
    unnormalised = lambda x: -0.5 * jnp.sum(x**2) + 0.3 * jnp.sum(jnp.sin(2 * x))  # noqa: E731
    mass = jnp.sum(jnp.exp(jnp.stack([unnormalised(x) for x in grid.centres]))) * grid.cell_volume
    log_p = lambda x: unnormalised(x) - jnp.log(mass)  # noqa: E731
    energy = tw.FDivergence(generator, tw.Target(log_p, 1))
    target = tw.GridDensity.from_log_density(log_p, grid)
    still = run(energy, target, 0.5)
    assert float(jnp.max(jnp.abs(still.final.state.values - target.values))) < 1e-12
    q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum((x - 0.5) ** 2)), grid)
    path = run(energy, q0, 0.5)
    kept(path)
    assert float(path.energies[-1]) < 0.8 * float(path.energies[0])
    assert path.energy_balance().relative_error < 1e-2
