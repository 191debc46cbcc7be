"""Stiff flows of vectors by exponentials: few substeps, accurate, differentiable, and refused where they cannot be."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import thalweg as tw
from thalweg.schemes._exponential import phi_functions, squared_speed

PLANE = tw.Euclidean()


@cache
def quartic_bowl(num, condition):
    """F = ½xᵀAx + ¼|x|⁴ in a random basis, a start, and where it is at t = 10 (Radau in the eigenbasis of A)."""
    random = np.random.default_rng(num)
    rates = np.logspace(0, np.log10(condition), num)
    basis = np.linalg.qr(random.normal(size=(num, num)))[0]
    start = random.normal(size=num)
    matrix = jnp.asarray(basis * rates @ basis.T)

    def jacobian(_, y):
        return -np.diag(rates) - (y @ y) * np.eye(num) - 2 * np.outer(y, y)

    reference = solve_ivp(
        lambda _, y: -rates * y - (y @ y) * y,
        (0, 10),
        basis.T @ start,
        method="Radau",
        jac=jacobian,
        rtol=1e-12,
        atol=1e-17,
    )
    energy = lambda x: 0.5 * x @ (matrix @ x) + 0.25 * jnp.sum(x**2) ** 2  # noqa: E731
    return energy, jnp.asarray(start), basis @ reference.y[:, -1]


@pytest.mark.parametrize(
    ("num", "condition", "step_size"),
    [
        (2, 1e6, 10.0),
        (10, 1e6, 1.0),
        pytest.param(10, 1e3, 10.0, marks=pytest.mark.slow),
        pytest.param(10, 1e9, 10.0, marks=pytest.mark.slow),
        pytest.param(50, 1e6, 10.0, marks=pytest.mark.slow),
    ],
)
def test_a_stiff_nonlinear_flow_takes_few_substeps_to_an_accurate_end(num, condition, step_size):
    energy, start, expected = quartic_bowl(num, condition)
    path = tw.flow(energy, start, geometry=PLANE, scheme=tw.Continuous(step_size), final_time=10.0)
    assert "ExponentialRosenbrock" in path.stats["solver"]
    assert float(path.times[-1]) == 10.0
    # The issue allows 100 and 1e-6; 18 to 40 and 5e-9 are measured (3e-8 at 1e9, where a gradient has no more digits).
    assert int(jnp.sum(path.measurements["substeps"])) <= 60
    assert np.linalg.norm(path.final.state - expected) <= 1e-7 * np.linalg.norm(expected)
    # Not the difference of energies: the integral of the squared speed, good to the tolerance of 1e-8.
    assert path.energy_balance().relative_error < 2e-8


def test_phi_functions_and_the_dissipated_energy_are_exact_on_both_sides_of_the_switch():
    rates = np.array([-20.0, -1.0, 0.0, 0.3, 15.99, 16.01, 100.0, 1e6])
    found = np.asarray(phi_functions(jnp.asarray(rates), 6))
    mpmath.mp.dps = 40
    for i, z in enumerate(rates):
        exact = [mpmath.hyp1f1(1, k + 1, -mpmath.mpf(z)) / mpmath.factorial(k) for k in range(7)]
        exact[0] = mpmath.exp(-mpmath.mpf(z))
        # Some ulps of a sum of 24 terms.
        np.testing.assert_allclose(found[:, i], np.array(exact, float), rtol=1e-13)
    # ẇ = 3 − zw + τ: ẇ = (3 − 1/z)e^{−zτ} + 1/z, whose square has a closed integral.
    for z in (0.5, 15.99, 16.01, 1e5):
        a, b = 3 - 1 / z, 1 / z
        exact = a**2 * (-np.expm1(-2 * z)) / (2 * z) + 2 * a * b * (-np.expm1(-z)) / z + b**2
        got = squared_speed(jnp.array([z]), jnp.array([3.0]), jnp.array([[0.0], [1.0]]))
        np.testing.assert_allclose(got, exact, rtol=1e-12)


def _end(parameter, duration, scheme, num_steps=1):
    matrix = jnp.eye(3) * (1 + parameter) + 0.3
    rates = jnp.array([1.0, 1.0, 1e4])

    def energy(x):
        return 0.5 * parameter * x @ (rates * x) + 0.25 * jnp.sum(x**2) ** 2 + parameter**2 * x[0]

    start = jnp.array([1.0, -0.5, 0.3]) * parameter
    scheme = tw.Continuous(duration, scheme)
    return tw.rollout(energy, start, geometry=tw.Mahalanobis(matrix), scheme=scheme, num_steps=num_steps).final


def test_gradients_pass_through_equal_rates_the_metric_the_energy_and_the_duration():
    solver = tw.ExponentialRosenbrock()

    def observed(parameter, duration):
        final = _end(parameter, duration, solver)
        return final.state[0] + final.state[1] ** 2 + 1e-3 * final.dissipated

    gradient = jax.jit(jax.grad(observed, (0, 1)))(jnp.asarray(1.1), jnp.asarray(0.4))
    value, step = jax.jit(observed), 1e-4
    expected = (
        (value(1.1 + step, 0.4) - value(1.1 - step, 0.4)) / (2 * step),
        (value(1.1, 0.4 + step) - value(1.1, 0.4 - step)) / (2 * step),
    )
    # Differences are good to step² and to the tolerance, 1e-8, over the step.
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    assert min(abs(float(part)) for part in gradient) > 1e-3


def test_the_error_follows_the_tolerance():
    energy, start, expected = quartic_bowl(2, 1e6)
    errors, counts = [], []
    for tolerance in (1e-4, 1e-7):
        solver = tw.ExponentialRosenbrock(rtol=tolerance, atol=1e-3 * tolerance)
        path = tw.flow(energy, start, geometry=PLANE, scheme=tw.Continuous(5.0, solver), final_time=10.0)
        errors.append(float(np.linalg.norm(path.final.state - expected) / np.linalg.norm(expected)))
        counts.append(int(jnp.sum(path.measurements["substeps"])))
    assert errors[0] < 1e-4
    assert errors[1] < 1e-7
    # A substep's error is of order seven: a thousandth of the tolerance takes at most 1000^(1/7) = 2.7 times as many.
    assert counts[0] < counts[1] < 3 * counts[0]


def test_a_flow_does_not_jump_over_a_barrier_whose_gradient_is_finite_beyond_it():
    energy = lambda x: jnp.sum(1e3 * x - 1e-3 * jnp.log(x))  # noqa: E731
    solver = tw.ExponentialRosenbrock()
    path = tw.flow(energy, jnp.array([1.0]), geometry=PLANE, scheme=tw.Continuous(1.0, solver), num_steps=1)
    # The minimum of 1e3 x − 1e-3 log x.
    np.testing.assert_allclose(path.final.state, 1e-6, rtol=1e-3)


def test_what_exponentials_cannot_do_is_refused_or_left_to_another_solver():
    stiff = lambda x: 1e6 * jnp.sum(x**2)  # noqa: E731
    named = tw.Continuous(1.0, tw.ExponentialRosenbrock())
    reason = tw.why_unsupported(stiff, jnp.ones(2), geometry=tw.MaxNorm(), scheme=named)
    assert reason is not None
    assert "MaxNorm" in reason
    reason = tw.why_unsupported(stiff, jnp.ones(2, jnp.float32), geometry=PLANE, scheme=named)
    assert reason is not None
    assert "float64" in reason
    resolved = tw.Continuous(1.0).resolve(tw.energies.as_energy(stiff), tw.MaxNorm(), jnp.ones(2))
    assert "Kvaerno5" in resolved.describe()["solver"]
    assert "MaxNorm" in resolved.describe()["solver"]
    with pytest.raises(ValueError, match="rtol"):
        tw.ExponentialRosenbrock(rtol=-1.0)
    # Too many unknowns for dense matrices: explicit, and the reason says what that may cost.
    many = tw.Continuous(1e-3).resolve(tw.energies.as_energy(stiff), PLANE, jnp.ones(501))
    assert "667 of the 16384 substeps" in many.describe()["solver"]
