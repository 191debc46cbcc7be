"""A recipe called again takes a short way to the same path; inside a trace it is one pure function."""

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
