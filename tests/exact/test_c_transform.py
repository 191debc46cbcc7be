"""The c-transform against brute force: walls and circles, one to three axes, obstacles, ties, what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.transport import c_transform

WALL, CIRCLE = tw.NoFlux(), tw.Periodic()
GRIDS = {
    "a line": tw.Grid(-1.0, 2.0, 50),
    "a circle": tw.Grid(0.0, 1.0, 17, boundary=CIRCLE),
    "a line in three levels": tw.Grid(0.0, 1.0, 300),
    "a circle in three levels": tw.Grid(0.0, 1.0, 139, boundary=CIRCLE),
    "a cylinder": tw.Grid((0.0, 0.0), (1.0, 2.0), (40, 23), boundary=(WALL, CIRCLE)),
    "a box": tw.Grid((0.0, 0.0, 0.0), (1.0, 1.0, 3.0), (9, 18, 5)),
}


def squared_gaps(grid, axis):
    n = grid.shape[axis]
    gap = np.abs(np.arange(n)[:, None] - np.arange(n)[None])
    return (np.minimum(gap, n - gap) if grid.is_periodic(axis) else gap) ** 2 * grid.spacing[axis] ** 2


def brute_force(values, grid, step):
    """Over all pairs of cells at once."""
    cells = np.indices(grid.shape).reshape(grid.dim, -1)
    cost = sum(squared_gaps(grid, axis)[cells[axis][:, None], cells[axis][None]] for axis in range(grid.dim))
    return np.min(cost / (2 * step) + np.asarray(values).reshape(1, -1), axis=1).reshape(grid.shape)


def reached(values, grid, step, argmin):
    """The value at the returned minimiser."""
    here = np.indices(grid.shape)
    argmin = [np.asarray(index) for index in argmin]
    cost = sum(squared_gaps(grid, axis)[here[axis], argmin[axis]] for axis in range(grid.dim))
    return cost / (2 * step) + np.asarray(values)[tuple(argmin)]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", [1e-3, 0.1, 3.0])
def test_it_is_the_minimum_over_all_cells_and_says_where(name, size):
    grid, step = GRIDS[name], 0.3
    rng = np.random.default_rng(3)
    values = size * rng.normal(size=grid.shape)
    values[rng.random(grid.shape) < 0.3] = np.inf
    found = c_transform(jnp.asarray(values), grid, step)
    # Sums of at most three squares and one value: a few units in the last place of the largest term.
    np.testing.assert_allclose(found.values, brute_force(values, grid, step), rtol=1e-14, atol=1e-15 * size)
    np.testing.assert_allclose(reached(values, grid, step, found.argmin), found.values, rtol=1e-14, atol=1e-15 * size)


def test_equal_values_give_the_first_minimiser_and_the_cell_itself_is_nearest():
    grid = GRIDS["a line"]
    found = c_transform(jnp.zeros(50), grid)
    np.testing.assert_array_equal(found.values, np.zeros(50))
    np.testing.assert_array_equal(found.argmin[0], np.arange(50))
    walls = jnp.full(50, jnp.inf).at[jnp.array([10, 20])].set(0.0)
    assert int(c_transform(walls, grid).argmin[0][15]) == 10


def test_a_distance_transform_reaches_around_a_circle():
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (40, 30), boundary=(CIRCLE, WALL))
    point = jnp.full((40, 30), jnp.inf).at[38, 4].set(0.0)
    distance = np.sqrt(np.asarray(c_transform(point, grid, 0.5).values))
    # From cell 1 to cell 38 there are three steps across the seam.
    np.testing.assert_allclose(distance[1, 4], 3 / 40, rtol=1e-14)
    np.testing.assert_allclose(distance[18, 29], np.hypot(20 / 40, 25 / 30), rtol=1e-14)


def test_transforming_twice_more_changes_nothing():
    # f^ccc = f^c holds exactly for the discrete transform, here with −f^c as the function.
    grid = GRIDS["a cylinder"]
    first = c_transform(jnp.asarray(np.random.default_rng(0).normal(size=grid.shape)), grid, 0.1).values
    third = c_transform(-c_transform(-first, grid, 0.1).values, grid, 0.1).values
    np.testing.assert_allclose(third, first, atol=1e-14)


def test_nothing_to_reach_is_infinite_and_nan_is_not_hidden():
    grid = GRIDS["a line in three levels"]
    nothing = c_transform(jnp.full(300, jnp.inf), grid)
    assert bool(jnp.all(jnp.isposinf(nothing.values)))
    assert 0 <= int(nothing.argmin[0].min()) <= int(nothing.argmin[0].max()) < 300
    assert bool(jnp.all(jnp.isnan(c_transform(jnp.zeros(300).at[7].set(jnp.nan), grid).values)))


def test_it_runs_inside_jit_and_vmap_and_in_float32():
    grid = GRIDS["a cylinder"]
    stack = jnp.asarray(np.random.default_rng(1).normal(size=(2, *grid.shape)), jnp.float32)
    found = jax.jit(jax.vmap(lambda f: c_transform(f, grid, 0.3).values))(stack)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[1], brute_force(stack[1], grid, 0.3), rtol=1e-5, atol=1e-5)
