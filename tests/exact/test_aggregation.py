"""Attraction on a grid: closed form 13 of Keller and Segel below the critical mass, and a named end above it."""

import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

GRID = tw.Grid((-4.0, -4.0), (4.0, 4.0), (40, 40))
START = tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum(x**2)), GRID)


def keller_segel(sensitivity):
    return tw.Entropy() - sensitivity * tw.InteractionEnergy(tw.kernels.newtonian(2))


def run(sensitivity, final_time, **options):
    scheme = tw.Continuous(0.05)
    return tw.flow(
        keller_segel(sensitivity), START, geometry=tw.Wasserstein(), scheme=scheme, final_time=final_time, **options
    )


def second_moments(path):
    squares = jnp.sum(GRID.centres**2, axis=-1)
    return np.asarray(jnp.sum(path.states.values * squares[None], axis=(1, 2)) * GRID.cell_volume)


@pytest.mark.parametrize("part", [0.5, 0.75])
def test_below_the_critical_mass_the_second_moment_grows_at_its_exact_rate(part):
    path = run(8 * np.pi * part, 0.2)
    rate = (second_moments(path)[-1] - second_moments(path)[0]) / 0.2
    # d/dt ∫|x|²q = 4(1 − χ/8π); the box is large enough for 0.2, and h² = 0.04.
    np.testing.assert_allclose(rate, 4 * (1 - part), atol=0.02)
    assert np.max(np.diff(path.energies)) <= 0


def test_above_the_critical_mass_the_run_ends_by_name_and_keeps_what_it_has():
    path = run(16 * np.pi, 2.0, throw=False)
    assert "gathered in so few cells" in path.message
    assert 0.05 < float(path.times[-1]) < 2.0
    assert np.all(np.isfinite(path.states.values))
    np.testing.assert_allclose(float(path.final.state.mass), 1, atol=1e-13)
    # At first it falls at its exact rate, as far as cells of 0.2 resolve a peak that grows.
    rates = np.diff(second_moments(path)) / np.diff(path.times)
    np.testing.assert_allclose(rates[0], 4 * (1 - 2), rtol=0.05)
    with pytest.raises(tw.FlowError, match="gathered in so few cells"):
        run(16 * np.pi, 2.0)


def test_a_peak_that_is_not_the_work_of_attraction_is_no_collapse():
    grid = tw.Grid(-2.0, 2.0, 9)
    repulsion = tw.InteractionEnergy(lambda z: 0.01 * jnp.exp(-jnp.sum(z**2)))
    energy = tw.PotentialEnergy(lambda x: 8 * jnp.sum(x**2)) + 0.5 * tw.Entropy() + repulsion
    start = tw.GridDensity.normalised(jnp.ones(9), grid)
    path = tw.flow(energy, start, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.2), num_steps=2)
    assert float(jnp.max(path.final.state.values)) * grid.cell_volume > 0.25


@pytest.mark.parametrize(
    ("scheme", "core"),
    [(tw.Continuous(2.0, solver=tw.ImplicitFiniteVolume()), 1e-8), (tw.Proximal(2.0), 1e-4)],
    ids=["implicit", "jko"],
)
def test_a_collapse_has_its_name_whatever_takes_the_step(scheme, core):
    grid = tw.Grid(-2.0, 2.0, 40)
    energy = tw.Entropy() + tw.InteractionEnergy(lambda z: 3 * jnp.log(jnp.sqrt(jnp.sum(z**2) + core)))
    start = tw.GridDensity.from_function(lambda x: jnp.exp(-2 * jnp.sum(x**2)), grid)
    path = tw.flow(energy, start, geometry=tw.Wasserstein(), scheme=scheme, num_steps=3, throw=False)
    assert "gathered in so few cells" in path.message
