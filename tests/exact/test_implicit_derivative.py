"""Reverse-mode derivatives through implicit finite volumes: against finite differences, and to fit two snapshots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import thalweg as tw
from thalweg.schemes._implicit_derivative import solve_to_rounding

W2 = tw.Wasserstein()


def bumpy(grid):
    return tw.GridDensity.from_function(lambda x: 1 + 0.4 * jnp.cos(jnp.pi * x[0]) + 0.2 * jnp.sum(x), grid)


def assert_matches_differences(loss_and_slope, point, step=1e-4):
    """Central differences: of order step², and the tolerance of Newton's method over the step."""
    value, slope = loss_and_slope(point)
    assert np.isfinite(float(value))
    for number, unit in enumerate(np.eye(len(point))):
        ahead, behind = (loss_and_slope(point + sign * step * unit)[0] for sign in (1, -1))
        expected = float(ahead - behind) / (2 * step)
        assert abs(float(slope[number]) - expected) <= 1e-6 * abs(expected), (number, float(slope[number]), expected)


@pytest.mark.slow
def test_a_parameter_of_the_potential_and_the_scale_of_a_porous_medium_are_fitted_to_two_snapshots():
    # 80 cells: the transposed multigrid has a level.
    grid = tw.Grid(-1.0, 1.0, 80)
    start = bumpy(grid)
    scheme = tw.Continuous(0.05, solver=tw.ImplicitFiniteVolume(tolerance=None, newton_tolerance=1e-13))

    def after(parameters):
        well = tw.PotentialEnergy(lambda x: parameters[0] * jnp.sum(x**2) + 0.3 * jnp.sin(5 * parameters[0] * x[0]))
        energy = well + parameters[1] * tw.PorousMedium(2.0)
        return tw.rollout(energy, start, geometry=W2, scheme=scheme, num_steps=2).final.state.values

    # The second snapshot is that of known parameters.
    snapshot = jax.jit(after)(jnp.asarray([1.3, 0.6]))
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum((after(p) - snapshot) ** 2) * grid.cell_volume))
    assert_matches_differences(loss, np.array([1.0, 1.0]))
    numbers = lambda p: tuple(np.asarray(part, float) for part in loss(jnp.asarray(p)))  # noqa: E731
    fitted = scipy.optimize.minimize(numbers, [1.0, 1.0], jac=True, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(fitted.x, [1.3, 0.6], atol=1e-5)


def test_entropy_interaction_and_the_energy_dissipated_over_several_substeps_of_order_two():
    grid = tw.Grid(-1.0, 1.0, 24)
    # So tolerant that the substeps grow fourfold each time: their lengths depend on no parameter.
    solver = tw.ImplicitFiniteVolume(tolerance=1e6, newton_tolerance=1e-13, order=2)

    @jax.jit
    @jax.value_and_grad
    def loss(parameters):
        pairs = tw.InteractionEnergy(lambda z: parameters[0] * jnp.sum(z**2))
        energy = parameters[1] * tw.Entropy() + pairs + tw.PotentialEnergy(lambda x: jnp.cos(parameters[0] * x[0]))
        duration = 0.2 * parameters[2]
        done = solver.advance(energy, W2, bumpy(grid), duration, jnp.asarray(0.2 / 16))
        counted = jnp.where(done.stats["substeps"] == 3, 1.0, jnp.nan)
        return counted * (jnp.sum(done.state.values**3) + done.dissipated)

    assert_matches_differences(loss, np.array([0.8, 0.3, 1.0]))


@pytest.mark.slow
def test_a_front_that_enters_a_vacuum_with_limited_steps_of_order_two():
    grid = tw.Grid(-1.0, 1.0, 30)
    start = tw.GridDensity.from_function(lambda x: jnp.maximum(0.2 - (x[0] - 0.2) ** 2, 0), grid)
    solver = tw.ImplicitFiniteVolume(tolerance=None, newton_tolerance=1e-13, order=2)

    @jax.jit
    @jax.value_and_grad
    def loss(parameters):
        energy = parameters[0] * tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: parameters[1] * x[0])
        done = solver.advance(energy, W2, start, jnp.asarray(0.05), jnp.asarray(0.05))
        counted = jnp.where((done.stats["limited"] == 1) & (done.stats["substeps"] == 1), 1.0, jnp.nan)
        return counted * jnp.sum(done.state.values**2)

    assert float(start.values.min()) == 0
    assert_matches_differences(loss, np.array([0.2, 4.0]), step=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_a_room_with_a_wall_in_two_dimensions(order):
    mask = np.ones((12, 10), bool)
    mask[6, 3:] = False
    grid = tw.Grid((0.0, 0.0), (1.2, 1.0), (12, 10), mask=mask)
    start = tw.GridDensity.normalised(jnp.where(jnp.asarray(mask), 1.0 + grid.centres[..., 0], 0.0), grid)
    scheme = tw.Continuous(0.05, solver=tw.ImplicitFiniteVolume(tolerance=None, newton_tolerance=1e-13, order=order))

    @jax.jit
    @jax.value_and_grad
    def loss(parameters):
        energy = tw.PorousMedium(2.0) + tw.PotentialEnergy(lambda x: parameters[0] * jnp.sin(3 * x[0]) - x[1])
        path = tw.rollout(energy, start, geometry=W2, scheme=scheme, num_steps=2)
        # What is in the wall has a cotangent too.
        return jnp.sum((path.final.state.values - 0.3) ** 2)

    assert_matches_differences(loss, np.array([1.5]))


def test_an_adjoint_that_is_not_solved_is_not_a_number():
    # No vector has this image: the rows of the map agree, those of the right-hand side do not.
    product = lambda vector: jnp.full_like(vector, jnp.sum(vector))  # noqa: E731
    same = lambda vector: vector  # noqa: E731
    assert np.isnan(np.asarray(solve_to_rounding(product, same, jnp.asarray([1.0, -1.0, 0.5])))).all()
    solved = solve_to_rounding(lambda vector: 2 * vector + jnp.roll(vector, 1), same, jnp.asarray([1.0, -1.0, 0.5]))
    np.testing.assert_allclose(2 * solved + jnp.roll(solved, 1), [1.0, -1.0, 0.5], atol=1e-11)
