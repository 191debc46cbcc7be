"""The density problems: every closed form against its equation, its mass, its moments, its limit and its energy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thalweg import problems, states
from thalweg.problems import cell_averages

# Each with points where its density is not negligible: (problem, half width of the box of test points about its mean).
EXACT = {
    "ornstein_uhlenbeck": (problems.ornstein_uhlenbeck(), 1.5),
    "ornstein_uhlenbeck, 2D": (problems.ornstein_uhlenbeck(2, temperature=0.3, stiffness=5.0), 0.7),
    "heat_gaussian": (problems.heat_gaussian(temperature=0.7), 1.0),
    "heat_gaussian, 3D": (problems.heat_gaussian(3), 1.0),
    "heat_modes": (problems.heat_modes((2,), 0.8, temperature=0.3), 0.5),
    "heat_modes, 2D": (problems.heat_modes((2, 1)), 0.5),
    "heat_modes, torus": (problems.heat_modes((1, 0), periodic=True), 0.5),
    "quadratic_interaction": (problems.quadratic_interaction(attraction=2.0), 0.8),
    "quadratic_interaction, 2D": (problems.quadratic_interaction(2), 0.8),
    "barenblatt": (problems.barenblatt(coefficient=0.5), 0.3),
    "barenblatt, m = 3": (problems.barenblatt(3.0, 2), 0.15),
    "barenblatt, m = 3/2": (problems.barenblatt(1.5, 3), 0.15),
    "confined_barenblatt": (problems.confined_barenblatt(), 0.5),
    "confined_barenblatt, m = 3": (
        problems.barenblatt(3.0, 2, initial_time=0.1, final_time=2.0, coefficient=0.7, confinement=2.0),
        0.2,
    ),
}
STATIONARY = {
    "ornstein_uhlenbeck": problems.ornstein_uhlenbeck(),
    "ornstein_uhlenbeck, 2D": problems.ornstein_uhlenbeck(2, temperature=0.3, stiffness=5.0),
    "heat_modes": problems.heat_modes((2, 1)),
    "quadratic_interaction": problems.quadratic_interaction(attraction=2.0),
    "quadratic_interaction, 2D": problems.quadratic_interaction(2),
    "confined_barenblatt": problems.confined_barenblatt(),
    "confined_barenblatt, m = 3/2, 2D": problems.barenblatt(1.5, 2, initial_time=1.0, coefficient=0.7, confinement=2.0),
    "double_well": problems.double_well(),
    "double_well, 2D": problems.double_well(2, tilt=0.2),
    "metastable_double_well": problems.metastable_double_well(),
    "von_mises": problems.von_mises(),
    "von_mises, 2D": problems.von_mises(2, temperature=0.2, strength=0.5),
}
CELLS = {1: 1000, 2: 100, 3: 64}
with_exact = pytest.mark.parametrize(("problem", "width"), EXACT.values(), ids=EXACT.keys())
with_stationary = pytest.mark.parametrize("problem", STATIONARY.values(), ids=STATIONARY.keys())


@functools.cache
def exact_at(problem):
    """The exact solution at a time and many points, compiled once a problem."""
    return jax.jit(jax.vmap(problem.exact, in_axes=(None, 0)))


def values(fn, points):
    """A function of one point at many points."""
    return jax.jit(jax.vmap(fn))(points)


def energy_of(problem, shape):
    """The energy as a function of cell values, normalised."""
    energy, grid = problem.energy(), problem.grid(shape)
    return jax.jit(lambda cells: energy(states.GridDensity.normalised(cells, grid)))


def quadrature(problem, num_cells):
    """Cell centres of the problem's box and their common weight."""
    grid = problem.grid(num_cells)
    axes = [a + (np.arange(n) + 0.5) * h for a, n, h in zip(grid.lower, grid.shape, grid.spacing, strict=True)]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, problem.dim)), grid.cell_volume


def drift(problem, density):
    """x -> grad(V + W * q)(x), the convolution by a sum over the box."""
    nodes, weight = quadrature(problem, {1: 400, 2: 60, 3: 4}[problem.dim])
    masses = jax.vmap(density)(nodes) * weight

    def force(x):
        total = jnp.zeros_like(x)
        if problem.potential is not None:
            total = total + jax.grad(problem.potential)(x)
        if problem.interaction_kernel is not None:
            total = total + masses @ jax.vmap(jax.grad(problem.interaction_kernel))(x[None] - nodes)
        return total

    return force


def pressure(problem, q):
    """T q + gamma q^m, whose Laplacian is the diffusion."""
    porous = 0.0 if problem.porous_exponent is None else problem.porous_coefficient * q**problem.porous_exponent
    return problem.temperature * q + porous


@with_exact
def test_the_exact_solution_solves_its_equation(problem, width):
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def residual(time, x):
        def density(y):
            return problem.exact(time, y)

        force = drift(problem, density)
        flux = jax.jacfwd(lambda y: density(y) * force(y) + jax.grad(lambda z: pressure(problem, density(z)))(y))
        rate = jax.jvp(lambda t: problem.exact(t, x), (time,), (1.0,))[1]
        return rate - jnp.trace(flux(x)), rate, density(x)

    offsets = jax.random.uniform(jax.random.key(0), (20, problem.dim), minval=-width, maxval=width)
    for time in (0.1 * problem.final_time, 0.7 * problem.final_time):
        centre = problem.exact_mean(time) if problem.exact_mean is not None else jnp.full((problem.dim,), 0.5)
        left_over, rates, densities = residual(time, centre[None] + offsets)
        assert float(jnp.min(densities)) > 0
        # Automatic differentiation leaves rounding only, and so does the sum for W * q (smooth, and zero at the walls).
        np.testing.assert_allclose(left_over, 0, atol=1e-10 * float(jnp.max(jnp.abs(rates) + densities)))


@with_exact
def test_the_exact_solution_has_mass_one_and_the_stated_moments_at_all_times(problem, width):
    # Smooth and vanishing at the walls: the sum is exact to rounding. A front costs O(h^1.5) or better, h = 1/500 to
    # 1/20.
    tolerance = 1e-7 if problem.porous_exponent is None else {1: 1e-4, 2: 2e-3, 3: 1e-2}[problem.dim]
    for time in (0.0, problem.final_time):
        nodes, weight = quadrature(problem, CELLS[problem.dim])
        masses = exact_at(problem)(time, nodes) * weight
        assert float(jnp.sum(masses)) == pytest.approx(1, abs=tolerance)
        if time == 0:
            np.testing.assert_allclose(masses, values(problem.initial_density, nodes) * weight, rtol=1e-12)
        if problem.exact_mean is None:
            continue
        mean = masses @ nodes
        covariance = (nodes - mean[None]).T @ ((nodes - mean[None]) * masses[:, None])
        np.testing.assert_allclose(mean, problem.exact_mean(time), atol=tolerance)
        np.testing.assert_allclose(covariance, problem.exact_covariance(time), atol=tolerance)


@with_exact
def test_the_cumulative_mass_is_the_integral_of_the_density(problem, width):
    if problem.dim > 1:
        assert problem.exact_cumulative is None
        return
    slope = jax.jit(jax.vmap(jax.grad(problem.exact_cumulative, argnums=1), in_axes=(None, 0)))
    points = jnp.linspace(problem.lower[0], problem.upper[0], 41)[1:-1, None]
    for time in (0.0, problem.final_time):
        # betainc is differentiated by JAX to about 1e-9 only.
        np.testing.assert_allclose(slope(time, points)[:, 0], exact_at(problem)(time, points), atol=1e-8)
    averages = problem.cell_averages(problem.final_time, 50)
    assert float(jnp.sum(averages) * problem.grid(50).cell_volume) == pytest.approx(1, abs=1e-12)


def test_the_exact_solution_tends_to_the_stationary_density():
    for problem, _ in EXACT.values():
        if problem.stationary_log_density is None:
            continue
        nodes, _ = quadrature(problem, CELLS[problem.dim])
        # e^(-40) is below rounding, for rates of one and more.
        late = exact_at(problem)(40.0, nodes)
        np.testing.assert_allclose(late, jnp.exp(values(problem.stationary_log_density, nodes)), atol=1e-11)


@with_stationary
def test_the_stationary_density_has_mass_one_and_a_constant_first_variation(problem):
    nodes, weight = quadrature(problem, {1: 2000, 2: 200}[problem.dim])
    density = jnp.exp(values(problem.stationary_log_density, nodes))
    # A front costs O(h^1.5) or better.
    assert float(jnp.sum(density) * weight) == pytest.approx(1, abs=1e-12 if problem.porous_exponent is None else 1e-4)

    def first_variation_gradient(x):
        force = drift(problem, lambda y: jnp.exp(problem.stationary_log_density(y)))
        log_q = problem.stationary_log_density
        gradient = force(x) + problem.temperature * jax.grad(log_q)(x)
        if problem.porous_exponent is not None:
            m = problem.porous_exponent
            gradient = gradient + problem.porous_coefficient * m * jnp.exp((m - 1) * log_q(x)) * jax.grad(log_q)(x)
        return gradient

    inside = nodes[jnp.argsort(-density)[: len(nodes) // 10 : len(nodes) // 200]]
    np.testing.assert_allclose(values(first_variation_gradient, inside), 0, atol=1e-9)


@with_stationary
def test_the_energy_of_the_stationary_density_is_the_stated_minimum(problem):
    shape = {1: 1000, 2: 120}[problem.dim]
    energy = energy_of(problem, shape)
    # Cell averages against point values of V: O(h^2) with h up to 1/6.
    assert float(energy(problem.stationary_cell_averages(shape))) == pytest.approx(
        problem.minimum, abs=1e-4 if problem.dim == 1 else 2e-3
    )


def test_the_energy_falls_along_every_exact_solution():
    for problem, _ in EXACT.values():
        if problem.dim > 1:
            continue
        energy = energy_of(problem, CELLS[1])
        nodes, _ = quadrature(problem, CELLS[1])
        times = [fraction * problem.final_time for fraction in (0.0, 0.2, 0.5, 1.0)]
        energies = [float(energy(exact_at(problem)(time, nodes))) for time in times]
        assert all(after < before for before, after in zip(energies, energies[1:], strict=False)), energies


def test_barenblatt_in_the_plane_has_the_constants_of_the_closed_form():
    # m = 2: k = 1/16 and C = (1/(8 pi))^(1/2); U(0, s) = C s^(-1/2), and the front is at s^(1/4) (C/k)^(1/2).
    problem, constant = problems.barenblatt(2.0, 2, initial_time=0.3), math.sqrt(1 / (8 * math.pi))
    assert float(problem.exact(0.2, jnp.zeros(2))) == pytest.approx(constant / math.sqrt(0.5), rel=1e-13)
    front = 0.5**0.25 * math.sqrt(16 * constant)
    assert float(problem.exact(0.2, jnp.array([front * (1 - 1e-9), 0.0]))) > 0
    assert float(problem.exact(0.2, jnp.array([front * (1 + 1e-9), 0.0]))) == 0


def test_the_gradient_of_a_barenblatt_profile_is_finite_outside_its_support():
    problem = problems.barenblatt(3.0)
    np.testing.assert_array_equal(jax.grad(problem.initial_density)(jnp.array([problem.upper[0]])), 0)


@pytest.mark.parametrize("periodic", [False, True])
def test_the_second_difference_damps_a_heat_mode_at_the_stated_discrete_rate(periodic):
    n, k = 12, 2
    problem = problems.heat_modes((k,), 0.5, periodic=periodic)
    mode = problem.cell_averages(0.0, n) - 1
    padded = np.pad(mode, 1, mode="wrap" if periodic else "edge")
    second_difference = (padded[2:] - 2 * padded[1:-1] + padded[:-2]) * n**2
    rate = (2 - 2 * math.cos((2 if periodic else 1) * math.pi * k / n)) * n**2
    np.testing.assert_allclose(second_difference, -rate * mode, atol=1e-10 * rate)


@pytest.mark.parametrize(
    ("problem", "barrier", "tilt"),
    [
        (problems.double_well(), 1.0, 0.0),
        (problems.double_well(temperature=0.3, barrier=0.7, tilt=0.2), 0.7, 0.2),
        (problems.metastable_double_well(), 1.0, 0.0),
    ],
)
def test_the_relaxation_rate_of_a_double_well_is_that_of_a_polynomial_galerkin_method(problem, barrier, tilt):
    # min of T int phi'^2 pi over int phi^2 pi, phi orthogonal to 1: polynomials up to degree 40, Gauss-Legendre
    # quadrature.
    edge, temperature = problem.upper[0], problem.temperature
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = edge * nodes
    pi = weights * np.exp(-(barrier * (x**2 - 1) ** 2 + tilt * x) / temperature)
    basis = np.polynomial.legendre.legvander(nodes, 40)
    derivatives = np.stack(
        [np.polynomial.legendre.legval(nodes, np.polynomial.legendre.legder(row)) for row in np.eye(41)], axis=1
    )
    # Orthonormal in the weight pi, so that the eigenvalue problem is an ordinary one.
    q, r = np.linalg.qr(np.sqrt(pi)[:, None] * basis)
    slopes = np.sqrt(pi)[:, None] * derivatives / edge @ np.linalg.inv(r)
    rate = temperature * np.linalg.eigvalsh(slopes.T @ slopes)[1]
    # The library's three-point form has an error of order h^2 / 12 relative to the width of the barrier.
    assert problem.relaxation_rate == pytest.approx(rate, rel=1e-4)


def test_the_metastable_state_keeps_an_energy_of_temperature_log_two():
    problem = problems.metastable_double_well()
    assert problem.relaxation_rate * problem.final_time < 1e-3
    whole = problem.stationary_cell_averages(400)
    left = jnp.where(jnp.arange(400) < 200, whole, 0.0)
    excess = float(energy_of(problem, 400)(left)) - problem.minimum
    assert excess == pytest.approx(problem.temperature * math.log(2), rel=1e-3)


def test_cell_averages_are_exact_for_polynomials():
    # x^11 has the average (b^12 - a^12) / (12 (b - a)) over [a, b].
    edges = np.linspace(-1, 2, 6)
    averages = cell_averages(lambda x: x[0] ** 11, (-1.0,), (2.0,), (5,))
    np.testing.assert_allclose(averages, np.diff(edges**12) / 12 / 0.6, rtol=1e-11, atol=1e-11)
    plane = cell_averages(lambda x: x[0] ** 2 * x[1], (0.0, 0.0), (1.0, 2.0), (1, 2))
    np.testing.assert_allclose(plane, [[1 / 6, 1 / 2]], rtol=1e-13)


def test_initial_states_agree_with_one_another():
    problem = problems.ornstein_uhlenbeck(2)
    gaussian = problem.initial_gaussian()
    particles = problem.initial_particles(4000, key=jax.random.key(1))
    density = problem.initial_state((80, 60))
    assert density.values.shape == (80, 60)
    np.testing.assert_allclose(density.mean(), gaussian.mean, atol=1e-6)
    # Four standard errors of a mean of 4000 draws with variance at most 0.4.
    np.testing.assert_allclose(particles.mean(), gaussian.mean, atol=4 * math.sqrt(0.4 / 4000))


def test_the_gaussian_problems_start_where_their_documentation_says():
    ornstein_uhlenbeck = problems.ornstein_uhlenbeck(2, temperature=0.5)
    np.testing.assert_allclose(ornstein_uhlenbeck.initial_mean, [-1, 0], atol=1e-15)
    np.testing.assert_allclose(ornstein_uhlenbeck.initial_covariance, np.diag([0.1, 0.2]), atol=1e-15)
    np.testing.assert_allclose(problems.heat_gaussian(2).initial_covariance, np.diag([0.1, 0.2]), atol=1e-15)
    np.testing.assert_allclose(problems.quadratic_interaction(2).initial_covariance, 0.1 * np.eye(2), atol=1e-15)


def test_what_a_problem_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match="does not start from a Gaussian"):
        problems.von_mises().initial_gaussian()
    with pytest.raises(ValueError, match="no closed form in time"):
        problems.von_mises().cell_averages(1.0, 10)
    with pytest.raises(ValueError, match="no stationary density"):
        problems.heat_gaussian().stationary_cell_averages(10)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: problems.ornstein_uhlenbeck(temperature=0.0), "temperature"),
        (lambda: problems.ornstein_uhlenbeck(stiffness=0.5), "stiffness"),
        (lambda: problems.quadratic_interaction(attraction=-1.0), "attraction"),
        (lambda: problems.heat_modes((0,)), "mode"),
        (lambda: problems.barenblatt(1.0), "exponent"),
        (lambda: problems.double_well(barrier=0.0), "barrier"),
        (lambda: problems.von_mises(temperature=-1.0), "temperature"),
    ],
)
def test_a_parameter_out_of_range_is_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()
