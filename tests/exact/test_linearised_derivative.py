"""Derivatives through the linearised JKO step, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

W2 = tw.Wasserstein()
LINE = tw.Grid(-1.0, 1.0, 24)


def bumpy(grid):
    return tw.GridDensity.from_function(lambda x: 1 + 0.4 * jnp.cos(jnp.pi * x[0]) + 0.2 * jnp.sum(x), grid)


def well(strength):
    return tw.PotentialEnergy(lambda x: strength * jnp.sum(x**2) + 0.3 * jnp.sin(3 * strength * x[0]))


def energy_of(name, strength):
    return {
        "porous": lambda: strength * tw.PorousMedium(2.0) + well(strength),
        "entropy and interaction": lambda: (
            0.3 * tw.Entropy() + well(strength) + tw.InteractionEnergy(lambda z: 0.2 * strength * jnp.sum(z**2))
        ),
        "crowd": lambda: 0.1 * tw.Entropy() + well(4 * strength) + tw.Congestion(0.9),
    }[name]()


def slope_and_difference(name, grid, tolerance, num_steps=1):
    start, scheme = bumpy(grid), tw.Proximal(0.1, solver=tw.LinearisedJKO(tolerance=tolerance))

    @jax.jit
    @jax.value_and_grad
    def loss(strength):
        path = tw.rollout(energy_of(name, strength), start, geometry=W2, scheme=scheme, num_steps=num_steps)
        return jnp.sum(path.final.state.values**2) + path.distances_squared[-1]

    ahead, behind = (float(loss(1.0 + step)[0]) for step in (1e-4, -1e-4))
    return float(loss(1.0)[1]), (ahead - behind) / 2e-4


# The crowd's pressures are known to its barrier only, as the differences are.
@pytest.mark.parametrize(
    ("name", "tolerance", "allowed"),
    [("porous", 1e-11, 1e-7), ("entropy and interaction", 1e-11, 1e-7), ("crowd", 1e-8, 2e-5)],
)
def test_the_derivative_of_a_step_and_of_its_distance_is_that_of_the_minimiser(name, tolerance, allowed):
    slope, expected = slope_and_difference(name, LINE, tolerance)
    assert abs(slope - expected) <= allowed * abs(expected), (slope, expected)


@pytest.mark.slow
def test_two_steps_in_a_room_with_a_wall():
    mask = np.ones((12, 10), bool)
    mask[6, 3:] = False
    grid = tw.Grid((0.0, 0.0), (1.2, 1.0), (12, 10), mask=mask)
    slope, expected = slope_and_difference("porous", grid, 1e-11, num_steps=2)
    assert abs(slope - expected) <= 1e-6 * abs(expected), (slope, expected)


def test_at_rest_the_step_stays_but_its_derivative_is_that_of_the_minimiser():
    # A stronger well draws mass inwards although the step from its own Gibbs state moves nothing.
    gibbs = tw.GridDensity.from_log_density(lambda x: -(x[0] ** 2) / 0.3, LINE)
    solver = tw.LinearisedJKO(tolerance=1e-6)

    @jax.jit
    @jax.value_and_grad
    def second_moment(strength):
        energy = 0.3 * tw.Entropy() + tw.PotentialEnergy(lambda x: strength * jnp.sum(x**2))
        step = solver.solve(energy, W2.at(gibbs), jnp.asarray(10.0), None)
        stays = jnp.where(step.distance_squared == 0, 1.0, jnp.nan)
        return stays * jnp.sum(step.state.values * LINE.centres[:, 0] ** 2) * LINE.cell_volume

    value, slope = second_moment(1.0)
    moments = [jnp.sum(gibbs.values * LINE.centres[:, 0] ** power) * LINE.cell_volume for power in (2, 4)]
    np.testing.assert_allclose(value, moments[0], rtol=1e-12)
    # After a long step it is that of the Gibbs state, −Var(x²)/T.
    np.testing.assert_allclose(slope, -(moments[1] - moments[0] ** 2) / 0.3, rtol=0.05)
