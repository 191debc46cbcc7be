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
