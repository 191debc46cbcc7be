"""Alexander's method for grid densities: order, positivity from a vacuum, steady states, and where it falls back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.energies import decompose
from thalweg.schemes._implicit_euler import implicit_euler
from thalweg.schemes._second_order import _shares, composed_step

W2 = tw.Wasserstein()
NO = jnp.asarray(False)


def stepper(energy, grid):
    """So many steps of one length: the density, and what the steps report added up."""
    structure = decompose(energy)

    @functools.partial(jax.jit, static_argnames="order")
    def run(values, tau, number, order):
        def body(_, carry):
            values, limited, converged, dissipated = carry
            here = tw.GridDensity(values, grid)
            step = composed_step(structure, None, here, tau, order, 1e-13, NO, NO)
            return (
                step.values,
                limited + step.limited.astype(limited.dtype),
                converged & step.converged,
                dissipated + step.dissipated,
            )

        return jax.lax.fori_loop(0, number, body, (values, jnp.asarray(0), jnp.asarray(True), jnp.zeros(())))

    return run


def test_the_error_in_time_is_of_second_order_where_the_density_is_smooth_and_positive():
    grid = tw.Grid(-1.0, 1.0, 40)
    energy = tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: jnp.sin(2 * x[0]))
    start = tw.GridDensity.from_function(lambda x: 1 + 0.5 * jnp.cos(jnp.pi * x[0]), grid)
    run, duration = stepper(energy, grid), 0.1

    def after(number, order=2):
        values, limited, converged, dissipated = run(start.values, jnp.asarray(duration / number), number, order)
        assert bool(converged)
        assert int(limited) == 0
        lost = energy(start) - energy(tw.GridDensity(values, grid))
        return values, abs(float(lost - dissipated))

    reference, _ = after(256)
    ends = {number: after(number) for number in (4, 8, 16)}
    errors = [float(jnp.sum(jnp.abs(end - reference))) for end, _ in ends.values()]
    assert errors[0] / errors[1] > 3.5
    assert errors[1] / errors[2] > 3.5
    # The energy balance closes to the same order.
    balances = [balance for _, balance in ends.values()]
    assert balances[0] / balances[1] > 3.3
    assert balances[1] / balances[2] > 3.3
    # Four steps of order two, eight implicit solves, beat sixteen of order one.
    plain, _ = after(16, order=1)
    assert errors[0] < 0.2 * float(jnp.sum(jnp.abs(plain - reference)))


def barenblatt(grid, time):
    """Closed form: m = 2 on the line, q = t^(−1/3) (C − x² t^(−2/3)/12)₊ with mass (8/√3)·C^(3/2) = 1."""
    x = np.asarray(grid.centres)[:, 0]
    height = (np.sqrt(3) / 8) ** (2 / 3)
    values = np.maximum(height - x**2 / (12 * time ** (2 / 3)), 0) / time ** (1 / 3)
    return tw.GridDensity.normalised(jnp.asarray(values), grid)


def test_barenblatts_profile_from_a_vacuum_is_positive_conservative_and_closer_than_with_order_one():
    grid = tw.Grid(-2.0, 2.0, 60)
    start, end = barenblatt(grid, 0.02), barenblatt(grid, 0.12)
    assert float(start.values.min()) == 0
    errors = {}
    for order in (1, 2):
        scheme = tw.Continuous(0.02, solver=tw.ImplicitFiniteVolume(tolerance=None, order=order))
        path = tw.flow(tw.PorousMedium(2.0), start, geometry=W2, scheme=scheme, num_steps=5)
        assert float(path.states.values.min()) >= 0
        masses = np.asarray(path.states.values).sum(1) * grid.cell_volume
        assert np.abs(masses - 1).max() < 1e-13
        assert np.all(np.diff(np.asarray(path.energies)) < 0)
        errors[order] = float(jnp.sum(jnp.abs(path.final.state.values - end.values)) * grid.cell_volume)
        assert ("limited" in path.measurements) == (order == 2)
        assert ("euler" in path.measurements) == (order == 2)
    # The first steps are as long as the time that has passed since the point mass.
    assert errors[2] < 0.15 * errors[1]


@pytest.mark.parametrize("tau", [0.03, 3.0])
def test_long_steps_from_one_cell_keep_sign_mass_and_energy_law_and_say_that_they_were_limited(tau):
    grid = tw.Grid((-1.0, -1.0), (1.0, 1.0), (8, 7))
    energy = tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: 4 * jnp.sum(x**2) + 0.5 * jnp.sin(9 * x[0]))
    start = tw.GridDensity.normalised(jnp.zeros((8, 7)).at[1, 2].set(1.0), grid)
    solver = tw.ImplicitFiniteVolume(tolerance=None, order=2)

    @jax.jit
    def run(values):
        def body(values, _):
            done = solver.advance(energy, W2, tw.GridDensity(values, grid), jnp.asarray(tau), jnp.asarray(tau))
            stats = (done.stats["limited"], done.result == tw.RESULTS.successful)
            return done.state.values, (done.state.values, energy(done.state), *stats)

        return jax.lax.scan(body, values, None, length=30)[1]

    densities, energies, limited, successful = map(np.asarray, run(start.values))
    assert successful.all()
    assert densities.min() >= 0
    assert np.abs(densities.sum((1, 2)) * grid.cell_volume - 1).max() <= 1e-13
    assert np.diff(energies).max() <= 1e-13 * np.abs(energies).max()
    assert limited[0] == 1  # the first step all but empties the cell
    assert limited[-1] == 0


def test_the_gibbs_state_stays_however_long_the_step():
    grid = tw.Grid((-1.0, -1.0), (1.0, 1.0), (9, 7), boundary=(tw.Periodic(), tw.NoFlux()))
    wave = lambda x: jnp.cos(jnp.pi * x[0]) + 2 * x[1] ** 2  # noqa: E731
    gibbs = tw.GridDensity.from_log_density(lambda x: -wave(x) / 0.3, grid)
    run = stepper(0.3 * tw.Entropy() + tw.PotentialEnergy(wave), grid)
    for tau in (0.1, 50.0):
        values, limited, converged, _ = run(gibbs.values, jnp.asarray(tau), 20, 2)
        assert bool(converged)
        assert int(limited) == 0
        np.testing.assert_allclose(values, gibbs.values, rtol=1e-12)


def test_without_its_explicit_share_a_step_is_two_of_implicit_euler():
    grid = tw.Grid(-1.0, 1.0, 20)
    structure = decompose(tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: 3 * x[0] ** 2))
    start = tw.GridDensity.from_function(lambda x: jnp.maximum(0.3 - x[0] ** 2, 0), grid)
    share, tau = 1 - np.sqrt(0.5), jnp.asarray(0.2)
    plain = jax.jit(lambda state, tau: implicit_euler(structure, None, state, tau, 1e-13, NO).values)
    twice = plain(tw.GridDensity(plain(start, share * tau), grid), (1 - share) * tau)
    fallen = jax.jit(lambda q: composed_step(structure, None, q, tau, 2, 1e-13, NO, jnp.asarray(True)))(start)
    np.testing.assert_allclose(fallen.values, twice, atol=1e-11)
    assert not bool(fallen.limited)


def test_shares_leave_a_part_of_each_cell_and_all_of_a_flux_that_only_passes_through():
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (12, 9), boundary=tw.Periodic())
    random = np.random.default_rng(3)
    values = jnp.asarray(random.uniform(0, 1, (12, 9)) ** 4)
    for size in (0.01, 0.3, 30.0):
        fluxes = tuple(jnp.asarray(size * random.normal(size=(12, 9))) for _ in range(2))
        shares, limited = _shares(values, fluxes, grid)
        left = values
        for axis, (share, flux) in enumerate(zip(shares, fluxes, strict=True)):
            moved = share * flux / grid.spacing[axis]
            left = left - moved + jnp.roll(moved, 1, axis)
            assert float(share.min()) >= 0
            assert float(share.max()) <= 1
        assert float((left / values).min()) > 0.004
        assert bool(limited)
    # Ten times what a cell holds goes through it, and no cell loses any.
    stream = (jnp.full((12, 9), 10.0), jnp.zeros((12, 9)))
    shares, limited = _shares(jnp.full((12, 9), 1.0), stream, grid)
    assert float(shares[0].min()) == 1
    assert not bool(limited)


def test_only_the_orders_one_and_two_are_known():
    with pytest.raises(ValueError, match="must be 1 or 2; got 3"):
        tw.ImplicitFiniteVolume(order=3)
