"""The linear Fokker–Planck equation, exact in time: its exponential, its laws over many steps, mobilities and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import ive

import thalweg as tw
from thalweg.schemes._chebyshev import Links, SymmetricGenerator, _clenshaw, _Row, argument_of, exponential, num_terms
from thalweg.schemes._exponential_volume import _integral
from thalweg.states import shifted_back

W2 = tw.Wasserstein()


def generator_between(shape, links, seed=0):
    """Random conductances of a jump process; the rows of its generator sum to zero."""
    rng = np.random.default_rng(seed)
    faces = []
    for offset in links.offsets:
        face = rng.uniform(0.2, 2.0, shape)
        for cells, n, k, wraps in zip(np.indices(shape), shape, offset, links.periodic, strict=True):
            face[((cells + k < 0) | (cells + k >= n)) & (not wraps)] = 0
        faces.append(jnp.asarray(face))
    diagonal = sum(face + shifted_back(face, offset) for offset, face in zip(links.offsets, faces, strict=True))
    return SymmetricGenerator(diagonal, tuple(faces))


def generator_on(shape, periodic):
    return generator_between(shape, Links.of_faces(periodic))


def dense(generator, links):
    shape = generator.diagonal.shape
    columns = jax.vmap(lambda unit: generator.times(unit.reshape(shape), links).ravel())
    return columns(jnp.eye(generator.diagonal.size)).T


CASES = [((7,), (False,)), ((6, 5), (True, False)), ((4, 3, 5), (True, True, False))]


@pytest.mark.parametrize(("shape", "periodic"), CASES)
@pytest.mark.parametrize("duration", [0.0, 1e-6, 0.3, 40.0])
def test_the_polynomial_is_the_exponential_to_rounding(shape, periodic, duration):
    generator = generator_on(shape, periodic)
    values = np.random.default_rng(1).normal(size=shape)
    found = exponential(generator, jnp.asarray(duration), jnp.asarray(values), 1e-14, Links.of_faces(periodic))
    expected = expm(-duration * np.asarray(dense(generator, Links.of_faces(periodic)))) @ values.ravel()
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-13)


@pytest.mark.parametrize(("shape", "periodic"), CASES)
def test_its_derivatives_are_those_of_the_exponential(shape, periodic):
    generator, links = generator_on(shape, periodic), Links.of_faces(periodic)
    rng = np.random.default_rng(2)
    values, weights = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))

    def by_polynomial(generator, duration, values):
        return jnp.sum(weights * exponential(generator, duration, values, 1e-14, links))

    def by_matrix(generator, duration, values):
        matrix = jax.scipy.linalg.expm(-duration * dense(generator, links))
        return jnp.sum(weights.ravel() * (matrix @ values.ravel()))

    args = generator, jnp.asarray(0.7), values
    found = jax.grad(by_polynomial, argnums=(0, 1, 2))(*args)
    expected = jax.grad(by_matrix, argnums=(0, 1, 2))(*args)
    np.testing.assert_allclose(found[0].diagonal, expected[0].diagonal, atol=1e-12)
    for axis, (a, b) in enumerate(zip(found[0].faces, expected[0].faces, strict=True)):
        # A closed face is no number that could change.
        inner = slice(None) if periodic[axis] else (slice(None),) * axis + (slice(-1),)
        np.testing.assert_allclose(a[inner], b[inner], atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-12)


STRETCHED = ((1, 0), (0, 1), (1, -1), (2, 1), (0, 3))
ROWS = {
    "a line": ((300,), Links(((1,), (2,)), (True,))),
    "far partners": ((9, 11), Links(STRETCHED, (False, True))),
    "far partners around a torus": ((11, 9), Links(STRETCHED, (True, True))),
    "rows of a page": ((3, 256), Links.of_faces((False, False))),
    "a box": ((6, 5, 7), Links.of_faces((False, True, False))),
}


@pytest.mark.parametrize("in_blocks", [True, False], ids=["in blocks", "as a whole"])
@pytest.mark.parametrize("name", ROWS)
def test_a_processor_and_a_device_that_does_all_cells_at_once_find_the_same(name, in_blocks):
    shape, links = ROWS[name]
    generator, duration = generator_between(shape, links), jnp.asarray(3.0)
    values = np.random.default_rng(1).normal(size=shape)
    row = _Row.in_blocks(shape, links) if in_blocks else _Row.whole(shape, links)
    assert (row.blocks > 1) == in_blocks
    z = argument_of(generator, duration, links)
    found = jax.jit(lambda *args: _clenshaw(*args, 1e-14, row))(generator, duration / z, z, jnp.asarray(values))
    expected = expm(-3.0 * np.asarray(dense(generator, links))) @ values.ravel()
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-13)


def test_the_terms_that_are_left_out_sum_to_less_than_the_tolerance():
    for argument in np.logspace(-2, 6, 25):
        for tolerance in (1e-4, 1e-8, 1e-11, 1e-14):
            terms = int(num_terms(jnp.asarray(argument), tolerance))
            rest = 2 * np.sum(ive(np.arange(terms + 1, int(1.3 * terms) + 60), argument))
            assert rest < tolerance, (argument, tolerance)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_what_is_dissipated_is_exact_for_an_exponential_and_for_a_power_of_time(power):
    found = _integral(*map(jnp.asarray, (0.7, 1.0, -1.0, np.exp(-0.7), -np.exp(-0.7))))
    np.testing.assert_allclose(found, 1 - np.exp(-0.7), rtol=1e-10)
    # The rate (1 + t/t₀)^{−p}, over fifty times the time since it began; six nodes are not exact for p = 2.
    begun, late = 0.02, 51.0
    ends = (1.0, -power / begun, late**-power, -power / begun * late ** (-power - 1))
    expected = begun * (np.log(late) if power == 1 else (late ** (1 - power) - 1) / (1 - power))
    np.testing.assert_allclose(_integral(jnp.asarray(1.0), *map(jnp.asarray, ends)), expected, rtol=1e-6)


def rotated_double_well(x):
    u = jnp.cos(0.5236) * x[0] + jnp.sin(0.5236) * x[1]
    v = jnp.cos(0.5236) * x[1] - jnp.sin(0.5236) * x[0]
    return 2 * (u**2 - 1) ** 2 + 2 * v**2


def bump(x):
    return jnp.exp(-8 * jnp.sum((x - 0.4) ** 2))


GRIDS = {
    "line": tw.Grid(-2.0, 2.0, 50),
    "mixed": tw.Grid((-2.0, -2.0), (2.0, 2.0), (16, 18), (tw.Periodic(), tw.NoFlux())),
    "masked": tw.Grid((-2.0, -2.0), (2.0, 2.0), (18, 16), mask=lambda x: (x[0] < 0.9) | (x[1] > -0.3)),
    "space": tw.Grid((-2.0,) * 3, (2.0,) * 3, (8, 9, 7)),
}


@pytest.mark.parametrize(
    "name", ["masked", *(pytest.param(name, marks=pytest.mark.slow) for name in ("line", "mixed", "space"))]
)
def test_a_thousand_steps_keep_every_law(name):
    grid = GRIDS[name]
    potential = rotated_double_well if grid.dim == 2 else lambda x: jnp.sum(x**2) + jnp.sin(3 * x[0])
    energy = tw.PotentialEnergy(potential) + 0.7 * tw.Entropy()
    start = tw.GridDensity.from_function(bump, grid)
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(0.002), num_steps=1000)
    assert "exact in time" in path.stats["solver"]
    values = np.asarray(path.states.values).reshape(len(path), -1)
    np.testing.assert_allclose(values.sum(axis=1) * grid.cell_volume, 1, atol=1e-13)
    assert values.min() >= 0
    # The sizes of the two terms.
    scale = max(float(abs(part(start))) for part in (tw.PotentialEnergy(potential), tw.Entropy()))
    assert np.max(np.diff(path.energies)) <= 1e-13 * scale
    gibbs = tw.GridDensity.from_log_density(lambda x: -potential(x) / 0.7, grid)
    kept = tw.flow(energy, gibbs, geometry=W2, scheme=tw.Continuous(0.002), num_steps=1000, save_every=1000)
    assert float(jnp.sum(jnp.abs(kept.final.state.values - gibbs.values))) * grid.cell_volume < 1e-12


def test_a_cosine_is_damped_at_its_discrete_rate_to_many_digits():
    n, wave, temperature, time = 64, 3, 0.7, 0.02
    grid = tw.Grid(0.0, 1.0, n)
    x = np.asarray(grid.centres[:, 0])
    start = tw.GridDensity(jnp.asarray(1 + 0.5 * np.cos(wave * np.pi * x)), grid)
    path = tw.flow(temperature * tw.Entropy(), start, geometry=W2, scheme=tw.Continuous(time), final_time=time)
    # Closed form 2 of the heat equation on cells: no error in time is left.
    rate = (2 - 2 * np.cos(wave * np.pi / n)) * n**2
    expected = 1 + 0.5 * np.exp(-temperature * rate * time) * np.cos(wave * np.pi * x)
    np.testing.assert_allclose(path.final.state.values, expected, atol=1e-11)


def test_the_energy_that_is_lost_is_the_energy_that_is_dissipated():
    grid = tw.Grid((-2.5, -2.5), (2.5, 2.5), (48, 48))
    energy = tw.PotentialEnergy(rotated_double_well) + tw.Entropy()
    start = tw.GridDensity.from_function(bump, grid)
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(1.0), final_time=1.0)
    balance = path.energy_balance()
    # Substeps are as long as the quadrature follows, to two thousandths of what each dissipates.
    assert 0 < balance.relative_error < 4e-3
    assert int(path.measurements["substeps"][1]) <= 5


def test_at_the_gibbs_density_nothing_is_dissipated_and_one_step_is_enough():
    grid = tw.Grid((-2.5, -2.5), (2.5, 2.5), (48, 48))
    energy = tw.PotentialEnergy(rotated_double_well) + tw.Entropy()
    gibbs = tw.GridDensity.from_log_density(lambda x: -rotated_double_well(x), grid)
    path = tw.flow(energy, gibbs, geometry=W2, scheme=tw.Continuous(1.0), final_time=2.0)
    balance = path.energy_balance()
    assert abs(balance.decrease) < 1e-12
    assert abs(balance.dissipated) < 1e-12
    assert int(path.measurements["substeps"][1]) == 1


def test_the_order_in_space_is_two_on_a_problem_that_is_not_aligned_with_the_grid():
    # Closed form 1 with a full matrix: no axis of the grid is an axis of the problem.
    matrix = np.array([[2.0, 0.9], [0.9, 1.0]])
    time, mean = 0.4, np.array([0.8, -0.5])
    values, vectors = np.linalg.eigh(matrix)
    decay = vectors @ np.diag(np.exp(-values * time)) @ vectors.T
    limit = np.linalg.inv(matrix)
    covariance = limit + decay @ (0.15 * np.eye(2) - limit) @ decay
    energy = tw.PotentialEnergy(lambda x: 0.5 * x @ jnp.asarray(matrix) @ x) + tw.Entropy()
    errors = []
    for n in (40, 80):
        grid = tw.Grid((-5.0, -5.0), (5.0, 5.0), (n, n))
        start = tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum((x - jnp.asarray(mean)) ** 2) / 0.3), grid)
        path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(time), final_time=time)
        exact = tw.Gaussian(jnp.asarray(decay @ mean), jnp.asarray(covariance))
        expected = tw.GridDensity.from_log_density(exact.log_density, grid)
        errors.append(float(jnp.sum(jnp.abs(path.final.state.values - expected.values)) * grid.cell_volume))
    assert np.log2(errors[0] / errors[1]) > 1.9


def test_a_start_far_uphill_goes_to_the_integrator_without_that_limit():
    grid = tw.Grid(-4.0, 4.0, 64)
    energy = tw.PotentialEnergy(lambda x: 0.5 * jnp.sum(x**2)) + 1e-3 * tw.Entropy()
    start = tw.GridDensity.from_function(lambda x: jnp.exp(-50 * jnp.sum((x - 2.0) ** 2)), grid)
    scheme = tw.Continuous(0.01, solver=tw.ExponentialFiniteVolume())
    reason = tw.why_unsupported(energy, start, geometry=W2, scheme=scheme)
    assert reason is not None
    assert "uphill" in reason
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(0.01), num_steps=1)
    assert "exact in time" not in path.stats["solver"]


def test_where_mass_is_far_uphill_the_step_is_cut_and_the_answer_stands():
    # V/T = 32 at the start: the noise of one long sum would drown the tails.
    grid = tw.Grid(-12.0, 12.0, 300)
    energy = tw.PotentialEnergy(lambda x: 0.5 * jnp.sum(x**2)) + tw.Entropy()
    start = tw.GridDensity.from_function(lambda x: jnp.exp(-5 * jnp.sum((x - 8.0) ** 2)), grid)
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(1.0), num_steps=1)
    mean, variance = 8 * np.exp(-1.0), 1 + (0.1 - 1) * np.exp(-2.0)
    # The drift is upwinded where it is far above the temperature: h = 0.08.
    np.testing.assert_allclose(float(path.final.state.mean()[0]), mean, atol=0.01)
    np.testing.assert_allclose(float(path.final.state.covariance()[0, 0]), variance, atol=0.05)


def test_a_mobility_twice_as_large_runs_twice_as_fast():
    grid = GRIDS["mixed"]
    energy = tw.PotentialEnergy(rotated_double_well) + tw.Entropy()
    start = tw.GridDensity.from_function(bump, grid)
    double = tw.Wasserstein(mobility=lambda x, q: 2 * q)
    fast = tw.flow(energy, start, geometry=double, scheme=tw.Continuous(0.2), num_steps=1)
    slow = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(0.4), num_steps=1)
    assert "exact in time" in fast.stats["solver"]
    np.testing.assert_allclose(fast.final.state.values, slow.final.state.values, atol=1e-9)


def test_a_mobility_that_varies_in_space_keeps_the_gibbs_density_and_solves_its_equation():
    n, time = 120, 0.05
    grid = tw.Grid(0.0, 1.0, n)
    varying = tw.Wasserstein(mobility=lambda x, q: (1 + x[0]) * q)
    start = tw.GridDensity.from_function(lambda x: 1 + 0.5 * jnp.cos(jnp.pi * x[0]), grid)
    path = tw.flow(tw.Entropy(), start, geometry=varying, scheme=tw.Continuous(time), num_steps=1)
    # ∂q/∂t = ∂x((1+x) ∂x q) by the matrix of the same second-order fluxes on a grid four times finer.
    m = 4 * n
    face = m**2 * (1 + np.arange(1, m) / m)
    matrix = np.diag(np.r_[0, face] + np.r_[face, 0]) - np.diag(face, 1) - np.diag(face, -1)
    fine = 1 + 0.5 * np.cos(np.pi * (np.arange(m) + 0.5) / m)
    expected = (expm(-time * matrix) @ (fine / fine.mean())).reshape(n, 4).mean(axis=1)
    assert float(np.mean(np.abs(np.asarray(path.final.state.values) - expected))) < 1.0 / n**2


def test_a_crowd_that_is_full_at_one_never_exceeds_it():
    grid = tw.Grid(0.0, 4.0, 80)
    full = tw.Wasserstein(mobility=lambda x, q: q * jnp.maximum(1 - q, 0))
    start = tw.GridDensity.from_function(lambda x: jnp.where(jnp.abs(x[0] - 2.5) < 0.9, 1.0, 0.0), grid)
    energy = tw.PotentialEnergy(lambda x: 3 * x[0]) + 0.02 * tw.Entropy()
    path = tw.flow(energy, start, geometry=full, scheme=tw.Continuous(0.1), final_time=1.0)
    assert "exact in time" not in path.stats["solver"]
    assert float(jnp.max(path.states.values)) < 1 + 1e-6
    np.testing.assert_allclose(float(path.final.state.mass), 1, atol=1e-13)


def test_gradients_go_through_a_rollout_to_the_potential():
    grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (10, 12))
    start = tw.GridDensity.from_function(bump, grid)

    def mean_after(stiffness):
        energy = tw.PotentialEnergy(lambda x: stiffness * jnp.sum((x + 0.5) ** 2)) + 0.6 * tw.Entropy()
        path = tw.rollout(energy, start, geometry=W2, scheme=tw.Continuous(0.1), num_steps=3)
        return path.final.state.mean()[0]

    both = jax.jit(jax.value_and_grad(mean_after))
    step = 1e-4
    difference = (both(1.3 + step)[0] - both(1.3 - step)[0]) / (2 * step)
    np.testing.assert_allclose(both(1.3)[1], difference, rtol=1e-6)


def test_single_precision_stays_single_and_keeps_its_digits():
    grid = tw.Grid(-3.0, 3.0, 50)
    energy = tw.PotentialEnergy(lambda x: 0.5 * jnp.sum(x**2)) + tw.Entropy()
    double = tw.GridDensity.from_function(bump, grid)
    single = tw.GridDensity(double.values.astype(jnp.float32), grid)
    ends = [
        tw.flow(energy, q, geometry=W2, scheme=tw.Continuous(0.5), num_steps=3).final.state.values
        for q in (double, single)
    ]
    assert ends[1].dtype == jnp.float32
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)


@pytest.mark.slow
def test_gradients_by_the_start_are_right_at_empty_cells_too():
    grid = tw.Grid(-3.0, 3.0, 30)
    energy = tw.PotentialEnergy(lambda x: 0.5 * jnp.sum(x**2)) + tw.Entropy()
    block = np.zeros(30)
    block[12:16] = 1 / (4 * 0.2)
    weights = jnp.cos(jnp.arange(30.0))

    def gathered(values):
        start = tw.GridDensity(values, grid)
        path = tw.rollout(energy, start, geometry=W2, scheme=tw.Continuous(0.3), num_steps=1)
        return jnp.sum(weights * path.final.state.values)

    slope = jax.grad(gathered)(jnp.asarray(block))
    moved = block.copy()
    moved[14] -= 1e-4
    moved[2] += 1e-4
    difference = (gathered(jnp.asarray(moved)) - gathered(jnp.asarray(block))) / 1e-4
    np.testing.assert_allclose(slope[2] - slope[14], difference, rtol=1e-5)


@pytest.mark.parametrize("cell", [3, 30])
def test_from_a_point_mass_no_more_is_dissipated_than_is_lost(cell):
    grid = tw.Grid(-2.5, 2.5, 48)
    energy = tw.PotentialEnergy(lambda x: 2 * (x[0] ** 2 - 1) ** 2) + tw.Entropy()
    start = tw.GridDensity.normalised(jnp.where(jnp.arange(48) == cell, 1.0, 0.0), grid)
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(1.0), num_steps=1)
    assert path.energy_balance().relative_error < 0.05


def test_any_length_of_time_ends():
    grid = tw.Grid(-2.5, 2.5, 48)
    energy = tw.PotentialEnergy(lambda x: 2 * (x[0] ** 2 - 1) ** 2) + tw.Entropy()
    start = tw.GridDensity.from_function(bump, grid)
    path = tw.flow(energy, start, geometry=W2, scheme=tw.Continuous(1e7), num_steps=1)
    gibbs = tw.GridDensity.from_log_density(lambda x: -2 * (x[0] ** 2 - 1) ** 2, grid)
    np.testing.assert_allclose(path.final.state.values, gibbs.values, atol=1e-9)
