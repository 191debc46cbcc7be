"""Implicit finite volumes: structure over many steps, steady states, order, and steps that are too long."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.energies import decompose
from thalweg.schemes._implicit_euler import implicit_euler
from thalweg.schemes._rounding import terms_of

W2 = tw.Wasserstein()
BOWL = tw.PotentialEnergy(lambda x: 4 * jnp.sum(x**2) + 0.5 * jnp.sin(9 * x[0]))
SQUARE = tw.Grid((-1.0, -1.0), (1.0, 1.0), (18, 16))


def disc(grid):
    """A start with a vacuum around it."""
    return tw.GridDensity.from_function(lambda x: jnp.maximum(0.2 - jnp.sum((x - 0.2) ** 2), 0), grid)


def steps(energy, state, tau, number, tolerance=1e-11):
    """So many implicit steps: every density, the energies, the sizes of their terms, whether each one converged."""
    structure = decompose(energy)

    @jax.jit
    def run(start):
        def body(values, _):
            here = tw.GridDensity(values, start.grid)
            step = implicit_euler(structure, None, here, jnp.asarray(tau), tolerance, jnp.asarray(False))
            value, size = terms_of(structure, tw.GridDensity(step.values, start.grid))
            return step.values, (step.values, value, size, step.converged)

        return jax.lax.scan(body, start.values, None, length=number)[1]

    return run(state)


@pytest.mark.parametrize("name", ["porous medium", "fast diffusion", "entropy", "aggregation"])
def test_a_thousand_steps_keep_mass_sign_and_energy_law(name):
    energy = {
        "porous medium": tw.PorousMedium(2.0) + BOWL,
        "fast diffusion": tw.PorousMedium(0.6) + BOWL,
        "entropy": 0.1 * tw.Entropy() + BOWL,
        "aggregation": tw.PorousMedium(3.0) + tw.InteractionEnergy(lambda z: -jnp.exp(-4 * jnp.sum(z**2))),
    }[name]
    grid = tw.Grid((-1.0, -1.0), (1.0, 1.0), (12, 10))
    start = disc(grid) if name != "fast diffusion" else tw.GridDensity.from_function(lambda x: 1 + x[0] ** 2, grid)
    structure, solver = decompose(energy), tw.ImplicitFiniteVolume(tolerance=None)

    @jax.jit
    def run(values):
        def body(values, _):
            here = tw.GridDensity(values, grid)
            done = solver.advance(energy, W2, here, jnp.asarray(2e-3), jnp.asarray(2e-3))
            value, size = terms_of(structure, done.state)
            return done.state.values, (done.state.values, value, size, done.result == tw.RESULTS.successful)

        return jax.lax.scan(body, values, None, length=1000)[1]

    densities, energies, sizes, successful = map(np.asarray, run(start.values))
    assert successful.all()
    assert densities.min() >= 0
    assert np.abs(densities.sum((1, 2)) * grid.cell_volume - 1).max() <= 1e-13
    assert (np.diff(energies) / sizes[1:]).max() <= 1e-13
    assert float(energy(start)) > energies[0] > energies[-1]


@pytest.mark.parametrize("boundary", [tw.NoFlux(), (tw.Periodic(), tw.NoFlux())])
def test_the_gibbs_state_stays_however_long_the_step(boundary):
    grid = tw.Grid((-1.0, -1.0), (1.0, 1.0), (20, 17), boundary=boundary)
    wave = lambda x: jnp.cos(jnp.pi * x[0]) + 2 * x[1] ** 2  # noqa: E731
    gibbs = tw.GridDensity.from_log_density(lambda x: -wave(x) / 0.3, grid)
    energy = 0.3 * tw.Entropy() + tw.PotentialEnergy(wave)
    densities, _, _, converged = steps(energy, gibbs, 50.0, 20)
    assert bool(jnp.all(converged))
    np.testing.assert_allclose(densities[-1], gibbs.values, rtol=1e-12)


def test_the_steady_state_of_a_porous_medium_is_where_its_variation_is_constant_on_the_support():
    energy = tw.PorousMedium(2.0) + BOWL
    final = np.asarray(steps(energy, disc(SQUARE), 5.0, 15)[0][-1])
    height = np.asarray(tw.first_variation(energy, tw.GridDensity(jnp.asarray(final), SQUARE)).regular.values)
    inside = final > 1e-6
    assert 20 < inside.sum() < inside.size - 20
    level = height[inside].mean()
    assert np.abs(height[inside] - level).max() < 1e-7
    assert height[~inside].min() > level - 1e-7


def test_a_step_solves_its_equation_with_upwind_fluxes_of_its_own_density():
    # Potential alone: q⁺ − q + τ ∇·(q_up v) = 0, written out here.
    grid = tw.Grid(-1.0, 1.0, 30)
    start, tau = tw.GridDensity.from_function(lambda x: jnp.exp(-8 * x[0] ** 2), grid), 0.3
    slope = tw.PotentialEnergy(lambda x: jnp.cos(3 * x[0]))
    after = np.asarray(steps(slope, start, tau, 1)[0][0])
    x, h = np.asarray(grid.centres)[:, 0], grid.cell_volume
    velocity = -np.diff(np.cos(3 * x)) / h
    flux = np.where(velocity > 0, after[:-1], after[1:]) * velocity
    residual = after - np.asarray(start.values) + tau * np.diff(np.concatenate([[0], flux, [0]])) / h
    assert np.abs(residual).sum() * h < 1e-11


def barenblatt(grid, time):
    """Closed form: m = 2 in two dimensions, q = t^(−1/2) (C − r² t^(−1/2)/16)₊ with mass 8πC² = 1."""
    x = np.asarray(grid.centres)
    values = np.maximum(np.sqrt(1 / (8 * np.pi)) - (x**2).sum(-1) / (16 * np.sqrt(time)), 0) / np.sqrt(time)
    return tw.GridDensity.normalised(jnp.asarray(values), grid)


def test_barenblatts_profile_is_met_with_first_order_in_time_and_more_than_first_in_space():
    errors = []
    for n, number in ((16, 8), (32, 32)):
        grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (n, n))
        start = barenblatt(grid, 0.05)
        after = steps(tw.PorousMedium(2.0), start, 0.1 / number, number)[0][-1]
        errors.append(float(jnp.sum(jnp.abs(after - barenblatt(grid, 0.15).values)) * grid.cell_volume))
    # Four times as many steps on half the spacing: second order in space and first in time give a quarter.
    assert errors[1] < 0.02
    assert np.log2(errors[0] / errors[1]) > 1.5


def test_the_error_in_time_is_of_first_order():
    start, energy = disc(SQUARE), tw.PorousMedium(2.0) + BOWL
    ends = [steps(energy, start, 0.064 / number, number)[0][-1] for number in (8, 16, 256)]
    coarse, fine = (float(jnp.sum(jnp.abs(end - ends[-1]))) for end in ends[:2])
    assert 0.8 < np.log2(coarse / fine) < 1.3


def test_a_vacuum_of_rounding_errors_does_not_hinder_newtons_method():
    # After one step the cells beyond the front hold 1e-17, of which secants are rounding with slopes of 1e14.
    path = tw.flow(
        tw.PorousMedium(2.0) + BOWL,
        disc(SQUARE),
        geometry=tw.Wasserstein(),
        scheme=tw.Continuous(0.002, solver=tw.ImplicitFiniteVolume(tolerance=None)),
        num_steps=32,
    )
    assert np.max(path.measurements["newton_steps"]) < 20
    assert np.max(path.measurements["upwind"]) == np.max(path.measurements["cut"]) == 0


@functools.cache
def room_path():
    mask = np.ones((16, 14), bool)
    mask[7, 3:] = False
    grid = tw.Grid((0.0, 0.0), (1.6, 1.4), (16, 14), mask=mask)
    start = tw.GridDensity.normalised(jnp.where(jnp.asarray(grid.centres[..., 0] < 0.5), 1.0, 0.0), grid)
    energy = tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: -2 * x[0])
    scheme = tw.Continuous(0.2, solver=tw.ImplicitFiniteVolume(tolerance=1e-2))
    return grid, mask, tw.flow(energy, start, geometry=W2, scheme=scheme, num_steps=4)


def test_a_flow_goes_around_a_wall_and_says_what_it_cost():
    _, mask, path = room_path()
    values = np.asarray(path.final.state.values)
    assert (values[~mask] == 0).all()
    assert values[8:].sum() > 0.3 * values.sum()
    assert np.all(np.diff(np.asarray(path.energies)) < 0)
    for name in ("substeps", "cut", "rejected", "upwind", "newton_steps", "linear_steps"):
        assert np.asarray(path.measurements[name]).shape == (5,)
    assert int(path.measurements["substeps"][1:].min()) >= 1
    np.testing.assert_allclose(float(path.final.state.mass), 1, atol=1e-13)


@pytest.mark.slow
def test_a_concave_energy_whose_step_is_too_long_is_cut_and_reported():
    # A double well in q, whose implicit steps are solvable for short steps only.
    smooth = tw.Functional(lambda s: 0.005 * jnp.sum(s.gradient_squared()) * s.grid.cell_volume)
    energy = smooth + tw.InternalEnergy(lambda q: 4 * q**2 * (1 - q) ** 2)
    start = disc(SQUARE)
    scheme = tw.Continuous(1.0, solver=tw.ImplicitFiniteVolume(tolerance=None))
    path = tw.flow(energy, start, geometry=W2, scheme=scheme, num_steps=1)
    assert int(path.measurements["cut"][1]) >= 1
    assert int(path.measurements["substeps"][1]) >= 2
    assert float(path.energies[1]) < float(path.energies[0])


def test_a_full_cell_lets_nothing_in():
    # Mobility q(1 − q): the density stays between zero and one although the potential presses it together.
    grid = tw.Grid(0.0, 4.0, 40)
    start = tw.GridDensity.normalised(jnp.ones(40), grid)
    structure = decompose(tw.PotentialEnergy(lambda x: 3 * x[0]))
    mobility = lambda x, q: q * jnp.maximum(1 - q, 0)  # noqa: E731
    values = start.values
    step = jax.jit(
        lambda q: implicit_euler(
            structure, mobility, tw.GridDensity(q, grid), jnp.asarray(0.02), 1e-11, jnp.asarray(False)
        )
    )
    for _ in range(60):
        found = step(values)
        assert bool(found.converged)
        values = found.values
    assert float(values.min()) >= 0
    assert float(values.max()) <= 1 + 1e-9
    assert float(values[:5].min()) > 0.9


def test_a_ceiling_is_refused_and_the_solver_that_takes_it_is_named():
    start = tw.GridDensity.normalised(jnp.ones((6, 6)), tw.Grid((0.0, 0.0), (2.0, 2.0), (6, 6)))
    refused = tw.ImplicitFiniteVolume().why_unsupported(tw.Congestion(1.0) + BOWL, W2, start)
    assert refused is not None
    assert "LinearisedJKO" in refused
