"""Functionals of densities on grids: first and second variations against closed forms, at every cell; next to vacuum;
and values.

Without a derivative of q the discretised variation is the closed form itself, so the two agree to rounding.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from tests.exact.functional_cases import GENERATORS, GRIDS, WRAP, a_density, at, compiled, functionals, inside, target


def close(found, expected, grid):
    inner = inside(grid)
    assert np.all(np.asarray(found)[~inner] == 0)
    expected = np.where(inner, expected, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", GRIDS)
def test_first_variations_are_the_closed_forms_at_every_cell(name):
    grid = GRIDS[name]
    table = functionals(grid)
    assert len(table) >= 36

    def first(state):
        return {key: tw.first_variation(entry[0], state).regular.values for key, entry in table.items()}

    for key, found in compiled(first, a_density(grid)).items():
        close(found, table[key][1], grid)


@pytest.mark.parametrize("name", ["room", "even and odd torus"])
def test_second_variations_are_the_closed_forms_at_every_cell(name):
    grid = GRIDS[name]
    table = {key: entry for key, entry in functionals(grid).items() if entry[2] is not None}
    direction = np.where(inside(grid), np.random.default_rng(9).normal(size=grid.shape), 0)

    def second(state):
        v = jnp.asarray(direction)
        return {key: tw.second_variation(entry[0], state, v).regular.values for key, entry in table.items()}

    for key, found in compiled(second, a_density(grid)).items():
        with np.errstate(divide="ignore", invalid="ignore"):
            close(found, table[key][2](direction), grid)


# Next to vacuum.


def test_divergences_keep_all_digits_from_vacuum_to_vacuum():
    sizes = 10.0 ** -np.arange(0, 201, 20)
    q, p = (part.reshape(-1) for part in np.meshgrid(sizes, sizes, indexing="ij"))
    grid = tw.Grid(0.0, 1.0, q.size)
    state, goal = at(q, grid), at(p, grid)
    energies = {name: tw.FDivergence(entry[0], goal) for name, entry in GENERATORS.items() if name != "a user's"}

    def both(state):
        ones = jnp.ones_like(state.values)
        return {
            name: (
                tw.first_variation(energy, state).regular.values,
                tw.second_variation(energy, state, ones).regular.values,
            )
            for name, energy in energies.items()
        }

    for name, (first, second) in compiled(both, state).items():
        _, slope, mobility = GENERATORS[name]
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            # Differences of logarithms near 460 lose two digits; r itself loses none here.
            exact, curvature = slope(p / q), mobility(p / q) / q
        # Where p = q some slopes are zero; beyond 1e120 they are held, so that their squares are finite.
        held = ~(np.abs(exact) < 1e120)
        np.testing.assert_allclose(first[~held], exact[~held], rtol=1e-12, atol=1e-12)
        assert np.all(np.abs(first[held]) > 1e119)
        assert np.all(np.sign(first[held]) == np.sign(exact[held]))
        assert np.all(np.isfinite(first))
        assert np.all(np.isfinite(second))
        tame = ~held & (curvature < 1e280)
        np.testing.assert_allclose(second[tame], curvature[tame], rtol=1e-12, atol=1e-250)
        assert np.count_nonzero(~held) >= 55


def test_empty_cells_have_finite_variations():
    grid = tw.Grid(0.0, 1.0, 6)
    state = tw.GridDensity.normalised(jnp.asarray([0.0, 0.0, 1.0, 2.0, 0.0, 1e-250]), grid)
    energies = {name: tw.FDivergence(entry[0], target(1)) for name, entry in GENERATORS.items() if name != "a user's"}
    energies |= {"entropy": tw.Entropy(), "fisher": tw.FisherInformation(), "relative": tw.FisherInformation(target(1))}

    def first(state):
        return {
            name: (energy(state), tw.first_variation(energy, state).regular.values) for name, energy in energies.items()
        }

    for name, (value, found) in compiled(first, state).items():
        assert np.isfinite(value), name
        assert np.all(np.isfinite(found)), name


def test_the_fisher_information_of_a_density_with_vacuum_is_that_of_its_square_root():
    grid = tw.Grid(0.0, 1.0, 5)
    values = np.asarray([0.0, 0.0, 1.0, 3.0, 1.0])
    state = tw.GridDensity(jnp.asarray(values), grid)
    expected = 4 * np.sum(np.diff(np.sqrt(values)) ** 2) / 0.2**2 * 0.2
    np.testing.assert_allclose(tw.FisherInformation()(state), expected, rtol=1e-13)
    # It does not feel a factor of the target.
    goal = tw.Target(lambda x: target_log_of(x) + 7.0, 1)
    both = [tw.FisherInformation(t)(state) for t in (tw.Target(target_log_of, 1), goal)]
    np.testing.assert_allclose(*both, rtol=1e-12)


def target_log_of(x):
    return -2.0 * jnp.sum(x**2)


# Values, where they have a closed form.


def test_values_are_those_of_closed_forms():
    grid = tw.Grid(0.0, 1.0, 400)
    q = tw.GridDensity.from_function(lambda x: 1 + 0.5 * jnp.cos(jnp.pi * x[0]), grid)
    # ½∫(π/2 sin πx)² = π²/16; ∫q|∇log q|² = ∫(π/2)² sin²/(1 + cos/2) = π²(1 - √3/2).
    np.testing.assert_allclose(tw.DirichletEnergy()(q), np.pi**2 / 16, rtol=1e-5)
    np.testing.assert_allclose(tw.FisherInformation()(q), np.pi**2 * (1 - np.sqrt(3) / 2), rtol=1e-5)
    # A uniform ball of charge in the plane, radius 1/2 and mass 1: ½∬ −log|x−y|/2π = (1/4 − log R)/4π.
    grid = tw.Grid((-1.0, -1.0), (1.0, 1.0), (200, 200))
    ball = tw.GridDensity.from_function(lambda x: jnp.where(jnp.sum(x**2) < 0.25, 1.0, 0.0), grid)
    exact = (0.25 + np.log(2.0)) / (4 * np.pi)
    np.testing.assert_allclose(tw.InteractionEnergy(tw.kernels.newtonian(2))(ball), exact, rtol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_newtonian_potential_of_a_gaussian_is_met_with_second_order(dim):
    """−ΔW = δ: the potential of N(0, σ²) at its centre in closed form."""
    sigma = 0.3
    exact = {
        1: -sigma / np.sqrt(2 * np.pi),
        # −E log|x|/2π = −(log σ + (log 2 − γ)/2)/2π.
        2: -(np.log(sigma) + 0.5 * (np.log(2) - np.euler_gamma)) / (2 * np.pi),
        3: np.sqrt(2 / np.pi) / (4 * np.pi * sigma),
    }[dim]
    found = []
    # Odd numbers of cells: the centre of the density is the centre of a cell, where the kernel is singular.
    for n in (25, 51):
        grid = tw.Grid((-2.0,) * dim, (2.0,) * dim, (n,) * dim)
        q = tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum(x**2) / sigma**2), grid)
        found.append(abs(float(q.convolve(tw.kernels.newtonian(dim))[(n // 2,) * dim]) - exact))
    assert np.log(found[0] / found[1]) / np.log(51 / 25) > 1.9, found


def test_the_periodic_newtonian_solves_poissons_equation_without_the_mean():
    grid = tw.Grid((0.0, 0.0), (1.0, 2.0), (12, 9), WRAP)
    wave = lambda x: 2 * jnp.pi * x[0] + 2 * jnp.pi * x[1]  # noqa: E731
    q = tw.GridDensity.from_function(lambda x: 1 + 0.5 * jnp.cos(wave(x)), grid)
    expected = (q.values - 0.5) / (8 * np.pi**2)
    np.testing.assert_allclose(q.convolve(tw.kernels.newtonian(2)), expected, atol=1e-16)


def test_mmd_is_zero_at_its_target_and_half_the_squared_distance_elsewhere():
    grid = GRIDS["room"]
    p, q = a_density(grid, 1), a_density(grid)
    kernel = tw.kernels.gaussian(0.5)
    assert abs(float(tw.MaximumMeanDiscrepancy(p, kernel)(p))) < 1e-17
    cross = jnp.sum(q.values * p.convolve(kernel)) * grid.cell_volume
    squared = q.expect_pair(kernel) - 2 * cross + p.expect_pair(kernel)
    np.testing.assert_allclose(tw.MaximumMeanDiscrepancy(p, kernel)(q), squared / 2, rtol=1e-11)


def test_the_structure_of_a_discrepancy_is_its_witness_function():
    grid = GRIDS["cylinder"]
    q, p = a_density(grid), a_density(grid, 1)
    samples = tw.Samples(jnp.asarray(np.random.default_rng(2).uniform(-0.5, 1.0, (7, 2))))
    for goal in (p, samples):
        energy = tw.MaximumMeanDiscrepancy(goal, tw.kernels.gaussian(0.4))
        structure = tw.decompose(3.0 * energy)
        parts = q.on_cells(structure.potential_value)
        for term in structure.interaction:
            parts = parts + term.scale * q.convolve(term.function)
        np.testing.assert_allclose(parts, 3 * tw.first_variation(energy, q).regular.values, atol=1e-13)
