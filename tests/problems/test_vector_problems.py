"""The vector problems: their minimisers, and the quadratic's closed forms against the definitions of the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thalweg import problems

PROBLEMS = {
    "rosenbrock": problems.rosenbrock(),
    "rosenbrock, 5 dimensions": problems.rosenbrock(5),
    "quadratic": problems.quadratic(),
    "quadratic, condition 1e6": problems.quadratic(1e6, 4),
    "beale": problems.beale(),
    "himmelblau": problems.himmelblau(),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_minimiser_is_a_minimum_with_the_stated_value(problem):
    value_gradient_hessian = jax.jit(lambda x: (*jax.value_and_grad(problem.fn)(x), jax.hessian(problem.fn)(x)))
    value, gradient, hessian = value_gradient_hessian(problem.minimiser)
    assert float(value) == problem.minimum
    # Integers and halves: rounding leaves at most a few units in the last place of terms of size 100.
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert np.linalg.eigvalsh(hessian).min() > 0


@pytest.mark.parametrize(
    ("problem", "value"),
    # Rosenbrock: 100 (1 - 1.44)^2 + 2.2^2; Beale: 1.5^2 + 2.25^2 + 2.625^2; Himmelblau: 81 + 25.
    [(problems.rosenbrock(), 24.2), (problems.beale(), 14.203125), (problems.himmelblau(), 106.0)],
)
def test_the_function_has_the_published_value_at_the_start(problem, value):
    np.testing.assert_allclose(float(problem.energy()(problem.initial_state())), value, rtol=1e-14)


@pytest.mark.parametrize("condition_number", [1.0, 50.0])
def test_the_quadratic_has_the_condition_number_asked_for_and_oblique_axes(condition_number):
    problem = problems.quadratic(condition_number, 3)
    np.testing.assert_allclose(jax.hessian(problem.fn)(problem.initial), problem.hessian, rtol=1e-12)
    assert np.linalg.cond(problem.hessian) == pytest.approx(condition_number)
    if condition_number > 1:
        assert np.abs(problem.hessian[np.triu_indices(3, 1)]).min() > 1


@pytest.mark.parametrize("time", [0.0, 0.03, 1.0])
def test_the_exact_flow_of_the_quadratic_solves_its_equation(time):
    problem = problems.quadratic(50.0, 3)
    position, velocity = jax.jvp(problem.exact, (time,), (1.0,))
    np.testing.assert_allclose(problem.exact(0.0), problem.initial, rtol=1e-14)
    np.testing.assert_allclose(velocity, -jax.grad(problem.fn)(position), rtol=1e-10, atol=1e-12)


def test_the_exact_steps_of_the_quadratic_are_what_their_definitions_say():
    problem, step_size = problems.quadratic(50.0, 3), 0.01
    explicit = problem.initial
    for _ in range(7):
        explicit = explicit - step_size * jax.grad(problem.fn)(explicit)
    np.testing.assert_allclose(problem.exact_explicit(step_size, 7), explicit, rtol=1e-12)
    np.testing.assert_allclose(problem.exact_proximal(step_size, 0), problem.initial, rtol=1e-14)
    for n in range(3):
        before, after = problem.exact_proximal(step_size, n), problem.exact_proximal(step_size, n + 1)
        # The minimiser of |y - x|^2 / (2 alpha) + f(y) has this gradient zero.
        np.testing.assert_allclose((after - before) / step_size + jax.grad(problem.fn)(after), 0, atol=1e-11)


def test_the_flow_of_himmelblau_from_its_start_ends_at_the_minimum_that_is_named():
    problem = problems.himmelblau()
    end, _ = jax.lax.scan(lambda x, _: (x - 2e-3 * jax.grad(problem.fn)(x), None), problem.initial, length=2000)
    # The smallest eigenvalue there is 26: e^(-26 * 4) is below rounding.
    np.testing.assert_allclose(end, problem.minimiser, rtol=1e-12)


def test_a_parameter_out_of_range_is_named():
    with pytest.raises(ValueError, match="condition_number"):
        problems.quadratic(0.5)
    with pytest.raises(ValueError, match="dim >= 2"):
        problems.rosenbrock(1)


def test_a_function_keeps_the_precision_of_its_point():
    for problem in PROBLEMS.values():
        assert problem.fn(problem.initial.astype(jnp.float32)).dtype == jnp.float32
