"""The host loop: times, saves, stops, measurements, and one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import _chunks

START = jnp.array([1.0, -2.0])


def bowl(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2)


def run(scheme=None, **options):
    return tw.flow(bowl, START, geometry=tw.Euclidean(), scheme=scheme or tw.Explicit(0.1), **options)


def test_the_start_and_the_end_are_always_saved():
    path = run(num_steps=10, save_every=4)
    np.testing.assert_allclose(path.times, [0.0, 0.4, 0.8, 1.0])
    assert int(path.final.num_steps) == 10
    np.testing.assert_array_equal(path.states[0], START)
    np.testing.assert_array_equal(path.states[-1], path.final.state)


@pytest.mark.parametrize(("final_time", "steps"), [(1.0, 10), (0.95, 10), (0.05, 1), (0.3, 3)])
def test_the_final_time_is_hit_exactly_and_leaves_no_sliver(final_time, steps):
    path = run(final_time=final_time)
    assert float(path.times[-1]) == final_time
    assert int(path.final.num_steps) == steps


def test_a_stop_condition_ends_the_run_where_it_became_true():
    path = run(num_steps=1000, stop=tw.Stationary(1e-3), save_every=100)
    assert path.result == tw.RESULTS.stopped
    assert float(path.dissipation_rates[-1]) <= 1e-6
    before = run(num_steps=int(path.final.num_steps) - 1)
    assert float(before.dissipation_rates[-1]) > 1e-6


def test_a_measurement_is_recorded_at_every_save():
    path = run(num_steps=6, save_every=3, measure=lambda x: {"norm": jnp.linalg.norm(x), "first": x[0]})
    np.testing.assert_allclose(path.measurements["norm"], jnp.linalg.norm(path.states, axis=1))
    np.testing.assert_allclose(path.measurements["first"], path.states[:, 0])


def test_progress_is_told_how_far_the_run_has_come():
    seen = []
    run(num_steps=50, progress=seen.append)
    assert seen[-1].fraction == 1.0
    assert [p.num_steps for p in seen] == sorted(p.num_steps for p in seen)
    np.testing.assert_allclose(seen[-1].energy, float(run(num_steps=50).energies[-1]))


def test_a_second_call_traces_nothing_anew_even_with_another_step_size_and_start():
    traces = []

    def energy(x):
        traces.append(1)
        return bowl(x)

    def once(step_size, start):
        scheme = tw.Explicit(step_size)
        return tw.flow(energy, start, geometry=tw.Euclidean(), scheme=scheme, num_steps=20, save_every=5)

    once(0.1, START)
    _chunks_before = len(traces)
    once(0.05, 2 * START)
    # Shapes are checked again, which calls the function abstractly; the compiled loop is not built again.
    checks = len(traces) - _chunks_before
    once(0.07, 3 * START)
    assert len(traces) - _chunks_before == 2 * checks
    assert checks < _chunks_before


def test_pieces_of_iterate_make_the_path_of_flow():
    options = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(0.1), "num_steps": 30}
    pieces = list(tw.iterate(bowl, START, **options))
    whole = tw.flow(bowl, START, **options)
    np.testing.assert_array_equal(jnp.concatenate([p.states for p in pieces]), whole.states)


def test_a_pytree_moves_leaf_by_leaf():
    start = {"a": jnp.ones(2), "b": (jnp.zeros(()), jnp.ones((2, 2)))}
    path = tw.flow(
        lambda p: jnp.sum(p["a"] ** 2) + (p["b"][0] - 1) ** 2 + 0.5 * jnp.sum(p["b"][1] ** 2),
        start,
        geometry=tw.Euclidean(),
        scheme=tw.Explicit(0.1),
        num_steps=1,
    )
    final = path.final.state
    np.testing.assert_allclose(final["a"], 0.8 * np.ones(2))
    np.testing.assert_allclose(final["b"][0], 0.2)
    np.testing.assert_allclose(final["b"][1], 0.9 * np.ones((2, 2)))


def test_a_user_may_own_the_loop():
    energy, plane, scheme = tw.PotentialEnergy(bowl), tw.Wasserstein(), tw.Explicit(0.1)
    state = tw.Particles(START[None])
    memory = scheme.init(energy, plane, state, None)
    for _ in range(3):
        state, memory, info = scheme.step(energy, plane, state, memory, None)
    assert info.result == tw.RESULTS.successful
    np.testing.assert_allclose(state.positions[0], run(num_steps=3).final.state, rtol=1e-13)


def test_memory_does_not_grow_with_steps_that_are_not_saved():
    path = run(num_steps=200000, save_every=200000)
    assert len(path) == 2
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(path.states)) == 2 * START.nbytes
    assert _chunks is not None


def test_float32_stays_float32_and_its_time_adds_up():
    path = tw.flow(
        lambda x: 0.5 * jnp.sum(x**2),
        jnp.ones(2, jnp.float32),
        geometry=tw.Euclidean(),
        scheme=tw.Explicit(1e-4),
        num_steps=100000,
        save_every=100000,
    )
    assert path.final.state.dtype == jnp.float32
    # Plain summation in float32 is off by 1e-2 after so many steps.
    np.testing.assert_allclose(float(path.times[-1]), 10.0, rtol=1e-6)


def test_a_save_holds_what_moves_and_not_the_data_beside_it():
    inputs, rows = jnp.linspace(0.0, 1.0, 500), []
    path = tw.fit(lambda p, x: p[0] * jnp.exp(p[1] * x), inputs, 2 * jnp.exp(-inputs), jnp.array([1.0, 0.5]))
    assert len(path) > 3
    assert path.states.params.shape == (len(path), 2)
    assert path.states.family.inputs.shape == (500,)
    for k in (0, len(path) - 1):
        rows.append(path.state_at(k).params)
        assert path.state_at(k).family.inputs.shape == (500,)
    np.testing.assert_array_equal(rows[0], [1.0, 0.5])
    np.testing.assert_array_equal(rows[1], path.final.state.params)
    np.testing.assert_allclose(rows[1], [2.0, -1.0], rtol=1e-8)
