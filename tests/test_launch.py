"""A recipe called again takes a short way to the same path; inside a trace it is one pure function."""

import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

START = jnp.asarray([-1.2, 1.0])


def rosenbrock(x: Any) -> Any:
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


class Bowl(eqx.Module):
    centre: jax.Array

    def __call__(self, x: Any) -> Any:
        return jnp.sum(jnp.cosh(x - self.centre))


def contents(path: tw.Path) -> Any:
    return path.times, path.states, path.records, path.measurements, path.final


def assert_same(one: tw.Path, other: tw.Path) -> None:
    assert bool(one.result == other.result)
    leaves, others = jax.tree.leaves(contents(one)), jax.tree.leaves(contents(other))
    assert len(leaves) == len(others)
    for a, b in zip(leaves, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_second_call_gives_the_same_path_and_traces_nothing():
    traces = []

    def counted(x: Any) -> Any:
        traces.append(1)
        return rosenbrock(x)

    first = tw.minimise(counted, START)
    before = len(traces)
    assert_same(tw.minimise(counted, START), first)
    elsewhere = tw.minimise(counted, jnp.asarray([2.0, -1.0]))
    np.testing.assert_allclose(elsewhere.final.state, 1.0, atol=1e-9)
    np.testing.assert_array_equal(elsewhere.states[0], [2.0, -1.0])
    assert len(traces) == before


def test_the_data_of_a_second_call_are_its_own():
    for centre in ([1.0, -2.0], [3.0, 0.5], [0.0, 0.0]):
        found = tw.minimise(Bowl(jnp.asarray(centre)), jnp.asarray([0.3, 0.4]))
        np.testing.assert_allclose(found.final.state, centre, atol=1e-9)
        np.testing.assert_allclose(found.energies[-1], 2.0)
    # The tolerance and the number of steps are no data: another value is another run.
    assert int(tw.minimise(rosenbrock, START, num_steps=3).final.num_steps) == 3
    assert int(tw.minimise(rosenbrock, START, num_steps=5).final.num_steps) == 5


def test_a_second_call_refuses_what_the_first_would():
    log = lambda x: jnp.sum(x - jnp.log(x))  # noqa: E731
    for _ in range(2):
        np.testing.assert_allclose(tw.minimise(log, jnp.asarray([3.0])).final.state, 1.0)
    with pytest.raises(ValueError, match="holds NaN"):
        tw.minimise(log, jnp.asarray([jnp.nan]))
    with pytest.raises(ValueError, match="not finite at `initial_state`"):
        tw.minimise(log, jnp.asarray([-1.0]))


def test_a_long_run_is_the_same_however_it_is_begun():
    # More saves than a buffer holds: Newton's steps towards a degenerate minimum shorten the way by a third each.
    flat = lambda x: jnp.sum((x - 1) ** 4)  # noqa: E731
    options = {"num_steps": 600, "tolerance": 0.0}
    first, second = (tw.minimise(flat, jnp.asarray([3.0, -5.0]), **options) for _ in range(2))
    assert_same(first, second)
    rough = lambda x: jnp.sum(jnp.sqrt(1e-4 + x**2)) + 0.1 * jnp.sum(jnp.sin(40 * x))  # noqa: E731
    options = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(1e-4), "num_steps": 700}
    whole = tw.flow(rough, START, **options)
    assert len(whole) == 701
    np.testing.assert_allclose(whole.times, 1e-4 * np.arange(701), rtol=1e-12)


def test_numpy_and_single_precision_starts():
    found = tw.minimise(rosenbrock, np.asarray([-1.2, 1.0]))
    assert_same(found, tw.minimise(rosenbrock, START))
    single = tw.minimise(rosenbrock, START.astype(jnp.float32))
    assert single.final.state.dtype == jnp.float32
    np.testing.assert_allclose(single.final.state, 1.0, atol=1e-3)


def test_the_minimum_under_jit_and_vmap():
    plain = tw.minimise(rosenbrock, START)
    inside = jax.jit(lambda x: tw.minimise(rosenbrock, x))(START)
    np.testing.assert_allclose(inside.final.state, plain.final.state, atol=1e-12)
    assert bool(inside.result == plain.result)
    # Its length is not known while JAX traces: the start and the end.
    np.testing.assert_allclose(inside.states, np.stack([START, plain.final.state]), atol=1e-12)
    np.testing.assert_allclose(inside.energies[0], plain.energies[0])

    starts = jnp.asarray([[-1.2, 1.0], [2.0, 2.0], [0.0, 5.0]])
    ends = jax.vmap(lambda x: tw.minimise(rosenbrock, x).final)(starts)
    np.testing.assert_allclose(ends.state, 1.0, atol=1e-9)
    assert int(ends.num_steps[0]) == int(plain.final.num_steps)

    # Each problem of a batch with its own data.
    shifts = jnp.asarray([1.0, 2.0])
    solved = jax.jit(jax.vmap(lambda a: tw.minimise(lambda x: jnp.sum((x - a) ** 2), jnp.zeros(2)).final.state))(shifts)
    np.testing.assert_allclose(solved, [[1.0, 1.0], [2.0, 2.0]])


def test_under_jit_a_saddle_is_no_minimum():
    saddle = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4  # noqa: E731
    kind = jax.jit(lambda x: tw.minimise(saddle, x).result)
    assert bool(kind(jnp.asarray([1.0, 0.3])) == tw.RESULTS.minimum)
    valley = lambda x: (x[0] * x[0] + x[1] * x[1] - 1) ** 2  # noqa: E731
    assert not bool(jax.jit(lambda x: tw.minimise(valley, x).result)(jnp.asarray([2.0, 1.0])) == tw.RESULTS.minimum)


def test_the_minimiser_has_the_derivative_of_the_implicit_function_theorem():
    start = jnp.zeros(2)

    def solve(a: Any) -> Any:
        return tw.minimise(lambda x: jnp.sum(jnp.cosh(x - a) + 0.1 * x**2 * a[::-1]), start)

    a = jnp.asarray([1.0, 2.0])
    # By hand: H = diag(cosh(x − a) + 0.2 ã), ∂_a∇f = −diag(cosh(x − a)) + 0.2 x on the other entry.
    x = solve(a).final.state
    bowl = jnp.cosh(x - a)
    mixed = -jnp.diag(bowl) + 0.2 * x[:, None] * jnp.eye(2)[::-1]
    expected = -mixed / (bowl + 0.2 * a[::-1])[:, None]
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(lambda a: solve(a).final.state)(a), expected, rtol=1e-9)
    # The value at the minimum changes as if the point stayed (envelope theorem); where it begins has no say.
    slope = jax.grad(lambda a: solve(a).energies[-1])(a)
    np.testing.assert_allclose(slope, -jnp.sinh(x - a) + 0.1 * x[::-1] ** 2, rtol=1e-9)
    begin = jax.grad(lambda x0: tw.minimise(lambda x: jnp.sum(jnp.cosh(x)), x0).final.state.sum())(a)
    np.testing.assert_array_equal(begin, 0.0)


def test_what_a_closure_traces_is_seen():
    shifts = jnp.asarray([[1.0, 2.0], [3.0, -1.0]])
    solve = lambda a: tw.minimise(lambda x: jnp.sum((x - a) ** 2), jnp.zeros(2)).final.state  # noqa: E731
    np.testing.assert_allclose(jax.vmap(solve)(shifts), shifts, atol=1e-12)
    np.testing.assert_allclose(jax.jit(solve)(shifts[0]), shifts[0], atol=1e-12)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_a_flow_inside_a_trace_is_refused(transform: Any):
    def flow(a: Any) -> Any:
        options = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(0.1), "num_steps": 2}
        return tw.flow(lambda x: jnp.sum((x - a) ** 2), jnp.zeros(2), **options).final.state[0]

    with pytest.raises(TypeError, match=r"tw\.rollout") as caught:
        transform(flow)(jnp.ones(3) if transform is jax.vmap else jnp.asarray(1.0))
    assert len(str(caught.value).splitlines()) <= 5


def test_a_path_keeps_its_own_start_and_says_when_it_cannot_be_repeated():
    start = np.asarray([9.0, 9.0])
    path = tw.minimise(rosenbrock, start)
    start[:] = -7
    np.testing.assert_array_equal(path.states[0], 9.0)
    gone = jnp.asarray([3.0, 3.0])
    path = tw.minimise(rosenbrock, gone)
    gone.delete()
    with pytest.raises(tw.Unavailable, match="look at the path before"):
        _ = path.states
    np.testing.assert_allclose(path.final.state, 1.0, atol=1e-9)
    copied = pickle.loads(pickle.dumps(tw.minimise(rosenbrock, START).saves))
    np.testing.assert_array_equal(copied.states[0], START)


def test_a_start_that_is_solved_or_on_a_saddle_to_rounding_ends_where_it_should():
    for seed in range(3):
        random = np.random.default_rng(seed)
        matrix, solution = jnp.asarray(random.normal(size=(5, 5))), jnp.asarray(random.normal(size=5))
        misfit = LeastSquares(matrix, matrix @ solution)
        again = tw.minimise(misfit, tw.minimise(misfit, jnp.zeros(5)).final.state)
        assert again.result == tw.RESULTS.minimum, again.message
        assert int(again.final.num_steps) < 100
        basis, centre = np.linalg.qr(random.normal(size=(5, 5)))[0], random.normal(size=5)
        left = tw.minimise(Saddle(jnp.asarray(basis), jnp.asarray(centre)), jnp.asarray(np.linalg.solve(basis, centre)))
        assert left.result == tw.RESULTS.minimum, left.message
        np.testing.assert_allclose(left.energies[-1], 0.75, rtol=1e-12)


class LeastSquares(eqx.Module):
    matrix: jax.Array
    right: jax.Array

    def __call__(self, x: Any) -> Any:
        return 0.5 * jnp.sum((self.matrix @ x - self.right) ** 2)


class Saddle(eqx.Module):
    basis: jax.Array
    centre: jax.Array

    def __call__(self, x: Any) -> Any:
        z = self.basis @ x - self.centre
        return 1 - z[0] ** 2 / 2 + z[0] ** 4 / 4 + jnp.sum(z[1:] ** 2) / 2
