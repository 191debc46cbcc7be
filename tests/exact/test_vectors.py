"""Case (a): functions of a vector against closed form 18, and the Rosenbrock valley."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

EIGENVALUES = jnp.array([0.5, 2.0, 8.0])
START = jnp.array([1.0, -2.0, 0.5])


def quadratic(x):
    return 0.5 * jnp.sum(EIGENVALUES * x**2)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def test_explicit_is_gradient_descent_exactly():
    path = tw.flow(quadratic, START, geometry=tw.Euclidean(), scheme=tw.Explicit(0.1), num_steps=20)
    expected = [(1 - 0.1 * EIGENVALUES) ** k * START for k in range(21)]
    np.testing.assert_allclose(path.states, jnp.stack(expected), rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(path.times, 0.1 * np.arange(21), rtol=1e-14)


def test_proximal_is_the_resolvent():
    path = tw.flow(quadratic, START, geometry=tw.Euclidean(), scheme=tw.Proximal(0.7), num_steps=5)
    expected = [START / (1 + 0.7 * EIGENVALUES) ** k for k in range(6)]
    np.testing.assert_allclose(path.states, jnp.stack(expected), rtol=1e-12, atol=1e-15)
    # D is the squared distance itself.
    moves = jnp.sum(jnp.diff(path.states, axis=0) ** 2, axis=1)
    np.testing.assert_allclose(path.distances_squared[1:], moves, rtol=1e-10)


def test_continuous_is_the_exponential_and_hits_the_final_time():
    path = tw.flow(quadratic, START, geometry=tw.Euclidean(), scheme=tw.Continuous(0.3), final_time=1.0)
    assert float(path.times[-1]) == 1.0
    expected = jnp.exp(-path.times[:, None] * EIGENVALUES[None]) * START[None]
    # The solver's tolerance is 1e-8 relative.
    np.testing.assert_allclose(path.states, expected, rtol=1e-6, atol=1e-9)
    balance = path.energy_balance()
    assert balance.relative_error < 1e-7
    np.testing.assert_allclose(balance.decrease, float(quadratic(START) - quadratic(path.final.state)), rtol=1e-12)


def test_the_energy_falls_at_the_rate_of_the_squared_gradient():
    # dF/dt by central differences of an accurate path, against the recorded rate;
    # the error is Δt²/6 times the third derivative, here (400 · 1e-4)²/6 = 3e-4 of the rate at its worst.
    path = tw.flow(rosenbrock, jnp.array([0.5, 0.8]), geometry=tw.Euclidean(), scheme=tw.Continuous(2e-5), num_steps=40)
    slopes = (path.energies[2:] - path.energies[:-2]) / (path.times[2:] - path.times[:-2])
    np.testing.assert_allclose(-slopes, path.dissipation_rates[1:-1], rtol=5e-4)
    gradients = jax.vmap(jax.grad(rosenbrock))(path.states)
    np.testing.assert_allclose(path.dissipation_rates, jnp.sum(gradients**2, axis=1), rtol=1e-12)


def test_a_stiff_quadratic_is_solved_by_a_stiff_solver_and_says_so():
    stiffness = jnp.array([1.0, 1e6])
    path = tw.flow(
        lambda x: 0.5 * jnp.sum(stiffness * x**2),
        jnp.ones(2),
        geometry=tw.Euclidean(),
        scheme=tw.Continuous(1.0),
        num_steps=2,
    )
    assert "ExponentialRosenbrock" in path.stats["solver"]
    np.testing.assert_allclose(path.final.state[0], np.exp(-2.0), rtol=1e-6)
    assert abs(float(path.final.state[1])) < 1e-8
    # An explicit solver would need 2e6/3.3 steps.
    assert int(jnp.sum(path.measurements["substeps"])) < 30


@pytest.mark.parametrize(
    ("geometry", "unit"),
    [
        (tw.Euclidean(), lambda g: g / jnp.linalg.norm(g)),
        (tw.MaxNorm(), jnp.sign),
        # At the tie of this start the first of the largest entries moves.
        (tw.OneNorm(), lambda g: jnp.zeros(3).at[jnp.argmax(jnp.abs(g))].set(jnp.sign(g[jnp.argmax(jnp.abs(g))]))),
    ],
    ids=["normalised", "sign", "coordinate"],
)
def test_constrained_steps_have_the_length_of_the_radius_in_their_norm(geometry, unit):
    path = tw.flow(quadratic, START, geometry=geometry, scheme=tw.Constrained(0.05), num_steps=4)
    x = START
    for k in range(4):
        x = x - 0.05 * unit(EIGENVALUES * x)
        np.testing.assert_allclose(path.states[k + 1], x, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(path.times, 0.05 * np.arange(5), rtol=1e-13)
    assert "arc length" in path.stats["parameter"]


def exact_ball_minimiser(x, radius):
    """The secular equation |(Λ + μ)^{-1} Λ x| … for the shift of the minimiser, by bisection in NumPy."""
    gradient, eigenvalues = np.asarray(EIGENVALUES * x), np.asarray(EIGENVALUES)
    low, high = 0.0, np.linalg.norm(gradient) / radius
    for _ in range(200):
        middle = 0.5 * (low + high)
        outside = np.linalg.norm(gradient / (eigenvalues + middle)) > radius
        low, high = (middle, high) if outside else (low, middle)
    return np.asarray(x) - gradient / (eigenvalues + high)


def test_the_exact_minimiser_on_the_ball_solves_the_secular_equation():
    scheme = tw.Constrained(0.3, solver=tw.NewtonBall())
    path = tw.flow(quadratic, START, geometry=tw.Euclidean(), scheme=scheme, num_steps=3)
    for k in range(3):
        expected = exact_ball_minimiser(path.states[k], 0.3)
        np.testing.assert_allclose(path.states[k + 1], expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(jnp.linalg.norm(path.states[k + 1] - path.states[k]), 0.3, rtol=1e-10)


def test_the_exact_ball_finds_an_interior_minimum_and_stays_there():
    scheme = tw.Constrained(5.0, solver=tw.NewtonBall())
    path = tw.flow(quadratic, START, geometry=tw.Euclidean(), scheme=scheme, num_steps=2)
    np.testing.assert_allclose(path.states[1:], 0, atol=1e-12)


def test_the_linearised_step_differs_from_the_exact_one_by_the_square_of_the_radius():
    differences = []
    for radius in (0.04, 0.02, 0.01):
        linear = tw.flow(rosenbrock, START[:2], geometry=tw.Euclidean(), scheme=tw.Constrained(radius), num_steps=1)
        exact = tw.flow(
            rosenbrock,
            START[:2],
            geometry=tw.Euclidean(),
            scheme=tw.Constrained(radius, solver=tw.NewtonBall()),
            num_steps=1,
        )
        assert float(exact.energies[-1]) <= float(linear.energies[-1])
        differences.append(float(jnp.linalg.norm(linear.final.state - exact.final.state)))
    orders = np.log2(np.array(differences[:-1]) / np.array(differences[1:]))
    # Two on the asymptote; the radii are not yet infinitesimal.
    assert np.all((orders > 1.8) & (orders < 2.2)), orders


def test_every_scheme_goes_down_rosenbrocks_valley_to_its_minimum():
    start = jnp.array([-1.0, 1.5])
    for scheme, steps, tolerance in (
        (tw.Explicit(tw.Backtracking(1.0)), 20000, 1e-3),
        (tw.Proximal(10.0), 60, 1e-6),
        (tw.Continuous(20.0), 5, 1e-6),
    ):
        path = tw.flow(rosenbrock, start, geometry=tw.Euclidean(), scheme=scheme, num_steps=steps, save_every=steps)
        np.testing.assert_allclose(path.final.state, 1.0, atol=tolerance)
